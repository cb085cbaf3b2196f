"""How small may a synthetic set be? Sets of several sizes, distilled, tried on labelled tasks, and compared.

sweep.html, sweep.md    the curve, the recommendation, the cost
sweep.json              the same as numbers, and what a repeated sweep goes on from
search.db               Optuna's trials, after a search
size-100/run            as `distill` writes it
size-100/evaluation     as `evaluate` writes it
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Unpack

from lightly_distill.data.reading import Reading
from lightly_distill.data.source import Source, open_source
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.evaluation.baselines.arms import ARMS
from lightly_distill.evaluation.evaluate import evaluate
from lightly_distill.evaluation.plan import (
    TransferConfig,
    TransferOptions,
    check_task_names,
    open_tasks,
    student_names,
)
from lightly_distill.evaluation.report import evaluation_report
from lightly_distill.evaluation.results import (
    DISTILLED,
    FULL,
    RANDOM,
    RANDOM_OF_BYTES,
    SCRATCH,
    Evaluation,
    identity,
    read_results,
    write_results,
)
from lightly_distill.evaluation.stored import Footprint, most_within, stored_bytes
from lightly_distill.evaluation.sweep import sweep_report
from lightly_distill.evaluation.sweep.record import SizeResult, Sweep, go_on, read_record, write_record
from lightly_distill.evaluation.sweep.search import Found, SearchPlan, plan_search, run_search, with_settings
from lightly_distill.evaluation.tasks import Task, find_task
from lightly_distill.method.config import DistillConfig
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.sight import find_for_target, target_frame
from lightly_distill.method.split import require_enough
from lightly_distill.models.students import check_names, student_builder
from lightly_distill.runs.representations import find_representations, keeper
from lightly_distill.runs.run_folder import run_metrics
from lightly_distill.runs.stage import DistillationStage
from lightly_distill.runtime.console import speaking
from lightly_distill.runtime.device import resolve_device
from lightly_distill.runtime.settings import choose, to_dict
from lightly_distill.runtime.terms import on_own_terms
from lightly_distill.synthetic import set_facts
from lightly_distill.synthetic.synthetic_set import SyntheticSet

_logger = logging.getLogger(__name__)


# Those of `evaluate`, but for `full`, without which the cost is open.
TRANSFER = TransferConfig(baselines=(SCRATCH, RANDOM, FULL))
OF_BYTES = tuple(name for name in ARMS if name.startswith(RANDOM_OF_BYTES))
_SAMPLE = 128  # selected images, of which the bytes of an image are found, ...
_OF = 400  # ... of so many real ones at least
_LEARNED = 1.15  # bytes of an image that was learned, where a real one takes 1: 1.01 to 1.15 were seen


@on_own_terms()
@speaking
def sweep(
    stage: DistillationStage,
    data: Any,
    sizes: Sequence[int],
    tasks: Sequence[Any],
    *,
    out: str | Path,
    bytes: Sequence[int] = (),
    student: str | Sequence[str] | None = None,
    search: Sequence[str] = (),
    trials: int | None = None,
    search_size: int | None = None,
    representations: Any = None,
    verbose: bool = True,
    config: TransferConfig | None = None,
    **options: Unpack[TransferOptions],
) -> Sweep:
    """Distils and evaluates sets of several sizes, and finds the smallest that is good enough, and what it costs.

    Called again with the same arguments, it goes on where it stopped: a size that is finished is not made again, a
    distillation goes on from its newest checkpoint, an evaluation with the next arm. Other sizes may be given then.

    Args:
        stage: Target and settings. Its own number of images does not count.
        data: Real images, as `DistillationStage.run` takes them.
        sizes: Numbers of synthetic images, increasing; none where `bytes` are given.
        tasks: As for `evaluate`, read as the stage reads the source. They are not read before a search is over.
        out: New folder, or that of a sweep with the same settings.
        bytes: Budgets of bytes on disk instead of sizes, increasing. As many images are distilled as should fit, and
            compared with random real images of as many bytes and of 2, 5 and 10 times as many, which says what the set
            is worth.
        student: Backbones that are tried on the tasks, one or several. Default: those of the stage.
        search: What to search before the sizes are distilled, of `lr` (of images and of representations, apart),
            `ridge` and `steps`; see `search.py`. The best settings are used for all sizes.
        trials: Distillations that the search tries, the first with the stage's own settings.
        search_size: Which of the sizes the search distils. Default: the smallest.
        representations: The target's, of the real images, as `DistillationStage.run` takes them. Default: a folder in
            `out`, so that they are computed once for all sizes.
        verbose: Shows progress, and what is found and written.
        config: How students are tried, all settings at once. Baselines that need labels of the source are refused,
            those that no size changes are measured once, and without `full` the cost stays open. The device is the
            stage's. The recommendation looks at the probe `linear`, or else at the first.
        options: Fields of `TransferConfig` instead, such as `steps=1000`; the baselines are scratch, random and full by
            default.

    Returns:
        The results, of all sizes that were ever finished in `out`.

    Raises:
        UsageError: If anything does not fit together, or the sweep in `out` had other settings; before any long work.
    """
    if sizes and bytes:
        raise UsageError("Give sizes in images or in bytes, not both.")
    stage.settle(data)
    transfer = _fitted(choose(config, TRANSFER, options), stage)
    if bytes:
        transfer = replace(transfer, baselines=(*transfer.baselines, *OF_BYTES))  # which keeps each once
    folder, wanted = Path(out), _increasing(bytes or sizes)
    kept = representations if representations is not None else folder.absolute() / "representations"
    budgets: dict[int, int] = {}
    plan = None if bytes else plan_search(search, trials, search_size, wanted, stage.config)
    students = student_names(student or stage.config.students)
    check_names(students)
    task_names = [find_task(task)[0] for task in tasks]
    check_task_names(task_names)
    begun = read_record(folder)
    most = replace(stage.config, num_images=2 if bytes else wanted[-1])
    DistillationStage(stage.target, config=most, verbose=stage.verbose).check(data, representations=representations)
    source = _open(data, stage, students)
    if bytes:
        budgets = _fitting(wanted, stage, source)
        wanted = list(budgets)
        plan = plan_search(search, trials, search_size, wanted, stage.config)
    _require_enough(source, stage.config, wanted[-1], plan)
    settings = _settings(stage, source, plan, students, task_names, transfer)
    state = go_on(begun, settings, folder) if begun else Sweep(settings, None, {})
    searching = plan is not None and state.found is None
    opened = [] if searching else _opened(tasks, state, source.image_size, stage.config.reading)
    write_record(state, folder)
    if plan is not None and searching:
        state.found = _search(plan, stage, source, kept, folder)
        write_record(state, folder)
        opened = _opened(tasks, state, source.image_size, stage.config.reading)
    for number, size in enumerate(wanted, start=1):
        which = f"Size {size:,} ({number} of {len(wanted)})"
        if size in state.sizes:
            _logger.info("%s is finished already.", which)
            continue
        _logger.info("%s: distilling and evaluating.", which)
        place = folder / f"size-{size}"
        state.sizes[size] = _one_size(state, stage, source, kept, opened, transfer, size, place)
        state.sizes[size].budget = budgets.get(size)
        state.sizes = dict(sorted(state.sizes.items()))
        write_record(state, folder)
    sweep_report.write(state, SyntheticSet.load(folder / f"size-{state.recommended}" / "run"), folder)
    return state


def _fitting(budgets: Sequence[int], stage: DistillationStage, source: Source) -> dict[int, int]:
    """Returns each budget of bytes by how many learned images should fit into it."""
    config = stage.config
    count = min(len(source), max(_OF, 2 * config.target_dims if isinstance(config.target_dims, int) else 0))
    some = source.part(torch.arange(len(source))[:: len(source) // count])
    few = replace(config, steps=0, num_images=min(_SAMPLE, len(some)), holdout=0)
    _logger.info("A selection of %d images, to see how many bytes they take:", few.num_images)
    selected = DistillationStage(stage.target, config=few).run(some)
    real = Footprint.of(selected, selected)
    learned = (_LEARNED - 1) * real.each
    footprint = Footprint(real.fixed, real.each + learned)

    def bytes_of(count: int) -> float:
        return stored_bytes(selected.part(torch.arange(count)), selected) + learned * count

    if budgets[0] < bytes_of(2):
        raise UsageError(f"{budgets[0]:,} bytes are too few for a set: two images take about {bytes_of(2):,.0f}.")
    wanted = [
        about if (about := footprint.count(budget)) > len(selected) else most_within(budget, bytes_of, len(selected))
        for budget in budgets
    ]
    _logger.info("Into %s bytes fit %s images.", *(", ".join(f"{n:,}" for n in each) for each in (budgets, wanted)))
    for (less, fewer), (more, as_many) in pairwise(zip(budgets, wanted, strict=True)):
        if fewer == as_many:
            raise UsageError(f"Into {less:,} and {more:,} bytes fit {fewer:,} images: give budgets further apart.")
    return dict(zip(wanted, budgets, strict=True))


def _increasing(sizes: Sequence[int]) -> list[int]:
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int) or size < 2:
            raise UsageError(f"Sizes are whole numbers of images, at least 2, such as 50,100,200; got {size!r}.")
    if not sizes or any(after <= before for before, after in pairwise(sizes)):
        raise UsageError(
            f"Sizes increase from one to the next, such as 50,100,200; got {','.join(map(str, sizes)) or 'none'}."
        )
    return list(sizes)


def _settings(
    stage: DistillationStage,
    source: Source,
    plan: SearchPlan | None,
    students: Sequence[str],
    tasks: Sequence[str],
    transfer: TransferConfig,
) -> dict[str, Any]:
    """Returns all that decides a sweep, but for its sizes, as plain values."""
    seen = target_frame(source, stage.target, stage.config.target_size)
    # by default it depends on target and images; in older versions, the target saw what students see
    apart = {"image_size": seen.size} if seen.size != source.image_size else {}
    tried = {"student": students, "arms": [arm.name for arm in transfer.arms], "tasks": tasks}
    return {
        "distill": {
            name: value for name, value in to_dict(stage.config).items() if name not in ("num_images", "target_size")
        },
        "source": {"name": source.name, "fingerprint": source.fingerprint, "images": len(source)},
        "target": {"name": stage.target.name, "sha256": stage.target.weights_sha256(), **apart},
        "evaluate": {**tried, "seeds": transfer.seed_list, **transfer.recorded()},
        "search": asdict(plan) if plan else None,
    }


def _fitted(config: TransferConfig, stage: DistillationStage) -> TransferConfig:
    """Refuses what a sweep cannot do, and returns the settings with the stage's device."""
    labelled = sorted(name for name in config.baselines if "labels" in ARMS[name].needs)
    if labelled:
        raise UsageError(
            f"A sweep has no arms that need labels of the source: try {', '.join(labelled)} in `evaluate`."
        )
    device = stage.config.device
    if config.device not in (TRANSFER.device, device):
        raise UsageError(
            f"A sweep tries students where it distils, on the stage's device, {device}; got device={config.device!r}."
        )
    if config.reading != Reading(config.num_workers):
        raise UsageError("A sweep reads tasks as the source: give column and value_range to the stage.")
    return replace(config, device=device, num_workers=stage.config.num_workers)


