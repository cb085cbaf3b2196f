"""Looking at numbers of a GPU later than they are computed, so that no step waits for it.

A host that reads a number waits until the GPU has done all that was queued before, and the GPU then idles until more is
queued. So on CUDA numbers are sent when they are queued, and looked at when other work is queued behind them. On other
devices they are looked at at once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Judge = Callable[[list[float]], None]


class Sent:
    """Numbers of a CUDA device on their way to the host.

    Args:
        numbers: Of the device, shape (k,).
    """

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers.detach().to("cpu", non_blocking=True)  # to pinned memory
        self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._there.record(torch.cuda.current_stream(numbers.device))

    def read(self) -> list[float]:
        """Returns the numbers, after waiting for what was queued before them, and for nothing after."""
        self._there.synchronize()
        numbers: list[float] = self._numbers.tolist()
        return numbers


class Watch:
    """Has numbers judged: on CUDA when the next ones are queued, or at the latest in `settle`; else at once.

    Args:
        device: Of the numbers.

    Attributes:
        late: Whether they are judged later.
    """

    def __init__(self, device: torch.device) -> None:
        self.late = device.type == "cuda"
        self._device = device
        self._sent: list[tuple[Sent, Judge]] = []

    def look(self, numbers: Tensor, judge: Judge) -> None:
        """Takes numbers, shape (k,), and the function that raises an error where they are not as they should be."""
        if not self.late:
            judge(numbers.tolist())
            return
        before, self._sent = self._sent, [(Sent(numbers), judge)]
        _judge(before)

    def settle(self) -> None:
        """Has all numbers judged, and waits for the device: before anything is kept, told or timed."""
        if self.late:
            torch.cuda.synchronize(self._device)
        before, self._sent = self._sent, []
        _judge(before)


def _judge(each: list[tuple[Sent, Judge]]) -> None:
    for sent, judge in each:
        judge(sent.read())
