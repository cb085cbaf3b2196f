from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lightly_distill.runtime import device
from lightly_distill.runtime.device import device_name, free_memory, tf32


@pytest.fixture(autouse=True)
def precision_as_it_was() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("precision", "words"), [("highest", "convolutions"), ("high", "matmul, convolutions")])
def test_tf32_is_named_where_a_gpu_uses_it_and_is_off_on_a_cpu(precision: str, words: str) -> None:
    torch.set_float32_matmul_precision(precision)
    assert tf32(torch.device("cuda")) == words
    assert tf32(torch.device("cpu")) == "off"


def test_a_processor_is_named_with_the_instructions_that_torch_uses() -> None:
    assert device_name(torch.device("cpu")).endswith(f", {torch.backends.cpu.get_cpu_capability()}")


@pytest.mark.gpu
def test_a_gpu_is_named() -> None:
    assert device_name(torch.device("cuda")) == torch.cuda.get_device_name()


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


def test_what_the_allocator_holds_without_a_tensor_in_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 80)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
    assert free_memory(torch.device("cuda")) == 75
