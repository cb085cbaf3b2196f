from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tiny
from lightly_distill import SyntheticSet, as_target
from lightly_distill.data.pixels import normalise
from lightly_distill.data.source import open_source
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.state import DistillState
from lightly_distill.runs.origin import RealSide
from lightly_distill.sharing import near_copies
from lightly_distill.sharing.near_copies import Nearest, draw_pairs, find_near_copies
from lightly_distill.synthetic import pictures

COUNT = 60
DEVICE = torch.device("cpu")


@pytest.fixture
def real() -> RealSide:
    return RealSide(open_source(tiny.images(COUNT)), as_target(tiny.encoder()), DEVICE)


def as_set(images: Tensor, index: Tensor | None = None) -> SyntheticSet:
    target = as_target(tiny.encoder())
    return SyntheticSet(
        normalise(images, target.mean, target.std),
        torch.zeros(len(images), 4),
        mean=target.mean,
        std=target.std,
        source_index=index,
    )


def start(real: RealSide, **options: Any) -> SyntheticSet:
    """The set as it is before the first step."""
    config = tiny.config(**options)
    state = DistillState.start(
        RealImages.of_target(real.source, real.target, config, DEVICE), [("tiny", tiny.student)], config
    )
    return SyntheticSet(
        state.images,
        state.representations,
        mean=real.target.mean,
        std=real.target.std,
        source_index=state.source_index,
    )


def test_a_set_taken_at_step_0_is_flagged_and_one_from_noise_is_not(real: RealSide) -> None:
    found = find_near_copies(start(real), real)
    assert found.near.all() and found.traced == 10
    assert found.facts()["near"] == 10 and found.pixels.synthetic.max() < 1e-6
    found = find_near_copies(start(real, init="noise"), real)
    assert not found.near.any() and found.traced is None
    assert found.facts()["near"] == 0 and found.pixels.synthetic.min() > found.pixels.limit


def test_distances_are_those_of_a_plain_loop(real: RealSide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_copies, "CHUNK", 7)  # several batches
    monkeypatch.setattr(near_copies, "COMPARED", 20)  # a few of the real images
    images = tiny.images(COUNT)
    made = (images[:9].float() * 0.7 + images[20:29].float() * 0.3).byte()
    found = find_near_copies(as_set(made), real)
    pixels = images.double() / 255
    assert len(found.pixels.real) == len(found.representations.real) == 20
    for place, image in enumerate(made.double() / 255):
        distances = (pixels - image).pow(2).mean((1, 2, 3)).sqrt()
        assert found.pixels.synthetic[place].item() == pytest.approx(distances.min().item(), rel=1e-4)
        assert found.pixels.index[place] == distances.argmin()
    own = real.target(made.float() / 255)
    expected = torch.cdist(own.double(), real.representations.double()).min(1)
    torch.testing.assert_close(found.representations.synthetic.double(), expected.values, rtol=1e-3, atol=1e-4)
    among = torch.cdist(pixels.flatten(1), pixels.flatten(1)) / (3 * 8 * 8) ** 0.5
    nearest_other = among.fill_diagonal_(torch.inf).min(1).values
    for distance in found.pixels.real.double():  # each is that of a real image to another one, not to itself
        assert (nearest_other - distance).abs().min() < 1e-5 and distance > 0


def test_a_copy_that_is_hardly_changed_is_found_among_others(real: RealSide) -> None:
    images = tiny.images(COUNT)
    made = torch.randint(256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    made[3] = (images[33].int() + 2).clamp(0, 255).byte()
    found = find_near_copies(as_set(made, torch.tensor([0, 1, 2, 33, -1])), real)
    assert found.near.tolist() == [False, False, False, True, False]
    assert found.pixels.index[3] == 33 and found.traced == 1


def test_the_picture_has_the_nearest_pair_first(real: RealSide, tmp_path: Path) -> None:
    images = tiny.images(COUNT)
    made = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    made[2] = images[40]
    own = as_set(made)
    draw_pairs(find_near_copies(own, real), own, real, tmp_path / "new" / "pairs.png")
    with Image.open(tmp_path / "new" / "pairs.png") as picture:
        colours = np.array(picture.convert("RGB")).reshape(-1, 3)
    of_the_copy = (colours == images[40, :, 0, 0].numpy()).all(1).sum()
    assert of_the_copy > 100  # drawn twice, side by side: an eighth of an image that is a third of the picture wide


def test_the_pairs_are_labelled_nearest_first(real: RealSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(pictures, "labelled", lambda images, labels, title, path: told.extend(labels))
    made = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    made[2] = tiny.images(COUNT)[40]
    own = as_set(made)
    draw_pairs(find_near_copies(own, real), own, real, tmp_path / "pairs.png")
    assert told[0] == "synthetic 2, real 40: 0.00" and len(told) == 3


def test_without_distinct_real_images_nothing_breaks() -> None:
    same = tiny.images(1).repeat(12, 1, 1, 1)
    real = RealSide(open_source(same), as_target(tiny.encoder()), DEVICE)
    facts = find_near_copies(as_set(tiny.images(3)), real).facts()
    assert facts["pixels"]["real_median"] == pytest.approx(0, abs=1e-6)


def test_exact_copies_are_found_where_most_real_images_have_a_twin() -> None:
    distances = Nearest(
        synthetic=torch.tensor([0.0, 0.1]), index=torch.zeros(2), real=torch.tensor([0, 0, 0, 0.5, 0.6])
    )
    assert distances.near.tolist() == [True, False] and distances.facts()["near"] == 1
