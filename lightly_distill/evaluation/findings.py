"""What an evaluation shows, in words that need no statistics: the recovered gap, and distilled against random."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightly_distill.evaluation.results import (
    DISTILLED,
    ENOUGH,
    FULL,
    LEVEL,
    RANDOM,
    RANDOM_OF_BYTES,
    SCRATCH,
    ArmResult,
    Evaluation,
    Worth,
    p_of,
)


@dataclass(frozen=True)
class Comparison:
    """Distilled against random.

    Attributes:
        difference: Of the means, in points of accuracy.
        error: Its standard error in points, None with one seed.
        p: Of a paired t-test, two-sided; NaN with one seed, or where each seed has the same difference.
        seeds: How many.
    """

    difference: float
    error: float | None
    p: float
    seeds: int

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `unclear`: no p-value, or not below `LEVEL`, or of fewer than `ENOUGH` seeds."""
        if self.seeds < ENOUGH or not self.p < LEVEL:  # also of NaN
            return "unclear"
        return "better" if self.difference > 0 else "worse"

    def cell(self) -> str:
        """Returns the numbers, short."""
        signed = f"{round(self.difference, 1) + 0.0:+.1f}"  # not -0.0
        if self.error is None:
            return signed
        few = f", only {self.seeds} seeds" if self.seeds < ENOUGH else ""
        return f"{signed} ± {self.error:.1f} ({self._p()}{few})"

    def sentence(self) -> str:
        """Returns the numbers and what they mean, in a sentence without its subject."""
        said = f"{abs(self.difference):.1f} points {'above' if self.difference >= 0 else 'below'} random"
        if self.error is None:
            return f"{said}, with one seed, which cannot tell this from noise"
        if math.isnan(self.p):
            return f"{said} with each of {self.seeds} seeds, so there is no spread to test this against"
        said += f" (standard error {self.error:.1f}, {self._p()}, {self.seeds} seeds)"
        if self.seeds < ENOUGH:
            return f"{said}: too few seeds to tell this from noise"
        if self.verdict != "unclear":
            return f"{said}: {self.verdict}, by more than chance explains"
        hint = "; more seeds could settle it" if abs(self.difference) >= 2 * self.error else ""
        return f"{said}: within noise, no proof of a difference{hint}"

    def _p(self) -> str:
        if math.isnan(self.p):
            return "no p"
        return "p < 0.001" if self.p < 0.001 else f"p = {self.p:.2g}"


Arms = Mapping[str, Mapping[str, Sequence[float]]]  # accuracies of each seed, by arm and measure


def overall(results: Sequence[Arms], baseline: str = RANDOM) -> Comparison | None:
    """Compares distilled with a baseline over all students and measures; None where one of them was not measured.

    The differences are averaged first, seed by seed, so that there is one test and not one of each measure.
    """
    rows = [
        [a - b for a, b in zip(arms[DISTILLED][measure], arms[baseline][measure], strict=True)]
        for arms in results
        if DISTILLED in arms and baseline in arms
        for measure in arms[DISTILLED]
        if arms[DISTILLED][measure] and arms[baseline].get(measure)
    ]
    if not rows:
        return None
    by_seed = [round(100 * statistics.fmean(each), 9) for each in zip(*rows, strict=True)]
    mean, count = statistics.fmean(by_seed), len(by_seed)
    if count < 2:
        return Comparison(mean, None, math.nan, count)
    return Comparison(mean, statistics.stdev(by_seed) / count**0.5, p_of(by_seed), count)


# What distilled has to beat, in the order in which it is told.
_TO_BEAT = {
    SCRATCH: "no pre-training at all",
    RANDOM: "as many random real images",
    RANDOM_OF_BYTES: "random real images of as many bytes",
}


def verdict(results: Sequence[Arms]) -> str:
    """Returns in one line whether the set is better than nothing and than real images, and what to do next."""
    found = {name: each for name in _TO_BEAT if (each := overall(results, name)) is not None}
    words = {"better": "Better than", "unclear": "Not shown better than", "worse": "Worse than"}
    said = [f"{words[each.verdict]} {_TO_BEAT[name]}: {each.cell()} points on average." for name, each in found.items()]
    if not found.keys() - {SCRATCH}:
        said.append("Open whether the set is better than real images: none were tried.")
    return " ".join([*said, f"Next: {_next(found)}."])


