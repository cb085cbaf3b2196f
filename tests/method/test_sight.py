"""Two sizes: what the target sees of the images that students see."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import pictures
import tiny
from lightly_distill.data.decode import Frame
from lightly_distill.data.pixels import PAD, crop_and_flip
from lightly_distill.data.source import open_source
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.representation_cache import RepresentationCache
from lightly_distill.method.sight import Sight, find_for_target, target_frame, try_target
from lightly_distill.models.targets import Target, as_target

S = 32
CPU = torch.device("cpu")


def seeing(function: Any = None, **options: Any) -> Target:
    """A target that sees pixels as they are, and returns numbers of them."""
    plain: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "name": "eye", "encoder_name": "eye"}
    return Target(function or (lambda images: F.adaptive_avg_pool2d(images, 4).flatten(1)), **{**plain, **options})


def photographs(count: int, width: int = 300, height: int = 240) -> list[Image.Image]:
    """Each another part of one picture with positions."""
    whole = pictures.position(width + 4 * count, height)
    return [whole.crop((4 * i, 0, 4 * i + width, height)) for i in range(count)]


def of(images: Any, target: Target, cache: RepresentationCache | None = None, **options: Any) -> RealImages:
    config = tiny.config(**{"image_size": S, "num_images": 4, "batch_size": 6, **options})
    found, _ = find_for_target(images, target, image_size=config.image_size, target_size=config.target_size)
    return RealImages.of_target(open_source(found), target, config, CPU, cache)


@pytest.mark.parametrize(("ratio", "size"), [(3.5, 112), (4, 128)])
@pytest.mark.parametrize("views", [6, "random"])
def test_the_two_sizes_of_a_view_are_the_same_crop(ratio: float, size: int, views: int | str) -> None:
    given: list[Tensor] = []
    target = seeing(lambda images: given.append(images) or images.mean((2, 3)))
    shown = photographs(12)
    real = of(shown, target, target_size=size, source_views=views, holdout=0)
    if views == "random":
        given.clear()
        batches = list(zip([batch.images for batch in real.batches(0, 8)], given, strict=True))
    else:
        small = real.source.read(torch.arange(12))
        pairs = zip(real.views.table, torch.cat(given).view(6, 12, 3, size, size), strict=True)
        batches = [(crop_and_flip(small, crops).float() / 255, large) for crops, large in pairs]
    flips = 0
    for small_views, large_views in batches:
        assert large_views.shape[-1] == size == ratio * S
        for small_view, large_view in zip(small_views, large_views, strict=True):
            shrunk = F.interpolate(large_view[None], size=(S, S), mode="area")[0]
            inside = (small_view[2] > 0.45) & (shrunk[2] > 0.45)  # blue: not the black border
            assert inside[PAD + 1 : -PAD - 1, PAD + 1 : -PAD - 1].all()
            step = 240 / 300 / S  # of the red, from pixel to pixel of the small one
            off = (small_view - shrunk).abs()[:, inside]
            assert off[0].max() < 0.45 * step and off[1].max() < 0.45 / S
            flips += int(small_view[0, S // 2, PAD + 1] > small_view[0, S // 2, -PAD - 2])
    assert 0 < flips < 12 * len(batches)


@pytest.mark.parametrize("views", [0, 2, "random"])
def test_the_target_sees_the_original_and_not_the_small_image_enlarged(views: int | str) -> None:
    stripes = Image.new("RGB", (224, 224))
    for column in range(0, 224, 4):  # too fine for 32 pixels, wide enough for 112
        stripes.paste((255, 255, 255), (column, 0, column + 2, 224))
    spread = seeing(lambda images: images[:, :, 30:80, 30:80].std((2, 3)))
    for size, fine in ((112, True), (S, False)):
        real = of([stripes] * 12, spread, target_size=size, source_views=views, holdout=0)
        found = (
            real.plain(torch.arange(12)).representations
            if views == "random"
            else next(real.batches(0, 1)).representations
        )
        assert bool((found > 0.3).all()) == fine


def test_the_default_is_the_targets_own_size_where_the_originals_have_more_to_show() -> None:
    large, small = photographs(2), [image.resize((S, S)) for image in photographs(2)]
    cases: list[tuple[Any, dict[str, Any], int | None, int]] = [
        (large, {}, None, S),  # knows none
        (large, {"own_size": 96}, None, 96),
        (large, {"input_size": 96}, None, 96),
        (large, {"own_size": 96}, 64, 64),
        (large, {"own_size": 16}, None, 16),  # as a student of ours, trained on small images
        (large, {"own_size": 96}, S, S),
        (large, {"input_size": 96}, S, S),  # enlarged by the target itself, as in older versions
        (small, {"own_size": 96}, None, S),
        (small, {"input_size": 96}, None, S),
        (small, {"own_size": 96}, 64, 64),
        (torch.zeros(3, 3, S, S, dtype=torch.uint8), {"own_size": 96}, None, S),
        (large, {"own_size": S}, None, S),
    ]
    for images, options, asked, expected in cases:
        target = seeing(**options)
        found, frame = find_for_target(images, target, image_size=S, target_size=asked)
        assert (found.image_size, frame.size) == (S, expected), (options, asked)
        assert target_frame(open_source(found), target, asked) == frame


def test_crop_and_interpolation_are_the_targets_where_the_sizes_differ_and_both_sizes_have_the_crop() -> None:
    target = seeing(own_size=96, crop=0.5, interpolation="bilinear")
    images = photographs(2)
    found, frame = find_for_target(images, target, image_size=S, target_size=None)
    assert frame == Frame(96, 0.5, "bilinear") and found.frame == Frame(S, 0.5)
    found, frame = find_for_target(images, target, image_size=S, target_size=S)
    assert frame == found.frame == Frame(S)
    opened = open_source(images, image_size=S)  # by the user, whole
    assert target_frame(opened, target, None) == Frame(96, 1.0, "bilinear")


def test_small_originals_are_enlarged_and_that_is_said_once_before_the_target_sees_any(
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = [image.resize((40, 40)) if i % 4 == 0 else image for i, image in enumerate(photographs(12))]
    said_before: list[int] = []

    def see(images: Tensor) -> Tensor:
        said_before.append(len(caplog.records))
        return images.mean((2, 3))

    with caplog.at_level(logging.WARNING):
        real = of(images, seeing(see), target_size=64, source_views=2, holdout=2, target_map=0)
        real.held_out()
        real.plain(torch.arange(4))
    assert [record.getMessage() for record in caplog.records] == [
        "3 of 12 images of a list are smaller than the 64 pixels that the target sees, and are enlarged."
    ]
    assert set(said_before) == {1}


def test_small_tensors_work_as_before_and_are_enlarged_on_request(caplog: pytest.LogCaptureFixture) -> None:
    images = tiny.images(20)
    given: list[tuple[int, ...]] = []
    target = seeing(lambda x: given.append(tuple(x.shape[-2:])) or x.mean((2, 3)), own_size=24)
    of(images, target, image_size=None, holdout=0)
    of(images, target, image_size=None, holdout=0, target_size=24)
    assert set(given[:1]) == {(8, 8)} and set(given[1:]) == {(24, 24)}
    assert "20 of 20 images of a tensor are smaller than the 24 pixels" in caplog.text


def test_a_size_that_a_fixed_target_does_not_take_is_refused_with_the_one_that_it_takes() -> None:
    with pytest.raises(UsageError, match=r"eye takes images of 96 pixels only; got target_size=64. Give 96, or 32 to"):
        find_for_target(photographs(1), seeing(input_size=96), image_size=S, target_size=64)


def test_a_size_that_the_target_fails_at_is_refused_with_sizes_that_work() -> None:
    target = as_target(nn.Sequential(nn.Flatten(), nn.Linear(3 * 112 * 112, 2)), name="rigid")
    for asked, cure in ((100, "It takes 112"), (40, "No size near it works either")):
        found, frame = find_for_target(photographs(2), target, image_size=S, target_size=asked)
        message = rf"target_size={asked} does not suit the target rigid\. {cure}\. .*fails on images of shape"
        with pytest.raises(UsageError, match=message):
            try_target(found, target, frame, CPU)
    found, frame = find_for_target(photographs(2), target, image_size=S, target_size=112)
    assert try_target(found, target, frame, CPU) == 2


class Stream:
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("init", ["random", "kmeans"])
def test_a_stream_gives_the_representations_that_a_list_gives(views: int, init: str) -> None:
    images = photographs(25)
    options: dict[str, Any] = {"target_size": 64, "source_views": views, "init": init}
    streamed, listed = (of(kind, seeing(), **options) for kind in (Stream(images), images))
    for one, other in zip(streamed.batches(0, 4), listed.batches(0, 4), strict=True):
        assert torch.equal(one.representations, other.representations)
    chosen = torch.tensor([9, 2, 14])
    assert torch.equal(streamed.plain(chosen).representations, listed.plain(chosen).representations)


def test_fresh_views_of_a_stream_at_another_size_are_refused() -> None:
    options: dict[str, Any] = {"image_size": S, "at_random": True}
    with pytest.raises(UsageError, match="A stream cannot be read again in any order, as source_views=random with"):
        find_for_target(Stream(photographs(9)), seeing(), target_size=64, **options)
    find_for_target(Stream(photographs(9)), seeing(), target_size=S, **options)
    find_for_target(photographs(9), seeing(), target_size=64, **options)


def test_kept_representations_are_found_by_size_crop_and_interpolation(tmp_path: Path) -> None:
    asked: list[int] = []

    def names(**options: Any) -> set[str]:
        size = options.pop("target_size", None)
        target = seeing(lambda images: asked.append(len(images)) or images.mean((2, 3)), **options)
        of(photographs(12), target, RepresentationCache(tmp_path, {"source": 1}), target_size=size)
        return {path.name for path in tmp_path.iterdir()}

    apart = [{"target_size": 64}, {"own_size": 48}, {"own_size": 48, "crop": 0.5}]
    apart += [{"own_size": 48, "interpolation": "bilinear"}, {}]
    for number, options in enumerate(apart, start=1):
        assert len(names(**options)) == number
    computed = sum(asked)
    assert len(names(target_size=48)) == len(apart)  # as by default
    assert sum(asked) == computed == 12 * len(apart)


def test_an_image_that_is_gone_is_named_and_not_passed_over(tmp_path: Path) -> None:
    for number, image in enumerate(photographs(10)):
        image.save(tmp_path / f"{number}.png")
    found, _ = find_for_target(tmp_path, seeing(), image_size=S, target_size=64)
    source = open_source(found)
    (tmp_path / "6.png").unlink()
    with pytest.raises(DistillError, match=r"6\.png of .* was decoded at 32 pixels and cannot be at 64: not there"):
        RealImages.of_target(source, seeing(), tiny.config(num_images=4, target_size=64), CPU)


def test_real_pictures_are_seen_at_64_pixels_and_shown_at_32(real_data: Path) -> None:
    data = f"{real_data / 'tinyimagenet100-64'}#test"
    found, _ = find_for_target(data, seeing(), image_size=S, target_size=64)
    source = open_source(found)
    chosen = torch.arange(0, len(source), len(source) // 60)
    small, large = source.read(chosen), torch.cat(list(source.again(chosen.split(16), Frame(64))))
    assert torch.equal(large, open_source(data, image_size=64).read(chosen))
    shrunk = F.interpolate(large.float(), size=(S, S), mode="bicubic", antialias=True)
    assert (shrunk - small.float()).abs().mean() < 1
    enlarged = F.interpolate(small.float(), size=(64, 64), mode="bicubic", antialias=True)
    assert (enlarged - large.float()).abs().mean() > 4  # what an enlarged image lacks


def test_small_and_large_originals_that_are_alike_at_one_size_are_kept_apart_where_the_target_sees_another() -> None:
    large = photographs(4)
    small = [image.resize((40, 32)) for image in large]
    again = [image.copy() for image in small]
    of_small, of_the_same, of_large = (open_source(images, image_size=S) for images in (small, again, large))
    keys = [Sight(source, Frame(96)).key for source in (of_small, of_the_same, of_large)]
    assert keys[0] == keys[1] != keys[2]
    assert Sight(of_small, of_small.frame).key == Sight(of_large, of_large.frame).key == ""
