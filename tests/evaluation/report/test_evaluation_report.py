import math
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lightly_distill import SyntheticSet
from lightly_distill.evaluation import findings
from lightly_distill.evaluation.report import evaluation_report
from lightly_distill.evaluation.results import ArmResult, Evaluation
from lightly_distill.synthetic import pictures
from pages import NASTY, Parser, browser, markdown_rows, opened
from synthetic_sets import make_set

MEASURES = ("digits/knn", "digits/linear@10")
MEANS = {"scratch": 0.4, "random": 0.5, "distilled": 0.6, "full": 0.65, "target": 0.9}
STEPS = {1: [0.0], 3: [-0.01, 0.0, 0.01]}
BYTES = {"random": (6, 1_272), "distilled": (6, 4_728), "full": (60, 12_720)}


def made_up(
    student: str = "tiny",
    *,
    arms: tuple[str, ...] = tuple(MEANS),
    seeds: int = 3,
    worth: float = 0.0,
    other: str | None = None,
    measures: tuple[str, ...] = MEASURES,
) -> Evaluation:
    """Distilled is `worth` better than in MEANS; the seeds of random are in another order, so that errors differ."""
    found = {}
    for name in arms:
        steps = STEPS[seeds][::-1] if name == "random" else STEPS[seeds]
        mean = MEANS[name] + (worth if name == "distilled" else 0)
        images, size = BYTES.get(name, (0, 0))
        values = {measure: [mean + step for step in steps] for measure in measures}
        memory = [int(2e6 + 1e8 * step) for step in steps] if images else []
        found[name] = ArmResult(images, size, [1.5 + 100 * step for step in steps], values, memory)
    if other is not None:
        found[other] = ArmResult(3, 999, [1.0] * seeds, {measures[0]: [0.3] * seeds})
    setting = {"tasks": ["digits"], "labels": [None, 10], "steps": 7, "set": {"source": "x"}}
    return Evaluation(student, setting, list(range(seeds)), found)


def written(folder: Path, *results: Evaluation, own: SyntheticSet | None = None, **options: Any) -> tuple[Parser, str]:
    evaluation_report.write(list(results), make_set() if own is None else own, folder, **options)
    return Parser((folder / "report.html").read_text("utf-8")), (folder / "report.md").read_text("utf-8")


def test_both_files_hold_the_numbers(tmp_path: Path) -> None:
    seen, text = written(tmp_path, made_up())
    expected = [
        ["arm", *MEASURES, "images", "size", "pre-training in s", "peak memory"],
        ["scratch", "40.0 ± 1.0", "40.0 ± 1.0", "-", "-", "-", "-"],
        ["random", "50.0 ± 1.0", "50.0 ± 1.0", "6", "1.27 kB", "1.5 ± 1.0", "2 MB ± 1 MB"],
        ["distilled", "60.0 ± 1.0", "60.0 ± 1.0", "6", "4.73 kB", "1.5 ± 1.0", "2 MB ± 1 MB"],
        ["full", "65.0 ± 1.0", "65.0 ± 1.0", "60", "12.7 kB", "1.5 ± 1.0", "2 MB ± 1 MB"],
        ["target", "90.0 ± 1.0", "90.0 ± 1.0", "-", "-", "-", "-"],
        ["recovered gap", "80%", "80%", "", "", "", ""],
        # differences 0.08, 0.1, 0.12: 0.02 / sqrt(3), and t = 8.66 with 2 degrees of freedom
        ["distilled - random", "+10.0 ± 1.2 (p = 0.013)", "+10.0 ± 1.2 (p = 0.013)", "", "", "", ""],
    ]
    assert seen.rows[: len(expected)] == expected
    assert markdown_rows(text)[: len(expected)] == expected
    for told in (seen.text, text):
        assert "Recovered gap: 80%. This is the share that the 6 synthetic images give of what pre-training on" in told
        assert "random real images, each measure by itself: clearly better in 2 of 2 comparisons." in told
        assert "80% of the gap recovered; 10.0 points above random (standard error 1.2, p = 0.013, 3 seeds)" in told
        assert "mean ± standard deviation of 3 seeds (0, 1, 2)" in told
    first = text.split("\n\n")[1]
    assert "Better than as many random real images: +10.0 ± 1.2 (p = 0.013) points on average. Next: " in first


