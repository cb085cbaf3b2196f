"""The report of an evaluation: one HTML page that needs nothing else, and its tables as Markdown.

What is said is in `findings`, what is drawn in `charts`, and how it becomes HTML and Markdown in the templates.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightly_distill.evaluation import findings
from lightly_distill.evaluation.baselines.arms import ARMS, GIVEN
from lightly_distill.evaluation.findings import of_seeds
from lightly_distill.evaluation.report import charts
from lightly_distill.evaluation.report.charts import draw_chart, synthetic_images
from lightly_distill.evaluation.report.page import Figure, Table, preformatted
from lightly_distill.runs import curves
from lightly_distill.runtime import templates, words
from lightly_distill.runtime.words import mean_spread
from lightly_distill.synthetic import card, pictures
from lightly_distill.synthetic.synthetic_set import SyntheticSet

if TYPE_CHECKING:
    from lightly_distill.evaluation.results import Evaluation

MAX_PROVENANCE = 20_000  # characters

_TEMPLATE = "evaluation/report/templates/evaluation_report"
_TITLE = "Does the synthetic set transfer?"
_NOTE = (
    "Each arm is a student that was pre-trained by the same recipe (on several times the bytes for longer; full: for "
    "longer still, without mixup and other colours) and tried on the same labels; random is as many real images as "
    "distilled has synthetic ones. Unless each seed distilled anew, distilled is one and the same set: another "
    "distillation may do better or worse. Each p-value is of a paired t-test over the seeds, two-sided, and stands "
    "alone: of twenty comparisons of equals, about one is below 0.05 by chance. Peak memory is what pre-training held "
    "at most, with its images and without what the process had before: on a GPU what PyTorch allocated, on a CPU the "
    "growth of the process, looked at every few milliseconds."
)


def write(
    results: "Sequence[Evaluation]",
    synthetic: SyntheticSet,
    folder: Path,
    loss_rows: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Writes `report.html` and `report.md`.

    Args:
        results: Of each student, at least one, all with the same settings.
        synthetic: The distilled set.
        folder: Where to.
        loss_rows: Rows of the distillation's metrics.jsonl, for the loss curve.
    """
    found = [
        (f"{result.student}, {measure}", text)
        for result in results
        for measure in findings.measures(result)
        if (text := findings.sentence(result, measure))
    ]
    both = {
        "title": _TITLE,
        "lead": findings.lead(results),
        "found": [*found, *left_out(results)],
        "note": _NOTE,
        "students": [_student(result) for result in results],
        "settings": _settings(results),
    }
    shown = [synthetic_images(synthetic)]
    if loss_rows:
        chart = draw_chart(curves.loss_curve, loss_rows, width=pictures.NARROW)
        shown.append(Figure(chart, "Outer loss by step", "The loss of the distillation."))
    of_the_page = {
        "definitions": _definitions(results),
        "differences": _architectures(results) if len(results) > 1 else [],
        "pictures": shown,
        "origin": Table("", ["the set", ""], [list(line) for line in card.facts(synthetic).items()]),
        "provenance": preformatted(_provenance(synthetic)),
    }
    (folder / "report.md").write_text(templates.fill(f"{_TEMPLATE}.md.j2", **both), encoding="utf-8")
    (folder / "report.html").write_text(templates.fill(f"{_TEMPLATE}.html.j2", **both, **of_the_page), encoding="utf-8")


