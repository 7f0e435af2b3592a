"""FedHAM and AMN with a bounded number of candidate peers: what a federation of many clients costs, and what is lost.

    python benchmarks/candidates.py scale --clients 200 2000 10000 --candidates 32
    python benchmarks/candidates.py scale --clients 200 2000 --candidates 0        # all peers, as in the papers
    python benchmarks/candidates.py accuracy --card cards/candidates.md

`scale` is one run after the other under `--backend cohort`: an `mlp` on the made table of `cohort.py`, a hundredth of
the clients in a round, ten at least. `accuracy` deals digits evenly to groups of clients, each group with labels of its
own, so that a client gains by those of its group and loses by the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from cohort import COMMON, TABLE, made_table
from common import deal, simulate

from fedham_flwr.settings import Value

ROWS = 134
"""Of the table, for each client: 100 to train with."""
METHODS: Mapping[str, Mapping[str, Value]] = {
    "fedham": {"strategy": "fedham", "fedham.transport": "mediated"},
    "amn": {"strategy": "amn"},
    "fedavg": {"strategy": "fedavg"},
}


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
        seconds: of a round for each of its clients, the median of the rounds but the first.
    """

    method: str
    clients: int
    candidates: int
    cohort: int
    memory: tuple[float, ...]
    down: float
    up: float
    seconds: float


def resident(process: int) -> float:
    """MiB that a process has now, 0 if it has ended."""
    with contextlib.suppress(OSError):
        found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


def scale(method: str, clients: int, candidates: int, rounds: int, folder: Path) -> Cost:
    """Run so many rounds of a federation, and end it before the closing evaluation."""
    cohort = max(10, clients // 100)
    table = made_table(folder / "table", ROWS * clients)
    settings = {**COMMON, **TABLE, **METHODS[method], "dataset": str(table), "cache-dir": str(folder / "cache")}
    settings |= {"fraction-train": cohort / clients, "num-server-rounds": rounds + 5}
    if candidates:
        settings[f"{method}.candidates"] = candidates
    deal(settings, clients)
    ends, memory = [], []
    (folder / "run").mkdir()
    lines = simulate(settings, clients, folder / "run", "cohort")
    for line in lines:
        ends.append(line.at)
        memory.append(resident(line.server))
        if len(ends) == rounds:
            break
    records = [json.loads(text) for file in folder.glob("run/results/*/*/rounds.jsonl") for text in file.open()]
    lines.close()  # type: ignore[attr-defined]
    last = [record for record in records if record["round"] == rounds]
    waits = [later - earlier for earlier, later in pairwise(ends)]
    down, up = (sum(record[f"bytes-{way}"] for record in last) / cohort for way in ("down", "up"))
    return Cost(method, clients, candidates, cohort, tuple(memory), down, up, statistics.median(waits) / cohort)


def main() -> None:
    """Measure, and print or write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what")
    parser.add_argument("--methods", nargs="+", default=["fedham", "amn"])
    parser.add_argument("--clients", nargs="+", type=int, default=[200, 2000, 10000])
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args()
    for method in given.methods:
        for clients in given.clients:
            with tempfile.TemporaryDirectory() as name:
                print(
                    json.dumps(asdict(scale(method, clients, given.candidates, given.rounds, Path(name)))), flush=True
                )


if __name__ == "__main__":
    main()
