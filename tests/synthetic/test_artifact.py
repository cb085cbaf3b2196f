import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import synthetic_sets
from lightly_distill import DistillError, SyntheticSet, UsageError
from lightly_distill.models.projection import Projection
from lightly_distill.synthetic import parquet, set_facts
from synthetic_sets import MEAN, STD, make_set, same_bits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set on disk."""
    return make_set().save(tmp_path / "set")


def edit_facts(folder: Path, change: Callable[[dict[str, Any]], Any], *, sign: bool = True) -> None:
    """Changes the JSON, and the hash of it too."""
    facts = json.loads((folder / set_facts.FACTS).read_text())
    change(facts)
    signed = synthetic_sets.sign(facts) if sign else {**facts, "sha256": "0" * 64}
    (folder / set_facts.FACTS).write_text(json.dumps(signed))


def replace_data(folder: Path, table: pa.Table, **changes: Any) -> None:
    """Puts another parquet file in, with the right hash."""
    path = folder / set_facts.DATA
    pq.write_table(table, path)
    entry = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    edit_facts(folder, lambda facts: (facts["files"].update({set_facts.DATA: entry}), facts["shape"].update(changes)))


def test_the_folder_is_as_documented(folder: Path) -> None:
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == ["README.md", set_facts.DATA, set_facts.FACTS, "preview.png"]
    facts = json.loads((folder / set_facts.FACTS).read_text())
    assert (facts["format_version"], facts["kind"]) == ("1.0", "synthetic_set")
    assert facts["shape"] == {"m": 6, "C": 3, "H": 8, "W": 8, "d": 5}
    assert (facts["mean"], facts["std"], facts["provenance"]["steps"]) == ([*MEAN], [*STD], 7)
    assert set(facts["files"]) == {set_facts.DATA, "preview.png"}
    for name, told in facts["files"].items():
        content = (folder / name).read_bytes()
        assert told == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Café#train" in card and "arXiv:2310.06511" in card and card.startswith("---\nconfigs:")
    with Image.open(folder / "preview.png") as picture:
        assert picture.size == (3 * 68 + 4, 2 * 68 + 4)


def test_plain_datasets_reads_pictures_and_exact_pixels(real_data: Path, tmp_path: Path) -> None:
    file = pq.ParquetFile(next((real_data / "cifar10").glob("test-*.parquet")))
    rows = next(file.iter_batches(batch_size=20)).to_pylist()
    column = next(name for name, value in rows[0].items() if isinstance(value, dict))
    pixels = np.stack([np.array(Image.open(io.BytesIO(row[column]["bytes"])).convert("RGB")) for row in rows])
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    images[0, 0, 0, :3] = torch.tensor([-0.0, 1e-42, -4.5])
    ours = SyntheticSet(images, torch.randn(20, 512), mean=MEAN, std=STD)
    assert torch.equal(ours.displayable()[1:], torch.from_numpy(pixels).permute(0, 3, 1, 2)[1:])
    ours.save(tmp_path / "set")
    torch.save((ours.images, ours.representations, ours.displayable()), tmp_path / "truth.pt")
    script = """
import sys, numpy as np, pyarrow.parquet as pq, torch
from datasets import Array3D, Dataset, Features, Image, List, Value, load_dataset
folder = sys.argv[1]
rows = load_dataset(folder, split="train")
f = {"image": Image(), "pixels": Array3D((3, 32, 32), "float32"),
     "representation": List(Value("float32"), length=512), "source_index": Value("int64")}
assert rows.features == Features(f), rows.features
images, representations, shown = torch.load(sys.argv[2])
table = rows.remove_columns("image").with_format("torch")[:]
bits = lambda tensor: tensor.contiguous().view(torch.int32)
assert torch.equal(bits(table["pixels"]), bits(images))
assert torch.equal(bits(table["representation"]), bits(representations))
assert table["source_index"].tolist() == [-1] * 20
for row, expected in zip(rows, shown):
    assert (np.asarray(row["image"]) == expected.permute(1, 2, 0).numpy()).all()
assert "lightly_distill" not in sys.modules

# The schema is what datasets itself writes.
theirs = {"image": list(rows["image"]), "pixels": images.numpy(), "representation": representations.numpy(),
          "source_index": rows["source_index"]}
Dataset.from_dict(theirs, features=Features(f)).to_parquet(folder + "/../theirs.parquet")
mine = pq.read_schema(folder + "/data/train-00000-of-00001.parquet")
other = pq.read_schema(folder + "/../theirs.parquet")
assert mine.equals(other, check_metadata=True), (mine, other)

