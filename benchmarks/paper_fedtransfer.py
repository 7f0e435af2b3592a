"""Fed_T and Fed_T_A beside FedAvg, and what attention is worth beside other blocks of as many parameters.

Zhang and Liu ("Personalized Federated Learning with Attention Mechanisms", 2022) train a network of two convolutions by
FedAvg on three clients, then let each retrain the fully connected layers (Fed_T), or these and a fresh CBAM behind the
convolutions (Fed_T_A). They report one run on each of three splits of CIFAR-10, and on CIFAR-100 nothing. Neither
rounds, epochs, optimiser nor the splits are known, these being defined by a figure that is lost.

Phase one, FedAvg, is run once for each split and seed, and every variant starts from the very model that it ended with.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path

from common import ROOT, machine
from fedtransfer_tables import FEDAVG, TUNED, ablation, accuracies, gains, holdings, likes, noise, same_start
from runs import RESERVED, Case, Result, Setup, overrides
from tables import over_rounds

from fedham_flwr import models
from fedham_flwr.algorithms.fedtransfer import block_groups, frozen_groups
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.settings import Value, parse

CIFAR100 = ROOT.parent / "shared" / "data" / "cifar100_240"
COMMON: Mapping[str, Value] = {
    "model": "transfer-cnn",
    "partitioner": "class-owners",
    "validation-fraction": 0.0,
    "test-fraction": 0.25,
    "batch-size": 32,
    "learning-rate": 0.02,
    "momentum": 0.9,
    "local-epochs": 1,
    "precision": "bf16",
    "evaluate-every": 1_000_000,
    "device": "cpu",
}
COLUMNS: Mapping[str, Mapping[str, Value]] = {
    "cifar10": {},
    "cifar100": {"feature-column": "image", "label-column": "label"},
}
NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
CLASSES = {"cifar10": 10, "cifar100": 100}
TASKS: Mapping[str, float] = {"stand-in-1": 0.9, "stand-in-2": 0.5, "stand-in-3": 0.2}
"""The share of each class that is its owner's alone."""
VARIANTS: Mapping[str, Mapping[str, Value]] = {
    "fed_t": {},
    "fed_t_a": {"attention": "cbam"},
    "fed_t-F2": {"reading": "F2"},
    "fed_t_a-F2": {"attention": "cbam", "reading": "F2"},
    "fed_t_a-plain": {"attention": "cbam", "insertion": "plain"},
    "se": {"attention": "se"},
    "adapter": {"attention": "adapter", "graft-after": "conv2"},
    "head-adapter": {"attention": "adapter", "graft-after": "fc2", "reduction": 64},
    "all": {"frozen": ""},
    "all_cbam": {"attention": "cbam", "frozen": ""},
}
MODELS = (FEDAVG, TUNED, *((variant, "after") for variant in VARIANTS))
"""Method and phase of what is compared."""
ALIKE = tuple(((one, "after"), (two, "after")) for one, two in (("fed_t_a-F2", "fed_t-F2"), ("all_cbam", "all")))
STAND_IN = (
    "The splits are stand-ins: the figure that defines the paper's CIFAR-10_1, _2 and _3 is lost. Here a share of each "
    "class is its owner's alone, 0.9, 0.5 or 0.2, and the rest is dealt evenly to all three clients; A owns the first "
    "classes, C the last."
)
PRINTED = {
    "cifar10": "The paper's numbers are of one run each; they are context, not targets.",
    "cifar100": "The paper mentions CIFAR-100 and prints no result for it.",
}
LEGEND = (
    "Test accuracy in percent of the last epoch's model, mean ± standard deviation over seeds; means are over clients, "
    "each counted once. FedAvg is the global model after the last round; every variant starts from it, seed by seed."
)
PAIRED = (
    "Differences are paired by seed: the unit is the seed, over whose clients (and splits) is averaged first. In "
    "brackets the 95 % interval, by Student's t with one degree of freedom less than there are seeds; intervals are "
    "not widened for their number."
)
ABLATION = (
    "`fed_t` retrains the fully connected layers, `fed_t_a` these and CBAM behind the convolutions, put in so that no "
    "logit changes at first; `plain` puts it in as published. `F2` is the paper's other reading: the first fully "
    "connected layer stays frozen. `se` is CBAM's channel half, `adapter` a residual bottleneck in CBAM's place, "
    "`head-adapter` one behind the second fully connected layer; `all` and `all_cbam` retrain everything. `fedavg, "
    "after` is the global model after one epoch of fine-tuning. *Wins* count the pairs of split and seed in which "
    "the mean over clients is higher."
)


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this comparison has, its number of rounds and its seeds."""
    parser.set_defaults(rounds=15, seeds=[0, 1, 2, 3, 4])
    parser.add_argument("--dataset", choices=list(NAMES), default="cifar10", help="default %(default)s")
    parser.add_argument("--cifar100", type=Path, default=CIFAR100, help="folder with CIFAR-100 as Parquet files")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--samples", type=int, default=3000, help="images of a client, 0 for all (default %(default)s)")
    parser.add_argument("--personal-epochs", type=int, default=5, help="default %(default)s")


def plan(given: argparse.Namespace, folder: Path) -> dict[Case, Setup]:
    """The runs that are asked for, seed by seed, FedAvg's first.

    Args:
        given: the command line.
        folder: where the runs go.
    """
    made: dict[Case, Setup] = {}
    for seed, method, task in itertools.product(given.seeds, ("fedavg", *given.methods), given.tasks):
        case = Case(split_name(task, given), method, seed)
        after = None if method == "fedavg" else case._replace(method="fedavg")
        made[case] = Setup(settings(case, given, folder), 3, after)
    return made


def split_name(task: str, given: argparse.Namespace) -> str:
    """What a split is called among the runs, of which a folder may hold those of both data sets."""
    return f"{given.dataset}-{task}"


def settings(case: Case, given: argparse.Namespace, folder: Path) -> dict[str, Value]:
    """All settings of a run that differ from the defaults, but the results' folder and where it starts from."""
    share = TASKS[case.split.removeprefix(f"{given.dataset}-")]
    data = given.data if given.dataset == "cifar10" else given.cifar100
    chosen: dict[str, Value] = {**COMMON, **COLUMNS[given.dataset], "owner-share": share, "dataset": str(data)}
    chosen |= {"cache-dir": str(folder / "cache"), "samples-per-client": given.samples}
    chosen |= {"num-server-rounds": given.rounds, "seed": case.seed, "strategy": "fedavg"}
    own = {"partitioner": "--tasks", "owner-share": "--tasks", "samples-per-client": "--samples"}
    own |= {f"fedtransfer.{key}": "--methods" for variant in VARIANTS.values() for key in variant}
    own |= {"fedtransfer.personal-epochs": "--personal-epochs", "resume": "--folder"}
    chosen |= overrides(given.c, {**RESERVED, **own})
    if case.method == "fedavg":  # not made anew for a setting of the personal stage
        return {key: value for key, value in chosen.items() if not key.startswith("fedtransfer.")}
    chosen |= {f"fedtransfer.{key}": value for key, value in VARIANTS[case.method].items()}
    return chosen | {"strategy": "fedtransfer", "fedtransfer.personal-epochs": given.personal_epochs}


