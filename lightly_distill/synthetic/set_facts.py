"""lightly_distill.json of a set: what it says, and how its claims are checked before anything is read by them.

A set may come from a stranger: shapes are bounded, names stay inside the folder, and a hash of the whole notices a
changed mean as well as a changed byte.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from lightly_distill.errors import DistillError, UsageError
from lightly_distill.models.rows import Layout
from lightly_distill.synthetic.contents import EIGHT_BIT_PREVIEW, PREVIEW, Contents, has_one_scale

FORMAT_VERSION = "2.0"  # 8 bits
OF_FLOATS = "1.1"
WITHOUT_PROJECTION = "1.0"  # of floats without one, so that older versions read it; they refuse the file that they miss
KIND = "synthetic_set"
FACTS = "lightly_distill.json"
DATA = "data/train-00000-of-00001.parquet"
CARD = "README.md"
PROJECTION, MAP_PROJECTION = "projection.safetensors", "map_projection.safetensors"
_HASHED = (DATA, PREVIEW, EIGHT_BIT_PREVIEW, PROJECTION, MAP_PROJECTION)  # those of them that a set has
MAX_FACTS = 16 * 2**20  # bytes of JSON
MAX_SHAPE = {"m": 10**6, "C": 3, "H": 4096, "W": 4096, "d": 2**17}
MAX_NUMBERS = 2**31 - 1  # of all images, and of all representations: 8 GiB each, and what Arrow's lists can count
MAX_BESIDE = 64 * 2**20  # bytes of all files but the data
_FILE_NAME = re.compile(rf"(\w[\w-]*/)*\w[\w-]*\.(md|parquet|png|webp)|(map_)?{re.escape(PROJECTION)}", re.ASCII)


def layout_of(facts: dict[str, Any]) -> Layout:
    """Returns what a row of the targets holds."""
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


def bytes_on_disk(folder: Path) -> int:
    """Returns the bytes of a set wherever they are told: of what is fetched to use it, all files but the card."""
    return sum((folder / name).stat().st_size for name in (FACTS, *_HASHED) if (folder / name).exists())


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
    most = count * (4 * (pixels + layout_of(facts).width) + 2 * pixels + 2**12) + 2**20
    shapes = projection_shapes(facts)
    # float32 and a header
    fits = all(claimed[name] <= 4 * (old * new + old + new + 1) + 2**16 for name, (old, new) in shapes.items())
    beside = sum(claimed.values()) - claimed[DATA] - sum(claimed[name] for name in shapes)
    if claimed[DATA] > most or not fits or beside > MAX_BESIDE:
        raise DistillError(
            f"{owner} has {sum(claimed.values())} bytes, more than a set of the shape {facts['shape']} can have: "
            "refused."
        )


def check_contents(shape: dict[str, int], targets: Layout, owner: str, error: type[DistillError]) -> None:
    """As `check_shape`, for a set whose targets may have maps.

    Args:
        shape: Number by letter of `MAX_SHAPE`.
        targets: Layout of its targets.
        owner: Of the shape, for the message.
        error: What is raised.
    """
    check_shape(shape, owner, error)
    check_shape({**shape, "d": targets.width}, f"{owner}, with its maps,", error)


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
    elif "map" in facts:
        raise DistillError(f"{path} has a map without scales, which no set has: refused.")
    for original, kept in projection_shapes(facts).values():
        check_shape({**facts["shape"], "d": original}, str(path), DistillError)
        if original < kept or original * kept > MAX_NUMBERS:
            raise DistillError(f"{path} has a projection from {original} numbers to {kept}: refused.")
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
    layout, scales = layout_of(facts), facts["scales"]
    check_contents(facts["shape"], layout, str(path), DistillError)
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


def projection_shapes(facts: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Returns from how many numbers to how many each file of a projection leads, by its name."""
    kept = {PROJECTION: facts["shape"]["d"], MAP_PROJECTION: layout_of(facts).channels}
    files: dict[str, Any] = facts["files"]
    return {name: (facts[Path(name).stem]["from"], new) for name, new in kept.items() if name in files}


def written(synthetic: Contents, folder: Path) -> str:
    """Returns the JSON of a set whose other files are in a folder.

    Raises:
        UsageError: If provenance or metrics are not JSON.
    """
    projection, maps = synthetic.projection, synthetic.maps
    of_maps = synthetic.map_projection
    of_floats = OF_FLOATS if projection is not None else WITHOUT_PROJECTION
    facts = {
        "format_version": of_floats if synthetic.pixels is None else FORMAT_VERSION,
        "kind": KIND,
        "shape": shape_of(synthetic),
        **({"map": {"channels": maps.shape[1], "grid": maps.shape[2]}} if maps is not None else {}),
        **({"scales": _scales(synthetic)} if synthetic.scales is not None else {}),
        **({"projection": {"from": projection.dim}} if projection is not None else {}),
        **({"map_projection": {"from": of_maps.dim}} if of_maps is not None else {}),
        "mean": synthetic.mean,
        "std": synthetic.std,
        "provenance": synthetic.provenance,
        "metrics": synthetic.metrics,
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
            for name in _HASHED
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


def shape_of(synthetic: Contents) -> dict[str, int]:
    """Returns the number by letter of `MAX_SHAPE`."""
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
