"""Charts of accuracies, and the way of a chart into a page. matplotlib is imported where it is needed: it is slow."""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from lightly_distill.evaluation.report.page import Figure, data_url
from lightly_distill.runtime.words import size_text
from lightly_distill.synthetic import pictures
from lightly_distill.synthetic.pictures import COLOURS, INK, NARROW, OURS, make_axis, make_figure, set_title, short_name
from lightly_distill.synthetic.synthetic_set import SyntheticSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def accuracy_bars(table: Mapping[str, Mapping[str, Sequence[float]]], path: Path, title: str = "") -> None:
    """Draws accuracies as grouped bars.

    Args:
        table: Probe to arm to accuracies in [0, 1], one for each seed; error bars are their standard deviation.
        path: PNG to write.
        title: Above the picture.
    """
    arms = list(dict.fromkeys(arm for probe in table.values() for arm in probe))
    colours = arm_colours(arms)
    seeds = max(len(values) for probe in table.values() for values in probe.values())
    figure = make_figure(max(6.0, 1.5 + 0.62 * len(arms) * len(table) + 0.09 * max(map(len, arms))), 4.2)
    axis = make_axis(figure)
    step = 0.84 / len(arms)
    tops = []
    for number, arm in enumerate(arms):
        present = [place for place, probe in enumerate(table.values()) if arm in probe]
        means, spreads = zip(*(_mean_spread(probe[arm]) for probe in table.values() if arm in probe), strict=True)
        places = np.array(present) + (number - (len(arms) - 1) / 2) * step
        axis.bar(places, means, step * 0.9, color=colours[arm], label=arm)
        if any(spreads):
            axis.errorbar(places, means, spreads, fmt="none", ecolor=INK, capsize=3, linewidth=1)
        for place, mean, spread in zip(places, means, spreads, strict=True):
            above = (place, mean + spread)
            axis.annotate(f"{mean:.1f}", above, (0, 3), textcoords="offset points", ha="center", size=9, color=INK)
            tops.append((mean - spread, mean + spread))
    _zoom(axis, min(low for low, _ in tops), max(high for _, high in tops))
    axis.set_xticks(range(len(table)), list(table))
    axis.tick_params(axis="x", length=0)
    if seeds > 1:
        axis.set_xlabel(f"mean of {seeds} seeds; error bars are the standard deviation", size=9)
    axis.set_title(title, size=12, color=INK, loc="left", pad=10)
    axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path)


def accuracy_points(arms: Mapping[str, Sequence[float]], path: Path, title: str = "") -> None:
    """Draws accuracies as points with error bars, a row for each arm.

    Args:
        arms: Arm to accuracies in [0, 1], one for each seed; error bars are their standard deviation.
        path: PNG or SVG to write.
        title: Above the picture.
    """
    figure = make_figure(NARROW, 1.25 + 0.34 * len(arms))
    axis = make_axis(figure)
    colours = arm_colours(arms)
    for row, (arm, accuracies) in enumerate(arms.items()):
        mean, spread = _mean_spread(accuracies)
        # Each seed is there, faintly: three values are no distribution.
        axis.plot(100 * np.asarray(accuracies), [row] * len(accuracies), "|", color=colours[arm], markersize=9)
        axis.errorbar(mean, row, xerr=spread or None, fmt="o", color=colours[arm], ecolor=INK, capsize=3, markersize=8)
        axis.annotate(f"{mean:.1f}", (mean, row), (0, 6), textcoords="offset points", ha="center", size=8, color=INK)
    axis.set_yticks(range(len(arms)), [short_name(arm) for arm in arms])
    axis.set_ylim(len(arms) - 0.5, -0.7)  # the first on top, with room for its number
    axis.margins(x=0.08)
    figure.supxlabel(f"accuracy in %{_of_seeds(arms.values())}", size=9)
    axis.grid(axis="x", alpha=0.3)
    set_title(figure, title)
    figure.savefig(path)


