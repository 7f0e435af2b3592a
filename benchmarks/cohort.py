"""Whole rounds of cohorts as one program beside those of `--engine one-by-one` and beside plain PyTorch.

    python benchmarks/cohort.py --card cards/cohort.md
    python benchmarks/cohort.py --cases digits --repeats 1

Plain PyTorch is two processes with one thread each, which share the clients out and train them one after another, each
from the same model, and score it once on the client's test samples: no messages, no results, no server. All of them
have the same samples in the same batches. A round is all of it; the first one warms up and is not counted. The programs
take turns, so that a slow minute of the machine hits all of them, and each turn gives one ratio.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from common import CIFAR10, ROOT, deal, machine, publish, simulate, table

from fedham_flwr.core.threads import one_thread
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.clients import open_partition
from fedham_flwr.models import build
from fedham_flwr.settings import Value, parse

MNIST = ROOT.parent / "shared" / "data" / "mnist"
COLUMNS = [f"c{number}" for number in range(13)]


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        clients: how many.
        settings: of the run.
        wanted: the ratios to Ray and to plain PyTorch that are aimed at.
    """

    clients: int
    settings: Mapping[str, Value]
    wanted: tuple[float, float]


TABLE: dict[str, Value] = {
    "model": "mlp", "partitioner": "iid", "feature-column": " ".join(COLUMNS), "label-column": "label",
}  # fmt: skip
CASES = {
    "mlp": Case(1000, TABLE, (50.0, 8.0)),
    "digits": Case(100, {"model": "digits-cnn", "local-epochs": 5}, (10.0, 2.4)),
    "lenet": Case(20, {"model": "lenet", "dataset": str(MNIST), "samples-per-client": 600}, (1.5, 1.0)),
    "cnn": Case(
        20, {"model": "cnn", "dataset": str(CIFAR10), "samples-per-client": 600, "batch-size": 64}, (0.98, 0.95)
    ),
}
COMMON: Mapping[str, Value] = {
    "strategy": "fedavg", "batch-size": 10, "learning-rate": 0.01, "momentum": 0.9, "validation-fraction": 0.0,
    "test-fraction": 0.25, "evaluate-every": 1_000_000, "checkpoint-every": 0, "device": "cpu",
}  # fmt: skip