def prepare(given: argparse.Namespace, folder: Path) -> None:  # noqa: ARG001  # as for every comparison
    """Nothing: the images are used as they are.

    Raises:
        SystemExit: CIFAR-100 is not there.
    """
    if given.dataset == "cifar100" and not given.cifar100.is_dir():
        raise SystemExit(f"--cifar100 {given.cifar100}: there is no such folder; wanted CIFAR-100 as Parquet files")


def card(results: Mapping[Case, Result], given: argparse.Namespace) -> str:
    """The result as Markdown."""
    splits = {split_name(task, given): task for task in given.tasks}
    name, printed = NAMES[given.dataset], given.dataset == "cifar10"
    parts = [f"# Fed_T and Fed_T_A on {name}, three clients", facts(results, given)]
    parts += [f"{STAND_IN} {PRINTED[given.dataset]}", LEGEND]
    for split, task in splits.items():
        parts += [heading(task, given), holdings(results, split), accuracies(results, split, task if printed else "")]
        parts.append(over_rounds(results, ["fedavg"], split, given.rounds))
    if {"fed_t", "fed_t_a"} <= set(given.methods):
        parts += ["## Gains", PAIRED, gains(results, splits, printed), noise(results, list(splits), printed)]
    sizes = {method: parameters(method, given) for method in ("fedavg", *given.methods)}
    compared = [model for model in MODELS if model[0] in sizes]
    parts += ["## Blocks", ABLATION, ablation(results, compared, list(splits), sizes)]
    if alike := [pair for pair in ALIKE if set(pair) <= set(compared)]:
        parts.append(likes(results, alike, list(splits)))
    parts.append(same_start(results, [method for method, _ in compared], list(splits)))
    return "\n\n".join(parts)


def heading(task: str, given: argparse.Namespace) -> str:
    """What a split is called, and what it stands for."""
    stands = f", for CIFAR-10_{task[-1]}" if given.dataset == "cifar10" else ""
    return f"## Stand-in {task[-1]}{stands}: owner-share {TASKS[task]:g}"


def parameters(method: str, given: argparse.Namespace) -> tuple[int, int]:
    """How many parameters the client's own block has, and how many the last stage trains in all."""
    chosen = parse(settings(Case(split_name(given.tasks[0], given), method, 0), given, Path()))
    model = models.build(chosen.model, (3, 32, 32), CLASSES[given.dataset], 0, chosen.networks())
    manifest = Manifest.of(model)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}  # without running statistics
    if method == "fedavg":
        return 0, sum(sizes.values())
    block = manifest.names(block_groups(chosen.section("fedtransfer")))
    frozen = manifest.names(frozen_groups(manifest.groups, chosen.section("fedtransfer")))
    return sum(sizes.get(name, 0) for name in block), sum(n for name, n in sizes.items() if name not in frozen)


def facts(results: Mapping[Case, Result], given: argparse.Namespace) -> str:
    """What was run, and where."""
    from pyarrow.parquet import ParquetFile

    case, result = next(iter(results.items()))
    chosen = parse(settings(case._replace(method="fed_t"), given, Path()))
    rate = chosen.section("fedtransfer").learning_rate or chosen.learning_rate
    images = sum(ParquetFile(file).metadata.num_rows for file in Path(chosen.dataset).glob("**/*.parquet"))
    dealt = f"at most {given.samples:,} to a client" if given.samples else "all dealt"
    return (
        f"{NAMES[given.dataset]}, {images:,} images, official splits merged; {dealt}, "
        f"{chosen.test_fraction:.0%} of each client's to test on. `{chosen.model}`, padding "
        f"{chosen.section('transfer_cnn').padding}, "
        f"{chosen.precision}, batch {chosen.batch_size}, momentum {chosen.momentum:g}. Phase one: {given.rounds} "
        f"rounds of FedAvg, all three clients in each, local epochs {chosen.local_epochs}, SGD "
        f"{chosen.learning_rate:g}. Personal stage: local epochs {given.personal_epochs}, SGD {rate:g}. "
        f"Seeds {', '.join(map(str, given.seeds))}. The paper gives none of these numbers. "
        f"Also given: {given.c or 'nothing'}.\n{machine(result.path)}"
    )
