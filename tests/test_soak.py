"""Two hundred rounds in which everything fails that can: whatever a client goes on from is what it last kept."""

from __future__ import annotations

import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from faults import with_tensors
from flwr.app import Context, Message, RecordDict
from safetensors.torch import load_file

from fedham_flwr import server_app
from fedham_flwr.client_app import make_client_app
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.settings import Value
from fedham_flwr.state.store import ClientState, StateNotFoundError

pytestmark = pytest.mark.slow
CLIENTS, ROUNDS, LATE = 6, 200, 20


def _table(folder: Path, client: int) -> str:
    """A file with 40 rows of three numbers, whose label each client sees in another one of them."""
    draw = np.random.default_rng(client)
    values = draw.normal(size=(40, 3))
    columns = {name: values[:, i] for i, name in enumerate("abc")}
    features = {**dict.fromkeys(columns, datasets.Value("float32")), "label": datasets.ClassLabel(names=["no", "yes"])}
    table = datasets.Dataset.from_dict(
        {**columns, "label": (values[:, client % 3] > 0).astype(int)}, datasets.Features(features)
    )
    path = folder / f"site-{client}.parquet"
    table.to_parquet(path)
    return str(path)


class World:
    """Clients that outlive the server and their own processes, what each kept last, and the faults so far."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.draw = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.kept: dict[str, Params] = {}
        self.loads = 0
        self.configs = [
            {"client-id": f"site-{i}", "data-path": _table(folder, i), "state-dir": str(folder / f"state-{i}")}
            for i in range(CLIENTS)
        ]

    def happens(self, fault: str, chance: float) -> bool:
        if self.draw.random() >= chance:
            return False
        self.faults[fault] += 1
        return True


class Storm(InProcessGrid):
    """Nodes that drop out, die, come back under other ids and answer nonsense, and a server that is killed."""

    def __init__(self, world: World, chosen: dict[str, Value]) -> None:
        honest = make_client_app(chosen)

        def app(message: Message, context: Context) -> Message:
            if message.metadata.message_type != "query" and world.happens("dropped out", 0.04):
                raise ConnectionError("it cannot be reached")
            if world.happens("process restarted", 0.05):
                context.state = RecordDict()
            reply = honest(message, context)
            if message.metadata.message_type != "train" or reply.content.config_records.get("failure"):
                return reply
            if world.happens("killed after training", 0.03):
                raise RuntimeError("killed")
            if world.happens("sent NaN", 0.02):
                with_tensors(lambda tensors: tensors[next(iter(tensors))].fill_(float("nan")))(message, reply)
            return reply

        super().__init__(app, CLIENTS, node_configs=world.configs)  # type: ignore[arg-type]
        for context in self.contexts.values():  # of real nodes, which are no part of a simulation
            del context.node_config["partition-id"], context.node_config["num-partitions"]
        self.world, self.round = world, 0

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, but for one that comes late; now and then one has restarted and has another id."""
        if self.world.happens("node restarted", 0.05):
            old = self.world.draw.choice(list(self.contexts))
            config = self.contexts.pop(old).node_config
            new = self.world.draw.getrandbits(62)
            self.contexts[new] = Context(self.run.run_id, new, config, RecordDict(), {})
        nodes = list(self.contexts)
        late = () if self.round >= LATE else ("site-0",)
        return [node for node in nodes if self.contexts[node].node_config["client-id"] not in late]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        messages = list(messages)
        self.round = max([self.round, *(int(message.metadata.group_id) for message in messages)])
        if messages[0].metadata.message_type != "query" and self.world.happens("server killed", 0.06):
            super().send_and_receive(messages[: self.world.draw.randrange(len(messages) + 1)])
            raise KeyboardInterrupt
        return super().send_and_receive(messages, timeout=timeout)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None) -> World:
    """Every state that a client loads is compared with the one that it saved last, bit for bit."""
    world = World(tmp_path, seed=7)
    save, load = ClientState.save, ClientState.load

    def watched_save(self: ClientState, params: Params, round_number: int) -> None:
        save(self, params, round_number)
        world.kept[self._wanted.client] = {name: tensor.clone() for name, tensor in params.items()}

    def watched_load(self: ClientState) -> Params:
        last = world.kept.get(self._wanted.client)
        try:
            given = load(self)
        except StateNotFoundError:
            assert last is None, f"what {self._wanted.client} had learned is gone"
            raise
        assert last is not None
        assert given.keys() == last.keys()
        assert all(torch.equal(tensor, last[name]) for name, tensor in given.items()), self._wanted.client
        world.loads += 1
        return given

    monkeypatch.setattr(ClientState, "save", watched_save)
    monkeypatch.setattr(ClientState, "load", watched_load)
    return world


@pytest.mark.parametrize("strategy", ["fedper", "fedham", "pfedla"])
def test_nothing_that_a_client_has_learned_is_lost_in_two_hundred_rounds_of_faults(
    settings: Callable[..., dict[str, Value]], world: World, strategy: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "fedham_flwr")
    chosen = settings(
        strategy=strategy,
        model="mlp",
        feature_column="a b c",
        num_server_rounds=ROUNDS,
        checkpoint_every=3,
        min_clients=5,
        client_timeout=0.5,
        evaluate_every=50,
        **{"pfedla.retained-layers": int(strategy == "pfedla")},
    )
    began, summary = time.monotonic(), dict[str, Any]()
    path: Path | None = None
    while "digest" not in summary or "error" in summary:
        resumable = path is not None and list(path.glob("checkpoints/round-*"))
        try:
            grid = Storm(world, given := chosen | ({"resume": str(path)} if resumable else {}))
            context = Context(grid.run.run_id, 1, {}, RecordDict(), {})
            server_app.make_server_app(given)(grid, context)
        except KeyboardInterrupt:
            pass
        except UserError as error:
            if "gave a good reply" not in str(error) and "answered within" not in str(error):
                raise
            world.faults["too few replies"] += 1
        path = max(Path(str(chosen["results-dir"])).glob("*/*"), key=lambda run: run.stat().st_ctime_ns)
        summary = json.loads((path / "summary.json").read_text())
        assert time.monotonic() < began + 300, "it gets nowhere"
        if not list(path.glob("checkpoints/round-*")):
            world.kept.clear()  # another training begins, whose clients start anew
    assert path is not None
    lines = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines if line["kind"] == "train"] == list(range(1, ROUNDS + 1))
    assert len(summary["resumed-from"]) >= 3
    for client, kept in world.kept.items():
        (file,) = path.parents[2].glob(f"state-*/*/{client}.safetensors")
        on_disk = load_file(file)
        assert on_disk.keys() == kept.keys()
        assert all(torch.equal(tensor, kept[name]) for name, tensor in on_disk.items()), client
    assert world.loads > ROUNDS
    said = (
        f"{dict(world.faults)}, {world.loads} states loaded, none lost; {summary['seconds']['per-round']:.3f} s a round"
    )
    logging.getLogger("soak").info("%s: %s rounds, %s, %s", strategy, ROUNDS, said, summary["bytes"])
