"""A synthetic set on disk: a folder that is also the layout of a Hugging Face dataset repository.

    README.md                         the dataset card; anybody's to edit, so without a hash
    data/train-00000-of-00001.parquet the images and their targets: `eight_bits.py` (format 2), `parquet.py` (format 1)
    lightly_distill.json              format version, shape, normalisation, scales, provenance, metrics, hashes
    preview.png                       the grid of images; in format 2 preview.webp, a few of them
    projection.safetensors            what brings back the target's own space, where the set is of principal components

A set may come from a stranger: the JSON is checked first, then the hashes, and only then are the numbers read. From the
Hub nothing is fetched before that JSON has been read and its claims compared with the sizes that the Hub reports.
"""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lightly_distill.errors import DistillError, UsageError, first_line
from lightly_distill.models.projection import Projection
from lightly_distill.models.rows import Layout
from lightly_distill.runtime.files import sync
from lightly_distill.synthetic import eight_bits, parquet
from lightly_distill.synthetic.contents import EIGHT_BIT_PREVIEW, PREVIEW, Contents, has_one_scale

FORMAT_VERSION = "2.0"  # 8 bits
OF_FLOATS = "1.1"
WITHOUT_PROJECTION = "1.0"  # of floats without one, so that older versions read it; they refuse the file that they miss
KIND = "synthetic_set"
FACTS = "lightly_distill.json"
DATA = "data/train-00000-of-00001.parquet"
CARD = "README.md"
PROJECTION = "projection.safetensors"
MAX_FACTS = 16 * 2**20  # bytes of JSON
MAX_SHAPE = {"m": 10**6, "C": 3, "H": 4096, "W": 4096, "d": 2**17}
MAX_NUMBERS = 2**31 - 1  # of all images, and of all representations: 8 GiB each, and what Arrow's lists can count
_PREVIEWED = 36  # images, of a set of 8 bits
MAX_BESIDE = 64 * 2**20  # bytes of all files but the data

_FILE_NAME = re.compile(rf"(\w[\w-]*/)*\w[\w-]*\.(md|parquet|png|webp)|{re.escape(PROJECTION)}", re.ASCII)
_OWN_FILE = re.compile(
    "|".join(
        [*map(re.escape, (CARD, FACTS, PREVIEW, EIGHT_BIT_PREVIEW, PROJECTION)), r"data/train-\d+-of-\d+\.parquet"]
    ),
    re.ASCII,
)
_LEFT_BY_THE_SYSTEM = re.compile(r"(data/)?\.[^/]*")  # such as .DS_Store; not what is in a hidden folder, such as .git


def write(synthetic: Contents, folder: Path, *, overwrite: bool) -> Path:
    """Writes a set; an old one stays whole until the new one is.

    Args:
        synthetic: The set.
        folder: New or empty folder. A link is followed.
        overwrite: Replace a set that is there. What the user wrote into its card stays.

    Returns:
        The folder.

    Raises:
        UsageError: If the folder is not empty and not to be overwritten, or holds something else than a set, or the
            set is larger than the format allows, or its provenance or metrics are not JSON.
        DistillError: If it cannot be written, or the header of the card that is there is not YAML; no partial folder
            stays.
    """
    place = Path(os.path.realpath(folder))
    _refuse_occupied(folder, overwrite=overwrite)
    check_shape(_shape(synthetic), "This synthetic set", UsageError)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # A sibling: only inside one file system is a rename all or nothing.
        workspace = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        new, old = workspace / "new", workspace / "old"
        try:
            _write_files(synthetic, new, _card_in(place))
            if place.exists():
                os.replace(place, old)
            os.replace(new, place)
        finally:
            if old.exists() and not place.exists():
                os.replace(old, place)  # if even this fails, its message says where the old set is
            shutil.rmtree(workspace, ignore_errors=True)
        sync(place.parent)
    except OSError as error:
        raise DistillError(f"The synthetic set {folder} cannot be written: {error}") from error
    return folder


