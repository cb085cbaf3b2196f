"""A set of principal components, from the stage to somebody else's hands."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

import tiny
from lightly_distill import DistillationStage, DistillError, SyntheticSet, UsageError, as_target, pretrain
from lightly_distill.data.source import open_source
from lightly_distill.evaluation.baselines.arms import open_inputs
from lightly_distill.evaluation.evaluate import evaluate
from lightly_distill.evaluation.plan import TransferConfig
from lightly_distill.method import real_images
from lightly_distill.method.real_images import RealImages
from lightly_distill.synthetic import set_facts
from lightly_distill.synthetic.describe import describe

COUNT, STUDENT, DIMS = 40, "convnet_4_4", 5
OPTIONS: dict[str, Any] = {
    "student": STUDENT,
    "num_images": 8,
    "steps": 6,
    "batch_size": 16,
    "checkpoint_every": 2,
    "pool": {"size": 2, "max_age": 3},
    **tiny.PLAIN,
    "target_dims": DIMS,
    "target_whiten": True,
}


def stage(**options: Any) -> DistillationStage:
    return DistillationStage(as_target(tiny.encoder()), **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("projected") / "run"
    stage().run(tiny.images(COUNT), out=out)
    return out


@pytest.mark.parametrize("views", [0, 2, "random"])
def test_batches_and_start_are_in_the_coordinates_of_the_train_images(views: int | str) -> None:
    source, target = open_source(tiny.images(COUNT)), as_target(tiny.encoder())
    device = torch.device("cpu")
    real = RealImages.of_target(source, target, tiny.config(source_views=views, target_dims=DIMS, seed=1), device)
    raw = RealImages.of_target(source, target, tiny.config(source_views=views, seed=1), device)
    assert real.projection is not None and raw.projection is None
    train = raw.truth.of_images(raw.split.train)
    torch.testing.assert_close(real.projection.mean, train.mean(0))
    torch.testing.assert_close(real.truth.of_images(real.split.train), real.projection.apply(train))
    for ours, theirs in zip(real.batches(0, 2), raw.batches(0, 2), strict=True):
        torch.testing.assert_close(ours.representations, real.projection.apply(theirs.representations))
        assert torch.equal(ours.images, theirs.images)


def test_the_set_brings_the_original_space_back_from_disk_bit_for_bit(run: Path, tmp_path: Path) -> None:
    synthetic = SyntheticSet.load(run)
    assert synthetic.dim == DIMS and synthetic.projection is not None and synthetic.projection.whitened
    d = as_target(tiny.encoder())(tiny.images(2).float() / 255).shape[1]
    assert synthetic.original_representations().shape == (8, d)
    again = SyntheticSet.load(synthetic.save(tmp_path / "copy"))
    assert again.projection is not None
    for name, tensor in synthetic.projection.tensors().items():
        assert torch.equal(tensor, again.projection.tensors()[name])
    facts = json.loads((tmp_path / "copy" / set_facts.FACTS).read_text())
    assert facts["format_version"] == "1.1" and facts["projection"] == {"from": d}
    assert set_facts.PROJECTION in facts["files"]
    synthetic.save(tmp_path / "copy", overwrite=True)
    raw = SyntheticSet(synthetic.images, synthetic.original_representations(), mean=synthetic.mean, std=synthetic.std)
    assert torch.equal(raw.original_representations(), raw.representations)
    raw.save(tmp_path / "copy", overwrite=True)
    assert not (tmp_path / "copy" / set_facts.PROJECTION).exists()
    assert json.loads((tmp_path / "copy" / set_facts.FACTS).read_text())["format_version"] == "1.0"
    assert pretrain(STUDENT, synthetic, steps=1, device="cpu", verbose=False) is not None


def test_card_and_inspect_say_how_many_of_how_many_and_what_is_kept(run: Path) -> None:
    said = r"5 principal components of \d+ numbers, whitened, with [\d.]+% of the variance"
    card = (run / "set" / "README.md").read_text()
    for text in (card, " ".join(describe(run).split())):
        assert re.search(said, text)
    assert "`synthetic.original_representations()`" in card


def test_a_resumed_run_has_the_very_projection(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(row: dict[str, Any]) -> None:
        if row["step"] == 5:
            raise KeyError

    with pytest.raises(KeyError):
        stage().run(tiny.images(COUNT), out=tmp_path / "run", log=tiny.EachRow(fail))
    monkeypatch.setattr(real_images, "fit_projection", None)  # it is not fitted again
    resumed = stage().run(tiny.images(COUNT), out=tmp_path / "run", resume=True)
    straight = SyntheticSet.load(run)
    assert torch.equal(resumed.images, straight.images)
    assert torch.equal(resumed.representations, straight.representations)
    assert torch.equal(resumed.original_representations(), straight.original_representations())


def test_all_arms_have_targets_in_the_coordinates_of_the_set(run: Path) -> None:
    own, data, target = SyntheticSet.load(run), tiny.images(COUNT), as_target(tiny.encoder())
    arms = TransferConfig(baselines=("random", "kmeans", "noise", "full")).arms
    inputs = open_inputs(arms, run, own, data, target, torch.device("cpu"))
    assert own.projection is not None
    for arm in arms:
        made = arm.make(inputs, 0)
        assert isinstance(made, SyntheticSet) and made.dim == DIMS
        if arm.name in ("random", "kmeans", "full"):
            expected = own.projection.apply(target(data[made.source_index].float() / 255))
            torch.testing.assert_close(made.representations, expected, rtol=1e-4, atol=1e-4)
    task = (TensorDataset(tiny.images(12), torch.arange(12) % 3),) * 2
    labelled, baselines = TensorDataset(data, torch.arange(COUNT) % 3), ["random", "krr-labels"]
    (result,) = evaluate(
        run, STUDENT, [task], data=labelled, target=target, baselines=baselines, steps=1, seeds=1, device="cpu"
    )
    assert set(result.arms) == {"random", "krr-labels", "distilled"} and not result.failed


def test_a_dry_run_of_publish_carries_the_projection(run: Path, tmp_path: Path) -> None:
    synthetic = SyntheticSet.load(run)
    sent = synthetic.push_to_hub(
        "me/projected", dry_run=tmp_path / "sent", data=tiny.images(COUNT), target=as_target(tiny.encoder())
    )
    assert set_facts.PROJECTION in sent.files and sent.near_copies is not None
    back = SyntheticSet.load(tmp_path / "sent")
    assert torch.equal(back.original_representations(), synthetic.original_representations())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_dims": 4000}, r"target_dims=4000 is more than the \d+ numbers of the target's representations"),
        ({"target_dims": 36}, r"target_dims=36 needs more than 36 real images .* there are 36 that are not held out"),
    ],
)
def test_too_many_directions_are_refused_before_the_target_computes(options: dict[str, Any], message: str) -> None:
    one = stage(**options)
    shown: list[int] = []
    one.target.register_forward_pre_hook(lambda module, inputs: shown.append(len(inputs[0])))
    images, read = tiny.images(COUNT), set()

    class Images:
        def __len__(self) -> int:
            return COUNT

        def __getitem__(self, index: int) -> torch.Tensor:
            read.add(index)
            return images[index]

    with pytest.raises(UsageError, match=message):
        one.run(Images())
    assert sum(shown) <= 4 and len(read) < COUNT  # the first few and a sample of their values, not all


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_dims": 0}, "target_dims must be a positive whole number; got 0"),
        ({"target_dims": None}, "target_whiten scales principal components: give target_dims"),
        ({"target_whiten": 1}, "target_whiten must be true or false; got 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stage(**options)


def test_a_damaged_projection_is_noticed(run: Path, tmp_path: Path) -> None:
    folder = SyntheticSet.load(run).save(tmp_path / "set")
    path = folder / set_facts.PROJECTION
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DistillError, match=r"projection.safetensors is not the file that was written"):
        SyntheticSet.load(folder)
    path.unlink()
    with pytest.raises(DistillError, match=r"projection.safetensors is missing"):
        SyntheticSet.load(folder)
