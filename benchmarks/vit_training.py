"""Local training of a vision Transformer beside a plain PyTorch loop.

    python benchmarks/vit_training.py --card vit-training.md
    python benchmarks/vit_training.py --quick       # one pair of one network: does it run?

Two clients side by side, as in a simulation on two cores: two processes with one thread each and the allocator settings
of a simulation's workers, 450 random images a client, batches of 32, SGD with momentum. `Trainer.fit` and a loop with
`torch.optim.SGD` over images that were made float before take turns on the same network, data and precision; a barrier
lets both processes begin together. A pair is one turn of each, and the order changes from pair to pair.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from common import machine, publish, table
from server_step import versions

CLIENTS, IMAGES, BATCH, CLASSES, SHAPE = 2, 450, 32, 10, (3, 32, 32)
RATE, MOMENTUM = 0.01, 0.9
TARGET = 0.9


class Network(NamedTuple):
    """Settings that differ from the defaults, and local epochs of one turn."""

    settings: Mapping[str, Any]
    epochs: int


NETWORKS: Mapping[str, Network] = {
    "vit": Network({}, 1),
    "small vit": Network({"width": 64, "depth": 3, "heads": 4, "head_dim": 16, "hidden_dim": 128}, 5),
}


class Case(NamedTuple):
    """What is trained."""

    network: str
    precision: str


class Pair(NamedTuple):
    """Samples/s of both clients together, until the slower one is through."""

    ours: float
    plain: float

    @property
    def ratio(self) -> float:
        """Ours to plain."""
        return self.ours / self.plain


# ---- one client ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """Random images, all to train on."""

    features: Any
    labels: Any
    splits: Mapping[str, Any]
    kind: Literal["image"] = "image"


def images(client: int, count: int = IMAGES) -> Images:
    """So many of one client."""
    import torch

    draw = torch.Generator().manual_seed(client)
    features = torch.randint(256, (count, *SHAPE[1:], SHAPE[0]), generator=draw, dtype=torch.uint8)
    return Images(features, torch.randint(CLASSES, (count,), generator=draw), {"train": torch.arange(count)})


def network(case: Case) -> Any:
    """With its first parameters."""
    from fedham_flwr import models
    from fedham_flwr.models.vit import ViTSettings

    settings = models.NetworkSettings.of(vit=ViTSettings(**NETWORKS[case.network].settings))
    return models.build("vit", SHAPE, CLASSES, 0, settings)


def ours(case: Case, client: int) -> Callable[[int], None]:
    """Local training for so many epochs, by the project's loop."""
    import torch

    from fedham_flwr.training.local import LocalTraining
    from fedham_flwr.training.trainer import Trainer

    trainer, data = Trainer(network(case), torch.device("cpu"), case.precision), images(client)
    draw = torch.Generator().manual_seed(client)

    def train(epochs: int) -> None:
        trainer.fit(data, LocalTraining(epochs, BATCH, RATE, MOMENTUM, 0.0, augment=False), draw)

    return train


def plain(case: Case, client: int) -> Callable[[int], None]:
    """The same by a loop as one writes it by hand."""
    import torch
    from torch.nn.functional import cross_entropy

    from fedham_flwr.data.batches import to_float

    model, data = network(case).to(memory_format=torch.channels_last), images(client)
    pixels, labels, draw = to_float(data.features), data.labels, torch.Generator().manual_seed(client)

    def train(epochs: int) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
        autocast = torch.autocast("cpu", torch.bfloat16) if case.precision == "bf16" else contextlib.nullcontext()
        model.train()
        for _ in range(epochs):
            for chosen in torch.split(torch.randperm(IMAGES, generator=draw), BATCH):
                with autocast:
                    loss = cross_entropy(model(pixels.index_select(0, chosen)), labels.index_select(0, chosen))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    return train


PROGRAMS = {"ours": ours, "plain": plain}


