"""Results of the papers, repeated: accuracy beside the printed rows, and what the method learned.

    python benchmarks/reproduce.py pfedla --card pfedla.md                 # an hour on two cores
    python benchmarks/reproduce.py pfedla --quick                          # two rounds of few samples: does it run?
    python benchmarks/reproduce.py pfedla --methods local pfedla --seeds 0 --rounds 10 -c 'learning-rate=0.005'

Table 1 of pFedLA, CIFAR-10 column for 10 clients: 4 random classes to a client, as many images of each (non-IID_1),
600 images to a client (the paper gives every client as many for 10 clients as for 100), 70 % to train on and 30 % to
test on, LeNet with batch normalisation, batches of 32, SGD 0.01 without momentum, 10 local epochs. A run is one
process with one thread, and `--processes` of them stand side by side. With `--folder` what was
finished is not done again.

A second split has pairs of clients with the same four classes, each pair sharing three of them with another pair, which
a random deal rarely gives: there one sees whether a client learns to prefer those whose data are like its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import CIFAR10, machine, publish, table

from fedham_flwr.config import Value

Numbers = np.ndarray[Any, Any]

COMMON: Mapping[str, Value] = {
    "model": "lenet-bn",
    "test-fraction": 0.3,
    "validation-fraction": 0.0,
    "batch-size": 32,
    "learning-rate": 0.01,
    "momentum": 0.0,
    "local-epochs": 10,
    "evaluate-every": 1_000_000,
    "device": "cpu",
}
METHODS: Mapping[str, Mapping[str, Value]] = {
    "local": {"strategy": "local"},
    "fedavg": {"strategy": "fedavg"},
    "fedper": {"strategy": "fedper"},
    "pfedla": {"strategy": "pfedla"},
    "heurpfedla": {"strategy": "pfedla", "pfedla.retained-layers": 1},
}
PAPER = {"local": "59.44 ± 0.40", "fedavg": "48.57 ± 0.63", "pfedla": "61.43 ± 0.56", "heurpfedla": "60.02 ± 0.74"}
PAIRS = ([0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 2, 4], [5, 6, 7, 8], [5, 6, 7, 8], [5, 6, 7, 9], [5, 6, 7, 9])
"""Classes of the clients of the second split."""
WITH_WEIGHTS = ("pfedla", "heurpfedla")


class Case(NamedTuple):
    """One run."""

    split: str  # random | pairs
    method: str
    seed: int


@dataclass(frozen=True)
class Result:
    """What a finished run left.

    Attributes:
        path: its directory.
        accuracy: (round, phase) -> test accuracy of each client.
        bytes: per round of all clients, up and down.
    """

    path: Path
    accuracy: Mapping[tuple[int, str], Sequence[float]]
    bytes: Mapping[str, float]

    def mean(self, phase: str, last: int = 1) -> float:
        """Mean over clients, in the closing round or over the last rounds before it, in percent."""
        closing = max(number for number, _ in self.accuracy)
        rounds = [closing] if last == 1 else range(closing - last, closing)
        return 100 * float(np.mean([np.mean(self.accuracy[number, phase]) for number in rounds]))

    def worst(self, phase: str) -> float:
        """The worst client of the closing round, in percent."""
        return 100 * min(self.accuracy[max(number for number, _ in self.accuracy), phase])


# ---- running -------------------------------------------------------------------------------------------------------


def settings(case: Case, given: argparse.Namespace, folder: Path) -> dict[str, Value]:
    """All settings of a run that differ from the defaults."""
    how: dict[str, Value] = {**COMMON, **METHODS[case.method], "seed": case.seed, "num-server-rounds": given.rounds}
    how |= {"cache-dir": str(folder / "cache"), "samples-per-client": 60 if given.quick else 600}
    if case.split == "pairs":
        how |= {"dataset": str(folder / "pairs"), "partitioner": "natural", "client-column": "client"}
    else:
        how |= {"dataset": str(given.data), "partitioner": "noniid-1", "classes-per-client": 4}
    return how | {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in given.c.split())}


def run_all(cases: Sequence[Case], given: argparse.Namespace, folder: Path) -> dict[Case, Result]:
    """Run what is not there yet, some runs side by side, and read everything."""

    def one(case: Case) -> Result:
        place, how = folder / "-".join(map(str, case)), settings(case, given, folder)
        text = json.dumps(how | {"results-dir": str(place)}, sort_keys=True)
        if not finished(place, text):
            began = time.perf_counter()
            command = [sys.executable, __file__, given.paper, "--one", text, "--clients", str(clients(case))]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                raise SystemExit(f"{case} ended with {done.returncode}\n{done.stderr[-3000:]}")
            (place / "given.json").write_text(text)
            print(f"{' '.join(map(str, case))}: {time.perf_counter() - began:.0f} s", flush=True)
        return read(directory(place))

    with ThreadPoolExecutor(given.processes) as pool:
        return dict(zip(cases, pool.map(one, cases), strict=True))


def clients(case: Case) -> int:
    """How many clients a run has."""
    return len(PAIRS) if case.split == "pairs" else 10


def finished(place: Path, text: str) -> bool:
    """Whether this very run is there and ended well."""
    return (place / "given.json").exists() and (place / "given.json").read_text() == text


def directory(place: Path) -> Path:
    """The directory of the newest run below a folder."""
    return max(place.glob("*/*/summary.json"), key=lambda file: file.stat().st_mtime).parent


def run_one(text: str, count: int) -> None:
    """A run, in this process."""
    from fedham_flwr.client_app import make_client_app
    from fedham_flwr.in_process import run_in_process
    from fedham_flwr.server_app import make_server_app

    how = json.loads(text)
    run_in_process(make_server_app(how), make_client_app(how), count)


def read(path: Path) -> Result:
    """The result of a run."""
    from fedham_flwr.results import read_rows, to_rows

    accuracy: dict[tuple[int, str], list[float]] = defaultdict(list)
    for row in to_rows(read_rows(path)):
        if (row.split, row.metric) == ("test", "accuracy"):
            accuracy[row.round, row.phase].append(row.value)
    summary = json.loads((path / "summary.json").read_text())
    return Result(path, accuracy, {w: summary["bytes"]["train"][w] / summary["num-rounds"] for w in ("up", "down")})


def write_pairs(data: Path, folder: Path) -> None:
    """CIFAR-10 images with a column that says whose they are: 150 of each of a client's four classes, none twice."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if (folder / "train.parquet").exists():
        return
    images = pa.concat_tables(
        pq.read_table(file, columns=["image", "label"]) for file in sorted(data.glob("*.parquet"))
    )
    labels, rng = np.array(images["label"].to_pylist()), np.random.default_rng(0)
    left = {label: list(rng.permutation(np.flatnonzero(labels == label))) for label in range(10)}
    taken = [
        (left[label].pop(), str(client)) for client, held in enumerate(PAIRS) for label in held for _ in range(150)
    ]
    chosen, owners = zip(*taken, strict=True)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(images.take(pa.array(chosen)).append_column("client", pa.array(owners)), folder / "train.parquet")


