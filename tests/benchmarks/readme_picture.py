"""Draws the picture of the README: images before and after distilling, and accuracy against bytes.

    python tests/benchmarks/transfer/worth.py --out DIR --num-images 300 --arms random@bytes random@bytes-x2
    cd tests/benchmarks/transfer/results
    python ../../readme_picture.py --set DIR/seed0/set --results worth-3.json --lossless worth-2.json

Each file of results has a list of evaluations, one of each seed. Those of --lossless are of real images that are stored
without loss, and of the arms that no set changes.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightly_distill import SyntheticSet
from lightly_distill.runtime.words import size_text
from lightly_distill.synthetic.pictures import COLOURS, INK, OURS, image_grid, make_figure

sys.path.insert(0, str(Path(__file__).parent / "transfer"))
from settings import real_images
from worth import IMAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OUT = Path(__file__).parents[2] / "examples" / "pictures" / "before_after.png"
SHOWN = 9  # images, one column each
MEASURE = "cifar10/linear@2000"
TEXT = 15  # points: still to be read when a phone shows the picture at 400 pixels
Results = list[dict[str, Any]]


def main() -> None:
    """Reads the set and results, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--lossless", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    results, lossless = (json.loads(file.read_text()) for file in (options.results, options.lossless))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(SyntheticSet.load(options.set), results, lossless, options.out)
    print(f"{options.out}: {options.out.stat().st_size} bytes")


def draw(synthetic: SyntheticSet, results: Results, lossless: Results, out: Path) -> None:
    """Draws both parts, one above the other.

    Args:
        synthetic: A distilled set.
        results: Of such sets and of real images that are stored as they are.
        lossless: Of real images that are stored without loss.
        out: PNG to write.
    """
    before = real_images(IMAGES).read(synthetic.source_index[:SHOWN])
    after = synthetic.displayable()[:SHOWN]
    figure = make_figure(8.3, 5.3)
    left, height = 130, int(figure.bbox.height)  # pixels
    for top, name, images in ((8, "before", before), (120, "after", after)):
        grid = np.asarray(image_grid(images, columns=SHOWN, scale_to=96))
        bottom = height - top - len(grid)
        figure.figimage(grid, left, bottom)  # pixel by pixel: an axis would blur them, and the file would be large
        middle = (bottom + len(grid) / 2) / height
        figure.text((left - 8) / figure.bbox.width, middle, name, size=TEXT, color=INK, ha="right", va="center")
    _draw_accuracies(figure.add_axes((0.12, 0.145, 0.86, 0.495)), results, lossless)
    figure.savefig(out)


def _accuracies(results: Results, arm: str) -> NDArray[np.float64]:
    return 100 * np.array([value for each in results for value in each["arms"][arm][MEASURE]])


def _draw_accuracies(axis: "Axes", results: Results, lossless: Results) -> None:
    bytes_of = "random@bytes"
    real = ["random", *(f"{bytes_of}{times}" for times in ("", "-x2", "-x5", "-x10"))]
    for found, arms, name, colour in (
        (results, ["distilled"], "300 distilled images", OURS),
        (results, [bytes_of, f"{bytes_of}-x2"], "real images, lossy too", COLOURS[4]),
        (lossless, real, "real images without loss", COLOURS[1]),
        (lossless, ["full"], "all 10,000 real images", COLOURS[2]),
    ):
        values = [_accuracies(found, arm) for arm in arms]
        places = [float(np.mean([each["bytes"][arm] for each in found])) for arm in arms]
        means, spread = [each.mean() for each in values], [each.std(ddof=1) for each in values]
        drawn: dict[str, Any] = {"color": colour, "ecolor": INK, "capsize": 4, "markersize": 9, "linewidth": 1.5}
        axis.errorbar(places, means, spread, fmt="o-", label=name, **drawn)
    axis.legend(loc=(0.42, 0.16), frameon=False, fontsize=TEXT, labelcolor=INK)
    scratch = _accuracies(lossless, "scratch").mean()
    axis.axhline(scratch, color=COLOURS[0], linestyle="--", linewidth=1.5)
    axis.text(2.8e7, scratch + 0.6, "not pre-trained", size=TEXT, color=INK, ha="right")
    axis.set_xscale("log")
    axis.set_xlim(3e4, 3e7)
    axis.set_ylim(41, 62)
    axis.set_xticks([1e5, 1e6, 1e7])
    axis.xaxis.set_major_formatter(lambda value, _: size_text(value))
    axis.tick_params(labelsize=TEXT)
    axis.minorticks_off()
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("bytes on disk, with targets", size=TEXT, color=INK)
    axis.set_ylabel("accuracy in %", size=TEXT, color=INK)


if __name__ == "__main__":
    main()
