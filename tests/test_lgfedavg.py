"""LG-FedAvg: which groups are shared, its two ends, and that it is FedPer with the parts exchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from presets import network
from safetensors.torch import load_file

from fedham_flwr.algorithms.lgfedavg import LGFedAvgSettings, split
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import split_groups
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.core.trees import weighted_mean
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.record_values import tensors
from fedham_flwr.models import build
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.settings import parse
from fedham_flwr.training.trainer import Trainer

LOW = ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias")
HIGH = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


def shared(count: int) -> dict[str, Any]:
    return {"strategy": "lgfedavg", "lgfedavg.shared-layers": count}


def kept(run: Any) -> list[dict[str, torch.Tensor]]:
    return [tensors(context.state.array_records["personal"]) for context in run.grid.contexts.values()]


@pytest.mark.parametrize("count", range(5))
def test_it_shares_what_fedper_with_as_many_layers_keeps(count: int) -> None:
    manifest = manifest_of(network("lgfedavg"), [])
    found = split(manifest, LGFedAvgSettings(count))
    mirrored = split_groups(manifest, manifest.group_names[4 - count :])
    assert (found.shared, found.personal) == (mirrored.personal, mirrored.shared)


def test_running_statistics_stay_with_their_layers() -> None:
    manifest = manifest_of(build("lenet-bn", (1, 28, 28), 10, 0), [])
    found = split(manifest, LGFedAvgSettings())
    assert found.shared == ("fc2.weight", "fc2.bias", "fc3.weight", "fc3.bias")
    assert {"bn1.running_mean", "bn2.running_var"} < set(found.personal)


def test_more_shared_layers_than_the_model_has_are_refused(federate: Callable[..., Any]) -> None:
    text = r"^lgfedavg.shared-layers=5 is more than the model's 4 layer groups: conv1, conv2, fc1, fc2$"
    with pytest.raises(UserError, match=text):
        federate(**shared(5))


def test_everything_shared_is_fedavg_bit_for_bit(federate: Callable[..., Any]) -> None:
    assert federate(**shared(4)).summary["digest"] == federate(strategy="fedavg").summary["digest"]


def test_nothing_shared_is_local_training_bit_for_bit(federate: Callable[..., Any]) -> None:
    nothing = federate(**shared(0))
    assert nothing.summary["digest"] == federate(strategy="local").summary["digest"]
    assert nothing.summary["bytes"]["up"] == nothing.summary["bytes"]["down"] == 0


def test_two_rounds_are_the_trainings_written_out(federate: Callable[..., Any], settings: Callable[..., Any]) -> None:
    """Two clients, each with lower layers of its own in the second round, and the mean of their higher ones."""
    given = {"strategy": "lgfedavg", "samples_per_client": 64}
    run = federate(clients=2, **given)
    chosen = parse(settings(**given))
    trainer = Trainer(build("digits-cnn", (1, 8, 8), 10, 0), torch.device("cpu"), "fp32")
    common = {name: trainer.initial[name] for name in HIGH}
    own = [{name: trainer.initial[name] for name in LOW} for _ in range(2)]
    data = [open_partition(chosen.data(), k, 2) for k in range(2)]
    for number in (1, 2):
        sent = []
        for k in range(2):
            trainer.load({**own[k], **common})
            trainer.fit(data[k], chosen.local_training(number), torch_stream(0, "batches", number, str(k)))
            own[k] = trainer.read(LOW)
            sent.append(trainer.read(HIGH))
        common = weighted_mean(sent, [len(each.splits["train"]) for each in data])
    assert run.state.keys() == set(HIGH)
    assert all(torch.equal(run.state[name], tensor) for name, tensor in common.items())
    for mine, theirs in zip(kept(run), own, strict=True):
        assert mine.keys() == set(LOW)
        assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
    assert not torch.equal(own[0]["conv1.weight"], own[1]["conv1.weight"])
    for k in range(2):
        file = load_file(run.path / "model" / f"{k}.safetensors")
        assert all(torch.equal(file[name], tensor) for name, tensor in {**own[k], **common}.items())
