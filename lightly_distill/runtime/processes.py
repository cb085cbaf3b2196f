"""The processes of a run, started by `accelerate launch` or the user's own script; one is the special case.

Every process calls the same functions in the same order and holds the same synthetic set.
"""

import atexit
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from lightly_distill.errors import DistillError, UsageError, first_line

T = TypeVar("T")

_logger = logging.getLogger(__name__)

TELL_AFTER = 30.0  # seconds
PATIENCE = timedelta(hours=2)  # for a process that has more to read or to write than the others


@dataclass(frozen=True)
class Processes:
    """Divides work among processes and adds up what they found.

    Attributes:
        index: Of this process, from 0.
        count: Of all.
    """

    index: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.index == 0

    def share(self, length: int) -> slice:
        """Returns this process's part of `length` rows: consecutive, and as even as can be; it may be empty."""
        small, more = divmod(length, self.count)
        start = self.index * small + min(self.index, more)
        return slice(start, start + small + (self.index < more))

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns the sums over the processes, by one exchange for all tensors of a type."""
        if self.count == 1:
            return tensors
        sums: list[Tensor] = list(tensors)
        for kind in dict.fromkeys((tensor.dtype, tensor.device) for tensor in tensors):
            places = [place for place, tensor in enumerate(tensors) if (tensor.dtype, tensor.device) == kind]
            # in one layout: gradients of different students may be channels last in one process and not in another
            flat = torch.cat([tensors[place].detach().reshape(-1) for place in places])
            distributed.all_reduce(flat)
            parts = torch.split(flat, [tensors[place].numel() for place in places])
            for place, part in zip(places, parts, strict=True):
                sums[place] = part.view(tensors[place].shape)
        return tuple(sums)

    def mean(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns the means over the processes; see `sum`."""
        return tuple(tensor / self.count if self.count > 1 else tensor for tensor in self.sum(*tensors))

    def join(self, rows: Tensor, mine: slice, length: int) -> Tensor:
        """Returns the rows of all processes, shape (length, ...); `mine` is where this one's belong."""
        if self.count == 1:
            return rows
        # zeros elsewhere: one sum, whatever the sizes of the parts
        whole = rows.new_zeros(length, *rows.shape[1:])
        whole[mine] = rows
        return self.sum(whole)[0]

    def gather(self, value: T) -> list[T]:
        """Returns the values of all processes, in every process. They travel pickled, between our own processes."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def on_this_machine(self) -> int:
        """Returns how many of the processes run on this machine, and share its memory."""
        own = socket.gethostname()
        return self.gather(own).count(own)

    def copy_from_main(self, *tensors: Tensor) -> None:
        """Gives tensors the values that they have in the main process."""
        self.copy_from(0, *tensors)

    def copy_from(self, index: int, *tensors: Tensor) -> None:
        """Gives tensors the values that they have in the process of this index, whatever their device and layout."""
        for tensor in tensors if self.count > 1 else ():
            # a broadcast takes memory in its order, which may be channels last in one process and not in another
            row = tensor.detach().to(_exchange(tensor.device)).contiguous()
            distributed.broadcast(row, src=index)
            if row.data_ptr() != tensor.data_ptr():
                tensor.detach().copy_(row)

    def gather_tensors(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the tensors of all processes by name, in every process; with several on the CPU, and none pickled."""
        if self.count == 1:
            return own
        whole = {}
        for index, kinds in enumerate(self.gather({name: (value.shape, value.dtype) for name, value in own.items()})):
            for name, (shape, dtype) in kinds.items():
                # on the CPU in each: a backend of each device would send and receive by different ones
                value = own[name].detach().cpu() if index == self.index else torch.empty(shape, dtype=dtype)
                self.copy_from(index, value)
                whole[name] = value
        return whole

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.count > 1:
            distributed.barrier()

    def in_main(self, function: Callable[[], T]) -> T:
        """Calls a function in the main process only, and returns its value, or raises its error, in all."""
        if self.count == 1:
            return function()
        value, error = _attempt(function) if self.main else (None, None)
        told: list[Any] = [value, self._told(error)]
        distributed.broadcast_object_list(told, src=0)
        _raise_first(error, told[1])
        answer: T = told[0]
        return answer

    def in_each(self, function: Callable[[], T]) -> list[T]:
        """Calls a function in each process, and returns the values of all, or raises the first error, in all."""
        if self.count == 1:
            return [function()]
        value, error = _attempt(function)
        told = self.gather((value, self._told(error)))
        _raise_first(error, *(other for _, other in told))
        return [answer for answer, _ in told]  # type: ignore[misc]  # None only with an error

    def failure(self, error: Exception) -> str:
        """Returns what other processes say of an error in this one."""
        return f"Process {self.index} of {self.count} failed: {type(error).__name__}: {first_line(error)}"

    def _told(self, error: Exception | None) -> Exception | None:
        """Returns the error that others raise: somebody else's kinds need not be fit to travel."""
        return error if error is None or isinstance(error, DistillError) else DistillError(self.failure(error))


