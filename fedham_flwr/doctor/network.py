"""Ray and the ports of this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.doctor.findings import Finding, fault, note, ok
from fedham_flwr.runners.clusters import check_address, cluster

PORTS = {8000: "a SuperLink", 9092: "its proxy, for SuperNodes", 9094: "the inner interface of a SuperNode"}
"""What the guide to real sites uses."""


def ray(start: bool = False) -> Iterator[Finding]:
    """Ray's cluster, if one is named; whether one can be started here is tried only if asked for.

    Args:
        start: start one of this machine's own, or connect to the one that is named.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address:
        try:
            check_address(address)
            yield ok("ray", "RAY_ADDRESS", f"{address}, where somebody listens")
        except UserError as error:
            yield fault("ray", "RAY_ADDRESS", str(error), "", "start the cluster, or unset RAY_ADDRESS")
            return
    elif not start:
        yield ok("ray", "cluster", "none is named, and runs start one here (--start-ray tries it)")
    if start:
        try:
            with cluster() as nodes:
                told = ", ".join(f"{node.cpus} processors and {node.gpus} GPUs" for node in nodes)
            yield ok("ray", "cluster", f"{len(nodes)} machines: {told}")
        except Exception as error:  # Ray's own errors are of any kind
            yield fault("ray", "cluster", first_line(error), "", "--backend cohort needs no Ray")


def ports(numbers: Sequence[int] = ()) -> Iterator[Finding]:
    """Whether ports of this machine are free.

    Args:
        numbers: of the ports; by default those of the guide to real sites.
    """
    for number in numbers or PORTS:
        what = f"port {number}"
        of = f", as {PORTS[number]} wants it" if number in PORTS else ""
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("127.0.0.1", number))
                yield ok("ports", what, f"free{of}")
            except (OSError, OverflowError) as error:
                why = getattr(error, "strerror", None) or str(error)
                yield note("ports", what, f"taken ({why}){of}", "", "is it what you want to be there?")
