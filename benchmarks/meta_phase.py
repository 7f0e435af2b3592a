"""What a client of FedHAM pays for its meta-model when it is sent its peers' models, beside its local training.

    python benchmarks/meta_phase.py --card meta-phase.md   # CIFAR-10 in ../shared/data/cifar10; random images without
    python benchmarks/meta_phase.py --quick                # few random images, one message: does it run?

`fedham.transport="peers"` with PFLlib's network and batches of 10, and 20 equal parts of the data: 3,000 images a
client, 2,250 to train on, of which 450 are held out for the meta-model. Models of 20 clients, all different, are put
into the pool; again and again the server half makes its messages, and one client answers its own through the whole
client app, in this process, with one thread. The first message warms up and is not counted.

The base phase is one local epoch on what is not held out. The meta phase has 5 steps on batches of 64, each with a new
mixture of all 20 models. A full epoch is the time of the base phase for as many batches as all training samples make.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import deal, machine, publish, source, table
from server_step import versions

from fedham_flwr.settings import Value, parse

CLIENTS = 20
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
    "strategy": "fedham",
    "fedham.transport": "peers",
}
PARTS: Mapping[str, str] = {
    "read": "opening the message",
    "pool": "the models into one bank",
    "step/gradient": "steps: gradient of the network",
    "step/mix": "steps: mixing",
    "step/load": "steps: mixture into the network",
    "step/inner": "steps: inner products with the models",
    "step/meta": "steps: the meta-model",
    "step": "steps: the rest",
    "mix": "the hybrid: mixing",
    "meta": "the hybrid: the meta-model",
}
"""Parts of a client's work, each without those within it; all but the first are of the meta phase."""


class Turn(NamedTuple):
    """Seconds of one message, by the client's own clocks and by part."""

    clocks: Mapping[str, float]
    parts: Mapping[str, float]
    trained: int  # samples
    held_out: int

    @property
    def ratio(self) -> float:
        """Of the meta phase to the base phase."""
        return self.clocks["meta"] / self.clocks["train"]

    @property
    def ratio_full(self) -> float:
        """Of the meta phase to an epoch of all training samples, by the number of batches."""
        size = int(COMMON["batch-size"])
        return self.ratio * math.ceil(self.trained / size) / math.ceil((self.trained + self.held_out) / size)


class Stopwatch:
    """Seconds by part; a part that runs within another one is named after it, and its seconds are not the other's."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._within: list[tuple[str, list[float]]] = []  # parts that run, and the seconds of those within each

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, watched; the client app, in which all is, gives no part its name."""

        @functools.wraps(work)
        def watched(*args: Any, **named: Any) -> Any:
            outer = self._within[-1] if self._within else ("", [])
            own: tuple[str, list[float]] = (f"{outer[0]}/{part}".removeprefix("/").removeprefix("client/"), [])
            self._within.append(own)
            began = time.perf_counter()
            try:
                return work(*args, **named)
            finally:
                outer[1].append(time.perf_counter() - began)
                self.seconds[own[0]] += outer[1][-1] - sum(own[1])
                self._within.pop()

        return watched


def watch_parts(watch: Stopwatch) -> None:
    """Watch the parts of the meta phase, where they are, until this process ends."""
    from clients.fedham import FedHAMClient
    from fedham_flwr.federation import wire
    from fedham_flwr.mixing.bank import Bank
    from fedham_flwr.mixing.meta_models import MetaModels
    from fedham_flwr.mixing.peers import Peers
    from fedham_flwr.training.trainer import Trainer

    places: Mapping[Any, Mapping[str, str]] = {
        wire: {"read_download": "read"},
        FedHAMClient: {"_peers": "pool", "_meta_step": "step"},
        Peers: {"mix": "mix"},
        Trainer: {"load": "load", "gradient": "gradient"},
        Bank: {"inner": "inner"},
        MetaModels: {"attend": "meta", "step": "meta"},
    }
    for owner, names in places.items():
        for name, part in names.items():
            setattr(owner, name, watch.timed(part, getattr(owner, name)))


# ---- one client ------------------------------------------------------------------------------------------------------


def settings(precision: str, data: Path, folder: Path) -> dict[str, Value]:
    """All that differ from the defaults."""
    chosen: dict[str, Value] = {**COMMON, "partitioner": "iid", "precision": precision}
    return chosen | {"dataset": str(data), "cache-dir": str(folder / "cache"), "min-replies": 1}


def measure(chosen: Mapping[str, Value], repeats: int, watch: Stopwatch) -> list[Turn]:
    """One client's turns, but for the first."""
    from flwr.app import ArrayRecord, ConfigRecord

    from fedham_flwr.client_app import make_client_app
    from fedham_flwr.data.clients import open_partition
    from fedham_flwr.federation.wire import read_upload
    from fedham_flwr.runners.in_process import InProcessGrid

    data, turns = open_partition(parse(chosen).data(), 0, CLIENTS), []
    held_out = round(parse(chosen).section("fedham").meta_share * (count := data.counts()["train"]))
    grid = InProcessGrid(watch.timed("client", make_client_app(chosen)), CLIENTS)  # type: ignore[arg-type]
    strategy = server(chosen, data.shape, len(data.classes))
    for number in range(1, repeats + 2):
        messages = strategy.configure_train(number, ArrayRecord(), ConfigRecord(), grid)
        mine = [message for message in messages if message.metadata.dst_node_id == strategy.setup.roster.nodes["0"]]
        watch.seconds.clear()
        (reply,) = grid.send_and_receive(mine)
        clocks = read_upload(reply.content, number).seconds
        turns.append(Turn(clocks, dict(watch.seconds), count - held_out, held_out))
        strategy.aggregate_train(number, [reply])
    return turns[1:]


