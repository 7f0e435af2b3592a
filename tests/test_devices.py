"""The device that a setting names: one that is not there, and a precision that it has not."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from nodes import three_nodes

from fedham_flwr import simulate
from fedham_flwr.cli import run_command
from fedham_flwr.client_app import make_client_app
from fedham_flwr.core.devices import check_device
from fedham_flwr.core.errors import UserError
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.server_app import make_server_app
from fedham_flwr.settings import Value, defaults


class InMemoryGrid(InProcessGrid):
    """Named as Flower's, which says that the clients are on the server's machine."""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.usefixtures("workplace")
def test_a_gpu_that_is_not_there_is_said_before_any_client_is_asked(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    settings: Callable[..., dict[str, Value]],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("fedham_flwr.federation.roster.Roster.discover", lambda *_: pytest.fail("clients were asked"))
    assert run_command(["-c", 'device="cuda"']) == 1
    sentence = 'device="cuda" is not available here ('
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
    with pytest.raises(UserError) as raised:
        simulate("fedavg", device="cuda:1", clients=2)
    assert str(raised.value).startswith('device="cuda:1" is not available here (')
    grid = InMemoryGrid(make_client_app(settings()), 2)
    config = {**defaults(), "device": "cuda"}
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(sys, "tracebacklimit", 1000, raising=False)  # which the app sets, for its process
    with pytest.raises(UserError) as raised:
        make_server_app()(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config))
    assert str(raised.value).startswith(sentence)
    assert not (tmp_path / "results").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_in_a_cluster_the_clients_may_have_what_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    check_device("cuda")
    monkeypatch.delenv("RAY_ADDRESS")
    check_device("auto")
    check_device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda:1")  # without touching it
    with pytest.raises(UserError, match="cuda:2"):
        check_device("cuda:2")


SLOW = 'precision="bf16" is several times slower than "fp32" on this processor, which has no AVX-512'


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_precision_that_the_processor_imitates_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    check_device("auto", precision="bf16")
    assert caplog.messages == [SLOW]
    check_device("cpu", "somewhere:6379", "bf16")  # the clients are on other machines
    check_device("cpu", precision="fp32")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    check_device("cpu", precision="bf16")
    assert caplog.messages == [SLOW]


@pytest.mark.usefixtures("workplace")
def test_a_simulation_says_it_once_and_each_node_of_itself(
    caplog: pytest.LogCaptureFixture, federate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    simulate("fedavg", clients=2, num_server_rounds=1, verbose=False, device="cpu", precision="bf16")
    assert caplog.messages.count(SLOW) == 1
    caplog.clear()
    (tmp_path / "rows.csv").write_text("age,ill\n" + "\n".join(f"{k % 7},{int(k % 7 > 3)}" for k in range(40)))
    ill: dict[str, Value] = {"feature_column": "age", "label_column": "ill", "model": "mlp", "num_server_rounds": 1}
    federate(3, grid=three_nodes(tmp_path / "rows.csv"), strategy="local", device="cpu", precision="bf16", **ill)
    assert caplog.messages.count(SLOW) == 3