# ---- what the weights say --------------------------------------------------------------------------------------------


def relations(path: Path, last: int, early: bool = False) -> dict[str, list[float]]:
    """Mean weight over the layer groups, for each kind of peer, of the last (or first) rounds.

    Kinds: self, and the number of classes that client and peer share.
    """
    weights = training_weights(path)
    rounds = sorted(weights["round"].unique())
    weights = weights[weights["round"].isin(rounds[:last] if early else rounds[-last:])]
    held = {
        entry["client"]: {c for c, n in enumerate(entry["train-labels"]) if n}
        for entry in json.loads((path / "clients.json").read_text())
    }
    kinds: dict[str, list[float]] = defaultdict(list)
    for (client, peer), weight in weights.groupby(["client", "peer"], observed=True)["weight"].mean().items():
        kinds["self" if client == peer else str(len(held[client] & held[peer]))].append(weight)
    return kinds


def training_weights(path: Path) -> Any:
    """The mixing weights of the training rounds as a data frame."""
    from fedham_flwr.mixing import read_weights

    frame = read_weights(path).to_pandas()
    return frame[frame["round"] < frame["round"].max()]  # the closing evaluation comes after the last round


def own_weights(path: Path, last: int) -> dict[str, float]:
    """Mean self weight of each layer group in the last rounds."""
    frame = training_weights(path)
    frame = frame[(frame["client"] == frame["peer"]) & (frame["round"] > frame["round"].max() - last)]
    return dict(frame.groupby("group", observed=True, sort=False)["weight"].mean())


