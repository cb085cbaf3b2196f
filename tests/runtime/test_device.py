from pathlib import Path

import pytest
import torch

from lightly_distill.runtime import device
from lightly_distill.runtime.device import free_memory


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(device, "CGROUPS", ((limit, used), (tmp_path / "not", tmp_path / "here")))
    cpu = torch.device("cpu")
    whole = free_memory(cpu)
    limit.write_text("max\n")
    used.write_text("1000\n")
    assert free_memory(cpu) == pytest.approx(whole, rel=0.2)
    limit.write_text("5000\n")
    assert free_memory(cpu) == 4000
