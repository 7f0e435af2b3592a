"""Own models and data, and a network of torchvision's: Ray, `flwr run` from an own app, and a real SuperNode. Slow."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_ray import superlink
from torch import nn

from fedham_flwr import load_model

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
pytestmark = pytest.mark.slow
__all__ = ["superlink"]

VALUES = 'task="own_task"'
LABELS = 'dataset="own_objects:tags" model="own_objects:linear" metrics="f1 auroc"'
RESNET = 'model="torchvision:resnet18" torchvision.norm="group" samples-per-client=16'


@pytest.fixture
def environment(tmp_path: Path, cache_dir: Path) -> dict[str, str]:
    (tmp_path / "flwr").mkdir()
    return os.environ | {
        "FLWR_HOME": str(tmp_path / "flwr"), "FLWR_TELEMETRY_ENABLED": "0", "XDG_CACHE_HOME": str(cache_dir),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip


def summary_of(output: str) -> dict[str, Any]:
    (path,) = re.findall(r"results: (\S+)", output)
    return dict(json.loads((Path(path) / "summary.json").read_text()))


def simulated(environment: dict[str, str], folder: Path, config: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "run_simulation.py"), "--num-supernodes", "2", "-c", config, *options]
    results = str(folder / options[-1])
    done = subprocess.run(
        [*command, "--results-dir", results], env=environment, cwd=folder, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return summary_of(done.stdout)


@pytest.mark.parametrize("what", [VALUES, LABELS, RESNET])
def test_ray_and_one_process_give_the_same_digest(environment: dict[str, str], tmp_path: Path, what: str) -> None:
    config = f'strategy="fedper" num-server-rounds=2 device="cpu" {what}'
    ray = simulated(environment, tmp_path, config, "--engine", "one-by-one")
    here = simulated(environment, tmp_path, config, "--backend", "in-process")
    together = simulated(environment, tmp_path, config, "--engine", "cohort")
    assert ray["digest"] == here["digest"]
    assert ray["failures"] == together["failures"] == 0
    assert together["engine"]["workers"] == 2
    for mine, theirs in zip(together["final"], here["final"], strict=True):
        assert {**mine, "mean": 0}.keys() == theirs.keys()
        assert mine["mean"] == pytest.approx(theirs["mean"], rel=0.02, abs=0.02)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A Flower app of a user's: a pyproject.toml and modules beside it."""
    folder = tmp_path / "app"
    folder.mkdir()
    for name in ("own_objects.py", "own_task.py"):
        shutil.copy(ROOT / "tests" / name, folder)
    (folder / "pyproject.toml").write_text(f"""
[project]
name = "mine"
version = "0.1.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "me"
fab-include = ["*.py", "pyproject.toml"]
[tool.flwr.app.components]
serverapp = "fedham_flwr.server_app:app"
clientapp = "fedham_flwr.client_app:app"
[tool.flwr.app.config]
strategy = "fedavg"
task = "own_task"
model = "auto"
dataset = "digits"
num-server-rounds = 2
min-clients = 1
device = "cpu"
results-dir = "{tmp_path / "results"}"
""")
    return folder


def configure(app: Path, config: str) -> None:
    """Give an app the settings of a `-c`, in place of its own of the same name and of its task."""
    lines = re.findall(r'(\S+?)=("[^"]*"|\S+)', config)
    file, gone = app / "pyproject.toml", {"task", *dict(lines)}
    kept = [line for line in file.read_text().splitlines() if line.partition(" = ")[0] not in gone]
    file.write_text("\n".join([*kept, *(f"{key} = {value}" for key, value in lines)]) + "\n")


@pytest.mark.parametrize("what", [VALUES, RESNET])
@pytest.mark.usefixtures("superlink")
def test_flwr_run_gives_the_digest_of_one_process(
    environment: dict[str, str], app: Path, tmp_path: Path, what: str
) -> None:
    if what is RESNET:
        configure(app, f"{RESNET} num-server-rounds=1")
    environment = environment | {"PYTHONPATH": str(ROOT)}  # the modules travel in the app's bundle
    command = [
        str(BIN / "flwr"),
        "run",
        str(app),
        "--stream",
        "--federation-config",
        "num-supernodes=2 client-resources-num-cpus=1",
    ]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
    )
    found = list((tmp_path / "results").glob("*/*/summary.json"))
    assert found, done.stdout + done.stderr
    summary = json.loads(found[0].read_text())
    assert "error" not in summary, summary
    config = f'strategy="fedavg" num-server-rounds={2 if what is VALUES else 1} device="cpu" min-clients=1 {what}'
    here = simulated(
        environment | {"PYTHONPATH": f"{ROOT}{os.pathsep}{app}"}, tmp_path, config, "--backend", "in-process"
    )
    assert summary["digest"] == here["digest"]
    assert summary["failures"] == 0


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def pictures(folder: Path) -> None:
    """Write the site's own images: two classes, twenty of each, in a folder for each class."""
    draw = np.random.default_rng(0)
    for kind in ("dark", "light"):
        (folder / kind).mkdir(parents=True)
        for number in range(20):
            pixels = draw.integers(0, 100, (8, 8), dtype=np.uint8) + (150 if kind == "light" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / kind / f"{number}.png")


@pytest.fixture
def node(environment: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """A SuperLink and one SuperNode with data of its own; the address for `flwr run`."""
    port, own = free_ports(2)
    link = [str(BIN / "flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    link += ["--isolation", "subprocess", "--disable-runtime-dependency-installation"]
    pictures(tmp_path / "pictures")
    config = f'client-id="site" data-path="{tmp_path / "pictures"}" state-dir="{tmp_path / "state"}"'
    supernode = [str(BIN / "flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(own)]
    supernode += ["--isolation", "subprocess", "--node-config", config]
    started = []
    try:
        for name, command in (("link", link), ("node", supernode)):
            with (tmp_path / f"{name}.log").open("wb") as log:
                started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(6)
        yield f"127.0.0.1:{port}"
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(30)


@pytest.mark.parametrize("what", [VALUES, LABELS, RESNET])
def test_a_real_node_trains_them(environment: dict[str, str], app: Path, tmp_path: Path, node: str, what: str) -> None:
    if what is not VALUES:
        configure(app, f"{what} num-server-rounds=1")
    (Path(environment["FLWR_HOME"]) / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{node}"\ninsecure = true\n'
    )
    command = [str(BIN / "flwr"), "run", str(app), "here", "--stream"]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    found = list((tmp_path / "results").glob("*/*/summary.json"))
    logs = "".join((tmp_path / f"{name}.log").read_text()[-2000:] for name in ("link", "node"))
    assert found, done.stdout + done.stderr + logs
    summary = json.loads(found[0].read_text())
    assert "error" not in summary, summary["error"] + logs
    metrics = {VALUES: {"rmse"}, LABELS: {"f1", "auroc"}, RESNET: {"accuracy"}}
    assert {entry["metric"] for entry in summary["final"]} >= metrics[what]
    (file,) = (tmp_path / "state").glob("*/model/site.safetensors")
    if what is RESNET:
        layers = list(load_model(file).modules())
        assert any(isinstance(layer, nn.GroupNorm) for layer in layers)
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in layers)