# Where datasets is imported, Arrow gives columns of its extension types.
from lightly_distill import SyntheticSet
assert torch.equal(bits(SyntheticSet.load(folder).images), bits(images))
again = SyntheticSet.load(folder).save(folder + "-again")
assert pq.read_schema(again / "data/train-00000-of-00001.parquet").equals(mine, check_metadata=True)
"""
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_DATASETS_CACHE": str(tmp_path / "hf" / "datasets"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", script, str(tmp_path / "set"), str(tmp_path / "truth.pt")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_several_row_groups_come_back_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS_AT_ONCE", 2)
    ours = make_set(count=5)
    ours.save(tmp_path / "set")
    assert pq.ParquetFile(tmp_path / "set" / set_facts.DATA).num_row_groups == 3
    again = SyntheticSet.load(tmp_path / "set")
    assert same_bits(again.images, ours.images) and torch.equal(again.source_index, ours.source_index)


def test_the_card_may_be_edited_even_in_old_sets_that_list_its_hash(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    entry = {"bytes": 1, "sha256": "of the old one"}
    edit_facts(folder, lambda facts: facts["files"].update({"README.md": entry}))
    assert same_bits(SyntheticSet.load(folder).images, make_set().images)
    (folder / "README.md").unlink()
    assert len(SyntheticSet.load(folder)) == 6


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, f"x is not complete: lightly_distill.json lists {set_facts.DATA}, which is not there"),
        ({set_facts.DATA: 5}, f"x is not what was published: {set_facts.DATA} has 5 bytes, lightly_distill.json says"),
    ],
)
def test_sizes_that_are_not_as_claimed_are_refused(folder: Path, sizes: dict[str, int], message: str) -> None:
    facts = set_facts.read_facts(folder)
    claimed = {name: entry["bytes"] for name, entry in facts["files"].items()}
    set_facts.check_sizes(facts, claimed, "x")
    rest = {} if not sizes else claimed
    with pytest.raises(DistillError, match=message):
        set_facts.check_sizes(facts, {**rest, **sizes}, "x")


@pytest.mark.parametrize("name", [set_facts.DATA, "preview.png"])
def test_files_larger_than_such_a_set_can_be_are_refused(folder: Path, name: str) -> None:
    facts = set_facts.read_facts(folder)
    facts["files"][name]["bytes"] = 10**9
    claimed = {name: entry["bytes"] for name, entry in facts["files"].items()}
    with pytest.raises(DistillError, match=r"x has 10\d+ bytes, more than a set of the shape .* can have: refused"):
        set_facts.check_sizes(facts, claimed, "x")


def test_the_largest_honest_set_is_within_the_bounds(tmp_path: Path) -> None:
    noise = torch.randn(50, 3, 32, 32) * 3  # its PNGs are as large as PNGs get
    SyntheticSet(noise, torch.randn(50, 1), mean=MEAN, std=STD).save(tmp_path / "set")
    facts = set_facts.read_facts(tmp_path / "set")
    set_facts.check_sizes(facts, {name: entry["bytes"] for name, entry in facts["files"].items()}, "x")


@pytest.mark.parametrize("name", [set_facts.DATA, "preview.png"])
@pytest.mark.parametrize("damage", ["bit", "truncated", "empty", "missing"])
def test_a_changed_file_is_refused_by_name(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes({"bit": bytes(flipped), "truncated": content[:-1], "empty": b"", "missing": b""}[damage])
    if damage == "missing":
        path.unlink()
    told = f"not complete: {path} is missing" if damage == "missing" else f"{path} is not the file that was written"
    with pytest.raises(DistillError, match=told):
        SyntheticSet.load(folder)


def test_no_flipped_bit_of_the_facts_goes_unnoticed(folder: Path) -> None:
    path = folder / set_facts.FACTS
    content = path.read_bytes()
    whole = set_facts.read_facts(folder)
    unnoticed = 0
    for place in range(0, len(content), 3):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            unnoticed += set_facts.read_facts(folder) != whole
        except DistillError as error:
            assert set_facts.FACTS in str(error) or "pip install" in str(error)
    assert unnoticed == 0


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"format_version": "1.', b"\xff\xfe", b"[" * 100_000, b'{"format_version": NaN}']
)
def test_facts_that_are_no_json_object_are_refused(folder: Path, content: bytes) -> None:
    (folder / set_facts.FACTS).write_bytes(content)
    with pytest.raises(DistillError, match=r"lightly_distill.json cannot be read"):
        SyntheticSet.load(folder)


def test_facts_are_read_up_to_a_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_facts, "MAX_FACTS", 100)
    with pytest.raises(DistillError, match=r"lightly_distill.json is larger than"):
        SyntheticSet.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": "3.0"}, "has format 3.0, this version of lightly-distill reads up to 2.0: pip install"),
        ({"format_version": "12.1"}, "has format 12.1"),
        ({"format_version": None}, "cannot be read"),
        ({"kind": "checkpoint"}, "describes a 'checkpoint', not a synthetic_set"),
        ({"kind": ["model"]}, r"describes a \['model'\]"),
        ({"shape": {"m": 10**6, "C": 3, "H": 4096, "W": 4096, "d": 5}}, "has the shape .* refused"),
        ({"shape": {"m": 6, "C": 3, "H": 8, "W": -8, "d": 5}}, "has the shape .* refused"),
        ({"shape": {"m": 6.0, "C": 3, "H": 8, "W": 8, "d": 5}}, "has the shape .* refused"),
        ({"shape": {"m": 6, "C": 3, "H": 8, "W": 8, "d": 10**9}}, "has the shape .* refused"),
        ({"shape": {"m": 6, "C": 3, "H": 8, "W": 8}}, "is not complete: KeyError: 'd'"),
        ({"shape": None}, "is not complete"),
        (
            {"shape": {"m": 5, "C": 3, "H": 8, "W": 8, "d": 5}},
            r"pixels has 1152 numbers, expected shape \(5, 3, 8, 8\)",
        ),
        ({"shape": {"m": 6, "C": 3, "H": 4, "W": 16, "d": 5}}, r"pixels: a list has not 4 entries"),
        (
            {"shape": {"m": 6, "C": 3, "H": 8, "W": 8, "d": 4}},
            r"representation has 30 numbers, expected shape \(6, 4\)",
        ),
        ({"mean": ["a", "b", "c"]}, "mean must be a list of numbers"),
        ({"mean": [0.5]}, "holds no synthetic set: .*3 channels"),
        ({"std": None}, "is not complete"),
        ({"metrics": []}, "metrics must be an object"),
        ({"files": {}}, "lists no data/train"),
        ({"files": {set_facts.DATA: {"bytes": 1}}}, "is not complete: KeyError: 'sha256'"),
        ({"files": {set_facts.DATA: 3}}, "is not complete"),
    ],
)
def test_facts_that_cannot_be_true_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    edit_facts(folder, lambda facts: facts.update(change))
    with pytest.raises(DistillError, match=message):
        SyntheticSet.load(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.md",
        "/etc/hosts.md",
        "data/../../a.md",
        "a//b.md",
        "C:\\a.md",
        "data\\a.md",
        "model.pkl",
        ".git/a.md",
        "",
    ],
)
def test_only_plain_names_inside_the_folder_are_looked_at(folder: Path, name: str) -> None:
    edit_facts(folder, lambda facts: facts["files"].update({name: {"bytes": 1, "sha256": ""}}))
    with pytest.raises(DistillError, match="names a file that no synthetic set has"):
        SyntheticSet.load(folder)


def test_facts_of_a_projection_that_cannot_be_true_are_refused(tmp_path: Path) -> None:
    synthetic = make_set()
    synthetic.projection = Projection(torch.zeros(9), torch.eye(9, 5), torch.ones(5), torch.ones(()))
    folder = synthetic.save(tmp_path / "set")
    original = (folder / set_facts.FACTS).read_text()
    for claimed, message in (
        ({"from": 4}, "a projection from 4 numbers to 5: refused"),
        ({"from": 10**9}, "has the shape .* refused"),
        ({"from": "9"}, "has the shape .* refused"),
        ({}, "is not complete: KeyError: 'from'"),
        ({"from": 8}, r"has a basis of shape \(9, 5\), lightly_distill.json says \(8, 5\)"),
    ):
        edit_facts(folder, lambda facts, claimed=claimed: facts.update(projection=claimed))  # type: ignore[misc]
        with pytest.raises(DistillError, match=message):
            SyntheticSet.load(folder)
        (folder / set_facts.FACTS).write_text(original)
    facts = set_facts.read_facts(folder)
    sizes = {name: told["bytes"] for name, told in facts["files"].items()}
    set_facts.check_sizes(facts, sizes, "the set")
    large = {**sizes, set_facts.PROJECTION: 10**6}
    facts["files"][set_facts.PROJECTION]["bytes"] = 10**6
    with pytest.raises(DistillError, match="more than a set of the shape"):
        set_facts.check_sizes(facts, large, "the set")


def test_a_newer_minor_version_with_more_facts_is_read(folder: Path) -> None:
    edit_facts(folder, lambda facts: facts.update(format_version="1.7", colour="blue"))
    assert len(SyntheticSet.load(folder)) == 6


def test_a_newer_major_version_is_told_before_anything_that_it_may_have_changed(folder: Path) -> None:
    edit_facts(folder, lambda facts: facts.update(format_version="3.0", shape="new"), sign=False)
    with pytest.raises(DistillError, match=r"has format 3\.0"):
        SyntheticSet.load(folder)


def nulls_in(table: pa.Table, name: str, row: list[Any] | int | None) -> pa.Table:
    values = table[name].to_pylist()
    values[1] = row
    kind = table.schema.field(name).type
    kind = pa.list_(pa.float32()) if pa.types.is_fixed_size_list(kind) else kind
    return table.set_column(table.column_names.index(name), name, pa.array(values, kind))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: nulls_in(table, "pixels", None), r"pixels has 961 numbers, expected shape \(6, 3, 8, 8\)"),
        (lambda table: nulls_in(table, "pixels", [[[None] * 8] * 8] * 3), "pixels: a number is missing"),
        (
            lambda table: nulls_in(table, "representation", [1.0, 2.0, None, 4.0, 5.0]),
            "representation: a number is miss",
        ),
        (lambda table: nulls_in(table, "source_index", None), "source_index: a number is missing"),
        (
            lambda table: nulls_in(table, "pixels", [[[0.0] * 7 + [0.0]] * 8] * 2 + [[[0.0] * 4] * 16]),
            "has not 8 entries",
        ),
        (lambda table: table.drop_columns("pixels"), "pixels has 0 numbers"),
        (lambda table: pa.concat_tables([table, table]), "pixels has 2304 numbers"),
        (
            lambda table: table.set_column(3, "source_index", pa.array([0.5] * 6)),
            "source_index holds 6 of float64, expected int64",
        ),
        (lambda table: table.set_column(3, "source_index", pa.array(["a"] * 6)), "cannot be read as a synthetic set"),
    ],
)
def test_a_table_that_is_no_set_is_refused(folder: Path, change: Callable[[pa.Table], pa.Table], message: str) -> None:
    replace_data(folder, change(pq.read_table(folder / set_facts.DATA)))
    with pytest.raises(
        DistillError, match=f"{set_facts.DATA} cannot be read as a synthetic set: .*({message})|{message}"
    ):
        SyntheticSet.load(folder)


def test_a_missing_representation_of_one_number_is_noticed(tmp_path: Path) -> None:
    folder = SyntheticSet(torch.zeros(3, 3, 2, 2), torch.zeros(3, 1), mean=MEAN, std=STD).save(tmp_path / "set")
    replace_data(folder, nulls_in(pq.read_table(folder / set_facts.DATA), "representation", None))
    with pytest.raises(DistillError, match=r"representation holds 2 of float32, expected float32 of shape \(3, 1\)"):
        SyntheticSet.load(folder)


def test_a_file_that_announces_too_much_is_refused_before_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pq.read_table(folder / set_facts.DATA)
    replace_data(folder, pa.concat_tables([table] * 100))
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("read before it was checked"))
    with pytest.raises(DistillError, match="pixels has 115200 numbers"):
        SyntheticSet.load(folder)


def test_pictures_are_neither_read_nor_decoded_on_load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pq.read_table(folder / set_facts.DATA)
    bomb = pa.array([{"bytes": b"not a picture", "path": None}] * 6, table.schema.field("image").type)
    replace_data(folder, table.set_column(0, "image", bomb))
    real = pq.ParquetFile.read
    asked: list[str] = []

    def read(file: pq.ParquetFile, columns: list[str]) -> pa.Table:
        asked.extend(columns)
        return real(file, columns)

    monkeypatch.setattr(pq.ParquetFile, "read", read)
    assert same_bits(SyntheticSet.load(folder).images, make_set().images)
    assert asked == ["pixels", "representation", "source_index"]


def test_something_that_is_not_parquet_is_refused(folder: Path) -> None:
    (folder / set_facts.DATA).write_bytes(b"PAR1 or not")
    digest = hashlib.sha256(b"PAR1 or not").hexdigest()
    edit_facts(folder, lambda facts: facts["files"].update({set_facts.DATA: {"bytes": 11, "sha256": digest}}))
    with pytest.raises(DistillError, match=f"{set_facts.DATA} cannot be read as a synthetic set"):
        SyntheticSet.load(folder)


def test_what_is_there_is_not_overwritten_unasked(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{folder} is not empty: overwrite=True"):
        make_set(count=2).save(folder)
    make_set(count=2).save(folder, overwrite=True)
    assert len(SyntheticSet.load(folder)) == 2
    (tmp_path / "empty").mkdir()
    make_set(count=2).save(tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="file is not a folder"):
        make_set().save(tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_with_other_peoples_files_is_never_replaced(folder: Path) -> None:
    (folder / "data" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds data/notes.txt, which is not part of a set"):
        make_set(count=2).save(folder, overwrite=True)
    assert (folder / "data" / "notes.txt").read_text() == "mine" and len(SyntheticSet.load(folder)) == 6


def test_what_the_user_wrote_into_the_card_stays_when_the_set_is_replaced(folder: Path) -> None:
    path = folder / set_facts.CARD
    mine = "\nMine: caf\u00e9, and ".encode() + b"caf\xe9 in another encoding.\n"
    path.write_bytes(path.read_bytes() + mine)
    make_set(count=2).save(folder, overwrite=True)
    assert path.read_bytes().endswith(mine) and b"A synthetic set of 2 images" in path.read_bytes()
    make_set(count=2).save(folder, overwrite=True)
    assert path.read_bytes().count(mine) == 1


def test_hidden_files_of_the_system_are_in_nobodys_way_but_hidden_folders_are(folder: Path) -> None:
    (folder / ".DS_Store").touch()
    (folder / "data" / ".DS_Store").touch()
    make_set(count=2).save(folder, overwrite=True)
    assert len(SyntheticSet.load(folder)) == 2
    (folder / ".git").mkdir()
    (folder / ".env").touch()
    with pytest.raises(UsageError, match=r"holds \.env, which is not part of a set"):
        make_set().save(folder, overwrite=True)
    (folder / ".env").unlink()
    (folder / ".git" / ".hidden").touch()
    with pytest.raises(UsageError, match=r"holds \.git/\.hidden, which is not part of a set"):
        make_set().save(folder, overwrite=True)


def test_a_link_is_followed_and_stays_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    make_set(count=2).save(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink() and len(SyntheticSet.load(folder)) == 2


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_between_write_and_rename_leaves_the_old_set_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch, at: int, failure: BaseException
) -> None:
    calls = []
    real = os.replace

    def fail(*args: Path) -> None:
        calls.append(args)
        if len(calls) == at:
            raise failure
        real(*args)

    monkeypatch.setattr(os, "replace", fail)
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else DistillError
    with pytest.raises(expected) as caught:
        make_set(count=2).save(folder, overwrite=True)
    if expected is DistillError:
        assert str(caught.value) == f"The synthetic set {folder} cannot be written: {failure}"
    assert len(SyntheticSet.load(folder)) == 6
    assert [path.name for path in folder.parent.iterdir()] == ["set"]


def test_an_old_set_that_cannot_be_put_back_is_kept_and_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = os.replace

    def fail(source: Path, destination: Path) -> None:
        calls.append(source)
        if len(calls) > 1:
            raise OSError(5, "Input/output error", str(source), None, str(destination))
        real(source, destination)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DistillError, match=rf"Input/output error: '{folder.parent}/.set.*/old' -> '{folder}'"):
        make_set(count=2).save(folder, overwrite=True)
    assert len(SyntheticSet.load(calls[-1])) == 6


def test_a_disk_that_takes_no_more_leaves_nothing_behind(folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(DistillError, match=f"{folder} cannot be written: .*File too large"):
            make_set(count=40, size=16).save(folder, overwrite=True)
        with pytest.raises(DistillError, match=f"{folder.parent / 'new'} cannot be written"):
            make_set(count=40, size=16).save(folder.parent / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(SyntheticSet.load(folder)) == 6 and [path.name for path in folder.parent.iterdir()] == ["set"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DistillError, match=f"{tmp_path / 'file' / 'set'} cannot be written: .*(Not a directory|exists)"
    ):
        make_set().save(tmp_path / "file" / "set")

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkdtemp", read_only)
    with pytest.raises(DistillError, match=f"{tmp_path / 'set'} cannot be written: .*Read-only file system"):
        make_set().save(tmp_path / "set")


@pytest.mark.parametrize("fact", [float("nan"), torch.zeros(1), {1, 2}])
def test_provenance_that_is_not_json_is_refused(tmp_path: Path, fact: object) -> None:
    ours = make_set()
    ours.provenance["odd"] = fact
    with pytest.raises(UsageError, match="Provenance and metrics of a synthetic set must be JSON without NaN"):
        ours.save(tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_a_set_that_could_not_be_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_facts, "MAX_NUMBERS", 100)
    with pytest.raises(UsageError, match=r"This synthetic set has the shape .* refused"):
        make_set().save(tmp_path / "set")
    assert not list(tmp_path.iterdir())
