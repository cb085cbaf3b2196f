from pathlib import Path

import pytest
import torch

import tiny
from lightly_distill.data.source import open_source
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.representation_cache import RepresentationCache
from lightly_distill.method.step import RealBatch
from lightly_distill.models.targets import Target, as_target

FACTS = {"source": "60 images", "target": "the encoder"}


def make(
    target: Target, *, cache: RepresentationCache | None = None, device: str = "cpu", **options: object
) -> RealImages:
    source = open_source(tiny.images())
    return RealImages.of_target(source, target, tiny.config(**options), torch.device(device), cache)


@pytest.mark.parametrize("views", [0, 2])
def test_a_resumed_run_does_not_ask_the_target_again_and_another_seed_of_views_does(views: int, tmp_path: Path) -> None:
    def batches(seed: int) -> tuple[list[RealBatch], int]:
        target = as_target(tiny.encoder())
        asked: list[int] = []
        target.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
        real = make(target, cache=RepresentationCache(tmp_path, FACTS), source_views=views, seed=seed)
        return list(real.batches(0, 4)), sum(asked)

    first, computed = batches(seed=0)
    again, computed_again = batches(seed=0)
    assert (computed, computed_again) == (60 * max(1, views), 0)
    memory = list(make(as_target(tiny.encoder()), source_views=views).batches(0, 4))
    for a, b, c in zip(first, again, memory, strict=True):
        assert torch.equal(a.representations, b.representations) and torch.equal(a.representations, c.representations)
        assert torch.equal(a.images, b.images)
    assert batches(seed=1)[1] == (120 if views else 0)  # without views, a seed changes nothing that is kept


def test_the_kept_representations_of_older_versions_are_found_under_their_names(tmp_path: Path) -> None:
    for views, name in ((0, "9636607925723f21"), (2, "be69216c7d297f43")):
        make(as_target(tiny.encoder()), cache=RepresentationCache(tmp_path / str(views), FACTS), source_views=views)
        assert [path.name for path in (tmp_path / str(views)).iterdir()] == [name]


@pytest.mark.gpu
@pytest.mark.parametrize("views", [0, 2, "random"])
def test_bf16_is_that_of_the_target_on_a_gpu_and_what_is_kept_is_float32(views: int | str, tmp_path: Path) -> None:
    kept = []
    for precision in ("fp32", "bf16"):
        cache = RepresentationCache(tmp_path, FACTS)
        real = make(as_target(tiny.encoder()), cache=cache, device="cuda", source_views=views, precision=precision)
        kept.append(next(real.batches(0, 1)).representations)
        assert kept[-1].dtype == torch.float32
    assert not torch.equal(*kept)
    torch.testing.assert_close(*kept, rtol=0, atol=0.05)
    assert len(list(tmp_path.iterdir())) == (0 if views == "random" else 2)


@pytest.mark.gpu
@pytest.mark.parametrize("views", [0, 2, "random"])
def test_the_target_is_on_the_gpu_only_while_it_computes_unless_every_step_needs_it(views: int | str) -> None:
    target = as_target(tiny.encoder())
    real = make(target, device="cuda", source_views=views)
    rests = "cuda" if views == "random" else "cpu"
    assert {each.device.type for each in target.state_dict().values()} == {rests}
    held_out = real.held_out()
    for batch in [held_out, *real.batches(0, 3)]:
        assert batch is not None and batch.images.is_cuda and batch.representations.is_cuda
    assert {each.device.type for each in target.state_dict().values()} == {rests}
