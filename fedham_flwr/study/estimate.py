"""How long the runs of a study take: by those that are there, else by one round and a few batches that are tried."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedham_flwr.core.errors import UserError, described
from fedham_flwr.doctor.rehearsal import rehearsed
from fedham_flwr.doctor.trial import mean_steps, tried
from fedham_flwr.runners import Simulation, run_backend
from fedham_flwr.settings import defaults
from fedham_flwr.study.keys import ENGINE
from fedham_flwr.study.runs import RunSpec
from fedham_flwr.study.store import Store
from fedham_flwr.study.wrong import Wrong

log = logging.getLogger("fedham_flwr")

Pair = tuple[str, str]
"""The labels of a method and a task."""
BATCHES = (1, 3)
"""Local steps of each client in the rounds that are tried: a line through them gives a step and what is beside it."""
MOST_CLIENTS = 20
"""Clients that take part in them; of more the time is scaled."""
PATIENCE = 60.0
"""Seconds after which the other pairs are looked at, and not timed."""


@dataclass(frozen=True)
class Pace:
    """How fast the runs of a method on a task are.

    Attributes:
        each: seconds of a round.
        beside: seconds of a run beside its rounds.
        by: what tells: runs that are there, batches that were tried, or the mean of the other pairs.
    """

    each: float
    beside: float = 0.0
    by: Literal["runs", "batches", "others"] = "batches"

    def seconds(self, rounds: int) -> float:
        """Of a run.

        Args:
            rounds: that it has.
        """
        return self.beside + self.each * rounds


@dataclass
class Paces:
    """How fast the runs of a study are.

    Attributes:
        known: by the labels of method and task.
        refused: pairs of which every run would fail, and why.
    """

    known: dict[Pair, Pace] = field(default_factory=dict)
    refused: Wrong = field(default_factory=Wrong)


def paces(store: Store, wanted: Mapping[Pair, RunSpec]) -> Paces:
    """How fast the runs of methods on tasks are.

    Args:
        store: the study's folder; runs that are there tell more than a trial.
        wanted: a run of each pair that has runs to be done.
    """
    found, began, there = Paces(), time.perf_counter(), _by_runs(store)
    found.known = {pair: there[pair] for pair in wanted if pair in there}
    for pair, spec in wanted.items():
        if pair in found.known:
            continue
        try:
            if pace := _tried(spec, time.perf_counter() - began < PATIENCE):
                found.known[pair] = pace
        except UserError as error:
            found.refused.add(pair, str(error))
        except SystemExit as error:
            found.refused.add(pair, f"code of your own ends the process with sys.exit({error.code!r})")
        except Exception as error:  # whatever a user's own method raises: its runs fail, and the others go on
            log.warning("%s on %s cannot be timed: %s", *pair, described(error))
    if found.known:
        mean = sum(pace.each for pace in found.known.values()) / len(found.known)
        beside = sum(pace.beside for pace in found.known.values()) / len(found.known)
        for pair in wanted:
            found.known.setdefault(pair, Pace(mean, beside, "others"))
    return found


def _by_runs(store: Store) -> dict[Pair, Pace]:
    """Mean seconds of a round over the runs that are there, of each pair."""
    seconds: dict[Pair, list[float]] = {}
    for told in store.all_runs():
        if told["state"] == "complete":
            rounds = int(told["settings"].get("num-server-rounds", defaults()["num-server-rounds"]))
            share = told["seconds"] / rounds
            seconds.setdefault((told["method"], told["task"]), []).append(share)
    return {pair: Pace(sum(each) / len(each), by="runs") for pair, each in seconds.items()}


def _tried(spec: RunSpec, timed: bool) -> Pace | None:
    """The pace by a run of one round and a few short rounds; None if there is no time for them."""
    simulation = Simulation(spec.clients, ENGINE)
    with rehearsed(spec.settings, simulation) as rehearsal:
        if spec.role == "tuning" and not any(profile.counts["validation"] for profile in rehearsal.profiles):
            raise UserError("no client has validation samples to tune on: wanted a larger validation-fraction")
        steps = mean_steps(rehearsal.settings, rehearsal.profiles)
        members = max(1, len(rehearsal.profiles) - rehearsal.settings.novel_clients)
        cohort = max(1, math.floor(rehearsal.settings.fraction_train * members + 0.5))
        if not timed:
            return None
        whole = _run(spec, simulation)
    few, more = (tried(spec.settings, simulation, min(cohort, MOST_CLIENTS), count) for count in BATCHES)
    step = max(0.0, (more.seconds - few.seconds) / (more.steps - few.steps))
    scale = cohort / max(1, few.clients)
    each = (max(0.0, few.seconds - step * few.steps) + step * steps) * scale
    return Pace(each, max(0.0, whole - few.seconds * scale))


def _run(spec: RunSpec, simulation: Simulation) -> float:
    """Seconds of a whole run of one round with one batch of each client: all that a run does beside its rounds."""
    from fedham_flwr.server_app import make_server_app

    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fedham-study-") as folder, contextlib.redirect_stdout(io.StringIO()):
        given = {**spec.settings, "num-server-rounds": 1, "local-steps": 1, "results-dir": folder}
        run_backend(make_server_app(given), given, simulation)
    return time.perf_counter() - began