def stored_bytes(synthetic: Contents) -> int:
    """Returns how many bytes the files of a set take on disk."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "set")
        _write_files(synthetic, place, None)
        return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def find(folder: Path) -> Path:
    """Returns the folder of a set, given it or the output folder of a run.

    Raises:
        UsageError: If there is no set.
    """
    for candidate in (folder, folder / "set"):
        if (candidate / FACTS).is_file():
            return candidate
    if not folder.exists():
        raise UsageError(
            f"There is no synthetic set at {folder}: no such folder. (A set on the Hugging Face Hub is OWNER/NAME.)"
        )
    raise UsageError(f"{folder} holds no synthetic set: there is no {FACTS} in it, nor in its folder 'set'.")


def read(folder: Path) -> dict[str, Any]:
    """Reads and checks a set; the arguments of `SyntheticSet`.

    Raises:
        DistillError: If a file is missing, changed or damaged, or the format is newer.
    """
    facts = read_facts(folder)
    for name, expected in hashed(facts).items():
        check_file(folder / name, expected)
    try:
        data = _read_codes(folder, facts) if "scales" in facts else _read_floats(folder, facts)
    except (OSError, ValueError, KeyError, SyntaxError, pa.ArrowException) as error:  # Pillow raises some of these
        raise DistillError(f"{folder / DATA} cannot be read as a synthetic set: {error}") from error
    return {
        **data,
        "projection": _projection(folder / PROJECTION, facts) if PROJECTION in facts["files"] else None,
        **{key: facts[key] for key in ("mean", "std", "provenance", "metrics")},
    }


def _read_floats(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    count, channels, height, width, dim = (facts["shape"][letter] for letter in MAX_SHAPE)
    names = ("images", "representations", "source_index")
    return dict(zip(names, parquet.read(folder / DATA, (count, channels, height, width), dim), strict=True))


def _read_codes(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    layout, scales = _layout(facts), torch.tensor(facts["scales"], dtype=torch.float32)
    if len(scales) == (2 if layout.grid else 1):  # one for all numbers of a representation, one for all of a map
        scales = scales.repeat_interleave(torch.tensor([layout.dim, layout.channels][: len(scales)]))
    shape = facts["shape"]
    pixels, codes, source_index = eight_bits.read(folder / DATA, tuple(shape[each] for each in "mCHW"), layout)
    representations, maps = layout.split(codes * layout.by_number(scales))
    return {
        "images": pixels,
        "representations": representations.contiguous(),
        "maps": maps if maps is None else maps.contiguous(),
        "scales": scales,
        "source_index": source_index,
    }


def _layout(facts: dict[str, Any]) -> Layout:
    return Layout(facts["shape"]["d"], **facts.get("map", {}))


def read_facts(folder: Path) -> dict[str, Any]:
    """Reads lightly_distill.json of a set and checks its claims.

    Returns:
        `shape` (m, C, H, W, d), `mean`, `std`, `provenance`, `metrics`, `files` (name to `bytes` and `sha256`), of the
        right types, bounded, and with names inside the folder.

    Raises:
        DistillError: If it is damaged, too large, or of a newer format.
    """
    path = folder / FACTS
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FACTS + 1)
        check_facts_size(len(content), str(path))
        facts: dict[str, Any] = json.loads(content.decode(), parse_constant=_refuse_constant)
        version = facts["format_version"]
        major = int(version.split(".")[0])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = error if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise DistillError(f"{path} cannot be read: {reason}") from error
    if major > int(FORMAT_VERSION.split(".")[0]):
        raise DistillError(
            f"{folder} has format {version}, this version of lightly-distill reads up to {FORMAT_VERSION}: "
            "pip install --upgrade lightly-distill"
        )
    try:
        if facts.pop("sha256", None) != _digest(facts):
            raise DistillError(f"{path} is not the file that was written: it was changed or damaged; get it again.")
        _check_facts(path, facts)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DistillError(f"{path} is not complete: {type(error).__name__}: {error}") from error
    return facts


def hashed(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns the files that must be those that were written, name to `bytes` and `sha256`; the card is not one."""
    return {name: expected for name, expected in facts["files"].items() if name != CARD}


def check_facts_size(size: int, owner: str) -> None:
    """Refuses a lightly_distill.json that is larger than one ever is.

    Raises:
        DistillError: If it is.
    """
    if size > MAX_FACTS:
        raise DistillError(f"{owner} is larger than {MAX_FACTS >> 20} MiB: not a synthetic set.")


def check_sizes(facts: dict[str, Any], sizes: Mapping[str, int], owner: str) -> None:
    """Refuses files that are not of the size that the facts claim, or larger than a set of this shape can be.

    Args:
        facts: From `read_facts`.
        sizes: Bytes of each file that is there, before anything is fetched.
        owner: Of the files, for messages.

    Raises:
        DistillError: If a file is missing, of another size, or too large.
    """
    claimed = {name: expected["bytes"] for name, expected in hashed(facts).items()}
    for name, size in claimed.items():
        if name not in sizes:
            raise DistillError(f"{owner} is not complete: {FACTS} lists {name}, which is not there.")
        if sizes[name] != size:
            raise DistillError(
                f"{owner} is not what was published: {name} has {sizes[name]} bytes, {FACTS} says {size}."
            )
    count, *sides = (facts["shape"][letter] for letter in "mCHW")
    pixels = math.prod(sides)
    # float32 as it is, a PNG that no compression helped, and what a table needs for each row and itself
    most = count * (4 * (pixels + _layout(facts).width) + 2 * pixels + 2**12) + 2**20
    projection = claimed.get(PROJECTION, 0)
    beside = sum(claimed.values()) - claimed[DATA] - projection
    if claimed[DATA] > most or projection > _most_projection(facts) or beside > MAX_BESIDE:
        raise DistillError(
            f"{owner} has {sum(claimed.values())} bytes, more than a set of the shape {facts['shape']} can have: "
            "refused."
        )


