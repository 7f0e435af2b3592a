"""Mixing weights as results: who learned from whom, layer by layer, in every round.

A method that mixes the clients' models leaves `mixing/round-00001-train.parquet` and so on in the run's directory, one
part for each exchange with the clients, with the columns round, client, group, peer and weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.files import replacing
from fedham_flwr.core.records import MixingWeights
from fedham_flwr.federation.roster import order

if TYPE_CHECKING:
    import pyarrow


def write_weights(run: Path, round_number: int, kind: str, weights: MixingWeights) -> Path:
    """Write the weights of one exchange as a Parquet part, whole and renamed, and return its path.

    Args:
        run: directory of the run.
        round_number: the round.
        kind: of the exchange, train or evaluate.
        weights: theirs.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    n, groups, peers = weights.weights.shape
    table = pa.table(
        {
            "round": pa.array(np.full(n * groups * peers, round_number, dtype=np.int64)),
            "client": _words(weights.clients, np.repeat(np.arange(n), groups * peers)),
            "group": _words(weights.groups, np.tile(np.repeat(np.arange(groups), peers), n)),
            "peer": _words(weights.peers, np.tile(np.arange(peers), n * groups)),
            "weight": weights.weights.detach().cpu().float().numpy().reshape(-1),
        },
        schema=_schema(),
    )
    path = run / "mixing" / f"round-{round_number:05d}-{kind}.parquet"
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as part:
        pq.write_table(table, part)
    return path


def read_weights(run: Path) -> pyarrow.Table:
    """All mixing weights of a run, by round; an empty table for a method that has none.

    Raises:
        UserError: `run` is not the directory of a run.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not (run / "metrics").is_dir():
        raise UserError(f"{run.absolute()} is not the directory of a run: it has no folder 'metrics'")
    # ParquetFile and not read_table, which takes a folder named a=b on the way as a column.
    parts = [pq.ParquetFile(part).read() for part in sorted((run / "mixing").glob("round-*.parquet"))]
    return pa.concat_tables([_schema().empty_table(), *parts]).unify_dictionaries()


def latest(table: pyarrow.Table) -> MixingWeights:
    """The last weights of every client, clients and peers in the order of ids.

    Args:
        table: as `read_weights` gives it; not empty. A peer that a client's last weights do not name has weight 0.
    """
    columns = _columns(table)
    clients, groups, peers = (columns[name][0] for name in ("client", "group", "peer"))
    rounds, (who, what, whom) = columns["round"], (columns[name][1] for name in ("client", "group", "peer"))
    last = np.zeros(len(clients), dtype=np.int64)
    np.maximum.at(last, who, rounds)
    newest = rounds == last[who]
    weights = np.zeros((len(clients), len(groups), len(peers)), dtype=np.float32)
    weights[who[newest], what[newest], whom[newest]] = columns["weight"][newest]
    rows, everyone = order(clients), order(peers)
    weights = weights[[clients.index(c) for c in rows]][:, :, [peers.index(p) for p in everyone]]
    return MixingWeights(rows, tuple(groups), everyone, torch.from_numpy(weights))


def self_weights(table: pyarrow.Table) -> tuple[tuple[str, ...], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The weight that clients give themselves, on average over the clients.

    Args:
        table: as `read_weights` gives it.

    Returns:
        The layer groups [L], the rounds [R], and the mean weights [L, R], NaN where a round has none.
    """
    columns = _columns(table)
    groups, (who, whom) = columns["group"][0], (columns[name] for name in ("client", "peer"))
    place = {client: i for i, client in enumerate(whom[0])}
    own = np.array([place.get(client, -1) for client in who[0]], dtype=np.int64)[who[1]] == whom[1]
    rounds, at = np.unique(columns["round"], return_inverse=True)
    total, count = (np.zeros((len(groups), len(rounds))) for _ in range(2))
    np.add.at(total, (columns["group"][1][own], at[own]), columns["weight"][own])
    np.add.at(count, (columns["group"][1][own], at[own]), 1)
    with np.errstate(invalid="ignore"):
        return tuple(groups), rounds, total / count


def _schema() -> pyarrow.Schema:
    import pyarrow as pa

    word = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [("round", pa.int64()), ("client", word), ("group", word), ("peer", word), ("weight", pa.float32())]
    )


def _words(names: Sequence[str], numbers: np.ndarray[Any, Any]) -> pyarrow.DictionaryArray:
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), pa.array(names, pa.string()))


def _columns(table: pyarrow.Table) -> dict[str, Any]:
    """Rounds and weights as arrays; clients, groups and peers as (names, number of the name in each row)."""
    columns: dict[str, Any] = {name: table[name].to_numpy() for name in ("round", "weight")}
    for name in ("client", "group", "peer"):
        column = table[name].unify_dictionaries().combine_chunks()
        columns[name] = (column.dictionary.to_pylist(), column.indices.to_numpy())
    return columns