def _attempt(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return function(), None
    except Exception as error:
        return None, error


def _raise_first(*errors: Exception | None) -> None:
    for error in errors:
        if error is not None:
            raise error


ALONE = Processes()


@dataclass(frozen=True)
class Team:
    """How the processes of a run work together; at most one of the two is more than one process.

    Attributes:
        divide: Those that divide each step: its real batch and the synthetic images. They hold the same students.
        split: Those that take a step each, with a part of the pool and a batch of their own, and average gradients.
    """

    divide: Processes = ALONE
    split: Processes = ALONE

    @classmethod
    def of(cls, processes: Processes, parallel: str) -> "Team":
        """Returns the team of `DistillConfig.parallel`, which is `batch` or `pool`."""
        return cls(split=processes) if parallel == "pool" else cls(divide=processes)

    @property
    def all(self) -> Processes:
        """All processes."""
        return self.split if self.split.count > 1 else self.divide


SOLO = Team()


def is_main() -> bool:
    """Returns whether a launcher calls this the first process, or there is no launcher."""
    return os.environ.get("RANK", "0") == "0"


def launched(device: str) -> tuple[Processes, str]:
    """Joins the processes that a launcher or the user's script started.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`, as the user gave it.

    Returns:
        The processes, and the name of this one's device: with several, `auto` and `cuda` are the device of each.

    Raises:
        UsageError: If several processes are given one and the same CUDA device.
    """
    if distributed.is_available() and distributed.is_initialized():  # by the user's script: its devices are its own
        processes = Processes(distributed.get_rank(), distributed.get_world_size())
        return processes, f"cuda:{torch.cuda.current_device()}" if _any_cuda(device) else device
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE, device
    from accelerate import PartialState  # here: it takes a second to import

    if device.startswith("cuda:"):
        raise UsageError(f"device={device} is one device for several processes: give auto or cuda.")
    with _told_if_long(f"for the {os.environ['WORLD_SIZE']} processes that WORLD_SIZE names to start"):
        state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    atexit.register(_leave_group)
    return Processes(state.process_index, state.num_processes), "cpu" if device == "cpu" else str(state.device)


@contextmanager
def _told_if_long(what: str) -> Iterator[None]:
    """Says what is waited for when the block takes longer than half a minute."""
    cure = "if this is the only one, unset RANK and WORLD_SIZE, which a launcher has left"
    timer = threading.Timer(TELL_AFTER, _logger.warning, (f"Waiting {what}; {cure}.",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _leave_group() -> None:
    """Ends the group of processes before the interpreter does: gloo's threads, still running then, may abort it."""
    if distributed.is_initialized() and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()


def _exchange(device: torch.device) -> torch.device:
    """Returns where a tensor of this device can travel: gloo takes those of the CPU, NCCL only those of a GPU."""
    takes_cpu = device.type != "cpu" or "cpu:" in str(distributed.get_backend_config())
    return device if takes_cpu else torch.device("cuda", torch.cuda.current_device())


def _any_cuda(device: str) -> bool:
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())
