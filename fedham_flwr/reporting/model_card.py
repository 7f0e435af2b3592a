"""What the server of a simulation adds to the cards of the models: whom a client listened to, and how it came there.

On nodes of their own the clients' cards stay with them, without what only the server knows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedham_flwr.core.records import RoundRecord, Row
from fedham_flwr.models import cards
from fedham_flwr.reporting.shown import split_shown
from fedham_flwr.training.metrics import Metric

PEERS = 10
"""Peers of each group of layers: those with the largest weights."""
NOBODY = "This method mixes no models for each client alone."


def complete(run: Path, rows: Iterable[Row], records: Iterable[RoundRecord], headline: Metric) -> None:
    """Add to the cards of a run's models what the server knows.

    Args:
        run: its directory.
        rows: of all rounds.
        records: of all exchanges.
        headline: the metric of the history.

    Raises:
        OSError: a card cannot be written.
    """
    folder = run / "model"
    known = {file.stem for file in folder.glob("*.md")}
    if not known:
        return
    rows = list(rows)
    split = split_shown(rows, headline, over_rounds=True)
    mixing, past = _mixing(run), _history(rows, headline, split)
    rounds: dict[str, int] = defaultdict(int)
    for record in records:
        for client in record.cohort if record.kind == "train" else ():
            rounds[client] += 1
    for client in sorted(known):
        facts = cards.read(folder, client)
        if facts is None:
            continue
        facts["method"]["rounds-taken-part"] = rounds[client]
        facts["history"] = {"metric": headline.name, "split": split, "rounds": past.get(client, [])}
        if client in mixing:
            facts["mixing"] = mixing[client]
            facts.pop("listened", None)
        elif not mixing:
            facts["listened"] = NOBODY
        cards.write(folder, client, facts)


def _history(rows: Iterable[Row], headline: Metric, split: str) -> dict[str, list[dict[str, Any]]]:
    """Client -> its scores on a split, round by round."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        if row.split == split and row.metric == headline.name:
            entry = found[row.client].setdefault(row.round, {"round": row.round})
            entry[f"{row.model}, {row.phase}"] = row.value
    return {client: [entries[number] for number in sorted(entries)] for client, entries in found.items()}


def _mixing(run: Path) -> Mapping[str, dict[str, Any]]:
    """Client -> the largest weights of each group of layers in the last exchange that had some."""
    parts = sorted((run / "mixing").glob("round-*.parquet"))
    if not parts:
        return {}
    import pyarrow.parquet as pq

    file = pq.ParquetFile(parts[-1])
    found: dict[str, dict[str, Any]] = {}
    for number in range(file.num_row_groups):
        frame = file.read_row_group(number).to_pandas()
        groups = {group: place for place, group in enumerate(frame["group"].unique())}
        frame = frame[frame["weight"] > 0].sort_values("weight", ascending=False, kind="stable")
        largest = frame.groupby(["client", "group"], observed=True, sort=False).head(PEERS)
        largest = largest.iloc[largest["group"].map(groups).astype(int).argsort(kind="stable")]
        columns = (largest[name].tolist() for name in ("round", "client", "group", "peer", "weight"))
        for when, client, group, peer, weight in zip(*columns, strict=True):
            weights = found.setdefault(str(client), {"round": int(when), "weights": {}})["weights"]
            weights.setdefault(str(group), []).append([str(peer), float(weight)])
    return found
