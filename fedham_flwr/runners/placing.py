"""Which workers there are, and which clients each of them trains."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fedham_flwr.core.errors import UserError

SLACK = 1.1
"""Load of a worker, as a multiple of an equal share, up to which it keeps its own clients."""


class Node(NamedTuple):
    """A machine of a Ray cluster.

    Attributes:
        cpus: its processors.
        gpus: its GPUs.
    """

    cpus: int
    gpus: int = 0


@dataclass(frozen=True)
class Workers:
    """The workers of a run.

    Attributes:
        count: how many.
        cpus: processors of each.
        gpus: GPUs of each; a part of one where several share it.
    """

    count: int
    cpus: int = 1
    gpus: float = 0.0

    def told(self) -> str:
        """The plan in a line: `2 workers of 1 processor and 0.5 GPU each`."""
        each = f"{self.cpus} processor{'s' * (self.cpus != 1)}" + (f" and {self.gpus:g} GPU" if self.gpus else "")
        return f"{self.count} worker{'s' * (self.count != 1)} of {each}{' each' * (self.count != 1)}"


def plan(
    nodes: Sequence[Node], clients: int, device: str, num_cpus: int = 1, num_workers: int = 0, shared: bool = False
) -> Workers:
    """The workers that a run has.

    Args:
        nodes: the machines there are.
        clients: of the run; more workers are not made.
        device: the setting: auto takes GPUs where there are any.
        num_cpus: processors of each worker.
        num_workers: how many are wanted; 0 for as many as fit.
        shared: one client at a time leaves much of a GPU idle, so that as many workers share it as have processors. A
            cohort as one program fills it, and has one to itself.

    Raises:
        UserError: no worker fits, fewer than are wanted fit, or a GPU is asked for and there is none.
    """
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    room = sum(node.cpus // num_cpus for node in nodes)
    if not room:
        most = max((node.cpus for node in nodes), default=0)
        raise UserError(f"--num-cpus {num_cpus} is more than the {most} processors of any machine here")
    if device.startswith("cuda") and not gpus:
        raise UserError(f'device="{device}" needs a GPU, and Ray has none here; "auto" or "cpu" always is')
    share = 0.0
    if gpus and (device == "auto" or device.startswith("cuda")):
        if shared:
            at_once = min(max(1, (node.cpus // num_cpus) // node.gpus) for node in nodes if node.gpus)
            share, room = 1 / at_once, min(room, gpus * at_once)
        else:
            share, room = 1.0, min(room, sum(min(node.gpus, node.cpus // num_cpus) for node in nodes))
    if num_workers > room:
        raise UserError(
            f"--num-workers {num_workers} of {num_cpus} processors each do not fit: there are {cpus} processors and "
            f"{gpus} GPUs, room for {room}"
        )
    return Workers(max(1, min(num_workers or room, clients)), num_cpus, share)


def usable_cpus() -> int:
    """Processors that this process may use: those it is bound to, and no more than Slurm has given to its task."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE") or ""
    return max(1, min(bound, int(given))) if given.isdecimal() else bound


def owners(clients: int, workers: int) -> list[int]:
    """The worker of each client: there and back again, since the first clients of a split often have the most data."""
    turns = [*range(workers), *reversed(range(workers))]
    return [turns[place % len(turns)] for place in range(clients)]


def shares(costs: Sequence[float], owned: Sequence[int], workers: int) -> list[int]:
    """Deal out the clients of a cohort so that no worker has much more to do than others.

    A client stays with the worker that owns it unless that has more than its share. Only costs and owners decide, so
    that a run that is repeated or continued deals in the same way.

    Args:
        costs: what each client takes, in any unit.
        owned: the worker that owns each.
        workers: how many there are.

    Returns:
        A worker for each client. The most loaded has at most `SLACK` times an equal share, or an equal share and the
        costliest client, whichever is more.
    """
    fair, load, found = sum(costs) / workers, [0.0] * workers, [0] * len(costs)
    for client in sorted(range(len(costs)), key=lambda k: -costs[k]):
        worker = owned[client]
        if load[worker] + costs[client] > SLACK * fair:
            worker = min(range(workers), key=lambda k: (load[k], k != owned[client], k))
        load[worker] += costs[client]
        found[client] = worker
    return found
