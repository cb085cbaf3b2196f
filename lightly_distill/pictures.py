"""Pictures: grids of images, loss curves, bars of accuracies. matplotlib is imported where it is needed: it is slow."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightly_distill.page import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

# Okabe and Ito's palette, which colour-blind people can tell apart; orange is kept for what is ours.
OURS = "#E69F00"
COLOURS = ("#999999", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00")
INK = "#222222"
DPI = 130
NARROW = 4.4  # inches: still to be read when scaled to a phone


def image_grid(images: Tensor, *, columns: int | None = None, limit: int = 100, scale_to: int = 64) -> "Image":
    """Lays images out in one picture.

    Args:
        images: uint8, shape (n, 3, H, W).
        columns: Default: as square as possible.
        limit: The first so many are shown.
        scale_to: Small images are enlarged by a whole number to about this many pixels, so that one can see them;
            those more than twice as large are reduced to twice this.
    """
    from PIL import Image

    images = images[:limit].cpu()
    count, _, height, width = images.shape
    factor: float = max(1, round(scale_to / width))
    if max(height, width) > 2 * scale_to:
        factor = 2 * scale_to / max(height, width)
    height, width = max(1, round(height * factor)), max(1, round(width * factor))
    how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BOX
    columns = columns or math.ceil(math.sqrt(count))
    rows, gap = -(-count // columns), max(2, scale_to // 16)
    grid = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for number, image in enumerate(images.permute(0, 2, 3, 1).contiguous().numpy()):
        row, column = divmod(number, columns)
        tile = Image.fromarray(image).resize((width, height), how)
        grid.paste(tile, (column * (width + gap) + gap, row * (height + gap) + gap))
    return grid


def before_after(before: Tensor, after: Tensor, path: Path) -> None:
    """Draws two grids side by side: the images that the set started from, and what became of them.

    Args:
        before: uint8, shape (n, 3, H, W).
        after: As `before`, in the same order.
        path: PNG to write.
    """
    limit = 64
    scale_to = 512 // math.ceil(math.sqrt(min(limit, len(before))))  # few images are shown larger: room for titles
    left, right = (np.asarray(image_grid(images, limit=limit, scale_to=scale_to)) for images in (before, after))
    height, width, _ = left.shape
    title, gap = 48, 24  # pixels
    canvas = np.full((height + title, 2 * width + gap, 3), 255, dtype=np.uint8)
    canvas[title:, :width], canvas[title:, width + gap :] = left, right
    figure = _figure(canvas.shape[1] / DPI, canvas.shape[0] / DPI)
    figure.figimage(canvas)  # pixel by pixel: an axis would blur them
    for place, text in ((width / 2, "Starting images"), (width * 1.5 + gap, "Distilled images")):
        middle = 1 - title / 2 / len(canvas)
        figure.text(place / canvas.shape[1], middle, text, size=14, color=INK, ha="center", va="center")
    figure.savefig(path)


def loss_curve(rows: Sequence[Mapping[str, Any]], path: Path, width: float = 7.2) -> None:
    """Draws the outer loss by step.

    Args:
        rows: Of metrics.jsonl: `step`, and `loss` or `heldout_loss` or both; in a mixed pool also
            `heldout_loss_by_student`, of which each is drawn.
        path: PNG or SVG to write.
        width: In inches.
    """
    losses, held = _column(rows, "loss"), _column(rows, "heldout_loss")
    figure = _figure(width, 4.4)
    axis = _axis(figure)
    if len(losses):
        axis.plot(*losses.T, color=COLOURS[1], alpha=0.4, linewidth=0.8, label="real batches")
        window = max(1, len(losses) // 20)
        mean = _running_mean(losses[:, 1], window)
        axis.plot(losses[:, 0], mean, color=COLOURS[4], linewidth=2, label=f"running mean (end: {mean[-1]:.3g})")
    if len(held):
        label = f"held-out images (end: {held[-1, 1]:.3g})"
        axis.plot(*held.T, "o-", color=OURS, linewidth=1.5, markersize=5, markeredgecolor="white", label=label)
    by_student = [{"step": row["step"], **row.get("heldout_loss_by_student", {})} for row in rows]
    students = list(dict.fromkeys(name for row in by_student for name in row if name != "step"))
    curves = [_column(by_student, name) for name in students]
    for name, curve, style in zip(students, curves, cycle(("--", ":", "-.")), strict=False):
        axis.plot(*curve.T, style, color=OURS, linewidth=1.2, label=f"{one_line(name)} (end: {curve[-1, 1]:.3g})")
    drawn = held if len(held) > 1 else losses
    title = "Outer loss"
    if len(drawn) > 1:
        title += f", {'held-out images' if drawn is held else 'real batches'}: {drawn[0, 1]:.3g} to {drawn[-1, 1]:.3g}"
    axis.set_title(title, size=12, color=INK, loc="left", pad=10)
    axis.set_xlabel("outer step")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_ylabel("mean squared error")
    _scale(axis, np.concatenate([losses[:, 1], held[:, 1], *(curve[:, 1] for curve in curves)]))
    axis.grid(axis="y", alpha=0.3)
    if len(losses) or len(held):
        columns = 1 if width < 6 else 2 if curves else 3
        figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=columns)
    figure.savefig(path)


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
    figure = _figure(max(6.0, 1.5 + 0.62 * len(arms) * len(table) + 0.09 * max(map(len, arms))), 4.2)
    axis = _axis(figure)
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
    figure = _figure(NARROW, 1.25 + 0.34 * len(arms))
    axis = _axis(figure)
    colours = arm_colours(arms)
    for row, (arm, accuracies) in enumerate(arms.items()):
        mean, spread = _mean_spread(accuracies)
        # Each seed is there, faintly: three values are no distribution.
        axis.plot(100 * np.asarray(accuracies), [row] * len(accuracies), "|", color=colours[arm], markersize=9)
        axis.errorbar(mean, row, xerr=spread or None, fmt="o", color=colours[arm], ecolor=INK, capsize=3, markersize=8)
        axis.annotate(f"{mean:.1f}", (mean, row), (0, 6), textcoords="offset points", ha="center", size=8, color=INK)
    axis.set_yticks(range(len(arms)), [_short(arm) for arm in arms])
    axis.set_ylim(len(arms) - 0.5, -0.7)  # the first on top, with room for its number
    axis.margins(x=0.08)
    figure.supxlabel(f"accuracy in %{_of_seeds(arms.values())}", size=9)
    axis.grid(axis="x", alpha=0.3)
    _title(figure, title)
    figure.savefig(path)


def accuracy_by_size(arms: Mapping[str, tuple[int, Sequence[float]]], path: Path, title: str = "") -> None:
    """Draws accuracy against the size of what a student was pre-trained on, a point for each arm.

    Args:
        arms: Arm to bytes and accuracies in [0, 1], one for each seed. An arm of no bytes is a line across.
        path: PNG or SVG to write.
        title: Above the picture.
    """
    figure = _figure(NARROW, 3.6)
    axis = _axis(figure)
    colours = arm_colours(arms)
    for (arm, (size, accuracies)), marker in zip(arms.items(), cycle("os^DvPX"), strict=False):
        mean, spread = _mean_spread(accuracies)
        if size:
            label = f"{_short(arm)}, {size_text(size)}"
            axis.errorbar(
                size, mean, spread or None, fmt=marker, color=colours[arm], ecolor=INK, capsize=3, label=label
            )
        else:
            axis.axhline(mean, color=colours[arm], linestyle="--", linewidth=1.5, label=f"{_short(arm)}, no images")
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
    _title(figure, title)
    figure.savefig(path)


def accuracy_by_images(
    curves: Mapping[str, Mapping[int, Sequence[float]]],
    path: Path,
    levels: Mapping[str, Sequence[float]],
    title: str = "",
    chosen: int | None = None,
) -> None:
    """Draws accuracy against the number of images that a student was pre-trained on.

    Args:
        curves: Arm to number of images to accuracies in [0, 1], one for each seed; error bars are their standard
            deviation.
        path: PNG or SVG to write.
        levels: Arms whose accuracies depend on no number of images: lines across.
        title: Above the picture.
        chosen: A number of images to mark.
    """
    figure = _figure(NARROW, 3.8)
    axis = _axis(figure)
    colours = arm_colours([*curves, *levels])
    for (arm, curve), marker in zip(curves.items(), cycle("os^DvPX"), strict=False):
        means, spreads = zip(*map(_mean_spread, curve.values()), strict=True)
        look: dict[str, Any] = {"fmt": f"{marker}-", "color": colours[arm], "capsize": 3, "linewidth": 1.5}
        axis.errorbar(list(curve), means, spreads, **look, label=_short(arm))
    for (arm, accuracies), style in zip(levels.items(), cycle(("--", ":", "-.")), strict=False):
        mean, spread = _mean_spread(accuracies)
        axis.axhline(mean, color=colours[arm], linestyle=style, linewidth=1.5, label=_short(arm))
        axis.axhspan(mean - spread, mean + spread, color=colours[arm], alpha=0.12, linewidth=0)
    if chosen is not None:
        axis.axvline(chosen, color=INK, linestyle=(0, (1, 3)), linewidth=1.5, label=f"recommended: {chosen:,}")
    counts = sorted({count for curve in curves.values() for count in curve})
    axis.set_xscale("log")
    axis.set_xlim(counts[0] / 1.25, counts[-1] * 1.25)
    ticks = _apart(counts)
    axis.set_xticks(ticks, [f"{count:,}" for count in ticks])
    axis.set_xticks([], minor=True)
    axis.margins(y=0.1)
    values = [accuracies for curve in curves.values() for accuracies in curve.values()]
    axis.set_xlabel(f"images, log scale{_of_seeds(values)}", size=9)
    axis.set_ylabel("accuracy in %", size=9)
    axis.grid(alpha=0.3)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    _title(figure, title)
    figure.savefig(path)


def difference_bars(differences: Mapping[str, tuple[float, float | None]], path: Path, title: str = "") -> None:
    """Draws differences of accuracy as bars from zero, a row for each student.

    Args:
        differences: Student to difference in points of accuracy and its standard error, None where that is not known.
        path: PNG or SVG to write.
        title: Above the picture.
    """
    figure = _figure(NARROW, 1.25 + 0.4 * len(differences))
    axis = _axis(figure)
    for row, (mean, error) in enumerate(differences.values()):
        bar = axis.barh(row, mean, 0.6, xerr=error, color=OURS, ecolor=INK, capsize=3)
        axis.bar_label(bar, [f"{mean:+.1f}"], padding=4, size=9, color=INK)
    axis.axvline(0, color=INK, linewidth=1)
    axis.set_yticks(range(len(differences)), [_short(student) for student in differences])
    axis.set_ylim(len(differences) - 0.4, -0.6)
    axis.margins(x=0.3)  # for the numbers
    bars = "; error bars: standard error" if any(error for _, error in differences.values()) else ""
    figure.supxlabel(f"points of accuracy{bars}", size=9)
    axis.grid(axis="x", alpha=0.3)
    _title(figure, title)
    figure.savefig(path)


def arm_colours(arms: Iterable[str]) -> dict[str, str]:
    """Returns the colour of each arm: one for what is ours, of others in their order."""
    others = cycle(COLOURS)
    return {arm: OURS if arm == "distilled" else next(others) for arm in arms}


def size_text(size: float) -> str:
    """Returns a number of bytes for people, with three digits: 18.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _figure(width: float, height: float) -> "Figure":
    """Makes a figure, in inches, that belongs to nobody's pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def _axis(figure: "Figure") -> "Axes":
    figure.set_layout_engine("constrained")
    axis = figure.add_subplot()
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)
    return axis


def _title(figure: "Figure", title: str) -> None:
    # Above all of a narrow figure, not of its axis, which long names may push to the right.
    lines = textwrap.wrap(one_line(title), 50, max_lines=3, placeholder=" ...")
    figure.suptitle("\n".join(lines), x=0.02, ha="left", size=10, color=INK)


def _short(name: str) -> str:
    name = one_line(name)
    return name if len(name) <= 24 else f"{name[:21]}..."


def _mean_spread(accuracies: Sequence[float]) -> tuple[float, float]:
    """Returns mean and standard deviation in percent; no deviation of one value."""
    values = 100 * np.asarray(accuracies, dtype=float)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _of_seeds(accuracies: Iterable[Sequence[float]]) -> str:
    seeds = max(map(len, accuracies))
    return f", mean and deviation of {seeds} seeds" if seeds > 1 else ", one seed"


def _apart(counts: Sequence[int]) -> list[int]:
    """Returns those of increasing counts whose numbers do not run into each other on a logarithmic axis."""
    shown = [counts[-1]]
    room = math.log(counts[-1] / counts[0]) / 6
    for count in reversed(counts[:-1]):
        if math.log(shown[-1] / count) >= room:
            shown.append(count)
    return shown[::-1]


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    """Returns step and value of the rows that have the value, shape (k, 2)."""
    return np.array([(row["step"], row[name]) for row in rows if row.get(name) is not None], dtype=float).reshape(-1, 2)


def _running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    padded = np.pad(values, (window // 2, window - 1 - window // 2), mode="edge")
    mean: NDArray[np.float64] = np.convolve(padded, np.ones(window) / window, mode="valid").astype(np.float64)
    return mean


def _scale(axis: "Axes", values: NDArray[np.float64]) -> None:
    """Makes the axis logarithmic where the values span enough for it, with ticks that one can read."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if len(values) and 0 < 3 * values.min() < values.max():
        axis.set_yscale("log")
        subs = (1.0, 2.0, 5.0) if values.max() > 30 * values.min() else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
        axis.yaxis.set_major_locator(LogLocator(subs=subs))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_ylabel("mean squared error, log scale")


def _zoom(axis: "Axes", lowest: float, highest: float) -> None:
    """Cuts the empty lower part of the bars off where it is large, and says so."""
    span = max(highest - lowest, 5.0)
    bottom = max(0.0, 10 * math.floor((lowest - span) / 10))
    if bottom < 20:
        bottom = 0.0
    axis.set_ylim(bottom, highest + 0.12 * (highest - bottom))
    axis.set_yticks([tick for tick in axis.get_yticks() if bottom <= tick <= 100])
    axis.set_ylabel("accuracy in %" + (f" (axis starts at {bottom:.0f})" if bottom else ""))
