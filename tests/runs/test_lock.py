import errno
import fcntl
import multiprocessing
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from lightly_distill.errors import DistillError, UsageError
from lightly_distill.runs.lock import NAMES, locked, refuse_running

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its process with fork")


def hold(folder: Path, ready: Event, workers: bool) -> None:
    with locked(folder):
        if workers:  # as a DataLoader's: it lives on for seconds when its parent is killed
            multiprocessing.get_context("fork").Process(target=time.sleep, args=(3,)).start()
        ready.set()
        signal.pause()


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """Starts processes that hold a lock; whatever a test finds, none is left after it."""
    context = multiprocessing.get_context("fork")
    started = []

    def start(folder: Path, workers: bool = False) -> Any:
        ready = context.Event()
        process = context.Process(target=hold, args=(folder, ready, workers))
        started.append(process)
        process.start()
        assert ready.wait(30)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


@needs_fork
def test_a_second_process_is_refused_by_number_and_host_until_the_first_is_killed(
    tmp_path: Path, start: Callable[..., Any]
) -> None:
    folder = tmp_path / "run"
    first = start(folder)
    message = f"The output folder {folder} is in use by process {first.pid} on {socket.gethostname()}: wait for it, or"
    for refused in (lambda: refuse_running(folder), lambda: locked(folder).__enter__()):
        with pytest.raises(UsageError, match=re.escape(message)):
            refused()
    first.kill()
    first.join()
    assert (folder / NAMES[1]).exists()  # what a killed run leaves is no obstacle
    refuse_running(folder)
    with locked(folder):
        assert str(os.getpid()) in (folder / NAMES[1]).read_text()


@needs_fork
def test_worker_processes_that_outlive_a_killed_run_do_not_hold_its_lock(
    tmp_path: Path, start: Callable[..., Any]
) -> None:
    first = start(tmp_path / "run", workers=True)
    first.kill()
    first.join()
    with locked(tmp_path / "run"):
        pass


def test_one_process_cannot_have_two_runs_in_a_folder_either(tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(UsageError, match=f"in use by process {os.getpid()}"):  # noqa: SIM117
        with locked(tmp_path / "run"):
            pass
    with locked(tmp_path / "run"):
        pass


def test_a_folder_that_stays_empty_leaves_no_trace_and_a_used_one_only_the_empty_lock(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path / "unused"):
        raise RuntimeError
    assert not (tmp_path / "unused").exists()
    with locked(tmp_path):
        pass
    assert not any(tmp_path.iterdir())  # but the folder of somebody else stays
    with locked(tmp_path / "used"):
        (tmp_path / "used" / "config.yaml").touch()
    assert {path.name for path in (tmp_path / "used").iterdir()} == {"config.yaml", NAMES[0]}
    assert (tmp_path / "used" / NAMES[0]).read_bytes() == b""
    with locked(None):
        pass


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DistillError, match=r"file/run cannot be written: .*"), locked(tmp_path / "file" / "run"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS])
def test_where_there_are_no_locks_the_run_goes_on_without_and_says_so_once(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with locked(tmp_path / "run"):
            (tmp_path / "run" / "config.yaml").touch()
        refuse_running(tmp_path / "run")
    (line,) = caplog.messages
    assert line.startswith(f"The file system of {tmp_path / 'run'} has no locks")
