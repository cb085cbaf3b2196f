import importlib.util
import json
import sqlite3
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from lightly_distill import DistillConfig, DistillError, UsageError, as_target
from lightly_distill.data.source import open_source
from lightly_distill.evaluation.sweep import search
from lightly_distill.method.config import make_config
from lightly_distill.method.real_images import RealImages

SIZES = [4, 8]
STUDENTS = [("tiny", tiny.student)]


def config(**options: Any) -> DistillConfig:
    # a pool large enough for a mean that can be compared
    return tiny.config(**{"num_images": 4, "holdout": 6, "pool": {"size": 4, "max_age": 6}, **options})


def real(settings: DistillConfig) -> RealImages:
    return RealImages.of_target(open_source(tiny.images(60)), as_target(tiny.encoder()), settings, torch.device("cpu"))


def found(folder: Path, trials: int = 4, names: tuple[str, ...] = ("lr",), **options: Any) -> search.Found:
    settings = config(**options)
    plan = search.SearchPlan(names, trials, 4)
    return search.run_search(plan, real(settings), STUDENTS, settings, folder / "search.db")


def test_the_best_trial_is_found_and_beats_poor_settings(tmp_path: Path) -> None:
    poor = {"lr_images": 1e-4, "lr_representations": 1e-4}  # little is learned with these
    result = found(tmp_path, trials=5, outer=poor, steps=20)
    losses = [trial["heldout_loss"] for trial in result.trials]
    assert result.trials[0]["settings"] == {f"outer.{name}": rate for name, rate in poor.items()}
    assert losses[result.best] == min(losses) < losses[0]
    assert result.settings == result.trials[result.best]["settings"] and len(losses) == 5
    best = search.with_settings(config(outer=poor, steps=20), result.settings)
    assert search.judge(best, real(best), STUDENTS, config(outer=poor, steps=20)) == losses[result.best]


def test_learning_rates_are_searched_apart_and_around_those_that_were_given(tmp_path: Path) -> None:
    result = found(tmp_path, trials=6, names=("lr", "ridge", "steps"), steps=8)
    tried = [trial["settings"] for trial in result.trials]
    names = {"outer.lr_images", "outer.lr_representations", "ridge.strength", "steps"}
    assert all(set(each) == names for each in tried)
    assert {each["steps"] for each in tried} <= {2, 4, 8, 16}
    for name, (low, high), own in (("outer.lr_images", (1 / 30, 30), 2e-2), ("ridge.strength", (1e-2, 1e4), 1e-6)):
        assert all(own * low * 0.999 <= each[name] <= own * high * 1.001 for each in tried)
        assert len({each[name] for each in tried}) == len(tried)
    assert all(each["outer.lr_images"] != each["outer.lr_representations"] for each in tried[1:])


def test_an_interrupted_search_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("straight", "stopped"):
        (tmp_path / name).mkdir()
    straight = found(tmp_path / "straight")
    calls = []

    def stops(*arguments: Any) -> float:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return judge(*arguments)

    judge = search.judge
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(search, "judge", stops)
        found(tmp_path / "stopped")
    again = found(tmp_path / "stopped")
    assert again.trials == straight.trials and again.best == straight.best
    monkeypatch.setattr(search, "judge", lambda *_: pytest.fail("tried again"))
    assert found(tmp_path / "stopped") == again
    assert isinstance(sqlite3.connect(tmp_path / "stopped" / "search.db").execute("select 1").fetchone(), tuple)


def test_sets_are_judged_by_the_same_students_and_ridge_whatever_was_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    measure = search.held_out_loss

    def watched(state: Any, held_out: Any, yardstick: DistillConfig) -> Any:
        seen.append((yardstick.ridge.strength, [(slot.age, slot.births) for slot in state.pool.slots]))
        return measure(state, held_out, yardstick)

    monkeypatch.setattr(search, "held_out_loss", watched)
    own = config()
    for changes in ({"steps": 3}, {"steps": 11}, {"ridge": {"strength": 1e-3}}):
        changed = config(**changes)
        assert search.judge(changed, real(changed), STUDENTS, own) > 0
    assert seen[0] == seen[1] == seen[2] and seen[0][0] == own.ridge.strength


def test_a_trial_that_diverges_is_told_and_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, number = search.judge, iter(range(9))

    def sometimes(*arguments: Any) -> float:
        if next(number) != 1:
            raise DistillError("diverged at step 3")
        return judge(*arguments)

    monkeypatch.setattr(search, "judge", sometimes)
    result = found(tmp_path, trials=3)
    assert [trial["heldout_loss"] is None for trial in result.trials] == [True, False, True] and result.best == 1
    json.dumps(asdict(result), allow_nan=False)
    monkeypatch.setattr(search, "judge", lambda *_: (_ for _ in ()).throw(DistillError("diverged")))
    (tmp_path / "all").mkdir()
    with pytest.raises(DistillError, match="diverged in all 2 trials: start from lower learning rates"):
        found(tmp_path / "all", trials=2)


def test_optunas_own_logging_is_left_as_it_was(tmp_path: Path) -> None:
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    try:
        found(tmp_path, trials=1)
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.set_verbosity(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["lrr"], 3, None), r"Nothing to search is named 'lrr'\. Did you mean 'lr'"),
        ((["lr"], None, None), r"--search needs --trials, the number of distillations to try, at least 1\.$"),
        ((["lr"], 0, None), r"--search needs --trials, .* at least 1; got 0"),
        (([], 3, None), r"--trials needs --search: name what to search, of lr, ridge, steps"),
        (([], None, 4), r"--search-size needs --search"),
        ((["lr"], 3, 5), r"--search-size must be one of the sizes 4, 8; got 5"),
    ],
)
def test_a_search_that_cannot_be_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        search.plan_search(*arguments, SIZES, config())


def test_without_held_out_images_or_optuna_there_is_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"give --holdout a number above 0"):
        search.plan_search(["lr"], 3, None, SIZES, make_config(holdout=0))
    monkeypatch.setattr(search, "find_spec", lambda name: None if name == "optuna" else importlib.util.find_spec(name))
    with pytest.raises(UsageError, match=r"pip install 'lightly-distill\[search\]'"):
        search.plan_search(["lr"], 3, None, SIZES, config())
    assert search.plan_search([], None, None, SIZES, config()) is None


def test_the_smallest_size_is_searched_unless_another_is_named() -> None:
    assert search.plan_search(["lr", "lr"], 3, None, SIZES, config()) == search.SearchPlan(("lr",), 3, 4)
    assert search.plan_search(["lr"], 3, 8, SIZES, config()) == search.SearchPlan(("lr",), 3, 8)
