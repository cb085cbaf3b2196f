import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lightly_distill import DistillError, SyntheticSet, UsageError, artifact
from lightly_distill.inspect import describe
from lightly_distill.seeding import generator
from lightly_distill.source import open_source

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make(count: int = 6, size: int = 8, dim: int = 5) -> SyntheticSet:
    g = generator(0, "synthetic")
    images, reps = torch.randn(count, 3, size, size, generator=g) * 2, torch.randn(count, dim, generator=g)
    images[0, 0, 0, :3] = torch.tensor([-0.0, 1e-42, 3.4e38])  # sign of zero, subnormal, near the largest
    return SyntheticSet(
        images,
        reps,
        mean=MEAN,
        std=STD,
        source_index=torch.arange(count) * 3,
        provenance={"steps": 7, "source": {"name": "Café#train", "images": 60, "fingerprint": "ab" * 32}},
        metrics={"knn": 0.5},
    )


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def test_save_and_load_give_every_bit_back(tmp_path: Path) -> None:
    ours = make()
    ours.save(tmp_path / "set")
    again = SyntheticSet.load(tmp_path / "set")
    assert same_bits(again.images, ours.images) and same_bits(again.representations, ours.representations)
    assert torch.equal(again.source_index, ours.source_index)
    assert (again.mean, again.std, again.provenance, again.metrics) == (MEAN, STD, ours.provenance, ours.metrics)
    again.images[0, 0, 0, 0] = 5.0  # not a view of the file


