"""The server's step of FedTP's hypernetwork beside one plain PyTorch pass of the same network.

    python benchmarks/generator_step.py --card generator-step.md
    python benchmarks/generator_step.py --clients 10 --ranks 8 --repeats 3      # seconds instead of minutes

A step is the vector-Jacobian product and the update of all of the hypernetwork and of the cohort's embeddings with
momentum and weight decay, for the six layers of the model `vit` (1536 x 128 each). The plain pass is a network of
`torch.nn.Linear` with the same sizes: forward, backward and `torch.optim.SGD`, in whichever of its variants is fastest
here. Both run in one process, taking turns; each pair gives one ratio.

Memory is what the process takes at its highest while clients enrol and one step is made, beyond what it had with the
hypernetwork, its momentum and the clients' gradients.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import machine, publish, table

LAYERS, SHAPE = 6, (1536, 128)
VARIANTS: Mapping[str, Mapping[str, bool]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
ENROLLED, COHORT = (10, 1000), 10


# ---- one case, in a process of its own -------------------------------------------------------------------------------


def settings(rank: int) -> Any:
    """The method's defaults, with the paper's sizes."""
    from fedham_flwr.algorithms.fedtp import FedTPSettings

    # Low rates: the gradients are noise.
    return FedTPSettings(rank=rank, learning_rate=1e-3, embedding_learning_rate=1e-3)


def build(rank: int, clients: int, shape: tuple[int, int] = SHAPE) -> tuple[Any, dict[str, Any]]:
    """A hypernetwork, and gradients of the clients' tensors."""
    import torch

    from fedham_flwr.generating.generator import Generator

    draw = torch.Generator().manual_seed(0)
    base = {f"layers.{k}": torch.empty(shape).normal_(0, 0.05, generator=draw) for k in range(LAYERS)}
    slopes = {name: torch.empty(clients, *shape).normal_(0, 1e-4, generator=draw) for name in base}
    return Generator(settings(rank), base, draw, torch.device("cpu")), slopes


def enrol(rank: int, clients: int) -> tuple[Any, list[str]]:
    """Embeddings of so many clients, and their ids."""
    from fedham_flwr.core.seeding import torch_stream
    from fedham_flwr.generating.embeddings import Embeddings

    ids, table = list(map(str, range(clients))), Embeddings(settings(rank))
    table.add(ids, [torch_stream(0, "embedding", client=client) for client in ids])
    return table, ids


def plain_network(rank: int, clients: int) -> Any:
    """The hypernetwork of torch's modules; its parameters include the cohort's embeddings."""
    import torch
    from torch import nn

    chosen, size = settings(rank), math.prod(SHAPE)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.z = nn.Parameter(torch.randn(clients, chosen.embedding_dim))
            trunk: list[nn.Module] = [nn.Linear(chosen.embedding_dim, chosen.hidden_dim)]
            for _ in range(chosen.hidden_layers):
                trunk += [nn.ReLU(), nn.Linear(chosen.hidden_dim, chosen.hidden_dim)]
            self.trunk = nn.Sequential(*trunk)
            self.heads = nn.ModuleList(self.head() for _ in range(LAYERS))

        def head(self) -> nn.Module:
            if not rank:
                return nn.Linear(chosen.hidden_dim, size)
            return nn.Sequential(nn.Linear(chosen.hidden_dim, rank, bias=False), nn.Linear(rank, size))

        def forward(self) -> list[torch.Tensor]:
            codes = self.trunk(self.z)
            return [head(codes) for head in self.heads]

    return Plain()


def plain_pass(network: Any, slopes: Sequence[Any], variant: str) -> Callable[[], None]:
    """Forward, backward and a step of the optimiser, which is made here."""
    import torch

    chosen = settings(0)
    rule = {"lr": chosen.learning_rate, "momentum": chosen.momentum, "weight_decay": chosen.weight_decay}
    optimizer = torch.optim.SGD(network.parameters(), **rule, **VARIANTS[variant])

    def run() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(network(), slopes)
        optimizer.step()

    return run


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def fastest(network: Any, slopes: Sequence[Any]) -> str:
    """The optimiser's variant with the shortest of three passes after one that warms up."""
    best = {}
    for variant in VARIANTS:
        run = plain_pass(network, slopes, variant)
        run()
        best[variant] = min(seconds(run) for _ in range(3))
        network.zero_grad()
    return min(best, key=lambda variant: best[variant])


def measure(rank: int, clients: int, repeats: int, threads: int) -> dict[str, Any]:
    """Seconds of our steps, of generating, and of the plain passes, taking turns."""
    import torch

    torch.set_num_threads(threads)
    hypernetwork, slopes = build(rank, clients)
    embeddings, ids = enrol(rank, clients)
    network, flat = plain_network(rank, clients), [slope.flatten(1) for slope in slopes.values()]
    variant = fastest(network, flat)
    plain = plain_pass(network, flat, variant)

    def step() -> None:
        embeddings.step(ids, hypernetwork.step(embeddings.of(ids), slopes))

    works = {"step": step, "generate": lambda: hypernetwork.generate(embeddings.of(ids)), "plain": plain}
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            work()  # warms up: the others have used the memory meanwhile
            times[name].append(seconds(work))
    scalars = sum(tensor.numel() for tensor in hypernetwork.params.values())
    return {"rank": rank, "clients": clients, "scalars": scalars, "variant": variant, **times}


