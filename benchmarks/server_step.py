"""The server's step of methods that mix models beside the plain matrix products that it cannot do without.

    python benchmarks/server_step.py --card server-step.md          # of pFedLA
    python benchmarks/server_step.py --clients 100 --top-k 0 10     # also with the 10 largest weights only
    python benchmarks/server_step.py --methods pfedla fedham amn    # fedham: with the transport `mediated`

A step is everything the server computes in a round of N clients that all take part, with the model `cnn`: the mixing
weights, the mixed models, the inner products of what training changed with every model, what pFedLA's hypernetworks and
AMN's meta-models learn from these, the projections of the new models (FedHAM, AMN), and the new models' way into the
bank. Messages are no part of it, nor is what clients compute. `--limit` is a program whose function `w2` does the two
matrix products over the bank and the update of the hypernetworks on preallocated arrays, and nothing else. Both run in
this process, taking turns; each pair gives one ratio.

Memory is what the process takes at its highest during a step beyond what it took before the bank was made, as a
multiple of the bank and the uploads of the cohort.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from common import ROOT, machine, publish, table

LIMIT = ROOT.parent / "shared" / "bench" / "limit.py"
SHAPE, CLASSES = (3, 32, 32), 10
METHODS = ("pfedla", "fedham", "amn")
UNEQUAL = {"hypernetworks/heads.bias": 1.0, "meta/key": 0.1, "meta/key2": 0.1}
"""Parts of the server's state that make all weights equal while they are 0, and the scale of noise for them."""


# ---- one number of clients, in a process of its own ------------------------------------------------------------------


def measure(limit: ModuleType | None, method: str, clients: int, top_k: int, repeats: int) -> dict[str, Any]:
    """Seconds of each of our steps and of the limit's, taking turns, and the memory of a step."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    memory, strategy = step_memory(method, clients, top_k), build(method, clients, top_k)
    ours, limits = [], []
    uploads, answers = random_uploads(strategy), random_answers(strategy)
    for turn in range(repeats):
        # Each program's turn starts with a step that warms up: the other one has used the memory meanwhile.
        _, timed = (step(strategy, answers, uploads, 2 * turn + at) for at in (2, 3))
        ours.append(timed)
        limits += [sum(seconds[0] for seconds in limit.w2(clients, 1))] if limit else []
    return {"method": method, "clients": clients, "top-k": top_k, "ours": ours, "limit": limits, **memory}


def step_memory(method: str, clients: int, top_k: int) -> dict[str, float]:
    """MiB of the bank, of the uploads, and of the highest point of a step above what was there before the bank."""
    small = build(method, 2, top_k)
    step(small, random_answers(small), random_uploads(small), 1)  # loads what a step of any size needs
    before = resident("VmRSS")
    strategy = build(method, clients, top_k)
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest point so far
    send(strategy, random_answers(strategy), 1)
    uploads = random_uploads(strategy)
    receive(strategy, uploads, 1)
    size = sum(t.nbytes for t in uploads["0"].params.values()) * clients / 2**20
    return {"bank": size, "uploads": size, "peak": resident("VmHWM") - before}


def resident(what: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at the highest."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{what}:")) / 1024


def build(method: str, clients: int, top_k: int) -> Any:
    """The server half with all clients enrolled, as after some rounds: no two weights are equal."""
    import torch

    from fedham_flwr import models
    from fedham_flwr.core.parameters import Manifest, read
    from fedham_flwr.federation.contract import Task
    from fedham_flwr.server_app import build_strategy
    from fedham_flwr.settings import Value, parse

    network = models.build("cnn", SHAPE, CLASSES, 0)
    manifest = Manifest.of(network)
    chosen: dict[str, Value] = {"strategy": method, "device": "cpu", "pfedla.top-k-peers": top_k}
    chosen |= {"pfedla.hypernetwork-learning-rate": 1e-6, "amn.learning-rate": 1e-6}  # for uploads that are noise
    settings = parse({**chosen, "fedham.transport": "mediated"})
    strategy = build_strategy(settings, manifest, read(network, manifest.names()), Task(SHAPE, CLASSES))
    strategy.add_clients(tuple(map(str, range(clients))))
    draw = torch.Generator().manual_seed(0)
    for name, tensor in strategy.state_dict().items():
        if name in UNEQUAL:
            tensor.copy_(torch.randn(tensor.shape, generator=draw).mul_(UNEQUAL[name]))
    return strategy


def random_uploads(strategy: Any) -> dict[str, Any]:
    """A trained model of every client, each tensor in memory of its own, as they come off the wire."""
    import torch

    from fedham_flwr.federation.messages import Upload

    draw, shapes = torch.Generator().manual_seed(1), strategy.manifest.shapes
    return {
        client: Upload(client, {n: torch.empty(shapes[n]).normal_(0, 0.05, generator=draw) for n in shapes}, 1, ())
        for client in strategy.bank.clients
    }


def random_answers(strategy: Any) -> dict[str, Any]:
    """The rows of mixing weights with which the clients answer FedHAM's questions."""
    import torch

    from fedham_flwr.federation.messages import Upload

    draw, clients = torch.Generator().manual_seed(2), strategy.bank.clients
    rows = torch.randn(len(clients), len(strategy.bank.groups), len(clients), generator=draw).softmax(-1)
    return {client: Upload(client, {}, 1, (), {}, {"row": row}) for client, row in zip(clients, rows, strict=True)}


