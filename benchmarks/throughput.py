"""Speed of a simulated federation beside that of plain PyTorch, and where the time of a round goes.

    python benchmarks/throughput.py --card speed.md    # CIFAR-10 in ../shared/data/cifar10; random images without it
    python benchmarks/throughput.py --quick            # few random images and rounds: does it run?

FedAvg of 20 clients under Ray: Dirichlet label skew 0.1, every client in every round, 3/4 of its samples to train on
and 1/4 to test on, the model `cnn`, batches of 64, one local epoch, plain SGD 0.005. A round is all of it: messages,
training, evaluation, and what the server does. The first round warms up and is not counted.

`--limit` is a program that does such a round in plain PyTorch without any federated-learning library (case d: two
processes, channels_last; case e: the same in bfloat16). The two take turns, so that a slow minute of the machine hits
both; each pair gives one ratio.
"""

from __future__ import annotations

import argparse
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from common import ROOT, deal, machine, publish, simulate, source, table, workers

from fedham_flwr.settings import Value

CLIENTS = 20
CASES = {"fp32": "d", "bf16": "e"}
LIMIT = ROOT.parent / "shared" / "bench" / "limit.py"
WORK: Mapping[str, Value] = {
    "strategy": "fedavg",
    "model": "cnn",
    "partitioner": "dirichlet",
    "alpha": 0.1,
    "validation-fraction": 0.0,
    "test-fraction": 0.25,
    "batch-size": 64,
    "local-epochs": 1,
    "learning-rate": 0.005,
    "momentum": 0.0,
    "evaluate-every": 1_000_000,
    "device": "cpu",
}


# ---- the comparison -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """Seconds of one round: from the end of the last one to its own, and the clients' work summed over them."""

    wall: float
    exchange: float  # of the wall clock: messages out, work, messages back
    train: float
    evaluate: float
    open: float
    workers: int

    @property
    def same_work(self) -> float:
        """What the round would take with one evaluation of every client instead of two, as the limit does it.

        The two evaluations cost the same, and what they cost is spread over the workers.
        """
        return self.wall - self.evaluate / 2 / self.workers


@dataclass(frozen=True)
class Pair:
    """What one turn of both programs gave: our counted rounds, and the limit's samples/s if it is there."""

    rounds: tuple[Round, ...]
    limit: float | None

    def speed(self, samples: int) -> float:
        """Training samples/s of the median round."""
        return samples / statistics.median(r.wall for r in self.rounds)

    def same_work(self, samples: int) -> float:
        """The same with one evaluation."""
        return samples / statistics.median(r.same_work for r in self.rounds)


def ours(settings: Mapping[str, Value], folder: Path) -> tuple[Round, ...]:
    """The rounds of one simulation, but for the first."""
    folder.mkdir()
    lines, count = [], 0
    for line in simulate(settings, CLIENTS, folder):
        lines.append(line)
        count = max(count, len(workers(line.server)))
    rounds = []
    for last, line in pairwise(lines):
        seconds = line.record["seconds"]
        client = {part: seconds[f"clients-{part}"] for part in ("train", "evaluate", "open")}
        rounds.append(Round(line.at - last.at, seconds["exchange"], **client, workers=count))
    return tuple(rounds)


def limit(program: Path, case: str, rounds: int, data: Path) -> float | None:
    """Training samples/s of the limit program; None if it is not there.

    Raises:
        SystemExit: it failed.
    """
    if not program.is_file():
        return None
    command = [sys.executable, str(program), "--cases", case, "--repeats", "1", "--rounds", str(rounds)]
    done = subprocess.run([*command, "--data", str(data)], capture_output=True, text=True, check=False)
    found = re.search(r"(\d+) train samples/s", done.stdout)
    if found is None:
        raise SystemExit(f"{program.name} ended with {done.returncode}:\n{done.stdout}{done.stderr[-3000:]}")
    return float(found[1])


def measure(options: argparse.Namespace, settings: Mapping[str, Value], folder: Path) -> dict[str, list[Pair]]:
    """All turns of both programs, by precision."""
    pairs: dict[str, list[Pair]] = {precision: [] for precision in options.precision}
    samples = sum(deal(settings, CLIENTS))
    for turn in range(options.repeats):
        for precision, found in pairs.items():
            asked = (options.limit, CASES[precision], options.rounds - 1, Path(str(settings["dataset"])))
            # Whoever comes second finds the machine warmer, so they swap.
            speed = limit(*asked) if turn % 2 else None
            rounds = ours(dict(settings) | {"precision": precision}, folder / f"{precision}-{turn}")
            found.append(Pair(rounds, speed if turn % 2 else limit(*asked)))
            theirs = f"{found[-1].limit:.0f}" if found[-1].limit else "not there"
            print(f"{precision}, turn {turn + 1}: {found[-1].speed(samples):.0f} samples/s, limit {theirs}", flush=True)
    return pairs


