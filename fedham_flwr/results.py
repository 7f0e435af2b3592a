"""What remains after a run: its directory, its per-client rows, and the statistics made from them.

A run leaves `<results-dir>/<strategy>/<time>-<seed>/` with

    config.toml        every setting, usable again as `-c config.toml`
    environment.json   versions, machine, commit
    clients.json       who took part, with how many samples of which class
    rounds.jsonl       one line per exchange with the clients
    metrics/           one Parquet part of rows per exchange that measured something
    model/             one safetensors file per client: its personal model
    server.safetensors the server's state
    summary.json       the statistics of the last round and of the round chosen on validation

A number that was not measured is absent, never 0. All keys in the TOML and JSON files are in kebab case.
"""

import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors.torch import save_file

from fedham_flwr import __version__
from fedham_flwr.errors import UserError

if TYPE_CHECKING:
    import pyarrow

_SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_SOURCE = Path(__file__).resolve().parent.parent


MEMBER, NOVEL = "member", "novel"
"""Populations: the clients of the federation, and those that never trained in it."""


class Row(NamedTuple):
    """One number of one client in one round, with the `n` samples behind it."""

    round: int  # of the server, from 1
    client: str
    split: str  # train | validation | test
    model: str  # global | personal
    phase: str  # before | after local training
    metric: str  # accuracy (a fraction) | loss (mean per sample, in nats) | perplexity (of texts)
    value: float
    n: int  # images, or characters of texts
    population: str = MEMBER  # member | novel; before and after an adaptation, for a novel client


class Failure(NamedTuple):
    """One client that gave no usable reply; `error` is the first line of what it said."""

    round: int
    stage: str
    client: str
    error: str


@dataclass(frozen=True)
class RoundRecord:
    """One exchange with the clients: a line of `rounds.jsonl`."""

    round: int  # of the server, from 1
    # train | evaluate | query, which a method may ask before either | personal, a stage of each client's own | of novel
    # clients: novel, when they come, adapt, and adapted, for turns and what came of them
    kind: str
    cohort: tuple[str, ...]  # the clients that were asked
    replies: int  # usable ones
    failures: tuple[Failure, ...]
    seconds: Mapping[str, float]  # of each part of the exchange
    bytes_up: int  # from the clients
    bytes_down: int  # to the clients
    restored: tuple[str, ...] = ()  # clients that had lost their state, and were sent everything
    restarted: tuple[str, ...] = ()  # clients that had learned something that started again, since they lost it


