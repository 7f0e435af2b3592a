"""Does a long run hold its memory? Resident memory of the server and of the Ray workers at the end of every round.

    python benchmarks/memory.py --card memory.md       # 500 clients, 30 rounds, CIFAR-10 or random images
    python benchmarks/memory.py --quick                # few random images, clients and rounds: does it run?

FedAvg of 500 clients under Ray, an even share of the images each, a tenth of the clients in every round, model `lenet`.
Memory is the proportional set size that the kernel gives (a page that several processes map counts in parts), read
from outside when a round's results are written. What a process has after the warm-up rounds is its level; it holds it
if the last round is not more than 5 % above.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import deal, machine, publish, simulate, source, table, workers

from fedham_flwr.settings import Value

ALLOWED = 0.05
"""Growth that is not held against a process, as a fraction of its level after the warm-up."""
WORK: Mapping[str, Value] = {
    "strategy": "fedavg",
    "model": "lenet",
    "partitioner": "iid",
    "fraction-train": 0.1,
    "batch-size": 10,
    "local-epochs": 1,
    "evaluate-every": 1_000_000,
    "device": "cpu",
}


@dataclass(frozen=True)
class Resident:
    """Resident memory of one process in MiB: all of it, and the part that is no file's (the heap, mostly)."""

    all: float
    own: float


Sample = Mapping[int, Resident]
"""What each process has at the end of one round; the server is the first."""


def resident(process: int) -> Resident | None:
    """What a process has now; None if it has ended."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
        found = {name: int(kib) / 1024 for name, kib in re.findall(r"^(Pss\w*): +(\d+) kB$", text, re.MULTILINE)}
        return Resident(found["Pss"], found["Pss_Anon"])
    return None


def watch(settings: Mapping[str, Value], clients: int, folder: Path) -> list[Sample]:
    """Run a federation and look at its processes at the end of every training round."""
    samples: list[Sample] = []
    for line in simulate(settings, clients, folder):
        found = {process: resident(process) for process in (line.server, *workers(line.server))}
        samples.append({process: memory for process, memory in found.items() if memory is not None})
        total = sum(memory.all for memory in samples[-1].values())
        print(f"round {line.record['round']}: {total:.0f} MiB in {len(samples[-1])} processes", flush=True)
    return samples


def growth(samples: Sequence[Sample], warm_up: int) -> dict[int, float]:
    """Growth of each process since the warm-up as a fraction; infinite for one that was not there then."""
    first, last = samples[warm_up - 1], samples[-1]
    return {p: last[p].all / first[p].all - 1 if p in first else float("inf") for p in last}


def levels(samples: Sequence[Sample], warm_up: int) -> str:
    """A table with a row per process."""
    grown, rows = growth(samples, warm_up), []
    for number, (process, rise) in enumerate(grown.items()):
        after = [sample[process] for sample in samples[warm_up - 1 :] if process in sample]
        row = ["server" if number == 0 else f"worker {number}"]
        row += [
            f"{after[0].all:.1f}",
            f"{max(m.all for m in after):.1f}",
            f"{after[-1].all:.1f}",
            f"{100 * rise:+.1f} %",
        ]
        row += [f"{after[0].own:.1f}", f"{after[-1].own:.1f}", "yes" if rise <= ALLOWED else "NO"]
        rows.append(row)
    head = ("process", f"round {warm_up}", "highest", f"round {len(samples)}", "growth")
    return table((*head, f"own, {warm_up}", f"own, {len(samples)}", f"within {ALLOWED:.0%}"), rows)


def course(samples: Sequence[Sample], step: int) -> str:
    """A table with all of each process's memory in every `step`-th round."""
    processes = list(samples[-1])
    rows = [
        [str(at + 1), *(f"{sample[p].all:.1f}" if p in sample else "-" for p in processes)]
        for at, sample in enumerate(samples)
        if (at + 1) % step == 0 or at == 0
    ]
    return table(("round", "server", *(f"worker {n}" for n in range(1, len(processes)))), rows)


def card(samples: Sequence[Sample], options: argparse.Namespace, facts: str) -> str:
    """The whole result as Markdown."""
    worst = max(growth(samples, options.warm_up).values())
    same = samples[options.warm_up - 1].keys() == samples[-1].keys()
    held = "is held" if same and worst <= ALLOWED else "is NOT held"
    return f"""\
# Memory

FedAvg under Ray, {options.clients} clients with {options.each} training samples each, {WORK["fraction-train"]:.0%} \
of them in every round, data {options.name}, model {WORK["model"]}; {options.rounds} rounds.
{facts}

Memory {held}: from round {options.warm_up} to round {len(samples)} the process that grew most grew by \
{100 * worst:.1f} %{"" if same else ", and a worker was replaced"}.

{levels(samples, options.warm_up)}

In MiB, proportional: a page that several processes map counts in parts. "Own" is what of it belongs to no file.

{course(samples, max(1, options.rounds // 10))}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, and print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="a data set of images (default CIFAR-10)")
    parser.add_argument("--clients", type=int, default=500, metavar="N", help="default 500")
    parser.add_argument("--rounds", type=int, default=30, help="default 30")
    parser.add_argument("--warm-up", type=int, default=5, metavar="N", help="rounds before the level (default 5)")
    parser.add_argument("--quick", action="store_true", help="4,000 random images, 40 clients, 6 rounds, 2 to warm up")
    parser.add_argument("--card", type=Path, metavar="FILE", help="write the result here too")
    options = parser.parse_args(arguments)
    if options.quick:
        options.clients, options.rounds, options.warm_up = 40, 6, 2
    if not 0 < options.warm_up < options.rounds:
        parser.error("--warm-up must be at least 1 and less than --rounds")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the simulation ends with this process
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = source(options.data, 4_000 if options.quick else None, folder)
        settings = dict(WORK) | {"dataset": str(data), "cache-dir": str(folder / "cache")}
        settings["num-server-rounds"] = options.rounds
        options.name, options.each = data.name, max(deal(settings, options.clients))
        samples = watch(settings, options.clients, folder)
        publish(card(samples, options, machine(folder)), options.card)


if __name__ == "__main__":
    main()
