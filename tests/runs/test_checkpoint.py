import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import pretended
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.runs import checkpoint


def tensors(value: float) -> dict[str, torch.Tensor]:
    shared = torch.full((3, 4), value)
    # a view, a transposed one and a scalar: what states are made of
    return {"a": shared, "b": shared.T, "step": torch.tensor(value), "n": torch.tensor([1, 2])}


def save(folder: Path, step: int, state: dict[str, torch.Tensor], facts: dict[str, Any]) -> Path:
    return checkpoint.save(folder, checkpoint.snapshot(step, state, facts))


def test_tensors_and_facts_come_back(tmp_path: Path) -> None:
    save(tmp_path, 5, tensors(2.0), {"jitters": 1, "loss": 0.1 + 0.2})
    again, facts = checkpoint.load_newest(tmp_path)
    assert facts == {"step": 5, "jitters": 1, "loss": 0.1 + 0.2}
    assert all(
        torch.equal(again[name], value) and again[name].dtype == value.dtype for name, value in tensors(2.0).items()
    )


def test_the_facts_of_the_newest_that_opens_are_had_at_once(tmp_path: Path) -> None:
    assert checkpoint.newest_facts(tmp_path) is None
    save(tmp_path, 5, tensors(2.0), {"loss": 0.5})
    newer = save(tmp_path, 6, tensors(3.0), {"loss": 0.25})
    assert checkpoint.newest_facts(tmp_path) == {"step": 6, "loss": 0.25}
    newer.write_bytes(newer.read_bytes()[:50])
    assert checkpoint.newest_facts(tmp_path) == {"step": 5, "loss": 0.5}


def test_a_snapshot_is_of_the_moment_whatever_the_run_changes_in_place_afterwards(tmp_path: Path) -> None:
    state, losses = {"weight": torch.ones(2, 3), "step": torch.tensor(4.0)}, [0.5]
    taken = checkpoint.snapshot(4, state, {"losses": losses})
    for value in state.values():
        value.add_(1)
    losses.append(0.25)
    checkpoint.save(tmp_path, taken)
    again, facts = checkpoint.load_newest(tmp_path)
    assert torch.equal(again["weight"], torch.ones(2, 3)) and again["step"] == 4 and facts["losses"] == [0.5]


def test_a_snapshot_waits_for_the_gpu_once(tmp_path: Path) -> None:
    numbers = torch.arange(24.0).view(1, 3, 2, 4).to(memory_format=torch.channels_last)
    with pretended.cuda() as seen:
        state = {name: (numbers + place).to("cuda") for place, name in enumerate("abc")} | {"step": torch.tensor(4.0)}
        seen.clear()
        taken = checkpoint.snapshot(4, state, {})
        assert list(seen.waits.values()) == [1] and "synchronize" in next(iter(seen.waits))
        assert all(taken.tensors[name].is_pinned() for name in "abc")
        state["a"].zero_()
    checkpoint.save(tmp_path, taken)
    again, _ = checkpoint.load_newest(tmp_path)
    assert all(torch.equal(again[name], numbers + place) for place, name in enumerate("abc"))


def test_the_newest_two_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    for step in (5, 10, 95, 100):
        save(tmp_path, step, tensors(step), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{s:08d}.safetensors" for s in (95, 100)]
    assert checkpoint.load_newest(tmp_path)[1]["step"] == 100


@pytest.mark.parametrize("where", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_one_and_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    save(tmp_path, 1, tensors(1.0), {})

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(DistillError, match=r"step-00000002.safetensors cannot be written: .*No space left"):
        save(tmp_path, 2, tensors(2.0), {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.safetensors"]
    assert checkpoint.load_newest(tmp_path)[1]["step"] == 1


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


DAMAGE = {"empty": lambda path: path.write_bytes(b""), "cut off": lambda path: os.truncate(path, 200)}
DAMAGE |= {"zeros": lambda path: path.write_bytes(bytes(100)), "one bit": lambda path: flip(path, -3)}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_is_told_and_the_one_before_it_is_read(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 4, tensors(4.0), {"jitters": 3})
    DAMAGE[kind](save(tmp_path, 6, tensors(6.0), {}))
    with pytest.raises(
        DistillError,
        match=r"The newest checkpoint in .* cannot be used \(step-00000006.safetensors: .*\). Without --strict an o",
    ):
        checkpoint.load_newest(tmp_path, strict=True)
    assert not caplog.records
    again, facts = checkpoint.load_newest(tmp_path)
    assert facts == {"step": 4, "jitters": 3} and torch.equal(again["a"], tensors(4.0)["a"])
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "Left out a checkpoint" in record.message
    assert "step-00000006.safetensors: " in record.message
    # the run goes on: the damaged one does not stay in the place of a good one
    save(tmp_path, 5, tensors(5.0), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{s:08d}.safetensors" for s in (4, 5)]
    assert checkpoint.load_newest(tmp_path, strict=True)[1]["step"] == 5


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path, 1, {"a": torch.tensor([1.5]), "b": torch.tensor(2)}, {"jitters": 1})
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 7):  # each byte but a few, all bits in turn
        path.write_bytes(whole)
        flip(path, bit)
        with pytest.raises(DistillError, match=r"No checkpoint in .* can be used \(step-00000001.safetensors: "):
            checkpoint.load_newest(tmp_path)
    path.write_bytes(whole)
    assert checkpoint.load_newest(tmp_path)[1]["jitters"] == 1


def test_if_all_are_damaged_each_fault_is_told_and_so_is_another_format(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step, tensors(step), {})
    os.truncate(tmp_path / "step-00000002.safetensors", 0)
    save_file(tensors(1.0) | {"b": torch.ones(1)}, tmp_path / "step-00000001.safetensors", {"state": "{}"})
    with pytest.raises(
        DistillError,
        match=r"No checkpoint in .* can be used \(step-00000002.*; step-00000001.safetensors: its format is an older "
        r"one, this version reads 2\): start again with --overwrite",
    ):
        checkpoint.load_newest(tmp_path)


LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from lightly_distill.errors import DistillError
from lightly_distill.runs import checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(Path(sys.argv[1]), checkpoint.snapshot(2, {"a": torch.zeros(200_000)}, {}))
except DistillError as error:
    sys.exit(str(error))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_file_that_the_system_does_not_take_leaves_the_old_one_and_is_named(tmp_path: Path) -> None:
    save(tmp_path, 1, tensors(1.0), {})
    result = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 1
    assert re.search(r"step-00000002.safetensors cannot be written: .*(os error|Errno)", result.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.safetensors"]


def test_nothing_to_resume_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no checkpoint in .* Start without --resume"):
        checkpoint.load_newest(tmp_path)