def test_the_best_arm_that_is_no_ceiling_is_bold(tmp_path: Path) -> None:
    _, text = written(tmp_path, made_up())
    assert re.findall(r"\| \*\*(.+?)\*\*", text) == ["60.0 ± 1.0", "60.0 ± 1.0"]
    assert (tmp_path / "report.html").read_text("utf-8").count("<td><b>60.0 ± 1.0</b></td>") == 2


def test_settings_and_origin_are_told(tmp_path: Path) -> None:
    seen, text = written(tmp_path, made_up("a"), made_up("b"))
    for rows in (seen.rows, markdown_rows(text)):
        assert ["student", "a, b"] in rows and ["labels", "all, 10"] in rows and ["steps", "7"] in rows
        assert {"seeds", "command", "machine", "date"} <= {row[0] for row in rows} and "set" not in [r[0] for r in rows]
    assert ["source", "Café#train, 60 images, hash abababababab"] in seen.rows
    assert f'"fingerprint": "{"ab" * 32}"' in seen.text  # the provenance in full


def test_each_student_has_a_table_and_all_share_a_chart(tmp_path: Path) -> None:
    seen, text = written(tmp_path, made_up("a"), made_up("b", worth=-0.2), made_up("c", worth=-0.095))
    assert re.findall(r"^## (.+)$", text, re.M) == ["Student a", "Student b", "Student c", "Settings"]
    told = [str(attributes["alt"]) for tag, attributes in seen.tags if tag == "img"]
    assert [line.split(",")[0] for line in told].count("Accuracy in % by arm") == 3 * len(MEASURES)
    shared = [line for line in told if line.startswith("Distilled minus random")]
    assert len(shared) == len(MEASURES)
    assert "a +10.0 ± 1.2 (p = 0.013), b -10.0 ± 1.2 (p = 0.013), c +0.5 ± 1.2 (p = 0.71)" in shared[0]
    assert "clearly better in 2 of 6 comparisons, clearly worse in 2, within noise in 2." in text
    assert "Recovered gap: nothing to 80%." in text
    assert "- **b, digits/knn**: Nothing of the gap recovered (0%); 10.0 points below random" in text


def test_without_the_full_arm_there_is_no_recovered_gap(tmp_path: Path) -> None:
    seen, text = written(tmp_path, made_up(arms=("scratch", "random", "distilled")))
    assert ["recovered gap", "-", "-", "", "", "", ""] in seen.rows and "of the gap" not in text
    assert "Recovered gap" not in text


def test_one_seed_has_no_spread_and_proves_nothing(tmp_path: Path) -> None:
    seen, text = written(tmp_path, made_up(seeds=1))
    assert ["distilled", "60.0", "60.0", "6", "4.73 kB", "1.5", "2 MB"] in seen.rows
    assert ["distilled - random", "+10.0", "+10.0", "", "", "", ""] in seen.rows
    assert "One seed cannot tell whether distilled beats random real images" in text
    assert "10.0 points above random, with one seed, which cannot tell this from noise." in text
    assert "one seed (0), so no spread is known" in text and "clearly" not in text


def test_without_random_nothing_is_claimed(tmp_path: Path) -> None:
    _, text = written(tmp_path, made_up(arms=("scratch", "distilled", "full")))
    assert "Open whether the set is better than real images: none were tried." in text and "points above" not in text


@pytest.mark.parametrize(
    ("comparison", "verdict", "sentence"),
    [
        (
            (3.0, 0.5, 0.01),
            "better",
            "3.0 points above random (standard error 0.5, p = 0.01, 3 seeds): better, by",
        ),
        ((-3.0, 0.5, 0.0001), "worse", "3.0 points below random (standard error 0.5, p < 0.001, 3 seeds): worse, by"),
        ((1.0, 0.9, 0.4), "unclear", "(standard error 0.9, p = 0.4, 3 seeds): within noise, no proof of a difference"),
        ((3.0, 1.4, 0.16), "unclear", "within noise, no proof of a difference; more seeds could settle it"),
        (
            (3.0, 0.0, math.nan),
            "unclear",
            "3.0 points above random with each of 3 seeds, so there is no spread",
        ),
    ],
)
def test_a_difference_within_noise_is_called_so(
    comparison: tuple[float, float, float], verdict: str, sentence: str
) -> None:
    made = findings.Comparison(*comparison, seeds=3)
    assert made.verdict == verdict and sentence in made.sentence()
    assert ("settle" in made.sentence()) == ("settle" in sentence)


