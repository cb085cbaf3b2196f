"""Sets of 8 bits: what is saved is what students see, to the last bit."""

import io
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

import tiny
from lightly_distill import DistillError, SyntheticSet, UsageError
from lightly_distill.data.pixels import normalise
from lightly_distill.method.rounding import fit_scales, round_targets
from lightly_distill.models.rows import Layout
from lightly_distill.runtime.seeding import generator
from lightly_distill.synthetic import artifact, eight_bits, set_facts
from lightly_distill.synthetic.describe import describe

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYOUT = Layout(6, channels=4, grid=3)


def made(layout: Layout = LAYOUT, count: int = 5, **changes: Any) -> SyntheticSet:
    g = generator(0, "eight bits")
    rows = torch.randn(count, layout.width, generator=g)
    scales = fit_scales(rows, layout)
    representations, maps = layout.split(round_targets(rows, scales))
    given: dict[str, Any] = {
        "images": torch.randint(256, (count, 3, 8, 10), generator=g).byte(),
        "representations": representations.contiguous(),
        "maps": maps,
        "scales": layout.by_channel(scales),
        "mean": MEAN,
        "std": STD,
        "source_index": torch.arange(count) - 1,
        "provenance": {"source": "x", "steps": 3},
    }
    return SyntheticSet(**{**given, **changes})


def parts(synthetic: SyntheticSet) -> list[Tensor]:
    assert synthetic.pixels is not None and synthetic.scales is not None
    return [synthetic.pixels, synthetic.images, synthetic.targets, synthetic.scales, synthetic.source_index]


def lossy(count: int, quality: int = 50) -> dict[str, Any]:
    """Images and files of a set that is stored with loss."""
    pixels = tiny.images(count)
    files = eight_bits.encoded(pixels, quality)
    return {"images": eight_bits.decoded(files, (count, *pixels.shape[2:])), "files": files}


def test_lossy_images_are_what_is_decoded_from_the_same_files_again_and_again(tmp_path: Path) -> None:
    synthetic = made(count=6, **lossy(6))
    loaded = SyntheticSet.load(synthetic.save(tmp_path / "set"))
    assert loaded.files == synthetic.files and not torch.equal(loaded.pixels, tiny.images(6))
    for ours, theirs in zip(parts(loaded), parts(synthetic), strict=True):
        assert torch.equal(ours, theirs)
    loaded.part(torch.tensor([4, 1])).save(tmp_path / "part")
    part = SyntheticSet.load(tmp_path / "part")
    assert part.files == [synthetic.files[4], synthetic.files[1]]
    assert torch.equal(part.pixels, synthetic.pixels[[4, 1]])


def test_a_lower_quality_takes_fewer_bytes_and_is_further_from_the_image() -> None:
    pixels = tiny.images(6)
    sizes, errors = [], []
    for quality in (None, 95, 50, 10):
        files = eight_bits.encoded(pixels, quality)
        sizes.append(sum(map(len, files)))
        errors.append((eight_bits.decoded(files, (6, *pixels.shape[2:])).float() - pixels).square().mean().item())
    assert sizes == sorted(sizes, reverse=True) and errors == sorted(errors) and errors[0] == 0 < errors[1]


@pytest.mark.parametrize("layout", [LAYOUT, Layout(6), Layout(1)])
@pytest.mark.parametrize("own_scales", [False, True])
def test_save_and_load_give_every_bit_back_and_the_same_files(tmp_path: Path, layout: Layout, own_scales: bool) -> None:
    synthetic = made(layout)
    if own_scales:  # one for each number
        scales = torch.rand(layout.dim + layout.channels, generator=generator(1, "scales")) + 0.01
        rows = round_targets(synthetic.targets, layout.by_number(scales))
        representations, maps = layout.split(rows)
        synthetic = made(layout, representations=representations.contiguous(), maps=maps, scales=scales)
    loaded = SyntheticSet.load(synthetic.save(tmp_path / "set"))
    for ours, theirs in zip(parts(loaded), parts(synthetic), strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.layout == layout and loaded.provenance == synthetic.provenance
    assert torch.equal(loaded.images, normalise(loaded.displayable(), MEAN, STD))
    loaded.save(tmp_path / "again")
    for path in (tmp_path / "set").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "set")).read_bytes(), path
    assert json.loads((tmp_path / "set" / set_facts.FACTS).read_text())["format_version"] == "2.0"


@pytest.mark.parametrize("kept", ["images", "pixels"])
def test_floats_are_written_as_format_1_as_before(kept: str, tmp_path: Path) -> None:
    synthetic = made()
    floats = SyntheticSet(getattr(synthetic, kept), synthetic.representations, mean=MEAN, std=STD)
    loaded = SyntheticSet.load(floats.save(tmp_path / "set"))
    assert loaded.pixels is None and torch.equal(loaded.images, synthetic.images)
    assert json.loads((tmp_path / "set" / set_facts.FACTS).read_text())["format_version"] == "1.0"