def _opened(tasks: Sequence[Any], state: Sweep, image_size: int, reading: Reading) -> list[Task]:
    """Opens the tasks, which have to be those that finished sizes were tried on, not only of the same names."""
    opened = open_tasks(tasks, state.settings["evaluate"]["labels"], image_size=image_size, reading=reading)
    prints = {task.name: task.fingerprint() for task in opened}
    changed = [name for name, known in state.tasks.items() if state.sizes and prints[name] != known]
    if changed:
        raise UsageError(
            f"The sweep was begun with other images or labels of the task {', '.join(changed)}: give the old ones or "
            "another --out."
        )
    state.tasks = prints
    return opened


def _open(data: Any, stage: DistillationStage, students: Sequence[str]) -> Source:
    config = stage.config
    images, _ = find_for_target(
        data,
        stage.target,
        image_size=config.image_size,
        target_size=config.target_size,
        reading=config.reading,
    )
    source = open_source(images)
    for name in students:
        student_builder(name, source.image_size)
    return source


def _require_enough(source: Source, config: DistillConfig, largest: int, plan: SearchPlan | None) -> None:
    held = require_enough(source, replace(config, num_images=largest))
    if plan is not None and not held:
        raise UsageError(f"--search is judged on held-out real images, and {source.name} has fewer than 10 images.")


