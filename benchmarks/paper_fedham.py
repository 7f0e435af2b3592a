"""FedHAM and AMN beside other methods on CIFAR-10 with 20 clients, in the setting of PFLlib.

What is public of FedHAM and AMN (Gao et al., 2023 and 2024) names no setting that could be repeated, so they are
compared in one that many methods have been compared in: 60,000 images, train and test merged; 20 clients, all in each
round; images dealt by Dirichlet(0.1) or two classes to a client; 75 % to train on, 25 % to test on, no validation; a
network of two convolutions, batches of 10, SGD 0.005, one local epoch.

PFLlib trains 2000 rounds without momentum on all images, about 3000 a client. Here are 25 rounds on at most 600 images
a client, with momentum 0.9, without which nothing has converged by then: printed numbers are context.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from common import machine, spread, table
from runs import RESERVED, Case, Result, Setup, overrides
from tables import differences, each, mixing, over_rounds, preferences, selves_then_and_now

from fedham_flwr.settings import Value, parse

COMMON: Mapping[str, Value] = {
    "model": "cnn",
    "test-fraction": 0.25,
    "validation-fraction": 0.0,
    "batch-size": 10,
    "learning-rate": 0.005,
    "momentum": 0.9,
    "local-epochs": 1,
    "precision": "bf16",
    "evaluate-every": 1_000_000,
    "device": "cpu",
}
METHODS: Mapping[str, Mapping[str, Value]] = {
    "local": {"strategy": "local"},
    "fedavg": {"strategy": "fedavg"},
    "fedper": {"strategy": "fedper"},
    "pfedla": {"strategy": "pfedla"},
    "amn": {"strategy": "amn"},
    "fedham-peers": {"strategy": "fedham", "fedham.transport": "peers"},
    "fedham-mediated": {"strategy": "fedham", "fedham.transport": "mediated"},
}
SPLITS: Mapping[str, Mapping[str, Value]] = {
    "dirichlet": {"partitioner": "dirichlet", "alpha": 0.1},
    "pathological": {"partitioner": "pathological", "classes-per-client": 2},
}
CLIENTS = 20
BASES = (("local", "after"), ("fedavg", "after"))
LAST = 5
"""Rounds at the end of training, and at its start, over which accuracies and mixing weights are averaged."""
PRINTED_FOR = ("FedAvg", "FedPer", "Ditto", "FedALA", "FedCP")
PRINTED = {
    "dirichlet": ("59.16", "89.22", "90.59", "90.67", "91.30"),
    "pathological": ("55.09", "91.15", "92.39", "92.44", "92.67"),
}
CONTEXT = (
    "Context, not targets: test accuracies on CIFAR-10 in this setting after 2000 rounds with all images, from the "
    "slides of the FedCP (KDD 2023) and FedALA (AAAI 2023) talks."
)
LEGEND = (
    "Test accuracy in percent; means are over clients, each counted once, then mean ± standard deviation over seeds. "
    "*Before* is the model that the server sent, or the client kept or mixed, *after* the same after local training: "
    "`fedavg, after` is FedAvg with fine-tuning. The closing round is an evaluation after the last training round. "
    "*Worst tenth* is the mean of the worst tenth of the clients and *std over clients* the standard deviation over "
    "them, both in the closing round. The last column has the tensors of all exchanges of a training round but "
    "evaluations, mean over clients, rounds and seeds."
)
STEADIER = (
    "The same seed has the same data, so differences are steadier than their parts (last {last} training rounds):"
)
WEIGHTS = (
    "## Mixing weights\n\nThe weight that a client gives itself, mean over clients and seeds, by layer group, in the "
    "first and the last training rounds (with equal weights: 0.05):"
)
PEERS = (
    "Where clients have few classes: the weight of the client itself, and of one peer, by the number of classes that "
    "they share, mean over layer groups:"
)


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this comparison has, and its number of rounds."""
    parser.set_defaults(rounds=25)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--splits", nargs="+", choices=list(SPLITS), default=list(SPLITS))
    parser.add_argument(
        "--samples", type=int, default=600, help="the most images of a client, 0 for all (default %(default)s)"
    )


def plan(given: argparse.Namespace, folder: Path) -> dict[Case, Setup]:
    """The runs that are asked for, seed by seed.

    Args:
        given: the command line.
        folder: where the runs go.
    """
    chosen = itertools.product(given.seeds, given.splits, given.methods)
    cases = [Case(split, method, seed) for seed, split, method in chosen]
    return {case: Setup(settings(case, given, folder), CLIENTS) for case in cases}


def settings(case: Case, given: argparse.Namespace, folder: Path) -> dict[str, Value]:
    """All settings of a run that differ from the defaults, but the results' folder."""
    setup: dict[str, Value] = {**COMMON, **SPLITS[case.split], **METHODS[case.method]}
    setup |= {"dataset": str(given.data), "cache-dir": str(folder / "cache"), "samples-per-client": given.samples}
    setup |= {"num-server-rounds": given.rounds, "seed": case.seed}
    own = {"fedham.transport": "--methods", "partitioner": "--splits", "samples-per-client": "--samples"}
    return setup | overrides(given.c, {**RESERVED, **own})