def test_no_difference_has_no_minus() -> None:
    assert findings.Comparison(-0.04, 1.9, 1.0, seeds=3).cell() == "+0.0 ± 1.9 (p = 1)"
    assert findings.Comparison(-0.06, None, math.nan, seeds=1).cell() == "-0.1"


def test_a_ceiling_below_scratch_leaves_no_gap() -> None:
    result = made_up()
    result.arms["full"].values[MEASURES[0]] = [0.3, 0.3, 0.3]
    assert findings.sentence(result, MEASURES[0]).startswith("There is no gap to recover, as full is not clearly")
    assert findings.sentence(made_up(worth=-0.3), MEASURES[0]).startswith("Nothing of the gap recovered (-40%); ")
    assert "Recovered gap: nothing. This is the share" in findings.lead([made_up(worth=-0.3)])[1]
    one = made_up(seeds=1)
    assert findings.sentence(one, MEASURES[0]).startswith("One seed cannot tell whether there is a gap to recover; ")
    assert not any("Recovered gap" in line for line in findings.lead([one]))


def test_names_of_a_stranger_are_only_text(tmp_path: Path) -> None:
    own = make_set()
    own.provenance = {"source": {"name": NASTY}, NASTY: [NASTY, "</pre><img src=http://x>"]}
    seen, text = written(tmp_path, made_up(NASTY, other=NASTY, measures=(NASTY, "b")), own=own)
    assert not {"script", "iframe", "link", "a"} & {tag for tag, _ in seen.tags}
    assert "<script>alert(1)</script>|x y`z`" in seen.text and "\x1b" not in seen.text + text
    rows = markdown_rows(text)
    assert {len(row) for row in rows} == {7, 2} and "<script" not in text
    assert rows[6][0] == "&lt;script>alert(1)&lt;/script>\\|x y\\`z\\`\\[a\\](b)?\\[31m $\\\\frac{ ?"
    for source in seen.images():
        kind, content = source.split(",")
        if "svg" in kind:
            assert b"<script" not in b64decode(content)


@pytest.mark.parametrize("quote", ['"', "'"])
def test_a_name_with_quotes_is_no_attribute(tmp_path: Path, quote: str) -> None:
    name = f"{quote} onload={quote}alert(1)"
    seen, _ = written(tmp_path, made_up(name, other=name, measures=(name, "b")))
    assert {key for tag, attributes in seen.tags if tag != "meta" for key in attributes} <= {
        "alt",
        "class",
        "lang",
        "src",
    }
    assert any(name in str(attributes.get("alt")) for _, attributes in seen.tags)


def test_a_provenance_of_any_size_is_cut(tmp_path: Path) -> None:
    own = make_set()
    own.provenance = {"words": ["a" * 100] * 1000}
    seen, _ = written(tmp_path, made_up(), own=own)
    assert (
        "... the rest is in lightly_distill.json" in seen.text and len(seen.text) < 2 * evaluation_report.MAX_PROVENANCE
    )


def test_the_page_holds_all_that_it_shows(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 1 / (step + 1)} for step in range(9)]
    seen, _ = written(tmp_path, made_up(), loss_rows=rows)
    without, _ = written(tmp_path, made_up())
    assert len(seen.images()) == len(without.images()) + 1 == 2 * len(MEASURES) + 2
    for tag, attributes in seen.tags:
        assert tag != "script" and not (attributes.keys() - {"src"}) & {"href", "srcset", "onload", "onerror"}
        if "src" in attributes:
            kind, content = str(attributes["src"]).split(",")
            assert kind in ("data:image/png;base64", "data:image/svg+xml;base64") and len(b64decode(content)) > 500
            assert attributes["alt"]
    style = (tmp_path / "report.html").read_text("utf-8").partition("<style>")[2].partition("</style>")[0]
    assert "max-width" in style and "url(" not in style and "@import" not in style
    policy = next(attributes for tag, attributes in seen.tags if attributes.get("http-equiv"))
    assert str(policy["content"]).startswith("default-src 'none'")


