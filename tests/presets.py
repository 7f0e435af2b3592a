"""Networks small enough for a test, as settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from flwr.app import RecordDict
from torch import Tensor

from fedham_flwr import models, registry
from fedham_flwr.core.parameters import Params
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import ChecksExtras, Start
from fedham_flwr.federation.job import Job
from fedham_flwr.federation.messages import Download, Upload
from fedham_flwr.federation.progress import Sent
from fedham_flwr.federation.record_values import tensors
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.federation.stages import TRAIN
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.run_settings import Settings
from fedham_flwr.settings import Value, parse
from fedham_flwr.state.store import ClientState
from fedham_flwr.training.trainer import Predictor, Trainer
from strategies.averaging import AveragingStrategy

TWO_NETWORKS: dict[str, Any] = {
    "client_models": "digits-cnn, vit", "vit.width": 64, "vit.depth": 1, "vit.heads": 2, "vit.head-dim": 8,
    "vit.hidden-dim": 32, "vit.dropout": 0.0,
}  # fmt: skip
"""Two networks in turn, with equally many features: 64."""
ONE_FOR_ALL = {
    "fedavg",
    "fedprox",
    "fedtransfer",
    "fedbabu",
    "fedbn",  # of networks without normalisation, as these are
    "perfedavg",
    "pfedme",
}
"""Methods whose clients predict, before they train, with nothing but the model that all have."""
EPOCHS = {
    "fedrep": 10 + 1,
    "ditto": 1 + 1,
    "fedpac": 1 + 1,
    "fedas": 1 + 1 / 2,  # of two rounds: it aligns from a client's second one on
}
"""Methods that go through the data more often than `local-epochs` says: how often with 1."""
BRINGS_MORE = {
    "pfedgraph",
}
"""Methods that send their clients as much again as the model once somebody has trained; their clients do not."""
TELLS: Mapping[str, set[str]] = {
    "fedham": {"row"},
    "fedfomo": {"places", "omega"},
}
"""What clients tell of how they mixed the models that they were sent, which is from before they trained."""

LEARNS: Mapping[str, Mapping[str, Value]] = {
    "perfedavg": {"learning_rate": 0.2, "perfedavg.inner-rate": 0.2, "perfedavg.adaptation-steps": 0},
    "pfedme": {"learning_rate": 0.2, "pfedme.penalty": 5.0},
    "apfl": {"learning_rate": 0.2},
}
"""Settings with which a method learns in a few rounds, of those that need other ones: plain steps want larger rates."""


FASTER: dict[str, dict[str, Value]] = {
    "pfedhn": {"pfedhn.learning-rate": 0.3, "pfedhn.embedding-learning-rate": 1.0, "pfedhn.embedding-dim": 8},
}
"""Settings with which a method learns in the few rounds of a test, where its authors' take thousands."""

FIT_AT_ONCE = {
    "pfedfda",
}
"""Methods whose clients make a last layer of their data before they are scored for the first time."""


def sends_more(strategy: str) -> bool:
    """Whether a method's clients send tensors of its own beside the model's."""
    return isinstance(object.__new__(registry.half(registry.method(strategy).strategy)), ChecksExtras)


SEEN_TO_LEARN: dict[str, dict[str, Value]] = {
    "perfedavg": {"learning_rate": 0.2, "perfedavg.inner-rate": 0.2, "perfedavg.adaptation-steps": 0},
    "knnper": {"knnper.share": 0.0, "partitioner": "iid", "local_epochs": 4},
}
"""What a method needs for three rounds to show that its model learns: neighbours know the digits before a network has
learned anything, and a global model that nobody fine-tunes is slow where clients differ."""


def kept(run: Any) -> list[dict[str, Tensor]]:
    """What each client of a run in this process has kept, in their order."""
    return [tensors(context.state.array_records["personal"]) for context in run.grid.contexts.values()]


def has_stage(strategy: str) -> bool:
    """Whether a method's rounds are followed by a stage of each client's own."""
    return registry.method(strategy).personal_stage


def used_phase(strategy: str) -> str:
    """Whether the model that a client uses in the end is the one before its last training, or after it."""
    return "after" if has_stage(strategy) else registry.method(strategy).personal_model


def predicts(given: Mapping[str, Value]) -> bool:
    """Whether clients of a run are scored by more than their model."""
    strategy = str(given["strategy"])
    own = registry.half(registry.method(strategy).client).predictor is not RoundClient.predictor
    return own and (strategy != "fedtp" or bool(given.get("fedtp.knn")))


def half_of(chosen: Settings, client: str, trainer: Trainer, data: ClientData) -> RoundClient:
    """A client half on its own, that has kept nothing."""
    method = registry.method(chosen.strategy)
    state = ClientState(RecordDict(), client, trainer.manifest.fingerprint())
    job = Job(client, chosen, method, data, trainer, state, Download(1, {}, data.shape, len(data.classes)))
    half: RoundClient = registry.half(method.client)(job)
    return half


