"""Draws the picture of the README: images before and after distilling, and accuracy against bytes.

    cd tests/benchmarks/transfer/results
    python ../../readme_picture.py --set DIR/seed0/set --results worth-6.json worth-7.json

Each file of results has a list of evaluations of sets of one size, one of each seed, as `transfer/worth.py --out DIR`
leaves them; one of the files also has scratch and full.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightly_distill import SyntheticSet
from lightly_distill.runtime.words import size_text
from lightly_distill.synthetic.pictures import COLOURS, INK, OURS, image_grid, make_figure

sys.path.insert(0, str(Path(__file__).parent / "transfer"))
from settings import real_images
from worth import IMAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OUT = Path(__file__).resolve().parents[2] / "examples" / "pictures" / "before_after.png"
SHOWN = 9  # images, one column each
MEASURE = "cifar10/linear@2000"
ARMS = ("scratch", "distilled", "random@bytes", "random@bytes-x2", "random@bytes-x5", "full")
TEXT = 15  # points: still to be read when a phone shows the picture at 400 pixels
Results = list[dict[str, Any]]


def main() -> None:
    """Reads the set and results, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True)
    parser.add_argument("--results", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    results = [json.loads(file.read_text()) for file in options.results]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(SyntheticSet.load(options.set), results, options.out)
    print(f"{options.out}: {options.out.stat().st_size} bytes")


def draw(synthetic: SyntheticSet, results: Sequence[Results], out: Path) -> None:
    """Draws both parts, one above the other.

    Args:
        synthetic: A distilled set.
        results: Of such sets and of real images that are stored as they are, for each size.
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
    _draw_accuracies(figure.add_axes((0.12, 0.145, 0.86, 0.495)), results)
    figure.savefig(out)


def _point(results: Results, arm: str) -> tuple[float, float, float]:
    """Returns bytes, mean accuracy and its standard deviation over seeds, in %."""
    values = 100 * np.array([value for each in results for value in each["arms"][arm][MEASURE]])
    return float(np.mean([each["bytes"][arm] for each in results])), float(values.mean()), float(values.std(ddof=1))


def _draw_accuracies(axis: "Axes", results: Sequence[Results]) -> None:
    points = {arm: sorted(_point(one, arm) for one in results if arm in one[0]["arms"]) for arm in ARMS}
    for name, arms, colour in (
        ("distilled images", ["distilled"], OURS),
        ("random real images, stored alike", [arm for arm in ARMS if "bytes" in arm], COLOURS[4]),
        ("all 10,000 real images", ["full"], COLOURS[2]),
    ):
        places, means, spread = zip(*sorted(point for arm in arms for point in points[arm]), strict=True)
        drawn: dict[str, Any] = {"color": colour, "ecolor": INK, "capsize": 4, "markersize": 9, "linewidth": 1.5}
        axis.errorbar(places, means, spread, fmt="o-", label=name, **drawn)
    axis.legend(loc=(0.2, 0.16), frameon=False, fontsize=TEXT, labelcolor=INK)
    scratch = points["scratch"][0][1]
    axis.axhline(scratch, color=COLOURS[0], linestyle="--", linewidth=1.5)
    axis.text(4.8e6, scratch + 0.6, "not pre-trained", size=TEXT, color=INK, ha="right")
    axis.set_xscale("log")
    axis.set_xlim(3e4, 5e6)
    axis.set_ylim(41, 65)
    axis.set_xticks([5e4, 1e5, 3e5, 1e6, 3e6])
    axis.xaxis.set_major_formatter(lambda value, _: size_text(value))
    axis.tick_params(labelsize=TEXT)
    axis.minorticks_off()
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("bytes on disk, with targets", size=TEXT, color=INK)
    axis.set_ylabel("accuracy in %", size=TEXT, color=INK)


if __name__ == "__main__":
    main()
