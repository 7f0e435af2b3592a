"""pFedLA's dense heads beside factorised ones: how well they learn whom to mix, and what the server holds for them.

    python benchmarks/pfedla_heads.py --folder runs --card cards/pfedla_heads.md      # an hour and a half on one core
    python benchmarks/pfedla_heads.py --seeds 0 --rounds 2 --sizes 100                # does it run?

Accuracy: 20 clients with 300 CIFAR-10 images each, scaled to 16 x 16 pixels, LeNet, `--backend cohort` with one thread.
Runs that are found in the folder are not repeated. Two splits: 4 random classes a client (non-IID_1), and five groups
of four clients with the same four classes, of which neighbouring groups share two.

Server: a round of 100 clients out of N with uploads that are noise and the four layer groups of the digits network, in
a process of its own for each head and N.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import CIFAR10, machine, publish, simulate, spread, table
from runs import Case, Result, read
from server_step import resident
from tables import differences, each, over_rounds, paired

from fedham_flwr.settings import Value

COHORT, CLIENTS, LAST = 100, 20, 10
RANKS = (4, 8, 16)
COMMON: Mapping[str, Value] = {
    "image-size": 16,
    "model": "lenet",
    "validation-fraction": 0.2,
    "test-fraction": 0.4,
    "batch-size": 32,
    "learning-rate": 0.01,
    "local-epochs": 5,
    "evaluate-every": 1_000_000,
    "checkpoint-every": 0,
    "device": "cpu",
}
METHODS: Mapping[str, Mapping[str, Value]] = {
    "local": {"strategy": "local"},
    "dense": {"strategy": "pfedla", "pfedla.head": "dense"},
    **{f"rank {r}": {"strategy": "pfedla", "pfedla.head": "factorised", "pfedla.head-rank": r} for r in RANKS},
}
SPLITS = {"random": "4 random classes (non-IID_1)", "groups": "Groups of four clients with the same four classes"}
BASES = (("local", "before"), ("dense", "before"))


# ---- accuracy --------------------------------------------------------------------------------------------------------


def settings(case: Case, rounds: int, data: Path, folder: Path) -> dict[str, Value]:
    """Those of a run that differ from the defaults."""
    chosen: dict[str, Value] = {**COMMON, **METHODS[case.method], "seed": case.seed, "num-server-rounds": rounds}
    chosen |= {"dataset": str(data), "cache-dir": str(folder / "cache")}
    if case.split == "random":
        return chosen | {"partitioner": "noniid-1", "classes-per-client": 4, "samples-per-client": 300}
    return chosen | {"partitioner": "class-table", "class-table": str(folder / "groups.toml")}


def write_groups(file: Path) -> None:
    """Write the second split: client k has 75 images of each of four classes, from 2 (k // 4) on; 0 follows 9."""
    held = [[(2 * (client // 4) + more) % 10 for more in range(4)] for client in range(CLIENTS)]
    tables = ("\n".join([f"[clients.{k}]", *(f"{c} = 75" for c in classes)]) for k, classes in enumerate(held))
    file.write_text("\n".join(tables) + "\n", encoding="utf-8")


def run_all(cases: Sequence[Case], rounds: int, data: Path, folder: Path) -> dict[Case, Result]:
    """Run what is not there, one after another, and read everything."""
    os.environ |= {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    folder.mkdir(parents=True, exist_ok=True)
    write_groups(folder / "groups.toml")
    results = {}
    for case in cases:
        place = folder / "-".join(map(str, case)).replace(" ", "")
        place.mkdir(exist_ok=True)
        given, began = settings(case, rounds, data, folder), time.perf_counter()
        text, marker = json.dumps(given, sort_keys=True), place / "given.json"
        if not marker.exists() or marker.read_text() != text:
            for _ in simulate(given, CLIENTS, place, ("--backend", "cohort")):
                pass
            marker.write_text(text)
            print(f"{' '.join(map(str, case))}: {time.perf_counter() - began:.0f} s", flush=True)
        newest = max(place.glob("results/*/*/summary.json"), key=lambda file: file.stat().st_mtime)
        results[case] = read(newest.parent)
    return results


def validation(run: Result) -> float:
    """Mean accuracy of the clients in percent, before training, on validation samples of the last rounds."""
    from fedham_flwr.reporting.run_directory import read_rows, to_rows

    wanted = ("validation", "accuracy", "before")
    rows = [row for row in to_rows(read_rows(run.path)) if (row.split, row.metric, row.phase) == wanted]
    return 100 * float(np.mean([row.value for row in rows if run.closing - LAST <= row.round < run.closing]))


def accuracies(results: Mapping[Case, Result], split: str) -> str:
    """Test accuracy over the last rounds, beside validation accuracy, and paired with dense heads."""
    dense = {case.seed: run for case, run in results.items() if (case.split, case.method) == (split, "dense")}
    rows = []
    for method, phase, runs in each(results, list(METHODS), split):
        means = {seed: run.mean(phase, LAST) for seed, run in runs.items()}
        known = spread([validation(run) for run in runs.values()]) if phase == "before" else "-"
        worst = spread([run.ends(phase)[0] for run in runs.values()])
        both = [seed for seed in means if seed in dense]
        gain = str(paired([means[s] for s in both], [dense[s].mean(phase, LAST) for s in both])) if both else "-"
        rows.append(
            [f"{method}, {phase}", spread(list(means.values())), known, worst, "-" if method == "dense" else gain]
        )
    return table(
        ("model", f"test, last {LAST} rounds", "validation", "worst client, closing", "minus dense [95 %]"), rows
    )


def selves(results: Mapping[Case, Result], split: str) -> str:
    """Mean weight that clients give themselves, and peers of their group, in the last rounds."""
    from splits import relations

    rows = []
    for method in METHODS:
        runs = [run for case, run in results.items() if (case.split, case.method) == (split, method) and run.mixes]
        kinds = [relations(run.path, LAST) for run in runs]
        if kinds:
            names = ("self", "4", "3", "2", "1", "0")
            cells = [[float(np.mean(kind[name])) for kind in kinds if name in kind] for name in names]
            rows.append([method, *(spread(cell, 3) if cell else "-" for cell in cells)])
    return table(("weight of a peer sharing", "self", *(f"{n} classes" for n in (4, 3, 2, 1, 0))), rows)


# ---- the server ------------------------------------------------------------------------------------------------------


def measure(head: str, clients: int) -> dict[str, Any]:
    """MiB and seconds of a server with so many clients; in a process that has done nothing else."""
    import torch

    from fedham_flwr import models
    from fedham_flwr.core.parameters import Manifest
    from fedham_flwr.core.parameters import read as tensors_of
    from fedham_flwr.federation.contract import Task
    from fedham_flwr.federation.messages import Upload
    from fedham_flwr.server_app import build_strategy
    from fedham_flwr.settings import parse

    torch.set_num_threads(1)
    network = models.build("digits-cnn", (1, 8, 8), 10, 0)
    manifest = Manifest.of(network)
    chosen = parse({"strategy": "pfedla", "device": "cpu", "pfedla.head": head})
    draw = torch.Generator().manual_seed(0)

    def build(count: int) -> Any:
        made = build_strategy(chosen, manifest, tensors_of(network, manifest.names()), Task((1, 8, 8), 10))
        made.add_clients(tuple(map(str, range(count))))
        return made

    def play(made: Any, number: int, cohort: Sequence[str]) -> tuple[float, float]:
        began = time.perf_counter()
        plan = made.plan(number, cohort)
        planned = time.perf_counter()
        uploads = {
            client: Upload(
                client, {n: t + 0.05 * torch.randn(t.shape, generator=draw) for n, t in start.params.items()}, 1, ()
            )
            for client, start in plan.items()
        }
        back = time.perf_counter()
        made.merge(number, uploads)
        return planned - began, time.perf_counter() - back

    small = build(4)
    play(small, 1, ("0", "1"))  # loads what a round of any size needs
    before, began = resident("VmRSS"), time.perf_counter()
    made = build(clients)
    start, cohort = time.perf_counter() - began, tuple(map(str, range(min(COHORT, clients))))
    held = resident("VmRSS") - before
    seconds = [play(made, number, cohort) for number in (1, 2, 3)][-1]
    size = {name: tensor.nbytes / 2**20 for name, tensor in made.state_dict().items()}
    heads = sum(mib for name, mib in size.items() if "/heads." in name or name.endswith("/peers"))
    bank = sum(mib for name, mib in size.items() if name.startswith("bank/"))
    return {
        "head": head, "clients": clients, "heads": heads, "bank": bank, "state": sum(size.values()), "held": held,
        "peak": resident("VmHWM") - before, "start": start, "plan": seconds[0], "merge": seconds[1],
    }  # fmt: skip


def servers(sizes: Sequence[int], dense: int) -> str:
    """The table of the servers: factorised heads for all sizes, dense ones up to a limit."""
    rows = []
    for clients in sizes:
        for head in ("dense", "factorised"):
            if head == "dense" and clients > dense:
                continue
            command = [sys.executable, __file__, "--measure", head, str(clients)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(found, flush=True)
            row = [
                f"{head}, {clients:,}",
                *(f"{found[key]:,.1f}" for key in ("heads", "state", "bank", "held", "peak")),
            ]
            rows.append([*row, *(f"{found[key]:.2f}" for key in ("start", "plan", "merge"))])
    columns = ("heads, clients", "heads", "whole state", "of which bank", "resident", "highest, resident")
    return table((*columns, "start, s", "plan, s", "merge, s"), rows)


# ---- the card --------------------------------------------------------------------------------------------------------


def card(results: Mapping[Case, Result], options: argparse.Namespace, server: str) -> str:
    """The whole result as Markdown."""
    facts = machine(next(iter(results.values())).path)
    parts = [
        f"""\
# pFedLA: dense and factorised heads

{options.rounds} rounds, seeds {", ".join(map(str, options.seeds))}; CIFAR-10, {CLIENTS} clients, 300 images each, \
scaled to 16 x 16 pixels (120 to train on, 60 to validate, 120 to test), LeNet, batch 32, SGD 0.01 with momentum 0.9, \
5 local epochs; all else, the hypernetworks' learning rate 1 too, as by default. The setup was chosen with seed 10, by \
what dense heads gain over `local`; an earlier one with 600 images and 3 epochs had also been run with ranks 4, 8 and \
16 (60.2, 60.6 and 59.8 in the closing round; dense 60.3, local 58.9). Nothing was tuned for factorised heads. \
`--backend cohort`, one thread, beside other work, which the seconds below are to be read with.
{facts}

Accuracy in percent, mean over clients and the last {LAST} training rounds, then mean ± standard deviation over seeds. \
*Before* is the model that the server sent, *after* the same after local training. The last column is paired by seed, \
with Student's interval."""
    ]
    for split, title in SPLITS.items():
        if not any(case.split == split for case in results):
            continue
        parts += [f"## {title}", accuracies(results, split), differences(results, list(METHODS), split, LAST, BASES)]
        parts.append(over_rounds(results, list(METHODS), split, options.rounds))
        parts.append(f"Mean over layer groups of the weights of the last {LAST} rounds:\n\n{selves(results, split)}")
    if server:
        parts.append(
            f"## The server\n\nMiB, and seconds with one thread, with the four layer groups of the digits network "
            f"(13,706 parameters), rank 8, and {COHORT} clients in the cohort, third round. *Resident* is what the "
            "process holds when all clients are there, *highest* the most until the end of the third round, models and "
            f"uploads of the cohort included.\n\n{server}"
        )
    return "\n\n".join(parts)


def main() -> None:
    """Parse the command line, run, and print and write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=CIFAR10, help="folder with CIFAR-10 as Parquet files")
    parser.add_argument("--rounds", type=int, default=40, help="default %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default %(default)s")
    parser.add_argument("--splits", nargs="+", choices=list(SPLITS), default=list(SPLITS), help="default: both")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 10000], help="clients of the server")
    parser.add_argument("--dense", type=int, default=1000, help="most clients that dense heads are measured with")
    parser.add_argument("--folder", type=Path, help="where the runs go and are found again (default: a temporary one)")
    parser.add_argument("--card", type=Path, help="a file for the result")
    parser.add_argument("--measure", nargs=2, metavar=("HEAD", "CLIENTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], int(options.measure[1]))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        cases = [Case(split, method, seed) for seed in options.seeds for split in options.splits for method in METHODS]
        cases.sort(key=lambda case: case.method == "local")  # what is to be compared comes first
        results = run_all(cases, options.rounds, options.data.resolve(), folder)
        publish(card(results, options, servers(options.sizes, options.dense)), options.card)


if __name__ == "__main__":
    main()
