"""FedTP beside other methods with the same Transformer: CIFAR-10 with 20 clients, and Shakespeare by speaker.

What the paper claims is that averaging hurts self-attention where clients differ, that self-attention of one's own
(vanilla) mends it, and that generating it mends more: FedTP > vanilla > FedAvg-T. Li et al. (2023) train 1500 rounds of
50 or 100 clients with 5 local epochs, a tenth of them in each round, and a ViT of 2 million parameters. Here are fewer
rounds of fewer clients, all of which take part, and smaller Transformers. The paper's language task lets an encoder see
the character that it is to predict; ours is causal, so its printed accuracy is no context.

A fifth of the clients is novel: they never train, adapt afterwards, and are scored before and after.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from common import ROOT, machine, spread, table
from runs import RESERVED, Case, Result, Setup, overrides
from tables import differences, each, over_rounds

from fedham_flwr.settings import Value, parse

SHAKESPEARE = ROOT.parent / "shared" / "data" / "shakespeare"
COMMON: Mapping[str, Value] = {
    "validation-fraction": 0.0,
    "test-fraction": 0.25,
    "momentum": 0.9,
    "local-epochs": 1,
    "evaluate-every": 1_000_000,
    "device": "cpu",
}
IMAGES: Mapping[str, Value] = {
    "model": "vit", "vit.patch-size": 8, "vit.width": 64, "vit.depth": 3, "vit.heads": 4, "vit.head-dim": 16,
    "vit.hidden-dim": 128, "vit.dropout": 0.0, "batch-size": 16, "learning-rate": 0.05, "samples-per-client": 600,
    "novel-clients": 4, "novel-steps": 28, "novel-turns": 10,
}  # fmt: skip
TEXT: Mapping[str, Value] = {
    "model": "char-transformer", "char-transformer.width": 64, "char-transformer.depth": 2,
    "char-transformer.heads": 4, "char-transformer.head-dim": 16, "char-transformer.hidden-dim": 128,
    "char-transformer.dropout": 0.0, "sequence-length": 64, "partitioner": "natural", "client-column": "client_id",
    "batch-size": 8, "learning-rate": 0.5, "samples-per-client": 200, "novel-clients": 6, "novel-steps": 20,
    "novel-turns": 10,
}  # fmt: skip
TASKS: Mapping[str, Mapping[str, Value]] = {
    "dirichlet": {**IMAGES, "partitioner": "dirichlet", "alpha": 0.3},
    "pathological": {**IMAGES, "partitioner": "pathological", "classes-per-client": 2},
    "shakespeare": TEXT,
}
CLIENTS: Mapping[str, int] = {"dirichlet": 20, "pathological": 20, "shakespeare": 30}
WHAT = {
    "dirichlet": "CIFAR-10, Dirichlet, alpha 0.3",
    "pathological": "CIFAR-10, 2 classes to a client",
    "shakespeare": "Shakespeare, a client for each of the 30 speakers with most lines",
}
METHODS: Mapping[str, Mapping[str, Value]] = {
    "local": {"strategy": "local"},
    "fedavg": {"strategy": "fedavg"},
    "fedper": {"strategy": "fedper"},
    "vanilla": {"strategy": "fedtp", "fedtp.personal": "vanilla"},
    "fedtp": {"strategy": "fedtp"},
    "fedtp-dense": {"strategy": "fedtp", "fedtp.rank": 0},
}
USUAL = ("local", "fedavg", "fedper", "vanilla", "fedtp")
BASES = (("local", "after"), ("fedavg", "before"), ("fedavg", "after"), ("vanilla", "before"))
LAST = 3
"""Rounds at the end of training over which accuracies are averaged."""
LEGEND = (
    "Test accuracy in percent; means are over clients, each counted once, then mean ± standard deviation over seeds. "
    "*Before* is the model that the server sent, or made for the client, or the client kept; *after* the same after "
    "local training: `fedavg, after` is FedAvg-T with fine-tuning, `fedper` is FedPer-T. *Novel* are the clients "
    "that never trained: *before* is what the federation gives them, *after* what they made of it: with `fedtp` the "
    "embedding alone is learned, in turns of some local steps each, with all others the whole model, in so many local "
    "steps once; `local` starts from the common first parameters. Texts: every position of every window counts."
)
STEADIER = (
    "The same seed has the same data, so differences are steadier than their parts (last {last} training rounds):"
)


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this comparison has, and its number of rounds."""
    parser.set_defaults(rounds=30, samples=None)
    parser.add_argument("--text", type=Path, default=SHAKESPEARE, help="folder with Shakespeare as Parquet files")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(USUAL))
    parser.add_argument("--splits", nargs="+", choices=list(TASKS), default=list(TASKS))


