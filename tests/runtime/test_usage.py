import sys
import time

import pytest
import torch

import lightly_distill.runtime.usage
from lightly_distill.runtime.usage import measured

CPU = torch.device("cpu")
MB = 10**6


def hold(megabytes: int) -> torch.Tensor:
    """Long enough to be seen, in pieces; the last is returned, and keeps the others from going back when freed."""
    pieces = [torch.ones(MB // 40) for _ in range(10 * megabytes)]
    time.sleep(0.1)
    return pieces.pop()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a C library that can return memory")
def test_the_peak_is_seen_each_time_though_the_process_keeps_freed_memory() -> None:
    last = [hold(120)]
    for megabytes in (100, 50, 100):
        with measured(CPU) as cost:
            last.append(hold(megabytes))
        assert 0.9 * megabytes * MB < cost.bytes < 1.3 * megabytes * MB + 10 * MB
        assert cost.seconds > 0.1


def test_what_was_held_before_is_not_counted() -> None:
    held = torch.ones(50 * MB // 4)
    with measured(CPU) as cost:
        hold(10)
    assert held.sum() > 0 and cost.bytes < 30 * MB


def test_without_the_c_librarys_help_it_measures_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: None) -> None:
        raise OSError("no such library")

    lightly_distill.runtime.usage._return_free_memory()  # what other tests left would be used again and not be seen
    monkeypatch.setattr(lightly_distill.runtime.usage.ctypes, "CDLL", refuse)
    with measured(CPU) as cost:
        whole = torch.ones(200 * MB // 4)
        time.sleep(0.1)
    assert cost.bytes > 0.9 * whole.nbytes


@pytest.mark.gpu
def test_on_a_gpu_it_is_what_was_allocated() -> None:
    device = torch.device("cuda")
    held = torch.ones(50 * MB // 4, device=device)
    with measured(device) as cost:
        torch.ones(100 * MB // 4, device=device)
    assert held.nbytes > 0 and 100 * MB <= cost.bytes < 105 * MB
