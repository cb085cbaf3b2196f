import re
from pathlib import Path
from typing import Any

import pytest

from lightly_distill.evaluation.results import ArmResult, Evaluation
from lightly_distill.evaluation.sweep import sweep_report
from lightly_distill.evaluation.sweep.record import SizeResult, Sweep
from lightly_distill.evaluation.sweep.search import Found
from lightly_distill.runtime import words
from pages import NASTY, Parser, browser, markdown_rows, opened
from synthetic_sets import make_set

CURVE = {50: 0.5, 100: 0.6, 200: 0.605, 500: 0.61}
MEASURES = ("digits/knn@10", "digits/linear@10")


def made_up(
    *,
    students: tuple[str, ...] = ("tiny",),
    curve: dict[int, float] = CURVE,
    seeds: int = 3,
    full: bool = True,
    searched: bool = False,
    full_seconds: float = 90.0,
    ahead: float = 0.1,
    measures: tuple[str, ...] = MEASURES,
) -> Sweep:
    """Seeds spread by a point, in another order where it is less; random is `ahead` below distilled."""
    steps = [0.01 * (seed - (seeds - 1) / 2) for seed in range(seeds)]

    def arm(mean: float, images: int, seconds: float, order: int = 1) -> ArmResult:
        values = [mean + step for step in steps[::order]]
        return ArmResult(images, 1000 * images, [seconds] * seeds, dict.fromkeys(measures, values))

    def result(student: str, size: int, mean: float) -> Evaluation:
        arms = {"scratch": arm(0.3, 0, 0.0, -1), "random": arm(mean - ahead, size, 3.0, -1)}
        arms |= {"distilled": arm(mean, size, 3.0)}
        arms |= {"full": arm(0.7, 5000, full_seconds)} if full else {}
        return Evaluation(student, {"steps": 7}, list(range(seeds)), arms)

    settings: dict[str, Any] = {
        "distill": {"student": "tiny", "steps": 9, "pool": {"size": 3}},
        "source": {"name": "photos", "fingerprint": "ab", "images": 5000},
        "target": {"name": "timm:x", "sha256": "cd"},
        "evaluate": {
            "student": list(students),
            "arms": [],
            "tasks": ["digits"],
            "labels": [None, 10],
            "seeds": [0, 1, 2],
        },
        "search": {"names": ["lr"], "trials": 2, "images": 50} if searched else None,
    }
    losses = ((0.02, 0.4), (0.05, 0.3), (0.5, None))
    trials = [{"settings": {"outer.lr_images": rate}, "heldout_loss": loss} for rate, loss in losses]
    found = Found({"outer.lr_images": 0.05}, trials, 1, 261.0) if searched else None
    sizes = {
        size: SizeResult(6.0 * size, {}, [result(student, size, mean) for student in students])
        for size, mean in curve.items()
    }
    return Sweep(settings, found, sizes)


def written(folder: Path, sweep: Sweep) -> tuple[Parser, str]:
    sweep_report.write(sweep, make_set(), folder)
    return Parser((folder / "sweep.html").read_text("utf-8")), (folder / "sweep.md").read_text("utf-8")


