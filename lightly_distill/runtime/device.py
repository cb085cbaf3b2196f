"""The device a run uses."""

import platform
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor, nn

from lightly_distill.errors import UsageError

_Module = TypeVar("_Module", bound=nn.Module)
_EXPECTED = "auto, cpu, cuda, cuda:N, mps or xpu"
# in the order of `auto`
_THERE: dict[str, Callable[[], bool]] = {
    "cuda": lambda: torch.cuda.is_available(),
    "xpu": lambda: torch.xpu.is_available(),
    "mps": lambda: torch.backends.mps.is_available(),
}


def resolve_device(name: str) -> torch.device:
    """Returns the device of this name.

    Args:
        name: `cpu`, `cuda`, `cuda:1`, `mps` or `xpu` where torch has them, or `auto` for the first of CUDA, XPU and MPS
            that is there.

    Raises:
        UsageError: If the name is none of these, or there is no such device here.
    """
    if name == "auto":
        return torch.device(next((kind for kind, there in _THERE.items() if there()), "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"Unknown device '{name}'. Expected {_EXPECTED}.") from error
    if device.type not in ("cpu", *_THERE):
        raise UsageError(f"Device '{name}' is not supported. Expected {_EXPECTED}.")
    if device.type in ("mps", "xpu") and not _THERE[device.type]():
        raise UsageError(f"Device '{name}' asked for, but torch finds none here. Use auto or cpu.")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UsageError(f"Device '{name}' asked for, but torch finds {count} CUDA devices. Use auto or cpu.")
    return device


def device_name(device: torch.device) -> str:
    """Returns what computes: the name of the GPU, or the kind of processor and the instructions that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    kind = platform.processor() or platform.machine()
    return f"CPU {kind}, {torch.backends.cpu.get_cpu_capability()}"


def computes_bf16(device: torch.device) -> bool:
    """Returns whether a CPU has instructions for bfloat16; elsewhere False. Without them it is slower than float32."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public ones
    return device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in names)


def tf32(device: torch.device) -> str:
    """Returns where float32 is computed as TF32 on the device: `off`, `matmul`, `convolutions`, or both."""
    if device.type != "cuda":
        return "off"
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):  # torch 2.9 brought a new name, and refuses a mixture of both
        used = {"matmul": matmul.fp32_precision == "tf32", "convolutions": cudnn.conv.fp32_precision == "tf32"}
    else:
        used = {"matmul": matmul.allow_tf32, "convolutions": cudnn.allow_tf32}
    return ", ".join(name for name, on in used.items() if on) or "off"


def free_memory(device: torch.device) -> int:
    """Returns the bytes that are free on the device; on the CPU also in the container, if it is limited.

    On a GPU those too that PyTorch's allocator holds without a tensor in them, as after other work of the process.
    """
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + max(0, held)
    return min([int(psutil.virtual_memory().available), *filter(None, map(_left_in, CGROUPS))])


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor to a device, if it is not there; to a GPU from pinned memory, without waiting for it."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def send_module(module: _Module, device: torch.device) -> _Module:
    """Moves a module from the CPU to a device, as `send` does a tensor."""
    if device.type == "cuda":
        for tensor in chain(module.parameters(), module.buffers()):
            tensor.data = tensor.data.pin_memory()
    return module.to(device, non_blocking=True)


# What a container may use, and what it uses: control groups, version 2 and 1.
CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def _left_in(group: tuple[Path, Path]) -> int | None:
    """Returns the bytes that are left in a control group; None without a limit."""
    try:
        limit, used = (int(file.read_text()) for file in group)
    except (OSError, ValueError):  # there is no such group, or its limit is "max"
        return None
    return max(limit - used, 1)