def plan(given: argparse.Namespace, folder: Path) -> dict[Case, Setup]:
    """The runs that are asked for, seed by seed.

    Args:
        given: the command line.
        folder: where the runs go.
    """
    cases = [Case(*chosen) for chosen in itertools.product(given.splits, given.methods, given.seeds)]
    cases.sort(key=lambda case: given.seeds.index(case.seed))
    return {case: Setup(settings(case, given, folder), CLIENTS[case.split]) for case in cases}


def settings(case: Case, given: argparse.Namespace, folder: Path) -> dict[str, Value]:
    """All settings of a run that differ from the defaults, but the results' folder."""
    setup: dict[str, Value] = {**COMMON, **TASKS[case.split], **METHODS[case.method]}
    setup |= {"dataset": str(given.text if case.split == "shakespeare" else given.data)}
    setup |= {"cache-dir": str(folder / "cache"), "num-server-rounds": given.rounds, "seed": case.seed}
    if given.samples:
        setup["samples-per-client"] = given.samples
    return setup | overrides(given.c, {**RESERVED, "partitioner": "--splits"})


def prepare(given: argparse.Namespace, folder: Path) -> None:  # noqa: ARG001  # as for every comparison
    """Nothing: the data are used as they are.

    Raises:
        SystemExit: the texts are not there.
    """
    if "shakespeare" in given.splits and not given.text.is_dir():
        raise SystemExit(f"--text {given.text}: there is no such folder; wanted Shakespeare as Parquet files")


def card(results: Mapping[Case, Result], given: argparse.Namespace) -> str:
    """The result as Markdown."""
    last, methods = min(LAST, given.rounds), list(METHODS)
    parts = ["# FedTP and others with the same Transformer", facts(results, given), LEGEND]
    for split in given.splits:
        parts += [heading(results, split, given), accuracies(results, split, last)]
        if any((case.split, case.method) == (split, base) for case in results for base, _ in BASES):
            parts += [STEADIER.format(last=last), differences(results, methods, split, last, BASES)]
        parts.append(over_rounds(results, methods, split, given.rounds))
    return "\n\n".join(parts)


def accuracies(results: Mapping[Case, Result], split: str, last: int) -> str:
    """The methods' accuracies on a task, of members and novel clients, and what they send."""
    rows = []
    for method, phase, by_seed in each(results, METHODS, split):
        runs = list(by_seed.values())
        cells = [[run.mean(phase) for run in runs], [run.mean(phase, last) for run in runs]]
        cells.append([float(np.mean(run.ends(phase)[: max(1, run.clients // 10)])) for run in runs])
        cells.append([100 * float(np.mean(list(run.novel[phase].values()))) for run in runs])
        sent = [np.mean([run.bytes[way] / run.clients for run in runs]) / 2**20 for way in ("up", "down")]
        rows.append([f"{method}, {phase}", *map(spread, cells), " / ".join(f"{mib:.2f}" for mib in sent)])
    head = ("closing round", f"last {last} rounds", "worst tenth", "novel clients")
    return table(("model", *head, "MiB a client and round, up / down"), rows)


def heading(results: Mapping[Case, Result], split: str, given: argparse.Namespace) -> str:
    """What a task is: data, network, training."""
    case, result = next((case, result) for case, result in results.items() if case.split == split)
    setup = parse(settings(case, given, Path()))
    clients = json.loads((result.path / "clients.json").read_text())
    held = [client["train"] + client["validation"] + client["test"] for client in clients]
    network = setup.section("vit") if setup.model == "vit" else setup.section("char_transformer")
    what = "windows of " + f"{setup.sequence_length} characters" if setup.model == "char-transformer" else "images"
    patch = f", patches of {setup.section('vit').patch_size}" if setup.model == "vit" else ""
    return (
        f"## {WHAT[split]}\n\nA client has {min(held)} to {max(held)} {what} (seed {case.seed}); "
        f"{setup.novel_clients} of {len(clients)} clients are novel and adapt in {setup.novel_steps} local steps "
        f"(`fedtp`: {setup.novel_turns} turns of them). `{setup.model}`: width {network.width}, depth "
        f"{network.depth}, heads {network.heads} of {network.head_dim}, hidden {network.hidden_dim}{patch}, dropout "
        f"{network.dropout:g}. Batch {setup.batch_size}, SGD {setup.learning_rate:g}, momentum {setup.momentum:g}, "
        f"epochs {setup.local_epochs}."
    )


def facts(results: Mapping[Case, Result], given: argparse.Namespace) -> str:
    """What was run, and where."""
    case, result = next(iter(results.items()))
    setup = parse(settings(case, given, Path()))
    return (
        f"{given.rounds} rounds (paper: 1500), seeds {', '.join(map(str, given.seeds))}, {setup.precision}; official "
        f"splits merged, of which each client keeps {setup.test_fraction:.0%} to test on, of texts the last. All "
        f"clients but the novel ones take part in each round. The methods' own settings are the defaults. Also given: "
        f"{given.c or 'nothing'}.\n{machine(result.path)}"
    )
