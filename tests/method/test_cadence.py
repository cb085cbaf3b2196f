import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

import tiny
from lightly_distill.method.cadence import Cadence
from lightly_distill.method.config import DistillConfig
from lightly_distill.runtime.processes import Processes


def due(says: Callable[[int], bool], steps: int) -> list[int]:
    return [step for step in range(1, steps + 1) if says(step)]


@dataclass(frozen=True)
class Two(Processes):
    """Two processes, of which the other one says what it is given."""

    count: int = 2
    other: tuple[int | None, bool] = (None, False)

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other] if self.main else [self.other, value]


@pytest.mark.parametrize(
    ("steps", "measured"), [(40, list(range(4, 41, 4))), (25, [*range(2, 25, 2), 25]), (3, [1, 2, 3])]
)
def test_ten_measurements_or_so_are_spread_over_a_run_the_last_one_at_its_end(steps: int, measured: list[int]) -> None:
    assert due(Cadence(tiny.config(steps=steps)).measures, steps) == measured


def test_rows_come_every_few_steps_and_with_each_measurement() -> None:
    cadence = Cadence(tiny.config(steps=40, log_every=7))
    assert due(cadence.logs, 40) == [4, 7, 8, 12, 14, 16, 20, 21, 24, 28, 32, 35, 36, 40]


def test_checkpoints_come_every_few_steps_and_after_the_last() -> None:
    cadence = Cadence(tiny.config(steps=10, checkpoint_every=4))
    assert due(cadence.saves, 10) == [4, 8, 10]
    assert due(Cadence(tiny.config(steps=10, checkpoint_every=None)).saves, 10) == [10]
    assert DistillConfig().checkpoint_every is None  # quick steps would wait for the disk


def test_checkpoints_come_after_minutes_too_counted_from_the_one_before() -> None:
    cadence = Cadence(tiny.config(steps=1000, checkpoint_every=1000, checkpoint_minutes=0.5 / 60))
    assert not cadence.saves(1)
    time.sleep(0.55)
    assert cadence.saves(2) and cadence.saves(3)  # until it is done
    cadence.saved()
    assert not cadence.saves(4)


def test_the_seconds_of_a_step_are_the_mean_since_the_row_before_without_what_measuring_took() -> None:
    cadence = Cadence(tiny.config(), step=5)
    time.sleep(0.08)
    assert 0.04 <= cadence.seconds_per_step(7) < cadence.seconds_per_step(6)
    time.sleep(0.3)  # a measurement
    cadence.logged(7)
    assert cadence.seconds_per_step(8) < 0.3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_for_a_checkpoint_and_a_stop_and_is_as_it_was_after_the_block(number: int) -> None:
    before = signal.getsignal(number)
    with Cadence(tiny.config(steps=100, checkpoint_every=100, checkpoint_minutes=1000)) as cadence:
        assert not cadence.saves(1) and cadence.stop is None
        signal.raise_signal(number)
        assert cadence.saves(2) and cadence.stop == number
    assert signal.getsignal(number) is before


def test_several_processes_stop_after_the_next_row_on_a_signal_that_one_of_them_was_sent() -> None:
    config = tiny.config(steps=100, log_every=4, checkpoint_every=100)
    other = Cadence(config, Two(other=(signal.SIGTERM, False)))
    with Cadence(config, Two(index=1)) as sent:
        signal.raise_signal(signal.SIGTERM)
        for cadence in (sent, other):
            assert not cadence.saves(3) and cadence.stop is None
            assert cadence.saves(4) and cadence.stop == signal.SIGTERM


def test_the_clock_of_the_main_process_counts_for_all() -> None:
    late = tiny.config(steps=100, log_every=4, checkpoint_every=100, checkpoint_minutes=1e-9)
    early = tiny.config(steps=100, log_every=4, checkpoint_every=100, checkpoint_minutes=1000)
    for processes, config, steps in (
        (Two(), late, [4, 8]),  # the main one
        (Two(), early, []),
        (Two(index=1, other=(None, True)), early, [4, 8]),
        (Two(index=1), late, []),
    ):
        cadence = Cadence(config, processes)
        assert due(cadence.saves, 8) == steps
