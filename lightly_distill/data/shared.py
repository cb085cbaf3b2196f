"""The real images of several processes: one of each machine decodes them, into a file that all of it read.

A file that fits in memory is mapped: its pages are there once, whatever the number of processes.
"""

import contextlib
import hashlib
import os
import socket
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack

import torch

from lightly_distill.data.loader import Decoder
from lightly_distill.data.source import FirstPass, Source, first_images, first_pass, fits, open_source
from lightly_distill.data.spool import Spool
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.runtime.device import free_memory
from lightly_distill.runtime.processes import Processes


def open_together(images: Source | Decoder, processes: Processes) -> Source:
    """Opens real images in all processes; in memory they take half of what is free on a machine at most.

    An open source is taken as it is. Where the processes of a machine have no temporary folder in common that has room,
    each decodes for itself.

    Args:
        images: From `find_images`, the same in all processes.
        processes: Of the run.

    Raises:
        UsageError: As `open_source`, in all processes; or if they were given different images.
        DistillError: As `open_source`, in all processes.
    """
    if isinstance(images, Source) or processes.count == 1:
        return open_source(images)
    _require_same(images, processes)
    hosts = processes.gather(socket.gethostname())
    here = [index for index, host in enumerate(hosts) if host == hosts[processes.index]]
    memory = free_memory(torch.device("cpu")) // 2
    spool = _spool(images, processes, here)
    own: list[Source] = []

    def decode() -> FirstPass | None:
        if spool is None:
            own.append(open_source(images, memory_limit=memory // len(here)))
        return first_pass(images, spool) if spool is not None and processes.index == here[0] else None

    found = processes.in_each(decode)[here[0]]
    if spool is None or found is None:
        return own[0]
    spool.grown(len(found.kept))
    return found.source(images, spool.mapped() if fits(images, memory) else spool)


def _require_same(images: Decoder, processes: Processes) -> None:
    """Refuses images of which the first few differ between processes: most are decoded by one of them only."""

    def first() -> tuple[int | None, str]:
        return images.items.count, hashlib.sha256(first_images(images).numpy().data).hexdigest()

    if len(set(processes.in_each(first))) > 1:
        raise UsageError("The processes were given different real images: give all the same.")


def _spool(images: Decoder, processes: Processes, here: Sequence[int]) -> Spool | None:
    """Returns one file that all processes of this machine have open, which has no name any more.

    Args:
        images: For what is to fit into it.
        processes: Of the run.
        here: Indices of those of this machine.

    Returns:
        None if it is one process, or not all of them can open the file: it needs room, and the folder to be the same.
    """
    first, path = processes.index == here[0], None
    with ExitStack() as named:
        if first and len(here) > 1 and os.name != "nt":  # where a file that is open keeps its name
            with contextlib.suppress(OSError):
                descriptor, path = tempfile.mkstemp()
                os.close(descriptor)
                named.callback(os.unlink, path)
        path = processes.gather(path)[here[0]]
        spool = None
        if path is not None:
            with contextlib.suppress(DistillError):
                spool = Spool(images.items.name, images.image_size, images.items.count if first else None, path=path)
        opened = processes.gather(spool is not None)
    return spool if all(opened[index] for index in here) else None
