"""What all tests share: one thread, no telemetry, no network, and federations small enough for a test."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import pytest
import torch
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import settings as hypothesis_settings
from presets import network_settings
from safetensors.torch import load_file

from fedham_flwr import registry, server_app
from fedham_flwr.client_app import make_client_app
from fedham_flwr.core.records import Row
from fedham_flwr.core.threads import one_thread
from fedham_flwr.reporting import journal
from fedham_flwr.reporting.run_directory import read_rows, to_rows
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.settings import Value

# The same examples in every run, and no clock: a slow minute of the machine is no failure.
hypothesis_settings.register_profile("steady", max_examples=50, deadline=None, derandomize=True)
hypothesis_settings.load_profile("steady")

QUICK = ("fedper", "pfedla")
"""A method that keeps layers and one that mixes: what holds for every method is tested of the others among the runs."""
OF_EVERY_METHOD = {
    "test_bounds", "test_bounds_rounds", "test_cohort_runs", "test_novel", "test_resume", "test_rounds",
    "test_sequence_runs", "test_split_guard", "test_starts", "test_state_dict", "test_table_runs",
}  # fmt: skip
OF_RUNS = {
    "test_bank_on_disk", "test_candidate_rounds", "test_durable_state", "test_early_stopping", "test_fedham_kept",
    "test_fedham_own", "test_fedham_rounds", "test_fedtp_combined", "test_fedtp_rounds", "test_kills",
    "test_mixing_plots", "test_pfedla_heads_rounds", "test_pfedla_rounds", "test_shards",
}  # fmt: skip
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is of one method, and what is slow in number: whole runs, and tests of all methods but for two."""
    others = set(registry.BUILT_IN) - set(QUICK)
    for item in items:
        if re.fullmatch(rf"test_({'|'.join(registry.BUILT_IN)})(_\w+)?", item.path.stem):
            item.add_marker(pytest.mark.methods)
        callspec = getattr(item, "callspec", None)
        values = callspec.params.values() if callspec and item.path.stem in OF_EVERY_METHOD else ()
        given = [value.get("strategy") if isinstance(value, dict) else value for value in values]
        alone = item.get_closest_marker("slow")  # slow by itself, with processes of its own
        if (item.path.stem in OF_RUNS and not alone) or any(isinstance(name, str) and name in others for name in given):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.runs)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast tests, and the runs, fail if anything looks up a host name or connects to another machine."""
    if request.node.get_closest_marker("slow") and not request.node.get_closest_marker("runs"):
        return

    def refuse(*args: object, **_: object) -> None:
        raise AssertionError(f"a fast test reaches for the network: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of decoded data for all tests."""
    return tmp_path_factory.mktemp("cache")


def leave_out_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have runs draw nothing: pictures take longer to draw than a short run."""
    for name in ("learning_curves", "client_bars", "heat_maps", "self_weight_curves"):
        monkeypatch.setattr(journal, name, lambda *_, **__: None)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw nothing."""
    leave_out_pictures(monkeypatch)