def test_both_files_tell_the_recommendation_the_curve_and_the_cost(tmp_path: Path) -> None:
    seen, text = written(tmp_path, made_up())
    # 600 s of distilling, 87 s saved each time: 6.9
    for told in (seen.text, text):
        assert (
            "Smallest set within 1 point of the best: 100 images. By linear@10, the mean over 1 task and 1 student:"
            in told
        )
        assert (
            "60.0 ± 1.0 %; the best, 500 images, 61.0 ± 1.0 %. The largest is the best, so a larger one may be" in told
        )
        assert "As many random real images: 50.0 ± 1.0 %." in told
        assert "Distilling it took 10 min. Pre-training a student takes 3 s on it and 90 s on the whole source;" in told
        assert "it has 100 kB instead of 5 MB. It has paid for itself after 7 students." in told
    for rows in (seen.rows, markdown_rows(text)):
        assert ["100 random", "50.0 ± 1.0", "50.0 ± 1.0", "-", "100 kB"] in rows
        assert ["100 distilled", "60.0 ± 1.0", "60.0 ± 1.0", "75%", "100 kB"] in rows
        assert ["full", "70.0 ± 1.0", "70.0 ± 1.0", "", "5 MB"] in rows
        cost = ["200", "60.5 ± 1.0", "0.5", "20 min", "3 s", "90 s", "87 s", "4.8 MB", "14 students"]
        assert cost in rows and ["labels", "all, 10"] in rows and ["distill pool.size", "3"] in rows
        assert [row[0] for row in rows if row[-1] in ("0.4", "0.3", "diverged")] == []


def test_the_best_distilled_sets_and_the_recommended_cost_are_bold(tmp_path: Path) -> None:
    _, text = written(tmp_path, made_up())
    assert re.findall(r"^\| (\S+) distilled .*\*\*61.0", text, re.M) == ["500"]
    assert re.findall(r"^\| \*\*(\d+)\*\* ", text, re.M) == ["100"]
    _, text = written(tmp_path, made_up(ahead=0.0))  # no gain, no recommendation
    assert re.findall(r"^\| \*\*(\d+)\*\* ", text, re.M) == []


def test_the_search_is_told_trial_by_trial(tmp_path: Path) -> None:
    seen, text = written(tmp_path, made_up(searched=True))
    sentence = "The search lowered the held-out loss from 0.4 to 0.3 in 3 trials, with outer.lr\\_images=0.05."
    assert sentence.replace("\\", "") in seen.text and "no task was looked at" in text
    for rows in (seen.rows, markdown_rows(text)):
        assert [row for row in rows if row[-1] in ("0.4", "0.3", "diverged")] == [
            ["1", "0.02", "0.4"], ["2", "0.05", "0.3"], ["3", "0.5", "diverged"]
        ]  # fmt: skip
    # 600 s and 261 s of searching, 87 s each time: 9.9
    assert "and searching its settings took 14 min" in text and "paid for itself after 10 students" in text


def test_settings_as_given_may_be_the_best_or_diverge() -> None:
    trials = [{"settings": {"steps": 4}, "heldout_loss": loss} for loss in (0.2, 0.3)]
    assert "as given were the best: held-out loss 0.2." in sweep_report._search_sentence(Found({}, trials, 0, 1.0))
    trials = [{"settings": {"steps": 4}, "heldout_loss": loss} for loss in (None, 0.3)]
    assert "from diverged to 0.3" in sweep_report._search_sentence(Found({}, trials, 1, 1.0))


def test_what_speaks_against_a_recommendation_is_told() -> None:
    def doubts(**options: Any) -> str:
        return sweep_report.lead(made_up(**options))[1]

    assert "No recommendation: " not in doubts() and "better still" in doubts()
    assert "No recommendation: it is not shown better than no pre-training at all or as many" in doubts(seeds=1)
    best_first = {50: 0.6, 100: 0.5}
    assert "Smallest set within 1 point of the best: 50 images." in doubts(curve=best_first)
    assert "larger one" not in doubts(curve=best_first) and "settle" not in doubts(curve=best_first)
    noisy = made_up(curve={50: 0.60, 100: 0.605})
    arms = noisy.sizes[100].results[0].arms
    arms["distilled"].values[MEASURES[1]] = [0.555, 0.605, 0.655]
    # differences -0.035, 0.005, 0.045: 0.04 / sqrt(3)
    assert (
        "No recommendation: the difference has a standard error of 2.3 points: more seeds would settle it."
        in sweep_report.lead(noisy)[1]
    )
    noisy = made_up(curve={50: 0.58, 100: 0.605})
    noisy.sizes[50].results[0].arms["distilled"].values[MEASURES[1]] = [0.61, 0.58, 0.55]
    # differences -0.015, 0.025, 0.065
    assert "100 images. By" in sweep_report.lead(noisy)[1]
    assert "No recommendation: that 50 images are worse may be noise" in sweep_report.lead(noisy)[1]


