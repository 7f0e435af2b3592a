"""Two Ray nodes on one machine that share neither files nor processors nor a network. Slow, and for root on Linux."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAD, NEAR, OTHER, PORT = "10.199.7.1", "10.199.7.3", "10.199.7.2", 6399
RAY = str(Path(sys.executable).with_name("ray"))
APART = ["unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""Runs a command with a network, a file system and processes of its own, which end with it."""
CONFIG = 'strategy="fedper" device="cpu" checkpoint-every=1 samples-per-client=100'


def namespaces() -> bool:
    """Whether a process may be given a network and a file system of its own here."""
    tools = all(map(shutil.which, ("unshare", "nsenter", "ip", "taskset")))
    return tools and subprocess.run([*APART, "true"], check=False, capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two nodes need two processors"),
    pytest.mark.skipif(not namespaces(), reason="namespaces of its own are not given to this process"),
]


@dataclass
class Cluster:
    """Two nodes, of which the first is where the test is.

    Attributes:
        folder: the working directory, of which the other node sees another, empty one.
        environment: of a run.
        other: the process with which the other node ends.
        enter: a command that others follow, to run them at the other node.
    """

    folder: Path
    environment: dict[str, str]
    other: subprocess.Popen[bytes]
    enter: list[str]

    def lose(self) -> None:
        """End the other node at once, with all that runs there."""
        self.other.kill()
        self.other.wait()

    def run(self, *options: str) -> Path:
        """The directory of a run that ended well."""
        return finished(self.start(*options))

    def start(self, *options: str) -> subprocess.Popen[str]:
        """A run under way."""
        return started(self.folder, self.environment, "--ray-address", f"{HEAD}:{PORT}", *options)


def started(folder: Path, environment: dict[str, str], *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "run_simulation.py"), "--num-supernodes", "6", *options]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(run: subprocess.Popen[str], seen: str = "") -> Path:
    said = seen + run.communicate(timeout=400)[0]
    assert run.returncode == 0, said
    return Path(said.splitlines()[-1].removeprefix("results: "))


def sure(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def end(*processes: subprocess.Popen[Any]) -> None:
    """End processes with all that they started."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """One processor for each node; a pair of network devices is all that is between them."""
    short = tempfile.mkdtemp(prefix="r", dir="/tmp")  # paths of sockets must be short
    environment = {
        **os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "RAY_DISABLE_IMPORT_WARNING": "1",
    }  # fmt: skip
    other = subprocess.Popen([*APART, "sleep", "1000"])
    enter = ["nsenter", "-t", inner(other.pid), "--net", "--mount", "--pid"]
    nodes: list[subprocess.Popen[bytes]] = []

    def node(processor: str, within: list[str], *options: str) -> None:
        command = [*within, "taskset", "-c", processor, RAY, "start", "--num-cpus=1", "--block", *options]
        with (tmp_path / f"node-{processor}.log").open("wb") as log:
            nodes.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd="/", start_new_session=True)
            )

    try:
        sure(["ip", "link", "add", "fedham-a", "type", "veth", "peer", "name", "fedham-b", "netns", enter[2]])
        # The first node's address is not on the pair, which ends with the namespace of either end.
        for command in (
            f"addr add {HEAD}/32 dev lo scope global", f"addr add {NEAR}/24 dev fedham-a", "link set fedham-a up",
        ):  # fmt: skip
            sure(["ip", *command.split()])
        for command in (f"addr add {OTHER}/24 dev fedham-b", "link set fedham-b up", "link set lo up"):
            sure([*enter, "ip", *command.split()])
        for hidden in (str(tmp_path), short, "/dev/shm"):
            sure([*enter, "mount", "-t", "tmpfs", "tmpfs", hidden])
        first, second = map(str, sorted(os.sched_getaffinity(0))[:2])
        node(
            first, [], "--head", f"--node-ip-address={HEAD}", f"--port={PORT}", f"--temp-dir={short}",
            "--include-dashboard=false",
        )  # fmt: skip
        there(tmp_path, environment, 1)
        node(second, enter, f"--address={HEAD}:{PORT}", f"--node-ip-address={OTHER}")
        there(tmp_path, environment, 2)
        yield Cluster(tmp_path, environment, other, enter)
    finally:
        other.kill()
        other.wait()
        end(*nodes)
        for command in ("link del fedham-a", f"addr del {HEAD}/32 dev lo"):
            subprocess.run(["ip", *command.split()], check=False, capture_output=True)
        shutil.rmtree(short, ignore_errors=True)


def inner(outer: int) -> str:
    """The process with number 1 of the processes that `unshare` has started, once it is there."""
    for _ in range(100):
        if found := Path(f"/proc/{outer}/task/{outer}/children").read_text().split():
            return found[0]
        time.sleep(0.1)
    raise AssertionError("no process was started")


def there(folder: Path, environment: dict[str, str], nodes: int) -> None:
    """Wait until so many nodes are there."""
    code = f"import ray, sys; ray.init('{HEAD}:{PORT}', logging_level='error'); sys.exit(len(ray.nodes()) != {nodes})"
    ask = [sys.executable, "-c", code]
    for _ in range(20):
        if not subprocess.run(ask, env=environment, cwd=folder, check=False, capture_output=True).returncode:
            return
        time.sleep(1)
    logs = "\n".join(file.read_text() for file in folder.glob("node-*.log"))
    raise AssertionError(f"{nodes} nodes are not there: {logs}")


def summary(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


def test_two_nodes_that_share_nothing_give_what_one_gives(cluster: Cluster) -> None:
    """With cohorts of three of six on two workers clients change their node, and what they keep goes with them."""
    config = f"{CONFIG} num-server-rounds=4 fraction-train=0.5"
    both = cluster.run("-c", config)
    alone = finished(started(cluster.folder, cluster.environment, "--num-workers", "2", "-c", config))
    assert summary(both)["digest"] == summary(alone)["digest"]
    assert summary(both)["engine"]["workers"] == 2
    assert summary(both)["failures"] == 0
    names = {f"{client}.safetensors" for client in range(6)}
    for folder in ("clients", "model", "checkpoints/round-00004/clients"):
        assert {file.name for file in (both / folder).glob("*.safetensors")} == names, folder
    seen = subprocess.run([*cluster.enter, "ls", str(cluster.folder)], capture_output=True, text=True, check=True)
    assert seen.stdout.split() == ["cache"], "the other node has seen files of this one"


def test_a_node_that_dies_costs_nothing_and_its_clients_go_on_elsewhere(cluster: Cluster) -> None:
    run, said = cluster.start("-c", f"{CONFIG} num-server-rounds=40"), ""
    assert run.stdout is not None
    for line in run.stdout:
        said += line
        if line.startswith("round 5/"):
            cluster.lose()
            break
    left = finished(run, said)
    told = records(left)
    assert summary(left)["num-rounds"] == 40
    assert summary(left)["engine"]["workers"] == 1
    assert [(record["restarted"], record["failures"]) for record in told] == [([], [])] * 41
    assert not any(record["ages"] for record in told), "a client has gone on from an older state"
    assert len(list((left / "checkpoints" / "round-00040" / "clients").iterdir())) == 6
