"""A synthetic set on disk: a folder that is also the layout of a Hugging Face dataset repository.

    README.md                         the dataset card; anybody's to edit, so without a hash
    data/train-00000-of-00001.parquet the images and their targets: `eight_bits.py` (format 2), `parquet.py` (format 1)
    lightly_distill.json              format version, shape, normalisation, scales, provenance, metrics, hashes
    preview.png                       the grid of images; in format 2 preview.webp, a few of them
    projection.safetensors            what brings back the target's own space, of components whose number was asked for
    map_projection.safetensors        the same for each cell of the map

A set may come from a stranger: the JSON is checked first, then the hashes, and only then are the numbers read. From the
Hub nothing is fetched before that JSON has been read and its claims compared with the sizes that the Hub reports.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lightly_distill.errors import DistillError, UsageError, first_line
from lightly_distill.models.projection import Projection
from lightly_distill.runtime.files import below, make_ordinary, sync
from lightly_distill.synthetic import eight_bits, parquet
from lightly_distill.synthetic.contents import EIGHT_BIT_PREVIEW, PREVIEW, Contents
from lightly_distill.synthetic.set_facts import (
    CARD,
    DATA,
    FACTS,
    MAP_PROJECTION,
    MAX_SHAPE,
    PROJECTION,
    bytes_on_disk,
    check_contents,
    check_file,
    hashed,
    layout_of,
    projection_shapes,
    read_facts,
    shape_of,
    written,
)

_PREVIEWED = 16  # images, of a set of 8 bits
_NAMES = (CARD, FACTS, PREVIEW, EIGHT_BIT_PREVIEW, PROJECTION, MAP_PROJECTION)
_OWN_FILE = re.compile("|".join([*map(re.escape, _NAMES), r"data/train-\d+-of-\d+\.parquet"]), re.ASCII)
_LEFT_BY_THE_SYSTEM = re.compile(r"(data/)?(\.DS_Store|\._[^/]*|\.directory|\.nfs[0-9a-f]+)")  # nobody's own


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
    refuse_occupied(folder, overwrite=overwrite)
    check_contents(shape_of(synthetic), synthetic.layout, "This synthetic set", UsageError)
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
    """Returns how many bytes a set takes on disk; see `set_facts.bytes_on_disk`."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "set")
        _write_files(synthetic, place, None)
        return bytes_on_disk(place)


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
    checkpoints = sorted(folder.glob("checkpoints/step-*.safetensors"))
    if checkpoints:
        raise UsageError(
            f"{folder} holds no synthetic set yet: its run is not finished, and the newest checkpoint is of step "
            f"{_progress(folder, checkpoints[-1])}. Go on with it: distill --resume --out {folder} (resume=True in "
            "Python)."
        )
    raise UsageError(
        f"{folder} holds no synthetic set: there is no {FACTS} in it, nor in its folder 'set'.{below(folder, FACTS)}"
    )


def _progress(run: Path, checkpoint: Path) -> str:
    """Returns such as `7 of 12`, from the names and settings of a run; `7` where the settings do not say."""
    config = run / "config.yaml"
    text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    step = checkpoint.stem.removeprefix("step-").lstrip("0") or "0"
    steps = re.search(r"^steps: (\d+)$", text, re.MULTILINE)
    return f"{step} of {steps[1]}" if steps else step


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
        **{Path(name).stem: _projection(folder / name, shape) for name, shape in projection_shapes(facts).items()},
        **{key: facts[key] for key in ("mean", "std", "provenance", "metrics")},
    }


def _read_floats(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    count, channels, height, width, dim = (facts["shape"][letter] for letter in MAX_SHAPE)
    names = ("images", "representations", "source_index")
    return dict(zip(names, parquet.read(folder / DATA, (count, channels, height, width), dim), strict=True))


def _read_codes(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    layout, scales = layout_of(facts), torch.tensor(facts["scales"], dtype=torch.float32)
    if len(scales) == (2 if layout.grid else 1):  # one for all numbers of a representation, one for all of a map
        scales = scales.repeat_interleave(torch.tensor([layout.dim, layout.channels][: len(scales)]))
    shape = facts["shape"]
    files, pixels, codes, source_index = eight_bits.read(folder / DATA, tuple(shape[each] for each in "mCHW"), layout)
    representations, maps = layout.split(codes * layout.by_number(scales))
    return {
        "images": pixels,
        "files": files,
        "representations": representations.contiguous(),
        "maps": maps if maps is None else maps.contiguous(),
        "scales": scales,
        "source_index": source_index,
    }


def refuse_occupied(folder: Path, *, overwrite: bool) -> None:
    """Refuses a place where a set cannot be written: a file, or a folder with something else in it.

    Args:
        folder: The place.
        overwrite: Whether a set that is there may be replaced.

    Raises:
        UsageError: If it is taken.
    """
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


def _projection(path: Path, shape: tuple[int, int]) -> Projection:
    """Reads what `_write_files` wrote, its hash checked."""
    try:
        with safe_open(path, framework="pt") as file:
            found = Projection(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # no mapping
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise DistillError(f"{path} cannot be read as a projection: {first_line(error)}") from error
    if tuple(found.basis.shape) != shape:
        raise DistillError(f"{path} has a basis of shape {tuple(found.basis.shape)}, {FACTS} says {shape}.")
    return found


def _write_files(synthetic: Contents, folder: Path, before: str | None) -> None:
    from lightly_distill.synthetic import (
        card,
        pictures,  # here: drawing is for those who write
    )

    (folder / "data").mkdir(parents=True)
    if synthetic.pixels is not None and synthetic.scales is not None:
        codes = (synthetic.targets / synthetic.layout.by_number(synthetic.scales)).round().to(torch.int8)
        files = synthetic.files or eight_bits.encoded(synthetic.pixels)
        eight_bits.write(folder / DATA, files, codes, synthetic.layout, synthetic.source_index)
        width = synthetic.pixels.shape[-1]
        few = pictures.image_grid(synthetic.pixels[:_PREVIEWED].cpu(), scale_to=width)  # not enlarged: bytes count
        few.save(folder / EIGHT_BIT_PREVIEW, format="WEBP", quality=40, method=6)
    else:
        displayable = synthetic.displayable()
        pictures.image_grid(displayable).save(folder / PREVIEW)
        parquet.write(
            folder / DATA, synthetic.images, synthetic.representations, synthetic.source_index, displayable=displayable
        )
    for name, projection in ((PROJECTION, synthetic.projection), (MAP_PROJECTION, synthetic.map_projection)):
        if projection is not None:
            save_file({part: value.cpu().contiguous() for part, value in projection.tensors().items()}, folder / name)
            make_ordinary(folder / name)
    (folder / FACTS).write_text(written(synthetic, folder), encoding="utf-8")
    text = card.text(synthetic, size=bytes_on_disk(folder), before=before)
    (folder / CARD).write_text(text, encoding="utf-8", errors="surrogateescape")
    for path in [*folder.rglob("*"), folder]:
        sync(path)
