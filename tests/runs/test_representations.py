"""Representations are computed once: shared folders, other runs' folders, and what the user brings."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.transforms.functional import to_pil_image

import tiny
from lightly_distill import DistillationStage, SyntheticSet, UsageError, as_target
from lightly_distill.evaluation.evaluate import evaluate
from lightly_distill.models.targets import Target

COUNT, STUDENT = 40, "convnet_4_4"
OPTIONS: dict[str, Any] = {
    "student": STUDENT,
    "num_images": 8,
    "steps": 3,
    "batch_size": 16,
    "pool": {"size": 2, "max_age": 3},
    **tiny.PLAIN,
}


class Asked:
    """A target that counts the real images that it is shown in chunks."""

    def __init__(self) -> None:
        self.target: Target = as_target(tiny.encoder())
        self.images = 0
        self.target.register_forward_pre_hook(self._count)

    def _count(self, _module: Any, inputs: tuple[Tensor]) -> None:
        self.images += len(inputs[0]) if len(inputs[0]) > 4 else 0  # four are tried before the work


def distil(data: Any = None, **arguments: Any) -> tuple[SyntheticSet, int]:
    """Distils, and returns how many images the target was shown."""
    asked = Asked()
    own = ("seed", "source_views", "student", "target_dims", "init")
    options = {**OPTIONS, **{name: arguments.pop(name) for name in list(arguments) if name in own}}
    run = DistillationStage(asked.target, **options).run(tiny.images(COUNT) if data is None else data, **arguments)
    return run, asked.images


def truth() -> Tensor:
    return as_target(tiny.encoder())(tiny.images(COUNT).float() / 255)


@pytest.fixture(scope="module")
def plain() -> SyntheticSet:
    return distil()[0]


def test_runs_that_share_a_folder_compute_once_whatever_their_seed_and_size(
    tmp_path: Path, plain: SyntheticSet
) -> None:
    shared = tmp_path / "shared"
    first, asked = distil(representations=shared, out=tmp_path / "run")
    assert asked == COUNT and torch.equal(first.images, plain.images)
    assert torch.equal(first.representations, plain.representations)
    assert not (tmp_path / "run" / "representations").exists()
    assert distil(representations=str(shared), seed=1)[1] == 0
    assert distil(representations=shared, source_views=2)[1] > 0  # other views are other images
    assert distil(representations=shared, source_views=2)[1] <= COUNT // 10 + 8  # held out and start, as they are
    assert distil(tiny.images(COUNT).flip(0), representations=shared)[1] == COUNT
    assert len(list(shared.iterdir())) == 3
    distil(representations=shared, out=tmp_path / "run", overwrite=True)
    assert len(list(shared.iterdir())) == 3  # a run that is replaced takes nothing from the others


@pytest.mark.parametrize("views", [2, "random"])
@pytest.mark.parametrize("needs_all", [{"target_dims": 4}, {"init": "kmeans"}])
def test_what_views_need_of_the_images_as_they_are_is_computed_once_too(
    tmp_path: Path, views: Any, needs_all: dict[str, Any]
) -> None:
    options = {"source_views": views, **needs_all}
    in_steps = 3 * 16 if views == "random" else 0
    shared, run = tmp_path / "shared", tmp_path / "run"
    first, asked = distil(representations=shared, **options)
    assert asked == COUNT + (in_steps or 2 * COUNT)
    second, asked = distil(representations=shared, **options)
    assert asked == in_steps and torch.equal(first.images, second.images)
    assert distil(representations=shared, student="convnet_2_2", **options)[1] == in_steps
    alone, _ = distil(out=run, **options)
    assert torch.equal(first.images, alone.images) and torch.equal(first.representations, alone.representations)
    # of a run that is replaced, both are kept for the one that replaces it
    assert distil(out=run, overwrite=True, **options)[1] == in_steps
    assert distil(out=run, overwrite=True, **options)[1] == in_steps


def test_another_runs_folder_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    distil(out=tmp_path / "first")
    kept = sorted((tmp_path / "first" / "representations").rglob("*"))
    assert distil(representations=tmp_path / "first")[1] == 0
    other = tiny.images(COUNT).flip(0)
    assert distil(other, representations=tmp_path / "first", out=tmp_path / "second")[1] == COUNT
    assert sorted((tmp_path / "first" / "representations").rglob("*")) == kept
    assert distil(other, representations=tmp_path / "first", out=tmp_path / "second", overwrite=True)[1] == 0


def test_evaluate_finds_what_a_run_has_kept(tmp_path: Path) -> None:
    task = (TensorDataset(tiny.images(12), torch.arange(12) % 3),) * 2
    quick: dict[str, Any] = {"steps": 1, "seeds": 1, "device": "cpu", "baselines": ["random"], "probes": ["knn"]}
    for name, given in (("run", None), ("other", tmp_path / "shared")):
        distil(out=tmp_path / name, representations=given)
        before = sorted(tmp_path.rglob("*"))
        asked = Asked()
        evaluate(tmp_path / name, STUDENT, [task], data=tiny.images(COUNT), target=asked.target, **quick)
        assert asked.images == 0 and sorted(tmp_path.rglob("*")) == before
    asked, synthetic = Asked(), SyntheticSet.load(tmp_path / "run")
    for given, shown in ((None, COUNT), (tmp_path / "new", 2 * COUNT), (tmp_path / "new", 2 * COUNT)):
        # a set alone knows of no folder
        evaluate(
            synthetic,
            STUDENT,
            [task],
            data=tiny.images(COUNT),
            target=asked.target,
            representations=given,
            **quick,
        )
        assert asked.images == shown


def brought(folder: Path, kind: str, rows: Tensor) -> Any:
    """What a user brings."""
    path = folder / f"mine.{kind}"
    if kind in ("pt", "pth"):
        torch.save(rows, path)
    elif kind == "npy":
        np.save(path, rows.numpy())
    elif kind == "safetensors":
        save_file({"embedding": rows, "ids": torch.arange(len(rows))}, path)
    if path.exists():
        return path
    table = Dataset.from_dict({"embedding": rows.tolist(), "id": list(range(len(rows)))})
    if kind == "parquet":
        table.to_parquet(str(path))
    elif kind == "folder":
        (folder / "tables").mkdir()
        table.to_parquet(str(folder / "tables" / "train.parquet"))
        return folder / "tables"
    elif kind == "saved":
        table.save_to_disk(str(folder / "saved"))
        return folder / "saved"
    elif kind == "object":
        return table
    return path


@pytest.mark.parametrize("kind", ["pt", "pth", "npy", "safetensors", "parquet", "folder", "saved", "object"])
def test_what_is_brought_gives_the_set_of_what_is_computed(tmp_path: Path, kind: str, plain: SyntheticSet) -> None:
    synthetic, asked = distil(representations=brought(tmp_path, kind, truth()))
    assert asked == 0
    # the target computes the same, but for the last bits, in batches of another size
    torch.testing.assert_close(synthetic.images, plain.images, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(synthetic.representations, plain.representations, rtol=1e-3, atol=1e-3)
    assert set(synthetic.provenance["representations"]) == {"name", "sha256"}


def test_rows_of_items_that_were_skipped_are_left_out(tmp_path: Path) -> None:
    items = tmp_path / "images"
    items.mkdir()
    for number, image in enumerate(tiny.images(COUNT)):
        to_pil_image(image).save(items / f"{number:02d}.png")
    whole, _ = distil(items)
    (items / "02z-broken.png").write_bytes(b"no image")
    rows = truth()
    path = brought(tmp_path, "npy", torch.cat([rows[:3], torch.full_like(rows[:1], 9.0), rows[3:]]))
    synthetic, asked = distil(items, representations=path)
    assert asked == 0 and synthetic.provenance["source"]["skipped"]
    torch.testing.assert_close(synthetic.representations, whole.representations, rtol=1e-3, atol=1e-3)
    with pytest.raises(UsageError, match=r"mine.npy has 40 rows, the source 41 items. Give one row for each item"):
        distil(items, representations=brought(tmp_path, "npy", rows))


def test_a_run_goes_on_with_the_same_file_only(tmp_path: Path) -> None:
    path = brought(tmp_path, "npy", truth())
    first, _ = distil(representations=path, out=tmp_path / "run")
    same = brought(tmp_path, "safetensors", truth())  # the same numbers
    again, _ = distil(representations=same, out=tmp_path / "run", resume=True)
    assert torch.equal(again.images, first.images)
    with pytest.raises(UsageError, match=r"had other settings \(representations.sha256: \w+ -> None\)"):
        distil(out=tmp_path / "run", resume=True)
    assert f"representations: {same}" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("npy", lambda rows: rows[1:], r"mine.npy has 39 rows, the source 40 items. Give one row for each item"),
        ("npy", lambda rows: rows.index_fill(0, torch.tensor(7), torch.nan), r"mine.npy has NaN .* first in row 7"),
        ("pt", lambda rows: rows.long(), r"mine.pt holds torch.int64 of shape \(40, \d+\), expected floating point"),
        ("pt", lambda rows: {"a": rows}, r"mine.pt holds a dict, expected one tensor"),
        ("pth", lambda rows: rows[:, :1], r"mine.pth has rows of 1 numbers, the target gives \d+: .* another model"),
        ("pth", lambda rows: rows[0], r"mine.pth holds torch.float32 of shape \(\d+,\), expected .* shape \(n, d\)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name_before_the_work(
    tmp_path: Path, kind: str, change: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = brought(tmp_path, kind, change(truth()))
    with caplog.at_level(logging.INFO), pytest.raises(UsageError, match=message) as error:
        distil(representations=path)
    assert "\n" not in str(error.value) and "Distilling" not in caplog.text


def test_files_that_hold_no_representations_are_refused_by_name(tmp_path: Path) -> None:
    rows = truth()
    save_file({"a": rows, "b": rows.clone()}, tmp_path / "two.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    np.save(tmp_path / "pickled.npy", np.array([object()]), allow_pickle=True)
    (tmp_path / "table.csv").write_text("0.5")
    Dataset.from_dict({"vector": rows.tolist()}).to_parquet(str(tmp_path / "column.parquet"))
    for name, message in (
        ("two.safetensors", r"two.safetensors cannot be read .*has the tensors a, b; name that .* embedding"),
        ("broken.safetensors", r"broken.safetensors cannot be read as representations: .*[^.]\. Give one row"),
        ("pickled.npy", r"pickled.npy cannot be read .*Python objects"),
        ("table.csv", r"table.csv is no file of representations: give a folder, or a file ending in .pt, .pth, .npy"),
        ("column.parquet", r"column.parquet\S* has no column 'embedding', but vector: rename"),
        ("none.npy", r"There is no file or folder '\S*none.npy'"),
    ):
        with pytest.raises(UsageError, match=message):
            distil(representations=tmp_path / name)
    ragged = Dataset.from_dict({"embedding": [[1.0], [1.0, 2.0]]})
    with pytest.raises(UsageError, match="rows of several lengths"):
        distil(representations=ragged)


def test_views_cannot_have_representations_that_were_brought(tmp_path: Path) -> None:
    path = brought(tmp_path, "npy", truth())
    for views in (2, "random"):
        with pytest.raises(UsageError, match=rf"as they are, and source_views={views} asks .*give --source-views 0"):
            distil(representations=path, source_views=views)


def test_what_is_in_no_folder_is_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="As a dataset on the Hugging Face Hub it cannot be opened"):
        distil(representations="somebody/embeddings")
    (tmp_path / "somebody").mkdir()
    assert distil(representations="somebody/embeddings")[1] == COUNT
    assert distil(representations="somebody/embeddings")[1] == 0
