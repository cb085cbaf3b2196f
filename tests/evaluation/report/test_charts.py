import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightly_distill.evaluation.report import charts
from lightly_distill.runs import curves
from lightly_distill.runtime import words
from lightly_distill.synthetic import pictures


def read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.fixture
def photos(real_data: Path) -> Tensor:
    file = pq.ParquetFile(next((real_data / "cifar10").glob("test-*.parquet")))
    rows = next(file.iter_batches(batch_size=12)).to_pylist()
    column = next(name for name, value in rows[0].items() if isinstance(value, dict))
    arrays = [np.array(Image.open(io.BytesIO(row[column]["bytes"])).convert("RGB")) for row in rows]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def test_the_grid_shows_each_image_enlarged_in_its_place() -> None:
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    grid = np.asarray(pictures.image_grid(images, columns=3))
    gap, side = 4, 64
    assert grid.shape == (2 * (side + gap) + gap, 3 * (side + gap) + gap, 3)
    for number, image in enumerate(images):
        top, left = (place * (side + gap) + gap for place in divmod(number, 3))
        cell = grid[top : top + side, left : left + side]
        assert (cell == image.permute(1, 2, 0).numpy().repeat(8, 0).repeat(8, 1)).all()
    assert (grid[:gap] == 255).all() and (grid[-side:, -side:] == 255).all()


def test_the_grid_of_large_or_many_images_stays_small() -> None:
    assert pictures.image_grid(torch.zeros(2, 3, 512, 256, dtype=torch.uint8)).size == (2 * 68 + 4, 128 + 8)
    assert pictures.image_grid(torch.zeros(1, 3, 512, 256, dtype=torch.uint8)).size == (64, 128)
    assert pictures.image_grid(torch.zeros(500, 3, 8, 8, dtype=torch.uint8)).size == (10 * 68 + 4, 10 * 68 + 4)


