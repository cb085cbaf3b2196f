"""A pretended CUDA device: what goes wrong between host and device is seen where there is no GPU.

Tensors on it say `cuda:0` and hold their numbers on the CPU. It refuses what CUDA refuses, a mixture of devices, and
counts what takes time there and none on a CPU: waits for the device, copies to it that wait, and launches.

    with pretended.cuda() as seen:
        state = DistillState.start(...)
        seen.clear()
        distill(state, ...)
    assert not seen.waits and not seen.uploads

Not pretended: kernels and their rounding, autocast (bfloat16), streams, NCCL, torch.compile. It leans on internals of
torch; with another version than the one it was written for, where it does not work, a test that uses it is skipped.

How: a tensor on the device is a wrapper that C++ takes for one on `meta`, which needs no driver. Calls that name `cuda`
are given `meta` instead, and each operation is done on the wrapped CPU tensors.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
GIB = 2**30

_WRITTEN_FOR = "2.14."
_META = torch.device("meta")
_PROJECT = str(Path(__file__).parents[1] / "lightly_distill")
# the host must read a number, or the number of rows, before it can go on
_READING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "_unique", "_unique2"}
_READING |= {"unique_dim", "unique_consecutive", "linalg_lstsq", "_linalg_eigh", "_linalg_svd", "_linalg_check_errors"}
_CHECKING = {"_linalg_solve_ex", "linalg_inv_ex", "linalg_cholesky_ex"}  # read their success, where asked to
_INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
_NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"}
_JOINING = {"cat", "stack"}  # take no number from the CPU


@dataclass
class Memory:
    """Bytes of the device.

    Attributes:
        free: As the driver sees it.
        reserved: Held by PyTorch's allocator.
        allocated: Of these, in use by tensors.
    """

    free: int = 60 * GIB
    reserved: int = 0
    allocated: int = 0


@dataclass
class Seen:
    """What was counted, by operation and the line of the project that asked for it.

    Attributes:
        waits: For the device: numbers that the host reads, and shapes that depend on numbers. For an event only where
            nothing was queued behind it, so that the device runs dry.
        uploads: Copies to the device that wait: from pageable memory, or blocking.
        launches: Kernels, roughly: operations that compute; a fused or foreach one is one.
        memory: What the device says of its memory; a test may change it.
        queued: Launches since the block began.
    """

    waits: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    memory: Memory = field(default_factory=Memory)
    queued: int = 0

    def launch(self, name: str) -> None:
        """Counts an operation on the device."""
        self.launches[f"{name} @ {_place()}"] += 1
        self.queued += 1

    def clear(self) -> None:
        """Forgets what was counted so far."""
        for counter in (self.waits, self.uploads, self.launches):
            counter.clear()


@contextlib.contextmanager
def cuda() -> Iterator[Seen]:
    """Pretends one CUDA device inside the block; tensors on it are of no use after it."""
    seen = Seen()
    with contextlib.ExitStack() as held:
        for name, function in _functions(seen).items():
            held.enter_context(mock.patch.object(torch.cuda, name, function))
        # AdamW asks whether a CUDA graph is being captured
        stream = SimpleNamespace(is_capturing=lambda: False)
        held.enter_context(mock.patch.object(torch.accelerator, "current_stream", lambda: stream))
        # wrappers are stepped as CUDA's own tensors are, many at once
        stepped_together = import_module("torch.optim.optimizer")._foreach_supported_types
        stepped_together.append(_OnDevice)
        held.callback(stepped_together.remove, _OnDevice)
        naming = held.enter_context(_Naming())
        held.enter_context(_Device(seen, naming))
        _require_working()
        seen.clear()
        yield seen


def _functions(seen: Seen) -> dict[str, Any]:
    """Returns what replaces functions of `torch.cuda`."""
    memory = seen.memory

    def synchronize(device: Any = None) -> None:
        seen.waits[f"synchronize @ {_place()}"] += 1

    class Event:
        def record(self, stream: Any = None) -> None:
            self.queued = seen.queued

        def synchronize(self) -> None:
            if self.queued == seen.queued:
                seen.waits[f"event @ {_place()}"] += 1

    return {
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_: True,
        "is_current_stream_capturing": lambda: False,
        "Event": Event,
        "current_stream": lambda _=None: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "device": lambda _: contextlib.nullcontext(),
        "get_device_name": lambda _=None: "a pretended GPU",
        "synchronize": synchronize,
        "empty_cache": lambda: None,
        "mem_get_info": lambda _=None: (memory.free, 80 * GIB),
        "memory_reserved": lambda _=None: memory.reserved,
        "memory_allocated": lambda _=None: memory.allocated,
        "max_memory_allocated": lambda _=None: memory.allocated,
        "reset_peak_memory_stats": lambda _=None: None,
        # its random numbers are the CPU's
        "get_rng_state": lambda _=None: torch.get_rng_state(),
        "set_rng_state": lambda state, _=None: None,
        "manual_seed": lambda seed: None,
    }


def _require_working() -> None:
    try:
        layer = nn.Linear(2, 3).to("cuda")
        optimizer = torch.optim.SGD(layer.parameters(), momentum=0.9)
        layer(torch.ones(4, 2, device="cuda")).square().mean().backward()
        optimizer.step()
        works = layer.weight.device == DEVICE and layer.weight.cpu().isfinite().all().item()
    except Exception as error:
        if torch.__version__.startswith(_WRITTEN_FOR):
            raise
        pytest.skip(f"the pretended device does not work with torch {torch.__version__}: {error}")
    assert works


class _OnDevice(Tensor):
    """A tensor that says it is on `cuda:0`, around one on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls: type["_OnDevice"], inner: Tensor) -> "_OnDevice":
        made: _OnDevice = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=_META,
        )
        made.inner = inner.detach()
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} of a pretended device, outside of its block")

    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    def get_device(self) -> int:
        return 0

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied = self.detach().clone()
            kept = nn.Parameter(copied) if isinstance(self, nn.Parameter) else copied
            memo[id(self)] = kept.requires_grad_(self.requires_grad)
        found: Tensor = memo[id(self)]
        return found

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.inner!r} on cuda:0"