def test_the_images_are_those_of_the_set(tmp_path: Path) -> None:
    own = make_set()
    seen, _ = written(tmp_path, made_up(), own=own)
    (source,) = (source for source in seen.images() if "image/png" in source)
    (tmp_path / "grid.png").write_bytes(b64decode(source.split(",")[1]))
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.tobytes() == pictures.image_grid(own.displayable()).tobytes()
    assert "The first 6 of 6 images, 8x8 pixels each." in seen.text and "are clipped: " in seen.text


# A frame of the wanted width: a window of Chromium is never narrower than 500 pixels. The frame shares its origin
# with the page around it, whose script looks into it; the page itself is as it was written.
@pytest.mark.parametrize("width", [360, 400, 1600])
def test_a_browser_draws_every_figure_within_the_page(tmp_path: Path, width: int) -> None:
    browser()
    rows = [{"step": step, "loss": 1 / (step + 1), "heldout_loss": 1 / (step + 1)} for step in range(9)]
    results = [made_up("a" * 60, other=NASTY), made_up("b", worth=-0.2), made_up("c", worth=-0.1)]
    own = make_set()
    own.provenance["words"] = "w" * 300
    written(tmp_path, *results, own=own, loss_rows=rows)
    seen = opened(tmp_path / "report.html", width)
    assert len(seen["images"]) == 3 * 2 * len(MEASURES) + len(MEASURES) + 2
    for image in seen["images"]:
        assert image["natural"] > 0 and image["colours"] > 10  # drawn, and not one blank area
        assert image["width"] > min(300, 0.8 * width) and image["right"] <= width
    assert seen["inner"] == width and seen["scroll"] <= width and max(seen["boxes"]) <= width
    assert max(seen["hidden"]) <= 0  # settings are read without scrolling


def test_the_browser_test_sees_a_figure_that_is_not_drawn(tmp_path: Path) -> None:
    browser()
    blank = torch.zeros(1, 3, 8, 8)
    own = SyntheticSet(blank, torch.ones(1, 2), mean=(1.0, 1.0, 1.0), std=(1.0, 1.0, 1.0))  # a white picture
    written(tmp_path, made_up(), own=own)
    text = (tmp_path / "report.html").read_text("utf-8")
    (tmp_path / "report.html").write_text(text.replace("svg+xml;base64,", "svg+xml;base64,AAAA", 1), encoding="utf-8")
    images = opened(tmp_path / "report.html", 400)["images"]
    assert images[0]["natural"] == 0 and images[-1]["colours"] == 1 and images[1]["colours"] > 10


@pytest.mark.parametrize(
    ("distilled", "of_bytes", "expected"),
    [
        ([0.6, 0.63, 0.61], None, "Better than as many random real images: +10.3"),
        (
            [0.6, 0.62, 0.61],
            [0.7, 0.71, 0.72],
            "of as many bytes: -10.0 ± 0.6 (p = 0.0033) points on average. Next: take",
        ),
        ([0.45, 0.57, 0.52], None, "Not shown better than as many random real images: +0.3"),
        ([0.4, 0.41, 0.43], None, "Worse than as many random real images: -9.7"),
        ([0.6], None, "Not shown better than as many random real images: +10.0 points on average. Next: more seeds"),
        ([0.6, 0.63], None, "Not shown better than as many random real images: +10.5 ± 0.5 (p = 0.03, only 2 seeds)"),
        (
            [0.05, 0.06, 0.04],
            None,
            "Worse than no pre-training at all: -5.0 ± 0.6 (p = 0.013) points on average.",
        ),
        ([0.1, 0.2, 0.03], None, "Not shown better than no pre-training at all: +1.0 ± 4.9 (p = 0.86) points"),
        (None, None, "Open whether the set is better than real images: none were tried. Next: evaluate with the arm"),
    ],
)
def test_the_verdict_is_one_line_with_what_to_do_next(
    distilled: list[float] | None, of_bytes: list[float] | None, expected: str
) -> None:
    count = len(distilled or [0.1])
    arms = {"scratch": {"a/knn": [0.1, 0.1, 0.1][:count]}}
    if distilled is not None:
        arms |= {"distilled": {"a/knn": distilled, "a/linear": distilled}}
        arms |= {"random": {"a/knn": [0.5, 0.52, 0.51][:count], "a/linear": [0.5, 0.52, 0.51][:count]}}
    if of_bytes is not None:
        arms |= {"random@bytes": {"a/knn": of_bytes, "a/linear": of_bytes}}
    said = findings.verdict([arms])
    assert expected in said and "\n" not in said


