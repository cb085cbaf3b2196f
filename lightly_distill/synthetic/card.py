"""The dataset card of a synthetic set, written from its recorded facts.

What is around it is the user's own; see `card_frame.py`.
"""

import statistics
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import yaml

from lightly_distill.runtime import templates
from lightly_distill.synthetic import card_frame
from lightly_distill.synthetic.conditions import conditions
from lightly_distill.synthetic.contents import EIGHT_BIT_PREVIEW, PREVIEW, Contents, has_one_scale

_T = TypeVar("_T")

TAGS = ("lightly-distill", "dataset-distillation", "self-supervised-learning", "image")
# of a set that nobody has published, and of one that somebody has
NOT_YET_MEASURED = "Not measured yet: `lightly-distill evaluate` does."
NOT_YET_CHECKED = "Not looked for yet: lightly-distill publish does."
NOT_MEASURED = "Not measured by who published it: `lightly-distill evaluate` does."
NOT_CHECKED = "Not checked by who published it: the real images or the target model were not at hand."
# What the Hub knows of sizes, up to and without the number.
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))


def text(
    synthetic: Contents,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    source_license: str | None = None,
    size: int | None = None,
    before: str | None = None,
) -> str:
    """Returns the card, Markdown with a header that the Hub and `datasets` understand.

    Args:
        synthetic: The set.
        repo_id: Its name on the Hub.
        license: Identifier that the Hub knows, such as `cc-by-4.0`. Default: that of the card before.
        source_license: Of the real images, in words.
        size: Its bytes; see `set_facts.bytes_on_disk`.
        before: The card that there is, whose own text and header are kept.

    Raises:
        DistillError: If the header of the card before is not YAML.
    """
    header, around = card_frame.take_apart(before or "")
    header = _header(len(synthetic), header, license)
    count, _, height, width = synthetic.images.shape
    body = templates.fill(
        "synthetic/templates/card.md.j2",
        count=count,
        distiller=synthetic.provenance.get("distiller"),
        width=width,
        height=height,
        dim=synthetic.dim,
        place=repo_id or "path/to/this/folder",
        mean=_short(synthetic.mean),
        std=_short(synthetic.std),
        selected=synthetic.provenance.get("steps") == 0,
        eight_bits=synthetic.pixels is not None,
        map=synthetic.layout if synthetic.maps is not None else None,
        scales={"representations": 1 if synthetic.scales is None or has_one_scale(synthetic) else synthetic.dim},
        preview=EIGHT_BIT_PREVIEW if synthetic.pixels is not None else PREVIEW,
        projection=synthetic.projection,
        map_projection=synthetic.map_projection,
        facts=facts(synthetic) | _sizes(synthetic, size),
        config=_config(synthetic.provenance.get("config")),
        verdict=_join(synthetic.metrics.get("verdict")),
        transfer=_measured(_transfer, synthetic.metrics.get("transfer")) or [],
        not_measured=NOT_MEASURED if repo_id else NOT_YET_MEASURED,
        near=_measured(near_copies_sentence, synthetic.metrics.get("near_copies"))
        or (NOT_CHECKED if repo_id else NOT_YET_CHECKED),
        license=_join(header.get("license")),
        source_license=_join(source_license),
    )
    return card_frame.put_together(header, around, body)


def facts(synthetic: Contents) -> dict[str, str]:
    """Returns what is recorded of a set's origin, each as one line for people; what is not recorded is left out."""
    known = synthetic.provenance
    source, target, config, losses = (_part(known, name) for name in ("source", "target", "config", "heldout_loss"))
    lines = {
        "source": _join(source.get("name"), _unit(source.get("images"), "images"), _hash(source.get("fingerprint"))),
        "target": _join(target.get("name"), _encoder(target), _seen(source, target), _hash(target.get("sha256"))),
        "representations": _join(synthetic.projection.words() if synthetic.projection else None, _brought(known)),
        "student": _join(config.get("student")),
        "started from": _join(
            {"noise": "noise", "random": "real images", "kmeans": "real images"}.get(str(config.get("init")))
        ),
        "outer steps": _join(known.get("steps")),
        "outer loss, held-out images": _loss(losses, known.get("heldout_images")),
        **{f"of {_join(name)}": _loss(_part(_part(losses, "by_student"), name)) for name in _by_student(losses)},
        "seed": _join(config.get("seed")),
        "time": _join(_unit(_number(known.get("seconds")), "s"), known.get("device")),
        "peak memory": _join(_unit(_number(known.get("peak_memory_bytes"), 2**30), "GiB")),
        **{name: _join(line) for name, line in conditions(known, len(synthetic)).items()},
        "versions": _join(*(f"{name} {number}" for name, number in _part(known, "versions").items())),
    }
    return {name: value for name, value in lines.items() if value}