def _check_facts(path: Path, facts: dict[str, Any]) -> None:
    if facts["kind"] != KIND:
        raise DistillError(f"{path} describes a {facts['kind']!r}, not a {KIND}.")
    check_shape(facts["shape"], str(path), DistillError)
    for key in ("mean", "std"):
        if not all(isinstance(value, float) for value in facts[key]):
            raise TypeError(f"{key} must be a list of numbers")
    for key in ("provenance", "metrics", "files"):
        if not isinstance(facts[key], dict):
            raise TypeError(f"{key} must be an object")
    if "scales" in facts:
        _check_scales(path, facts)
    if PROJECTION in facts["files"]:
        original = facts["projection"]["from"]
        check_shape({**facts["shape"], "d": original}, str(path), DistillError)
        if original < facts["shape"]["d"] or original * facts["shape"]["d"] > MAX_NUMBERS:
            raise DistillError(f"{path} has a projection from {original} numbers to {facts['shape']['d']}: refused.")
    for name, expected in facts["files"].items():
        if not _FILE_NAME.fullmatch(name):
            raise DistillError(f"{path} names a file that no synthetic set has: {name!r}")
        if not isinstance(expected["bytes"], int) or not isinstance(expected["sha256"], str):
            raise TypeError(f"bytes and sha256 of {name}")
    if DATA not in facts["files"]:
        raise DistillError(f"{path} lists no {DATA}: the set is not complete.")


def _check_scales(path: Path, facts: dict[str, Any]) -> None:
    """Refuses scales and a map that a set of 8 bits cannot have."""
    shape, known = facts.get("map", {}), set(facts.get("map", {}))
    if "map" in facts and (known != {"channels", "grid"} or not all(type(v) is int and v > 0 for v in shape.values())):
        raise TypeError("map must have channels and grid")
    layout, scales = _layout(facts), facts["scales"]
    check_shape({**facts["shape"], "d": layout.width}, str(path), DistillError)
    counts = (2 if layout.grid else 1, layout.dim + layout.channels)
    if not isinstance(scales, list) or len(scales) not in counts or not all(type(s) is float for s in scales):
        raise TypeError(f"scales must be a list of {counts[0]} or {counts[1]} numbers")


def check_shape(shape: dict[str, int], owner: str, error: type[DistillError]) -> None:
    """Refuses what is larger than the format allows.

    Args:
        shape: Number by letter of `MAX_SHAPE`.
        owner: Of the shape, for the message.
        error: What is raised.
    """
    sizes = [shape[letter] for letter in MAX_SHAPE]
    fits = all(type(size) is int and 0 < size <= most for size, most in zip(sizes, MAX_SHAPE.values(), strict=True))
    if not fits or math.prod(sizes[:4]) > MAX_NUMBERS or sizes[0] * sizes[4] > MAX_NUMBERS:
        raise error(
            f"{owner} has the shape {shape}: refused, at most {MAX_SHAPE} and {MAX_NUMBERS} numbers are allowed."
        )


def check_file(path: Path, expected: dict[str, Any]) -> None:
    """Refuses a file that is not the one that was written.

    Args:
        path: Of the file.
        expected: Its `bytes` and `sha256`.

    Raises:
        DistillError: If it is missing, changed or damaged.
    """
    if not path.is_file():
        raise DistillError(f"The set is not complete: {path} is missing; get it again.")
    try:
        size = path.stat().st_size
        digest = _sha256(path) if size == expected["bytes"] else None
    except OSError as error:
        raise DistillError(f"{path} cannot be read: {error}") from error
    if digest != expected["sha256"]:
        raise DistillError(
            f"{path} is not the file that was written (sha256 or size differ): it was changed or damaged; get it again."
        )


def _refuse_occupied(folder: Path, *, overwrite: bool) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: choose another name for the set.")
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    if files and not overwrite:
        raise UsageError(f"The folder {folder} is not empty: overwrite=True replaces the set in it; or choose another.")
    # The whole folder is replaced, so what is not ours would be lost.
    foreign = [name for name in files if not (_OWN_FILE.fullmatch(name) or _LEFT_BY_THE_SYSTEM.fullmatch(name))]
    if foreign:
        raise UsageError(f"The folder {folder} holds {foreign[0]}, which is not part of a set: choose another folder.")