@pytest.fixture
def workplace(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None) -> None:
    """A working directory of the test's own, where a program that knows no settings finds the cache of all tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_dir))


def small(results: Path, cache: Path, **given: Value) -> dict[str, Value]:
    """Settings of a small run on digits, with what is given: small(..., strategy="local", **{"fedprox.mu": 0})."""
    few: dict[str, Value] = {
        "num-server-rounds": 2,
        "batch-size": 32,
        "results-dir": str(results),
        "cache-dir": str(cache),
        "device": "cpu",
    }
    chosen = {key.replace("_", "-"): value for key, value in given.items()}
    if "model" not in chosen and "dataset" not in chosen:
        few |= network_settings(str(chosen.get("strategy", "fedper")))
    return few | chosen


@pytest.fixture
def settings(tmp_path: Path, cache_dir: Path) -> Callable[..., dict[str, Value]]:
    """Settings of a small run on digits, with what the test gives: settings(strategy="local", **{"fedprox.mu": 0})."""
    return partial(small, tmp_path / "results", cache_dir)


@pytest.fixture
def coloured(tmp_path: Path) -> str:
    """240 images of 16 x 16 pixels, four classes of different colours: large enough for LeNet."""
    import datasets
    import numpy as np
    from PIL import Image

    datasets.disable_progress_bars()
    rng, labels = np.random.default_rng(0), np.arange(240) % 4
    tint = 120 * np.stack([labels & 1, labels >> 1, 0 * labels], axis=1)[:, None, None]
    pixels = (rng.integers(0, 120, (240, 16, 16, 3)) + tint).astype(np.uint8)
    table = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(image) for image in pixels], "label": labels.tolist()}
    )
    (tmp_path / "coloured").mkdir()
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "coloured" / "train.parquet")
    return str(tmp_path / "coloured")


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets beside the project; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is not there")
    return SHARED_DATA


@dataclass
class Outcome:
    """What an in-process run left behind.

    Attributes:
        path: its directory.
        summary: its summary.json.
        grid: the nodes, with the state of their clients.
    """

    path: Path
    summary: dict[str, Any]
    grid: InProcessGrid

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """The server's tensors."""
        return load_file(self.path / "server.safetensors")

    @property
    def rows(self) -> list[Row]:
        """All rows of all clients."""
        return to_rows(read_rows(self.path))

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of rounds.jsonl."""
        return [json.loads(line) for line in (self.path / "rounds.jsonl").read_text().splitlines()]


def conduct(
    chosen: dict[str, Value],
    clients: int = 4,
    client_app: Callable[[dict[str, Value]], ClientApp] = make_client_app,
    grid: Callable[[ClientApp, int], InProcessGrid] = InProcessGrid,
) -> Outcome:
    """Run a federation in this process."""
    nodes = grid(client_app(chosen), clients)
    before = set(Path(str(chosen["results-dir"])).glob("*/*"))
    context = Context(run_id=nodes.run.run_id, node_id=1, node_config={}, state=RecordDict(), run_config={})
    with one_thread():
        server_app.make_server_app(chosen)(nodes, context)
    new = set(Path(str(chosen["results-dir"])).glob("*/*")) - before
    (path,) = new or {Path(str(chosen["resume"]))}  # a run that is continued stays where it is
    return Outcome(path, json.loads((path / "summary.json").read_text()), nodes)


@pytest.fixture
def federate(settings: Callable[..., dict[str, Value]], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run a federation in this process: federate(clients=4, strategy="local", client_app=..., grid=InProcessGrid).

    Without its pictures, which take longer to draw than such a run, unless `pictures` is true.
    """

    def run(
        clients: int = 4,
        pictures: bool = False,
        client_app: Callable[[dict[str, Value]], ClientApp] = make_client_app,
        grid: Callable[[ClientApp, int], InProcessGrid] = InProcessGrid,
        **given: Value,
    ) -> Outcome:
        if not pictures:
            leave_out_pictures(monkeypatch)
        return conduct(settings(**given), clients, client_app, grid)

    return run


@pytest.fixture(scope="session")
def federated(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """What a run left, for tests that only read it: made once for all that ask with the same arguments.

    federated(clients=4, strategy="local", client_app=..., grid=InProcessGrid), like `federate`, with nothing of the
    program replaced: a test asks before it patches anything.
    """
    made: dict[object, Outcome] = {}

    def run(
        clients: int = 4,
        pictures: bool = False,
        client_app: Callable[[dict[str, Value]], ClientApp] = make_client_app,
        grid: Callable[[ClientApp, int], InProcessGrid] = InProcessGrid,
        **given: Value,
    ) -> Outcome:
        asked = (clients, pictures, client_app, grid, repr(sorted(given.items())))
        if asked not in made:
            with pytest.MonkeyPatch.context() as patch:
                if not pictures:
                    leave_out_pictures(patch)
                chosen = small(tmp_path_factory.mktemp("federated"), cache_dir, **given)
                made[asked] = conduct(chosen, clients, client_app, grid)
        return made[asked]

    return run
