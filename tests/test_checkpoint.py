import os
from pathlib import Path

import pytest
import torch

from lightly_distill import checkpoint
from lightly_distill.errors import DistillError, UsageError


def tensors(value: float) -> dict[str, torch.Tensor]:
    shared = torch.full((3, 4), value)
    # a view, a transposed one and a scalar: what states are made of
    return {"a": shared, "b": shared.T, "step": torch.tensor(value), "n": torch.tensor([1, 2])}


def test_tensors_and_facts_come_back(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 5, tensors(2.0), {"jitters": 1, "loss": 0.1 + 0.2})
    again, facts = checkpoint.load_newest(tmp_path)
    assert facts == {"step": 5, "jitters": 1, "loss": 0.1 + 0.2}
    assert all(
        torch.equal(again[name], value) and again[name].dtype == value.dtype for name, value in tensors(2.0).items()
    )


def test_the_newest_two_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    for step in (5, 10, 100, 95):
        checkpoint.save(tmp_path, step, tensors(step), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{s:08d}.safetensors" for s in (95, 100)]
    assert checkpoint.load_newest(tmp_path)[1]["step"] == 100


@pytest.mark.parametrize("where", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_one_and_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    checkpoint.save(tmp_path, 1, tensors(1.0), {})

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(DistillError, match=r"step-00000002.safetensors cannot be written: .*No space left"):
        checkpoint.save(tmp_path, 2, tensors(2.0), {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.safetensors"]
    assert checkpoint.load_newest(tmp_path)[1]["step"] == 1


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, None])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = checkpoint.save(tmp_path, 1, tensors(1.0), {})
    path.write_bytes(path.read_bytes()[:-7] if content is None else content)
    with pytest.raises(
        DistillError, match=r"step-00000001.safetensors is damaged .*delete it to go on from the one before"
    ):
        checkpoint.load_newest(tmp_path)


def test_nothing_to_resume_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no checkpoint in .* Start without --resume"):
        checkpoint.load_newest(tmp_path)
