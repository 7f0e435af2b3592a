"""Of a ClientApp process, which Flower starts for each message: what it loads, and what it spares itself."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.common.serde import context_to_proto, message_to_proto
from presets import network

import fedham_flwr
from fedham_flwr.client_app import make_client_app
from fedham_flwr.core.parameters import Manifest, read
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation import wire
from fedham_flwr.federation.messages import Download
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.settings import Value, flatten, parse

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = 4
HEAVY = {"datasets", "flwr_datasets", "huggingface_hub", "pandas", "pyarrow", "PIL", "scipy", "sklearn", "torchvision"}
HEAVY |= {"matplotlib", "networkx", "ray", "rich", "sympy", "torch._dynamo", "torch._inductor"}
SERVER_SIDE = {"strategies"} | {f"fedham_flwr.{name}" for name in ("generator", "hypernetworks", "plots", "report")}
PROCESS = """
import gc, json, sys
from pathlib import Path
import flwr.supernode.cli
from flwr.common.serde import context_from_proto, message_from_proto
from flwr.proto import message_pb2

import fedham_flwr
found = {"collecting": gc.isenabled(), "frozen first": gc.get_freeze_count()}
theirs = {*sys.modules}  # Flower's, and torch's
from fedham_flwr.client_app import app
found |= {"imported": [*{*sys.modules} - theirs], "still collecting": gc.isenabled(), "frozen": gc.get_freeze_count()}
message, context = (Path(name).read_bytes() for name in ("message", "context"))
message = message_from_proto(message_pb2.Message.FromString(message))
reply = app(message, context_from_proto(message_pb2.Context.FromString(context)))
found |= {"loaded": [*{*sys.modules} - theirs], "failure": str(reply.content.get("failure", ""))}

import torch
from fedham_flwr.training import local, optim
for name in optim.OPTIMIZERS:
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    torch.nn.utils.clip_grad_norm_([param], 0.5)
    optim.make([param], local.LocalTraining(1, 1, 0.1, 0.9, 0.1, False, optimizer=name, nesterov=True)).step()
found["optimised"] = [*{*sys.modules} - theirs]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> dict[str, Any]:
    """What a process finds that trains one client of FedPer in its first round, and keeps its state on disk."""
    folder = tmp_path_factory.mktemp("process")
    settings: dict[str, Value] = {
        "strategy": "fedper",
        "model": "digits-cnn",
        "cache-dir": str(cache_dir),
        "device": "cpu",
    }
    open_partition(parse(settings).data(), 0, CLIENTS)  # decoded here: who decodes loads what decoding takes
    grid = InProcessGrid(
        make_client_app(settings), CLIENTS, node_configs=[{"state-dir": str(folder / "state")}] * CLIENTS
    )
    node, model = next(iter(grid.contexts)), network("fedper")
    manifest = Manifest.of(model)
    shared = manifest.names(manifest.group_names[:-1])
    download = Download(1, read(model, shared), (1, 8, 8), 10, training="trial")
    message = grid.create_message(wire.write_download(download), "train", node, "1")
    grid.push_messages([message])
    grid.contexts[node].run_config = dict(flatten(parse(settings)))
    (folder / "message").write_bytes(message_to_proto(message).SerializeToString())
    (folder / "context").write_bytes(context_to_proto(grid.contexts[node]).SerializeToString())
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROCESS]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["failure"] == ""
    assert [*(folder / "state").rglob("0.safetensors")] != []
    return found


def test_the_import_of_the_app_loads_nothing_heavy(process: dict[str, Any]) -> None:
    assert "fedham_flwr.client_app" in process["imported"]
    assert HEAVY & {*process["imported"]} == set()


def test_a_message_loads_nothing_heavy_either(process: dict[str, Any]) -> None:
    assert HEAVY & {*process["loaded"]} == set()


def test_no_optimiser_of_the_house_loads_torchs_compiler(process: dict[str, Any]) -> None:
    assert HEAVY & {*process["optimised"]} == set()


def test_a_client_process_does_not_load_the_server_half(process: dict[str, Any]) -> None:
    assert SERVER_SIDE & {*process["loaded"]} == set()


def test_the_package_leaves_the_garbage_collector_as_it_was(process: dict[str, Any]) -> None:
    assert process["collecting"] is True
    assert process["frozen first"] == 0


def test_the_app_takes_what_is_imported_out_of_the_collectors_sight(process: dict[str, Any]) -> None:
    assert process["still collecting"] is True
    assert process["frozen"] > 100_000  # torch alone


@pytest.mark.parametrize("collecting", [True, False])
def test_the_collector_is_on_afterwards_if_it_was_before(collecting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    during = []
    monkeypatch.setattr(fedham_flwr.importlib, "import_module", lambda name: during.append((name, gc.isenabled())))
    was: Callable[[], None] = gc.enable if gc.isenabled() else gc.disable
    try:
        (gc.enable if collecting else gc.disable)()
        fedham_flwr._import_torch()
        assert gc.isenabled() is collecting
    finally:
        was()
    assert during == [("torch", False)]


def test_the_collector_is_on_again_if_torch_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError(f"no {name}")

    monkeypatch.setattr(fedham_flwr.importlib, "import_module", fail)
    assert gc.isenabled()
    with pytest.raises(ImportError, match=r"^no torch$"):
        fedham_flwr._import_torch()
    assert gc.isenabled()
