"""How an evaluation that was interrupted goes on: what its results.json holds is not measured again."""

import json
from collections.abc import Sequence
from pathlib import Path

from lightly_distill.errors import UsageError
from lightly_distill.evaluation.results import RESULTS, Evaluation
from lightly_distill.runtime.settings import differences

WRITTEN = (RESULTS, "report.html", "report.md")


def go_on(results: Sequence[Evaluation], known: Sequence[Evaluation], arms: Sequence[str], folder: Path) -> None:
    """Takes over what was measured before.

    Args:
        results: Of each student that is asked for, without an arm.
        known: What was measured.
        arms: That are asked for.
        folder: Of the evaluation, for messages.

    Raises:
        UsageError: If it had other settings, naming each difference, or students, seeds or arms that are not asked for
            now and would be lost.
    """
    asked = {result.student: result for result in results}
    for before in known:
        now = asked.get(before.student)
        lost = [] if now else [f"the student {before.student}"]
        lost += [f"the arm {name}" for name in [*before.arms, *before.failed] if name not in arms]
        lost += [f"the seeds {before.seeds}"] if now and now.seeds[: len(before.seeds)] != before.seeds else []
        if lost or now is None:
            raise UsageError(f"The evaluation in {folder} has {', '.join(lost)}: name them too, or give another --out.")
        setting = json.loads(json.dumps(now.setting))
        changed = differences({**before.setting, "device": setting["device"]}, setting)  # which is free to change
        if changed:
            raise UsageError(
                f"The evaluation in {folder} had other settings ({'; '.join(changed)}): give the old ones or another "
                "--out."
            )
        now.arms, now.failed = before.arms, before.failed
