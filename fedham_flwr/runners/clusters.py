"""A Ray cluster to run on: one that is there, or one of this machine's own for as long as a run lasts."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Iterator

from fedham_flwr.core.errors import UserError, described
from fedham_flwr.runners import placing
from fedham_flwr.runners.placing import Node

PATIENCE = 10.0
"""Seconds within which a cluster answers."""


@contextlib.contextmanager
def cluster(address: str = "") -> Iterator[list[Node]]:
    """A Ray cluster: the one at an address or of `RAY_ADDRESS`, or one of this machine for as long as this lasts.

    Args:
        address: of the cluster.

    Raises:
        UserError: there is none at this address.
    """
    import ray

    prepare_environment()
    ours = not ray.is_initialized()
    if ours:
        address = address or os.environ.get("RAY_ADDRESS", "")
        check_address(address)
        own = {} if address else {"num_cpus": placing.usable_cpus(), "include_dashboard": False}
        try:
            ray.init(address or "local", logging_level="error", log_to_driver=False, **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"there is no Ray cluster at {address or 'this machine'}: {described(error)}") from error
    try:
        found = [each["Resources"] for each in ray.nodes() if each["Alive"]]
        yield [Node(int(some.get("CPU", 0)), int(some.get("GPU", 0))) for some in found]
    finally:
        if ours:
            ray.shutdown()


def check_address(address: str) -> None:
    """Refuse the address of a cluster at which nobody listens: Ray itself would try for minutes.

    Args:
        address: HOST:PORT; what else Ray knows (auto, local, ray://...), or nothing, is not looked at.

    Raises:
        UserError: it is no such address, or nobody listens there.
    """
    if not address or address in ("auto", "local") or "://" in address:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"the address of a Ray cluster is {address!r}, and wanted is HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"there is no Ray cluster at {address}: {why}") from error


def prepare_environment() -> None:
    """What Ray's workers inherit, and which of Flower's and Ray's messages mean nothing to the user."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Huge pages for what a worker allocates; glibc reads this when a process starts, so only new ones have it.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"ray\..*")
    logging.getLogger("flwr").addFilter(lambda record: "DEPRECATED FEATURE" not in record.getMessage())
