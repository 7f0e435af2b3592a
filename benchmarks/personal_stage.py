"""The personal stage of Fed_T and Fed_T_A: a client's training beside a plain loop, and twenty clients under Ray.

    python benchmarks/personal_stage.py --card personal-stage.md
    python benchmarks/personal_stage.py --quick       # one turn, few images: does it run?

Training: one process with one thread, random images, the network of the paper; `Trainer.fit` of everything, of what
Fed_T and Fed_T_A train, and a loop with `torch.optim.SGD` over the same layers, as one writes it by hand, take turns.

Under Ray: clients of one round of FedAvg on CIFAR-10 (or random images), then the stage alone, started from that run's
results. The stage is one exchange, whose seconds stand beside the seconds that the clients worked, summed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from common import deal, machine, publish, simulate, source, table
from server_step import versions
from torch.nn.functional import cross_entropy
from vit_training import CLASSES, SHAPE, Images, images, over

from fedham_flwr import models
from fedham_flwr.algorithms.fedtransfer import frozen_groups
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.data.batches import to_float
from fedham_flwr.run_settings import Settings
from fedham_flwr.settings import Value, parse
from fedham_flwr.training.local import LocalTraining
from fedham_flwr.training.trainer import Trainer

IMAGES, BATCH = 640, 32
RATE, MOMENTUM, CLIENTS, EPOCHS = 0.02, 0.9, 20, 2
FED_T, FED_T_A, ALL, PLAIN = "Fed_T", "Fed_T_A", "all layers", "plain PyTorch, Fed_T's layers"
GIVEN: Mapping[str, Mapping[str, Value]] = {
    FED_T: {},
    FED_T_A: {"fedtransfer.attention": "cbam"},
    ALL: {"fedtransfer.frozen": ""},
    PLAIN: {},
}


def chosen(program: str) -> Settings:
    """Settings of a program."""
    return parse({"strategy": "fedtransfer", "model": "transfer-cnn", **GIVEN[program]})


def trained(program: str, manifest: Manifest) -> tuple[str, ...]:
    """Names of the tensors that a program trains."""
    frozen = frozen_groups(manifest.groups, chosen(program).own)
    return manifest.names(name for name in manifest.group_names if name not in frozen)


def ours(program: str, precision: str, data: Images) -> Callable[[], None]:
    """An epoch by the project's loop."""
    model = models.build("transfer-cnn", SHAPE, CLASSES, 0, chosen(program).networks())
    trainer = Trainer(model, torch.device("cpu"), precision)
    settings, draw = LocalTraining(1, BATCH, RATE, MOMENTUM, 0.0, augment=False), torch.Generator().manual_seed(0)
    names = trained(program, trainer.manifest)
    return lambda: (trainer.fit(data, settings, draw, only=names), None)[1]


def plain(program: str, precision: str, data: Images) -> Callable[[], None]:
    """An epoch by a loop as one writes it by hand, over images that are float already."""
    model = models.build("transfer-cnn", SHAPE, CLASSES, 0).to(memory_format=torch.channels_last)
    names = trained(program, Manifest.of(model))
    for name, param in model.named_parameters():
        param.requires_grad_(name in names)
    pixels, labels, draw = to_float(data.features), data.labels, torch.Generator().manual_seed(0)

    def epoch() -> None:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE, momentum=MOMENTUM)
        autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
        for some in torch.split(torch.randperm(len(labels), generator=draw), BATCH):
            with autocast:
                loss = cross_entropy(model(pixels.index_select(0, some)), labels.index_select(0, some))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return epoch


def training(precision: str, count: int, turns: int) -> list[list[str]]:
    """Rows of the first table: every program's speed, and ratios turn by turn."""
    torch.set_num_threads(1)
    data = images(0, count)
    epochs = {name: (plain if name == PLAIN else ours)(name, precision, data) for name in GIVEN}
    seconds: dict[str, list[float]] = {name: [] for name in epochs}
    for turn in range(turns + 1):
        for name in sorted(epochs, reverse=bool(turn % 2)):
            began = time.perf_counter()
            epochs[name]()
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - began)
    rows = []
    for name, took in seconds.items():
        beside = [[base / own for base, own in zip(seconds[other], took, strict=True)] for other in (PLAIN, ALL)]
        speed = over([count / one for one in took], "{:.0f}")
        rows.append([name, precision, speed, *(over(ratios, "{:.2f}") for ratios in beside)])
    return rows


def stage(data: Path, samples: int, folder: Path) -> list[list[str]]:
    """Rows of the second table: the stage of twenty clients under Ray.

    Raises:
        SystemExit: a run failed.
    """
    common: dict[str, Value] = {
        "dataset": str(data), "model": "transfer-cnn", "samples-per-client": samples, "batch-size": BATCH,
        "cache-dir": str(folder / "cache"), "num-server-rounds": 1,
    }  # fmt: skip
    deal(common, CLIENTS)
    (folder / "fedavg").mkdir()
    list(simulate({**common, "strategy": "fedavg"}, CLIENTS, folder / "fedavg"))
    (start,) = (folder / "fedavg" / "results").glob("*/*")
    rows = []
    for name in (FED_T, FED_T_A):
        here = folder / name
        here.mkdir()
        settings = {**common, **GIVEN[name], "strategy": "fedtransfer", "fedtransfer.personal-epochs": EPOCHS}
        list(simulate({**settings, "resume": str(start)}, CLIENTS, here))
        (lines,) = (file.read_text() for file in (here / "results").glob("*/*/rounds.jsonl"))
        (record,) = map(json.loads, lines.splitlines())
        work = sum(value for part, value in record["seconds"].items() if part.startswith("clients-"))
        took = record["seconds"]["exchange"]
        rows.append([name, f"{record['replies']}", "1", f"{took:.1f}", f"{work:.1f}", f"{work / took:.2f}"])
    return rows


def card(rows: Sequence[Sequence[str]], under_ray: Sequence[Sequence[str]], what: str, facts: str) -> str:
    """The result as Markdown."""
    head = ("trains", "precision", "samples/s", "beside the plain loop", "beside all layers")
    exchange = ("stage", "clients", "exchanges", "its seconds", "seconds of the clients' work", "at the same time")
    return f"""\
# The personal stage of Fed_T and Fed_T_A

{facts}

One client, one thread, `transfer-cnn`, batches of {BATCH}, {what}; median [lowest, highest], ratios turn by turn.

{table(head, rows)}

{CLIENTS} clients under Ray, {EPOCHS} epochs, started from the results of a run of `fedavg`. The work is that of all
clients, evaluations and loading included; the last column is how many of them worked at the same time on average.

{table(exchange, under_ray)}"""


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with images (default: CIFAR-10, else random ones)")
    parser.add_argument("--turns", type=int, default=7, help="of each program (default %(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="images of a client under Ray (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one turn, few images")
    parser.add_argument("--card", type=Path, metavar="FILE", help="write the result here too")
    given = parser.parse_args()
    count = 64 if given.quick else IMAGES
    turns, samples = (1, 40) if given.quick else (given.turns, given.samples)
    rows = [row for precision in ("fp32", "bf16") for row in training(precision, count, turns)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        under_ray = stage(source(given.data, None, folder), samples, folder)
        (folder / "environment.json").write_text(json.dumps(versions()))
        what = f"{count} random images, {turns} turns"
        publish(card(rows, under_ray, what, machine(folder)), given.card)


if __name__ == "__main__":
    main()
