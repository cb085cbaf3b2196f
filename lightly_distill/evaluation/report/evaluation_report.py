"""The report of an evaluation: one HTML page that needs nothing else, and its tables as Markdown.

What is said is in `findings`, what is drawn in `pictures`, and how text becomes HTML and Markdown in `page`.
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
from lightly_distill.evaluation.report.page import (
    Table,
    bullets,
    figure,
    figures,
    html_table,
    html_text,
    markdown_table,
    markdown_text,
    page,
    preformatted,
)
from lightly_distill.runs import curves
from lightly_distill.runtime import words
from lightly_distill.runtime.words import mean_spread
from lightly_distill.synthetic import card, pictures
from lightly_distill.synthetic.synthetic_set import SyntheticSet

if TYPE_CHECKING:
    from lightly_distill.evaluation.results import Evaluation

MAX_PROVENANCE = 20_000  # characters

_TITLE = "Does the synthetic set transfer?"
_NOTE = (
    "Each arm is a student that was pre-trained by the same recipe (full: for its own number of epochs) and tried on "
    "the same labels; random is as many real images as distilled has synthetic ones. Unless each seed distilled anew, "
    "distilled is one and the same set: another distillation may do better or worse. Each p-value is of a paired "
    "t-test over the seeds, two-sided, and stands alone: of twenty comparisons of equals, about one is below 0.05 by "
    "chance. Peak memory is what pre-training held at most, with its images and without what the process had before: "
    "on a GPU what PyTorch allocated, on a CPU the growth of the process, looked at every few milliseconds."
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
    tables = [_accuracies(result) for result in results]
    settings = _settings(results)
    (folder / "report.md").write_text(_markdown(results, found, tables, settings), encoding="utf-8")

    body = [
        *(f'<p class="lead">{html_text(line)}</p>' for line in findings.lead(results)),
        bullets([*found, *left_out(results)], "findings"),
        f"<p>{_NOTE}</p>",
        _definitions(results),
    ]
    for result, table in zip(results, tables, strict=True):
        body += [f"<h2>Student {html_text(result.student)}</h2>", html_table(table), *_student_charts(result)]
    if len(results) > 1:
        body += ["<h2>Distilled against random, by student</h2>", figures(_architectures(results))]
    drawn = [synthetic_images(synthetic)]
    if loss_rows:
        chart = draw_chart(curves.loss_curve, loss_rows, width=pictures.NARROW)
        drawn.append(figure(chart, "Outer loss by step", "The loss of the distillation."))
    body += ["<h2>The synthetic set</h2>", figures(drawn, "large")]
    body += ["<h2>Settings</h2>", html_table(settings), _origin(synthetic)]
    (folder / "report.html").write_text(page(_TITLE, body), encoding="utf-8")


def _accuracies(result: "Evaluation") -> Table:
    """Makes the table of one student: a row for each arm, then what follows from them."""
    measures = findings.measures(result)
    table = Table(
        f"Accuracy in %, {of_seeds(result)}. Bold: the best, the ceilings full and target left out. Last row: points "
        "of accuracy ± standard error.",
        ["arm", *measures, "images", "size", "pre-training in s", "peak memory"],
        [],
        foot=2,
    )
    for name, arm in result.arms.items():
        cost = ["-"] * 4
        if arm.images:
            seconds, memory = mean_spread(arm.seconds), _sizes(arm.peak_memory)
            cost = [f"{arm.images:,}", words.size_text(arm.bytes), seconds, memory]
        table.rows.append([name, *(mean_spread(arm.values.get(measure, []), 100) for measure in measures), *cost])
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
        ["recovered gap", *("-" if gap is None else findings.percent(gap) for gap in gaps), *[""] * 4],
        ["distilled - random", *(each.cell() if each else "-" for each in compared), *[""] * 4],
    ]
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
    known.pop("set", None)  # its provenance has its own place
    if "labels" in known:
        known["labels"] = ["all" if count is None else count for count in known["labels"]]
    known |= {name: facts[name] for name in ("seeds", "command", "machine", "date")}
    lines = {name: ", ".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v) for name, v in known.items()}
    return Table("", ["setting", "value"], [list(line) for line in lines.items()])


def _markdown(
    results: "Sequence[Evaluation]", found: list[tuple[str, str]], tables: list[Table], settings: Table
) -> str:
    parts = [f"# {_TITLE}", *map(markdown_text, findings.lead(results))]
    told = [*found, *left_out(results)]
    parts += ["\n".join(f"- **{markdown_text(name)}**: {markdown_text(text)}" for name, text in told), _NOTE]
    for result, table in zip(results, tables, strict=True):
        parts += [f"## Student {markdown_text(result.student)}", markdown_table(table), markdown_text(table.caption)]
    return "\n\n".join([*filter(None, parts), "## Settings", markdown_table(settings)]) + "\n"


def _definitions(results: "Sequence[Evaluation]") -> str:
    arms = dict.fromkeys(arm for result in results for arm in result.arms)
    meanings = bullets((arm, ARMS[arm].words if arm in ARMS else GIVEN) for arm in arms)
    return f"<details><summary>What the students of each arm are pre-trained on</summary>{meanings}</details>"


def _student_charts(result: "Evaluation") -> list[str]:
    points, sizes = [], []
    for measure in findings.measures(result):
        arms = {name: arm for name, arm in result.arms.items() if arm.values.get(measure)}
        values = {name: arm.values[measure] for name, arm in arms.items()}
        told = ", ".join(f"{name} {mean_spread(seen, 100)}" for name, seen in values.items())
        chart = draw_chart(charts.accuracy_points, values, title=measure)
        points.append(figure(chart, f"Accuracy in % by arm, {measure}: {told}"))
        by_size = {name: (arm.bytes, arm.values[measure]) for name, arm in arms.items()}
        chart = draw_chart(charts.accuracy_by_size, by_size, title=measure)
        sizes.append(figure(chart, f"Accuracy against size, {measure}; the numbers are in the table"))
    return ["<h3>Accuracy by arm</h3>", figures(points), "<h3>Accuracy against size</h3>", figures(sizes)]


def _architectures(results: "Sequence[Evaluation]") -> list[str]:
    drawn = []
    for measure in dict.fromkeys(measure for result in results for measure in findings.measures(result)):
        compared = {result.student: findings.compare(result, measure) for result in results}
        bars = {name: (each.difference, each.error) for name, each in compared.items() if each}
        if bars:
            told = ", ".join(f"{name} {each.cell()}" for name, each in compared.items() if each)
            chart = draw_chart(charts.difference_bars, bars, title=f"{measure}: distilled - random")
            drawn.append(figure(chart, f"Distilled minus random in points, {measure}: {told}"))
    return drawn


def _origin(synthetic: SyntheticSet) -> str:
    facts = card.facts(synthetic)
    table = html_table(Table("", ["the set", ""], [list(line) for line in facts.items()])) if facts else ""
    whole = json.dumps(synthetic.provenance, indent=1, ensure_ascii=False, default=str)
    if len(whole) > MAX_PROVENANCE:
        whole = f"{whole[:MAX_PROVENANCE]} ... the rest is in lightly_distill.json"
    return f"{table}<details><summary>Provenance of the set, in full</summary>{preformatted(whole)}</details>"
