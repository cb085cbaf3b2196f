from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightly_distill import pictures


def test_the_grid_shows_each_image_enlarged_in_its_place() -> None:
    images = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    for number in range(5):
        images[number, 0] = 40 * (number + 1)
    grid = np.asarray(pictures.image_grid(images, columns=3))
    gap, side = 4, 64
    for number in range(5):
        row, column = divmod(number, 3)
        top, left = (place * (side + gap) + gap for place in (row, column))
        cell = grid[top : top + side, left : left + side]
        assert (cell == [40 * (number + 1), 0, 0]).all()
    assert (grid[:gap] == 255).all()


@pytest.mark.parametrize("spread", [1, 3])
def test_each_picture_is_drawn(tmp_path: Path, spread: int) -> None:
    images = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8)
    pictures.before_after(images, images.flip(0), tmp_path / "a.png")
    rows = [{"step": s, "loss": 1 / (s + 1), "heldout_loss": 1.0 if s % 10 == 0 else None} for s in range(40)]
    pictures.loss_curve(rows, tmp_path / "b.png")
    pictures.accuracy_bars({"linear": {"scratch": [0.5] * spread, "distilled": [0.7] * spread}}, tmp_path / "c.png")
    for name in "abc":
        with Image.open(tmp_path / f"{name}.png") as picture:
            pixels = np.asarray(picture.convert("L"))
        assert min(pixels.shape) > 300 and pixels.std() > 5


def test_a_run_of_one_step_has_a_curve(tmp_path: Path) -> None:
    pictures.loss_curve([{"step": 0, "heldout_loss": 0.3}, {"step": 1, "loss": 0.2}], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").exists()
