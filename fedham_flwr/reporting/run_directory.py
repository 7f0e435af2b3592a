"""What remains after a run: its directory, its per-client rows, and the statistics made from them.

A run leaves `<results-dir>/<strategy>/<time>-<seed>/` with

    config.toml        every setting, usable again as `-c config.toml`; resume.toml continues the run
    environment.json   versions, machine, commit
    clients.json       who took part, with how many samples of which class
    rounds.jsonl       one line per exchange with the clients
    metrics/           one Parquet part of rows per exchange that measured something
    model/             one safetensors file per client: its personal model; .json and .md: its card
    server.safetensors the server's state
    checkpoints/       the last two; see checkpoints.py. In a simulation clients/ holds what the clients keep
    undone.jsonl       of a run that was continued: the exchanges after the checkpoint, which were done again
    cross-sites.*      with cross-evaluation: each client's model on each client's test data, as rows and a picture
    summary.json       the statistics of the last round and of the round chosen on validation

A number that was not measured is absent, never 0. All keys in the TOML and JSON files are in kebab case.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from fedham_flwr.core.errors import UnwritableError, UserError, cause, reason
from fedham_flwr.core.files import naming, replacing, sync
from fedham_flwr.core.records import MEMBER, Failure, RoundRecord, Row, check_rows
from fedham_flwr.reporting.environment import environment_facts
from fedham_flwr.reporting.formats import json_text, toml_text
from fedham_flwr.reporting.parquet import read_part

if TYPE_CHECKING:
    import pyarrow


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
        path = None
        try:
            path = _new_directory(top / strategy, f"{now:%Y%m%dT%H%M%SZ}-{seed}")
            directory = cls(path)
            directory._begin(settings, now)
        except BaseException as error:
            if path:
                shutil.rmtree(path, ignore_errors=True)
            if not isinstance(error, OSError | ValueError):  # of a name with a NUL
                raise
            raise UserError(
                f"results-dir {top} cannot be written: {cause(error)}; name another with results-dir=..."
            ) from error
        return directory

    def _begin(self, settings: Mapping[str, bool | int | float | str], now: datetime) -> None:
        (self.path / "metrics").mkdir()
        (self.path / "model").mkdir()
        self.write_settings(settings)
        environment = environment_facts(str(settings.get("device", "auto")), now)
        (self.path / "environment.json").write_text(json_text(environment, indent=2) + "\n", encoding="utf-8")

    def write_settings(self, settings: Mapping[str, bool | int | float | str]) -> None:
        """Write `config.toml`, and `resume.toml`, which has the same and the name of this directory."""
        for name, given in (("config", settings), ("resume", {**settings, "resume": str(self.path)})):
            with replacing(self.path / f"{name}.toml") as part:
                part.write_text(toml_text(given), encoding="utf-8")

    def rewind(self, exchanges: int) -> None:
        """Take back the results of all exchanges after the first ones; their lines go to `undone.jsonl`.

        Args:
            exchanges: how many lines of `rounds.jsonl` are to stay.
        """
        file = self.path / "rounds.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if exchanges or file.exists() else []
        if undone := [line for line in lines[exchanges:] if line.endswith("\n")]:
            past = self.path / "undone.jsonl"
            before = past.read_text(encoding="utf-8") if past.exists() else ""
            with replacing(past) as part:
                part.write_text(before + "".join(undone), encoding="utf-8")
        with replacing(file) as part:
            part.write_text("".join(lines[:exchanges]), encoding="utf-8")
        stay = {f"round-{record.round:05d}-{record.kind}.parquet" for record in self.read_rounds()}
        for name in ("metrics", "mixing"):
            for table in (self.path / name).glob("round-*.parquet"):
                if table.name not in stay:
                    table.unlink()
        for ended in ("summary.json", "cross-sites.parquet", "cross-sites.png"):
            (self.path / ended).unlink(missing_ok=True)

    def read_rounds(self, name: str = "rounds.jsonl") -> list[RoundRecord]:
        """The exchanges so far, of `rounds.jsonl` or `undone.jsonl`; a line that was cut off is none."""
        file = self.path / name
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        return [_read_record(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def sync(self) -> None:
        """Have the results so far on the disk."""
        for name in ("metrics", "mixing"):
            for table in (self.path / name).glob("round-*.parquet"):
                sync(table)
        if (self.path / "rounds.jsonl").exists():
            sync(self.path / "rounds.jsonl")

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
        line, journal = _write_record(record), self.path / "rounds.jsonl"
        with naming(journal), journal.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()

    def write_clients(self, clients: Sequence[Mapping[str, object]]) -> None:
        """Write `clients.json`: who took part, and how many samples each has in each split and class."""
        with replacing(self.path / "clients.json") as part:
            part.write_text(json_text(clients, indent=2) + "\n", encoding="utf-8")

    def read_clients(self) -> list[dict[str, object]]:
        """What `clients.json` says; nothing if it is not there."""
        file = self.path / "clients.json"
        return list(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else []

    def finish(self, summary: Mapping[str, object]) -> Path:
        """Write `summary.json`, with null for numbers that are not finite, and return its path."""
        path = self.path / "summary.json"
        with replacing(path) as part:
            part.write_text(json_text(summary, indent=2) + "\n", encoding="utf-8")
        return path


def _write_record(record: RoundRecord) -> str:
    """A line of `rounds.jsonl`."""
    line = {name.replace("_", "-"): value for name, value in vars(record).items()}
    line["failures"] = [failure._asdict() for failure in record.failures]
    return json_text(line) + "\n"


def _read_record(line: str) -> RoundRecord:
    """The inverse of `_write_record`."""
    read: dict[str, Any] = json.loads(line)
    given: dict[str, Any] = {key.replace("-", "_"): tuple(v) if isinstance(v, list) else v for key, v in read.items()}
    given["failures"] = tuple(Failure(**failure) for failure in read["failures"])
    return RoundRecord(**given)


def read_rows(run: Path) -> "pyarrow.Table":
    """All rows of a run, sorted by round, client, split, model, phase and metric.

    Raises:
        UserError: `run` is not the directory of a run, or a file of it is damaged.
    """
    import pyarrow as pa

    metrics = Path(run) / "metrics"
    if not metrics.is_dir():
        raise UserError(f"{Path(run).absolute()} is not the directory of a run: it has no folder 'metrics'")
    parts = [read_part(part) for part in sorted(metrics.glob("round-*.parquet"))]
    table = pa.concat_tables([_table([]), *parts], promote_options="default")
    population = table["population"].fill_null(MEMBER)  # of a run from before there were novel clients
    table = table.set_column(table.schema.get_field_index("population"), "population", population)
    return table.sort_by([(name, "ascending") for name in Row._fields[:6]])


def to_rows(table: "pyarrow.Table") -> list[Row]:
    """The rows of a table that `read_rows` gave."""
    return [Row(*values) for values in zip(*(table[name].to_pylist() for name in Row._fields), strict=True)]


def _table(rows: Sequence[Row]) -> "pyarrow.Table":
    import pyarrow as pa

    kinds = {"int": pa.int64(), "str": pa.string(), "float": pa.float64()}
    schema = pa.schema([(name, kinds[kind.__name__]) for name, kind in get_type_hints(Row).items()])
    return pa.table({name: [row[at] for row in rows] for at, name in enumerate(Row._fields)}, schema=schema)


def unwritable(path: Path, error: OSError) -> UnwritableError:
    """What to say of results that cannot be written.

    Args:
        path: The run's directory.
        error: What came of trying.
    """
    return UnwritableError(f"the results cannot be written to {path}: {reason(error)}")


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
