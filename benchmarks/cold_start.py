"""What a message costs before a client's own code runs: the start of a ClientApp process, and its first steps.

    python benchmarks/cold_start.py --card cold-start.md
    python benchmarks/cold_start.py --quick                # one process of each kind: does it run?

On real nodes Flower starts a process for each message. Here such processes, whose life is in `first_message.py`, take
turns with one that only imports Flower and torch, which any app with torch must. Each answers a training message of
the second round: digits, ten clients, the state of the first round on disk, data decoded. The files of all imported
modules are in the page cache; their byte code is there too (in a folder of this benchmark), or is nowhere and never
written, as in a virtual environment made by uv that its user may not write to.

The table is of the processor's time, since other programs disturb that least.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from common import ROOT, deal, machine, publish, table
from server_step import versions

from fedham_flwr.settings import Value, flatten, parse

if TYPE_CHECKING:
    from fedham_flwr.federation.rounds import RoundStrategy

CLIENTS = 10
BARE = "bare"
PARTS: Mapping[str, str] = {
    "python": "Python",
    "flower": "Flower's imports",
    "torch": "torch",
    "bundle": "the app's bundle: unpacked and checked",
    "imports": "our imports, and our dependencies'",
    "message": "the message out of its bytes",
    "settings": "settings",
    "data": "data opened",
    "model": "model built",
    "first step": "first training step",
    "further steps": "further steps",
    "first evaluation": "first evaluation",
    "further evaluations": "further evaluations",
    "state": "state read and written",
    "rest": "the rest",
    "reply": "the reply into its objects",
}


class Case(NamedTuple):
    """A kind of process: the strategy, or `BARE`, and whether the byte code is there."""

    what: str
    compiled: bool

    def __str__(self) -> str:
        return f"{'Flower and torch' if self.what == BARE else self.what}{'' if self.compiled else ', not compiled'}"


CASES = (
    Case(BARE, compiled=True),
    Case("fedper", compiled=True),
    Case("fedham", compiled=True),
    Case(BARE, compiled=False),
    Case("fedper", compiled=False),
)


class Life(NamedTuple):
    """Of one process: seconds on the wall and of the processor by part, and the processor's when it ended."""

    parts: Mapping[str, Sequence[float]]
    all: float

    @property
    def wall(self) -> float:
        """Until the reply is ready."""
        return sum(seconds[0] for seconds in self.parts.values())

    @property
    def busy(self) -> float:
        """The processor's until then."""
        return sum(seconds[1] for seconds in self.parts.values())

    @property
    def end(self) -> float:
        """The processor's after it."""
        return self.all - self.busy


# ---- what the processes are given ------------------------------------------------------------------------------------


def settings(strategy: str, folder: Path) -> dict[str, Value]:
    """All that differ from the defaults."""
    return {"strategy": strategy, "cache-dir": str(folder / "cache"), "device": "cpu"}


def prepare(strategy: str, folder: Path) -> None:
    """Run the first round in this process, and leave the first client's state and its message of the second.

    Args:
        strategy: the method.
        folder: a new one below that of the benchmark.
    """
    from flwr.app import ArrayRecord, ConfigRecord
    from flwr.common.serde import context_to_proto, message_to_proto

    from fedham_flwr.client_app import make_client_app
    from fedham_flwr.runners.in_process import InProcessGrid

    folder.mkdir()
    options = flatten(parse(settings(strategy, folder.parent)))
    deal(options, CLIENTS)
    nodes = [{"state-dir": str(folder / "state")}] * CLIENTS
    grid, server = InProcessGrid(make_client_app(options), CLIENTS, node_configs=nodes), server_half(options)
    server.aggregate_train(1, grid.send_and_receive(server.configure_train(1, ArrayRecord(), ConfigRecord(), grid)))
    messages = server.configure_train(2, ArrayRecord(), ConfigRecord(), grid)
    (mine,) = (message for message in messages if message.metadata.dst_node_id == server.setup.roster.nodes["0"])
    grid.push_messages([mine])
    context = grid.contexts[server.setup.roster.nodes["0"]]
    context.state.clear()  # a restarted SuperNode has none: all is in the state-dir
    context.run_config = dict(options)
    (folder / "message").write_bytes(message_to_proto(mine).SerializeToString())
    (folder / "context").write_bytes(context_to_proto(context).SerializeToString())
    (folder / "state").rename(folder / "state-before")


def server_half(options: Mapping[str, Value]) -> RoundStrategy:
    """The server half of the method, with all clients."""
    from fedham_flwr import models
    from fedham_flwr.core.parameters import Manifest, read
    from fedham_flwr.data.clients import open_partition
    from fedham_flwr.federation.contract import Task
    from fedham_flwr.server_app import build_strategy

    chosen = parse(options)
    data = open_partition(chosen.data(), 0, CLIENTS)
    network = models.build(chosen.model, data.shape, len(data.classes), chosen.seed, chosen.networks())
    manifest, task = Manifest.of(network), Task(data.shape, len(data.classes), training="cold-start")
    strategy = build_strategy(chosen, manifest, read(network, manifest.names()), task)
    strategy.add_clients(tuple(map(str, range(CLIENTS))))
    return strategy