# ---- the card --------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation over seeds (divided by one less than their number)."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return f"{np.mean(values):.{digits}f} ± {std:.{digits}f}"


def accuracies(results: Mapping[Case, Result], split: str, last: int) -> str:
    """The methods' accuracies on a split, beside the paper's."""
    rows = []
    for method, phase, runs in each(results, split):
        closing, late = ([run.mean(phase, n) for run in runs] for n in (1, last))
        paper = PAPER.get(method, "-") if phase == "before" else "-"
        sent = " / ".join(f"{runs[0].bytes[way] / 2**20:.2f}" for way in ("up", "down"))
        rows.append(
            [f"{method}, {phase}", spread(closing), spread(late), spread([r.worst(phase) for r in runs]), paper, sent]
        )
    head = (
        "model",
        "closing round",
        f"last {last} rounds",
        "worst client",
        "paper, 600 rounds",
        "MiB a round, up / down",
    )
    return table(head, rows)


def differences(results: Mapping[Case, Result], split: str, last: int) -> str:
    """Every model against local training and against the averaged model, seed by seed, over the last rounds."""
    bases = {name: {c.seed: r.mean("before", last) for c, r in results.items() if (c.split, c.method) == (split, name)}
             for name in ("local", "fedavg")}  # fmt: skip
    rows = []
    for method, phase, runs in each(results, split):
        seeds = [c.seed for c in results if (c.split, c.method) == (split, method)]
        gains = [
            [run.mean(phase, last) - base[s] for s, run in zip(seeds, runs, strict=True) if s in base]
            for base in bases.values()
        ]
        rows.append([f"{method}, {phase}", *(spread(gain) if gain else "-" for gain in gains)])
    return table(("model", "minus local, before", "minus fedavg, before"), rows)


def each(results: Mapping[Case, Result], split: str) -> Iterator[tuple[str, str, list[Result]]]:
    """Method, phase, and its runs on a split."""
    for method in METHODS:
        runs = [result for case, result in results.items() if (case.split, case.method) == (split, method)]
        if runs:
            yield from ((method, phase, runs) for phase in ("before", "after"))


