"""FedRep: the head is trained alone, then the representation, and only that is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.record_values import tensors
from fedham_flwr.models import build
from fedham_flwr.settings import parse
from fedham_flwr.training.trainer import Trainer

HEAD = ("fc2.weight", "fc2.bias")


def kept(run: Any) -> list[dict[str, torch.Tensor]]:
    return [tensors(context.state.array_records["personal"]) for context in run.grid.contexts.values()]


def test_a_round_is_two_trainings_written_out(federate: Callable[..., Any], settings: Callable[..., Any]) -> None:
    given = {"strategy": "fedrep", "num_server_rounds": 1, "samples_per_client": 64, "fedrep.head-epochs": 2}
    run = federate(clients=1, partitioner="iid", min_clients=1, **given)
    chosen = parse(settings(partitioner="iid", min_clients=1, **given))
    data = open_partition(chosen.data(), 0, 1)
    trainer = Trainer(build("digits-cnn", (1, 8, 8), 10, 0), torch.device("cpu"), "fp32")
    base = tuple(name for name in trainer.manifest.names() if name not in HEAD)
    training = chosen.local_training(1)
    for names, purpose, epochs in ((HEAD, "head", 2), (base, "batches", 1)):
        stream = torch_stream(0, purpose, 1, "0")
        trainer.fit(data, training.__class__(**{**vars(training), "local_epochs": epochs}), stream, only=names)
    after = trainer.read(trainer.manifest.names())
    assert all(torch.equal(run.state[name], after[name]) for name in base)
    (own,) = kept(run)
    assert all(torch.equal(own[name], after[name]) for name in HEAD)


def test_without_epochs_of_its_own_the_head_never_changes(federate: Callable[..., Any]) -> None:
    run = federate(strategy="fedrep", samples_per_client=64, **{"fedrep.head-epochs": 0})
    initial = build("digits-cnn", (1, 8, 8), 10, 0).state_dict()
    for own in kept(run):
        assert own.keys() == set(HEAD)
        assert all(torch.equal(tensor, initial[name]) for name, tensor in own.items())
    assert not torch.equal(run.state["fc1.weight"], initial["fc1.weight"])


def test_a_head_of_all_layers_is_refused(federate: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"^fedrep.personal-layers=4 leaves nothing to share of the model's 4 layer"):
        federate(strategy="fedrep", **{"fedrep.personal-layers": 4})
