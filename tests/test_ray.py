"""The same apps under Ray, under `flwr run`, and on real data. Slow: each starts processes that import torch."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture
def environment(tmp_path: Path, cache_dir: Path) -> dict[str, str]:
    """An environment in which Flower and the caches stay within the test's folder, and no network can be reached."""
    given = {
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "XDG_CACHE_HOME": str(cache_dir),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "no_proxy": "127.0.0.1,localhost",
    }
    return os.environ | given


@pytest.fixture
def simulate(tmp_path: Path, environment: dict[str, str]) -> Callable[..., dict[str, Any]]:
    """Run run_simulation.py in a process of its own, and return the summary it leaves."""

    def run(backend: str, config: str, clients: int = 4) -> dict[str, Any]:
        # Bits are compared with one client after the other, which a cohort as one program gives to rounding.
        engine = ["--engine", "one-by-one"] if backend == "ray" else []
        command = [sys.executable, str(ROOT / "run_simulation.py"), "--backend", backend, *engine, "-c", config]
        command += ["--num-supernodes", str(clients), "--results-dir", str(tmp_path / backend)]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1].startswith("results: /")
        return summary(done.stdout)

    return run


def summary(output: str) -> dict[str, Any]:
    """The summary of the run whose output this is."""
    (path,) = re.findall(r"^results: (.+)$", output, flags=re.MULTILINE)
    return json.loads((Path(path) / "summary.json").read_text())


@pytest.mark.parametrize(
    "method",
    [
        '"fedavg"',
        '"fedper" novel-clients=1',
        '"pfedla"',
        '"fedham" fedham.transport="peers"',
        '"fedham" fedham.transport="mediated"',
        '"fedtp" model="vit" vit.depth=1 vit.width=32 novel-clients=1 novel-turns=2',
        '"fedtransfer" fedtransfer.attention="cbam" novel-clients=1',
    ],
)
def test_ray_and_one_process_give_the_same_digest(simulate: Callable[..., dict[str, Any]], method: str) -> None:
    config = f"strategy={method} num-server-rounds=2 fraction-train=0.5 evaluate-every=1"
    under_ray, in_process = simulate("ray", config, clients=5), simulate("in-process", config, clients=5)
    assert under_ray["digest"] == in_process["digest"]
    assert under_ray["bytes"] == in_process["bytes"]
    assert under_ray["failures"] == 0


