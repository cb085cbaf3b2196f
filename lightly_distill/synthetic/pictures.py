"""The grid of images, and how all pictures look. matplotlib and torchvision are imported inside: they are slow."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lightly_distill.runtime.words import one_line

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
    """Lays images out in one picture, with white between and around them; a single image has none around it.

    Args:
        images: uint8, shape (n, 3, H, W).
        columns: Default: as square as possible.
        limit: The first so many are shown.
        scale_to: Small images are enlarged by a whole number to about this many pixels, so that one can see them;
            those more than twice as large are reduced to twice this.
    """
    from torchvision.transforms.functional import InterpolationMode, resize, to_pil_image
    from torchvision.utils import make_grid

    images = images[:limit].cpu()
    count, _, height, width = images.shape
    factor: float = max(1, round(scale_to / width))
    if max(height, width) > 2 * scale_to:
        factor = 2 * scale_to / max(height, width)
    shape = [max(1, round(height * factor)), max(1, round(width * factor))]
    tiles = resize(images, shape, InterpolationMode.NEAREST if factor >= 1 else InterpolationMode.BILINEAR)
    columns, gap = columns or math.ceil(math.sqrt(count)), max(2, scale_to // 16)
    picture: Image = to_pil_image(make_grid(tiles, nrow=columns, padding=gap, pad_value=255))
    return picture


def labelled(images: Tensor, labels: Sequence[str], title: str, path: Path) -> None:
    """Draws images with a line of text above each.

    Args:
        images: uint8, shape (n, 3, H, W).
        labels: Of each.
        title: Of the picture.
        path: PNG to write.
    """
    columns = min(3, len(images))
    lines = math.ceil(len(images) / columns)
    side = images.shape[-2] / images.shape[-1]
    figure = make_figure(2.9 * columns, (2.6 * side + 0.3) * lines + 0.5)
    figure.set_layout_engine("constrained")
    for number, (image, label) in enumerate(zip(images.cpu(), labels, strict=True), start=1):
        axis = figure.add_subplot(lines, columns, number)
        axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(one_line(label), size=8, color=INK)
        axis.axis("off")
    figure.suptitle(title, size=10, color=INK)
    figure.savefig(path)


def make_figure(width: float, height: float) -> "Figure":
    """Makes a figure, in inches, that belongs to nobody's pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def make_axis(figure: "Figure") -> "Axes":
    """Adds the only axis of a figure."""
    figure.set_layout_engine("constrained")
    axis = figure.add_subplot()
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)
    return axis


def set_title(figure: "Figure", title: str) -> None:
    """Sets a title of up to three lines above all of a narrow figure."""
    # Above all of a narrow figure, not of its axis, which long names may push to the right.
    lines = textwrap.wrap(one_line(title), 50, max_lines=3, placeholder=" ...")
    figure.suptitle("\n".join(lines), x=0.02, ha="left", size=10, color=INK)


def short_name(name: str) -> str:
    """Returns a name that fits beside an axis."""
    name = one_line(name)
    return name if len(name) <= 24 else f"{name[:21]}..."
