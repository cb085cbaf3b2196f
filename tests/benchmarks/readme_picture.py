"""Draws the picture of the README: images before and after distilling, and accuracy against bytes.

    python tests/benchmarks/tinyimagenet.py --out DIR --target-only
    lightly-distill distill --data tinyimagenet100-32#train --target timm:resnet10t@DIR/target.safetensors \
        --student convnet_32_64_128 --num-images 100 --steps 300 --batch-size 256 --out DIR/run
    python tests/benchmarks/readme_picture.py --run DIR/run --results tests/benchmarks/transfer/results/cpu.json

The run must be one of the command line, whose configuration names its images. Before and after are seen through the
same normalisation: pixels outside of what a screen can show are cut off.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightly_distill import SyntheticSet
from lightly_distill.data.source import open_source
from lightly_distill.runs.run_folder import run_config
from lightly_distill.runtime.words import size_text
from lightly_distill.synthetic.pictures import COLOURS, INK, OURS, image_grid, make_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OUT = Path(__file__).parents[2] / "examples" / "pictures" / "before_after.png"
SHOWN = 9  # images, one column each
MEASURE = "cifar10/linear@2000"
# Arm to what it is called, its colour, and where its name stands: points to the right of its point, and above.
ARMS = {
    "random": ("{} real, at random", COLOURS[1], (-12, -7)),
    "kmeans": ("{} real, by k-means", COLOURS[4], (-12, 7)),
    "distilled": ("{} distilled", OURS, (12, 0)),
    "full": ("all {} real", COLOURS[2], (-12, 0)),
}
TEXT = 15  # points: still to be read when a phone shows the picture at 400 pixels


def main() -> None:
    """Reads run and results, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    (results,) = json.loads(options.results.read_text())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(options.run, results, options.out)
    print(f"{options.out}: {options.out.stat().st_size} bytes")


def draw(run: Path, results: dict[str, Any], out: Path) -> None:
    """Draws both parts, one above the other.

    Args:
        run: Folder of `lightly-distill distill`.
        results: Of one student, as `evaluate` writes them.
        out: PNG to write.
    """
    synthetic = SyntheticSet.load(run)
    source = open_source(run_config(run)["data"], image_size=synthetic.images.shape[-1])
    before = source.read(synthetic.source_index[:SHOWN])
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


def _draw_accuracies(axis: "Axes", results: dict[str, Any]) -> None:
    for arm, (name, colour, beside) in ARMS.items():
        accuracies = 100 * np.array(results["arms"][arm][MEASURE])
        place = (results["bytes"][arm], accuracies.mean())
        axis.errorbar(*place, accuracies.std(ddof=1), fmt="o", color=colour, ecolor=INK, capsize=4, markersize=10)
        label, align = name.format(f"{results['images'][arm]:,}"), "left" if beside[0] > 0 else "right"
        axis.annotate(
            label, place, beside, textcoords="offset points", size=TEXT, color=INK, ha=align, va="center_baseline"
        )
    scratch = 100 * np.mean(results["arms"]["scratch"][MEASURE])
    axis.axhline(scratch, color=COLOURS[0], linestyle="--", linewidth=1.5)
    axis.text(9e7, scratch + 0.4, "not pre-trained", size=TEXT, color=INK, ha="right")
    axis.set_xscale("log")
    axis.set_xlim(1e4, 1e8)
    axis.set_ylim(42, 58.5)
    axis.set_xticks([1e5, 1e6, 1e7])
    axis.xaxis.set_major_formatter(lambda value, _: size_text(value))
    axis.tick_params(labelsize=TEXT)
    axis.minorticks_off()
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("bytes of images and representations", size=TEXT, color=INK)
    axis.set_ylabel("accuracy in %", size=TEXT, color=INK)


if __name__ == "__main__":
    main()