class _Naming(TorchFunctionMode):
    """Gives calls that name the device what C++ takes for it, and pretends pinned memory."""

    def __init__(self) -> None:
        super().__init__()
        self._pinned: dict[int, Tensor] = {}  # kept alive, so that no address is used twice

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func is torch.Tensor.is_pinned:
            return self.is_pinned(args[0])
        if func is torch.Tensor.pin_memory:
            return self._pin(args[0].clone())
        if func is torch.Tensor.cuda:
            return args[0].to(_META, non_blocking=kwargs.get("non_blocking", False))
        on_device = _names_device(kwargs.get("device"))
        if name in ("tensor", "as_tensor") and on_device:  # on `meta` they would not look at the numbers
            return func(*args, **{**kwargs, "device": "cpu"}).to(_META)
        if func == torch.Tensor.data.__set__ and isinstance(args[0], _OnDevice):
            args[0].inner = args[1].inner  # or it would keep the layout of before
        if name == "new_tensor" and isinstance(args[0], _OnDevice):
            return args[0].inner.new_tensor(*args[1:], **{**kwargs, "device": "cpu"}).to(_META)
        if on_device:
            kwargs["device"] = _META
        if func is torch.Tensor.to:
            args = (args[0], *(_META if _names_device(arg) else arg for arg in args[1:]))
        pin = kwargs.pop("pin_memory", False)
        result = func(*args, **kwargs)
        return self._pin(result) if pin else result

    def is_pinned(self, tensor: Tensor) -> bool:
        """Returns whether a tensor, or what it is a view of, is in pinned memory."""
        return tensor.untyped_storage().data_ptr() in self._pinned

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor


class _Device(TorchDispatchMode):
    """Does each operation on the wrapped tensors, refuses mixtures of devices, and counts."""

    def __init__(self, seen: Seen, naming: _Naming) -> None:
        super().__init__()
        self._seen, self._naming = seen, naming

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.split("::")[1]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        asked = kwargs.pop("device", None)
        on_device = any(isinstance(tensor, _OnDevice) for tensor in tensors)
        result_on_device = on_device if asked is None else torch.device(asked).type == "meta"
        if asked is not None:
            kwargs["device"] = torch.device("cpu") if result_on_device else asked
        if not on_device and not result_on_device:
            return func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            result_on_device = result_on_device if name == "_to_copy" else isinstance(args[0], _OnDevice)
            self._copy(tensors[-1], result_on_device, bool(kwargs.get("non_blocking") or (*args, 0, 0)[2] is True))
        else:
            if kwargs.get("generator") is not None:
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
            _refuse_mixture(name, func, args, tensors)
            self._count(name, func, args, kwargs)
        result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        # what an operation changes in place, it returns as the very tensor that it was given
        given = {id(_inner(tensor)): tensor for tensor in tensors}
        return tree_map(lambda each: given.get(id(each), _outer(each)) if result_on_device else each, result)

    def _copy(self, source: Tensor, to_device: bool, non_blocking: bool) -> None:
        from_device = isinstance(source, _OnDevice)
        if from_device and to_device:
            self._seen.launch("copy")
        elif from_device and not non_blocking:
            self._seen.waits[f"copy back @ {_place()}"] += 1
        elif to_device and not (non_blocking and self._naming.is_pinned(source)):
            self._seen.uploads[f"copy @ {_place()}"] += 1

    def _count(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if name in _READING or (name in _CHECKING and kwargs.get("check_errors")):
            self._seen.waits[f"{name} @ {_place()}"] += 1
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            self._seen.waits[f"{name} @ {_place()}"] += 1
        if name in _INDEXING:
            indices = [index for index in args[1] if index is not None]
            one_number = len(args) > 2 and args[2].numel() == 1  # is filled in by a mask, whose length nobody asks
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices) and not one_number:
                self._seen.waits[f"{name} by a mask @ {_place()}"] += 1
            if any(not isinstance(index, _OnDevice) for index in indices):
                self._seen.uploads[f"{name} by a CPU tensor @ {_place()}"] += 1
        is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
        if not is_view and name not in _NO_KERNEL:
            self._seen.launch(name)


def _refuse_mixture(name: str, func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Raises as CUDA does, which takes from the CPU only single numbers and indices."""
    allowed = {id(index) for index in args[1] if index is not None} if name in _INDEXING else set()
    others = [each for each in tensors if not isinstance(each, _OnDevice) and id(each) not in allowed]
    changed = [arg for arg, each in zip(args, func._schema.arguments, strict=False) if each.is_write]
    if any(each.ndim or name in _JOINING or any(each is arg for arg in changed) for each in others):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"({name} @ {_place()})"
        )
    if name.startswith("_fused_"):
        lists = [arg for arg in args if isinstance(arg, list) and arg and isinstance(arg[0], _OnDevice)]
        for each in zip(*lists, strict=False):
            if len({one.stride() for one in each if one.ndim}) > 1:
                raise RuntimeError("params, grads and their moments must have same dtype, device, and layout")


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, _OnDevice) else value


def _outer(value: Any) -> Any:
    return _OnDevice(value) if isinstance(value, Tensor) else value


def _names_device(value: Any) -> bool:
    return isinstance(value, str | torch.device) and str(value).startswith("cuda")


def _place() -> str:
    """Returns the innermost line of the project that is being run."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith(_PROJECT):
        frame = frame.f_back
    return "?" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
