"""The record of a sweep, `sweep.json`: its results as numbers, and what a repeated sweep goes on from."""

import datetime
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from lightly_distill.errors import DistillError, UsageError
from lightly_distill.evaluation import findings
from lightly_distill.evaluation.plan import TransferConfig
from lightly_distill.evaluation.results import DISTILLED, ArmResult, Evaluation
from lightly_distill.evaluation.sweep import tradeoff
from lightly_distill.evaluation.sweep.search import Found
from lightly_distill.method.config import as_recorded
from lightly_distill.runs.run_folder import FREE_TO_CHANGE, RunFolder
from lightly_distill.runtime.files import replacing
from lightly_distill.runtime.settings import differences
from lightly_distill.runtime.words import command_line

RECORD = "sweep.json"


@dataclass
class SizeResult:
    """What was made and measured of one size.

    Attributes:
        seconds: Of distilling.
        heldout_loss: Of the run, `initial` and `final`.
        results: Of each student.
        budget: Bytes into which the set was to fit; None where images were asked for.
    """

    seconds: float
    heldout_loss: dict[str, Any]
    results: list[Evaluation]
    budget: int | None = None


@dataclass
class Sweep:
    """The results of a sweep, so far.

    Attributes:
        settings: All that decides them.
        found: What the search found; None without one, or before its end.
        sizes: By number of images, increasing.
        tasks: Fingerprint of each task, by name; empty before they were read.
    """

    settings: dict[str, Any]
    found: Found | None
    sizes: dict[int, SizeResult]
    tasks: dict[str, str] = field(default_factory=dict)

    @property
    def probe(self) -> str:
        """The probe that the recommendation looks at."""
        return tradeoff.deciding_probe(next(iter(self.sizes.values())).results)

    def accuracies(self, arm: str = DISTILLED) -> dict[int, list[float]]:
        """Returns by size the accuracies of an arm by that probe, the mean over tasks and students, for each seed."""
        found = {size: tradeoff.mean_accuracies(done.results, arm, self.probe) for size, done in self.sizes.items()}
        return {size: values for size, values in found.items() if values}

    @property
    def recommended(self) -> int:
        """The smallest size within a point of the best, as far as there is no `doubt`."""
        return tradeoff.recommend({size: fmean(values) for size, values in self.accuracies().items()})

    @property
    def doubt(self) -> str:
        """Why that size is not recommended after all, in words; empty where it is."""
        beaten = self.not_shown_better(self.recommended)
        if beaten:
            return f"it is not shown better than {beaten}"
        return tradeoff.noise(self.accuracies(), self.recommended)

    def not_shown_better(self, size: int) -> str:
        """Returns what the set of this size is not shown better than; see `findings.not_shown_better`."""
        return findings.not_shown_better([findings.arms_of(result) for result in self.sizes[size].results])

    def pays_after(self, size: int) -> int | None:
        """Returns the students after which a set has paid for itself; None: it does not, or gains nothing."""
        cost = self.cost(size)
        return None if cost is None or self.not_shown_better(size) else cost.pays_after

    def cost(self, size: int) -> tradeoff.Cost | None:
        """Returns what a set of this size costs, the search with it, and saves; None without the arm `full`."""
        making = self.sizes[size].seconds + (self.found.seconds if self.found else 0)
        return tradeoff.cost_of(self.sizes[size].results, making)

    def to_dict(self) -> dict[str, Any]:
        """Returns the results as plain values, as they are written."""
        record = {**asdict(self), "command": command_line()}
        record |= {"date": datetime.date.today().isoformat()}
        if self.sizes:
            costs = {size: self.cost(size) for size in self.sizes}
            record["recommendation"] = {
                "images": self.recommended,
                "probe": self.probe,
                "within": tradeoff.WITHIN,
                "doubt": self.doubt,
                "accuracies": self.accuracies(),
            }
            record["cost"] = {
                size: cost and {**asdict(cost), "saved": cost.saved, "pays_after_students": self.pays_after(size)}
                for size, cost in costs.items()
            }
        return record


def read_record(folder: Path) -> Sweep | None:
    """Returns the sweep that a folder holds, None if it is new or empty.

    Raises:
        UsageError: If something else is in the folder, or it cannot be written to.
        DistillError: If the record is damaged.
    """
    RunFolder.check(folder, resume=False, overwrite=True)
    path = folder / RECORD
    if not path.is_file():
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"The output folder {folder} is not empty and holds no sweep: choose another name.")
        return None
    try:
        record = json.loads(path.read_text())
        sizes = {int(size): _size_result(fields) for size, fields in record["sizes"].items()}
        return Sweep(record["settings"], record["found"] and Found(**record["found"]), sizes, record["tasks"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DistillError(
            f"{path} cannot be read ({type(error).__name__}: {error}): give another --out, or remove the folder."
        ) from error


def _size_result(fields: Mapping[str, Any]) -> SizeResult:
    results = [
        Evaluation(**{**result, "arms": {name: ArmResult(**arm) for name, arm in result["arms"].items()}})
        for result in fields["results"]
    ]
    return SizeResult(fields["seconds"], fields["heldout_loss"], results, fields.get("budget"))


def go_on(begun: Sweep, settings: dict[str, Any], folder: Path) -> Sweep:
    """Returns the sweep with its settings as they are now.

    Raises:
        UsageError: If they are not those that it was begun with, naming each difference. How students are tried may
            change as long as no size is finished.
    """
    before, now = (json.loads(json.dumps(each)) for each in (begun.settings, settings))
    # an older version had fewer settings, and changed no colours
    before["distill"] = as_recorded(before["distill"])
    before["evaluate"] = {**TransferConfig(color_jitter=0).recorded(), **before["evaluate"]}
    for each in (before, now):
        for name in FREE_TO_CHANGE:
            each["distill"].pop(name, None)
        for part in ("source", "target"):
            each[part].pop("name")  # how it was written; the hash says what it is
        if not begun.sizes:
            each.pop("evaluate")
    changed = differences(before, now)
    if changed:
        raise UsageError(
            f"The sweep in {folder} had other settings ({'; '.join(changed)}): give the old ones or another --out."
        )
    return Sweep(settings, begun.found, begun.sizes, begun.tasks)


def write_record(state: Sweep, folder: Path) -> None:
    """Writes the record, aside and renamed.

    Raises:
        DistillError: If it cannot be written; the one before it is intact.
    """
    with replacing(folder / RECORD) as partial:
        partial.write_text(json.dumps(state.to_dict(), indent=1) + "\n")