def accuracy_by_size(arms: Mapping[str, tuple[int, Sequence[float]]], path: Path, title: str = "") -> None:
    """Draws accuracy against the size of what a student was pre-trained on, a point for each arm.

    Args:
        arms: Arm to bytes and accuracies in [0, 1], one for each seed. An arm of no bytes is a line across.
        path: PNG or SVG to write.
        title: Above the picture.
    """
    figure = make_figure(NARROW, 3.6)
    axis = make_axis(figure)
    colours = arm_colours(arms)
    for (arm, (size, accuracies)), marker in zip(arms.items(), cycle("os^DvPX"), strict=False):
        mean, spread = _mean_spread(accuracies)
        if size:
            label = f"{short_name(arm)}, {size_text(size)}"
            axis.errorbar(
                size, mean, spread or None, fmt=marker, color=colours[arm], ecolor=INK, capsize=3, label=label
            )
        else:
            axis.axhline(mean, color=colours[arm], linestyle="--", linewidth=1.5, label=f"{short_name(arm)}, no images")
    sizes = [size for size, _ in arms.values() if size]
    if sizes:
        # Whole decades, so that there are always two ticks to read a size from.
        low, high = math.floor(math.log10(min(sizes))), math.ceil(math.log10(max(sizes)))
        axis.set_xscale("log")
        axis.set_xlim(0.8 * 10**low, 1.25 * 10 ** max(high, low + 1))
        axis.xaxis.set_major_formatter(lambda value, _: size_text(value))
    axis.margins(y=0.1)
    axis.set_xlabel("images and their representations, log scale", size=9)
    axis.set_ylabel("accuracy in %", size=9)
    axis.grid(alpha=0.3)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    set_title(figure, title)
    figure.savefig(path)


def accuracy_by_images(
    curves: Mapping[str, Mapping[int, Sequence[float]]],
    path: Path,
    levels: Mapping[str, Sequence[float]],
    title: str = "",
    chosen: int | None = None,
    *,
    of_bytes: bool = False,
) -> None:
    """Draws accuracy against the number of images that a student was pre-trained on, or against their bytes.

    Args:
        curves: Arm to number of images to accuracies in [0, 1], one for each seed; error bars are their standard
            deviation.
        path: PNG or SVG to write.
        levels: Arms whose accuracies depend on no number of images: lines across.
        title: Above the picture.
        chosen: A number of images to mark.
        of_bytes: Whether the numbers are bytes on disk.
    """
    written = size_text if of_bytes else "{:,}".format
    figure = make_figure(NARROW, 3.8)
    axis = make_axis(figure)
    colours = arm_colours([*curves, *levels])
    for (arm, curve), marker in zip(curves.items(), cycle("os^DvPX"), strict=False):
        means, spreads = zip(*map(_mean_spread, curve.values()), strict=True)
        look: dict[str, Any] = {"fmt": f"{marker}-", "color": colours[arm], "capsize": 3, "linewidth": 1.5}
        axis.errorbar(list(curve), means, spreads, **look, label=short_name(arm))
    for (arm, accuracies), style in zip(levels.items(), cycle(("--", ":", "-.")), strict=False):
        mean, spread = _mean_spread(accuracies)
        axis.axhline(mean, color=colours[arm], linestyle=style, linewidth=1.5, label=short_name(arm))
        axis.axhspan(mean - spread, mean + spread, color=colours[arm], alpha=0.12, linewidth=0)
    if chosen is not None:
        axis.axvline(chosen, color=INK, linestyle=(0, (1, 3)), linewidth=1.5, label=f"recommended: {written(chosen)}")
    counts = sorted({count for curve in curves.values() for count in curve})
    axis.set_xscale("log")
    beside = min(1.25, (counts[-1] / counts[0]) ** 0.1) if len(counts) > 1 else 1.25  # sizes that are close fill it too
    axis.set_xlim(counts[0] / beside, counts[-1] * beside)
    axis.set_xticks([], minor=True)
    axis.margins(y=0.1)
    values = [accuracies for curve in curves.values() for accuracies in curve.values()]
    axis.set_xlabel(f"{'bytes on disk' if of_bytes else 'images'}, log scale{_of_seeds(values)}", size=9)
    axis.set_ylabel("accuracy in %", size=9)
    axis.grid(alpha=0.3)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    set_title(figure, title)
    _set_ticks_apart(axis, {count: written(count) for count in counts})
    figure.savefig(path)


