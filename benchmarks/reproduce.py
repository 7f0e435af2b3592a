"""Results of the papers, repeated: accuracy beside the printed rows, and what the method learned.

    python benchmarks/reproduce.py pfedla --card pfedla.md                 # an hour on two cores
    python benchmarks/reproduce.py pfedla --quick                          # two rounds of few samples: does it run?
    python benchmarks/reproduce.py pfedla --methods local --pairs --seeds 0 --rounds 10 -c 'learning-rate=0.005'

Table 1 of pFedLA, CIFAR-10 column for 10 clients: 4 random classes to a client, as many images of each (non-IID_1),
600 images to a client (the paper gives every client as many for 10 clients as for 100), 70 % to train on and 30 % to
test on, LeNet with batch normalisation, batches of 32, SGD 0.01 without momentum, 10 local epochs. A run is one
process with one thread, and `--processes` of them stand side by side. With `--folder` what was finished with the same
settings is not done again.

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
from typing import NamedTuple

import numpy as np
from common import CIFAR10, machine, publish, spread, table
from splits import PAIRS, own_weights, relations, write_pairs

from fedham_flwr.config import Value, parse
from fedham_flwr.errors import UserError

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
BASES = ("local", "fedavg")
WITH_WEIGHTS = ("pfedla", "heurpfedla")
ROUNDS_SHOWN = (5, 10, 20, 30, 40, 60, 100, 200, 400, 600)
PHASE = 5
"""Rounds at the start and at the end of training over which mixing weights are averaged."""
OPTIONS = {
    "dataset": "--data",
    "num-server-rounds": "--rounds",
    "pfedla.retained-layers": "--methods",
    "results-dir": "--folder",
    "seed": "--seeds",
    "strategy": "--methods",
}
"""Settings that `-c` must not change, since the card says what they were."""


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

    @property
    def closing(self) -> int:
        """The number of the closing evaluation, one more than that of the last training round."""
        return max(number for number, _ in self.accuracy)

    def mean(self, phase: str, last: int = 0) -> float:
        """Mean over clients in percent, in the closing evaluation or over so many of the last training rounds."""
        rounds = range(self.closing - last, self.closing) if last else [self.closing]
        return 100 * float(np.mean([np.mean(self.accuracy[number, phase]) for number in rounds]))

    def worst(self, phase: str) -> float:
        """The worst client of the closing evaluation, in percent."""
        return 100 * min(self.accuracy[self.closing, phase])


SPLITS = {
    "random": "## Random classes (non-IID_1)",
    "pairs": "## Pairs\n\nEight clients; each has one peer with the same four classes and two that share three.",
}
STEADIER = (
    "The same seed has the same data, so differences are steadier than their parts (last {last} training rounds):"
)
WEIGHTS = (
    "## Mixing weights\n\nMean over layer groups of the weight that a client gives itself, or one peer of a kind, over "
    "the first and the last training rounds; layers that HeurpFedLA retains count as the hypernetworks weigh them."
)

# ---- running -------------------------------------------------------------------------------------------------------


def settings(case: Case, given: argparse.Namespace, folder: Path) -> dict[str, Value]:
    """All settings of a run that differ from the defaults."""
    how: dict[str, Value] = {**COMMON, **METHODS[case.method], "seed": case.seed, "num-server-rounds": given.rounds}
    how |= {"cache-dir": str(folder / "cache"), "samples-per-client": given.samples}
    if case.split == "pairs":
        how |= {"dataset": str(folder / "pairs"), "partitioner": "natural", "client-column": "client"}
    else:
        how |= {"dataset": str(given.data), "partitioner": "noniid-1", "classes-per-client": 4}
    return how | overrides(given.c)


def overrides(text: str) -> dict[str, Value]:
    """The settings that are given for all runs.

    Raises:
        SystemExit: a value is not JSON, or the setting has an option of its own.
    """
    found: dict[str, Value] = {}
    for pair in text.split():
        key, _, value = pair.partition("=")
        if key in OPTIONS:
            raise SystemExit(f"-c {pair}: this setting is not for -c; use {OPTIONS[key]}")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            raise SystemExit(f'-c {pair}: wanted key=value with a value as in JSON, a text as "text"') from None
    return found


def run_all(cases: Sequence[Case], given: argparse.Namespace, folder: Path) -> dict[Case, Result]:
    """Run what is not there yet, some runs side by side, and read everything."""

    def one(case: Case) -> Result:
        place, how = folder / "-".join(map(str, case)), settings(case, given, folder)
        text = json.dumps(how | {"results-dir": str(place)}, sort_keys=True)
        if not finished(place, text):
            (place / "given.json").unlink(missing_ok=True)  # it stands for the newest run below this folder
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


def check(cases: Sequence[Case], given: argparse.Namespace, folder: Path) -> None:
    """Refuse settings that no run would take, before the first one starts.

    Raises:
        SystemExit: a key or value is wrong.
    """
    for case in cases:
        try:
            parse(settings(case, given, folder))
        except UserError as error:
            raise SystemExit(str(error)) from None


def clients(case: Case) -> int:
    """How many clients a run has."""
    return len(PAIRS) if case.split == "pairs" else 10


def finished(place: Path, text: str) -> bool:
    """Whether this very run is there and ended well."""
    given = place / "given.json"
    return given.exists() and given.read_text() == text and any(place.glob("*/*/summary.json"))


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
    """The result of a run.

    Raises:
        SystemExit: the run ended early, or a client is missing from some round, and with it from the means.
    """
    from fedham_flwr.results import read_rows, to_rows

    summary = json.loads((path / "summary.json").read_text())
    if "error" in summary or summary["failures"]:
        raise SystemExit(f"{path}: not every client took part in every round, see rounds.jsonl; remove it and repeat")
    accuracy: dict[tuple[int, str], list[float]] = defaultdict(list)
    for row in to_rows(read_rows(path)):
        if (row.split, row.metric) == ("test", "accuracy"):
            accuracy[row.round, row.phase].append(row.value)
    return Result(path, accuracy, {w: summary["bytes"]["train"][w] / summary["num-rounds"] for w in ("up", "down")})


# ---- the card --------------------------------------------------------------------------------------------------------


def accuracies(results: Mapping[Case, Result], split: str, last: int) -> str:
    """The methods' accuracies on a split, beside the paper's."""
    rows = []
    for method, phase, runs in each(results, split):
        closing, late = ([run.mean(phase, n) for run in runs] for n in (0, last))
        paper = PAPER.get(method, "-") if (split, phase) == ("random", "before") else "-"
        sent = " / ".join(f"{np.mean([run.bytes[way] for run in runs]) / 2**20:.2f}" for way in ("up", "down"))
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
             for name in BASES}  # fmt: skip
    rows = []
    for method, phase, runs in each(results, split):
        seeds = [c.seed for c in results if (c.split, c.method) == (split, method)]
        gains = [
            [run.mean(phase, last) - base[s] for s, run in zip(seeds, runs, strict=True) if s in base]
            for base in bases.values()
        ]
        rows.append([f"{method}, {phase}", *(spread(gain) if gain else "-" for gain in gains)])
    return table(("model", *(f"minus {name}, before" for name in BASES)), rows)


def each(results: Mapping[Case, Result], split: str) -> Iterator[tuple[str, str, list[Result]]]:
    """Method, phase, and its runs on a split."""
    for method in METHODS:
        runs = [result for case, result in results.items() if (case.split, case.method) == (split, method)]
        if runs:
            yield from ((method, phase, runs) for phase in ("before", "after"))


def over_rounds(results: Mapping[Case, Result], split: str, rounds: int) -> str:
    """Accuracy on the way, mean over seeds."""
    at = sorted({number for number in ROUNDS_SHOWN if number < rounds} | {rounds})
    rows = []
    for method, phase, runs in each(results, split):
        means = (np.mean([100 * np.mean(run.accuracy[number, phase]) for run in runs]) for number in at)
        rows.append([f"{method}, {phase}", *(f"{mean:.1f}" for mean in means)])
    return table(("in training round", *map(str, at)), rows)


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
    parts = [f"# pFedLA and HeurpFedLA on CIFAR-10, 10 clients, non-IID_1\n\n{facts(results, given)}"]
    for split in sorted({case.split for case in results}, reverse=True):
        parts += [SPLITS[split], accuracies(results, split, last)]
        if any(case.split == split and case.method in BASES for case in results):
            parts += [STEADIER.format(last=last), differences(results, split, last)]
        parts.append(over_rounds(results, split, given.rounds))
    if methods_with_weights(results):
        phase = max(1, min(PHASE, given.rounds // 2))
        parts += [WEIGHTS, preferences(results, phase), selves(results, phase)]
    return "\n\n".join(parts)


def facts(results: Mapping[Case, Result], given: argparse.Namespace) -> str:
    """What was run, and where."""
    case, result = next(iter(results.items()))
    rate = parse(settings(case, given, result.path)).pfedla.hypernetwork_learning_rate
    return (
        f"{given.rounds} rounds (the paper: 600), seeds {', '.join(map(str, given.seeds))}; {given.samples} images a "
        "client, LeNet with batch normalisation, batch 32, SGD 0.01, 10 local epochs; learning rate of the "
        f"hypernetworks {rate:g} (the paper states none; the default, 1, was the best of 0.1, 0.3, 1 and 3 by the test "
        "accuracy of one run each on *pairs* with seed 10, and no other method was tuned). "
        f"Given besides: {given.c or 'nothing'}.\n"
        f"{machine(result.path)}\n\n"
        "Test accuracy in percent, mean over clients, then mean ± standard deviation over seeds. *Before* is the model "
        "that the server sent, or the client kept, *after* the same after local training. The closing evaluation "
        "follows the last training round."
    )


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
    given.samples = 60 if given.quick else 600
    if given.quick:
        given.rounds, given.seeds = 2, [0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        cases = [Case("random", method, seed) for seed in given.seeds for method in given.methods]
        cases += [Case("pairs", method, seed) for seed in given.seeds for method in given.pairs]
        check(cases, given, folder)
        if given.pairs:
            write_pairs(given.data, folder / "pairs")
        publish(card(run_all(cases, given, folder), given), given.card)


if __name__ == "__main__":
    main()
