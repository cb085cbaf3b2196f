"""A run that is stopped in any way goes on to the set that it would have made, bit for bit."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crash
from crash import STEPS, run
from lightly_distill.method.pool import StudentPool
from lightly_distill.runs import checkpoint
from lightly_distill.runs.run_folder import OWN_NAMES

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its processes with fork")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crash.make_place(tmp_path_factory.mktemp("crash"))


@pytest.fixture(scope="module")
def straight(place: Path) -> Any:
    """The result of a run that nobody disturbs."""
    status, told = run(place, "straight")
    assert status == 0, told
    return crash.result(place / "straight")


@pytest.fixture
def out(place: Path) -> Iterator[Path]:
    folder = place / "run"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def newest(out: Path) -> int:
    """The step of the newest checkpoint, which must be whole."""
    tensors, facts = checkpoint.load_newest(out / "checkpoints", strict=True)
    assert "images" in tensors
    return int(facts["step"])


def goes_on(place: Path, out: Path, straight: Any, *more: str) -> str:
    status, told = run(place, os.path.relpath(out, place), "--resume", *more)
    assert status == 0, told
    assert crash.result(out) == straight and not crash.unfinished(out)
    return told


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments(place: Path, out: Path, straight: Any, kills: int) -> None:
    moments = random.Random(kills)
    started = time.perf_counter()
    assert run(place, out.name)[0] == 0
    longest = time.perf_counter() - started
    shutil.rmtree(out)
    done = finished = 0
    while done < kills or not finished:
        begun = any((out / name).exists() for name in OWN_NAMES)
        process = crash.start(place, out.name, *(["--resume"] if begun else []))
        process.join(moments.uniform(0, longest) if done < kills else 120)
        if process.exitcode is None:
            process.kill()
            process.join()
            done += 1
            if checkpoint.exists(out / "checkpoints"):
                newest(out)
        else:
            assert process.exitcode == 0, (place / "stderr.txt").read_text()
            assert crash.result(out) == straight and not crash.unfinished(out)
            finished += 1
            shutil.rmtree(out)


def half_of_a_checkpoint() -> None:
    save = checkpoint.save_file

    def cut(tensors: Any, path: Path, metadata: dict[str, str]) -> None:
        save(tensors, path, metadata)
        if path.name.startswith("step-00000005"):
            os.truncate(path, path.stat().st_size // 2)
            crash.kill_self()

    checkpoint.save_file = cut  # type: ignore[assignment]


def half_of_a_shard() -> None:
    def cut(file: Any, numbers: Any) -> None:
        file.write(numbers.tobytes()[:100])
        file.flush()
        crash.kill_self()

    np.save = cut


def before_the_rename_to(name: str) -> None:
    replace = os.replace

    def kill(source: Any, target: Any) -> None:
        if re.search(name, str(target)):
            crash.kill_self()
        replace(source, target)

    os.replace = kill  # type: ignore[assignment]


MOMENTS: dict[str, tuple[Callable[[], None], int | None]] = {
    "half of a checkpoint": (half_of_a_checkpoint, 4),
    "a checkpoint is not yet renamed": (partial(before_the_rename_to, r"step-00000005\.safetensors$"), 4),
    "half of a shard of representations": (half_of_a_shard, None),
    "a shard is not yet renamed": (partial(before_the_rename_to, r"\.npy$"), None),
    "the configuration is not yet renamed": (partial(before_the_rename_to, r"config\.yaml$"), None),
    "the set is not yet renamed": (partial(before_the_rename_to, r"/set$"), STEPS),
    "a student is being trained": (partial(crash.at_step, 7, crash.kill_self), 6),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_sigkill_while(place: Path, out: Path, straight: Any, moment: str) -> None:
    prepare, saved = MOMENTS[moment]
    assert run(place, out.name, prepare=prepare)[0] == -signal.SIGKILL
    assert moment == "a student is being trained" or crash.unfinished(out)
    if saved is not None:
        assert newest(out) == saved
    else:
        assert not checkpoint.exists(out / "checkpoints")
    told = goes_on(place, out, straight)
    assert ("had no checkpoint yet: it starts from the beginning" in told) == (saved is None)


STATUS = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 128 + signal.SIGUSR1}


@pytest.mark.parametrize(
    ("name", "workers"), [("SIGTERM", False), ("SIGUSR1", False), ("SIGTERM", True), ("SIGINT", True)]
)
def test_a_signal_ends_a_run_after_the_step_in_hand(
    place: Path, out: Path, straight: Any, name: str, workers: bool
) -> None:
    def prepare() -> None:
        if workers:
            crash.decode_in_workers()
        # the whole group, as a terminal and a cluster do: worker processes get it too
        crash.at_step(5, lambda: os.killpg(0, signal.Signals[name]))

    status, told = run(place, out.name, prepare=prepare)
    assert status == STATUS[name], told
    assert f"Stopped by {name}: step 5 is saved in run; go on with --resume" in told and "Traceback" not in told
    assert newest(out) == 5 and not crash.unfinished(out) and not (out / "set").exists()
    goes_on(place, out, straight)


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_outside_the_steps_ends_the_program_at_once_and_says_what_is_kept(
    place: Path, out: Path, name: str, status: int
) -> None:
    def prepare() -> None:
        def train(self: StudentPool, *args: Any) -> None:
            signal.raise_signal(signal.Signals[name])
            time.sleep(60)

        StudentPool._train = train  # type: ignore[method-assign]

    ended, told = run(place, out.name, prepare=prepare)
    assert ended == status and f"Stopped by {name} while the pool was warmed up: there is no checkpoint yet" in told
    assert not checkpoint.exists(out / "checkpoints")


def test_a_second_signal_does_not_wait_for_the_step(place: Path, out: Path, straight: Any) -> None:
    def prepare() -> None:
        def twice() -> None:
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGTERM)
            time.sleep(60)

        crash.at_step(5, twice)

    assert run(place, out.name, prepare=prepare)[0] == -signal.SIGTERM
    assert newest(out) == 4
    goes_on(place, out, straight)


def test_a_second_run_on_the_folder_is_refused_until_the_first_is_killed(place: Path, out: Path, straight: Any) -> None:
    first = crash.start(place, out.name, prepare=partial(crash.at_step, 3, partial(time.sleep, 60)))
    while not (out / "metrics.jsonl").exists() or '"step": 3' not in (out / "metrics.jsonl").read_text():
        time.sleep(0.01)
        assert first.exitcode is None
    before = sorted(path.name for path in out.rglob("*"))
    for flags in ([], ["--resume"], ["--overwrite"]):
        status, told = run(place, out.name, *flags)
        assert status == 2
        (line,) = [line for line in told.splitlines() if "error" in line]
        assert f"The output folder run is in use by process {first.pid} on " in line
    assert sorted(path.name for path in out.rglob("*")) == before
    first.kill()
    first.join()
    goes_on(place, out, straight)


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before_it_unless_strict(
    place: Path, out: Path, straight: Any
) -> None:
    run(place, out.name, prepare=partial(crash.at_step, 7, crash.kill_self))
    path = out / "checkpoints" / "step-00000006.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)
    status, told = run(place, out.name, "--resume", "--strict")
    assert status == 1 and "step-00000006.safetensors: it is not what was written" in told
    assert "Left out a checkpoint in run/checkpoints" in goes_on(place, out, straight)


def without_rights() -> None:
    """From now on, this process may write nothing in the run's folder."""
    if os.geteuid() == 0:
        os.seteuid(65534)
    else:
        for folder in ("run", "run/checkpoints"):
            os.chmod(folder, 0o500)