def difference_bars(differences: Mapping[str, tuple[float, float | None]], path: Path, title: str = "") -> None:
    """Draws differences of accuracy as bars from zero, a row for each student.

    Args:
        differences: Student to difference in points of accuracy and its standard error, None where that is not known.
        path: PNG or SVG to write.
        title: Above the picture.
    """
    figure = make_figure(NARROW, 1.25 + 0.4 * len(differences))
    axis = make_axis(figure)
    for row, (mean, error) in enumerate(differences.values()):
        bar = axis.barh(row, mean, 0.6, xerr=error, color=OURS, ecolor=INK, capsize=3)
        axis.bar_label(bar, [f"{mean:+.1f}"], padding=4, size=9, color=INK)
    axis.axvline(0, color=INK, linewidth=1)
    axis.set_yticks(range(len(differences)), [short_name(student) for student in differences])
    axis.set_ylim(len(differences) - 0.4, -0.6)
    axis.margins(x=0.3)  # for the numbers
    bars = "; error bars: standard error" if any(error for _, error in differences.values()) else ""
    figure.supxlabel(f"points of accuracy{bars}", size=9)
    axis.grid(axis="x", alpha=0.3)
    set_title(figure, title)
    figure.savefig(path)


def arm_colours(arms: Iterable[str]) -> dict[str, str]:
    """Returns the colour of each arm: one for what is ours, of others in their order."""
    others = cycle(COLOURS)
    return {arm: OURS if arm == "distilled" else next(others) for arm in arms}


def _mean_spread(accuracies: Sequence[float]) -> tuple[float, float]:
    """Returns mean and standard deviation in percent; no deviation of one value."""
    values = 100 * np.asarray(accuracies, dtype=float)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _of_seeds(accuracies: Iterable[Sequence[float]]) -> str:
    seeds = max(map(len, accuracies))
    return f", mean and deviation of {seeds} seeds" if seeds > 1 else ", one seed"


def _set_ticks_apart(axis: "Axes", labels: Mapping[int, str]) -> None:
    """Sets the ticks below a finished axis, of increasing places, without those whose labels run into others."""
    axis.set_xticks(list(labels), list(labels.values()))
    axis.figure.draw_without_rendering()  # type: ignore[union-attr]  # lays it out
    boxes = [label.get_window_extent() for label in axis.get_xticklabels()]
    gap = max(box.height for box in boxes)
    shown: list[int] = []
    left = math.inf  # of the label to the right
    for place, box in reversed(list(zip(labels, boxes, strict=True))):
        if box.x1 + gap <= left:
            shown.append(place)
            left = box.x0
    axis.set_xticks(shown[::-1], [labels[place] for place in shown[::-1]])


def _zoom(axis: "Axes", lowest: float, highest: float) -> None:
    """Cuts the empty lower part of the bars off where it is large, and says so."""
    span = max(highest - lowest, 5.0)
    bottom = max(0.0, 10 * math.floor((lowest - span) / 10))
    if bottom < 20:
        bottom = 0.0
    axis.set_ylim(bottom, highest + 0.12 * (highest - bottom))
    axis.set_yticks([tick for tick in axis.get_yticks() if bottom <= tick <= 100])
    axis.set_ylabel("accuracy in %" + (f" (axis starts at {bottom:.0f})" if bottom else ""))


SHOWN = 100  # images


def synthetic_images(synthetic: SyntheticSet) -> Figure:
    """Returns a figure of the first images of a set."""
    shown = synthetic.displayable()
    file = io.BytesIO()
    pictures.image_grid(shown, limit=SHOWN).save(file, "PNG", optimize=True)
    clipped = ((shown == 0) | (shown == 255)).float().mean().item()
    note = (
        f"The first {min(SHOWN, len(shown))} of {len(shown):,} images, {shown.shape[3]}x{shown.shape[2]} pixels each. "
        f"Values beyond what a screen can show are clipped: {clipped:.1%} are black or white here."
    )
    return Figure(data_url("png", file.getvalue()), "The synthetic images", note)


def draw_chart(draw: Callable[..., None], what: Any, **options: Any) -> Markup:
    """Returns a chart as an address that holds all of it, in SVG: sharp at any width."""
    import matplotlib

    # Letters as outlines need no font where they are shown, and a dollar in a name starts no formula.
    plain = matplotlib.rc_context({"svg.fonttype": "path", "text.parse_math": False})
    with plain, TemporaryDirectory() as folder:
        path = Path(folder, "chart.svg")
        draw(what, path, **options)
        return data_url("svg+xml", path.read_bytes())