def bundle(folder: Path) -> None:
    """The app as Flower sends it, and its id, version and hash."""
    from flwr.cli.build import build_fab_from_disk
    from flwr.cli.utils import get_sha256_hash
    from flwr.common.config import get_metadata_from_config, get_project_config

    (folder / "app.fab").write_bytes(build_fab_from_disk(ROOT))
    app = [*get_metadata_from_config(get_project_config(ROOT)), get_sha256_hash(folder / "app.fab")]
    (folder / "app.json").write_text(json.dumps(app))


# ---- the processes ---------------------------------------------------------------------------------------------------


def live(case: Case, folder: Path) -> Life:
    """One process.

    Raises:
        SystemExit: it failed.
    """
    here = folder / case.what
    if case.what != BARE:
        shutil.rmtree(here / "state", ignore_errors=True)
        shutil.copytree(here / "state-before", here / "state")
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = kept | {"FLWR_HOME": str(folder / "flower"), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / ("compiled" if case.compiled else "empty"))
    if not case.compiled:
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    before = used()
    what = BARE if case.what == BARE else "app"
    command = [sys.executable, "-P", str(Path(__file__).with_name("first_message.py")), what, str(here)]
    done = subprocess.run(
        [*command, str(time.monotonic())], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{case} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return Life(json.loads(done.stdout.splitlines()[-1]), used() - before)


def used() -> float:
    """The processor's seconds of all processes that this one has started and seen end."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(cases: Sequence[Case], repeats: int, folder: Path) -> dict[Case, list[Life]]:
    """All kinds of process in turns; the first turn, which writes the byte code, is not counted."""
    found: dict[Case, list[Life]] = {case: [] for case in cases}
    for turn in range(repeats + 1):
        for case in sorted(cases, reverse=bool(turn % 2)):
            life = live(case, folder)
            if turn:
                found[case].append(life)
    return found


# ---- the result ------------------------------------------------------------------------------------------------------


def over(values: Sequence[float]) -> str:
    """Median [lowest, highest] of ratios."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def totals(found: Mapping[Case, Sequence[Life]]) -> str:
    """The table of whole processes."""
    rows, best = [], Case(BARE, compiled=True)
    for case, lives in found.items():
        same = Case(BARE, case.compiled)
        seconds = [statistics.median(getattr(life, what) for life in lives) for what in ("busy", "wall", "end")]
        rows.append([str(case), *(f"{value:.2f}" for value in seconds)])
        for other, what in ((same, "busy"), (same, "all"), (best, "busy")):
            pairs = zip(lives, found[other], strict=True)
            rows[-1].append(over([getattr(own, what) / getattr(base, what) for own, base in pairs]))
    beside = ("beside Flower and torch", "the same, with the end", "beside these two compiled")
    return table(("process", "processor, s", "wall, s", "end, s", *beside), rows)


def by_part(found: Mapping[Case, Sequence[Life]]) -> str:
    """The table of the parts, in milliseconds of the processor."""
    rows = []
    for part, name in PARTS.items():
        rows.append([name])
        for lives in found.values():
            seconds = [life.parts[part][1] for life in lives if part in life.parts]
            rows[-1].append(f"{1000 * statistics.median(seconds):.1f}" if seconds else "-")
    return table(("part", *map(str, found)), rows)


def card(found: Mapping[Case, Sequence[Life]], files: int, size: int, facts: str) -> str:
    """The result as Markdown."""
    turns = len(next(iter(found.values())))
    return f"""\
# The start of a ClientApp process

A process for one training message of the second round; digits, {CLIENTS} clients, a bundle of {files} files and \
{size / 1024:.0f} KiB; one thread; median of {turns} processes of each kind, in turns.
{facts}

{totals(found)}

Processor: its seconds from the start of the process until the reply is ready, which takes "wall" seconds where other
programs run too. End: its seconds after that, for which nobody waits. Beside: the ratio to a process that imports
Flower's command and torch and no more, turn by turn, median [lowest, highest]; "with the end" of the whole processes.

{by_part(found)}

Milliseconds of the processor. The first turn of each kind is not counted. Not compiled: no byte code of any module is
on disk, and none is written."""


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="processes of each kind (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one process of each kind")
    parser.add_argument("--card", type=Path, metavar="FILE", help="write the result here too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in CASES:
            if case.what != BARE and not (folder / case.what).exists():
                prepare(case.what, folder / case.what)
                bundle(folder / case.what)
        found = measure(CASES, 1 if given.quick else given.repeats, folder)
        (folder / "environment.json").write_text(json.dumps(versions()))
        app = folder / "fedper" / "app.fab"
        with zipfile.ZipFile(app) as files:
            publish(card(found, len(files.namelist()), app.stat().st_size, machine(folder)), given.card)


if __name__ == "__main__":
    main()