def cannot_be_written(told: str, out: str, why: str) -> None:
    """Told are the checkpoint of step 5 and, in one line, what ended the run: that, or the next row of measurements."""
    assert re.search(rf"{out}/checkpoints/step-00000005.safetensors cannot be written: .*{why}", told), told
    (line,) = [line for line in told.splitlines() if line.startswith("lightly-distill: error: ")]
    assert re.search(rf"{out}/(checkpoints/step-00000005.safetensors|metrics.jsonl) cannot be written: .*{why}", line)


def test_a_folder_that_becomes_read_only_ends_the_run_and_leaves_the_checkpoint(
    place: Path, out: Path, straight: Any
) -> None:
    status, told = run(place, out.name, prepare=partial(crash.at_step, 5, without_rights))
    for folder in (out, out / "checkpoints"):
        folder.chmod(0o755)
    assert status == 1
    cannot_be_written(told, "run", "[Pp]ermission denied")
    assert newest(out) == 4 and not crash.unfinished(out)
    goes_on(place, out, straight)


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    disk = place / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True)
    if mount.returncode:
        pytest.skip("needs the right to mount a small disk; see test_checkpoint.py for a test without it")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint(place: Path, small_disk: Path, straight: Any) -> None:
    ballast = small_disk / "ballast"

    def fill() -> None:
        room = os.statvfs(small_disk)  # but for two blocks: a part of the next checkpoint
        ballast.write_bytes(bytes((room.f_bavail - 2) * room.f_bsize))

    status, told = run(place, "disk/run", prepare=partial(crash.at_step, 5, fill))
    assert status == 1
    cannot_be_written(told, "disk/run", "No space left")
    assert newest(small_disk / "run") == 4 and not crash.unfinished(small_disk / "run")
    ballast.unlink()
    goes_on(place, small_disk / "run", straight)