def test_what_nothing_is_gained_over_is_a_list_in_words() -> None:
    arms = {name: {"a": [0.5, 0.51, 0.52]} for name in ("scratch", "random", "random@bytes", "distilled")}
    three = "no pre-training at all, as many random real images or random real images of as many bytes"
    assert findings.not_shown_better([arms]) == three
    assert findings.not_shown_better([{**arms, "scratch": {"a": [0.1, 0.12, 0.11]}}]).startswith("as many random real")
    assert findings.not_shown_better([{"scratch": {"a": [0.1, 0.12, 0.11]}, "distilled": arms["distilled"]}]) == ""


def test_the_verdict_is_one_test_over_all_measures() -> None:
    """Two measures that differ each way by the same are no proof of anything."""
    up, down = [0.6, 0.61, 0.62], [0.4, 0.39, 0.38]
    arms = {"distilled": {"a": up, "b": down}, "random": {"a": [0.5] * 3, "b": [0.5] * 3}}
    found = findings.overall([arms])
    assert found is not None and abs(found.difference) < 1e-6 and found.verdict == "unclear"


def of_bytes(*, seeds: int = 3) -> Evaluation:
    """Distilled is worth 2 by the means; the two largest arms have all images that there are."""
    steps = {1: [0.0], 3: [-0.05, 0.0, 0.05]}[seeds]
    sizes = {"random@bytes": (1, 0.5), "random@bytes-x5": (4, 0.7), "random@bytes-x10": (4, 0.7)}
    arms = {
        name: ArmResult(75 * times, 1000 * times, [1.0] * seeds, {"a/knn": [mean] * seeds}, all_images=times == 4)
        for name, (times, mean) in sizes.items()
    }
    arms["distilled"] = ArmResult(60, 1000, [1.0] * seeds, {"a/knn": [0.6 + step for step in steps]})
    return Evaluation("tiny", {"tasks": ["a"]}, list(range(seeds)), arms)


def test_worth_comes_with_what_single_seeds_say(tmp_path: Path) -> None:
    _, text = written(tmp_path, of_bytes())
    assert "Worth: about 2. So many times" in text and "By single seeds: 1.4 to 2.8." in text
    assert ["worth (by seed)", "2 (1.4 to 2.8)"] in [row[:2] for row in markdown_rows(text)]
    assert "orth 2 (1.4 to 2.8): random real images need about 2 times its bytes" in text and "otherwise" not in text
    below = of_bytes()
    below.arms["distilled"].values["a/knn"] = [0.4, 0.4, 0.4]
    seen, text = written(tmp_path, below)
    assert ["worth (by seed)", "<1"] in [row[:2] for row in seen.rows]
    assert "| <1 |" in text and "Worth: <1. So" in text
    _, text = written(tmp_path, of_bytes(seeds=1))
    assert "This is of one seed: more may say otherwise." in text and "orth 2 (one run)" in text


def test_an_arm_that_wants_more_images_than_there_are_says_so_in_table_and_chart(tmp_path: Path) -> None:
    seen, text = written(tmp_path, of_bytes())
    for rows in (seen.rows, markdown_rows(text)):
        assert {"random@bytes", "random@bytes-x5: all 300 images"} < {row[0] for row in rows}
    points = next(str(tag["alt"]) for name, tag in seen.tags if name == "img")
    assert "x10: all 300 images 70.0" in points