def memory(rank: int, enrolled: int, threads: int) -> dict[str, Any]:
    """MiB that enrolling the clients and a step of some of them take at the highest, and those of phi."""
    import torch

    torch.set_num_threads(threads)
    for small in (True, False):  # the first loads what a step of any size needs
        hypernetwork, slopes = build(rank, COHORT, (16, 8) if small else SHAPE)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest point so far
        embeddings, ids = enrol(rank, COHORT if small else enrolled)
        cohort = ids[:COHORT]
        embeddings.step(cohort, hypernetwork.step(embeddings.of(cohort), slopes))
    size = sum(tensor.nbytes for tensor in hypernetwork.params.values()) / 2**20
    return {"rank": rank, "enrolled": enrolled, "phi": size, "peak": resident("VmHWM") - before}


def resident(what: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at the highest."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{what}:")) / 1024


# ---- the comparison --------------------------------------------------------------------------------------------------


def alone(*case: object) -> dict[str, Any]:
    """A case's result, from a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case}: ended with {done.returncode}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def ratio(ours: Sequence[float], plain: Sequence[float]) -> str:
    """Median of the pairs' ratios [lowest, highest]."""
    ratios = sorted(a / b for a, b in zip(ours, plain, strict=True))
    return f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"


def row(found: Mapping[str, Any]) -> list[str]:
    """A line of the table of times."""
    both = [step + made for step, made in zip(found["step"], found["generate"], strict=True)]
    each = [1000 * statistics.median(found[what]) / found["clients"] for what in ("step", "generate", "plain")]
    return [
        str(found["rank"] or "dense"),
        str(found["clients"]),
        f"{found['scalars'] / 1e6:.1f}",
        ratio(found["step"], found["plain"]),
        ratio(both, found["plain"]),
        *(f"{one:.1f}" for one in each),
        found["variant"],
    ]


def card(times: Sequence[Mapping[str, Any]], peaks: Sequence[Mapping[str, Any]], repeats: int, facts: str) -> str:
    """The result as Markdown."""
    head = ["rank", "clients", "phi, M", "step / plain", "step and generation / plain"]
    head += ["step, ms a client", "generation", "plain", "its optimiser"]
    ranks = dict.fromkeys(found["rank"] for found in peaks)
    phi = {found["rank"]: f"{found['phi']:.0f}" for found in peaks}
    taken = {(found["rank"], found["enrolled"]): f"{found['peak']:.1f}" for found in peaks}
    rows = [[str(rank or "dense"), phi[rank], *(taken[rank, n] for n in ENROLLED)] for rank in ranks]
    return "\n".join(
        [
            "# The server's step of FedTP's hypernetwork",
            "",
            f"For the {LAYERS} layers of the model vit ({SHAPE[0]} x {SHAPE[1]} each); median of {repeats} pairs "
            "[lowest, highest].",
            facts,
            "",
            table(head, [row(found) for found in times]),
            "",
            "Step: the vector-Jacobian product and the update of all of phi and of the cohort's embeddings, with",
            "momentum and weight decay. Plain: forward, backward and optimiser of the same network of",
            "`torch.nn.Linear` with autograd and the fastest variant of `torch.optim.SGD`. Generation: the tensors",
            "that the clients are sent, which the plain pass makes on its way.",
            "",
            table(("rank", "phi, MiB", *(f"{n} enrolled" for n in ENROLLED)), rows),
            "",
            f"Memory in MiB, of a step of {COHORT} clients at its highest, beyond phi, its momentum and the clients'",
            "gradients; enrolling the clients is part of it.",
        ]
    )


def main() -> None:
    """Measure every rank and number of clients and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 20], help="of a cohort (default 10 20)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[0, 8, 32], help="of the heads; 0: dense")
    parser.add_argument("--repeats", type=int, default=7, help="pairs (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default %(default)s")
    parser.add_argument("--card", type=Path, help="a file for the result")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a case as JSON, in a process of its own
    given = parser.parse_args()
    if given.one:
        what, *case = json.loads(given.one)
        print(json.dumps(measure(*case) if what == "time" else memory(*case)))
        return
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    busy = f"{given.threads} threads; the load of other programs was {os.getloadavg()[0]:.1f} when it began."
    times, peaks = [], []
    for rank in given.ranks:
        for clients in given.clients:
            times.append(alone("time", rank, clients, given.repeats, given.threads))
            print(*row(times[-1]), sep=" | ", flush=True)
        peaks += [alone("memory", rank, enrolled, given.threads) for enrolled in ENROLLED]
        print(*peaks[-len(ENROLLED) :], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "environment.json").write_text(json.dumps(versions()))
        publish(card(times, peaks, given.repeats, f"{busy}\n{machine(Path(folder))}"), given.card)


def versions() -> dict[str, object]:
    """What the card says of the environment."""
    from fedham_flwr.reporting.environment import environment_facts

    return environment_facts("cpu", datetime.now(UTC))


if __name__ == "__main__":
    main()