def near_copies_sentence(found: dict[str, Any]) -> str:
    """Returns in a sentence or two what `NearCopies.facts` says."""
    count, near, traced = found["images"], found["near"], found["traced"]
    among_real = max(found[space]["near_share_of_real"] for space in ("pixels", "representations"))
    sentence = (
        f"{near or 'None'} of {count} synthetic images {'is a near copy' if near == 1 else 'are near copies'} of a "
        f"real one: nearer to it, in pixels or in the target's representation, than {found['share']:.0%} of the usual "
        f"distance between a real image and its nearest other one. Of real images, {among_real:.1%} are that near to "
        "another."
    )
    if traced is not None:
        sentence += f" For {traced} of {count}, the nearest real image in pixels is the one that they started from."
    return sentence


def _header(count: int, before: Mapping[str, Any], license: str | None) -> dict[str, Any]:
    ours = {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
        "license": license or before.get("license"),
        "tags": card_frame.merged_tags(TAGS, before),
        "task_categories": before.get("task_categories") or ["image-feature-extraction"],
        "size_categories": [next((name for most, name in _SIZES if count < most), "1M<n<10M")],
    }
    # dataset_info is what `datasets` writes of a table that it pushes; of another table, it makes loading fail
    others = {key: value for key, value in before.items() if key not in (*ours, "dataset_info")}
    return {key: value for key, value in {**ours, **others}.items() if value is not None}


def _sizes(synthetic: Contents, size: int | None) -> dict[str, str]:
    """Tells how large the set is, and its source, like with like: pixels of the same size, without compression."""
    from lightly_distill.runtime.words import size_text  # here: the card is imported with the package

    lines = {} if size is None else {"size": f"{size_text(size)} on disk, without this card"}
    source = _part(synthetic.provenance, "source")
    images, side = source.get("images"), source.get("image_size")
    if isinstance(images, int) and isinstance(side, int):
        real = images * 3 * side * side
        own = f"those of the set would be {size_text(synthetic.images.numel())}"
        lines["size of the source"] = f"{size_text(real)} as 8-bit pixels of {side}x{side}, not compressed; {own}"
    return lines


def _config(config: Any) -> str:
    """Returns settings as YAML that ends no block of code."""
    if not isinstance(config, dict) or not config:
        return ""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).replace("```", "").rstrip("\n")


def _transfer(results: Any) -> list[dict[str, Any]]:
    """Returns what the table of each student that `evaluate` tried shows."""
    tables = []
    for result in results:
        arms = result["arms"]
        measures = dict.fromkeys(measure for values in arms.values() for measure in values)
        rows = {_join(measure): [_mean(values.get(measure)) for values in arms.values()] for measure in measures}
        shown = {"student": _join(result["student"]), "arms": list(map(_join, arms)), "accuracies": rows}
        tables.append({**shown, "seeds": len(result["seeds"])})
    return tables


def _measured(words: Callable[[Any], _T], value: Any) -> _T | None:
    """Returns a measurement in words, None where there is none: those of a stranger's set may be anything."""
    try:
        return words(value)
    except (LookupError, TypeError, ValueError, AttributeError):
        return None


def _loss(losses: Mapping[str, Any], images: Any = None) -> str:
    initial, final = _number(losses.get("initial")), _number(losses.get("final"))
    text = _join(_unit(initial, "at the start"), _unit(final, "at the end"))
    return _join(text, None if images is None else f"of {images} images") if text else ""


def _by_student(losses: Mapping[str, Any]) -> list[str]:
    by_student = losses.get("by_student")
    return list(by_student) if isinstance(by_student, dict) else []


def _mean(values: "list[float] | None") -> str:
    if not values:
        return "-"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


def _encoder(target: dict[str, Any]) -> str | None:
    encoder = target.get("encoder")
    if encoder in (None, target.get("name")):
        return target.get("reason") or None
    return f"{encoder} ({target['reason']})" if target.get("reason") else str(encoder)


def _seen(source: dict[str, Any], target: dict[str, Any]) -> str | None:
    """Returns the size of the images that the target saw, where students saw another."""
    size = target.get("image_size")
    return None if size in (None, source.get("image_size")) else f"which saw them at {size}x{size} pixels"


def _brought(known: Mapping[str, Any]) -> str | None:
    """Returns the file of representations that the user brought."""
    file = _part(known, "representations")
    return None if file.get("name") is None else _join(f"from {file['name']}", _hash(file.get("sha256")))


def _part(known: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = known.get(name)
    return part if isinstance(part, dict) else {"name": part}


def _join(*parts: Any) -> str:
    # one line, and no cell border, whatever the name of a source is
    return " ".join(", ".join(str(part) for part in parts if part is not None).replace("|", "/").split())


def _unit(value: Any, unit: str) -> str | None:
    return None if value is None else f"{value} {unit}"


def _number(value: Any, scale: float = 1.0) -> str | None:
    return f"{value / scale:.4g}" if isinstance(value, (int, float)) else None


def _hash(value: Any) -> str | None:
    return None if value is None else f"hash {str(value)[:12]}"


def _short(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