def test_a_set_that_gains_nothing_is_not_recommended_and_pays_for_nothing(tmp_path: Path) -> None:
    as_good = made_up(ahead=0.0)
    seen, text = written(tmp_path, as_good)
    for told in (seen.text, text):
        assert "Not shown better than as many random real images: +0.0" in told
        assert "No recommendation: it is not shown better than as many random real images." in told
        assert "That pays for nothing, as no gain is shown." in told
        assert "It has paid for itself" not in told and "ecommended set" not in told and "recommended: " not in told
    for rows in (seen.rows, markdown_rows(text)):
        assert ["500", "61.0 ± 1.0", "0.0", "50 min", "3 s", "90 s", "87 s", "4.5 MB", "no gain shown"] in rows
    record = as_good.to_dict()
    assert record["cost"][100]["pays_after_students"] is None and record["recommendation"]["doubt"]
    assert made_up().to_dict()["cost"][100]["pays_after_students"] == 7


def test_a_set_that_is_larger_than_was_asked_for_is_told() -> None:
    swept = made_up()
    for size, budget in ((50, 50_000), (100, 98_000)):  # they take 1,000 bytes an image
        swept.sizes[size].budget = budget
    told = [line for line in sweep_report.lead(swept) if "asked for" in line]
    assert told == ["The set of 100 images takes 2 kB more than the 98 kB that were asked for."]


def test_without_full_or_without_savings_no_payback_is_claimed(tmp_path: Path) -> None:
    _, text = written(tmp_path, made_up(full=False))
    assert "What it saves is open: it needs the arm full" in text and "paid for itself after 7" not in text
    assert ["200", "60.5 ± 1.0", "0.5", "20 min", "-", "-", "-", "-", "-"] in markdown_rows(text)
    _, text = written(tmp_path, made_up(full_seconds=1.0))
    assert "It never pays for itself in time, as pre-training on it is not faster." in text
    assert ["200", "60.5 ± 1.0", "0.5", "20 min", "3 s", "1 s", "-2 s", "4.8 MB", "never"] in markdown_rows(text)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.42, "0.42 s"), (9.96, "10 s"), (99.4, "99 s"), (99.6, "2 min"), (5970, "1.7 h"), (7200, "2.0 h")],
)
def test_times_are_for_people(seconds: float, told: str) -> None:
    assert words.duration(seconds) == told


def test_names_of_a_stranger_are_only_text(tmp_path: Path) -> None:
    nasty = made_up(students=(NASTY,), measures=(NASTY, "b"))
    nasty.settings["source"]["name"] = NASTY
    seen, text = written(tmp_path, nasty)
    assert not {"script", "iframe", "link", "a"} & {tag for tag, _ in seen.tags}
    assert "\x1b" not in seen.text + text and "<script" not in text


@pytest.mark.parametrize("width", [360, 400, 1600])
def test_a_browser_draws_every_figure_within_the_page(tmp_path: Path, width: int) -> None:
    browser()
    swept = made_up(students=("a" * 60, NASTY), searched=True)
    swept.settings["distill"]["checkpoint_minutes"] = 10.0
    written(tmp_path, swept)
    seen = opened(tmp_path / "sweep.html", width)
    assert len(seen["images"]) == 2 * len(MEASURES) + 1
    for image in seen["images"]:
        assert image["natural"] > 0 and image["colours"] > 10
        assert image["width"] > min(300, 0.8 * width) and image["right"] <= width
    assert seen["inner"] == width and seen["scroll"] <= width and max(seen["boxes"]) <= width
    assert max(seen["hidden"]) <= 0  # settings are read without scrolling