def test_it_takes_little_more_than_its_images_and_a_byte_a_number(tmp_path: Path) -> None:
    layout = Layout(256, channels=64, grid=4)
    synthetic = made(layout, count=50)
    folder = synthetic.save(tmp_path / "set")
    size = artifact.stored_bytes(synthetic)
    assert size == set_facts.bytes_on_disk(folder)
    incompressible = 50 * (3 * 8 * 10 + layout.width)
    assert size < incompressible + 50 * 150 + 40_000  # headers of pictures; card, preview and facts, whatever the size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": None}, "Maps, files and scales are of a synthetic set of 8 bits"),
        ({"scales": torch.ones(9)}, r"A synthetic set of 8 bits has float32 scales of shape \(10,\)"),
        ({"scales": torch.zeros(10)}, "The scales of a synthetic set must be finite and positive"),
        ({"scales": torch.ones(10)}, "whole multiples of their scales, of at most 127"),
        ({"scales": torch.full((10,), 1e-6)}, "whole multiples of their scales, of at most 127"),
        ({"maps": torch.zeros(5, 4, 3)}, r"The maps of a synthetic set must be torch.float32 of shape \(m, C, g, g\)"),
        ({"maps": torch.zeros(4, 4, 3, 3)}, "as many of each"),
        ({"files": [b""]}, "as many of each"),
        ({"images": torch.zeros(5, 3, 8, 10)}, "Maps, files and scales are of a synthetic set of 8 bits"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        made(**changes)


def test_plain_datasets_sees_images_and_all_targets(tmp_path: Path) -> None:
    import datasets

    synthetic = made()
    synthetic.save(tmp_path / "set")
    rows = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    assert set(rows.column_names) == {"image", "representation", "map", "source_index"}
    assert rows[1]["image"].size == (10, 8) and len(rows[1]["representation"]) == 6 and len(rows[1]["map"]) == 36
    assert rows["source_index"][:2] == [-1, 0]


def test_the_code_of_the_card_reads_it_without_our_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic = made()
    folder = synthetic.save(tmp_path / "set")
    card = (folder / "README.md").read_text()
    assert "a map of 3x3 cells with 4 numbers each" in card and "preview.webp" in card
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", card, re.S) if "load_dataset" in block)
    (tmp_path / "read.py").write_text(code.replace("path/to/this/folder", str(folder)))
    monkeypatch.chdir(folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))  # it knows folders by their names
    found = runpy.run_path(str(tmp_path / "read.py"))
    torch.testing.assert_close(found["images"], synthetic.images)
    torch.testing.assert_close(found["representations"], synthetic.representations)
    torch.testing.assert_close(found["maps"], synthetic.maps)


def test_inspect_says_8_bits_maps_and_bytes(tmp_path: Path) -> None:
    folder = made().save(tmp_path / "set")
    said = describe(folder)
    assert "8 bits" in said and "5 of 3x3 cells with 4 numbers" in said and "preview.webp" in said
    assert "float32" not in said


def test_a_selected_set_says_that_its_images_are_real(tmp_path: Path) -> None:
    folder = made(provenance={"steps": 0}).save(tmp_path / "set")
    assert "**real images**" in (folder / "README.md").read_text()
    assert "**real images**" not in (made().save(tmp_path / "other") / "README.md").read_text()


def damaged(folder: Path, change: Any) -> None:
    """Changes the table and makes the hashes true again, as somebody of ill will can."""
    table = pq.read_table(folder / set_facts.DATA)
    pq.write_table(change(table), folder / set_facts.DATA)
    facts = json.loads((folder / set_facts.FACTS).read_text())
    facts.pop("sha256")
    content = (folder / set_facts.DATA).read_bytes()
    import hashlib

    facts["files"][set_facts.DATA] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    facts["sha256"] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    (folder / set_facts.FACTS).write_text(json.dumps(facts))


def encoded(mode: str, size: tuple[int, int], kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded("RGB", (4000, 8), "PNG"), "image 0 is RGB of (4000, 8), expected RGB of (10, 8)"),
        (encoded("L", (10, 8), "PNG"), "image 0 is L of (10, 8), expected RGB of (10, 8)"),
        (encoded("RGB", (10, 8), "BMP"), "cannot identify image file"),
        (b"", "cannot identify image file"),
        (b"RIFFxxxxWEBP", "cannot"),
        (bytes(100_000), "the images take more bytes than images of their size can"),
    ],
)
def test_an_image_that_is_not_as_promised_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    folder = made().save(tmp_path / "set")

    def change(table: pa.Table) -> pa.Table:
        rows = table["image"].to_pylist()
        rows[0] = {"bytes": content, "path": None}
        return table.set_column(0, "image", pa.array(rows, table.schema.field("image").type))

    damaged(folder, change)
    with pytest.raises(DistillError, match="cannot be read as a synthetic set") as refused:
        SyntheticSet.load(folder)
    assert message in str(refused.value)


def test_fewer_numbers_than_promised_are_refused(tmp_path: Path) -> None:
    folder = made().save(tmp_path / "set")
    damaged(folder, lambda table: table.slice(0, 4))
    with pytest.raises(DistillError, match=r"has 4 numbers, expected 5|has 24 numbers, expected 30"):
        SyntheticSet.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"scales": [1.0, 2.0, 3.0]},
        {"scales": "1.0"},
        {"map": {"channels": 4}},
        {"map": {"channels": 0, "grid": 3}},
        {"map": {"channels": 10**6, "grid": 10**3}},
    ],
)
def test_facts_of_8_bits_that_cannot_be_true_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = made().save(tmp_path / "set")
    facts = {**json.loads((folder / set_facts.FACTS).read_text()), **change}
    facts.pop("sha256")
    import hashlib

    facts["sha256"] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    (folder / set_facts.FACTS).write_text(json.dumps(facts))
    with pytest.raises(DistillError, match=r"is not complete|refused"):
        SyntheticSet.load(folder)
