"""FedHAM and AMN with a bounded number of candidate peers: what many clients cost, and what of the accuracy is lost.

    python benchmarks/candidates.py scale --clients 200 2000 10000 --candidates 32 --into scale.jsonl
    python benchmarks/candidates.py scale --clients 200 2000 --candidates 0 --into scale.jsonl    # all peers
    python benchmarks/candidates.py accuracy --into accuracy.jsonl
    python benchmarks/candidates.py card --of scale.jsonl accuracy.jsonl --card cards/candidates.md

`scale` is one federation after the other under `--backend cohort`: an `mlp` on the made table of `cohort.py`, a
hundredth of the clients in a round, ten at least; it is ended before the closing evaluation. `accuracy` deals digits
evenly to clients in groups, each group with labels of its own, so that a client gains by those of its group and loses
by the others, and lets methods with all peers and with few run from the same seeds. `card` makes one text of both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from cohort import COMMON, TABLE, made_table
from common import publish, simulate, spread, table

from fedham_flwr.data.clients import open_partition
from fedham_flwr.settings import Value, parse

ROWS = 134
"""Of the table, for each client: 100 to train with."""
METHODS: Mapping[str, Mapping[str, Value]] = {
    "fedham": {"strategy": "fedham", "fedham.transport": "mediated"},
    "amn": {"strategy": "amn"},
    "local": {"strategy": "local"},
    "fedavg": {"strategy": "fedavg"},
}
CLIENTS, GROUPS, SEEDS, ROUNDS, LAST = 50, 5, (0, 1, 2), 20, 5
"""Of the comparison of accuracies, which is of the last rounds."""
FEW: Sequence[tuple[str, int, float]] = (
    ("local", 0, 0.0), ("fedham", 0, 0.0), ("fedham", 10, 0.25), ("fedham", 5, 0.25), ("fedham", 5, 1.0),
    ("amn", 0, 0.0), ("amn", 5, 0.25),
)  # fmt: skip
"""Method, candidates, and the share of them that is drawn; the number of runs is three times as many."""


@dataclass(frozen=True)
class Cost:
    """What one federation costs.

    Attributes:
        method: its name.
        clients: N.
        candidates: peers that a client looks at; 0 for all.
        cohort: clients of a round.
        memory: resident MiB of the process at the end of each training round.
        down: bytes to a client in a round, all exchanges together.
        up: bytes from it.
        seconds: of the processor in a round, for each of its clients; the median of the rounds but the first two.
    """

    method: str
    clients: int
    candidates: int
    cohort: int
    memory: Sequence[float]
    down: float
    up: float
    seconds: float


def resident(process: int) -> float:
    """MiB that a process has now, 0 if it has ended."""
    with contextlib.suppress(OSError):
        found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


def used(process: int) -> float:
    """Seconds of the processor that a process has used; unlike the clock's, they hardly depend on what else runs."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def scale(method: str, clients: int, candidates: int, rounds: int, folder: Path) -> Cost:
    """Run so many rounds of a federation, and end it."""
    cohort, run = max(10, clients // 100), folder / "run"
    data = made_table(folder / "table", ROWS * clients)
    settings = {**COMMON, **TABLE, **METHODS[method], "dataset": str(data), "cache-dir": str(folder / "cache")}
    settings |= {"fraction-train": cohort / clients, "num-server-rounds": rounds + 5}
    if candidates:
        settings[f"{method}.candidates"] = candidates
    open_partition(parse(settings).data(), 0, clients)  # reads the table, which is then no part of what is measured
    run.mkdir()
    memory, seconds = [], []
    lines = simulate(settings, clients, run, ("--backend", "cohort"))
    for line in lines:
        memory.append(resident(line.server))
        seconds.append(used(line.server))
        if len(memory) == rounds:
            break
    records = [json.loads(text) for file in run.glob("results/*/*/rounds.jsonl") for text in file.open()]
    lines.close()  # type: ignore[attr-defined]
    last = [record for record in records if record["round"] == rounds]
    down, up = (sum(record[f"bytes-{way}"] for record in last) / cohort for way in ("down", "up"))
    each = [(later - earlier) / cohort for earlier, later in pairwise(seconds[1:])]
    return Cost(method, clients, candidates, cohort, memory, down, up, statistics.median(each))


def grouped_digits(folder: Path) -> Mapping[str, Value]:
    """Digits dealt evenly to clients; those of a group have the labels y + 2 g (modulo 10) for y."""
    import datasets
    from sklearn.datasets import load_digits

    datasets.disable_progress_bars()
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    owner = np.arange(len(order)) % CLIENTS
    labels = (digits.target[order] + 2 * (owner % GROUPS)) % 10
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(10), "client": datasets.Value("string")}
    pixels = (digits.images[order] * 15.9).astype(np.uint8)
    rows = {"image": list(pixels), "label": labels.tolist(), "client": [f"c{number}" for number in owner]}
    folder.mkdir()
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(folder / "train.parquet")
    return {"dataset": str(folder), "partitioner": "natural", "client-column": "client", "model": "digits-cnn"}