def predictor_of(chosen: Settings, client: str, trainer: Trainer, data: ClientData) -> Predictor:
    """What a client predicts with that has the trainer's model: for most methods that alone."""
    return half_of(chosen, client, trainer, data).predictor() or (lambda model, x: model(x))


def traffic(strategy: str, payload: int) -> dict[str, int | dict[str, int]]:
    """What two rounds of four clients and the last exchange send, in bytes, if no client sends more than its model.

    Args:
        strategy: the method.
        payload: bytes of the shared tensors.
    """
    again = 4 * payload if strategy in BRINGS_MORE else 0
    return {
        "up": 8 * payload,
        "down": 12 * payload + 2 * again,
        "train": {"up": 8 * payload, "down": 8 * payload + again},
        "personal" if has_stage(strategy) else "evaluate": {"up": 0, "down": 4 * payload + again},
    }


def adapted(strategy: str) -> bool:
    """Whether a method's network has adapters and is fixed but for these, so that its model is no other method's."""
    needs, given = registry.method(strategy).network, parse({"strategy": strategy})
    return needs is not None and needs(given.own).adapters is not None


def adapts(strategy: str) -> bool:
    """Whether the server learns for novel clients, in turns, in place of clients that adapt alone."""
    given = parse({"strategy": strategy, **network_settings(strategy)})
    return bool(registry.method(strategy).split_of(manifest_of(network(strategy), []), given.own).adapted)


def one_model(strategy: str) -> bool:
    """Whether what the server holds is the shared tensors of one model, a mean of some kind."""
    return issubclass(registry.half(registry.method(strategy).strategy), AveragingStrategy)


def mixes(strategy: str) -> bool:
    """Whether a method reports with which weights the clients' models are mixed."""
    return registry.method(strategy).mixes


TINY_VIT: dict[str, Value] = {
    "model": "vit", "vit.patch-size": 4, "vit.width": 16, "vit.depth": 2, "vit.heads": 2, "vit.head-dim": 8,
    "vit.hidden-dim": 32, "vit.dropout": 0.0,
}  # fmt: skip
TINY_CHAR: dict[str, Value] = {
    "model": "char-transformer", "char-transformer.width": 16, "char-transformer.depth": 1,
    "char-transformer.heads": 2, "char-transformer.head-dim": 8, "char-transformer.hidden-dim": 32,
    "char-transformer.dropout": 0.0,
}  # fmt: skip

LENGTH = 8
TEXT: dict[str, Value] = {**TINY_CHAR, "partitioner": "natural", "client-column": "role", "sequence-length": LENGTH}


def write_texts(path: Path, texts: Mapping[str, Sequence[str]]) -> str:
    """A table of what each role says; its path."""
    lines = [(role, line) for role, given in texts.items() for line in given]
    pq.write_table(pa.table({"role": [role for role, _ in lines], "text": [line for _, line in lines]}), path)
    return str(path)


def short_play(folder: Path) -> dict[str, Value]:
    """Three roles that say the same few words, each in an order of its own, and a network for them."""
    words = ("to be", "or not", "that is", "the question")
    roles = {f"r{k}": [" ".join(words[(i + k * j) % 4] for i in range(12)) for j in range(6)] for k in (1, 2, 3)}
    return {**TEXT, "dataset": write_texts(folder / "play.parquet", roles)}


def network_settings(strategy: str) -> dict[str, Value]:
    """The network that tests of all methods use: digits-cnn, or the smallest that the method can do with."""
    return dict(TINY_VIT) if strategy == "fedtp" else {"model": "digits-cnn", **FASTER.get(strategy, {})}


def network(strategy: str) -> models.nn.Module:
    """That network for the digits, with the first parameters of seed 0."""
    chosen = parse({"strategy": strategy, **network_settings(strategy)})
    return models.build(chosen.model, (1, 8, 8), 10, 0, chosen.networks())


def planned(plan: Mapping[str, Start]) -> dict[str, Params]:
    """The tensors that each client of a plan starts from."""
    return {client: dict(start.params) for client, start in plan.items()}


def references(server: RoundStrategy, round_number: int, clients: Sequence[str]) -> dict[str, Params]:
    """What an update of each client is measured from: all shared tensors that it starts with."""
    return {client: {**s.left_out, **s.params} for client, s in server.plan(round_number, clients).items()}


def shorten(server: RoundStrategy, round_number: int, uploads: dict[str, Upload]) -> tuple[str, ...]:
    """Shorten the updates of a round as its exchange does; whose they were."""
    sent = Sent(TRAIN, round_number, 0.0, tuple(uploads), lambda some: server.plan(round_number, some), False)
    server._exchange.sent, server._exchange._settings = sent, server.settings
    return server._exchange._clip(uploads)
