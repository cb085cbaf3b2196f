import torch

import tiny
from lightly_distill import as_target
from lightly_distill.data.pixels import normalise
from lightly_distill.data.source import open_source
from lightly_distill.method.distill import distill
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.rounding import Rounding, fit_scales
from lightly_distill.method.state import DistillState
from lightly_distill.models.rows import Layout
from lightly_distill.runs.run_folder import RunFolder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def rounding(*scales: float) -> Rounding:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return Rounding(mean, std, torch.tensor(scales))


def test_rounded_images_are_to_the_last_bit_what_their_pixels_become() -> None:
    images, to = torch.randn(50, 3, 8, 8) * 2, rounding(1.0)
    assert torch.equal(to.images(images), normalise(to.pixels(images), MEAN, STD))
    pixels = torch.randint(256, (50, 3, 8, 8)).byte()
    assert torch.equal(to.pixels(normalise(pixels, MEAN, STD)), pixels)


def test_targets_are_whole_multiples_of_their_scales_of_at_most_127() -> None:
    rows = rounding(0.5, 0.1).targets(torch.tensor([[1.3, 0.349], [900.0, -900.0]]))
    torch.testing.assert_close(rows, torch.tensor([[1.5, 0.3], [63.5, -12.7]]))


def test_scales_are_one_for_vectors_and_one_for_maps_with_room_above_the_largest() -> None:
    layout = Layout(2, channels=1, grid=2)
    rows = torch.tensor([[1.0, -4.0, 0.1, 0.2, -0.3, 0.0]])
    scales = fit_scales(rows, layout, 8)
    assert torch.allclose(fit_scales(rows, layout, 6), scales * 127 / 31)
    assert scales.tolist() == [scales[0]] * 2 + [scales[2]] * 4
    assert 127 * scales[0] > 4 and 127 * scales[2] > 0.3 and scales[0] > 10 * scales[2]


def test_what_is_learned_stays_continuous_and_within_reach_of_the_gradient() -> None:
    config = tiny.config(eight_bits=True, steps=6, outer={"lr_images": 2.0})
    real = RealImages.of_target(open_source(tiny.images()), as_target(tiny.encoder()), config, torch.device("cpu"))
    state = DistillState.start(real, [("tiny", tiny.student)], config)
    distill(state, real, config, RunFolder(None, {}))
    assert state.rounding is not None
    images, rows = state.learned()
    assert not torch.equal(images, state.images) and (images - state.images).abs().max() < 0.5 / 255 / min(STD) + 1e-3
    assert torch.equal(state.rounding.images(images), images) and torch.equal(state.rounding.targets(rows), rows)
    shown = state.rounding.pixels(state.images)
    assert shown.min() == 0 or shown.max() == 255  # so fast that some came to the end of the scale, and not beyond
    assert (state.images * state.rounding.std + state.rounding.mean).min() > -1e-6
