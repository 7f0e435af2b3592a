"""The server's bank of models in a file beside one in memory: seconds of a round, and memory.

    python benchmarks/bank_on_disk.py --card bank-on-disk.md     # 10,000 clients of 50,000 scalars, 100 in a round
    python benchmarks/bank_on_disk.py --quick                    # small: does it run?

A round is what pFedLA's server does with the bank: the mixtures of the cohort, then the inner products of what training
changed with every model, and the new models' way into the bank. Each case is a process of its own. "By columns" is a
file that is gone through as a bank in memory is, which is how it would be without core/disk.py. Cold: the file is put
out of the system's cache before each of the two halves of a round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import machine, publish, table

PLACES = ("memory", "file", "file, by columns")


def measure(place: str, clients: int, scalars: int, cohort: int, top: int, cold: bool, folder: str) -> dict[str, Any]:
    """Seconds and MB of the fastest of three rounds of one case."""
    import torch

    from fedham_flwr.core.arrays import Storage
    from fedham_flwr.core.parameters import LayerGroup, Manifest
    from fedham_flwr.mixing.pool import Pool

    torch.set_num_threads(1)
    manifest = Manifest((LayerGroup("fc", ("w",)),), {"w": (scalars,)}, {"w": torch.float32})
    draw = torch.Generator().manual_seed(0)
    storage = Storage(Path(folder), 0.0 if place.startswith("file") else float("inf"))
    uploads = {str(i * clients // cohort): {"w": torch.randn(scalars, generator=draw)} for i in range(cohort)}
    weights = torch.rand(cohort, 1, clients, generator=draw)
    if top:
        weights = torch.where(weights >= weights.topk(top).values[..., -1:], weights, 0.0)
    weights /= weights.sum(-1, keepdim=True)
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest point so far
    before, began = resident("VmRSS"), time.perf_counter()
    pool = Pool(manifest, {"w": torch.zeros(scalars)}, torch.device("cpu"), storage)
    pool.add([str(i) for i in range(clients)])
    for row in pool.bank.arrays["fc"]:
        row.normal_(generator=draw)
        pool.bank._arrays.release()
    filled = time.perf_counter() - began
    if place == "file, by columns":
        pool.bank._arrays.on_disk = False
    seconds = []
    for _ in range(3):
        if cold:
            forget(pool)
        at = time.perf_counter()
        mixed = pool.mixtures(list(uploads), weights)
        half = time.perf_counter() - at
        del mixed
        if cold:
            forget(pool)
        at = time.perf_counter()
        pool.absorb(uploads, weights)
        seconds.append((half, time.perf_counter() - at))
    mix, absorb = (min(times) for times in zip(*seconds, strict=True))
    return {"filled": filled, "mix": mix, "absorb": absorb, "peak": resident("VmHWM") - before}


def forget(pool: Any) -> None:
    """Put the file out of the system's cache."""
    pool.bank._arrays.release()
    for rows in pool.bank._arrays._files.values():
        os.fsync(rows._file.fileno())
        os.posix_fadvise(rows._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident(what: str) -> float:
    """MB of this process: VmRSS now, VmHWM at the highest."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{what}:")) / 1000


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--scalars", type=int, default=50_000, help="of one model (default %(default)s)")
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--top-k", type=int, nargs="+", default=[0, 10], help="weights of each client; 0: all")
    parser.add_argument("--folder", type=Path, help="where the file lies (default: the system's for temporary files)")
    parser.add_argument("--quick", action="store_true", help="200 clients of 5,000 scalars, 10 in a round")
    parser.add_argument("--card", type=Path, metavar="FILE", help="write the result here too")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a case as JSON, in a process of its own
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(*json.loads(given.one))))
        return
    if given.quick:
        given.clients, given.scalars, given.cohort = 200, 5_000, 10
    lines = []
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        for top in given.top_k:
            for place in PLACES:
                for cold in (False, True) if place != "memory" else (False,):
                    case = json.dumps([place, given.clients, given.scalars, given.cohort, top, cold, name])
                    done = subprocess.run(
                        [sys.executable, __file__, "--one", case], capture_output=True, text=True, check=False
                    )
                    if done.returncode:
                        raise SystemExit(f"{case}: ended with {done.returncode}\n{done.stderr[-3000:]}")
                    found = json.loads(done.stdout)
                    took = [f"{found[part]:.2f}" for part in ("mix", "absorb")]
                    where = place + (", cold" if cold else "")
                    lines.append([where, str(top or "all"), *took, f"{found['peak']:,.0f}"])
                    print(lines[-1], flush=True)
        (Path(name) / "environment.json").write_text(json.dumps(versions()))
        publish(card(given, lines, machine(Path(name))), given.card)


def card(given: argparse.Namespace, lines: list[list[str]], facts: str) -> str:
    """The result as Markdown."""
    size = given.clients * given.scalars * 4 / 1e9
    return "\n".join(
        [
            "# The bank on disk",
            "",
            f"{given.clients:,} models of {given.scalars:,} scalars ({size:.2g} GB); {given.cohort} in a round.",
            facts,
            "",
            table(("bank", "weights", "mix, s", "absorb, s", "memory, MB"), lines),
            "",
            "Seconds: the fastest of three rounds. Memory: the highest resident size above that before.",
            "Weights: how many of a client are not 0. By columns: the file gone through as in memory. Cold: read",
            "from the disk each time.",
        ]
    )


def versions() -> dict[str, object]:
    """What the card says of the environment."""
    from fedham_flwr.reporting.environment import environment_facts

    return environment_facts("cpu", datetime.now(UTC))


if __name__ == "__main__":
    main()