def test_real_images_survive_the_folder(real_data: Path, tmp_path: Path) -> None:
    source = open_source(f"{real_data / 'cifar10'}#test", image_size=32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    pixels = source.read(torch.arange(20))
    ours = SyntheticSet((pixels.float() / 255 - mean) / std, torch.randn(20, 512), mean=MEAN, std=STD)
    assert torch.equal(ours.displayable(), pixels)
    ours.save(tmp_path / "set")
    assert same_bits(SyntheticSet.load(tmp_path / "set").images, ours.images)


def test_plain_datasets_reads_pictures_and_exact_pixels(tmp_path: Path) -> None:
    ours = make()
    ours.save(tmp_path / "set")
    torch.save((ours.images, ours.representations, ours.displayable()), tmp_path / "truth.pt")
    script = """
import sys, numpy as np, torch
from datasets import load_dataset, List, Array3D, Image, Value
rows = load_dataset(sys.argv[1], split="train")
f = rows.features
assert f["pixels"] == Array3D((3, 8, 8), "float32") and f["representation"] == List(Value("float32"), length=5), f
assert isinstance(f["image"], Image) and len(rows) == 6
images, reps, shown = torch.load(sys.argv[2])
table = rows.remove_columns("image").with_format("torch")[:]
assert torch.equal(table["pixels"].contiguous().view(torch.int32), images.view(torch.int32))
assert torch.equal(table["representation"], reps)
for row, expected in zip(rows, shown):
    assert (np.asarray(row["image"]) == expected.permute(1, 2, 0).numpy()).all()
assert "lightly_distill" not in sys.modules
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "set"), str(tmp_path / "truth.pt")],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr


def test_it_is_a_torch_dataset(tmp_path: Path) -> None:
    ours = make()
    images, representations = next(iter(DataLoader(ours, batch_size=4)))
    assert images.shape == (4, 3, 8, 8) and torch.equal(representations, ours.representations[:4])
    assert repr(ours) == "SyntheticSet(6 images 3x8x8, representations of 5)"


def test_the_folder_is_as_documented(tmp_path: Path) -> None:
    make().save(tmp_path / "set")
    found = sorted(str(path.relative_to(tmp_path / "set")) for path in (tmp_path / "set").rglob("*") if path.is_file())
    assert found == ["README.md", artifact.DATA, artifact.FACTS, "preview.png"]
    facts = json.loads((tmp_path / "set" / artifact.FACTS).read_text())
    assert facts["format_version"] == "1.0" and set(facts["files"]) == {"README.md", artifact.DATA, "preview.png"}
    for name, told in facts["files"].items():
        assert told["bytes"] == (tmp_path / "set" / name).stat().st_size
    card = (tmp_path / "set" / "README.md").read_text()
    assert "Café#train" in card and "arXiv:2310.06511" in card and card.startswith("---\nconfigs:")
    with Image.open(tmp_path / "set" / "preview.png") as picture:
        assert picture.width >= 3 * 60  # three columns of enlarged images


@pytest.mark.parametrize("name", ["README.md", artifact.DATA, "preview.png"])
@pytest.mark.parametrize("damage", ["bit", "truncated", "missing"])
def test_a_changed_file_is_refused_by_name(tmp_path: Path, name: str, damage: str) -> None:
    make().save(tmp_path / "set")
    path = tmp_path / "set" / name
    content = bytearray(path.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: len(content) // 2] if damage == "truncated" else content)
    if damage == "missing":
        path.unlink()
    with pytest.raises(DistillError, match=name if damage != "missing" else "not complete.*" + name):
        SyntheticSet.load(tmp_path / "set")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": "2.0"}, "has format 2.0, this version of lightly-distill reads up to 1.0: pip install"),
        ({"format_version": None}, "cannot be read"),
        ({"shape": [10**9, 3, 10**6, 10**6]}, "claims images of shape .* refused"),
        ({"shape": [6, 3, 8, -8]}, "claims images of shape .* refused"),
        ({"shape": [5, 3, 8, 8]}, "expected float32 of shape .*5, 3, 8, 8.*, found"),
        ({"shape": [6, 3, 8]}, "refused"),
        ({"dim": 4}, "expected float32 of shape .*6, 4"),
        ({"mean": None}, "is not complete"),
        ({"files": {}}, "lists no data/train"),
        ({"files": {"../outside": {"bytes": 1, "sha256": ""}}}, "names a file outside its folder"),
    ],
)
def test_facts_that_cannot_be_true_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    make().save(tmp_path / "set")
    path = tmp_path / "set" / artifact.FACTS
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DistillError, match=message):
        SyntheticSet.load(tmp_path / "set")


def test_damaged_facts_are_refused(tmp_path: Path) -> None:
    make().save(tmp_path / "set")
    (tmp_path / "set" / artifact.FACTS).write_text('{"format_version": "1.')
    with pytest.raises(DistillError, match=r"lightly_distill.json cannot be read"):
        SyntheticSet.load(tmp_path / "set")


def test_a_run_folder_is_accepted_and_what_is_no_set_is_named(tmp_path: Path) -> None:
    make().save(tmp_path / "run" / "set")
    assert len(SyntheticSet.load(tmp_path / "run")) == 6
    with pytest.raises(UsageError, match="no such folder"):
        SyntheticSet.load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="holds no synthetic set"):
        SyntheticSet.load(tmp_path)


def test_what_is_there_is_not_overwritten_unasked(tmp_path: Path) -> None:
    make().save(tmp_path / "set")
    with pytest.raises(UsageError, match="is not empty: overwrite=True"):
        make(count=2).save(tmp_path / "set")
    make(count=2).save(tmp_path / "set", overwrite=True)
    assert len(SyntheticSet.load(tmp_path / "set")) == 2
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("mine")
    with pytest.raises(UsageError, match="holds something that is not a synthetic set"):
        make().save(tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "mine"


@pytest.mark.parametrize("at", [1, 2])
def test_a_failure_in_mid_write_leaves_the_old_set_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    make().save(tmp_path / "set")
    calls = []
    real = os.replace

    def fail(*args: Path) -> None:
        calls.append(args)
        if len(calls) == at:
            raise OSError(28, "No space left on device")
        real(*args)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DistillError, match=rf"{tmp_path / 'set'} cannot be written: .*No space left"):
        make(count=2).save(tmp_path / "set", overwrite=True)
    assert len(SyntheticSet.load(tmp_path / "set")) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("images", "representations", "message"),
    [
        (
            torch.zeros(3, 3, 8),
            torch.zeros(3, 4),
            r"images of a synthetic set are torch.float32 with 4 dim.*\(3, 3, 8\)",
        ),
        (torch.zeros(3, 3, 8, 8).double(), torch.zeros(3, 4), "got torch.float64"),
        (torch.zeros(3, 3, 8, 8), torch.zeros(2, 4), "'images': 3, 'representations': 2"),
        (torch.zeros(0, 3, 8, 8), torch.zeros(0, 4), "at least one"),
        (torch.zeros(3, 1, 8, 8), torch.zeros(3, 4), "has 3 channels"),
        (torch.full((3, 3, 8, 8), float("nan")), torch.zeros(3, 4), "images of a synthetic set must be finite"),
    ],
)
def test_tensors_that_are_no_set_are_refused(images: torch.Tensor, representations: torch.Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SyntheticSet(images, representations, mean=MEAN, std=STD)


def test_inspect_tells_sizes_origin_and_pictures(tmp_path: Path) -> None:
    make().save(tmp_path / "run" / "set")
    told = describe(tmp_path / "run")
    size = sum(path.stat().st_size for path in (tmp_path / "run" / "set").rglob("*") if path.is_file())
    for part in ("6 of 3x8x8", "5 numbers each", "6 real images, 0 of noise", f"{size / 1e6:.2f} MB", "Café#train"):
        assert part in told
    assert str(tmp_path / "run" / "set" / "preview.png") in told
