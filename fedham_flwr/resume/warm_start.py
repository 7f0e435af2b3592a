"""What a run that begins with a trained model starts from: a model, or models, that an earlier run left.

The setting `resume` names the directory of a run or one safetensors file. Of a directory,

    server.safetensors           is read if it holds the whole model (fedavg and its like): all clients start there
    model/<client>.safetensors   is read otherwise: each client starts from its own

A method whose head stays as it is at first (`Method.frozen_head`) starts from server.safetensors alone, which has the
layers that it shares; a client's model has a head of its own beside them.

Only safetensors are read, which are data and never code.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.core.imports import section_of
from fedham_flwr.core.parameters import Manifest, Params
from fedham_flwr.core.server_optimizers import STATE
from fedham_flwr.resume.runs import read_summary

SERVER, MODELS = "server.safetensors", "model"
"""In the directory of a run; see reporting/run_directory.py."""
FIRST = 5
"""How many names an error lists before it counts the rest."""


class Start(NamedTuple):
    """What to start from: the shared tensors of the run's network, in its order, checked, on the CPU.

    Attributes:
        common: one model for every client; empty if each has its own.
        own: client id -> its model; empty if there is one for all.
        source: what to say of it: where it lies, and the strategy and rounds of the run that left it.
    """

    common: Params
    own: Mapping[str, Params]
    source: str


class _Wanted(NamedTuple):
    """What a model must be to fit this run: the arguments of `read_start`."""

    manifest: Manifest
    names: tuple[str, ...]
    model: str
    only: str

    @property
    def place(self) -> str:
        """What `resume` may name."""
        if self.only:
            return f"wanted the directory of a {self.only} run, results/{self.only}/<time>-<seed>, or its {SERVER}"
        file = f"{MODELS}/<client>.safetensors"
        return f"wanted the directory of a run, results/<strategy>/<time>-<seed>, or the file of one model, {file}"


def read_start(
    path: str, manifest: Manifest, names: Sequence[str], model: str, clients: Sequence[str], only: str = ""
) -> Start:
    """Read what the setting `resume` names.

    Args:
        path: the setting: a file `x.safetensors` or the directory of a run. `~` is the home directory, and a relative
            path starts at the working directory.
        manifest: of this run's network, for shapes and dtypes.
        names: the tensors that its clients share; exactly these are wanted; counters are passed over.
        model: name of this run's network, `auto` resolved.
        clients: ids of the clients; each needs a model if there is none for all.
        only: the method of this run, if it starts from what servers of its own runs have alone; empty for any.

    Raises:
        UserError: nothing is there, or no whole model, or none that fits this run.
    """
    place, given = Path(os.path.expanduser(path)), f"resume={path}"
    wanted = _Wanted(manifest, tuple(names), model, only)
    if os.path.isfile(place):
        return Start(_read(place, given, wanted), {}, path + _left_by(place))
    if not os.path.isdir(place):
        raise UserError(f"{given}: there is nothing at {os.path.abspath(place)}; {wanted.place}")
    if not _is_run(place):
        raise UserError(f"{given} is not the directory of a run{_advice(place, only)}; {wanted.place}")
    server = place / SERVER
    if not os.path.isfile(server):
        raise UserError(f"{given} is of a run that left no {SERVER}, since it ended too early: wanted one that did")
    what = f"{given}: {SERVER}"
    with _opened(server, what) as source:
        _check_network(source.metadata() or {}, model, what)
        whole = set(_of_models(source)) == set(names)
    if whole or only:
        return Start(_read(server, what, wanted), {}, os.path.join(path, SERVER) + _left_by(server))
    own = _read_own(place / MODELS, given, wanted, clients)
    return Start({}, own, f"{os.path.join(path, MODELS)}, to each client its own{_left_by(server)}")


def _read_own(folder: Path, given: str, wanted: _Wanted, clients: Sequence[str]) -> dict[str, Params]:
    """Every client's exported model."""
    files = {client: folder / f"{client}.safetensors" for client in clients}
    if absent := [client for client, file in files.items() if not os.path.isfile(file)]:
        raise UserError(
            f"{given}: the server of that run keeps no model like this run's, and {MODELS}/ has none of clients "
            f"{_some(absent)}; wanted one of each client, or resume= one file {MODELS}/<client>.safetensors, from "
            "which all clients then start"
        )
    return {client: _read(file, f"{given}: {MODELS}/{file.name}", wanted) for client, file in files.items()}