def _search(plan: SearchPlan, stage: DistillationStage, source: Source, representations: Any, folder: Path) -> Found:
    config, device = stage.config, resolve_device(stage.config.device)
    _logger.info("Searching %s at %d images: %d trials.", ", ".join(plan.names), plan.images, plan.trials)
    students = [(name, student_builder(name, source.image_size)) for name in config.students]
    keeps = keeper(find_representations(representations), source, stage.target.weights_sha256(), None)
    real = RealImages.of_target(source, stage.target, replace(config, num_images=plan.images), device, keeps)
    found = run_search(plan, real, students, config, folder / "search.db")
    _logger.info("Found %s.", ", ".join(f"{name}={value:.4g}" for name, value in found.settings.items()))
    return found


def _one_size(
    state: Sweep,
    stage: DistillationStage,
    source: Source,
    representations: Any,
    tasks: Sequence[Task],
    transfer: TransferConfig,
    size: int,
    place: Path,
) -> SizeResult:
    config = replace(with_settings(stage.config, state.found.settings if state.found else {}), num_images=size)
    if config.precision == "auto" and state.sizes:  # what the first size has found it to be: all are made alike
        made = SyntheticSet.load(place.with_name(f"size-{next(iter(state.sizes))}") / "run")
        config = replace(config, precision=made.provenance.get("precision", "auto"))
    synthetic = _distilled(DistillationStage(stage.target, config=config), source, place / "run", representations)
    known = next(iter(state.sizes.values())).results if state.sizes else []
    missing = [arm.name for arm in transfer.arms if arm.size_matters or not known]
    folder = place / "evaluation"
    students = state.settings["evaluate"]["student"]
    begun = _begun(folder, synthetic, students, tasks, missing, transfer)
    results = evaluate(
        synthetic,
        students,
        tasks,
        data=source,
        target=stage.target,
        representations=representations,
        out=folder,
        resume=begun,
        overwrite=not begun,
        config=replace(transfer, baselines=missing),
    )
    for result in results:
        if DISTILLED in result.failed:
            raise DistillError(
                f"Student {result.student} cannot be pre-trained on the set of {size}: {result.failed[DISTILLED]} "
                f"The sets stay in {place.parent}; a sweep with other settings of pre-training needs another --out."
            )
    _complete(results, known, transfer)
    write_results(results, folder)
    evaluation_report.write(results, synthetic, folder, run_metrics(place / "run"))
    facts = synthetic.provenance
    return SizeResult(facts["seconds"], facts["heldout_loss"], results)


def _distilled(stage: DistillationStage, source: Source, place: Path, representations: Any = None) -> SyntheticSet:
    """Distils, or goes on with it; a set that is there is complete, as it is written last."""
    if (place / "set" / set_facts.FACTS).is_file():
        return SyntheticSet.load(place)
    begun = any((place / "checkpoints").glob("step-*.safetensors"))
    return stage.run(source, out=place, resume=begun, overwrite=not begun, representations=representations)


def _begun(
    folder: Path,
    synthetic: SyntheticSet,
    students: Sequence[str],
    tasks: Sequence[Task],
    arms: Sequence[str],
    transfer: TransferConfig,
) -> bool:
    """Returns whether a folder has the beginning of this very evaluation; settings may change between two sizes."""
    try:
        known = read_results(folder)
    except DistillError:  # there is none, or it is damaged
        return False
    tried = {"set": identity(synthetic), "fingerprints": {task.name: task.fingerprint() for task in tasks}}
    wanted = json.loads(json.dumps({**tried, **transfer.recorded()}))
    return all(
        {*each.arms, *each.failed} <= {*arms}
        and each.student in students
        and each.seeds == transfer.seed_list
        and all(each.setting.get(name) == value for name, value in wanted.items())
        for each in known
    )


def _complete(results: Sequence[Evaluation], known: Sequence[Evaluation], transfer: TransferConfig) -> None:
    """Adds the arms that another size has measured already, in the order of the tables."""
    any_size = [arm.name for arm in transfer.arms if not arm.size_matters]
    for result in results:
        for other in known:
            if other.student == result.student:
                result.arms |= {name: other.arms[name] for name in any_size if name in other.arms}
                result.failed |= {name: why for name, why in other.failed.items() if name in any_size}
        result.arms = {arm.name: result.arms[arm.name] for arm in transfer.arms if arm.name in result.arms}
