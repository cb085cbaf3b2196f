"""A run as it is by default: maps, principal components, 8 bits and mixup, from the stage to a student."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import TensorDataset

import tiny
from lightly_distill import DistillationStage, DistillError, SyntheticSet, UsageError, as_target, evaluate, pretrain
from lightly_distill.evaluation.baselines.arms import ARMS, open_inputs
from lightly_distill.models.rows import Layout
from lightly_distill.runs.origin import real_side
from lightly_distill.sharing.near_copies import find_near_copies
from lightly_distill.synthetic.describe import describe_set

COUNT, STUDENT = 60, "convnet_4_4"
OPTIONS: dict[str, Any] = {
    "student": STUDENT,
    "num_images": 8,
    "steps": 6,
    "batch_size": 16,
    "log_every": 1,
    "checkpoint_every": 2,
    "map_dims": 3,
    "pool": {"size": 2, "max_age": 3},
    "device": "cpu",
}


def stage(**options: Any) -> DistillationStage:
    return DistillationStage(as_target(tiny.encoder()), **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rich") / "run"
    stage().run(tiny.images(COUNT), out=out)
    return out


def same(first: SyntheticSet, second: SyntheticSet) -> bool:
    assert first.pixels is not None and second.pixels is not None
    return torch.equal(first.pixels, second.pixels) and torch.equal(first.targets, second.targets)


def test_the_set_has_8_bits_components_and_a_map_and_is_what_was_returned(tmp_path: Path) -> None:
    returned = stage().run(tiny.images(COUNT), out=tmp_path / "run")
    loaded = SyntheticSet.load(tmp_path / "run")
    assert same(returned, loaded) and loaded.layout == Layout(53, channels=3, grid=2)  # 54 images are not held out
    assert loaded.projection is None  # it would outweigh the set
    for ask in (loaded.original_representations, loaded.original_maps):
        with pytest.raises(UsageError, match=r"principal components, of which the set keeps no way back"):
            ask()
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["target_map"] == 2
    assert {"before_after.png", "loss.png"} <= {path.name for path in (tmp_path / "run" / "pictures").iterdir()}


def test_components_asked_for_come_with_what_leads_back_to_the_targets_own_map(tmp_path: Path) -> None:
    loaded = SyntheticSet.load(stage(target_dims=5).run(tiny.images(COUNT)).save(tmp_path / "set"))
    assert loaded.projection is not None and loaded.map_projection is not None and loaded.maps is not None
    assert loaded.map_projection.dim == 6 and (loaded.maps.shape[1], loaded.layout.grid) == (3, 2)
    own = loaded.original_maps()
    assert own is not None and own.shape == (len(loaded), 6, 2, 2)
    cells = loaded.map_projection.apply(own.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(cells, loaded.maps)
    for part in ("map projection", "3 principal components of 6 numbers"):
        assert part in describe_set(loaded, None)
    card = (tmp_path / "set" / "README.md").read_text()
    assert "3 principal components of the 6 channels of the target's; `synthetic.original_maps()`" in card
    (tmp_path / "set" / "map_projection.safetensors").write_bytes(b"")
    with pytest.raises(DistillError, match=r"map_projection.safetensors is not the file that was written"):
        SyntheticSet.load(tmp_path / "set")


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_makes_the_same_set_bit_for_bit(run: Path, tmp_path: Path, stop: int) -> None:
    def interrupt(row: dict[str, Any]) -> None:
        if row["step"] == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage().run(tiny.images(COUNT), out=tmp_path / "run", log=tiny.EachRow(interrupt))
    resumed = stage().run(tiny.images(COUNT), out=tmp_path / "run", resume=True)
    assert same(resumed, SyntheticSet.load(run))


def test_no_steps_select_real_images_with_all_targets(tmp_path: Path) -> None:
    images = tiny.images(COUNT)
    whole = stage(steps=0, image_quality=None).run(images)
    assert whole.pixels is not None and torch.equal(whole.pixels, images[whole.source_index])
    selected = stage(steps=0).run(images, out=tmp_path / "run")
    assert selected.files is not None and not torch.equal(selected.pixels, whole.pixels)
    assert selected.maps is not None and "**real images**" in (tmp_path / "run" / "set" / "README.md").read_text()
    assert {path.name for path in (tmp_path / "run" / "pictures").iterdir()} == set()  # nothing was learned
    distilled = stage().run(images)
    assert torch.equal(selected.source_index, distilled.source_index) and not same(selected, distilled)
    assert same(stage(steps=0).run(images, out=tmp_path / "run", resume=True), selected)


def test_all_arms_have_the_targets_of_the_set_in_its_coordinates(run: Path) -> None:
    own, images = SyntheticSet.load(run), tiny.images(COUNT)
    arms = [ARMS[name] for name in ("random", "kmeans", "noise", "full")]
    inputs = open_inputs(arms, run, own, images, as_target(tiny.encoder()), torch.device("cpu"))
    started = inputs.real.chosen(own.source_index)
    expected = stage(steps=0).run(images)
    assert started.layout == own.layout and started.scales is not None and own.scales is not None
    # rounded by scales of their own
    torch.testing.assert_close(started.targets, expected.targets, rtol=0, atol=float(own.scales.max()))
    for arm in arms:
        made = arm.make(inputs, 0)
        assert isinstance(made, SyntheticSet) and made.layout == own.layout and made.pixels is not None


def test_evaluate_reads_what_the_run_has_kept_and_tells_bytes_on_disk(run: Path) -> None:
    images = tiny.images(COUNT)
    task = (
        "halves",
        TensorDataset(images[:40], torch.arange(40) % 2),
        TensorDataset(images[40:], torch.arange(20) % 2),
    )
    target = as_target(tiny.encoder())
    asked: list[int] = []
    target.register_forward_hook(lambda *_: asked.append(1))
    (result,) = evaluate(
        run,
        STUDENT,
        [task],
        data=images,
        target=target,
        baselines=["random"],
        probes=["knn"],
        seeds=1,
        steps=2,
        device="cpu",
    )
    assert not asked
    distilled, random = (result.arms[name].bytes for name in ("distilled", "random"))
    assert 3000 < random < 40_000 and abs(distilled - random) < 2000


def test_near_copies_are_looked_for_in_the_targets_own_space(run: Path) -> None:
    own, images = SyntheticSet.load(run), tiny.images(COUNT)
    real = real_side(run, images, as_target(tiny.encoder()), own, torch.device("cpu"))
    found = find_near_copies(own, real)
    assert real.representations.shape == (COUNT, 96)
    assert torch.isfinite(found.representations.synthetic).all()


def test_representations_that_were_brought_have_no_maps(tmp_path: Path) -> None:
    images, target = tiny.images(COUNT), as_target(tiny.encoder())
    torch.save(target(images.float() / 255), tmp_path / "mine.pt")
    synthetic = stage().run(images, representations=tmp_path / "mine.pt")
    assert synthetic.maps is None
    with pytest.raises(UsageError, match=r"mine\.pt has representations but no maps: give target_map=0, or leave"):
        stage(target_map=4).run(images, representations=tmp_path / "mine.pt")


def test_what_was_brought_fits_a_set_in_components_but_not_one_with_maps(run: Path, tmp_path: Path) -> None:
    images, target = tiny.images(COUNT), as_target(tiny.encoder())
    mine, cpu = tmp_path / "mine.pt", torch.device("cpu")
    torch.save(target(images.float() / 255), mine)
    own = stage(target_map=0).run(images, out=tmp_path / "run")
    arms = [ARMS["random"]]
    inputs = open_inputs(arms, tmp_path / "run", own, images, target, cpu, mine)
    assert inputs.real.chosen(torch.arange(3)).dim == own.dim < 96
    with pytest.raises(UsageError, match=r"mine\.pt has representations, and the set also has maps"):
        open_inputs(arms, run, SyntheticSet.load(run), images, target, cpu, mine)
    # near copies are looked for in the target's own space, where no map is asked for
    real = real_side(run, images, target, SyntheticSet.load(run), cpu, representations=mine)
    assert real.representations.shape == (COUNT, 96)


def test_kmeans_starts_by_the_representations_whatever_the_maps_say() -> None:
    images = tiny.images(COUNT)
    with_maps, without = (stage(init="kmeans", steps=0, target_map=grid).run(images) for grid in (4, 0))
    assert torch.equal(with_maps.source_index, without.source_index)


def test_a_set_whose_maps_could_not_be_read_again_is_refused_before_the_work() -> None:
    with pytest.raises(UsageError, match="The synthetic set asked for, with its maps, has the shape"):
        stage(map_dims=40_000).check(tiny.images(COUNT))


def test_a_map_that_the_target_lacks_is_refused_before_images_are_read() -> None:
    with pytest.raises(UsageError, match="its last map is 4x4, smaller than 7x7 cells"):
        stage(target_map=7).check(tiny.images(COUNT))


def test_a_mixed_pool_with_a_transformer_trains_each_by_its_own_optimizer() -> None:
    images = torch.nn.functional.interpolate(tiny.images(COUNT).float(), 32, mode="bilinear").byte()
    mixed = stage(student=f"{STUDENT},vit_tiny_patch16_224", steps=2, pool={"size": 2, "max_age": 2})
    assert mixed.run(images).maps is not None


def test_the_paper_preset_is_krr_st_as_published() -> None:
    small = {**OPTIONS, "pool": {"size": 2, "max_age": 3}, "source_views": 0}
    published = DistillationStage(as_target(tiny.encoder()), preset="cifar", image_size=8, **small)
    config = published.config
    assert (config.target_dims, config.target_map, config.eight_bits) == (None, 0, False)
    assert not config.pool.mixup and not config.pool.crop_and_flip and config.pool.optimizer == "sgd"
    synthetic = published.run(tiny.images(COUNT))
    assert synthetic.pixels is None and synthetic.dim == 96
    assert pretrain(STUDENT, synthetic, recipe="paper", steps=2, device="cpu", verbose=False) is not None


def test_a_set_of_floats_has_no_map_and_none_is_learned_for_it() -> None:
    made = stage(eight_bits=False).run(tiny.images(COUNT))
    assert made.maps is None and made.provenance["config"]["target_map"] == 0
    with pytest.raises(UsageError, match=r"A set of floats \(eight_bits=False\) keeps no maps: give target_map=0"):
        stage(eight_bits=False, target_map=2).run(tiny.images(COUNT))
