import multiprocessing
import os
import signal
import threading
import time
from typing import Any

import pytest

from lightly_distill.runtime.signals import STOPPING, StopOnSignal, leave

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals as Unix has them")


@pytest.fixture(autouse=True)
def handlers() -> Any:
    """Python's own handlers, whatever the tests are run by, and back again."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPPING)
def test_the_first_signal_is_only_noted_and_handlers_come_back(number: int) -> None:
    before = [signal.getsignal(other) for other in STOPPING]
    with StopOnSignal() as signalled:
        assert signalled.received is None
        signal.raise_signal(number)
        assert signalled.received == number
        assert [signal.getsignal(other) for other in STOPPING] == before  # for the second one
    with StopOnSignal():
        pass
    assert [signal.getsignal(other) for other in STOPPING] == before


def test_a_second_interrupt_is_python_s_own() -> None:
    with StopOnSignal() as signalled, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert signalled.received == signal.SIGTERM


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with StopOnSignal() as signalled:
        signal.raise_signal(signal.SIGUSR1)
        assert signalled.received is None
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_another_thread_has_no_signals_and_works_as_without() -> None:
    before = [signal.getsignal(number) for number in STOPPING]
    seen = []

    def work() -> None:
        with StopOnSignal() as signalled:
            seen.append([signal.getsignal(number) for number in STOPPING])
        seen.append(signalled.received)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, None]


def test_leaving_is_an_interrupt_for_sigint_and_a_status_for_the_others() -> None:
    with pytest.raises(KeyboardInterrupt):
        leave(signal.SIGINT)
    for number, status in ((signal.SIGTERM, 143), (signal.SIGUSR1, 138 if signal.SIGUSR1 == 10 else 158)):
        with pytest.raises(SystemExit) as end:
            leave(number)
        assert end.value.code == status


def test_the_program_s_own_handler_is_asked_after_the_save() -> None:
    asked = []
    signal.signal(signal.SIGUSR1, lambda number, frame: asked.append(number))
    with StopOnSignal() as signalled:
        signal.raise_signal(signal.SIGUSR1)
        assert not asked and signalled.received == signal.SIGUSR1
    with pytest.raises(SystemExit):
        leave(signal.SIGUSR1)
    assert asked == [signal.SIGUSR1]


def stuck(ready: Any, noted: Any) -> None:
    """A step that never ends."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with StopOnSignal() as signalled:
        ready.set()
        while True:
            time.sleep(0.01)
            if signalled.received is not None:
                noted.set()


def test_a_second_signal_ends_a_step_that_hangs() -> None:
    context = multiprocessing.get_context("fork")
    ready, noted = context.Event(), context.Event()
    process = context.Process(target=stuck, args=(ready, noted), daemon=True)
    process.start()
    assert process.pid is not None and ready.wait(30)
    os.kill(process.pid, signal.SIGTERM)
    assert noted.wait(30)  # two signals at once would count as one
    assert process.exitcode is None
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == -signal.SIGTERM
