from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from lightly_distill import UsageError, as_target
from lightly_distill.data.source import open_source
from lightly_distill.method import target_maps
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.representation_cache import RepresentationCache
from lightly_distill.method.target_maps import find_grid
from lightly_distill.models.rows import Layout

CPU = torch.device("cpu")


def real_images(cache: RepresentationCache | None = None, **options: Any) -> RealImages:
    config = tiny.config(**{"target_map": 4, "map_dims": 3, **options})
    return RealImages.of_target(open_source(tiny.images(40)), as_target(tiny.encoder()), config, CPU, cache)


@pytest.mark.parametrize("views", [0, 2, "random"])
def test_rows_are_the_targets_representations_and_the_components_of_its_map(views: int | str) -> None:
    real, target = real_images(source_views=views), as_target(tiny.encoder())
    assert real.truth.layout == Layout(96, channels=3, grid=4) and real.target_maps is not None
    pixels = real.source.read(torch.arange(40)).float() / 255
    vectors, maps = real.truth.layout.split(real.truth.of_images(torch.arange(40)))
    expected, whole = target.maps(pixels, 4)
    torch.testing.assert_close(vectors, expected)
    cells = real.target_maps.projection.apply(whole.permute(0, 2, 3, 1))
    assert maps is not None
    torch.testing.assert_close(maps, cells.permute(0, 3, 1, 2))
    torch.testing.assert_close(maps.var(correction=0), torch.tensor(1.0), atol=1e-3, rtol=0)
    batch = next(real.batches(0, 1))
    shown = (batch.images * real._std + real._mean).clamp(0, 1)  # the very view
    torch.testing.assert_close(batch.representations[:, :96], target(shown), rtol=1e-3, atol=1e-4)


def test_principal_components_are_of_the_vectors_only() -> None:
    real, raw = real_images(target_dims=5), real_images()
    assert real.truth.layout == Layout(5, channels=3, grid=4) and real.projection is not None
    every = torch.arange(40)
    rows, plain = real.truth.of_images(every), raw.truth.of_images(every)
    torch.testing.assert_close(rows[:, :5], real.projection.apply(plain[:, :96]))
    assert torch.equal(rows[:, 5:], plain[:, 96:])


def test_another_run_finds_components_and_maps_and_does_not_ask_the_target_again(tmp_path: Path) -> None:
    facts = {"source": "x", "target": "y"}
    first = real_images(RepresentationCache(tmp_path, facts))
    asked = []
    model = tiny.encoder()
    model.register_forward_hook(lambda *_: asked.append(1))
    source, target = open_source(tiny.images(40)), as_target(model)
    config = tiny.config(target_map=4, map_dims=3, seed=5)
    before = len(asked)
    cache = RepresentationCache(tmp_path, facts)
    second = RealImages.of_target(source, target, config, CPU, cache)
    assert len(asked) - before <= 1  # whether there is a map of this grid
    every = torch.arange(40)
    assert torch.equal(first.truth.of_images(every), second.truth.of_images(every))
    cache.forget_others()
    assert RepresentationCache(tmp_path, facts).beside("map 4 3", lambda: pytest.fail("made again"))
    other = RealImages.of_target(
        source, target, tiny.config(target_map=2, map_dims=3), CPU, RepresentationCache(tmp_path, facts)
    )
    assert other.truth.layout.grid == 2


def test_left_to_us_the_grid_is_what_the_target_has() -> None:
    assert find_grid(as_target(tiny.encoder()), 8, "auto", CPU) == 2
    assert find_grid(as_target(tiny.encoder()), 2, "auto", CPU) == 0
    assert find_grid(as_target(tiny.encoder()), 8, 3, CPU) == 3
    assert find_grid(as_target(tiny.encoder()), 8, 0, CPU) == 0


def test_a_target_without_a_map_is_said_once_and_refused_if_one_is_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def function(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :7]

    target = as_target(function)
    with caplog.at_level("INFO"):
        assert find_grid(target, 8, "auto", CPU) == 0
    assert (
        "has no map of images of shape (3, 8, 8)" in caplog.text
        and "Representations alone are predicted, no map" in caplog.text
    )
    with pytest.raises(UsageError, match="has no map of images of shape"):
        find_grid(target, 8, 2, CPU)
    with pytest.raises(UsageError, match="its last map is 4x4, smaller than 5x5 cells"):
        find_grid(as_target(tiny.encoder()), 8, 5, CPU)


def test_components_are_found_in_a_sample_of_a_large_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_maps, "SAMPLE", 10)
    seen: list[int] = []
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(2))
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    config = tiny.config(target_map=2, map_dims=2)
    real = RealImages.of_target(open_source(tiny.images(40)), as_target(model), config, CPU)
    assert real.target_maps is not None and real.target_maps.channels == 2
    assert sum(seen) < 2 * 40  # the sample once more, not the source


def test_fewer_components_than_asked_for_are_told(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(2))
    for dims, told in ((4, False), (9, True)):
        caplog.clear()
        config = tiny.config(target_map=2, map_dims=dims)
        with caplog.at_level("INFO"):
            real = RealImages.of_target(open_source(tiny.images(40)), as_target(model), config, CPU)
        assert real.target_maps is not None and real.target_maps.channels == 4
        line = f"Each cell of the target's map has 4 principal components, fewer than map_dims={dims} (--map-dims)."
        assert (line in caplog.messages) == told
