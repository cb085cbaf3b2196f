import pytest
import torch

import tiny
from lightly_distill import DistillationStage
from lightly_distill.method.grain import smooth_step_, smoothed


@pytest.mark.parametrize("shape", [(8, 8), (9, 9), (32, 32), (3, 5)])
@pytest.mark.parametrize("grain", [2, 3])
def test_a_change_of_all_pixels_alike_stays_and_one_of_single_pixels_is_averaged(
    shape: tuple[int, int], grain: int
) -> None:
    flat = torch.full((2, 3, *shape), 0.7)
    assert torch.allclose(smoothed(flat, grain), flat)
    chess = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    assert smoothed(chess.expand(1, 1, 8, 8), 2).abs().max() < 1e-6


def test_steps_add_up_to_a_smooth_change() -> None:
    start = torch.rand(2, 3, 8, 8)
    images = start.clone()
    for _ in range(3):
        before = images.clone()
        images += torch.randn(2, 3, 8, 8)
        smooth_step_(images, before, 2)
    change = images - start
    assert change.abs().max() > 0.1
    rough = (change[..., 1:] - change[..., :-1]).square().mean() / change.square().mean()
    noise = torch.randn(2, 3, 8, 8)
    assert rough < 0.5 * (noise[..., 1:] - noise[..., :-1]).square().mean() / noise.square().mean()


def test_a_grain_of_one_changes_each_pixel_by_itself() -> None:
    before, images = torch.zeros(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    expected = images.clone()
    smooth_step_(images, before, 1)
    assert torch.equal(images, expected)


def test_what_is_distilled_differs_smoothly_from_what_it_started_from() -> None:
    images = tiny.images(40)
    encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1))

    def roughness(**outer: float) -> float:
        options = {"student": "convnet_4_4", "num_images": 8, "steps": 20, "eight_bits": False, "device": "cpu"}
        stage = DistillationStage(encoder, pool={"size": 2, "max_age": 3}, outer=outer, **options)
        made = stage.run(images)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (made.mean, made.std))
        change = made.images - (images[made.source_index] / 255 - mean) / std
        return float((change[..., 1:] - change[..., :-1]).square().mean() / change.square().mean())

    assert roughness() < 0.6 * roughness(grain=1)
