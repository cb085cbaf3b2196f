"""Pictures: grids of images, loss curves, bars of accuracies. matplotlib is imported where it is needed: it is slow."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

# Okabe and Ito's palette, which colour-blind people can tell apart
COLOURS = ("#999999", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00")
INK = "#222222"


def image_grid(images: Tensor, *, columns: int | None = None, limit: int = 100, side: int = 64) -> "Image":
    """Lays images out in one picture.

    Args:
        images: uint8, shape (n, 3, H, W).
        columns: Default: as square as possible.
        limit: The first so many are shown.
        side: Small images are enlarged by a whole number to about this many pixels, so that one can see them.
    """
    from PIL import Image

    images = images[:limit]
    factor = max(1, round(side / images.shape[-1]))
    images = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    count, _, height, width = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows, gap = -(-count // columns), max(2, side // 16)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, dtype=np.uint8)
    for number, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = (
            place * (size + gap) + gap for place, size in zip(divmod(number, columns), (height, width), strict=True)
        )
        canvas[top : top + height, left : left + width] = image
    return Image.fromarray(canvas)


def before_after(before: Tensor, after: Tensor, path: Path) -> None:
    """Draws two grids side by side: what the set started from and what it became. uint8, shape (n, 3, H, W)."""
    grids = [image_grid(images, limit=64) for images in (before, after)]
    ratio = grids[0].height / grids[0].width
    figure, axes = _figure(11, 5.5 * ratio + 0.5, columns=2)
    for axis, grid, title in zip(axes, grids, ("at the start: real images", "distilled"), strict=True):
        axis.imshow(np.asarray(grid), interpolation="antialiased")
        axis.set_title(title, color=INK, fontsize=13)
        axis.set_axis_off()
    figure.savefig(path)


def loss_curve(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the outer loss by step.

    Args:
        rows: Of metrics.jsonl: `step`, and `loss` or `heldout_loss` or both.
        path: PNG to write.
    """
    figure, (axis,) = _figure(7, 4)
    losses = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    held = [(row["step"], row["heldout_loss"]) for row in rows if row.get("heldout_loss") is not None]
    if losses:
        steps, values = (np.array(column, dtype=float) for column in zip(*losses, strict=True))
        axis.plot(steps, values, color=COLOURS[1], alpha=0.35, linewidth=1)
        window = max(1, len(values) // 20)
        padded = np.pad(values, (window // 2, window - 1 - window // 2), mode="edge")
        smooth = np.convolve(padded, np.ones(window) / window, mode="valid")
        axis.plot(steps, smooth, color=COLOURS[5], linewidth=2, label="real batches (one student each)")
    if held:
        steps, values = (np.array(column, dtype=float) for column in zip(*held, strict=True))
        label = f"held-out real images (mean of the pool): {values[0]:.3g} to {values[-1]:.3g}"
        axis.plot(steps, values, "o-", color=COLOURS[6], linewidth=1.5, markersize=5, label=label)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:.3g}")
    axis.yaxis.set_minor_formatter("{x:.2g}")
    axis.tick_params(which="minor", labelsize=8)
    axis.set_xlabel("outer step")
    axis.set_ylabel("outer loss (mean squared error)")
    axis.grid(axis="y", alpha=0.25)
    axis.legend(frameon=False, fontsize=9)
    figure.savefig(path)


def accuracy_bars(table: Mapping[str, Mapping[str, Sequence[float]]], path: Path, title: str = "") -> None:
    """Draws accuracies as grouped bars.

    Args:
        table: Probe to arm to accuracies in [0, 1], one for each seed; error bars are their standard deviation.
        path: PNG to write.
        title: Above the picture.
    """
    arms = list(next(iter(table.values())))
    figure, (axis,) = _figure(2.2 + 1.1 * len(arms) * len(table) / 1.6, 4.2)
    step = 0.8 / len(arms)
    lowest = min(np.mean(values) for probe in table.values() for values in probe.values())
    for number, arm in enumerate(arms):
        means = [100 * float(np.mean(table[probe][arm])) for probe in table]
        spreads = [
            100 * float(np.std(table[probe][arm], ddof=1)) if len(table[probe][arm]) > 1 else 0 for probe in table
        ]
        places = np.arange(len(table)) + (number - (len(arms) - 1) / 2) * step
        bars = axis.bar(places, means, step * 0.92, color=COLOURS[number % len(COLOURS)], label=arm)
        if any(spreads):
            axis.errorbar(places, means, spreads, fmt="none", ecolor=INK, capsize=3, linewidth=1)
        axis.bar_label(bars, fmt="%.1f", fontsize=9, padding=2 if not any(spreads) else 6, color=INK)
    bottom = max(0, 10 * np.floor(100 * lowest / 10) - 10)
    axis.set_ylim(bottom, 102)
    axis.set_ylabel("accuracy in %" + (f" (axis starts at {bottom:.0f})" if bottom else ""))
    axis.set_xticks(np.arange(len(table)), list(table))
    axis.set_title(title, color=INK, fontsize=11)
    axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, "list[Axes]"]:
    """Makes a figure that belongs to nobody's pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, columns, number + 1) for number in range(columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes
