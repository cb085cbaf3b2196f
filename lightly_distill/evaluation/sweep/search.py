"""Searches settings of a distillation with Optuna, judged on held-out real images and on nothing else.

What is comparable: each trial's set is judged by the same fresh students, of the same initial weights and ages, trained
on that set alone, and solved with the ridge that the user gave. The `heldout_loss` of two runs would not do: a run
measures with its own ridge, and with students whose ages, and whose training on earlier versions of the set, depend on
how many steps it took. A student's own training matters all the same: the students that judge are trained with
`pool.lr` for up to `pool.max_age` steps, and a set that suits those is what the search finds.
"""

import contextlib
import logging
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightly_distill.errors import DistillError, UsageError, did_you_mean
from lightly_distill.method.config import DistillConfig
from lightly_distill.method.distill import distill, held_out_loss
from lightly_distill.method.pool import StudentBuilder, StudentPool
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.state import DistillState
from lightly_distill.runs.run_folder import RunFolder
from lightly_distill.runtime import seeding
from lightly_distill.runtime.settings import to_dict, update

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

# What a user names, and the settings that are searched for it.
SEARCHABLE = {
    "lr": ("outer.lr_images", "outer.lr_representations"),
    "ridge": ("ridge.strength",),
    "steps": ("steps",),
}
# Least and most, as factors of what the user gave. A penalty far below the default is lost in float32.
RANGES = {"lr": (1 / 30, 30.0), "ridge": (1e-2, 1e4)}
STEP_FACTORS = (0.25, 0.5, 1, 2)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchPlan:
    """What is searched.

    Attributes:
        names: Of `SEARCHABLE`.
        trials: How many distillations are tried, the first with the settings as they are.
        images: Size of the sets that are tried.
    """

    names: tuple[str, ...]
    trials: int
    images: int


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        settings: The best value of each searched setting, by dotted name.
        trials: Settings and loss of each trial, in order; a loss of None is a distillation that diverged.
        best: Number of the best trial.
        seconds: Of all trials.
    """

    settings: dict[str, float]
    trials: list[dict[str, Any]]
    best: int
    seconds: float


def plan_search(
    names: Sequence[str], trials: int | None, images: int | None, sizes: Sequence[int], config: DistillConfig
) -> SearchPlan | None:
    """Checks what a user asks for.

    Args:
        names: Of `SEARCHABLE`; empty for no search.
        trials: How many.
        images: Size of the sets that are tried. Default: the smallest.
        sizes: Of the sweep, increasing.
        config: Of the distillation.

    Returns:
        The plan, None for no search.

    Raises:
        UsageError: If a name is unknown, the number of trials does not fit, or Optuna is not installed.
    """
    names = tuple(dict.fromkeys(names))
    if not names:
        if trials is not None or images is not None:
            option = "--trials" if trials is not None else "--search-size"
            raise UsageError(f"{option} needs --search: name what to search, of {', '.join(SEARCHABLE)}.")
        return None
    for name in names:
        if name not in SEARCHABLE:
            raise UsageError(f"Nothing to search is named '{name}'.{did_you_mean(name, SEARCHABLE)}")
    if trials is None or trials < 1:
        got = "" if trials is None else f"; got {trials}"
        raise UsageError(f"--search needs --trials, the number of distillations to try, at least 1{got}.")
    if images is not None and images not in sizes:
        raise UsageError(f"--search-size must be one of the sizes {', '.join(map(str, sizes))}; got {images}.")
    if not config.holdout:
        raise UsageError("--search is judged on held-out real images: give --holdout a number above 0.")
    if find_spec("optuna") is None:
        raise UsageError("--search needs Optuna: pip install 'lightly-distill[search]'.")
    return SearchPlan(names, trials, images or sizes[0])


def run_search(
    plan: SearchPlan,
    real: RealImages,
    students: Sequence[tuple[str, StudentBuilder]],
    config: DistillConfig,
    storage: Path,
) -> Found:
    """Tries settings and returns the best; goes on where an earlier search in the same file stopped.

    Args:
        plan: What is searched.
        real: Real images, at least one of them held out.
        students: Of the pool.
        config: All other settings. Its own values of what is searched are tried first.
        storage: Optuna's SQLite file.

    Raises:
        DistillError: If the distillation diverges with all the settings tried.
    """
    config = update(config, {"num_images": plan.images})
    import optuna

    with _quiet():
        # not by its address: a path may hold signs that mean something there
        rdb = optuna.storages.RDBStorage("sqlite://", engine_kwargs={"creator": lambda: sqlite3.connect(storage)})
        study = optuna.create_study(storage=rdb, study_name="search", load_if_exists=True)
        for number in range(len(_finished(study)), plan.trials):
            loss = _try_next(study, number, plan, real, students, config)
            best = study.best_value
            _logger.info("Trial %d of %d: held-out loss %.4g, the best is %.4g.", number + 1, plan.trials, loss, best)
        trials = _finished(study)[: plan.trials]
    best = min(range(len(trials)), key=lambda number: float(trials[number].value))
    if not math.isfinite(trials[best].value):
        raise DistillError(f"The distillation diverged in all {len(trials)} trials: start from lower learning rates.")
    tried = [{"settings": trial.params, "heldout_loss": _finite(trial.value)} for trial in trials]
    seconds = sum(trial.user_attrs["seconds"] for trial in trials)
    return Found(dict(trials[best].params), tried, best, round(seconds, 1))


def with_settings(config: DistillConfig, settings: Mapping[str, float]) -> DistillConfig:
    """Returns a configuration with some settings replaced, given by dotted name."""
    for path, value in settings.items():
        *parts, name = path.split(".")
        config = update(config, {parts[0]: {name: value}} if parts else {name: value})
    return config


def judge(
    config: DistillConfig,
    real: RealImages,
    students: Sequence[tuple[str, StudentBuilder]],
    yardstick: DistillConfig,
) -> float:
    """Distils, and returns the held-out loss of the set with fresh students.

    Args:
        config: To distil with.
        real: Real images.
        students: Of both pools.
        yardstick: Whose pool and ridge judge; of the same seed for all that are to be compared.
    """
    state = DistillState.start(real, students, config)
    distill(state, real, config, RunFolder(None, {}))
    chunk_size = state.pool.chunk_size
    state.pool = StudentPool(students, yardstick.pool, state.images, state.targets, yardstick.seed)
    state.pool.chunk_size = chunk_size
    state.pool.warm_up(*state.learned())
    return float(held_out_loss(state, real.held_out(), yardstick)["heldout_loss"])


def _try_next(
    study: "Study",
    number: int,
    plan: SearchPlan,
    real: RealImages,
    students: Sequence[tuple[str, StudentBuilder]],
    config: DistillConfig,
) -> float:
    import optuna

    space = _space(plan.names, config)
    trial = None
    own = {name: _value(to_dict(config), name) for name in space}
    if number:
        # a sampler of its own for each, so that a search that was interrupted goes on as if it had not been
        study.sampler = optuna.samplers.TPESampler(seed=seeding.derive(config.seed, "search", number) % 2**32)
        trial = study.ask(space)
    settings = trial.params if trial else own
    started = time.perf_counter()
    try:
        loss = judge(with_settings(config, settings), real, students, config)
    except DistillError as error:
        _logger.warning("Trial %d diverged: %s", number + 1, error)
        loss = math.inf
    seconds = time.perf_counter() - started
    if trial is None:
        study.add_trial(
            optuna.trial.create_trial(params=own, distributions=space, value=loss, user_attrs={"seconds": seconds})
        )
    else:
        trial.set_user_attr("seconds", seconds)
        study.tell(trial, loss)
    return loss


def _space(names: Sequence[str], config: DistillConfig) -> "dict[str, BaseDistribution]":
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    space: dict[str, BaseDistribution] = {}
    for name in names:
        for setting in SEARCHABLE[name]:
            own = _value(to_dict(config), setting)
            if name == "steps":
                counts = dict.fromkeys(max(1, round(own * factor)) for factor in STEP_FACTORS)
                space[setting] = CategoricalDistribution(list(counts))
            else:
                low, high = RANGES[name]
                space[setting] = FloatDistribution(own * low, own * high, log=True)
    return space


def _value(settings: Mapping[str, Any], path: str) -> Any:
    for part in path.split("."):
        settings = settings[part]
    return settings


def _finished(study: "Study") -> list[Any]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lets Optuna log warnings only, and leaves it as the user has set it."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
