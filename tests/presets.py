"""Networks small enough for a test, as settings."""

from __future__ import annotations

from fedham_flwr import models
from fedham_flwr.settings import Value, parse

TINY_VIT: dict[str, Value] = {
    "model": "vit", "vit.patch-size": 4, "vit.width": 16, "vit.depth": 2, "vit.heads": 2, "vit.head-dim": 8,
    "vit.hidden-dim": 32, "vit.dropout": 0.0,
}  # fmt: skip
TINY_CHAR: dict[str, Value] = {
    "model": "char-transformer", "char-transformer.width": 16, "char-transformer.depth": 1,
    "char-transformer.heads": 2, "char-transformer.head-dim": 8, "char-transformer.hidden-dim": 32,
    "char-transformer.dropout": 0.0,
}  # fmt: skip


def network_settings(strategy: str) -> dict[str, Value]:
    """The network that tests of all methods use: digits-cnn, or the smallest that the method can do with."""
    return dict(TINY_VIT) if strategy == "fedtp" else {"model": "digits-cnn"}


def network(strategy: str) -> models.nn.Module:
    """That network for the digits, with the first parameters of seed 0."""
    chosen = parse({"strategy": strategy, **network_settings(strategy)})
    return models.build(chosen.model, (1, 8, 8), 10, 0, chosen.networks())
