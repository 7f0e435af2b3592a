"""A federation from a program or a notebook: one call, and an object with what came of it."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from fedham_flwr.callbacks.chosen import check_callbacks, names_and_objects
from fedham_flwr.callbacks.protocol import Callback
from fedham_flwr.core.devices import check_device
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.interrupts import Interruptible
from fedham_flwr.core.methods import Method
from fedham_flwr.ends import interrupted
from fedham_flwr.idle import check_sections
from fedham_flwr.predicting.models import Models
from fedham_flwr.reporting.mixing_weights import read_weights
from fedham_flwr.reporting.run_directory import RunDirectory, read_rows
from fedham_flwr.resume.continuing import clients_of, complete
from fedham_flwr.runners import Backend, Engine, Simulation, run_backend
from fedham_flwr.sections import OBJECTS
from fedham_flwr.settings import parse
from fedham_flwr.task import SETTINGS, Task, given_path, is_of_this_process, named

if TYPE_CHECKING:
    import pandas

log = logging.getLogger("fedham_flwr")


@dataclass(frozen=True)
class Run:
    """What a run has left.

    Attributes:
        directory: where all of it is.
        trust_imports: as of `load_model`, for `models`; true of a run that `simulate` has made, whose network it built.
    """

    directory: Path
    trust_imports: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory))  # from a text, too

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` says."""
        return dict(json.loads((self.directory / "summary.json").read_text(encoding="utf-8")))

    @cached_property
    def rows(self) -> pandas.DataFrame:
        """One number of one client in one round: round, client, split, model, phase, metric, value, n, population."""
        return read_rows(self.directory).to_pandas()

    @cached_property
    def rounds(self) -> pandas.DataFrame:
        """One exchange with the clients in a row, as in `rounds.jsonl`."""
        import pandas as pd

        lines = (self.directory / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
        return pd.DataFrame([json.loads(line) for line in lines])

    @cached_property
    def clients(self) -> pandas.DataFrame:
        """A client in a row, as in `clients.json`: client, name, its samples in train, validation and test, ...

        Of classes also how many it has, `classes`, and its training samples of each, `train-labels`; `shape` is that
        of one sample as the network takes it, and `novel` says whether it was held out.
        """
        import pandas as pd

        return pd.DataFrame(RunDirectory(self.directory).read_clients())

    @cached_property
    def mixing(self) -> pandas.DataFrame:
        """Who learned from whom: round, client, group, peer, weight; empty for a method that does not mix."""
        return read_weights(self.directory).to_pandas()

    @cached_property
    def models(self) -> Models:
        """Client -> its personal model, in evaluation mode."""
        return Models(self.directory / "model", RunDirectory(self.directory).read_clients(), self.trust_imports)

    def predict(self, client: str, data: Any, **given: Any) -> pandas.DataFrame:
        """Predictions of new rows by a client's model.

        Args:
            client: its id or its name.
            data: a pandas.DataFrame, a path, or an array; see `fedham_flwr.predict`.
            given: as of `fedham_flwr.predict`.

        Raises:
            UserError: there is no such client, or a row does not fit.
        """
        from fedham_flwr.predicting.predict import predict

        return predict(self.directory, data, client=str(client), **{"trust_imports": self.trust_imports, **given})


def simulate(
    strategy: str | Method | None = None,
    task: Task | str | None = None,
    clients: int | None = None,
    backend: Backend = "in-process",
    num_cpus: int = 1,
    verbose: bool = True,
    engine: Engine = "cohort",
    num_workers: int = 0,
    ray_address: str = "",
    **settings: Any,
) -> Run:
    """Run a federation on this machine.

    Args:
        strategy: the method, by its name, its import path or itself; by default fedper.
        task: what is brought along: a `Task`, a module's name or an import path.
        clients: how many; by default as many as the data name, or 10 where they are dealt by draw.
        backend: in-process (one client after the other), cohort (those of a round as one program, which is faster for
            small networks), or ray (in several processes).
        num_cpus: of ray: processors of a worker.
        verbose: whether the run's progress is printed.
        engine: of ray: cohort, or one-by-one (Flower's own simulation).
        num_workers: of ray: how many workers; 0 for as many as fit.
        ray_address: of ray: of a cluster; empty for that of `RAY_ADDRESS`, or one of this machine.
        settings: by their names with `_` for `-`; a section as a mapping, `fedper={"personal_layers": 2}`, or by
            `**{"fedper.personal-layers": 2}`. Model, dataset, loss, optimizer and metrics also take an object, metrics
            a list too, and callbacks a list of names and objects. With `resume` all others, strategy and clients too,
            are those of that run.

    Raises:
        UserError: as a run on the command line says it.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    own, objects = _flat(settings), tuple[Callback, ...]()
    if "callbacks" in own:
        own["callbacks"], objects = names_and_objects(own["callbacks"])
    resume = str(own.get("resume", ""))
    given = own if resume and strategy is None else {"strategy": strategy or "fedper", **own}
    if task is not None:
        given = _joined(given, _brought(task))
    for setting in OBJECTS:
        if (value := given.get(setting)) is not None:
            given[setting] = _named_by(setting, value)
    given = complete(resume, given) if resume else given
    clients = clients_of(given, resume) if clients is None else clients
    chosen = Simulation(clients, backend, engine, num_cpus, num_workers, ray_address)
    chosen.check()
    if chosen.elsewhere:
        _check_importable(given, backend)
    check_device((parsed := parse(given)).device, ray_address, parsed.precision)
    check_sections(own, parsed)
    check_callbacks(parsed)
    left: list[Path] = []
    try:
        with Interruptible(), contextlib.nullcontext() if verbose else contextlib.redirect_stdout(io.StringIO()):
            from fedham_flwr.server_app import make_server_app

            run_backend(make_server_app(given, left.append, own, objects), given, chosen)
    except UserError as error:
        raise UserError(named(str(error))) from None  # where in this package it was noticed is of no use to the caller
    except KeyboardInterrupt:
        run, usual = left[0] if left else None, vars(Simulation(chosen.clients, "in-process"))
        again = {"resume": str(run)} | {name: value for name, value in vars(chosen).items() if value != usual[name]}
        log.warning(interrupted(run, f"simulate({', '.join(f'{name}={value!r}' for name, value in again.items())})"))
        raise
    return Run(left[0], trust_imports=True)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by key, as in pyproject.toml."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        key = name.replace("_", "-")
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner.replace('_', '-')}": given for inner, given in value.items()}
        elif isinstance(value, np.generic):
            flat[key] = value.item()
        else:
            flat[key] = str(value) if isinstance(value, Path) else value
    return flat


def _named_by(setting: str, value: Any) -> str:
    """What stands for an object in the settings: its name or its path; of several metrics those of all."""
    if isinstance(value, str):
        return value
    if setting == "metrics" and isinstance(value, list | tuple):
        return " ".join(_named_by(setting, each) for each in value)
    if setting == "model" and isinstance(value, nn.Module):
        raise UserError(
            f"model is a {type(value).__name__} that is made already, and wanted is its class or a function that makes "
            "it, since each client has one"
        )
    if not callable(value) and not isinstance(value, Method):
        raise UserError(f"{setting} is {type(value).__name__}, and wanted is a name, an import path or an object")
    return given_path(value, value.name if isinstance(value, Method) else "" if _named(value) else setting)


def _brought(task: Task | str) -> dict[str, Any]:
    """The settings that a task stands for."""
    if isinstance(task, str):
        return {"task": task}
    if not isinstance(task, Task):
        raise UserError(f"task is {type(task).__name__}, and wanted is a Task, a module's name or an import path")
    parts = ((setting, getattr(task, part)) for part, setting in SETTINGS.items())
    return {setting: _named_by(setting, value) for setting, value in parts if value is not None}


def _joined(given: dict[str, Any], brought: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with what a task brings; given both ways is a fault."""
    for setting in brought:
        if setting in given:
            raise UserError(f"{setting} is given, and the task brings it too: wanted one of them")
    return {**given, **brought}


def _named(value: Any) -> bool:
    name = getattr(value, "__name__", "")
    return name not in ("", "<lambda>") and (inspect.isclass(value) or inspect.isroutine(value))


def _check_importable(given: Mapping[str, Any], backend: str) -> None:
    """Refuse what other processes would not find."""
    for setting in OBJECTS:
        for path in filter(is_of_this_process, str(given.get(setting, "")).split()):
            raise UserError(
                f"{setting}={path.rpartition('.')[2]} is defined in this script or notebook, where the workers of "
                f'backend="{backend}" do not find it: wanted an object of a module, or backend="in-process"'
            )