def _read(file: Path, what: str, wanted: _Wanted) -> Params:
    """The tensors wanted out of a file that has exactly those, copied: safetensors gives views that change with it."""
    if file.suffix != ".safetensors":
        raise UserError(f"{what} is no .safetensors file; {wanted.place}")
    with _opened(file, what) as source:
        _check_content(source, what, wanted)
        tensors = {name: source.get_tensor(name).clone() for name in wanted.names}
    try:
        wanted.manifest.check(tensors, wanted.names)
    except ValueError as error:
        other = any(tuple(tensors[name].shape) != wanted.manifest.shapes[name] for name in wanted.names)
        why = ", as if for other classes or samples of another size" if other else ""
        raise UserError(f"{what} does not fit the {wanted.model} of this run: {error}{why}") from error
    return tensors


@contextmanager
def _opened(file: Path, what: str) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as source:
            yield source
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{what} cannot be read as a model ({first_line(error)}); wanted a safetensors file that a run left"
        ) from error


def _check_content(source: Any, what: str, wanted: _Wanted) -> None:
    """Refuse a file of another network, or one that lacks tensors or has others."""
    label = source.metadata() or {}
    _check_network(label, wanted.model, what)
    names = _of_models(source)
    absent = [name for name in wanted.names if name not in names]
    foreign = [name for name in names if name not in wanted.names and not _counter(source, name)]
    # What the servers of other methods keep is no model, and the other two errors would not say so.
    if wanted.only and (absent or foreign):
        raise UserError(
            f"{what} {_unlike(absent, foreign)}, and {wanted.only} starts from the layers that it shares alone, under "
            f"its first head: wanted the {SERVER} of a {wanted.only} run of the same network and settings"
        )
    if (absent or foreign) and "strategy" in label and "client" not in label:
        raise UserError(
            f"{what} is what the server of a {label['strategy']} run keeps, and no whole model like this run's: wanted "
            f"the directory of that run, or one file {MODELS}/<client>.safetensors in it"
        )
    if foreign:
        raise UserError(
            f"{what} holds tensors that the model of this run does not share, {_some(foreign)}: wanted the {SERVER} of "
            "a run that averages whole models, or a model without such a block"
        )
    if absent:
        raise UserError(f"{what} lacks {_some(absent)}: wanted all shared tensors of the {wanted.model} of this run")


def _unlike(absent: Sequence[str], foreign: Sequence[str]) -> str:
    parts = [f"{verb} {_some(names)}" for verb, names in (("holds", foreign), ("lacks", absent)) if names]
    return " and ".join(parts)


def _of_models(source: Any) -> list[str]:
    """The names in a file but for those of what a server's optimiser remembers."""
    names = list(source.keys())
    return [name for name in names if not name.startswith(STATE)]


def _counter(source: Any, name: str) -> bool:
    """Whether a tensor is of integers, as the counters of batch normalisation, which are never shared."""
    return str(source.get_slice(name).get_dtype()).startswith(("I", "U"))


def _check_network(label: Mapping[str, str], model: str, what: str) -> None:
    written = label.get("model", model)
    if written != model:
        raise UserError(f'{what} holds a {written}, and this run builds a {model}: set model="{written}"')


def _is_run(place: Path) -> bool:
    begun = os.path.isfile(place / "config.toml") and os.path.isdir(place / MODELS)
    return begun or os.path.isfile(place / SERVER)


def _advice(place: Path, only: str) -> str:
    """The run that may have been meant: the one that a folder belongs to, or the newest below it that ended well.

    Args:
        place: the folder.
        only: the method whose run it must be; empty for any.
    """
    above = place.absolute().parent
    if _is_run(above):
        return f" but a part of {above}"
    found = [*place.glob(f"*/{SERVER}"), *place.glob(f"*/*/{SERVER}")]
    told = {file.parent: read_summary(file.parent) for file in found}
    runs = [run for run, each in told.items() if "error" not in each and only in ("", _method_of(each))]
    # The name of a run begins with the time when it began; of two in one second the file's own time tells more.
    newest = max(runs, key=lambda run: (run.name[:16], (run / SERVER).stat().st_mtime_ns), default=None)
    return (
        f" (the newest below it is {newest})"
        if newest
        else f", and no {only}{' ' * bool(only)}run below it has come to its end"
    )


def _method_of(summary: Mapping[str, object]) -> str:
    """The method of a run, as its section and its directory have it."""
    return section_of(str(summary.get("strategy", "")))


def _left_by(file: Path) -> str:
    """What is known of the run that left a file that can be read: ", of a fedavg run of 20 rounds"."""
    with _opened(file, str(file)) as source:
        strategy = (source.metadata() or {}).get("strategy")
    run = file.absolute().parent if file.name == SERVER else file.absolute().parent.parent
    summary = read_summary(run)
    rounds = summary.get("num-rounds") if summary.get("strategy") == strategy else None
    length = "" if rounds is None else f" of {rounds} round{'' if rounds == 1 else 's'}"
    return f", of a {strategy} run{length}" if strategy else ""


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - FIRST} more" if len(names) > FIRST else ""
    return ", ".join(names[:FIRST]) + rest