def not_shown_better(results: Sequence[Arms]) -> str:
    """Returns what distilled was compared with and is not shown better than, in words; empty where it gains."""
    found = {what: overall(results, name) for name, what in _TO_BEAT.items()}
    equals = [what for what, each in found.items() if each is not None and each.verdict != "better"]
    return " or ".join([", ".join(equals[:-1]), *equals[-1:]] if len(equals) > 1 else equals)


def _next(found: Mapping[str, Comparison]) -> str:
    """Returns what to do, given what was compared."""
    verdicts = {name: each.verdict for name, each in found.items()}
    if verdicts.get(SCRATCH) == "worse":
        return "do without pre-training here, or distil from a target that suits the task"
    if not verdicts.keys() - {SCRATCH}:
        return "evaluate with the arm random (--baselines random)"
    if set(verdicts.values()) == {"better"}:
        return "try it on more tasks, or share it (lightly-distill publish)"
    if "worse" in verdicts.values():
        return "take real images (distill --steps 0 selects them), or distill again with more steps"
    if any(each.seeds < ENOUGH for each in found.values()):
        return "more seeds (--seeds), which tell a difference from noise"
    return "more seeds (--seeds), or distill again with more steps or images"


def percent(fraction: float) -> str:
    """Returns a fraction in whole percent; never -0%."""
    return f"{round(100 * fraction)}%"


def recovered(gap: float) -> str:
    """Returns a recovered gap, short; below 0 there is no share of it to speak of."""
    return percent(gap) if gap > 0 else "nothing"


def how_many(seeds: int) -> str:
    """Returns a number of seeds in words."""
    return {1: "one seed", 2: "two seeds"}.get(seeds, f"{seeds} seeds")


def measures(result: Evaluation) -> list[str]:
    """Returns what was measured, each once."""
    return list(dict.fromkeys(measure for arm in result.arms.values() for measure in arm.values))


def compare(result: Evaluation, measure: str) -> Comparison | None:
    """Compares distilled with random; None where one of them was not measured."""
    distilled, random = _values(result, DISTILLED, measure), _values(result, RANDOM, measure)
    if not distilled or not random:
        return None
    paired = result.paired(measure)
    if paired is None:
        return Comparison(100 * (statistics.fmean(distilled) - statistics.fmean(random)), None, math.nan, 1)
    return Comparison(100 * paired["difference"], 100 * paired["standard_error"], paired["p"], len(result.seeds))


def lead(results: Sequence[Evaluation]) -> list[str]:
    """Returns the answer over all students and measures, a few sentences; the first one is the verdict."""
    lines = [verdict([arms_of(result) for result in results]), *results[0].notes]
    worth = worth_line(results)
    if worth:
        lines.append(worth)
    pairs = [(result, measure) for result in results for measure in measures(result)]
    gaps = sorted(gap for gap in (result.recovered_gap(measure) for result, measure in pairs) if gap is not None)
    if gaps:
        span = " to ".join(dict.fromkeys(recovered(gap) for gap in (gaps[0], gaps[-1])))
        arms = next(result.arms for result, measure in pairs if result.recovered_gap(measure) is not None)
        lines.append(
            f"Recovered gap: {span}. This is the share that the {arms[DISTILLED].images:,} synthetic images give of "
            f"what pre-training on all {arms[FULL].images:,} real images gains over no pre-training."
        )
    found = [comparison for comparison in (compare(result, measure) for result, measure in pairs) if comparison]
    if not found:
        return lines
    if len(results[0].seeds) < ENOUGH:
        few = how_many(len(results[0].seeds)).capitalize()
        return [*lines, f"{few} cannot tell whether distilled beats random real images: differences may be noise."]
    verdicts = [comparison.verdict for comparison in found]
    words = {"better": "clearly better", "worse": "clearly worse", "unclear": "within noise"}
    counts = [f"{word} in {verdicts.count(name)}" for name, word in words.items() if name in verdicts]
    counts[0] += f" of {len(found)} comparison{'s' if len(found) > 1 else ''}"
    return [*lines, f"Distilled against as many random real images, each measure by itself: {', '.join(counts)}."]


