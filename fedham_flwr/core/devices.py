"""The device that a setting names."""

import os

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
    except RuntimeError as error:
        raise UserError(
            f'device="{name}" is no device: wanted auto, cpu, cuda, or cuda:1 for the second GPU'
        ) from error
    try:
        torch.zeros(1, device=device).item()  # fails where there is no such device, or none that computes
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n", maxsplit=1)[0].split(". ", maxsplit=1)[0]
        raise UserError(f'device="{name}" is not available here ({reason}); "auto" or "cpu" always is') from error
    return device


def check_device(name: str, cluster: str = "") -> None:
    """Refuse a device that this machine does not have, before its clients are asked to train on it.

    A GPU that is there is not touched: that would take memory which the clients may need. In a cluster of Ray's the
    clients may be on other machines, and nothing is said.

    Args:
        name: the setting `device`.
        cluster: the address of a cluster; empty for that of `RAY_ADDRESS`.

    Raises:
        UserError: no such device here.
    """
    kind, _, number = name.partition(":")
    there = kind == "cuda" and torch.cuda.is_available() and number in ("", *map(str, range(torch.cuda.device_count())))
    if name != "auto" and not there and not (cluster or os.environ.get("RAY_ADDRESS")):
        resolve_device(name)
