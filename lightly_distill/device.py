"""The device a run uses."""

import torch

from lightly_distill.errors import UsageError


def resolve_device(name: str) -> torch.device:
    """Returns the device of this name.

    Args:
        name: `cpu`, `cuda`, `cuda:1`, or `auto` for CUDA where there is one.

    Raises:
        UsageError: If the name is none of these, or there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"Unknown device '{name}'. Expected auto, cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"Device '{name}' is not supported. Expected auto, cpu, cuda or cuda:N.")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UsageError(f"Device '{name}' asked for, but torch finds {count} CUDA devices. Use auto or cpu.")
    return device
