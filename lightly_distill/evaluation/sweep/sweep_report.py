"""The report of a sweep: one HTML page that needs nothing else, and its tables as Markdown."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lightly_distill.evaluation import findings
from lightly_distill.evaluation.baselines.arms import ARMS
from lightly_distill.evaluation.findings import of_seeds
from lightly_distill.evaluation.report import charts
from lightly_distill.evaluation.report.charts import draw_chart, synthetic_images
from lightly_distill.evaluation.report.evaluation_report import left_out
from lightly_distill.evaluation.report.page import Figure, Table
from lightly_distill.evaluation.results import DISTILLED, RANDOM, RANDOM_OF_BYTES, ArmResult
from lightly_distill.evaluation.sweep import tradeoff
from lightly_distill.evaluation.sweep.tradeoff import WITHIN
from lightly_distill.runtime import templates, words
from lightly_distill.runtime.words import duration, mean_spread
from lightly_distill.synthetic.synthetic_set import SyntheticSet

if TYPE_CHECKING:
    from lightly_distill.evaluation.results import Evaluation
    from lightly_distill.evaluation.sweep.record import Sweep
    from lightly_distill.evaluation.sweep.search import Found

_TEMPLATE = "evaluation/sweep/templates/sweep_report"
_TITLE = "How small may the synthetic set be?"
_COST_NOTE = (
    "Pre-training is of one student, the mean over students and seeds, as below: on a set for so many steps, on "
    "the whole source for longer. Sizes are of what is fetched to use a set. A set has paid for itself after as "
    "many students as save the time that it took, unless no gain is shown over no pre-training and real images."
)


def write(sweep: "Sweep", synthetic: SyntheticSet, folder: Path) -> None:
    """Writes `sweep.html` and `sweep.md`.

    Args:
        sweep: At least one size.
        synthetic: The set of the recommended size.
        folder: Where to.
    """
    students = []
    for student in (result.student for result in next(iter(sweep.sizes.values())).results):
        results = {
            size: next(result for result in done.results if result.student == student)
            for size, done in sweep.sizes.items()
        }
        drawn = _curves(results, None if sweep.doubt else sweep.recommended)
        students.append({"name": student, "table": _accuracies(results), "curves": drawn})
    values = {
        "title": _TITLE,
        "lead": lead(sweep),
        "students": students,
        "cost": _costs(sweep),
        "search": _searched(sweep),
        "shown": f"{'The set of' if sweep.doubt else 'The recommended set,'} {sweep.recommended:,} images",
        "images": synthetic_images(synthetic),
        "settings": _settings(sweep),
    }
    (folder / "sweep.md").write_text(templates.fill(f"{_TEMPLATE}.md.j2", **values), encoding="utf-8")
    (folder / "sweep.html").write_text(templates.fill(f"{_TEMPLATE}.html.j2", **values), encoding="utf-8")


def lead(sweep: "Sweep") -> list[str]:
    """Returns the recommendation and the cost, a few sentences."""
    size, curve = sweep.recommended, sweep.accuracies()
    best = max(curve, key=lambda each: fmean(curve[each]))
    settings = sweep.settings["evaluate"]
    over = f"{_count(settings['tasks'], 'task')} and {_count(settings['student'], 'student')}"
    sentences = [f"Smallest set within {100 * WITHIN:g} point of the best: {size:,} images."]
    sentences[0] += f" By {sweep.probe}, the mean over {over}: {_percent(curve[size])}"
    sentences[0] += "." if best == size else f"; the best, {best:,} images, {_percent(curve[best])}."
    if sweep.doubt:
        sentences[0] += f" No recommendation: {sweep.doubt}."
    if best == max(curve) and len(curve) > 1:
        sentences[0] += " The largest is the best, so a larger one may be better still."
    random = sweep.accuracies(RANDOM).get(size)
    if random:
        sentences.append(f"As many random real images: {_percent(random)}.")
    results = sweep.sizes[size].results
    worth = findings.worth_line(results)
    if worth:
        sentences.insert(0, worth)
    verdict = findings.verdict([findings.arms_of(result) for result in results])
    sentences[:0] = [f"The set of {size:,} images: {verdict[0].lower()}{verdict[1:]}", *results[0].notes]
    cost = sweep.cost(size)
    searching = " and searching its settings" if sweep.found else ""
    if cost is None:
        sentences.append("What it saves is open: it needs the arm full, pre-training on the whole source.")
    else:
        makes = f"Distilling it{searching} took {duration(cost.making)}. Pre-training a student takes"
        makes += f" {duration(cost.small)} on it and {duration(cost.full)} on the whole source; "
        makes += f"it has {words.size_text(cost.small_bytes)} instead of {words.size_text(cost.full_bytes)}. "
        paid = "It never pays for itself in time, as pre-training on it is not faster."
        students = sweep.pays_after(size)
        if sweep.not_shown_better(size):
            paid = "That pays for nothing, as no gain is shown."
        elif students is not None:
            paid = f"It has paid for itself after {students:,} student{'s' if students > 1 else ''}."
        sentences.append(makes + paid)
    if sweep.found:
        sentences.append(_search_sentence(sweep.found))
    for each, done in sweep.sizes.items():
        made = done.results[0].arms[DISTILLED].bytes
        if done.budget is not None and made > done.budget:
            over, asked = words.size_text(made - done.budget), words.size_text(done.budget)
            sentences.append(f"The set of {each:,} images takes {over} more than the {asked} that were asked for.")
        sentences += [f"{each:,} images, {what}: {why}" for what, why in left_out(done.results)]
    return sentences


def _search_sentence(found: "Found") -> str:
    start, end = found.trials[0]["heldout_loss"], found.trials[found.best]["heldout_loss"]
    before = "diverged" if start is None else f"{start:.4g}"
    if not found.best:
        return f"Of {len(found.trials)} trials the settings as given were the best: held-out loss {before}."
    return (
        f"The search lowered the held-out loss from {before} to {end:.4g} in {len(found.trials)} trials, with "
        f"{_listed(found.settings)}."
    )


def _accuracies(results: "Mapping[int, Evaluation]") -> Table:
    """Makes the table of one student: a row for each size and arm, then the arms that no size changes."""
    some = next(iter(results.values()))
    measures = findings.measures(some)
    probe = tradeoff.deciding_probe([some])
    deciding = [measure for measure in measures if tradeoff.probe_of(measure) == probe]
    curves, levels = _arms(results)
    worths = {size: [findings.worth_cell(result, measure) for measure in deciding] for size, result in results.items()}
    worths = {size: found for size, found in worths.items() if "-" not in found}
    table = Table(
        f"Accuracy in %, {of_seeds(some)}. Bold: the best, the arms that no size changes left out.",
        ["images and arm", *measures, f"recovered gap, {probe}", *(["worth (by seed)"] if worths else []), "size"],
        [],
        foot=len(levels),
        numbers=True,
    )
    for size, result in results.items():
        for name in curves:
            arm = result.arms.get(name, ArmResult(0, 0))  # left out at this size
            gaps = [result.recovered_gap(measure) for measure in deciding] if name == DISTILLED else []
            gap = "-" if not gaps or None in gaps else findings.recovered(fmean(gap for gap in gaps if gap is not None))
            cells = [mean_spread(arm.values.get(measure, []), 100) for measure in measures]
            worth = [", ".join(worths.get(size, ["-"])) if name == DISTILLED else "-"] if worths else []
            table.rows.append(
                [f"{size:,} {findings.label(name, arm)}", *cells, gap, *worth, words.size_text(arm.bytes)]
            )
    names = [(result, name) for result in results.values() for name in curves]  # of the rows so far
    for column, measure in enumerate(measures, start=1):
        means = {
            row: fmean(result.arms[name].values[measure])
            for row, (result, name) in enumerate(names)
            if name in result.arms and result.arms[name].values.get(measure)
        }
        table.bold |= {(row, column) for row, mean in means.items() if mean == max(means.values())}
    for name in levels:
        arm = some.arms[name]
        cells = [mean_spread(arm.values.get(measure, []), 100) for measure in measures]
        blank = [""] * (2 if worths else 1)
        table.rows.append([name, *cells, *blank, words.size_text(arm.bytes) if arm.images else "-"])
    return table


def _arms(results: "Mapping[int, Evaluation]") -> tuple[list[str], list[str]]:
    """Returns the arms that the size changes, and those that it does not."""
    names = dict.fromkeys(name for result in results.values() for name in result.arms)
    curves = [name for name in names if name not in ARMS or ARMS[name].size_matters]
    return curves, [name for name in names if name not in curves]


def _curves(results: "Mapping[int, Evaluation]", chosen: int | None) -> list[Figure]:
    some = next(iter(results.values()))
    names, others = _arms(results)
    drawn = []
    for measure in findings.measures(some):
        curves = {
            name: {size: result.arms[name].values[measure] for size, result in results.items() if name in result.arms}
            for name in names
            if any(measure in result.arms[name].values for result in results.values() if name in result.arms)
        }
        levels = {name: some.arms[name].values[measure] for name in others if measure in some.arms[name].values}
        of_bytes = any(name.startswith(RANDOM_OF_BYTES) for name in curves)
        if of_bytes:
            curves = _by_bytes(results, curves)
        marked = chosen if chosen is None or not of_bytes else results[chosen].arms[DISTILLED].bytes
        title = f"{measure}{_ends(results)}"
        chart = draw_chart(
            charts.accuracy_by_images, curves, levels=levels, title=title, chosen=marked, of_bytes=of_bytes
        )
        seen = "; ".join(
            f"{name} {', '.join(f'{size:,}: {mean_spread(values, 100)}' for size, values in curve.items())}"
            for name, curve in curves.items()
        )
        seen += "".join(f"; {name} {mean_spread(values, 100)}" for name, values in levels.items())
        by = "bytes on disk" if of_bytes else "number of images"
        drawn.append(Figure(chart, f"Accuracy in % by {by}, {measure}: {seen}"))
    return drawn


def _ends(results: "Mapping[int, Evaluation]") -> str:
    """Tells where the curve of random real images ends because there are no more."""
    images = [arm.images for result in results.values() for arm in result.arms.values() if arm.all_images]
    return f"; {RANDOM_OF_BYTES} ends at all {max(images):,} images" if images else ""


def _by_bytes(
    results: "Mapping[int, Evaluation]", curves: Mapping[str, Mapping[int, list[float]]]
) -> dict[str, dict[int, list[float]]]:
    """Puts accuracies against bytes, those of random real images of all budgets on one curve."""
    found: dict[str, dict[int, list[float]]] = {}
    for name, curve in curves.items():
        shared = RANDOM_OF_BYTES if name.startswith(RANDOM_OF_BYTES) else name
        found.setdefault(shared, {}).update({results[size].arms[name].bytes: each for size, each in curve.items()})
    return {name: dict(sorted(curve.items())) for name, curve in found.items()}


def _costs(sweep: "Sweep") -> Table:
    curve = sweep.accuracies()
    top = max(map(fmean, curve.values()))
    head = ["images", sweep.probe, "below the best", "distilling", "pre-training", "on the whole source", "saves"]
    caption = f"{sweep.probe}: the mean over tasks and students in %. {_COST_NOTE}"
    if sweep.found:
        caption += f" The search took {duration(sweep.found.seconds)} more, which each size has to pay back."
    table = Table(caption, [*head, "storage saved", "paid for itself after"], [], numbers=True)
    for row, size in enumerate(sweep.sizes):
        cost, loss = sweep.cost(size), 100 * (top - fmean(curve[size]))
        cells = [f"{size:,}", mean_spread(curve[size], 100), f"{loss:.1f}", duration(sweep.sizes[size].seconds)]
        if cost is None:
            cells += ["-"] * 5
        else:
            students = sweep.pays_after(size)
            paid = "never" if students is None else f"{students:,} student{'s' * (students > 1)}"
            paid = "no gain shown" if sweep.not_shown_better(size) else paid
            saved = f"{'-' * (cost.saved < 0)}{duration(abs(cost.saved))}"
            cells += [duration(cost.small), duration(cost.full), saved, words.size_text(cost.saved_bytes), paid]
        table.rows.append(cells)
        if size == sweep.recommended and not sweep.doubt:
            table.bold = {(row, column) for column in range(len(cells))}
    return table


def _searched(sweep: "Sweep") -> Table | None:
    found = sweep.found
    if found is None:
        return None
    plan = sweep.settings["search"]
    table = Table(
        f"At {plan['images']:,} images, by the loss on held-out images of the source; no task was looked at. The sets "
        "are judged by the same fresh students and the ridge as given. Bold: the best, with which all sizes were made.",
        ["trial", *found.settings, "held-out loss"],
        [],
        numbers=True,
    )
    for number, trial in enumerate(found.trials):
        loss = trial["heldout_loss"]
        values = [f"{value:.4g}" for value in trial["settings"].values()]
        table.rows.append([str(number + 1), *values, "diverged" if loss is None else f"{loss:.4g}"])
    table.bold = {(found.best, column) for column in range(len(table.head))}
    return table


def _settings(sweep: "Sweep") -> Table:
    facts: dict[str, Any] = sweep.to_dict()
    known = {"source": sweep.settings["source"]["name"], "target": sweep.settings["target"]["name"]}
    known |= {"images of the source": f"{sweep.settings['source']['images']:,}"}
    known |= sweep.settings["evaluate"]
    known["labels"] = ["all" if count is None else count for count in known["labels"]]
    distilled = dict(sweep.settings["distill"])
    known |= {f"distill {name}": value for name, value in distilled.items() if not isinstance(value, dict)}
    for part in (name for name, value in distilled.items() if isinstance(value, dict)):
        known |= {f"distill {part}.{name}": value for name, value in distilled[part].items()}
    known |= {f"found {name}": f"{value:.4g}" for name, value in (sweep.found.settings if sweep.found else {}).items()}
    known |= {name: facts[name] for name in ("command", "date")}
    lines = {name: ", ".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v) for name, v in known.items()}
    return Table("", ["setting", "value"], [list(line) for line in lines.items()])


def _percent(values: list[float]) -> str:
    return f"{mean_spread(values, 100)} %"


def _count(names: list[str], what: str) -> str:
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''}"


def _listed(settings: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={value:.4g}" for name, value in settings.items())
