"""Mixing weights as results: who learned from whom, layer by layer, in every round.

A method that mixes the clients' models leaves `mixing/round-00001-train.parquet` and so on in the run's directory, one
part for each exchange with the clients, with the columns round, client, group, peer and weight. A weight of 0 has no
row, but for a client's weight of itself; the names of all peers are in the part whether or not they have a row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.files import replacing
from fedham_flwr.core.records import MixingWeights
from fedham_flwr.federation.roster import order
from fedham_flwr.reporting.parquet import read_part

if TYPE_CHECKING:
    import pyarrow

Array = np.ndarray[Any, Any]
NAMES = ("client", "group", "peer")
ROWS = 4_000_000
"""Weights that are turned into rows of a part at a time."""


class SelfWeights(NamedTuple):
    """The weight that clients give themselves, on average over the clients."""

    groups: tuple[str, ...]  # L of them
    rounds: Array  # int64 [R]
    means: Array  # float64 [L, R], NaN where a round has none
    peers: int  # of whom weights tell


def write_weights(run: Path, round_number: int, kind: str, weights: MixingWeights) -> Path:
    """Write the weights of one exchange as a Parquet part, whole and renamed, and return its path.

    Args:
        run: directory of the run.
        round_number: the round.
        kind: of the exchange, train or evaluate.
        weights: theirs.
    """
    import pyarrow.parquet as pq

    path = run / "mixing" / f"round-{round_number:05d}-{kind}.parquet"
    path.parent.mkdir(exist_ok=True)
    # The bytes of floats apart from each other: weights that are alike have first bytes that are the same.
    how: dict[str, Any] = {"compression": "zstd", "column_encoding": {"weight": "BYTE_STREAM_SPLIT"}}
    how |= {"use_dictionary": ["round", *NAMES], "dictionary_pagesize_limit": 1 << 30}
    with replacing(path) as part, pq.ParquetWriter(part, _schema(), **how) as writer:
        most = max(1, ROWS // max(1, weights.weights[0].numel() if len(weights.weights) else 1))
        for first in range(0, len(weights.clients), most):
            table = _rows(round_number, weights, slice(first, first + most))
            writer.write_table(table, row_group_size=max(1, len(table)))
    return path


def read_weights(run: Path) -> pyarrow.Table:
    """All mixing weights of a run, by round; an empty table for a method that has none.

    Raises:
        UserError: `run` is not the directory of a run, or a file of it is damaged.
    """
    import pyarrow as pa

    parts = [read_part(part) for part in _files(run)]
    return pa.concat_tables([_schema().empty_table(), *parts]).unify_dictionaries()


def clients_of(run: Path) -> tuple[str, ...]:
    """Those of whom there are mixing weights, in the order of ids.

    Raises:
        UserError: `run` is not the directory of a run.
    """
    import pyarrow.parquet as pq

    columns = (pq.ParquetFile(part).read(columns=["client"])["client"] for part in _files(run))
    return order({name for column in columns for name in column.unique().to_pylist()})


def latest(
    source: pyarrow.Table | Path, clients: Collection[str] | None = None, peers: Collection[str] | None = None
) -> MixingWeights:
    """The last weights of every client, clients and peers in the order of ids.

    Args:
        source: as `read_weights` gives it, or the directory of a run, which is read piece by piece. Not empty. A peer
            that a client's last weights do not name has weight 0.
        clients: those that are wanted; all by default.
        peers: likewise.

    Raises:
        UserError: a directory is not that of a run.
    """
    known: dict[str, dict[str, int]] = {name: {} for name in NAMES}  # name -> its number, as they come
    found: list[list[Array]] = []
    done: set[str] = set()
    for part in _parts(source, newest_first=True):
        there: set[str] = set()
        for piece in part:
            names, at = zip(*(piece[name] for name in NAMES), strict=True)
            numbers = [
                _numbers(names[0], known["client"], clients, done),
                _numbers(names[1], known["group"]),
                _numbers(names[2], known["peer"], peers),
            ]
            last = np.zeros(len(names[0]), dtype=np.int64)
            np.maximum.at(last, at[0], piece["round"])
            places = [number[place] for number, place in zip(numbers, at, strict=True)]
            wanted = (places[0] >= 0) & (places[2] >= 0) & (piece["round"] == last[at[0]])
            found.append([place[wanted] for place in (*places, piece["weight"])])
            there |= set(names[0])
        done |= there
        if clients is not None and done.issuperset(clients):
            break
    weights = np.zeros([len(known[name]) for name in NAMES], dtype=np.float32)
    for who, what, whom, values in found:
        weights[who, what, whom] = values
    rows, columns = order(known["client"]), order(known["peer"])
    weights = weights[[known["client"][c] for c in rows]][:, :, [known["peer"][p] for p in columns]]
    return MixingWeights(rows, tuple(known["group"]), columns, torch.from_numpy(weights))


def self_weights(source: pyarrow.Table | Path) -> SelfWeights:
    """The weight that clients give themselves, on average over the clients.

    Args:
        source: as for `latest`.

    Raises:
        UserError: a directory is not that of a run.
    """
    groups: dict[str, int] = {}
    peers: set[str] = set()
    sums: dict[int, dict[int, Array]] = {}  # round -> group -> sum and number of the weights
    for columns in (columns for part in _parts(source) for columns in part):
        numbers = _numbers(columns["group"][0], groups)
        peers |= set(columns["peer"][0])
        place = {name: at for at, name in enumerate(columns["peer"][0])}
        own = np.array([place.get(client, -1) for client in columns["client"][0]], dtype=np.int64)
        own_rows = own[columns["client"][1]] == columns["peer"][1]
        for number in np.unique(columns["round"]).tolist():
            rows = own_rows & (columns["round"] == number)
            total = sums.setdefault(number, {})
            for group in set(numbers.tolist()):
                values = columns["weight"][rows & (numbers[columns["group"][1]] == group)].astype(np.float64)
                total[group] = total.get(group, np.zeros(2)) + np.array([values.sum(), len(values)])
    means = np.full((len(groups), len(sums)), np.nan)
    for at, number in enumerate(sorted(sums)):
        for group, (total_weight, count) in sums[number].items():
            if count:
                means[group, at] = total_weight / count
    return SelfWeights(tuple(groups), np.array(sorted(sums), dtype=np.int64), means, len(peers))


def _rows(round_number: int, weights: MixingWeights, some: slice) -> pyarrow.Table:
    """The rows of some of the clients, by client, group and peer."""
    import pyarrow as pa

    values = weights.weights[some].detach().cpu().float().numpy()
    place = {peer: at for at, peer in enumerate(weights.peers)}
    own = np.array([place.get(client, -1) for client in weights.clients[some]], dtype=np.int64)[:, None, None]
    if weights.places is None:
        who, what, whom = np.nonzero((values != 0) | (np.arange(len(weights.peers)) == own))
        given = values[who, what, whom]
    else:
        places = weights.places[some].cpu().numpy()
        who, what, at = np.nonzero(values != 0)
        whom, given = places[who, what, at], values[who, what, at]
        lacks = (own[:, :, 0] >= 0) & ~((places == own) & (values != 0)).any(-1)
        more = np.nonzero(np.broadcast_to(lacks, values.shape[:2]))
        who, what = np.concatenate([who, more[0]]), np.concatenate([what, more[1]])
        whom = np.concatenate([whom, own[more[0], 0, 0]])
        given = np.concatenate([given, np.zeros(len(more[0]), dtype=np.float32)])
        turn = np.lexsort((whom, what, who))
        who, what, whom, given = who[turn], what[turn], whom[turn], given[turn]
    return pa.table(
        {
            "round": pa.array(np.full(len(given), round_number, dtype=np.int64)),
            "client": _words(weights.clients[some], who),
            "group": _words(weights.groups, what),
            "peer": _words(weights.peers, whom),
            "weight": given,
        },
        schema=_schema(),
    )


def _files(run: Path) -> list[Path]:
    if not (run / "metrics").is_dir():
        raise UserError(f"{run.absolute()} is not the directory of a run: it has no folder 'metrics'")
    return sorted((run / "mixing").glob("round-*.parquet"))


def _parts(source: pyarrow.Table | Path, newest_first: bool = False) -> Iterator[Iterator[dict[str, Any]]]:
    """The columns of a table, or of each part of a run, piece by piece: see `_columns`."""
    import pyarrow.parquet as pq

    if not isinstance(source, Path):
        yield iter([_columns(source)])
        return
    for file in sorted(_files(source), reverse=newest_first):
        part = pq.ParquetFile(file)
        yield (_columns(part.read_row_group(number)) for number in range(part.num_row_groups))


def _numbers(
    names: Sequence[str], known: dict[str, int], only: Collection[str] | None = None, but: Collection[str] = ()
) -> Array:
    """The numbers of names, which new ones get as they come; -1 of those that are not wanted."""
    wanted = [name not in but and (only is None or name in only) for name in names]
    numbers = [known.setdefault(name, len(known)) if want else -1 for name, want in zip(names, wanted, strict=True)]
    return np.array(numbers, dtype=np.int64)


def _schema() -> pyarrow.Schema:
    import pyarrow as pa

    word = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [("round", pa.int64()), ("client", word), ("group", word), ("peer", word), ("weight", pa.float32())]
    )


def _words(names: Sequence[str], numbers: Array) -> pyarrow.DictionaryArray:
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), pa.array(names, pa.string()))


def _columns(table: pyarrow.Table) -> dict[str, Any]:
    """Rounds and weights as arrays; clients, groups and peers as (names, number of the name in each row)."""
    columns: dict[str, Any] = {name: table[name].to_numpy() for name in ("round", "weight")}
    for name in NAMES:
        column = table[name].unify_dictionaries().combine_chunks()
        columns[name] = (column.dictionary.to_pylist(), column.indices.to_numpy())
    return columns
