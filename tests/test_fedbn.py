"""FedBN: which layers normalise, that they stay with the client, and that without any it is FedAvg."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fedham_flwr import models
from fedham_flwr.algorithms.fedbn import FedBNSettings, split
from fedham_flwr.core.normalisation import normalisation
from fedham_flwr.core.parameters import LayerGroup, Manifest
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.core.trees import weighted_mean
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.record_values import tensors
from fedham_flwr.models.grouping import find_groups, manifest_of
from fedham_flwr.settings import parse
from fedham_flwr.training.trainer import Trainer

Federate = Callable[..., Any]
NORM = ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
NETWORK = "test_fedbn:Normalised"


class Normalised(nn.Module):
    """For the digits, with batch normalisation."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(shape[0], 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(144, outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.conv(x)).relu().flatten(1))
        return logits


class Layers(nn.Module):
    """Layers of many kinds, which never run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bare = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, bias=False)
        self.linear, self.square, self.narrow = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(1, 1)
        self.words, self.memory = nn.Embedding(4, 4), nn.GRU(4, 4)
        self.attention, self.slope = nn.MultiheadAttention(4, 2), nn.PReLU()
        self.batch1, self.batch2 = nn.BatchNorm1d(4), nn.BatchNorm2d(4, affine=False)
        self.instances = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        self.group, self.layer = nn.GroupNorm(2, 4), nn.LayerNorm((4, 3))
        self.shiftless, self.root = nn.LayerNorm(4, bias=False), nn.RMSNorm(4)
        self.single = nn.InstanceNorm2d(4, affine=True)
        self.token = nn.Parameter(torch.zeros(4))


RUNNING = (nn.modules.batchnorm._BatchNorm, nn.InstanceNorm2d)
ALL = (nn.modules.batchnorm._BatchNorm, nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def by_type(model: nn.Module, layers: str) -> set[str]:
    """The same by the modules themselves: names of their floating-point tensors."""
    found = set()
    for name, module in model.named_modules():
        running = isinstance(module, RUNNING) and module.running_mean is not None  # type: ignore[union-attr]
        if running or (layers == "all" and isinstance(module, ALL)):
            own = [*module.named_parameters(), *module.named_buffers()]
            found |= {f"{name}.{n}" for n, tensor in own if tensor.is_floating_point()}
    return found


VIT, TEXT = ("vit", (3, 16, 16)), ("char-transformer", (8, 30))


@pytest.mark.parametrize("layers", ["batch", "all"])
def test_what_the_manifest_tells_is_what_the_modules_are(layers: Any) -> None:
    networks: list[nn.Module] = [Layers(), Normalised((1, 8, 8), 10)]
    networks += [models.build(name, shape, 5, 0) for name, shape in (("lenet-bn", (1, 28, 28)), VIT, ("mlp", (2, 6)))]
    for model in networks:
        manifest = manifest_of(model, [])
        found = normalisation(manifest, layers)
        assert set(found) == by_type(model, layers), type(model).__name__
        assert found == tuple(name for name in manifest.names() if name in found)
    assert len(normalisation(manifest_of(Layers(), []), "batch")) == 4 + 2 + 4
    assert len(normalisation(manifest_of(Layers(), []), "all")) == 4 + 2 + 4 + 2 + 2 + 1 + 1 + 2


def test_a_layer_group_may_hold_more_than_its_normalisation() -> None:
    """Of a group of a convolution and what normalises it only the latter stays; statistics without a scale too."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False))
    block = LayerGroup("block", ("0.weight", "0.bias", "1.weight", "1.bias"), tuple(
        f"{place}.running_{what}" for place in (1, 2) for what in ("mean", "var")
    ))  # fmt: skip
    for manifest in (Manifest.of(model, [block]), Manifest.of(model, find_groups(model, []))):
        assert split(manifest, FedBNSettings()).shared == ("0.weight", "0.bias")


@pytest.mark.parametrize(("layers", "said"), [("batch", "batch normalisation"), ("all", "normalisation layers")])
def test_without_normalisation_it_is_fedavg_bit_for_bit_and_says_so(
    federate: Federate, caplog: pytest.LogCaptureFixture, layers: str, said: str
) -> None:
    run, average = federate(strategy="fedbn", **{"fedbn.layers": layers}), federate(strategy="fedavg")
    assert run.summary["digest"] == average.summary["digest"]
    assert run.rows == average.rows
    assert f'strategy="fedbn": this network has no {said}, so that it is fedavg' in caplog.messages


def test_where_only_other_layers_normalise_the_run_says_how_to_keep_them(
    federate: Federate, caplog: pytest.LogCaptureFixture
) -> None:
    small = {"model": "vit", "vit.patch-size": 4, "vit.width": 8, "vit.depth": 1, "vit.heads": 1, "vit.head-dim": 8}
    given = {**small, "strategy": "fedbn", "samples_per_client": 32, "num_server_rounds": 1, "clients": 2}
    federate(**given)
    assert 'is fedavg; fedbn.layers="all" keeps its other normalisation layers with the clients' in caplog.text
    caplog.clear()
    run = federate(**given, **{"fedbn.layers": "all"})
    assert "is fedavg" not in caplog.text
    assert not [name for name in run.state if "norm" in name]
    kept = [tensors(context.state.array_records["personal"]) for context in run.grid.contexts.values()]
    assert "blocks.0.norm1.weight" in kept[0]
    assert not torch.equal(kept[0]["blocks.0.norm1.bias"], kept[1]["blocks.0.norm1.bias"])


def test_two_rounds_are_the_trainings_written_out(federate: Federate, settings: Callable[..., Any]) -> None:
    """Of two clients, whose layers normalise by their own statistics, scale and shift also in the second round."""
    given = {"strategy": "fedbn", "samples_per_client": 64, "model": NETWORK}
    run = federate(clients=2, **given)
    chosen = parse(settings(**given))
    model = models.build(NETWORK, (1, 8, 8), 10, 0, chosen.networks())
    trainer = Trainer(model, torch.device("cpu"), "fp32", manifest_of(model, models.trial_batches((1, 8, 8))))
    common = {name: tensor for name, tensor in trainer.initial.items() if name not in NORM}
    own = [{name: trainer.initial[name] for name in NORM} for _ in range(2)]
    data = [open_partition(chosen.data(), k, 2) for k in range(2)]
    before = {}
    for number in (1, 2, 3):
        sent = []
        for k in range(2):
            trainer.load({**common, **own[k]})
            before[number, str(k)] = trainer.evaluate(data[k], "test").loss
            if number == 3:
                continue
            trainer.fit(data[k], chosen.local_training(number), torch_stream(0, "batches", number, str(k)))
            own[k] = trainer.read(NORM)
            sent.append(trainer.read(list(common)))
        common = weighted_mean(sent, [len(each.splits["train"]) for each in data]) if sent else common
    assert run.state.keys() == common.keys()
    assert all(torch.equal(run.state[name], tensor) for name, tensor in common.items())
    for k, context in enumerate(run.grid.contexts.values()):
        kept = tensors(context.state.array_records["personal"])
        assert kept.keys() == set(NORM)
        assert all(torch.equal(kept[name], tensor) for name, tensor in own[k].items())
        file = load_file(run.path / "model" / f"{k}.safetensors")
        assert all(torch.equal(file[name], tensor) for name, tensor in {**common, **own[k]}.items())
    for name in NORM:
        assert not torch.equal(own[0][name], own[1][name]), name
    rows = {(r.round, r.client): r.value for r in run.rows if r[2:6] == ("test", "personal", "before", "loss")}
    assert rows == before
