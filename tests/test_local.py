"""Local training: nothing is shared, and a client's model is that of training alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from faults import break_app, tampered

from fedham_flwr import models
from fedham_flwr.algorithms.local import METHOD
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.record_values import tensors
from fedham_flwr.settings import Value, parse
from fedham_flwr.training.trainer import Trainer


def test_every_tensor_is_personal() -> None:
    manifest = Manifest.of(models.build("lenet-bn", (1, 16, 16), 10, 0))
    assert METHOD.split(manifest, None) == ((), manifest.names(), ())


def test_rounds_are_training_alone_written_out_bit_for_bit(
    federate: Callable[..., Any], settings: Callable[..., dict[str, Value]]
) -> None:
    run, chosen = federate(clients=2, strategy="local"), parse(settings(strategy="local"))
    assert run.state == {}
    for k, context in enumerate(run.grid.contexts.values()):
        trainer = Trainer(models.build("digits-cnn", (1, 8, 8), 10, chosen.seed), torch.device("cpu"), "fp32")
        data = open_partition(chosen.data(), k, 2)
        for number in (1, 2):
            trainer.fit(data, chosen.local_training(number), torch_stream(chosen.seed, "batches", number, str(k)))
        kept = tensors(context.state.array_records["personal"])
        own = trainer.read(trainer.manifest.names())
        assert all(torch.equal(kept[name], own[name]) for name in own)


def test_clients_do_not_touch_each_other(federate: Callable[..., Any]) -> None:
    """Client 0 ends as it does beside one that works, though client 1 fails every time."""

    def model(**given: Any) -> dict[str, torch.Tensor]:
        run = federate(strategy="local", **given)
        return tensors(next(iter(run.grid.contexts.values())).state.array_records["personal"])

    together, alone = model(), model(client_app=tampered(break_app, client=1))
    assert all(torch.equal(together[name], alone[name]) for name in together)