def accuracy(method: str, candidates: int, drawn: float, seed: int, folder: Path) -> dict[str, Any]:
    """Mean test accuracy of the clients in percent before local training, over the last rounds; the share of attention.

    That is how much of the weight that clients give to others they give to those of their own group.
    """
    from fedham_flwr.reporting.mixing_weights import latest, read_weights
    from fedham_flwr.reporting.run_directory import read_rows, to_rows
    from fedham_flwr.runners import Simulation, run_backend
    from fedham_flwr.server_app import make_server_app

    settings = {**COMMON, **grouped_digits(folder / "digits"), **METHODS[method], "cache-dir": str(folder / "cache")}
    settings |= {"num-server-rounds": ROUNDS, "seed": seed, "learning-rate": 0.02, "local-epochs": 2}
    settings["results-dir"] = str(folder / "results")
    if method in ("amn", "fedham"):
        settings |= {f"{method}.candidates": candidates, f"{method}.candidates-drawn": drawn}
    run_backend(make_server_app(settings), settings, Simulation(CLIENTS, "cohort"))
    (path,) = (file.parent for file in folder.glob("results/*/*/summary.json"))
    found = defaultdict(list)
    for row in to_rows(read_rows(path)):
        if (row.split, row.metric) == ("test", "accuracy") and ROUNDS - LAST < row.round <= ROUNDS:
            found[row.phase].append(row.value)
    inside = float("nan")
    if method in ("amn", "fedham"):
        names = {each["client"]: each["name"] for each in json.loads((path / "clients.json").read_text())}
        mixed = latest(read_weights(path))
        weights, group = mixed.weights.mean(1), [int(names[client][1:]) % GROUPS for client in mixed.clients]
        alike = np.equal.outer(group, group)
        others = weights.numpy() * ~np.eye(len(group), dtype=bool)
        inside = float((others * alike).sum() / others.sum())
    means = {phase: 100 * float(np.mean(values)) for phase, values in found.items()}
    return {"method": method, "candidates": candidates, "drawn": drawn, "seed": seed, **means, "inside": inside}


# ---- the card --------------------------------------------------------------------------------------------------------


def peers(method: str, count: int) -> str:
    """How many peers a client looks at."""
    return str(count or ("all" if method in ("amn", "fedham") else "-"))


def cost_table(costs: Sequence[Mapping[str, Any]]) -> str:
    """A row for each federation; memory in MiB in the second and in the last round."""
    head = ("method", "candidates", "clients", "of a round", "MiB, round 2", "MiB, last", "KB down", "KB up", "ms")
    rows = [
        [
            cost["method"], peers(cost["method"], cost["candidates"]), f"{cost['clients']:,}", str(cost["cohort"]),
            f"{cost['memory'][1]:,.0f}", f"{cost['memory'][-1]:,.0f}", f"{cost['down'] / 1000:,.0f}",
            f"{cost['up'] / 1000:,.0f}", f"{1000 * cost['seconds']:.1f}" if cost["seconds"] else "not measured",
        ]
        for cost in costs
    ]  # fmt: skip
    return table(head, rows)


