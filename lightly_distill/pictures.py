"""Pictures: grids of images, loss curves, bars of accuracies. matplotlib is imported where it is needed: it is slow."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

# Okabe and Ito's palette, which colour-blind people can tell apart; orange is kept for what is ours.
OURS = "#E69F00"
COLOURS = ("#999999", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00")
INK = "#222222"
DPI = 130


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


def loss_curve(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the outer loss by step.

    Args:
        rows: Of metrics.jsonl: `step`, and `loss` or `heldout_loss` or both.
        path: PNG to write.
    """
    losses, held = _column(rows, "loss"), _column(rows, "heldout_loss")
    figure = _figure(7.2, 4.4)
    axis = _axis(figure)
    if len(losses):
        axis.plot(*losses.T, color=COLOURS[1], alpha=0.4, linewidth=0.8, label="real batches")
        window = max(1, len(losses) // 20)
        mean = _running_mean(losses[:, 1], window)
        axis.plot(losses[:, 0], mean, color=COLOURS[4], linewidth=2, label=f"running mean (end: {mean[-1]:.3g})")
    if len(held):
        label = f"held-out images (end: {held[-1, 1]:.3g})"
        axis.plot(*held.T, "o-", color=OURS, linewidth=1.5, markersize=5, markeredgecolor="white", label=label)
    drawn = held if len(held) > 1 else losses
    title = "Outer loss"
    if len(drawn) > 1:
        title += f", {'held-out images' if drawn is held else 'real batches'}: {drawn[0, 1]:.3g} to {drawn[-1, 1]:.3g}"
    axis.set_title(title, size=12, color=INK, loc="left", pad=10)
    axis.set_xlabel("outer step")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_ylabel("mean squared error")
    _scale(axis, np.concatenate([losses[:, 1], held[:, 1]]))
    axis.grid(axis="y", alpha=0.3)
    if len(losses) or len(held):
        figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=3)
    figure.savefig(path)


def accuracy_bars(table: Mapping[str, Mapping[str, Sequence[float]]], path: Path, title: str = "") -> None:
    """Draws accuracies as grouped bars.

    Args:
        table: Probe to arm to accuracies in [0, 1], one for each seed; error bars are their standard deviation.
        path: PNG to write.
        title: Above the picture.
    """
    arms = list(dict.fromkeys(arm for probe in table.values() for arm in probe))
    others = [arm for arm in arms if arm != "distilled"]
    seeds = max(len(values) for probe in table.values() for values in probe.values())
    figure = _figure(max(6.0, 1.5 + 0.62 * len(arms) * len(table) + 0.09 * max(map(len, arms))), 4.2)
    axis = _axis(figure)
    step = 0.84 / len(arms)
    tops = []
    for number, arm in enumerate(arms):
        present = [place for place, probe in enumerate(table.values()) if arm in probe]
        seen = [100 * np.asarray(probe[arm], dtype=float) for probe in table.values() if arm in probe]
        means = [float(values.mean()) for values in seen]
        spreads = [float(values.std(ddof=1)) if len(values) > 1 else 0.0 for values in seen]
        places = np.array(present) + (number - (len(arms) - 1) / 2) * step
        colour = OURS if arm == "distilled" else COLOURS[others.index(arm) % len(COLOURS)]
        axis.bar(places, means, step * 0.9, color=colour, label=arm)
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


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    """Returns step and value of the rows that have the value, shape (k, 2)."""
    return np.array([(row["step"], row[name]) for row in rows if row.get(name) is not None], dtype=float).reshape(-1, 2)


def _running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    padded = np.pad(values, (window // 2, window - 1 - window // 2), mode="edge")
    return np.convolve(padded, np.ones(window) / window, mode="valid")


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
