"""What the benchmarks share: a simulation watched from outside, the images, and tables in Markdown."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the project need not be installed

from fedham_flwr.data.clients import open_partition  # noqa: E402
from fedham_flwr.settings import Value, parse  # noqa: E402

CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10"
POLL = 0.02
"""Seconds between two looks at the results of a running simulation."""


@dataclass(frozen=True)
class Line:
    """One line of rounds.jsonl, the moment at which it was there, and the process that wrote it."""

    at: float
    server: int
    record: Mapping[str, Any]


def simulate(
    settings: Mapping[str, Value], clients: int, folder: Path, options: Sequence[str] = ("--engine", "one-by-one")
) -> Iterator[Line]:
    """Run a federation in a process of its own, and give the training rounds as they end.

    Args:
        settings: those that differ from the defaults.
        clients: how many.
        folder: an empty one, for the results and the log.
        options: which backend, as on the command line.

    Raises:
        SystemExit: the run failed.
    """
    text = " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
    command = [sys.executable, str(ROOT / "run_simulation.py"), *options]
    command += ["--num-supernodes", str(clients), "--results-dir", str(folder / "results"), "-c", text]
    log = folder / "log.txt"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT) as process:
        try:
            for line in _follow(process, folder / "results"):
                if line.record["kind"] == "train":
                    yield line
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
    if process.returncode:
        raise SystemExit(f"the simulation ended with {process.returncode}:\n{log.read_text()[-3000:]}")


def _follow(process: subprocess.Popen[bytes], results: Path) -> Iterator[Line]:
    seen, running = 0, True
    while running:
        running = process.poll() is None  # asked first, so that what is written last is read
        for file in results.glob("*/*/rounds.jsonl"):
            whole = file.read_text().rpartition("\n")[0].splitlines()
            for text in whole[seen:]:
                yield Line(time.perf_counter(), process.pid, json.loads(text))
            seen = len(whole)
        time.sleep(POLL)


def workers(server: int) -> list[int]:
    """The Ray workers that run clients: those below this process, oldest first."""
    parents, actors = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # a process may end while it is looked at
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().startswith(b"ray::ClientAppActor"):
                actors.append(int(folder.name))
    return sorted(actor for actor in actors if server in _ancestors(actor, parents))


def _ancestors(process: int, parents: Mapping[int, int]) -> Iterator[int]:
    while process in parents:
        process = parents[process]
        yield process


def source(given: Path | None, images: int | None, folder: Path) -> Path:
    """The folder with the images: the one given, or CIFAR-10, or random images of its shape that are written here.

    Args:
        given: what the user asked for.
        images: number of random images to use in place of CIFAR-10.
        folder: where random images go.
    """
    if given or (CIFAR10.is_dir() and not images):
        return (given or CIFAR10).resolve()
    import datasets
    import numpy as np

    datasets.disable_progress_bars()
    rng, count = np.random.default_rng(0), images or 60_000
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(10)})
    data = datasets.Dataset.from_generator(
        lambda: ({"image": rng.integers(0, 256, (32, 32, 3), np.uint8), "label": i % 10} for i in range(count)),
        features=kinds,
        cache_dir=str(folder / "unpacked"),
    )
    target = folder / f"random-{count}"
    target.mkdir()
    data.to_parquet(target / "train.parquet")
    return target


def deal(settings: Mapping[str, Value], clients: int) -> list[int]:
    """Training samples of each client. Decodes the images, which is then no part of what is measured."""
    chosen = parse(settings).data()
    return [open_partition(chosen, number, clients).counts()["train"] for number in range(clients)]


def machine(folder: Path) -> str:
    """The processor, and the versions of a run whose results are below this folder."""
    cpu, info = "unknown processor", Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    if found := re.search(r"model name\s*: (.*)", flags):
        cpu = found[1]
    native = "with" if re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags) else "without"
    facts = json.loads(next(folder.glob("**/environment.json")).read_text())
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", "torch", "flwr", "ray") if name in facts)
    commit = str(facts.get("commit", "unknown"))
    commit = commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    return f"{cpu}, {os.cpu_count()} cores, {native} native bfloat16; {versions}; commit {commit}; {today}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the columns aligned: the first to the left, the others to the right."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True))] for r in (head, *rows)
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation over seeds (divided by one less than their number); of one seed there is none."""
    std = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{std}"


def publish(text: str, card: Path | None) -> None:
    """Print the result, and write it to the card's file if there is to be one."""
    print(f"\n{text}")
    if card is not None:
        card.parent.mkdir(parents=True, exist_ok=True)
        card.write_text(text + "\n", encoding="utf-8")
