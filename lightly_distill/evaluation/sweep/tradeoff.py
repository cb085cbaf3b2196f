"""What a sweep over sizes comes to: how small a set may be, what it costs, and when that is paid back."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from lightly_distill.evaluation import findings
from lightly_distill.evaluation.results import (
    DISTILLED,
    ENOUGH,
    FULL,
    ArmResult,
    Evaluation,
    clearly_above_zero,
)

WITHIN = 0.01  # of accuracy: what a smaller set may lose


@dataclass(frozen=True)
class Cost:
    """What a set costs and saves.

    Attributes:
        making: Seconds that it took to make.
        small: Seconds of pre-training a student on it.
        full: Seconds of pre-training a student on the whole source.
        small_bytes: Of the set.
        full_bytes: Of the whole source with its representations.
    """

    making: float
    small: float
    full: float
    small_bytes: int
    full_bytes: int

    @property
    def saved(self) -> float:
        """Seconds saved for each student; below 0 where none are."""
        return self.full - self.small

    @property
    def saved_bytes(self) -> int:
        """Bytes that need not be kept or sent."""
        return self.full_bytes - self.small_bytes

    @property
    def pays_after(self) -> int | None:
        """Students after which the set has paid for itself; None: never, in time."""
        return break_even(self.making, self.saved)


def break_even(cost: float, saved: float) -> int | None:
    """Returns the least number of times, at least 1, after which savings make up for a cost; None where they never do.

    Args:
        cost: Once, in seconds.
        saved: Each time, in seconds.
    """
    return max(1, math.ceil(cost / saved)) if saved > 0 else None


def recommend(accuracies: Mapping[int, float], within: float = WITHIN) -> int:
    """Returns the smallest size whose accuracy is within so much of the best.

    Args:
        accuracies: In [0, 1], by size; at least one.
        within: As accuracies.
    """
    best = max(accuracies.values())
    # a hair more, as 0.7 - 0.69 is more than 0.01
    return min(size for size, accuracy in accuracies.items() if best - accuracy <= within + 1e-9)


def noise(accuracies: Mapping[int, Sequence[float]], size: int) -> str:
    """Returns what of a choice of size is within noise, in words; empty where nothing is.

    Args:
        accuracies: In [0, 1], one for each seed, by size.
        size: What `recommend` returns of their means.
    """
    best = max(accuracies, key=lambda each: fmean(accuracies[each]))
    seeds = len(accuracies[best])
    below = {each: [a - b for a, b in zip(accuracies[best], accuracies[each], strict=True)] for each in accuracies}
    if len(accuracies) > 1 and seeds < ENOUGH:
        return f"{findings.how_many(seeds)} cannot tell such a difference from noise"
    for smaller in (each for each in accuracies if each < size):
        if not clearly_above_zero(below[smaller]):
            return f"that {smaller:,} images are worse may be noise: more seeds would settle it"
    error = stdev(below[size]) / seeds**0.5 if best != size else 0.0
    if error > WITHIN:
        return f"the difference has a standard error of {100 * error:.1f} points: more seeds would settle it"
    return ""


def deciding_probe(results: Sequence[Evaluation]) -> str:
    """Returns the probe that the recommendation looks at, with its labels: `linear` where it was tried, else the first.

    Args:
        results: Of each student.
    """
    probes = list(dict.fromkeys(probe_of(measure) for result in results for measure in findings.measures(result)))
    return next((probe for probe in probes if probe.split("@")[0] == "linear"), probes[0])


def mean_accuracies(results: Sequence[Evaluation], arm: str, probe: str) -> list[float]:
    """Returns the accuracies of an arm by one probe, one for each seed: the mean over tasks and students.

    Args:
        results: Of each student.
        arm: Its name.
        probe: As `deciding_probe` returns it.

    Returns:
        In [0, 1]; empty where the arm was not measured.
    """
    arms = [result.arms[arm] for result in results if arm in result.arms]
    columns = [values for each in arms for measure, values in each.values.items() if probe_of(measure) == probe]
    return [fmean(values) for values in zip(*columns, strict=True)]


def cost_of(results: Sequence[Evaluation], making: float) -> Cost | None:
    """Returns what a set costs and saves, for the mean of the students and seeds; None without the arm `full`.

    Args:
        results: Of each student.
        making: Seconds that the set took to make.
    """
    if not all(FULL in result.arms for result in results):
        return None
    small, full = ([result.arms[name] for result in results] for name in (DISTILLED, FULL))
    return Cost(making, _seconds(small), _seconds(full), small[0].bytes, full[0].bytes)


def probe_of(measure: str) -> str:
    """Returns the probe of a measure, with its labels."""
    return measure.rpartition("/")[2]  # a task's name may hold a slash


def _seconds(arms: Sequence[ArmResult]) -> float:
    return fmean(fmean(arm.seconds) for arm in arms)