def prepare(given: argparse.Namespace, folder: Path) -> None:
    """Nothing: the images are used as they are."""


def card(results: Mapping[Case, Result], given: argparse.Namespace) -> str:
    """The result as Markdown."""
    last, methods = min(LAST, given.rounds), list(METHODS)
    parts = ["# Methods on CIFAR-10, 20 clients, in the setting of PFLlib", facts(results, given), LEGEND]
    parts += [CONTEXT, table(("printed", *PRINTED_FOR), [[split, *values] for split, values in PRINTED.items()])]
    for split in given.splits:
        parts += [heading(results, split, given), accuracies(results, split, last)]
        if any((case.split, case.method) == (split, base) for case in results for base, _ in BASES):
            parts += [STEADIER.format(last=last), differences(results, methods, split, last, BASES)]
        parts.append(over_rounds(results, methods, split, given.rounds))
    return "\n\n".join(parts + weights(results, given))


def accuracies(results: Mapping[Case, Result], split: str, last: int) -> str:
    """The methods' accuracies on a split, and what they send."""
    rows = []
    for method, phase, by_seed in each(results, METHODS, split):
        runs = list(by_seed.values())
        ends = [run.ends(phase) for run in runs]
        cells = [
            [run.mean(phase) for run in runs],
            [run.mean(phase, last) for run in runs],
            [float(np.mean(clients[: math.ceil(len(clients) / 10)])) for clients in ends],
            [float(np.std(clients)) for clients in ends],
        ]
        sent = [np.mean([run.bytes[way] / run.clients for run in runs]) / 2**20 for way in ("up", "down")]
        rows.append([f"{method}, {phase}", *map(spread, cells), " / ".join(f"{mib:.2f}" for mib in sent)])
    head = ("closing round", f"last {last} rounds", "worst tenth", "std over clients")
    return table(("model", *head, "MiB a client and round, up / down"), rows)


def weights(results: Mapping[Case, Result], given: argparse.Namespace) -> list[str]:
    """The part of the card on mixing weights; empty if no method has them."""
    if not mixing(results):
        return []
    last = max(1, min(LAST, given.rounds // 2))
    parts = [WEIGHTS, selves_then_and_now(results, last)]
    few = {case: result for case, result in results.items() if case.split == "pathological"}
    if mixing(few):
        classes = parse(settings(next(iter(few)), given, Path())).classes_per_client
        parts += [PEERS, preferences(few, last, range(classes, -1, -1))]
    return parts


def heading(results: Mapping[Case, Result], split: str, given: argparse.Namespace) -> str:
    """What a split is, and how many images its clients had."""
    case = next(case for case in results if case.split == split)
    setup = parse(settings(case, given, Path()))
    what = {
        "dirichlet": f"Dirichlet, alpha {setup.alpha:g}",
        "pathological": f"Pathological, {setup.classes_per_client} classes to a client",
    }
    seeds = {case.seed: images(result.path) for case, result in results.items() if case.split == split}
    held = [count for counts in seeds.values() for count in counts]
    total = np.mean([sum(counts) for counts in seeds.values()])
    of_one = f"{min(held):,} to {max(held):,}" if min(held) < max(held) else f"{min(held):,}"
    return f"## {what[split]}\n\n{total:,.0f} images, mean over seeds; a client has {of_one}."


def images(run: Path) -> list[int]:
    """How many each client has, those to test on included."""
    clients = json.loads((run / "clients.json").read_text())
    return [client["train"] + client["validation"] + client["test"] for client in clients]


def facts(results: Mapping[Case, Result], given: argparse.Namespace) -> str:
    """What was run, and where."""
    case, result = next(iter(results.items()))
    setup = parse(settings(case, given, Path()))
    most = f"at most {given.samples:,} images a client" if given.samples else "all images"
    return (
        f"{given.rounds} rounds (PFLlib: 2000), {most} (PFLlib: all, about 3000), train and test merged, of which "
        f"{setup.test_fraction:.0%} to test on; seeds {', '.join(map(str, given.seeds))}. Network `{setup.model}`, "
        f"batch {setup.batch_size}, SGD {setup.learning_rate:g}, momentum {setup.momentum:g} (PFLlib: none; it stands "
        f"for some of the rounds that are missing), local epochs {setup.local_epochs}, {setup.precision}. "
        "All clients take part. The methods' own settings are the defaults; of these, FedHAM's meta data and penalty "
        "were chosen by the test accuracy of single runs with seed 10 (fedham-meta-data.md), pFedLA's learning rate in "
        "another setting. "
        f"Also given: {given.c or 'nothing'}.\n"
        f"{machine(result.path)}"
    )
