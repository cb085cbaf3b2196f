"""Does a synthetic set transfer? A student pre-trained on it, and on what it has to beat, tried on labelled tasks."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import Unpack

from lightly_distill.errors import DistillError, UsageError
from lightly_distill.evaluation.baselines.arms import ARMS, Arm, Made, given_arm, open_inputs
from lightly_distill.evaluation.going_on import WRITTEN, go_on
from lightly_distill.evaluation.measure import Attempt, Bench
from lightly_distill.evaluation.plan import (
    TransferConfig,
    TransferOptions,
    check_other_names,
    open_tasks,
    student_names,
)
from lightly_distill.evaluation.report import evaluation_report
from lightly_distill.evaluation.results import (
    RANDOM_OF_BYTES,
    RESULTS,
    ArmResult,
    Evaluation,
    identity,
    read_results,
    write_results,
)
from lightly_distill.evaluation.tasks import count_among_real
from lightly_distill.models.students import check_names, student_builder
from lightly_distill.models.targets import Target
from lightly_distill.runs.run_folder import RunFolder, run_metrics
from lightly_distill.runtime.console import speaking
from lightly_distill.runtime.device import resolve_device
from lightly_distill.runtime.files import new_folder
from lightly_distill.runtime.progress import Progress
from lightly_distill.runtime.settings import choose
from lightly_distill.runtime.terms import on_own_terms
from lightly_distill.synthetic.synthetic_set import SyntheticSet

_logger = logging.getLogger(__name__)


@on_own_terms()
@speaking
def evaluate(
    synthetic: "SyntheticSet | str | Path",
    student: str | Sequence[str],
    tasks: Sequence[Any],
    *,
    data: Any = None,
    target: "Target | nn.Module | str | None" = None,
    representations: Any = None,
    others: Mapping[str, "SyntheticSet | str | Path"] | None = None,
    out: "str | Path | None" = None,
    resume: bool = False,
    overwrite: bool = False,
    verbose: bool = True,
    config: TransferConfig | None = None,
    **options: Unpack[TransferOptions],
) -> list[Evaluation]:
    """Pre-trains students on a synthetic set and on what it has to beat, and tries them on labelled tasks.

    Every arm is pre-trained with the same recipe and seeds, larger ones for longer; nothing is ever chosen by looking
    at test images.

    Args:
        synthetic: The set, its folder, that of the run that made it, or its name on the Hub.
        student: Name of the backbone, or several.
        tasks: What `open_task` takes: labelled sources with a split for training and one for testing, or pairs. Or what
            it returned, which spares decoding it for each of many evaluations.
        data: The real images that the set was distilled from, for the arms that need them. Default: what the run's
            configuration says.
        target: The target model or its specification, for the arms that need it. Default: as `data`.
        representations: The target's, of the real images, as `DistillationStage.run` takes them: a folder to keep them
            in, or what there is of them already. Default: those of the run, or they are computed.
        others: More arms, name to a set or its folder.
        out: New or empty folder for `results.json`, tables, charts and the report. None writes nothing.
        resume: Go on with the evaluation in `out`: what an arm has measured with a seed is not measured again. There
            may be more arms, students and seeds than before.
        overwrite: Replace the evaluation in `out`.
        verbose: Shows progress, and what is found and written.
        config: All settings at once, instead of options.
        options: Fields of `TransferConfig`, such as `baselines=["random"]`, `probes=["linear"]`, `steps=1000`.

    Returns:
        The results of each student. An arm whose pre-training diverges is left out, and named in `failed`.

    Raises:
        UsageError: If set, tasks, students, arms or folder do not fit together, or the evaluation to go on with had
            other settings; before any long work.
    """
    out = None if out is None else Path(out)
    check_folder(out, resume=resume, overwrite=overwrite)
    config = choose(config, TransferConfig(), options)
    check_other_names(others or {})
    check_names(student_names(student))
    with new_folder(out, occupied=resume or overwrite) as folder:
        bench = _open(synthetic, student, tasks, data, target, representations, others or {}, config)
        notes = _notes(bench)
        for note in notes:
            _logger.warning("%s", note)
        results = [Evaluation(name, _setting(bench), config.seed_list, {}, notes=notes) for name in bench.students]
        if resume and folder is not None:
            go_on(results, read_results(folder), [arm.name for arm in bench.arms], folder)
        elif folder is not None:
            for name in WRITTEN:
                (folder / name).unlink(missing_ok=True)
        bench.warm_up()
        _measure(bench, results, folder)
        if folder is not None:
            rows = [] if isinstance(synthetic, SyntheticSet) else run_metrics(Path(synthetic))
            evaluation_report.write(results, bench.inputs.own, folder, rows)
            _logger.info("Wrote %s", folder)
    return results


def check_folder(out: Path | None, *, resume: bool, overwrite: bool) -> None:
    """Refuses a folder that `evaluate` cannot write to, before any work.

    Raises:
        UsageError: If there is something in it and neither flag is given, both are, or there is nothing to resume.
    """
    if out is not None and any((out / name).is_dir() for name in ("set", "checkpoints")):
        raise UsageError(f"{out} is the folder of a run, which an evaluation would replace: choose another name.")
    going_on = resume and not overwrite and out is not None
    if out is not None and going_on and not (out / RESULTS).is_file():
        raise UsageError(f"Nothing to resume: there is no {RESULTS} in {out}. Start without --resume.")
    # a run goes on from other files than an evaluation
    RunFolder.check(out, resume=resume and not going_on, overwrite=overwrite or going_on)


def _open(
    synthetic: "SyntheticSet | str | Path",
    student: str | Sequence[str],
    tasks: Sequence[Any],
    data: Any,
    target: Any,
    representations: Any,
    others: Mapping[str, "SyntheticSet | str | Path"],
    config: TransferConfig,
) -> Bench:
    """Opens all that is needed, and refuses what does not fit."""
    device, own = resolve_device(config.device), _as_set(synthetic)
    size = own.images.shape[-1]
    arms = [*config.arms, *(given_arm(name, _as_set(value), own) for name, value in others.items())]
    students = {name: student_builder(name, size) for name in student_names(student)}
    opened = open_tasks(tasks, config.labels, image_size=size, reading=config.reading)
    inputs = open_inputs(arms, synthetic, own, data, target, device, representations, reading=config.reading)
    return Bench(config, device, arms, inputs, students, opened)


def _setting(bench: Bench) -> dict[str, Any]:
    """Returns all that decides the numbers of an arm, but for its seed."""
    own = bench.inputs.own
    given = {arm.name: arm.make(bench.inputs, 0) for arm in bench.arms if arm.name not in ARMS}
    return {
        "tasks": [task.name for task in bench.tasks],
        **bench.config.recorded(),
        "device": str(bench.device),
        "images": len(own),
        "set": identity(own),
        "others": {name: identity(made) for name, made in given.items() if isinstance(made, SyntheticSet)},
        "fingerprints": {task.name: task.fingerprint() for task in bench.tasks},
    }


def _notes(bench: Bench) -> list[str]:
    """Tells of each task whose test images are among the real ones, where these are at hand."""
    side = bench.inputs.real_side or bench.inputs.labelled_side
    if side is None:
        return []
    return [
        f"{count:,} of the {len(task.test_images):,} test images of {task.name} are among the real images, pixel for "
        "pixel: accuracies on them say less than on images that were never seen."
        for task in bench.tasks
        if (count := count_among_real(task, side.source))
    ]


def _measure(bench: Bench, results: Sequence[Evaluation], folder: Path | None) -> None:
    """Measures every arm with every seed; writes what there is after each, so that it is not lost, whatever comes."""
    seeds = bench.config.seed_list
    with Progress("Evaluating", len(seeds) * len(bench.arms) * len(results), "arm") as bar:
        for number, seed in enumerate(seeds):
            teachers: dict[Any, nn.Module] = {}
            for arm in bench.arms:
                wanted = [result for result in results if result.lacks(arm.name, number)]
                made = _made(bench, arm, wanted, seed)
                for result in results:
                    if result.lacks(arm.name, number):
                        _try(Attempt(bench, arm, made, seed, teachers), result)
                    bar.add(note=f"{result.student}, arm {arm.name}, seed {seed}")
                if folder is not None:
                    write_results(results, folder)
    for result in results:  # an arm that is new since an evaluation was begun came last
        result.arms = {arm.name: result.arms[arm.name] for arm in bench.arms if arm.name in result.arms}


def _made(bench: Bench, arm: Arm, wanted: Sequence[Evaluation], seed: int) -> Made:
    """Returns what students of an arm are pre-trained on, the same for all; leaves out an arm that cannot be made."""
    try:
        return arm.make(bench.inputs, seed) if wanted else None
    except DistillError as error:  # another distiller diverged
        _leave_out(arm, wanted, seed, error)
        return None


def _try(attempt: Attempt, result: Evaluation) -> None:
    """Adds what an arm measures with one student and one seed to its results."""
    try:
        backbone, cost = attempt.pretrained(result.student)
    except DistillError as error:  # what the other arms measured is not lost for it
        _leave_out(attempt.arm, [result], attempt.seed, error)
        return
    made = attempt.made if isinstance(attempt.made, SyntheticSet) else None
    name = attempt.arm.name
    if name not in result.arms:
        of_bytes = name.startswith(RANDOM_OF_BYTES)
        every = of_bytes and len(made or ()) == len(attempt.bench.inputs.real.source)
        size = attempt.bench.inputs.bytes_of(made) if made is not None else 0
        result.arms[name] = ArmResult(len(made or ()), size, all_images=every)
    found = result.arms[name]
    found.seconds.append(cost.seconds)
    if made is not None:
        found.peak_memory.append(cost.bytes)
    for measure, accuracy in attempt.accuracies(result.student, backbone).items():
        found.values.setdefault(measure, []).append(accuracy)


def _leave_out(arm: Arm, results: Iterable[Evaluation], seed: int, error: DistillError) -> None:
    for result in results:
        result.arms.pop(arm.name, None)
        result.failed[arm.name] = f"seed {seed}: {error}"
        _logger.warning("%s, arm %s is left out: %s", result.student, arm.name, result.failed[arm.name])


def _as_set(value: "SyntheticSet | str | Path") -> SyntheticSet:
    return value if isinstance(value, SyntheticSet) else SyntheticSet.load(value)