def client(number: int, cases: Sequence[Case], pairs: int, barrier: Any, answers: Any) -> None:
    """One process: all turns of all cases, whose seconds it puts into a queue."""
    import torch

    torch.set_num_threads(1)
    for case in cases:
        trains = {name: make(case, number) for name, make in PROGRAMS.items()}
        for train in trains.values():
            train(1)
        for pair in range(pairs):
            for name in sorted(trains, reverse=bool(pair % 2)):
                barrier.wait()
                began = time.perf_counter()
                trains[name](NETWORKS[case.network].epochs)
                answers.put((case, pair, name, time.perf_counter() - began))
                barrier.wait()


# ---- the comparison --------------------------------------------------------------------------------------------------


def measure(cases: Sequence[Case], pairs: int) -> dict[Case, list[Pair]]:
    """All pairs of all cases.

    Raises:
        SystemExit: a process failed.
    """
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # as in simulation.py; read by new processes only
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(CLIENTS, timeout=600), context.Queue()
    arguments = [(number, cases, pairs, barrier, answers) for number in range(CLIENTS)]
    processes = [context.Process(target=client, args=given, daemon=True) for given in arguments]
    for process in processes:
        process.start()
    slowest: dict[tuple[Case, int, str], float] = {}
    for _ in range(CLIENTS * len(cases) * pairs * len(PROGRAMS)):
        case, pair, name, seconds = answers.get(timeout=600)
        slowest[case, pair, name] = max(seconds, slowest.get((case, pair, name), 0.0))
    for process in processes:
        process.join()
        if process.exitcode:
            raise SystemExit(f"a client ended with {process.exitcode}")

    def speed(case: Case, pair: int, name: str) -> float:
        return CLIENTS * IMAGES * NETWORKS[case.network].epochs / slowest[case, pair, name]

    return {case: [Pair(speed(case, p, "ours"), speed(case, p, "plain")) for p in range(pairs)] for case in cases}


def over(values: Sequence[float], form: str) -> str:
    """Median [lowest, highest]."""
    return "{} [{}, {}]".format(*map(form.format, (statistics.median(values), min(values), max(values))))


def card(found: Mapping[Case, Sequence[Pair]], facts: str) -> str:
    """The result as Markdown."""
    rows = []
    for case, pairs in found.items():
        speeds = [over([pair.ours for pair in pairs], "{:.0f}"), over([pair.plain for pair in pairs], "{:.0f}")]
        rows.append([case.network, case.precision, *speeds, over([pair.ratio for pair in pairs], "{:.2f}")])
    head = ("network", "precision", "ours, samples/s", "plain PyTorch, samples/s", "ratio of a pair")
    small = ", ".join(f"{key} {value}" for key, value in NETWORKS["small vit"].settings.items()).replace("_", "-")
    return f"""\
# Local training of a vision Transformer

{CLIENTS} clients side by side, one process with one thread each; {IMAGES} random images of 32 x 32 a client, batch \
{BATCH}, SGD with momentum {MOMENTUM:g}; {len(next(iter(found.values())))} pairs, median [lowest, highest].
{facts}

{table(head, rows)}

Samples/s are of both clients together, until the slower one is through. Both programs train the same network from the
same images at the same precision; ours makes its batches float as it goes, the plain one has them float before it
starts. The small network has {small}. The target is {TARGET:g}."""


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--pairs", type=int, default=7, help="of one network and precision (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one pair of the small network")
    parser.add_argument("--card", type=Path, metavar="FILE", help="write the result here too")
    given = parser.parse_args()
    if given.quick:
        given.network, given.pairs = ["small vit"], 1
    cases = [Case(network, precision) for network in given.network for precision in given.precision]
    found = measure(cases, given.pairs)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "environment.json").write_text(json.dumps(versions()))
        publish(card(found, machine(Path(name))), given.card)


if __name__ == "__main__":
    main()