def server(chosen: Mapping[str, Value], shape: tuple[int, ...], classes: int) -> Any:
    """The server half with a different model of every client in its pool."""
    import torch

    from fedham_flwr import models
    from fedham_flwr.core.parameters import Manifest, read
    from fedham_flwr.federation.contract import Task
    from fedham_flwr.federation.messages import Upload
    from fedham_flwr.server_app import build_strategy

    network, names = models.build(str(chosen["model"]), shape, classes, 0), tuple(map(str, range(CLIENTS)))
    manifest = Manifest.of(network)
    start = read(network, manifest.names())
    strategy = build_strategy(parse(chosen), manifest, start, Task(shape, classes))
    strategy.add_clients(names)
    draw = torch.Generator().manual_seed(0)
    row = {"row": torch.full((len(manifest.groups), CLIENTS), 1 / CLIENTS)}
    moved = [{n: t + torch.empty_like(t).normal_(0, 0.01, generator=draw) for n, t in start.items()} for _ in names]
    strategy.merge(1, {name: Upload(name, model, 1, (), {}, row) for name, model in zip(names, moved, strict=True)})
    return strategy


# ---- the result ------------------------------------------------------------------------------------------------------


def over(values: Sequence[float], form: str = "{:.0%}") -> str:
    """Median [lowest, highest]."""
    return "{} [{}, {}]".format(*map(form.format, (statistics.median(values), min(values), max(values))))


def totals(found: Mapping[str, Sequence[Turn]]) -> str:
    """The table of the phases."""
    rows = []
    for precision, turns in found.items():
        rest = [sum(turn.parts.values()) - sum(turn.clocks.values()) for turn in turns]
        seconds = [*([turn.clocks[clock] for turn in turns] for clock in ("train", "meta", "open")), rest]
        ratios = [[turn.ratio for turn in turns], [turn.ratio_full for turn in turns]]
        rows.append([precision, *(over(values, "{:.2f}") for values in seconds), *map(over, ratios)])
    head = ("base phase, s", "meta phase, s", "opening, s", "rest, s", "meta / base", "meta / full epoch")
    return table(("precision", *head), rows)


def by_part(found: Mapping[str, Sequence[Turn]]) -> str:
    """The table of the parts: median milliseconds, and the share of the meta phase."""
    rows = []
    for part, what in PARTS.items():
        rows.append([what])
        for turns in found.values():
            share = statistics.median(turn.parts.get(part, 0.0) / turn.clocks["meta"] for turn in turns)
            seconds = statistics.median(turn.parts.get(part, 0.0) for turn in turns)
            rows[-1] += [f"{1000 * seconds:.1f}", f"{share:.0%}" if part != "read" else "-"]
    return table(("part", *(f"{p}, {what}" for p in found for what in ("ms", "of meta"))), rows)


def card(found: Mapping[str, Sequence[Turn]], data: str, facts: str) -> str:
    """The result as Markdown."""
    turns = next(iter(found.values()))
    return f"""\
# The meta phase of FedHAM beside its base phase

`fedham.transport="peers"`, {CLIENTS} clients, the models of all others sent to each; model {COMMON["model"]}, data \
{data}, {turns[0].trained:,} samples to train on and {turns[0].held_out:,} held out, batch {COMMON["batch-size"]}, one \
local epoch; one process with one thread; median of {len(turns)} messages [lowest, highest].
{facts}

{totals(found)}

Base phase: the local epoch on what is not held out. Meta phase: all that is done for the hybrid model once the message
is open. Full epoch: as if nothing were held out. Opening: the client's data, and the models out of their bytes. Rest:
checks, what the client keeps, and its answer. Its two evaluations are in none of these.

{by_part(found)}"""


def main() -> None:
    """Measure every precision and print the tables."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="a data set of 60,000 images (default CIFAR-10)")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=7, help="messages that count (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="4,000 random images, one message")
    parser.add_argument("--card", type=Path, metavar="FILE", help="write the result here too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    watch_parts(watch := Stopwatch())
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), {}
        data = source(given.data, 4_000 if given.quick else None, folder)
        deal(settings("fp32", data, folder), CLIENTS)
        for precision in given.precision:
            found[precision] = measure(settings(precision, data, folder), 1 if given.quick else given.repeats, watch)
        (folder / "environment.json").write_text(json.dumps(versions()))
        publish(card(found, data.name, machine(folder)), given.card)


if __name__ == "__main__":
    main()
