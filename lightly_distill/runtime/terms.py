"""The settings of torch that a script may have changed, and that our own work takes as they are by default."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_one_thread = threading.RLock()


@contextmanager
def on_own_terms() -> Iterator[None]:
    """With gradients, float32, tensors on the CPU unless told otherwise, and no autocast; then as it was before.

    A context, and a decorator of the functions that users call. These settings, and torch's global generator, are the
    process's: of several threads, one is let in at a time.
    """
    with ExitStack() as held:
        held.enter_context(_one_thread)
        dtype = torch.get_default_dtype()
        held.enter_context(torch.inference_mode(False))
        held.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                held.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            held.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        held.callback(torch.set_default_dtype, dtype)
        yield
