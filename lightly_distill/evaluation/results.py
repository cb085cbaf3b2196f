"""What an evaluation measured: accuracies and cost of each arm, and what follows from them."""

import datetime
import hashlib
import json
import math
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from scipy import stats

from lightly_distill.errors import DistillError, UsageError
from lightly_distill.runtime.files import below, replacing
from lightly_distill.runtime.words import command_line
from lightly_distill.synthetic.synthetic_set import SyntheticSet

# The arms that conclusions are drawn from; of all others only the numbers are shown.
DISTILLED, RANDOM, SCRATCH, FULL = "distilled", "random", "scratch", "full"
RANDOM_OF_BYTES = "random@bytes"  # begins the names of arms of random real images that take so many times the bytes
TIMES = (1, 2, 5, 10)

RESULTS = "results.json"
LEVEL = 0.05  # of p, below which a difference counts as more than noise
ENOUGH = 3  # seeds: the spread of two says next to nothing


@dataclass
class ArmResult:
    """What was measured of one arm with one student.

    Attributes:
        images: Number of images that the student was pre-trained on.
        bytes: Of the set that they and their targets make, see `stored.stored_bytes`.
        seconds: Of pre-training, one for each seed.
        values: Accuracy in [0, 1] by `task/probe`, one for each seed.
        peak_memory: Bytes that pre-training held at most, its images and representations counted, one for each seed;
            see `runtime/usage.py`.
        all_images: Whether these are all real images that there are, fewer than the arm wants.
    """

    images: int
    bytes: int
    seconds: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    peak_memory: list[int] = field(default_factory=list)
    all_images: bool = False


class Worth(NamedTuple):
    """How many times the bytes random real images need for the same accuracy.

    Attributes:
        times: The number, or the end of what was measured.
        bound: `""` for the number itself, `"<"` or `">"` where it lies outside of what was measured.
    """

    times: float
    bound: Literal["", "<", ">"] = ""

    def __str__(self) -> str:
        return f"{self.bound}{self.times:.2g}"

    def order(self) -> tuple[float, int]:
        """Returns what sorts several, the least first."""
        return self.times, ("<", "", ">").index(self.bound)


def worth_of(accuracy: float, curve: Sequence[tuple[float, float]]) -> Worth:
    """Reads off a curve where it first reaches an accuracy, between two points by the logarithm of the bytes.

    Args:
        accuracy: Of the distilled set.
        curve: Times the bytes of the set, increasing, and accuracy of random real images. Where more images are
            worse, which is noise, the best so far counts.
    """
    if accuracy < curve[0][1]:
        return Worth(curve[0][0], "<")
    times, best = curve[0]
    if accuracy == best:
        return Worth(times)
    for next_times, value in curve[1:]:
        if value >= accuracy:
            share = (accuracy - best) / (value - best)
            return Worth(times * (next_times / times) ** share)
        if value >= best:
            times, best = next_times, value
    return Worth(curve[-1][0], ">")


@dataclass
class Evaluation:
    """The results of one student.

    Attributes:
        student: Its name.
        setting: All that decides the numbers.
        seeds: One for each value.
        arms: By name.
        failed: Arms that are left out because their pre-training diverged, and how.
        notes: What else a reader of the numbers has to know, in sentences.
    """

    student: str
    setting: dict[str, Any]
    seeds: list[int]
    arms: dict[str, ArmResult]
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "Evaluation":
        """Returns what `to_dict` was made of."""
        setting, every = dict(told["setting"]), told.get("all_images", [])
        costs = [told[name] for name in ("images", "bytes", "seconds", "peak_memory")]
        arms = {}
        for name, values in told["arms"].items():
            images, size, seconds, peak_memory = (cost[name] for cost in costs)
            arms[name] = ArmResult(images, size, seconds, values, peak_memory, name in every)
        return cls(setting.pop("student"), setting, told["seeds"], arms, told.get("failed", {}), told.get("notes", []))

    def lacks(self, arm: str, number: int) -> bool:
        """Returns whether an arm that is not left out is still to be measured with the seed of this number."""
        return arm not in self.failed and (arm not in self.arms or len(self.arms[arm].seconds) <= number)

    def recovered_gap(self, measure: str) -> float | None:
        """Returns (distilled - scratch) / (full - scratch) of the means.

        None where one of the three is missing, or `full` is not clearly better than `scratch`: there was nothing that
        could be recovered then, and the ratio would be noise.
        """
        ceiling, own = self._differences(measure, FULL, SCRATCH), self._differences(measure, DISTILLED, SCRATCH)
        if not ceiling or not own:
            return None
        return statistics.fmean(own) / statistics.fmean(ceiling) if clearly_above_zero(ceiling) else None

    def worth(self, measure: str) -> Worth | None:
        """Returns how many times the bytes random real images need for the accuracy of the distilled set, of the means.

        None without distilled, or without random real images of at least two sizes in bytes.
        """
        return self._worth(measure, statistics.fmean)

    def worth_by_seed(self, measure: str) -> list[Worth]:
        """Returns what each seed by itself says of that, the least first; empty where `worth` is None."""
        found = [self._worth(measure, itemgetter(number)) for number in range(len(self.seeds))]
        return sorted((each for each in found if each is not None), key=Worth.order)

    def _worth(self, measure: str, pick: Callable[[Sequence[float]], float]) -> Worth | None:
        if DISTILLED not in self.arms:
            return None
        own = self.arms[DISTILLED]
        sizes = sorted((arm for name, arm in self.arms.items() if name.startswith(RANDOM_OF_BYTES)), key=_bytes_of)
        curve = [(arm.bytes / own.bytes, pick(arm.values[measure])) for arm in sizes if measure in arm.values]
        if len(curve) < 2 or not own.values.get(measure):
            return None
        return worth_of(pick(own.values[measure]), curve)

    def paired(self, measure: str, baseline: str = RANDOM) -> dict[str, float] | None:
        """Compares distilled with a baseline, seed by seed.

        Returns:
            Mean difference, its standard error, and the p-value of a paired t-test, two-sided; None with fewer than two
            seeds or without one of the arms.
        """
        differences = self._differences(measure, DISTILLED, baseline)
        if len(differences) < 2:
            return None
        error = _standard_error(differences)
        return {"difference": statistics.fmean(differences), "standard_error": error, "p": p_of(differences)}

    def _differences(self, measure: str, first: str, second: str) -> list[float]:
        """Returns first minus second, one for each seed; empty where one of them was not measured."""
        both = [self.arms[name].values.get(measure, []) for name in (first, second) if name in self.arms]
        # rounded, as 0.62 - 0.6 and 0.72 - 0.7 are not the same number, and would seem to have a spread
        return [round(a - b, 9) for a, b in zip(*both, strict=True)] if len(both) == 2 and all(both) else []

    def to_dict(self) -> dict[str, Any]:
        """Returns the results as plain values, as they are written."""
        return {
            "setting": {"student": self.student, **self.setting},
            "command": command_line(),
            "machine": _machine(str(self.setting.get("device", "cpu"))),
            "date": datetime.date.today().isoformat(),
            "seeds": self.seeds,
            "arms": {name: arm.values for name, arm in self.arms.items()},
            "images": {name: arm.images for name, arm in self.arms.items()},
            "bytes": {name: arm.bytes for name, arm in self.arms.items()},
            "seconds": {name: arm.seconds for name, arm in self.arms.items()},
            "peak_memory": {name: arm.peak_memory for name, arm in self.arms.items()},
            "all_images": [name for name, arm in self.arms.items() if arm.all_images],
            "failed": self.failed,
            "notes": self.notes,
        }