def test_a_personal_stage_of_twenty_clients_is_one_exchange(
    simulate: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """It starts from a run of another method, and asks all clients at once."""
    simulate("ray", 'strategy="fedavg" num-server-rounds=1 classes-per-client=4', clients=20)
    (start,) = tmp_path.glob("ray/fedavg/*")
    stage = 'strategy="fedtransfer" fedtransfer.attention="cbam" classes-per-client=4'
    done = simulate("ray", f'{stage} resume="{start}"', clients=20)
    (path,) = tmp_path.glob("ray/fedtransfer/*")
    (record,) = map(json.loads, (path / "rounds.jsonl").read_text().splitlines())
    assert (record["kind"], record["round"], record["replies"], record["bytes-up"]) == ("personal", 1, 20, 0)
    assert len(list((path / "model").glob("*.safetensors"))) == 20
    assert (done["num-rounds"], done["failures"]) == (0, 0)


@pytest.mark.parametrize("engine", ["cohort", "one-by-one"])
def test_an_interrupt_under_ray_leaves_results_and_no_process(
    tmp_path: Path, environment: dict[str, str], engine: str
) -> None:
    command = [sys.executable, str(ROOT / "run_simulation.py"), "--engine", engine, "--num-supernodes", "3"]
    command += ["-c", "num-server-rounds=10000"]
    lines: list[str] = []
    # A shell lets what it starts in the background ignore Ctrl-C, and so would this run.
    heeding: dict[str, Any] = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **heeding
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            lines.append(line)
            if line.startswith("round 2/"):
                run.send_signal(signal.SIGINT)
    assert run.returncode == 130, "".join(lines)
    (run_folder,) = (tmp_path / "results" / "fedper").iterdir()
    assert lines[-1].startswith(f"interrupted; what there is so far is in {run_folder}; ")
    assert ("to go on after round" in lines[-1]) == (run_folder / "checkpoints").exists()
    left = summary("".join(lines))
    assert left["num-rounds"] >= 2
    assert left["error"].startswith("KeyboardInterrupt")


DYING = """
import os, sys
from pathlib import Path
from fedham_flwr.client_app import make_client_app
from fedham_flwr.server_app import make_server_app
from fedham_flwr.runners.ray import run_under_ray

given = {"strategy": "fedper", "num-server-rounds": 4, "results-dir": sys.argv[1], "device": "cpu"}
kills, wanted = Path(sys.argv[1] + "-kills"), int(sys.argv[2])

def app(message, context):
    done = kills.read_text() if kills.exists() else ""
    if message.metadata.group_id == "2" and context.node_config["partition-id"] == 1 and len(done) < wanted:
        kills.write_text(done + "x")
        os._exit(1)
    return make_client_app(given)(message, context)

run_under_ray(make_server_app(given), app, 4)
"""


@pytest.mark.parametrize("kills", [1, 2])
def test_a_worker_killed_once_does_its_work_again_and_killed_again_is_one_failure(
    tmp_path: Path, environment: dict[str, str], kills: int
) -> None:
    command = [sys.executable, "-c", DYING, str(tmp_path / "results"), str(kills)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "results-kills").read_text() == "x" * kills
    (path,) = (tmp_path / "results").glob("*/*")
    records = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    failed = [(record["round"], [failure["client"] for failure in record["failures"]]) for record in records]
    assert failed == [(1, []), (2, ["1"] if kills == 2 else []), (3, []), (4, []), (5, [])]
    assert sorted(file.stem for file in (path / "model").glob("*.safetensors")) == ["0", "1", "2", "3"]


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[None]:
    """Ends, by its process id, the SuperLink that `flwr run` starts in the test's FLWR_HOME and leaves running."""
    yield
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if any("flower-superlink" in word for word in command) and any(str(tmp_path) in word for word in command):
            os.kill(int(entry.name), signal.SIGTERM)


def flwr_run(environment: dict[str, str], *options: str) -> str:
    """Output of `flwr run` on this project, started from a fresh local SuperLink."""
    command = [str(Path(sys.executable).parent / "flwr"), "run", str(ROOT), "--stream", *options]
    done = subprocess.run(
        command, env=environment, cwd=environment["FLWR_HOME"], capture_output=True, text=True, timeout=400, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.usefixtures("superlink")
def test_flwr_run_gives_the_digest_of_the_other_runners(
    tmp_path: Path, environment: dict[str, str], simulate: Callable[..., dict[str, Any]]
) -> None:
    Path(environment["FLWR_HOME"]).mkdir()
    config = "num-server-rounds=2"
    output = flwr_run(
        environment,
        "--federation-config", "num-supernodes=4 client-resources-num-cpus=1",
        "-c", f'{config} results-dir="{tmp_path / "flwr-results"}"',
    )  # fmt: skip
    assert summary(output)["digest"] == simulate("in-process", config, clients=4)["digest"], output
    # Flower refuses a key that pyproject.toml does not have, without naming it; a value gets as far as the app.
    assert "results: " not in flwr_run(environment, "--federation-config", "num-supernodes=4", "-c", "momentm=0.5")
    wrong = flwr_run(environment, "--federation-config", "num-supernodes=4", "-c", "momentum=5.0")
    assert "settings: momentum=5.0: wanted less than 1" in wrong
    assert "Traceback" not in wrong, wrong


def test_one_round_on_cifar10(shared_data: Path, simulate: Callable[..., dict[str, Any]]) -> None:
    config = f'dataset="{shared_data / "cifar10"}" strategy="fedavg" partitioner="dirichlet"'
    done = simulate("ray", f"{config} num-server-rounds=1 batch-size=64", clients=10)
    entries = [entry for entry in done["final"] if (entry["split"], entry["metric"]) == ("test", "accuracy")]
    accuracy = {entry["phase"]: entry["weighted-mean"] for entry in entries}
    assert done["model"] == "cnn"
    assert accuracy["after"] > max(0.3, accuracy["before"])
