"""What a run that begins with a trained model starts from: a model, or models, that an earlier run left.

The setting `resume` names the directory of a run or one safetensors file. Of a directory,

    server.safetensors           is read if it holds the whole model (fedavg and its like): all clients start there
    model/<client>.safetensors   is read otherwise: each client starts from its own

Only safetensors are read, which are data and never code.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.core.parameters import Manifest, Params
from fedham_flwr.core.server_optimizers import STATE
from fedham_flwr.data.data_settings import resolved
from fedham_flwr.resume.runs import read_settings, read_summary

SERVER, MODELS = "server.safetensors", "model"
"""In the directory of a run; see reporting/run_directory.py."""
WANTED = (
    "wanted the directory of a run, results/<strategy>/<time>-<seed>, or the file of one model, "
    f"{MODELS}/<client>.safetensors"
)
DEALING = (
    "dataset", "feature-column", "label-column", "client-column", "partitioner", "alpha", "classes-per-client",
    "owner-share", "class-table", "samples-per-client", "sequence-length", "vocabulary", "min-characters",
    "validation-fraction", "test-fraction",
)  # fmt: skip
"""Settings that decide which samples a client trains on, and which it tests on."""
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


def read_start(path: str, manifest: Manifest, names: Sequence[str], model: str, clients: Sequence[str]) -> Start:
    """Read what the setting `resume` names.

    Args:
        path: the setting: a file `x.safetensors` or the directory of a run. `~` is the home directory, and a relative
            path starts at the working directory.
        manifest: of this run's network, for shapes and dtypes.
        names: the tensors that its clients share; exactly these are wanted; counters are passed over.
        model: name of this run's network, `auto` resolved.
        clients: ids of the clients; each needs a model if there is none for all.

    Raises:
        UserError: nothing is there, or no whole model, or none that fits this run.
    """
    place, given = Path(os.path.expanduser(path)), f"resume={path}"
    wanted = _Wanted(manifest, tuple(names), model)
    if os.path.isfile(place):
        return Start(_read(place, given, wanted), {}, path + _left_by(place))
    if not os.path.isdir(place):
        raise UserError(f"{given}: there is nothing at {os.path.abspath(place)}; {WANTED}")
    if not _is_run(place):
        raise UserError(f"{given} is not the directory of a run{_advice(place)}; {WANTED}")
    server = place / SERVER
    if not os.path.isfile(server):
        raise UserError(f"{given} is of a run that left no {SERVER}, since it ended too early: wanted one that did")
    what = f"{given}: {SERVER}"
    with _opened(server, what) as source:
        _check_network(source.metadata() or {}, model, what)
        whole = set(_of_models(source)) == set(names)
    if whole:
        return Start(_read(server, what, wanted), {}, os.path.join(path, SERVER) + _left_by(server))
    own = _read_own(place / MODELS, given, wanted, clients)
    return Start({}, own, f"{os.path.join(path, MODELS)}, to each client its own{_left_by(server)}")


def dealt_otherwise(path: str, now: Mapping[str, object]) -> tuple[str, ...]:
    """How the data were dealt in the run that left a start, where it is not as in this run.

    Clients then test on samples that the start may have been trained on.

    Args:
        path: as for `read_start`, which has read it.
        now: this run's settings, spelled as in pyproject.toml.

    Returns:
        "seed=0" for each setting that differs; nothing where the earlier run's settings cannot be read.
    """
    place = Path(os.path.abspath(os.path.expanduser(path)))
    for run in (place, place.parent, place.parent.parent):
        if not (then := read_settings(run)):
            continue
        then, now = _with_partitioner(then), _with_partitioner(now)
        differ = [key for key in DEALING if key in then and then[key] != now[key]]
        seed, seed_now = _seed_setting(then), _seed_setting(now)
        differ += [seed] if seed in then and then[seed] != now[seed_now] else []
        return tuple(f"{key}={json.dumps(then[key])}" for key in differ)
    return ()


def _seed_setting(settings: Mapping[str, Any]) -> str:
    """The setting that is the seed of partition and splits."""
    return "data-seed" if settings.get("data-seed", -1) >= 0 else "seed"


def _with_partitioner(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the partitioner that `auto` stands for, which runs before there was one had written."""
    keys = ("partitioner", "client-column", "class-table")
    given = [str(settings.get(key, "")) for key in keys]
    return {**settings, "partitioner": resolved(*given)} if all(key in settings for key in keys) else {**settings}


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
    if file.suffix != ".safetensors":
        raise UserError(f"{what} is no .safetensors file; {WANTED}")
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


def _advice(place: Path) -> str:
    """The run that may have been meant: the one that a folder belongs to, or the newest below it that ended well."""
    above = place.absolute().parent
    if _is_run(above):
        return f" but a part of {above}"
    found = [*place.glob(f"*/{SERVER}"), *place.glob(f"*/*/{SERVER}")]
    runs = [file.parent for file in found if "error" not in read_summary(file.parent)]
    # The name of a run begins with the time when it began; of two in one second the file's own time tells more.
    newest = max(runs, key=lambda run: (run.name[:16], (run / SERVER).stat().st_mtime_ns), default=None)
    return f" (the newest below it is {newest})" if newest else ", and no run below it has come to its end"


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
