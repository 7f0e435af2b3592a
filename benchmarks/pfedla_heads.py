"""What the server holds for pFedLA's dense heads and for factorised ones.

    python benchmarks/pfedla_heads.py --card cards/pfedla_heads.md
    python benchmarks/pfedla_heads.py --sizes 100                # does it run?

A round of 100 clients out of N with uploads that are noise and the four layer groups of the digits network, in a
process of its own for each head and N. How well they learn whom to mix is compared by `studies/pfedla-heads.toml`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import publish, table
from server_step import resident

COHORT = 100
TITLE = f"""\
# The server of pFedLA: dense and factorised heads

MiB, and seconds with one thread, with the four layer groups of the digits network (13,706 parameters), rank 8, and
{COHORT} clients in the cohort, third round. *Resident* is what the process holds when all clients are there, *highest*
the most until the end of the third round, models and uploads of the cohort included.
"""


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


def main() -> None:
    """Parse the command line, measure, and print and write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 10000], help="clients of the server")
    parser.add_argument("--dense", type=int, default=1000, help="most clients that dense heads are measured with")
    parser.add_argument("--card", type=Path, help="a file for the result")
    parser.add_argument("--measure", nargs=2, metavar=("HEAD", "CLIENTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], int(options.measure[1]))))
        return
    publish(f"{TITLE}\n{servers(options.sizes, options.dense)}", options.card)


if __name__ == "__main__":
    main()