def _card_in(folder: Path) -> str | None:
    card = folder / CARD
    # the user's own text, in whatever encoding: what is not UTF-8 goes through as it is
    return card.read_text(encoding="utf-8", errors="surrogateescape") if card.is_file() else None


def _projection(path: Path, facts: dict[str, Any]) -> Projection:
    """Reads what `_write_files` wrote, its hash checked."""
    try:
        with safe_open(path, framework="pt") as file:
            found = Projection(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # no mapping
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise DistillError(f"{path} cannot be read as a projection: {first_line(error)}") from error
    shape = (facts["projection"]["from"], facts["shape"]["d"])
    if tuple(found.basis.shape) != shape:
        raise DistillError(f"{path} has a basis of shape {tuple(found.basis.shape)}, {FACTS} says {shape}.")
    return found


def _most_projection(facts: dict[str, Any]) -> int:
    """Returns how many bytes a projection of this shape can take: float32, and a header."""
    original: int = facts["projection"]["from"] if PROJECTION in facts["files"] else 0
    dim: int = facts["shape"]["d"]
    return 4 * (original * dim + original + dim + 1) + 2**16


def _write_files(synthetic: Contents, folder: Path, before: str | None) -> None:
    from lightly_distill.synthetic import (
        card,
        pictures,  # here: drawing is for those who write
    )

    (folder / "data").mkdir(parents=True)
    (folder / CARD).write_text(card.text(synthetic, before=before), encoding="utf-8", errors="surrogateescape")
    if synthetic.pixels is not None and synthetic.scales is not None:
        codes = (synthetic.targets / synthetic.layout.by_number(synthetic.scales)).round().to(torch.int8)
        eight_bits.write(folder / DATA, synthetic.pixels, codes, synthetic.layout, synthetic.source_index)
        few = pictures.image_grid(synthetic.pixels[:_PREVIEWED].cpu())
        few.save(folder / EIGHT_BIT_PREVIEW, format="WEBP", quality=50, method=6)
    else:
        displayable = synthetic.displayable()
        pictures.image_grid(displayable).save(folder / PREVIEW)
        parquet.write(
            folder / DATA, synthetic.images, synthetic.representations, synthetic.source_index, displayable=displayable
        )
    if synthetic.projection is not None:
        save_file(
            {name: value.cpu().contiguous() for name, value in synthetic.projection.tensors().items()},
            folder / PROJECTION,
        )
    (folder / FACTS).write_text(_facts(synthetic, folder), encoding="utf-8")
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def _facts(synthetic: Contents, folder: Path) -> str:
    projection, maps = synthetic.projection, synthetic.maps
    of_floats = OF_FLOATS if projection is not None else WITHOUT_PROJECTION
    facts = {
        "format_version": of_floats if synthetic.pixels is None else FORMAT_VERSION,
        "kind": KIND,
        "shape": _shape(synthetic),
        **({"map": {"channels": maps.shape[1], "grid": maps.shape[2]}} if maps is not None else {}),
        **({"scales": _scales(synthetic)} if synthetic.scales is not None else {}),
        **({"projection": {"from": projection.dim}} if projection is not None else {}),
        "mean": synthetic.mean,
        "std": synthetic.std,
        "provenance": synthetic.provenance,
        "metrics": synthetic.metrics,
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
            for name in (DATA, PREVIEW, EIGHT_BIT_PREVIEW, PROJECTION)
            if (folder / name).exists()
        },
    }
    try:
        plain = json.loads(json.dumps(facts, allow_nan=False))  # as it will be read: lists, and names as text
    except (TypeError, ValueError) as error:
        raise UsageError(f"Provenance and metrics of a synthetic set must be JSON without NaN: {error}") from error
    indent = 2 if synthetic.pixels is None else None  # a small set is not to be outweighed by blanks
    return json.dumps({**plain, "sha256": _digest(plain)}, indent=indent) + "\n"


def _scales(synthetic: Contents) -> list[float]:
    """Returns the scales, in short if they are one for the representations and one for the maps."""
    assert synthetic.scales is not None
    scales = (
        synthetic.scales[[0, -1][: 1 + synthetic.layout.channels]] if has_one_scale(synthetic) else synthetic.scales
    )
    return [float(scale) for scale in scales]


def _shape(synthetic: Contents) -> dict[str, int]:
    return dict(zip(MAX_SHAPE, (*synthetic.images.shape, synthetic.dim), strict=True))


def _digest(facts: dict[str, Any]) -> str:
    """Returns the SHA-256 of what the JSON says: nothing else would notice a changed mean."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
