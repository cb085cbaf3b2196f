"""What a synthetic set is, in text."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightly_distill.runtime.words import size_text
from lightly_distill.synthetic import address, artifact, set_facts
from lightly_distill.synthetic.conditions import RECORDED, conditions
from lightly_distill.synthetic.contents import EIGHT_BIT_PREVIEW, PREVIEW
from lightly_distill.synthetic.synthetic_set import SyntheticSet

WIDTH = 100  # characters of a line
MAX_ORIGIN = 30  # lines of provenance and metrics; the JSON file has the rest
MAX_FACT = 400  # characters of one of them


def describe(place: str | Path) -> str:
    """Returns sizes, statistics, origin and pictures of a set on disk or on the Hub; see `describe_set`.

    Args:
        place: As for `SyntheticSet.load`.

    Raises:
        DistillError: If there is no set, or it is damaged; see `SyntheticSet.load`.
    """
    folder, origin = address.local_folder(place)
    synthetic = SyntheticSet.load(folder)
    synthetic.origin = origin
    return describe_set(synthetic, artifact.find(folder))


def describe_set(synthetic: SyntheticSet, folder: Path | None) -> str:
    """Returns sizes, statistics, origin and pictures of a set.

    Args:
        synthetic: The set.
        folder: Where it is on disk, if it is.

    Returns:
        At most 40 lines of at most 100 characters, but that the folder is never broken.
    """
    count, channels, height, width = synthetic.images.shape
    started = int((synthetic.source_index >= 0).sum())
    shown = synthetic.displayable()
    kept = "float32" if synthetic.pixels is None else "8 bits"
    lines = {
        "images": f"{count} of {channels}x{height}x{width}",
        "pixels": f"{_statistics(synthetic.images)}, {kept}, normalised",
        "on a screen": f"{((shown == 0) | (shown == 255)).float().mean():.1%} of the pixel values black or white",
        "normalisation": f"mean {_text(synthetic.mean)}, std {_text(synthetic.std)}",
        "started from": f"{started} real images, {count - started} of noise",
        "representations": f"{count} of {synthetic.dim} numbers, {_statistics(synthetic.representations)}, {kept}",
    }
    if synthetic.maps is not None:
        _, cells, grid, _ = synthetic.maps.shape
        lines["maps"] = f"{count} of {grid}x{grid} cells with {cells} numbers, {_statistics(synthetic.maps)}, 8 bits"
    if synthetic.projection is not None:
        lines["projection"] = synthetic.projection.words()
    if synthetic.map_projection is not None:
        lines["map projection"] = synthetic.map_projection.words()
    if synthetic.origin:
        lines["on the Hub"] = synthetic.origin
    if folder is not None:
        size = set_facts.bytes_on_disk(folder)
        lines["on disk"] = f"{size_text(size)} ({size} bytes), without its card, in {folder}"
        lines["picture"] = str(folder / (PREVIEW if synthetic.pixels is None else EIGHT_BIT_PREVIEW))
    known = {name: fact for name, fact in synthetic.provenance.items() if name not in RECORDED}
    in_words = conditions(synthetic.provenance, count)
    origin = {**_groups(known), **in_words, **_groups({"measured": synthetic.metrics})}
    # The settings are the longest and the least asked for.
    origin = dict(sorted(origin.items(), key=lambda item: item[0].startswith("config")))
    column = min(max(map(len, (*lines, *origin))), 2 * WIDTH // 5)
    head = [f"{name:<{column}}  {text}" for name, text in lines.items()]
    more = [line for name, text in origin.items() for line in _wrap(name, text, column)]
    if len(more) > MAX_ORIGIN:
        more = [*more[:MAX_ORIGIN], f"{'':<{column}}  ... all of it is in {set_facts.FACTS}"]
    return "\n".join([*head, *more])


def _statistics(values: Tensor) -> str:
    return f"mean {values.mean():.4g}, std {values.std(correction=0):.4g}, {values.min():.4g} to {values.max():.4g}"


def _groups(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Turns nested facts into lines: all plain values of one mapping are one; those of the outermost one each."""
    lines: dict[str, str] = {}
    for name in sorted(facts, key=lambda name: name not in ("name", "images")):  # what it is comes first
        value = facts[name]
        path = f"{prefix} {name}".strip()
        if isinstance(value, Mapping):
            lines.update(_groups(value, path))
        elif value in (None, "", []):
            pass  # not recorded
        elif prefix:
            before = f"{lines[prefix]}, " if prefix in lines else ""
            lines[prefix] = before + {"name": _text(value), "images": f"{_text(value)} images"}.get(
                name, f"{name} {_text(value)}"
            )
        elif name == "peak_memory_bytes" and isinstance(value, int):
            lines["peak memory"] = f"{value / 2**30:.2f} GiB"
        else:
            lines[path] = _text(value)
    return lines


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"({', '.join(_text(item) for item in value)})"
    text = str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text  # a hash: enough to compare two by eye


def _wrap(name: str, text: str, column: int) -> list[str]:
    # A stranger's set may hold line breaks and what steers a terminal.
    name, text = ("".join(letter if letter.isprintable() else "?" for letter in part) for part in (name, text))
    text = text if len(text) <= MAX_FACT else f"{text[:MAX_FACT]} ..."
    parts = textwrap.wrap(text, WIDTH - column - 2, break_on_hyphens=False) or [""]
    return [
        f"{label[:column]:<{column}}  {part}" for label, part in zip([name, *[""] * len(parts)], parts, strict=False)
    ]
