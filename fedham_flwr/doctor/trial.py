"""What a round will send and take: short rounds of a few clients, carried out and scaled to the run's.

What is sent is what these rounds sent. Seconds are those of a line through two trials, of one local step a client and
of several: its slope is a step's, its start what a client takes beside its steps. An estimate: other programs, the
caches of the processor and the order of the clients change it.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedham_flwr.core.trees import num_bytes
from fedham_flwr.doctor.rehearsal import Rehearsal, rehearsed
from fedham_flwr.federation.messages import Profile
from fedham_flwr.reporting.summary import waited
from fedham_flwr.run_settings import Settings
from fedham_flwr.runners import Simulation, placing
from fedham_flwr.settings import Value

BUDGET = 6.0
"""Seconds that a trial's round should take at most."""
ROUNDS = 3
"""Of a trial."""
FEW = 4
"""Local steps of the second trial, by which the number of those of the third is chosen."""


@dataclass(frozen=True)
class Measured:
    """Rounds of a trial.

    Attributes:
        clients: that took part.
        steps: local steps of each.
        seconds: of the shortest but the first round, in which things are done for the first time.
        up: bytes that a client sent in the last one.
        down: bytes that a client got in it.
    """

    clients: int
    steps: int
    seconds: float
    up: float
    down: float


def tried(given: Mapping[str, Value], simulation: Simulation, clients: int, steps: int) -> Measured:
    """Carry out a few rounds.

    Args:
        given: settings by key.
        simulation: how the clients would be run.
        clients: how many are to take part.
        steps: of local training.
    """
    share = min(1.0, clients / simulation.clients)
    short = {**given, "local-steps": steps, "fraction-train": share, "min-replies": 0, "checkpoint-every": 0}
    short["server.aggregation"] = "mean"  # others may want more clients
    short |= {"num-server-rounds": max(ROUNDS, int(given.get("num-server-rounds", ROUNDS)))}
    with rehearsed(short, simulation) as rehearsal:
        strategy = rehearsal.strategy
        for number in range(1, ROUNDS + 1):
            messages = list(strategy.configure_train(number, None, None, rehearsal.grid))
            strategy.aggregate_train(number, rehearsal.grid.send_and_receive(messages))
        records = rehearsal.journal.directory.read_rounds()
    last = next(record for record in records if (record.round, record.kind) == (ROUNDS, "train"))
    seconds = [sum(waited(record) for record in records if record.round == number) for number in range(2, ROUNDS + 1)]
    sent = [record for record in records if record.round == ROUNDS]
    count = max(1, len(last.cohort))
    up, down = sum(record.bytes_up for record in sent), sum(record.bytes_down for record in sent)
    return Measured(len(last.cohort), steps, min(seconds), up / count, down / count)


def predict(given: Mapping[str, Value], simulation: Simulation, rehearsal: Rehearsal) -> dict[str, Any]:
    """What a round of the run will send, take and need, as JSON.

    Args:
        given: settings by key.
        simulation: how the clients would be run.
        rehearsal: of the run.
    """
    settings, profiles = rehearsal.settings, rehearsal.profiles
    members = max(1, len(profiles) - settings.novel_clients)
    cohort = max(1, math.floor(settings.fraction_train * members + 0.5))
    workers = _workers(simulation, settings)
    at_once = -(-cohort // workers)
    steps = mean_steps(settings, profiles)
    one = tried(given, simulation, min(2, at_once), 1)
    clients = min(at_once, max(one.clients, int(one.clients * BUDGET / max(1e-3, one.seconds))))
    first = one if clients == one.clients else tried(given, simulation, clients, 1)
    longer = _longer(given, simulation, first, max(2, math.ceil(steps)))
    slope = max(0.0, (longer.seconds - first.seconds) / (longer.steps - 1))
    beside = max(0.0, first.seconds - slope)
    seconds = (beside + slope * steps) * at_once / max(1, first.clients)
    up, down = longer.up, _scaled_down(one, longer, cohort)
    split, manifest = rehearsal.strategy.split, rehearsal.strategy.manifest
    held = peak()
    return {
        "cohort": cohort,
        "workers": workers,
        "local-steps": steps,
        "shared": {"tensors": len(split.shared), "bytes": _bytes(rehearsal, split.shared)},
        "personal": {"tensors": len(split.personal), "bytes": _bytes(rehearsal, split.personal)},
        "model-bytes": _bytes(rehearsal, manifest.names()),
        "bytes-up-per-client": round(up),
        "bytes-down-per-client": round(down),
        "bytes-per-round": {"up": round(up * cohort), "down": round(down * cohort)},
        "seconds-per-round": seconds,
        "seconds-in-all": seconds * settings.num_server_rounds + seconds * members / cohort,
        "memory": {
            "worker": held,
            "server": held + round((up + down) * cohort),
            "in-all": held * (workers + (simulation.backend == "ray")) + round((up + down) * cohort),
        },
        "trial": {"clients": first.clients, "steps": [1, longer.steps], "seconds": [first.seconds, longer.seconds]},
    }


def _longer(given: Mapping[str, Value], simulation: Simulation, first: Measured, steps: int) -> Measured:
    """A trial of as many steps as the run has, or as there is time for."""
    longer = tried(given, simulation, first.clients, min(FEW, steps))
    each = max(1e-4, (longer.seconds - first.seconds) / (longer.steps - 1))
    most = min(steps, int(BUDGET / each))
    return tried(given, simulation, first.clients, most) if most > 2 * longer.steps else longer


def mean_steps(settings: Settings, profiles: Sequence[Profile]) -> float:
    """Local steps that a client takes in a round, on average over the clients.

    Args:
        settings: the run's.
        profiles: of its clients.
    """
    if settings.local_steps:
        return float(settings.local_steps)
    each = [settings.local_epochs * math.ceil(p.counts["train"] / settings.batch_size) for p in profiles]
    return sum(each) / max(1, len(each))


def _workers(simulation: Simulation, settings: Settings) -> int:
    if simulation.backend != "ray" or simulation.ray_address:
        return 1
    import torch

    node = placing.Node(placing.usable_cpus(), torch.cuda.device_count())
    one_by_one = simulation.engine == "one-by-one"
    return placing.plan(
        [node], simulation.clients, settings.device, simulation.num_cpus, simulation.num_workers, one_by_one
    ).count


def _scaled_down(few: Measured, more: Measured, cohort: int) -> float:
    """Bytes down to a client: where they grow with the clients, since peers' models are sent, along a line."""
    if more.clients == few.clients:
        return more.down
    growth = (more.down - few.down) / (more.clients - few.clients)
    return more.down + max(0.0, growth) * (cohort - more.clients)


def _bytes(rehearsal: Rehearsal, names: Sequence[str]) -> int:
    return num_bytes({name: rehearsal.strategy.setup.initial[name] for name in names})


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    told = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return told if sys.platform == "darwin" else told * 1024