@dataclass(frozen=True)
class RunDirectory:
    """The directory of one run, which only this run writes to."""

    path: Path

    @classmethod
    def create(
        cls, root: str | Path, strategy: str, seed: int, settings: Mapping[str, bool | int | float | str]
    ) -> "RunDirectory":
        """Make a new directory below `root` and record the settings and the environment in it.

        Args:
            root: The setting `results-dir`; a relative one starts at the working directory.
            strategy: Name of the strategy, the first level below `root`.
            seed: Seed of the run, part of the directory's name.
            settings: All resolved settings under their kebab-case names (`fedprox.mu` for one of a method).

        Raises:
            UserError: The directory cannot be made or written to.
        """
        top = Path(os.path.abspath(os.path.expanduser(root)))
        now = _utc_now()
        # Trying is the only test that holds: access bits say nothing on a read-only mount or for the superuser.
        try:
            path = _new_directory(top / strategy, f"{now:%Y%m%dT%H%M%SZ}-{seed}")
            (path / "metrics").mkdir()
            (path / "model").mkdir()
            (path / "config.toml").write_text(_toml(settings), encoding="utf-8")
            environment = environment_facts(str(settings.get("device", "auto")), now)
            (path / "environment.json").write_text(_json(environment, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"results-dir {top} cannot be written: {error.strerror or error}; name another with results-dir=..."
            ) from error
        return cls(path)

    def write_round(self, record: RoundRecord, rows: Sequence[Row]) -> None:
        """Append `record` to `rounds.jsonl` and, when there are any, write its rows as one Parquet part.

        The part comes first: a line in `rounds.jsonl` means that its part is complete. A part that is written
        again (a repeated round) replaces the earlier one.

        Raises:
            ValueError: Two rows differ in value or n only, or a row belongs to another round.
        """
        if rows:
            import pyarrow.parquet as pq

            check_rows(rows, record.round)
            with replacing(self.path / "metrics" / f"round-{record.round:05d}-{record.kind}.parquet") as part:
                pq.write_table(_table(rows), part)
        line = {name.replace("_", "-"): value for name, value in vars(record).items()}
        line["failures"] = [failure._asdict() for failure in record.failures]
        with (self.path / "rounds.jsonl").open("a", encoding="utf-8") as file:
            file.write(_json(line) + "\n")
            file.flush()

    def write_clients(self, clients: Sequence[Mapping[str, object]]) -> None:
        """Write `clients.json`: who took part, and how many samples each has in each split and class."""
        with replacing(self.path / "clients.json") as part:
            part.write_text(_json(clients, indent=2) + "\n", encoding="utf-8")

    def save_state(self, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
        """Write the server's state as `server.safetensors` and return its path.

        Args:
            state: Named tensors.
            metadata: Stored in the file's header.
        """
        return _write_tensors(self.path / "server.safetensors", state, metadata)

    def finish(self, summary: Mapping[str, object]) -> Path:
        """Write `summary.json`, with null for numbers that are not finite, and return its path."""
        path = self.path / "summary.json"
        with replacing(path) as part:
            part.write_text(_json(summary, indent=2) + "\n", encoding="utf-8")
        return path


def write_model(folder: Path, client: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
    """Write one client's model as `<folder>/<client>.safetensors` and return its path.

    Args:
        folder: Where; it is made if need be.
        client: Client id, which becomes the name of the file.
        tensors: The whole model by parameter name, on any device; memory may be shared between them.
        metadata: Stored in the file's header.

    Raises:
        UserError: `client` cannot be a file name.
    """
    if not _SAFE_NAME.fullmatch(client):
        raise UserError(
            f"client id {client!r} cannot name a file: wanted 1 to 64 of A-Z a-z 0-9 . _ - not starting with a dot"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return _write_tensors(folder / f"{client}.safetensors", tensors, metadata)


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
    with replacing(path) as part:
        save_file(_plain(tensors), part, dict(metadata))
    return path


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as safetensors wants them: laid out row by row, each in memory of its own; copies only where need be."""
    plain, taken = {}, set()
    for name, tensor in tensors.items():
        one = tensor.detach().cpu().contiguous()
        memory = one.untyped_storage()
        if memory.data_ptr() in taken or memory.nbytes() != one.nbytes:
            one = one.clone()
        taken.add(one.untyped_storage().data_ptr())
        plain[name] = one
    return plain


def read_rows(run: Path) -> "pyarrow.Table":
    """All rows of a run, sorted by round, client, split, model, phase and metric.

    Raises:
        UserError: `run` is not the directory of a run.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    metrics = Path(run) / "metrics"
    if not metrics.is_dir():
        raise UserError(f"{Path(run).absolute()} is not the directory of a run: it has no folder 'metrics'")
    # ParquetFile and not read_table, which takes a folder named a=b on the way as a column.
    parts = [pq.ParquetFile(part).read() for part in sorted(metrics.glob("round-*.parquet"))]
    table = pa.concat_tables([_table([]), *parts], promote_options="default")
    population = table["population"].fill_null(MEMBER)  # of a run from before there were novel clients
    table = table.set_column(table.schema.get_field_index("population"), "population", population)
    return table.sort_by([(name, "ascending") for name in Row._fields[:6]])


def to_rows(table: "pyarrow.Table") -> list[Row]:
    """The rows of a table that `read_rows` gave."""
    return [Row(*values) for values in zip(*(table[name].to_pylist() for name in Row._fields), strict=True)]


def check_rows(rows: Sequence[Row], number: int) -> None:
    """Refuse rows of another round, and two values for one thing, which would count a client twice."""
    seen = set()
    for row in rows:
        if row.round != number:
            raise ValueError(f"a row of round {row.round} was given with round {number}: {row}")
        if row[:6] in seen:
            raise ValueError(f"client {row.client!r} has two values for {' '.join(row[2:6])} in round {row.round}")
        seen.add(row[:6])


def _table(rows: Sequence[Row]) -> "pyarrow.Table":
    import pyarrow as pa

    kinds = {"int": pa.int64(), "str": pa.string(), "float": pa.float64()}
    schema = pa.schema([(name, kinds[kind.__name__]) for name, kind in Row.__annotations__.items()])
    return pa.table({name: [row[at] for row in rows] for at, name in enumerate(Row._fields)}, schema=schema)


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _new_directory(parent: Path, name: str) -> Path:
    """Make `parent/name`, or `parent/name-2` and so on: mkdir tells two runs of one second apart."""
    parent.mkdir(parents=True, exist_ok=True)
    path, number = parent / name, 1
    while True:
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
            path = parent / f"{name}-{number}"
        else:
            return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; it becomes `path` when the block ends well and is removed when not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _toml(settings: Mapping[str, bool | int | float | str]) -> str:
    lines = [f"{name} = {_toml_value(value)}\n" for name, value in settings.items()]
    return "".join(["# Every setting of this run; give it back with -c config.toml\n", *lines])


def _toml_value(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's too, but for pairs of surrogates and DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _json(value: object, indent: int | None = None) -> str:
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: object) -> object:
    """A copy with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def environment_facts(device: str, start: datetime) -> dict[str, object]:
    """The facts that a reader needs to judge or repeat the run; what is not known is absent."""
    cuda = device != "cpu" and torch.cuda.is_available()
    packages = {name: _version(name) for name in ("flwr", "ray", "torch", "numpy")}
    facts = {
        "started": f"{start:%Y-%m-%dT%H:%M:%SZ}",
        "commit": _commit(),
        "python": platform.python_version(),
        "fedham-flwr": __version__,
        **packages,
        "platform": platform.platform(),
        "cpu-count": os.cpu_count(),
        "torch-threads": torch.get_num_threads(),
        "device": f"cuda ({torch.cuda.get_device_name()})" if cuda else "cpu",
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


@lru_cache(maxsize=16)
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree, ending in -dirty when files differ from it; None without one."""
    git = shutil.which("git")
    # Only a repository of our own: an installed copy may lie inside somebody else's.
    if git is None or not (_SOURCE / ".git").exists():
        return None
    command = [git, "-C", str(_SOURCE), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