def accuracy_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """A row for each method and number of candidates, over the seeds."""
    rows: list[list[str]] = []
    by_seed: dict[tuple[str, int, float], dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for run in runs:
        by_seed[run["method"], run["candidates"], run["drawn"]][run["seed"]] = run
    for (method, count, drawn), found in by_seed.items():
        whole = by_seed[method, 0, 0.0]
        less = [found[seed]["before"] - whole[seed]["before"] for seed in found]
        kind = peers(method, count) + (f", {drawn:.0%} drawn" if count else "")
        cells = [spread([run[phase] for run in found.values()]) for phase in ("before", "after")]
        inside = [100 * run["inside"] for run in found.values()]
        rows.append([method, kind, *cells, spread(less) if count else "", spread(inside, 0) if kind != "-" else ""])
    return table(("method", "candidates", "before", "after", "before, less all", "inside, %"), rows)


def card(entries: Sequence[Mapping[str, Any]]) -> str:
    """The whole result as Markdown."""
    costs = [entry for entry in entries if "memory" in entry]
    runs = [entry for entry in entries if "seed" in entry]
    whole = {seed for seed in SEEDS if sum(run["seed"] == seed for run in runs) == len(FEW)}
    runs = [run for run in runs if run["seed"] in whole]
    return f"""\
# Candidates

What a federation costs under `--backend cohort`: `mlp` (6,018 parameters) on a made table, 100 training rows a client,
a hundredth of the clients in a round, no evaluation between rounds. Memory is that of the one process that is server
and all clients, in the second and in the last of eight rounds; KB and milliseconds of the processor are for one client
of a round, all exchanges together.

{cost_table(costs)}

Accuracy on digits: {CLIENTS} clients in {GROUPS} groups of {CLIENTS // GROUPS} with labels of their own, 26 training \
images each, `digits-cnn`, {ROUNDS} rounds of
everybody, two local epochs with batches of 10, SGD 0.02 with momentum 0.9. Mean test accuracy of the clients in percent
before and after local training, over the last {LAST} rounds; mean ± standard deviation over {len(whole)} seeds. "Less \
all": the
difference to the same method with all peers, seed by seed. "Inside": how much of the weight that clients give to others
goes to their own group; {100 * (CLIENTS // GROUPS - 1) / (CLIENTS - 1):.0f} % would be no preference.

{accuracy_table(runs)}"""


def append(into: Path | None, entry: Mapping[str, Any]) -> None:
    """Print a result as a line of JSON, and add it to a file."""
    text = json.dumps(entry)
    print(text, flush=True)
    if into is not None:
        with into.open("a") as file:
            file.write(text + "\n")


def in_a_folder(measure: Callable[..., Any], *given: Any) -> Any:
    """What is measured, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as name:
        return measure(*given, Path(name))


def main() -> None:
    """Measure, or make the card of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("scale", "accuracy", "card"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["fedham", "amn"], help="of scale")
    parser.add_argument("--clients", nargs="+", type=int, default=[200, 2000, 10000], help="of scale")
    parser.add_argument("--candidates", type=int, default=32, help="of scale (default 32)")
    parser.add_argument("--rounds", type=int, default=8, help="of scale (default 8)")
    parser.add_argument("--into", type=Path, metavar="FILE", help="add each result to this file, a line of JSON each")
    parser.add_argument("--of", nargs="+", type=Path, metavar="FILE", default=[], help="results for the card")
    parser.add_argument("--card", type=Path, metavar="FILE", help="write the card here too")
    given = parser.parse_args()
    if given.what == "card":
        publish(card([json.loads(text) for file in given.of for text in file.open()]), given.card)
    elif given.what == "scale":
        for method in given.methods:
            for clients in given.clients:
                cost = in_a_folder(scale, method, clients, given.candidates, given.rounds)
                append(given.into, asdict(cost))
    else:
        for seed in SEEDS:
            for method, candidates, drawn in FEW:
                append(given.into, in_a_folder(accuracy, method, candidates, drawn, seed))


if __name__ == "__main__":
    main()