def over_rounds(results: Mapping[Case, Result], rounds: int) -> str:
    """Accuracy before local training on the way, mean over seeds."""
    at = sorted({max(1, rounds * part // 8) for part in (1, 2, 4, 6, 8)})
    rows = []
    for method, phase, runs in each(results, "random"):
        if phase == "before":
            rows.append(
                [method, *(f"{np.mean([100 * np.mean(run.accuracy[n, phase]) for run in runs]):.1f}" for n in at)]
            )
    return table(("before, in round", *map(str, at)), rows)


def preferences(results: Mapping[Case, Result], last: int) -> str:
    """Mean weight by kind of peer, early and late."""
    rows = []
    names = ("self", "4", "3", "2", "1", "0")
    for (split, method), runs in methods_with_weights(results).items():
        for early in (True, False):
            kinds = [relations(run.path, last, early) for run in runs]
            cells = [[float(np.mean(kind[name])) for kind in kinds if name in kind] for name in names]
            when = f"{'first' if early else 'last'} {last}"
            rows.append([f"{method}, {split}, {when}", *(spread(cell, 3) if cell else "-" for cell in cells)])
    return table(("weight of a peer sharing", *names[:1], *(f"{n} classes" for n in names[1:])), rows)


def selves(results: Mapping[Case, Result], last: int) -> str:
    """Mean self weight of each layer group in the last rounds."""
    rows, groups = [], []
    for (split, method), runs in methods_with_weights(results).items():
        found = [own_weights(run.path, last) for run in runs]
        groups = list(found[0])
        rows.append([f"{method}, {split}", *(f"{np.mean([own[group] for own in found]):.2f}" for group in groups)])
    return table((f"self weight, last {last}", *groups), rows)


def methods_with_weights(results: Mapping[Case, Result]) -> dict[tuple[str, str], list[Result]]:
    """The runs that have mixing weights, by split and method."""
    found: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for case, result in results.items():
        if case.method in WITH_WEIGHTS:
            found[case.split, case.method].append(result)
    return found


def card(results: Mapping[Case, Result], given: argparse.Namespace) -> str:
    """The result as Markdown."""
    last = max(1, min(10, given.rounds // 4))
    facts = machine(next(iter(results.values())).path)
    parts = [
        "# pFedLA and HeurpFedLA on CIFAR-10, 10 clients, non-IID_1",
        f"{given.rounds} rounds (the paper: 600), seeds {', '.join(map(str, given.seeds))}; 600 images a client, LeNet "
        f"with batch normalisation, batch 32, SGD 0.01, 10 local epochs. "
        f"Other settings: {given.c or 'the defaults'}.\n{facts}",
        "Test accuracy in percent, mean over clients, then mean ± standard deviation over seeds. *Before* is the "
        "model that the server sent (pFedLA's result), *after* the same after local training.",
        accuracies(results, "random", last),
        f"The same seed has the same data, so that differences are steadier than their parts (last {last} rounds):",
        differences(results, "random", last),
        over_rounds(results, given.rounds),
        "Mixing weights, mean over layer groups. *pairs* is a split in which every client has a peer with the same "
        "four classes and two that share three of them.",
        preferences(results, last),
        selves(results, last),
    ]
    if any(case.split == "pairs" for case in results):
        parts += ["Accuracy on *pairs*:", accuracies(results, "pairs", last)]
    return "\n\n".join(parts)


def main() -> None:
    """Run everything and print the card."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paper", choices=["pfedla"], help="whose results")
    parser.add_argument("--data", type=Path, default=CIFAR10, help="folder with CIFAR-10 as Parquet files")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument(
        "--pairs", nargs="*", choices=list(METHODS), default=["pfedla"], help="methods for the second split"
    )
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="runs side by side (default %(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="where the runs go and are found again (default: a temporary one)")
    parser.add_argument("--quick", action="store_true", help="two rounds, one seed, few images")
    parser.add_argument("-c", default="", metavar="KEY=VALUE ...", help="settings for all runs, values as in JSON")
    parser.add_argument("--card", type=Path, help="a file for the result")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the settings of a run, in a process of its own
    parser.add_argument("--clients", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        run_one(given.one, given.clients)
        return
    if not given.data.is_dir():
        raise SystemExit(f"--data {given.data}: there is no such folder; wanted CIFAR-10 as Parquet files")
    if given.quick:
        given.rounds, given.seeds = 2, [0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        write_pairs(given.data, folder / "pairs")
        cases = [Case("random", method, seed) for seed in given.seeds for method in given.methods]
        cases += [Case("pairs", method, seed) for seed in given.seeds for method in given.pairs]
        publish(card(run_all(cases, given, folder), given), given.card)


if __name__ == "__main__":
    main()
