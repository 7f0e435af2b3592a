"""The device that a setting names, and what it computes slowly."""

import logging
import os

import torch

from fedham_flwr.core.errors import UserError

log = logging.getLogger("fedham_flwr")


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


def slow_precision(name: str, precision: str) -> str:
    """What to know of a precision that the device imitates in software; empty if there is nothing.

    Args:
        name: the setting `device`, of this machine.
        precision: the setting `precision`.
    """
    on_processor = name == "cpu" or (name == "auto" and not torch.cuda.is_available())
    if precision == "bf16" and on_processor and torch.backends.cpu.get_cpu_capability() == "AVX2":
        return 'precision="bf16" is several times slower than "fp32" on this processor, which has no AVX-512'
    return ""


def warn_of_precision(name: str, precision: str) -> None:
    """Log what `slow_precision` says, if it says something; arguments as there."""
    if slow := slow_precision(name, precision):
        log.warning("%s", slow)


def check_device(name: str, cluster: str = "", precision: str = "fp32") -> None:
    """Refuse a device that this machine does not have, before its clients are asked to train on it.

    A GPU that is there is not touched: that would take memory which the clients may need. In a cluster of Ray's the
    clients may be on other machines, and nothing is said. A precision that the device imitates is warned of.

    Args:
        name: the setting `device`.
        cluster: the address of a cluster; empty for that of `RAY_ADDRESS`.
        precision: the setting `precision`.

    Raises:
        UserError: no such device here.
    """
    if cluster or os.environ.get("RAY_ADDRESS"):
        return
    kind, _, number = name.partition(":")
    there = kind == "cuda" and torch.cuda.is_available() and number in ("", *map(str, range(torch.cuda.device_count())))
    if name != "auto" and not there:
        resolve_device(name)
    warn_of_precision(name, precision)