def made_table(folder: Path, rows: int = 134_000) -> Path:
    """A table of normal numbers whose label is the sign of a noisy sum, 100 training rows for each of 1,000 clients."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(0)
    numbers = draw.normal(size=(rows, len(COLUMNS))).astype(np.float32)
    label = (numbers @ draw.normal(size=len(COLUMNS)) + draw.normal(size=rows) > 0).astype(np.int64)
    columns = {name: numbers[:, place] for place, name in enumerate(COLUMNS)}
    folder.mkdir()
    pq.write_table(pa.table({**columns, "label": label}), folder / "table.parquet")
    return folder


# ---- plain PyTorch ---------------------------------------------------------------------------------------------------


def plain(settings: Mapping[str, Value], clients: int, rounds: int) -> list[float]:
    """Seconds of each round of two processes that train the clients one after another."""
    context = mp.get_context("spawn")
    barrier, told = context.Barrier(3), context.Queue()
    halves = [list(range(start, clients, 2)) for start in (0, 1)]
    workers = [context.Process(target=_train, args=(settings, half, clients, rounds, barrier, told)) for half in halves]
    for worker in workers:
        worker.start()
    found = []
    for _ in range(rounds):
        barrier.wait()
        began = time.perf_counter()
        for _ in workers:
            told.get()
        found.append(time.perf_counter() - began)
    for worker in workers:
        worker.join()
    return found


def _train(
    settings: Mapping[str, Value], mine: Sequence[int], clients: int, rounds: int, barrier: Any, told: Any
) -> None:
    chosen = parse(settings)
    with one_thread():
        data = [open_partition(chosen.data(), number, clients) for number in mine]
        model = build(chosen.model, data[0].shape, data[0].outputs, 0, chosen.networks())
        model = model.to(memory_format=torch.channels_last)
        start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        loss = torch.nn.functional.cross_entropy
        for _ in range(rounds):
            barrier.wait()
            for some in data:
                model.load_state_dict(start)
                model.train()
                optimizer = torch.optim.SGD(model.parameters(), chosen.learning_rate, chosen.momentum)
                index = some.splits["train"]
                for _ in range(chosen.local_epochs):
                    for batch in torch.split(index[torch.randperm(len(index))], chosen.batch_size):
                        features, labels = some.features.index_select(0, batch), some.labels.index_select(0, batch)
                        x, y = inputs_and_targets(features, labels, some.kind)
                        optimizer.zero_grad()
                        loss(model(x), y).backward()  # type: ignore[no-untyped-call]
                        optimizer.step()
                model.eval()
                with torch.no_grad():
                    for batch in torch.split(some.splits["test"], 256):
                        features, labels = some.features.index_select(0, batch), some.labels.index_select(0, batch)
                        x, y = inputs_and_targets(features, labels, some.kind)
                        (model(x).argmax(1) == y).sum().item()
            told.put(None)


# ---- the comparison --------------------------------------------------------------------------------------------------


def ours(settings: Mapping[str, Value], clients: int, folder: Path, *options: str) -> list[float]:
    """Seconds of each round but the first."""
    folder.mkdir(parents=True)
    ends = [line.at for line in simulate(settings, clients, folder, options)]
    return [later - earlier for earlier, later in pairwise(ends)]


def compare(case: Case, rounds: int, repeats: int, folder: Path) -> list[dict[str, float]]:
    """Median seconds of a round by each program, a turn each."""
    settings = {**COMMON, **case.settings, "num-server-rounds": rounds, "cache-dir": str(folder.parent / "cache")}
    deal(settings, case.clients)
    turns = []
    for turn in range(repeats):
        here = folder / str(turn)
        found = {
            "cohort": ours(settings, case.clients, here / "one", "--backend", "cohort"),
            "two": ours(settings, case.clients, here / "two", "--num-workers", "2"),
            "plain": plain(settings, case.clients, rounds)[1:],
            "ray": ours(settings, case.clients, here / "ray", "--engine", "one-by-one"),
        }
        turns.append({name: statistics.median(seconds) for name, seconds in found.items()})
        print(turns[-1], flush=True)
    return turns


def ratio(turns: Sequence[Mapping[str, float]], of: str, to: str) -> str:
    """Median [lowest, highest] of the turns' ratios."""
    found = [turn[of] / turn[to] for turn in turns]
    return f"{statistics.median(found):.2f} [{min(found):.2f}, {max(found):.2f}]"


def main() -> None:
    """Compare, and print or write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=4, help="of one run, at least 2 (default 4)")
    parser.add_argument("--repeats", type=int, default=2, help="turns of all programs (default 2)")
    parser.add_argument("--card", type=Path, metavar="FILE", help="write the result here too")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in given.cases:
            case = CASES[name]
            if name == "mlp":
                case = Case(case.clients, {**case.settings, "dataset": str(made_table(folder / "table"))}, case.wanted)
            turns = compare(case, given.rounds, given.repeats, folder / name)
            best = [{**turn, "best": min(turn["cohort"], turn["two"])} for turn in turns]
            rows.append(
                [
                    f"{name}, {case.clients} clients",
                    ratio(turns, "ray", "cohort"),
                    ratio(turns, "ray", "two"),
                    f"{case.wanted[0]:g}",
                    ratio(turns, "plain", "cohort"),
                    ratio(best, "plain", "best"),
                    f"{case.wanted[1]:g}",
                ]
            )
        head = ["case", "ray / 1 cpu", "ray / 2 cpus", "aim", "plain / 1 cpu", "plain / best", "aim"]
        text = (
            "# Cohort\n\nSeconds of a whole round of `--engine one-by-one`, and of two plain PyTorch processes that "
            "train and score the same clients one after another, by those of a cohort as one program with one "
            "processor (`--backend cohort`) and with two (`--num-workers 2`): medians of "
            f"{given.repeats} turns [lowest, highest] of {given.rounds - 1} rounds each. FedAvg, SGD with momentum, "
            f"batches of 10 (cnn: 64).\n{machine(folder)}\n\n{table(head, rows)}"
        )
        publish(text, given.card)


if __name__ == "__main__":
    main()