def send(strategy: Any, answers: dict[str, Any], number: int) -> Any:
    """The server's work before the clients train."""
    clients = strategy.bank.clients
    if strategy.questions(number, clients):
        strategy.answered(number, answers)
    return strategy.plan(number, clients)


def receive(strategy: Any, uploads: dict[str, Any], number: int) -> None:
    """The server's work after the clients have trained, and the weights that are recorded."""
    strategy.mixing_weights(number, strategy.bank.clients, uploads)
    strategy.merge(number, uploads)


def step(strategy: Any, answers: dict[str, Any], uploads: dict[str, Any], number: int) -> tuple[float, float]:
    """Seconds of the server's work before the clients train, and after it."""
    began = time.perf_counter()
    starts = send(strategy, answers, number)
    sent = time.perf_counter()
    del starts
    back = time.perf_counter()
    receive(strategy, uploads, number)
    return sent - began, time.perf_counter() - back


# ---- the comparison -------------------------------------------------------------------------------------------------


def load(program: Path) -> ModuleType | None:
    """The limit program as a module; None if it is not there."""
    if not program.is_file():
        return None
    spec = importlib.util.spec_from_file_location("limit", program)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(found: dict[str, Any]) -> list[str]:
    """A line of the table."""
    totals = [plan + merge for plan, merge in found["ours"]]
    before = statistics.median(plan for plan, _ in found["ours"]) / statistics.median(totals)
    ratio = "-"
    if found["limit"]:
        ratios = sorted(ours / limit for ours, limit in zip(totals, found["limit"], strict=True))
        ratio = f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
    memory = found["peak"] / (found["bank"] + found["uploads"])
    kept = str(found["top-k"] or "all")
    return [
        found["method"],
        str(found["clients"]),
        kept,
        ratio,
        f"{before:.0%}",
        f"{memory:.2f}",
        f"{found['bank']:.0f}",
    ]


def card(results: Sequence[dict[str, Any]], repeats: int, facts: str) -> str:
    """The result as Markdown."""
    head = ("clients", "weights kept", "time / matrix products", "before training", "peak memory", "bank, MiB")
    return "\n".join(
        [
            f"# The server's step of {', '.join(dict.fromkeys(found['method'] for found in results))}",
            "",
            f"Model cnn (878,538 parameters), every client in the cohort; median of {repeats} pairs [lowest, highest].",
            facts,
            "",
            table(("method", *head), [row(found) for found in results]),
            "",
            "Time: weights, mixing, inner products, update, projections and bank, as a multiple of the two matrix",
            "products over the bank and the update of pFedLA's hypernetworks in a program that does nothing else,",
            "keeps the mixed models from one to the other, and always takes all weights. `fedham` is the transport",
            "`mediated`, without what its clients compute. Before training: the share of the step that comes before",
            "the clients train. Peak memory: of a step, as a multiple of the bank and the cohort's uploads.",
        ]
    )


def main() -> None:
    """Measure every method and number of clients and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["pfedla"], help="default %(default)s")
    parser.add_argument("--clients", type=int, nargs="+", default=[20, 100, 500])
    parser.add_argument("--top-k", type=int, nargs="+", default=[0, 10], help="weights that pfedla keeps; 0: all")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of steps (default %(default)s)")
    parser.add_argument("--limit", type=Path, default=LIMIT, help="the program to compare with")
    parser.add_argument("--card", type=Path, help="a file for the result")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a case as JSON, in a process of its own
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(load(given.limit), *json.loads(given.one))))
        return
    results = []
    for method, clients in [(method, clients) for method in given.methods for clients in given.clients]:
        for top_k in given.top_k if method == "pfedla" else [0]:
            case = json.dumps([method, clients, top_k, given.repeats])
            command = [sys.executable, __file__, "--one", case, "--limit", str(given.limit)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{method}, {clients} clients: ended with {done.returncode}\n{done.stderr[-3000:]}")
            results.append(json.loads(done.stdout))
            print(row(results[-1]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "environment.json").write_text(json.dumps(versions()))
        publish(card(results, given.repeats, machine(Path(folder))), given.card)


def versions() -> dict[str, object]:
    """What the card says of the environment."""
    from fedham_flwr.reporting.environment import environment_facts

    return environment_facts("cpu", datetime.now(UTC))


if __name__ == "__main__":
    main()