def arms_of(result: Evaluation) -> Arms:
    """Returns the accuracies of a student."""
    return {name: arm.values for name, arm in result.arms.items()}


def sentence(result: Evaluation, measure: str) -> str:
    """Returns what one measure of one student shows; empty where there is nothing to compare."""
    gap, comparison = result.recovered_gap(measure), compare(result, measure)
    parts = []
    if gap is not None:
        parts.append(
            f"{percent(gap)} of the gap recovered" if gap > 0 else f"nothing of the gap recovered ({percent(gap)})"
        )
    elif _values(result, SCRATCH, measure) and _values(result, FULL, measure):
        seeds = len(result.seeds)
        cannot = f"{how_many(seeds)} cannot tell whether there is a gap to recover"
        none = "there is no gap to recover, as full is not clearly better than scratch"
        parts.append(cannot if seeds < ENOUGH else none)
    if comparison is not None:
        parts.append(comparison.sentence())
    worth = result.worth(measure)
    if worth is not None:
        spread = _span(result.worth_by_seed(measure)) if len(result.seeds) > 1 else "one run"
        parts.append(
            f"worth {worth} ({spread}): random real images need {_times(worth)} its bytes for the same accuracy"
        )
    said = "; ".join(parts)
    return f"{said[0].upper()}{said[1:]}." if said else ""


def worth_line(results: Sequence[Evaluation]) -> str:
    """Returns over all students and measures how many times the bytes random real images need; empty if not tried."""
    pairs = [(result, measure) for result in results for measure in measures(result)]
    found = [worth for result, measure in pairs if (worth := result.worth(measure)) is not None]
    if not found:
        return ""
    by_seed = [worth for result, measure in pairs for worth in result.worth_by_seed(measure)]
    said = (
        f"Worth: {_about(_span(found))}. So many times the bytes of the set do random real images need, with the same "
        "kinds of targets, for the same accuracy."
    )
    seeds = len(results[0].seeds)
    if seeds > 1:
        said += f" By single seeds: {_span(by_seed)}."
    if seeds < ENOUGH:
        said += f" This is of {how_many(seeds)}: more may say otherwise."
    if max([*found, *by_seed], key=Worth.order) <= (1, ""):
        said += " Real images are worth more here: `distill --steps 0` selects them."
    return said


def worth_cell(result: Evaluation, measure: str) -> str:
    """Returns the worth, and what single seeds say of it; a dash where it was not tried."""
    worth, by_seed = result.worth(measure), result.worth_by_seed(measure)
    if worth is None:
        return "-"
    spread = _span(by_seed)
    return str(worth) if spread == str(worth) else f"{worth} ({spread})"


def _span(worths: Sequence[Worth]) -> str:
    """Returns the least and the most, or the only one."""
    ordered = sorted(worths, key=Worth.order)
    return " to ".join(dict.fromkeys(str(worth) for worth in (ordered[0], ordered[-1])))


def _about(worth: str) -> str:
    return worth if worth.startswith(("<", ">")) else f"about {worth}"


def label(name: str, arm: ArmResult) -> str:
    """Returns the name of an arm, and where it wants more images than there are, how many it has."""
    return f"{name}: all {arm.images:,} images" if arm.all_images else name


def short_label(name: str, arm: ArmResult) -> str:
    """Returns the label of an arm for a chart."""
    return label(name.removeprefix(f"{RANDOM_OF_BYTES}-") if arm.all_images else name, arm)


def _times(worth: Worth) -> str:
    words = {"": "about ", "<": "less than ", ">": "more than "}
    return f"{words[worth.bound]}{worth.times:.2g} times"


def _values(result: Evaluation, arm: str, measure: str) -> list[float]:
    return result.arms[arm].values.get(measure, []) if arm in result.arms else []


def of_seeds(result: Evaluation) -> str:
    """Returns what values with a spread are, in words."""
    numbers = ", ".join(map(str, result.seeds))
    if len(result.seeds) == 1:
        return f"one seed ({numbers}), so no spread is known"
    return f"mean ± standard deviation of {len(result.seeds)} seeds ({numbers})"