def _accuracies(result: "Evaluation") -> Table:
    """Makes the table of one student: a row for each arm, then what follows from them."""
    measures = findings.measures(result)
    table = Table(
        f"Accuracy in %, {of_seeds(result)}. Bold: the best, the ceilings full and target left out. distilled - "
        "random: points of accuracy ± standard error.",
        ["arm", *measures, "images", "size", "pre-training in s", "peak memory"],
        [],
        foot=2,
    )
    for name, arm in result.arms.items():
        cost = ["-"] * 4
        if arm.images:
            seconds, memory = mean_spread(arm.seconds), _sizes(arm.peak_memory)
            cost = [f"{arm.images:,}", words.size_text(arm.bytes), seconds, memory]
        accuracies = (mean_spread(arm.values.get(measure, []), 100) for measure in measures)
        table.rows.append([findings.label(name, arm), *accuracies, *cost])
    for column, measure in enumerate(measures, start=1):
        means = {
            row: statistics.fmean(arm.values[measure])
            for row, (name, arm) in enumerate(result.arms.items())
            if not (name in ARMS and ARMS[name].is_ceiling) and arm.values.get(measure)
        }
        table.bold |= {(row, column) for row, mean in means.items() if mean == max(means.values())}
    gaps = [result.recovered_gap(measure) for measure in measures]
    compared = [findings.compare(result, measure) for measure in measures]
    table.rows += [
        ["recovered gap", *("-" if gap is None else findings.recovered(gap) for gap in gaps), *[""] * 4],
        ["distilled - random", *(each.cell() if each else "-" for each in compared), *[""] * 4],
    ]
    if any(result.worth(measure) for measure in measures):
        table.rows.append(
            ["worth (by seed)", *(findings.worth_cell(result, measure) for measure in measures), *[""] * 4]
        )
        table.foot += 1
    return table


def left_out(results: "Sequence[Evaluation]") -> list[tuple[str, str]]:
    """Returns the arms that have no numbers, and why."""
    return [(f"{result.student}, {arm}: left out", why) for result in results for arm, why in result.failed.items()]


def _sizes(values: Sequence[int]) -> str:
    if not values:
        return "-"
    mean = words.size_text(statistics.fmean(values))
    return f"{mean} ± {words.size_text(statistics.stdev(values))}" if len(values) > 1 else mean


def _settings(results: "Sequence[Evaluation]") -> Table:
    facts = results[0].to_dict()
    known = {**facts["setting"], "student": [result.student for result in results]}
    for name in ("set", "others", "fingerprints"):  # the provenance of the set has its own place
        known.pop(name, None)
    if "labels" in known:
        known["labels"] = ["all" if count is None else count for count in known["labels"]]
    known |= {name: facts[name] for name in ("seeds", "command", "machine", "date")}
    lines = {name: ", ".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v) for name, v in known.items()}
    return Table("", ["setting", "value"], [list(line) for line in lines.items()])


def _definitions(results: "Sequence[Evaluation]") -> list[tuple[str, str]]:
    arms = dict.fromkeys(arm for result in results for arm in result.arms)
    return [(arm, ARMS[arm].words if arm in ARMS else GIVEN) for arm in arms]


def _student(result: "Evaluation") -> dict[str, Any]:
    """Returns the name of a student, its table and its charts."""
    points, sizes = [], []
    for measure in findings.measures(result):
        arms = {findings.short_label(*each): each[1] for each in result.arms.items() if each[1].values.get(measure)}
        values = {name: arm.values[measure] for name, arm in arms.items()}
        seen = ", ".join(f"{name} {mean_spread(accuracies, 100)}" for name, accuracies in values.items())
        chart = draw_chart(charts.accuracy_points, values, title=measure)
        points.append(Figure(chart, f"Accuracy in % by arm, {measure}: {seen}"))
        by_size = {name: (arm.bytes, arm.values[measure]) for name, arm in arms.items()}
        chart = draw_chart(charts.accuracy_by_size, by_size, title=measure)
        sizes.append(Figure(chart, f"Accuracy against size, {measure}; the numbers are in the table"))
    return {"name": result.student, "table": _accuracies(result), "points": points, "sizes": sizes}


def _architectures(results: "Sequence[Evaluation]") -> list[Figure]:
    drawn = []
    for measure in dict.fromkeys(measure for result in results for measure in findings.measures(result)):
        compared = {result.student: findings.compare(result, measure) for result in results}
        bars = {name: (each.difference, each.error) for name, each in compared.items() if each}
        if bars:
            seen = ", ".join(f"{name} {each.cell()}" for name, each in compared.items() if each)
            chart = draw_chart(charts.difference_bars, bars, title=f"{measure}: distilled - random")
            drawn.append(Figure(chart, f"Distilled minus random in points, {measure}: {seen}"))
    return drawn


def _provenance(synthetic: SyntheticSet) -> str:
    whole = json.dumps(synthetic.provenance, indent=1, ensure_ascii=False, default=str)
    if len(whole) > MAX_PROVENANCE:
        return f"{whole[:MAX_PROVENANCE]} ... the rest is in lightly_distill.json"
    return whole