def _bytes_of(arm: ArmResult) -> int:
    return arm.bytes


def _standard_error(values: Sequence[float]) -> float:
    """Returns that of the mean; 0 of a single value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def p_of(differences: Sequence[float]) -> float:
    """Returns p of a paired t-test, two-sided; NaN of fewer than two, or where they are all the same."""
    return float(stats.ttest_1samp(differences, 0).pvalue) if _standard_error(differences) > 0 else math.nan


def clearly_above_zero(differences: Sequence[float]) -> bool:
    """Returns whether differences, one for each seed, are above 0 by more than chance explains; never of a few."""
    p = p_of(differences)
    return len(differences) >= ENOUGH and statistics.fmean(differences) > 0 and (math.isnan(p) or p < LEVEL)


def _machine(device: str) -> str:
    on_gpu = device.startswith("cuda")
    name = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def write_results(results: Sequence[Evaluation], folder: Path) -> None:
    """Writes `results.json`, aside and renamed."""
    written = [result.to_dict() for result in results]
    with replacing(folder / RESULTS) as partial:
        partial.write_text(json.dumps(written, indent=2) + "\n")


def read_results(folder: Path) -> list[Evaluation]:
    """Reads what `write_results` wrote.

    Raises:
        DistillError: If it is damaged.
    """
    path = folder / RESULTS
    try:
        return [Evaluation.from_dict(told) for told in json.loads(path.read_text())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DistillError(
            f"{path} cannot be read ({type(error).__name__}: {error}): start again with --overwrite."
        ) from error


def identity(synthetic: SyntheticSet) -> dict[str, Any]:
    """Returns, JSON-able, by what a set is told from others: its record, or of one without a record, its contents."""
    if synthetic.provenance:
        return synthetic.provenance
    digest = hashlib.sha256(synthetic.displayable().contiguous().numpy().data)
    digest.update(synthetic.targets.cpu().contiguous().numpy().data)
    return {"sha256": digest.hexdigest()}


def read_evaluation(folder: Path, synthetic: SyntheticSet) -> list[dict[str, Any]]:
    """Reads what `evaluate` measured of this very set.

    Returns:
        For each student its name, the recipe, the seeds, and accuracies in [0, 1] by arm and measure.

    Raises:
        UsageError: If there are no results, or those of another set.
    """
    path = folder / RESULTS
    try:
        results = json.loads(path.read_text())
        summary = [
            {
                "student": result["setting"]["student"],
                **{name: result["setting"][name] for name in ("steps", "epochs") if name in result["setting"]},
                **{name: result[name] for name in ("seeds", "images", "arms", "machine", "date")},
            }
            for result in results
        ]
        measured = [result["setting"]["set"] for result in results]
        whole = all(
            DISTILLED in result["arms"]
            and all(len(seen) == len(result["seeds"]) for arm in result["arms"].values() for seen in arm.values())
            for result in results
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = f"{type(error).__name__}: {error}.{below(folder, path.name)}"
        raise UsageError(f"{path} holds no results of `evaluate`: {why}") from error
    if not whole:
        raise UsageError(
            f"The evaluation in {folder} is not whole: it lacks the set or some of its seeds. Go on with it: evaluate "
            "--resume."
        )
    own = json.loads(json.dumps(identity(synthetic)))
    if any(other != own for other in measured):
        raise UsageError(f"The results in {path} are of another set: their record of it is not this one's.")
    return summary
