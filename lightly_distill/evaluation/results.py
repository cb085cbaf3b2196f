"""What an evaluation measured: accuracies and cost of each arm, and what follows from them."""

import datetime
import json
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from lightly_distill.errors import UsageError
from lightly_distill.runtime.files import replacing
from lightly_distill.synthetic.synthetic_set import SyntheticSet

# The arms that conclusions are drawn from; of all others only the numbers are shown.
DISTILLED, RANDOM, SCRATCH, FULL = "distilled", "random", "scratch", "full"


@dataclass
class ArmResult:
    """What was measured of one arm with one student.

    Attributes:
        images: Number of images that the student was pre-trained on.
        bytes: Their size with their representations: a byte a channel of a real pixel, four of a learned one.
        seconds: Of pre-training, one for each seed.
        values: Accuracy in [0, 1] by `task/probe`, one for each seed.
        peak_memory: Bytes that pre-training held at most, its images and representations counted, one for each seed;
            see `runtime/usage.py`.
    """

    images: int
    bytes: int
    seconds: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    peak_memory: list[int] = field(default_factory=list)


@dataclass
class Evaluation:
    """The results of one student.

    Attributes:
        student: Its name.
        setting: All that decides the numbers.
        seeds: One for each value.
        arms: By name.
        failed: Arms that are left out because their pre-training diverged, and how.
    """

    student: str
    setting: dict[str, Any]
    seeds: list[int]
    arms: dict[str, ArmResult]
    failed: dict[str, str] = field(default_factory=dict)

    def recovered_gap(self, measure: str) -> float | None:
        """Returns (distilled - scratch) / (full - scratch) of the means.

        None where one of the three is missing, or `full` is not better than `scratch` by two standard errors: there was
        nothing that could be recovered then, and the ratio would be noise.
        """
        ceiling, own = self._differences(measure, FULL, SCRATCH), self._differences(measure, DISTILLED, SCRATCH)
        if not ceiling or not own:
            return None
        gap = statistics.fmean(ceiling)
        return statistics.fmean(own) / gap if gap > 0 and gap >= 2 * _standard_error(ceiling) else None

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
        p = float(stats.ttest_1samp(differences, 0).pvalue) if error > 0 else float("nan")
        return {"difference": statistics.fmean(differences), "standard_error": error, "p": p}

    def _differences(self, measure: str, first: str, second: str) -> list[float]:
        """Returns first minus second, one for each seed; empty where one of them was not measured."""
        both = [self.arms[name].values.get(measure, []) for name in (first, second) if name in self.arms]
        # rounded, as 0.62 - 0.6 and 0.72 - 0.7 are not the same number, and would seem to have a spread
        return [round(a - b, 9) for a, b in zip(*both, strict=True)] if len(both) == 2 and all(both) else []

    def to_dict(self) -> dict[str, Any]:
        """Returns the results as plain values, as they are written."""
        return {
            "setting": {"student": self.student, **self.setting},
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "machine": _machine(str(self.setting.get("device", "cpu"))),
            "date": datetime.date.today().isoformat(),
            "seeds": self.seeds,
            "arms": {name: arm.values for name, arm in self.arms.items()},
            "images": {name: arm.images for name, arm in self.arms.items()},
            "bytes": {name: arm.bytes for name, arm in self.arms.items()},
            "seconds": {name: arm.seconds for name, arm in self.arms.items()},
            "peak_memory": {name: arm.peak_memory for name, arm in self.arms.items()},
            "failed": self.failed,
        }


def _standard_error(values: Sequence[float]) -> float:
    """Returns that of the mean; 0 of a single value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def _machine(device: str) -> str:
    on_gpu = device.startswith("cuda")
    name = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def write_results(results: Sequence[Evaluation], folder: Path) -> None:
    """Writes `results.json`."""
    written = [result.to_dict() for result in results]
    with replacing(folder / "results.json") as partial:
        partial.write_text(json.dumps(written, indent=2) + "\n")


def read_evaluation(folder: Path, synthetic: SyntheticSet) -> list[dict[str, Any]]:
    """Reads what `evaluate` measured of this very set.

    Returns:
        For each student its name, the recipe, the seeds, and accuracies in [0, 1] by arm and measure.

    Raises:
        UsageError: If there are no results, or those of another set.
    """
    path = folder / "results.json"
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
        raise UsageError(f"{path} holds no results of `evaluate`: {type(error).__name__}: {error}") from error
    if not whole:
        raise UsageError(
            f"The evaluation in {folder} is not whole: it lacks the set or some of its seeds. Run it again."
        )
    own = json.loads(json.dumps(synthetic.provenance))
    if any(other != own for other in measured):
        raise UsageError(f"The results in {path} are of another set: their record of it is not this one's.")
    return summary