# ---- the result -----------------------------------------------------------------------------------------------------


def speeds(pairs: Mapping[str, Sequence[Pair]], samples: int) -> str:
    """Our speed, the limit's, and their ratio as it is and for the same work."""
    rows = []
    for precision, found in pairs.items():
        speed = statistics.median(pair.speed(samples) for pair in found)
        row = [precision, f"{samples / speed:.2f}", f"{speed:.0f}"]
        theirs = [pair.limit for pair in found if pair.limit]
        asis = [pair.speed(samples) / pair.limit for pair in found if pair.limit]
        same = [pair.same_work(samples) / pair.limit for pair in found if pair.limit]
        row += [f"{statistics.median(theirs):.0f}" if theirs else "-", _spread(asis), _spread(same)]
        rows.append(row)
    return table(("precision", "s/round", "samples/s", "limit samples/s", "ratio [min, max]", "same work"), rows)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]" if values else "-"


def breakdown(pairs: Mapping[str, Sequence[Pair]]) -> str:
    """Where the workers' time goes, in percent of workers x wall clock, over all rounds that count."""
    rows = []
    for precision, found in pairs.items():
        rounds = [one for pair in found for one in pair.rounds]
        parts = [sum(getattr(r, name) for r in rounds) for name in ("train", "evaluate", "open")]
        parts.append(sum(r.workers * r.exchange for r in rounds) - sum(parts))
        parts.append(sum(r.workers * (r.wall - r.exchange) for r in rounds))
        whole = sum(r.workers * r.wall for r in rounds)
        rows.append([precision, *(f"{100 * part / whole:.1f} %" for part in parts), str(rounds[0].workers)])
    head = ("precision", "training", "evaluation", "opening data, model", "messages, waiting", "server", "workers")
    return table(head, rows)


def card(pairs: Mapping[str, Sequence[Pair]], options: argparse.Namespace, sizes: Sequence[int], facts: str) -> str:
    """The whole result as Markdown."""
    absent = (
        ""
        if options.limit.is_file()
        else f"\n{options.limit.name} is not there, so there is nothing to compare with.\n"
    )
    return f"""\
# Throughput

FedAvg under Ray, {CLIENTS} clients, data {options.name}, Dirichlet {WORK["alpha"]}, model {WORK["model"]}, \
batch {WORK["batch-size"]}, {WORK["local-epochs"]} local epoch;
{sum(sizes)} training samples, {max(sizes)} of them the largest client's and {min(sizes)} the smallest's; \
{options.rounds} rounds, the first not counted; {options.repeats} turns.
{facts}
{absent}
{speeds(pairs, sum(sizes))}

Samples are training samples; a round is the median one, evaluation, messages and server included. The ratio is the
median of the turns', each of our speed to the limit's in the same turn. The limit evaluates each client's model once,
after training; we do it before and after. "Same work" is the ratio if we did it once: half of the measured evaluation
seconds, divided by the number of workers, taken off each round.

{breakdown(pairs)}

In percent of workers x wall clock. Messages, waiting: serialising, Flower, Ray, and workers without a client to serve.
Server: checking and merging the replies, writing the results, all while the workers wait."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, and print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="Parquet files with columns image, label")
    parser.add_argument("--limit", type=Path, default=LIMIT, metavar="FILE", help="the program to compare with")
    parser.add_argument("--precision", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=4, help="of one simulation, at least 2 (default 4)")
    parser.add_argument("--repeats", type=int, default=2, help="turns of both programs (default 2)")
    parser.add_argument("--quick", action="store_true", help="12,000 random images, 2 rounds, 1 turn")
    parser.add_argument("--card", type=Path, metavar="FILE", help="write the result here too")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.repeats = 2, 1
    if options.rounds < 2 or options.repeats < 1:
        parser.error("--rounds must be at least 2, since the first does not count, and --repeats at least 1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the simulation ends with this process
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = source(options.data, 12_000 if options.quick else None, folder)
        options.name = data.name
        settings = dict(WORK) | {"dataset": str(data), "cache-dir": str(folder / "cache")}
        settings["num-server-rounds"] = options.rounds
        sizes = deal(settings, CLIENTS)
        pairs = measure(options, settings, folder)
        publish(card(pairs, options, sizes, machine(folder)), options.card)


if __name__ == "__main__":
    main()
