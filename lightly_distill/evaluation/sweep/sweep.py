"""How small may a synthetic set be? Sets of several sizes, distilled, tried on labelled tasks, and compared.

sweep.html, sweep.md    the curve, the recommendation, the cost
sweep.json              the same as numbers, and what a repeated sweep goes on from
search.db               Optuna's trials, after a search
size-100/run            as `distill` writes it
size-100/evaluation     as `evaluate` writes it
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightly_distill.data.source import Source, open_source
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.evaluation.baselines.arms import ANY_SIZE, LABELLED_ARMS
from lightly_distill.evaluation.evaluate import evaluate
from lightly_distill.evaluation.plan import check_arms, check_recipe, check_task_names, open_tasks, seed_list
from lightly_distill.evaluation.report import evaluation_report
from lightly_distill.evaluation.results import Evaluation, write_results
from lightly_distill.evaluation.sweep import sweep_report
from lightly_distill.evaluation.sweep.record import SizeResult, Sweep, go_on, read_record, write_record
from lightly_distill.evaluation.sweep.search import Found, SearchPlan, plan_search, run_search, with_settings
from lightly_distill.evaluation.tasks import Task, find_task
from lightly_distill.evaluation.trial import FINETUNE_STEPS
from lightly_distill.method.config import DistillConfig
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.split import require_enough
from lightly_distill.models.students import student_builder
from lightly_distill.runs.run_folder import run_metrics
from lightly_distill.runs.stage import DistillationStage
from lightly_distill.runtime.device import resolve_device
from lightly_distill.runtime.settings import to_dict
from lightly_distill.synthetic import artifact
from lightly_distill.synthetic.synthetic_set import SyntheticSet

_logger = logging.getLogger(__name__)


def sweep(
    stage: DistillationStage,
    data: Any,
    sizes: Sequence[int],
    tasks: Sequence[Any],
    *,
    out: str | Path,
    student: str | None = None,
    baselines: Sequence[str] = ("scratch", "random", "full"),
    probes: Sequence[str] = ("knn", "linear"),
    labels: Sequence["int | float | None"] = (None,),
    seeds: int | Sequence[int] = 3,
    epochs: int = 500,
    full_epochs: int = 20,
    lr: float = 0.1,
    finetune_steps: int = FINETUNE_STEPS,
    search: Sequence[str] = (),
    trials: int | None = None,
    search_size: int | None = None,
) -> Sweep:
    """Distils and evaluates sets of several sizes, and tells the smallest that is good enough, and what it costs.

    Called again with the same arguments, it goes on where it stopped: a size that is finished is not made again, a
    distillation goes on from its newest checkpoint. Other sizes may be given then.

    Args:
        stage: Target and settings. Its own number of images does not count.
        data: Real images, as `DistillationStage.run` takes them.
        sizes: Numbers of synthetic images, increasing.
        tasks: As for `evaluate`. They are not read before a search is over.
        out: New folder, or that of a sweep with the same settings.
        student: Backbones that are tried on the tasks, comma separated. Default: those of the stage.
        baselines: As for `evaluate`, but `krr-labels` and `dm`. Without `full`, the cost cannot be told. `scratch`,
            `full` and `target` are measured once, as no size changes them.
        probes: As for `evaluate`. The recommendation looks at `linear`, or else at the first.
        labels: As for `evaluate`.
        seeds: As for `evaluate`.
        epochs: As for `evaluate`.
        full_epochs: As for `evaluate`.
        lr: As for `evaluate`: of pre-training students, not of the images.
        finetune_steps: As for `evaluate`.
        search: What to search before the sizes are distilled, of `lr` (of images and of representations, apart),
            `ridge` and `steps`; see `search.py`. The best settings are used for all sizes.
        trials: Distillations that the search tries, the first with the stage's own settings.
        search_size: Which of the sizes the search distils. Default: the smallest.

    Returns:
        The results, of all sizes that were ever finished in `out`.

    Raises:
        UsageError: If anything does not fit together, or the sweep in `out` had other settings; before any long work.
    """
    folder, wanted = Path(out), _increasing(sizes)
    plan = plan_search(search, trials, search_size, wanted, stage.config)
    students = list(dict.fromkeys(name.strip() for name in (student or stage.config.student).split(",")))
    transfer: dict[str, Any] = {
        "probes": list(dict.fromkeys(probes)),
        "labels": list(dict.fromkeys(labels)),
        "seeds": seed_list(seeds),
        "epochs": epochs,
        "full_epochs": full_epochs,
        "lr": lr,
        "finetune_steps": finetune_steps,
    }
    names = _check_transfer(transfer, baselines)
    task_names = [find_task(task)[0] for task in tasks]
    check_task_names(task_names)
    begun = read_record(folder)
    stage.check(data)
    source = _open(data, stage.config, wanted[-1], students, plan)
    settings = {
        "distill": {name: value for name, value in to_dict(stage.config).items() if name != "num_images"},
        "source": {"name": source.name, "fingerprint": source.fingerprint, "images": len(source)},
        "target": {"name": stage.target.name, "sha256": stage.target.weights_sha256()},
        "evaluate": {"student": students, "arms": names, "tasks": task_names, **transfer},
        "search": asdict(plan) if plan else None,
    }
    state = go_on(begun, settings, folder) if begun else Sweep(settings, None, {})
    searching = plan is not None and state.found is None
    opened = [] if searching else _opened(tasks, state, source.image_size)
    write_record(state, folder)
    if plan is not None and searching:
        state.found = _search(plan, stage, source, folder)
        write_record(state, folder)
        opened = _opened(tasks, state, source.image_size)
    for number, size in enumerate(wanted, start=1):
        told = f"Size {size:,} ({number} of {len(wanted)})"
        if size in state.sizes:
            _logger.info("%s is finished already.", told)
            continue
        state.sizes[size] = _one_size(state, stage, source, opened, size, folder / f"size-{size}", told)
        state.sizes = dict(sorted(state.sizes.items()))
        write_record(state, folder)
    sweep_report.write(state, SyntheticSet.load(folder / f"size-{state.recommended}" / "run"), folder)
    return state


def _increasing(sizes: Sequence[int]) -> list[int]:
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int) or size < 2:
            raise UsageError(f"Sizes are whole numbers of images, at least 2, such as 50,100,200; got {size!r}.")
    if not sizes or any(after <= before for before, after in pairwise(sizes)):
        raise UsageError(
            f"Sizes increase from one to the next, such as 50,100,200; got {','.join(map(str, sizes)) or 'none'}."
        )
    return list(sizes)


def _check_transfer(transfer: dict[str, Any], baselines: Sequence[str]) -> list[str]:
    """Returns the names of the arms."""
    check_recipe(**{name: value for name, value in transfer.items() if name != "seeds"})
    labelled = sorted(set(baselines) & set(LABELLED_ARMS))
    if labelled:
        raise UsageError(
            f"A sweep has no arms that need labels of the source: try {', '.join(labelled)} in `evaluate`."
        )
    return check_arms(baselines, {})


def _opened(tasks: Sequence[Any], state: Sweep, image_size: int) -> list[Task]:
    """Opens the tasks, which have to be those that finished sizes were tried on, not only of the same names."""
    opened = open_tasks(tasks, state.settings["evaluate"]["labels"], image_size=image_size)
    prints = {task.name: task.fingerprint() for task in opened}
    changed = [name for name, known in state.tasks.items() if state.sizes and prints[name] != known]
    if changed:
        raise UsageError(
            f"The sweep was begun with other images or labels of the task {', '.join(changed)}: give the old ones or "
            "another --out."
        )
    state.tasks = prints
    return opened


def _open(data: Any, config: DistillConfig, largest: int, students: Sequence[str], plan: SearchPlan | None) -> Source:
    source = open_source(data, image_size=config.image_size)
    held = require_enough(source, replace(config, num_images=largest))
    if plan is not None and not held:
        raise UsageError(f"--search is judged on held-out real images, and {source.name} has fewer than 10 images.")
    for name in students:
        student_builder(name, source.image_size)
    return source


def _search(plan: SearchPlan, stage: DistillationStage, source: Source, folder: Path) -> Found:
    config, device = stage.config, resolve_device(stage.config.device)
    _logger.info("Searching %s at %d images: %d trials.", ", ".join(plan.names), plan.images, plan.trials)
    students = [(name, student_builder(name, source.image_size)) for name in config.students]
    real = RealImages.of_target(source, stage.target, replace(config, num_images=plan.images), device)
    found = run_search(plan, real, students, config, folder / "search.db")
    _logger.info("Found %s.", ", ".join(f"{name}={value:.4g}" for name, value in found.settings.items()))
    return found


def _one_size(
    state: Sweep,
    stage: DistillationStage,
    source: Source,
    tasks: Sequence[Task],
    size: int,
    place: Path,
    told: str,
) -> SizeResult:
    config = replace(with_settings(stage.config, state.found.settings if state.found else {}), num_images=size)
    _logger.info("%s: distilling.", told)
    synthetic = _distilled(DistillationStage(stage.target, config=config), source, place / "run")
    _logger.info("%s: evaluating.", told)
    known = next(iter(state.sizes.values())).results if state.sizes else []
    transfer = dict(state.settings["evaluate"])
    students, names, _ = (transfer.pop(name) for name in ("student", "arms", "tasks"))
    missing = [name for name in names if name != "distilled" and not (known and name in ANY_SIZE)]
    results = evaluate(
        synthetic,
        ",".join(students),
        tasks,
        data=source,
        target=stage.target,
        baselines=missing,
        device=config.device,
        **transfer,
    )
    for result in results:
        if "distilled" in result.failed:
            raise DistillError(
                f"Student {result.student} cannot be pre-trained on the set of {size}: {result.failed['distilled']} "
                f"The sets stay in {place.parent}; a sweep with other settings of pre-training needs another --out."
            )
    _complete(results, known, names)
    folder = place / "evaluation"
    folder.mkdir(exist_ok=True)
    write_results(results, folder)
    evaluation_report.write(results, synthetic, folder, run_metrics(place / "run"))
    facts = synthetic.provenance
    return SizeResult(facts["seconds"], facts["heldout_loss"], results)


def _distilled(stage: DistillationStage, source: Source, place: Path) -> SyntheticSet:
    """Distils, or goes on with it; a set that is there is complete, as it is written last."""
    if (place / "set" / artifact.FACTS).is_file():
        return SyntheticSet.load(place)
    begun = any((place / "checkpoints").glob("step-*.safetensors"))
    return stage.run(source, out=place, resume=begun, overwrite=not begun)


def _complete(results: Sequence[Evaluation], known: Sequence[Evaluation], names: Sequence[str]) -> None:
    """Adds the arms that another size has measured already, in the order of the tables."""
    for result in results:
        for other in known:
            if other.student == result.student:
                result.arms |= {name: other.arms[name] for name in ANY_SIZE if name in other.arms}
                result.failed |= {name: why for name, why in other.failed.items() if name in ANY_SIZE}
        result.arms = {name: result.arms[name] for name in names if name in result.arms}
