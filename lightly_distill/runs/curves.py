"""The pictures of a run: its images before and after, and its loss."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightly_distill.runtime.words import one_line
from lightly_distill.synthetic.pictures import COLOURS, DPI, INK, OURS, image_grid, make_axis, make_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    figure = make_figure(canvas.shape[1] / DPI, canvas.shape[0] / DPI)
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
    figure = make_figure(width, 4.4)
    axis = make_axis(figure)
    if len(losses):
        dots = "." if len(losses) < 3 else ""  # so few make no line that one sees
        axis.plot(*losses.T, marker=dots, color=COLOURS[1], alpha=0.4, linewidth=0.8, label="real batches")
        window = len(losses) // 20
        if window > 1:  # else it would be the same line, and hide it
            mean = _running_mean(losses[:, 1], window)
            label = f"running mean (end: {mean[-1]:.3g})"
            axis.plot(losses[:, 0], mean, color=COLOURS[4], linewidth=2, label=label)
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
    axis.locator_params(axis="x", integer=True)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_ylabel("mean squared error")
    _scale(axis, np.concatenate([losses[:, 1], held[:, 1], *(curve[:, 1] for curve in curves)]))
    axis.grid(axis="y", alpha=0.3)
    if len(losses) or len(held):
        columns = 1 if width < 6 else 2 if curves else 3
        figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=columns)
    figure.savefig(path)


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
