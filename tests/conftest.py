"""What all tests share: one thread, no telemetry, no network, and federations small enough for a test."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import pytest
import torch

from fedham_flwr.config import Value

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast tests fail if anything looks up a host name or connects to another machine."""
    if request.node.get_closest_marker("slow"):
        return

    def refuse(*args: object, **_: object) -> None:
        raise AssertionError(f"a fast test reaches for the network: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of decoded data for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def settings(tmp_path: Path, cache_dir: Path) -> Callable[..., dict[str, Value]]:
    """Settings of a small run on digits, with what the test gives: settings(strategy="local", **{"fedprox.mu": 0})."""

    def make(**given: Value) -> dict[str, Value]:
        small: dict[str, Value] = {
            "num-server-rounds": 2,
            "results-dir": str(tmp_path / "results"),
            "cache-dir": str(cache_dir),
            "device": "cpu",
        }
        return small | {key.replace("_", "-"): value for key, value in given.items()}

    return make


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets beside the project; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is not there")
    return SHARED_DATA
