"""The device that a setting names."""

import torch

from fedham_flwr.core.errors import UserError


def resolve_device(name: str) -> torch.device:
    """The device that the setting `device` names; "auto" is the GPU when there is one.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # fails where there is no such device, or none that computes
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n", maxsplit=1)[0].split(". ", maxsplit=1)[0]
        raise UserError(f'device="{name}" is not available here ({reason}); "auto" or "cpu" always is') from error
    return device
