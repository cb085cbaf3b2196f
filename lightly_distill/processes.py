"""The processes of a run, started by `accelerate launch` or the user's own script; one is the special case.

Every process calls the same functions in the same order and holds the same synthetic set.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from torch import Tensor, distributed

from lightly_distill.errors import DistillError, UsageError

T = TypeVar("T")

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
        """Returns the sums over the processes. The tensors given may be overwritten."""
        for tensor in tensors if self.count > 1 else ():
            distributed.all_reduce(tensor)
        return tensors

    def mean(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns the means over the processes. The tensors given may be overwritten."""
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

    def in_main(self, function: Callable[[], T]) -> T:
        """Calls a function in the main process only, and returns its value, or raises its error, in all."""
        result: list[Any] = [None, None]
        if self.main:
            try:
                result[0] = function()
            except (UsageError, DistillError) as error:
                result[1] = error
        if self.count > 1:
            distributed.broadcast_object_list(result, src=0)
        if result[1] is not None:
            raise result[1]
        value: T = result[0]
        return value


ALONE = Processes()


def launched(device: str) -> tuple[Processes, str]:
    """Joins the processes that a launcher or the user's script started.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`, as the user gave it.

    Returns:
        The processes, and the name of this one's device: with several, `auto` and `cuda` are the device of each.

    Raises:
        UsageError: If several processes are given one and the same CUDA device.
    """
    opened = distributed.is_available() and distributed.is_initialized()
    if not opened and int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE, device
    from accelerate import PartialState  # here: it takes a second to import

    state = PartialState(cpu=device == "cpu", **({} if opened else {"timeout": PATIENCE}))
    processes = Processes(state.process_index, state.num_processes)
    if processes.count > 1 and device.startswith("cuda:"):
        raise UsageError(f"device={device} is one device for {processes.count} processes: give auto or cuda.")
    return processes, device if device == "cpu" or processes.count == 1 else str(state.device)