@pytest.mark.parametrize("count", [1, 12])
def test_before_and_after_stand_side_by_side_pixel_by_pixel(photos: Tensor, tmp_path: Path, count: int) -> None:
    before, after = photos[:count], photos[:count].flip(3)
    curves.before_after(before, after, tmp_path / "pair.png")
    seen = read(tmp_path / "pair.png")
    side = 512 if count == 1 else 128
    left, right = (np.asarray(pictures.image_grid(images, scale_to=side)) for images in (before, after))
    height, width, _ = left.shape
    assert (seen[-height:, :width] == left).all() and (seen[-height:, -width:] == right).all()
    assert (seen[:-height, :width] < 128).any() and (seen[:-height, -width:] < 128).any()  # the titles


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes that are drawn."""
    drawn: list[Axes] = []
    add = Figure.add_subplot

    def remember(figure: Figure, *args: Any, **options: Any) -> Axes:
        drawn.append(add(figure, *args, **options))
        return drawn[-1]

    monkeypatch.setattr(Figure, "add_subplot", remember)
    return drawn


def test_the_loss_curve_tells_first_and_last_numbers(tmp_path: Path, axes: list[Axes]) -> None:
    rows = [{"step": s, "loss": 1 / (s + 1), "heldout_loss": 0.9 - s / 100 if s % 20 == 0 else None} for s in range(41)]
    curves.loss_curve(rows, tmp_path / "loss.png")
    assert read(tmp_path / "loss.png").std() > 5
    (axis,) = axes
    batches, mean, held = axis.lines
    assert np.size(batches.get_xdata()) == np.size(mean.get_xdata()) == 41
    assert held.get_xdata() == pytest.approx([0, 20, 40]) and held.get_ydata() == pytest.approx([0.9, 0.7, 0.5])
    assert axis.get_title("left") == "Outer loss, held-out images: 0.9 to 0.5"
    assert axis.get_yscale() == "log" and "log scale" in axis.get_ylabel()


def test_a_short_run_has_ticks_at_whole_steps(tmp_path: Path, axes: list[Axes]) -> None:
    for steps in (1, 10, 23):
        curves.loss_curve([{"step": step, "loss": 1 / (step + 1)} for step in range(steps + 1)], tmp_path / "loss.png")
        low, high = axes[-1].get_xlim()
        shown = [tick for tick in axes[-1].get_xticks() if low <= tick <= high]
        assert len(shown) > 1 and all(float(tick).is_integer() for tick in shown)


def test_a_mean_of_single_batches_is_not_drawn_over_them(tmp_path: Path, axes: list[Axes]) -> None:
    for count in (39, 40):
        curves.loss_curve([{"step": step, "loss": 1 / (step + 1)} for step in range(count)], tmp_path / "loss.png")
    few, many = ([str(line.get_label()) for line in axis.lines] for axis in axes)
    assert few == ["real batches"] and many == ["real batches", "running mean (end: 0.0253)"]


def test_each_student_of_a_mixed_pool_has_a_line(tmp_path: Path, axes: list[Axes]) -> None:
    rows = [
        {"step": 0, "heldout_loss": 0.3, "heldout_loss_by_student": {"a": 0.2, "b": 0.4}},
        {"step": 1, "loss": 0.3},
        {"step": 2, "heldout_loss": 0.02, "heldout_loss_by_student": {"a": 0.01, "b": 0.03}},
    ]
    curves.loss_curve(rows, tmp_path / "loss.png")
    lines = {str(line.get_label()): line for line in axes[0].lines}
    assert lines["a (end: 0.01)"].get_ydata() == pytest.approx([0.2, 0.01])
    assert lines["b (end: 0.03)"].get_xdata() == pytest.approx([0, 2])
    low, high = axes[0].get_ylim()
    assert low < 0.01 and high > 0.4 and axes[0].get_title("left") == "Outer loss, held-out images: 0.3 to 0.02"


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 0, "heldout_loss": 0.3}, {"step": 1, "loss": 0.2}],
        [{"step": 1, "loss": 0.0}, {"step": 2, "loss": 1.0}],
    ],
)
def test_a_run_of_hardly_a_step_has_a_curve(tmp_path: Path, axes: list[Axes], rows: list[dict[str, float]]) -> None:
    curves.loss_curve(rows, tmp_path / "curve.png")
    assert axes[0].get_yscale() == "linear" and (tmp_path / "curve.png").exists()


def test_the_running_mean_is_as_long_as_its_values_and_keeps_a_constant() -> None:
    for window in (1, 2, 3, 7):
        assert curves._running_mean(np.full(9, 2.0), window) == pytest.approx(np.full(9, 2.0))
    assert curves._running_mean(np.arange(9.0), 3)[1:-1] == pytest.approx(np.arange(1.0, 8.0))


def test_bars_show_means_and_deviations_of_each_arm(tmp_path: Path, axes: list[Axes]) -> None:
    table = {"linear": {"scratch": [0.4, 0.5], "distilled": [0.6, 0.62]}, "knn": {"distilled": [0.7, 0.7]}}
    charts.accuracy_bars(table, tmp_path / "bars.png", "Digits")
    assert read(tmp_path / "bars.png").std() > 5
    (axis,) = axes
    assert [bar.get_height() for bar in axis.patches] == pytest.approx([45, 61, 70])  # type: ignore[attr-defined]
    assert [text.get_text() for text in axis.texts] == ["45.0", "61.0", "70.0"]
    assert [text.xy[1] for text in axis.texts] == pytest.approx([45 + 50**0.5, 61 + 2**0.5, 70])  # type: ignore[attr-defined]
    assert axis.get_legend_handles_labels()[1] == ["scratch", "distilled"]
    assert "2 seeds" in axis.get_xlabel() and axis.get_title("left") == "Digits"
    assert axis.get_ylabel() == "accuracy in %" and axis.get_ylim()[0] == 0


def test_an_axis_that_does_not_start_at_zero_says_so(tmp_path: Path, axes: list[Axes]) -> None:
    charts.accuracy_bars({"linear": {"random": [0.9], "distilled": [0.95]}}, tmp_path / "bars.png")
    (axis,) = axes
    assert axis.get_ylabel() == "accuracy in % (axis starts at 80)" and axis.get_ylim()[0] == 80
    assert max(axis.get_yticks()) <= 100 and "seeds" not in axis.get_xlabel()


ARMS = {"scratch": [0.4, 0.5], "distilled": [0.6, 0.62], "$a_b$\n": [0.7]}


def test_points_show_mean_deviation_and_each_seed(tmp_path: Path, axes: list[Axes]) -> None:
    charts.accuracy_points(ARMS, tmp_path / "points.png", "digits/linear")
    assert read(tmp_path / "points.png").std() > 5
    (axis,) = axes
    seeds = [line.get_xdata() for line in axis.lines if line.get_marker() == "|" and line.get_markersize() == 9]
    assert [list(np.asarray(values)) for values in seeds] == [pytest.approx(v) for v in ([40, 50], [60, 62], [70])]
    assert [text.get_text() for text in axis.texts] == ["45.0", "61.0", "70.0"]
    (low, _), (high, _) = axis.collections[0].get_segments()[0]  # type: ignore[attr-defined]
    assert (low, high) == pytest.approx((45 - 50**0.5, 45 + 50**0.5))
    assert [label.get_text() for label in axis.get_yticklabels()] == ["scratch", "distilled", "$a_b$"]
    assert axis.figure.get_suptitle() == "digits/linear"  # type: ignore[union-attr]
    assert axis.figure.get_supxlabel() == "accuracy in %, mean and deviation of 2 seeds"  # type: ignore[union-attr]


def test_accuracy_by_size_has_a_point_for_each_arm_and_a_line_for_those_without_images(
    tmp_path: Path, axes: list[Axes]
) -> None:
    sizes = dict(zip(ARMS, (0, 4000, 70_000), strict=True))
    charts.accuracy_by_size({arm: (sizes[arm], values) for arm, values in ARMS.items()}, tmp_path / "size.svg")
    (axis,) = axes
    assert (tmp_path / "size.svg").read_text().startswith("<?xml")
    assert axis.get_xscale() == "log" and axis.get_xlim() == pytest.approx((800, 125_000))
    handles, labels = axis.get_legend_handles_labels()
    drawn = dict(zip(labels, handles, strict=True))
    assert list(drawn) == ["scratch, no images", "distilled, 4 kB", "$a_b$, 70 kB"]
    assert drawn["scratch, no images"].get_ydata() == pytest.approx([45, 45])  # type: ignore[attr-defined]
    assert np.ravel(drawn["distilled, 4 kB"][0].get_xydata()) == pytest.approx([4000, 61])  # type: ignore[index]


def test_accuracy_by_images_has_a_curve_for_each_arm_and_lines_across(tmp_path: Path, axes: list[Axes]) -> None:
    curves = {"$a$": {50: [0.4, 0.5], 100: [0.5]}, "distilled": {50: [0.6, 0.62], 100: [0.7, 0.7]}}
    levels = {"scratch": [0.3, 0.32], "full": [0.8]}
    charts.accuracy_by_images(curves, tmp_path / "curve.svg", levels, "digits/linear", chosen=100)
    (axis,) = axes
    assert (tmp_path / "curve.svg").read_text().startswith("<?xml") and axis.get_xscale() == "log"
    handles, labels = axis.get_legend_handles_labels()
    drawn: Any = dict(zip(labels, handles, strict=True))
    assert set(drawn) == {"$a$", "distilled", "scratch", "full", "recommended: 100"}
    assert np.ravel(drawn["distilled"][0].get_xydata()) == pytest.approx([50, 61, 100, 70])
    low, high = drawn["distilled"][2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((61 - 2**0.5, 61 + 2**0.5))
    assert drawn["scratch"].get_ydata() == pytest.approx([31, 31])
    assert drawn["recommended: 100"].get_xdata() == [100, 100]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["50", "100"]
    assert axis.get_xlabel() == "images, log scale, mean and deviation of 2 seeds"


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ([50], [50]),
        ([10, 20], [10, 20]),
        ([50, 100, 200, 500], [50, 100, 200, 500]),
        ([10, 950, 1000], [10, 1000]),
        ([1_234_567, 1_234_568], [1_234_567, 1_234_568]),
    ],
)
def test_numbers_of_images_that_would_run_into_each_other_are_left_out(
    tmp_path: Path, axes: list[Axes], counts: list[int], shown: list[int]
) -> None:
    charts.accuracy_by_images({"distilled": {count: [0.5] for count in counts}}, tmp_path / "curve.png", {})
    (axis,) = axes
    assert [label.get_text() for label in axis.get_xticklabels()] == [f"{count:,}" for count in shown]


@pytest.mark.parametrize("of_bytes", [False, True])
@pytest.mark.parametrize(
    "counts", [[90, 100, 110, 120, 130], [9980, 10_020, 11_900, 23_400], [145_000 + 1000 * n for n in range(9)]]
)
def test_close_numbers_below_a_chart_do_not_touch(
    tmp_path: Path, axes: list[Axes], counts: list[int], of_bytes: bool
) -> None:
    curves = {"distilled": {count: [0.5, 0.6] for count in counts}}
    charts.accuracy_by_images(curves, tmp_path / "curve.svg", {}, of_bytes=of_bytes)
    boxes = [label.get_window_extent() for label in axes[0].get_xticklabels()]
    assert len(boxes) > 1 and all(right.x0 - left.x1 > 3 for left, right in pairwise(boxes))
    assert boxes[-1].x1 < axes[0].figure.bbox.x1


def test_difference_bars_go_both_ways_from_zero(tmp_path: Path, axes: list[Axes]) -> None:
    charts.difference_bars({"a" * 30: (3.0, 0.5), "b": (-1.25, None)}, tmp_path / "bars.png", "knn")
    assert read(tmp_path / "bars.png").std() > 5
    (axis,) = axes
    assert [bar.get_width() for bar in axis.patches] == [3.0, -1.25]  # type: ignore[attr-defined]
    assert [text.get_text() for text in axis.texts] == ["+3.0", "-1.2"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a" * 21 + "...", "b"]
    low, high = axis.get_xlim()
    assert low < -1.25 and high > 3.5


def test_sizes_have_three_digits_and_a_unit() -> None:
    sizes = (0, 999, 999.6, 1272, 18_321_000, 256e6, 999.7e6, 2.5e12, 3e15)
    told = ["0 B", "999 B", "1 kB", "1.27 kB", "18.3 MB", "256 MB", "1 GB", "2.5 TB", "3e+03 TB"]
    assert [words.size_text(size) for size in sizes] == told


def test_distilled_keeps_its_colour_and_others_have_their_own() -> None:
    colours = charts.arm_colours(["scratch", "distilled", "random"])
    assert colours == {"scratch": pictures.COLOURS[0], "distilled": pictures.OURS, "random": pictures.COLOURS[1]}
