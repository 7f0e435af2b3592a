"""GPFL: its conditions and losses by hand, the valve, decay of two parts alone, and heads and conditions that stay."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as few
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, layer_norm

from fedham_flwr import models
from fedham_flwr.algorithms import gpfl
from fedham_flwr.algorithms.gpfl import Decay, Guided, angular, condition, distance
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.record_values import tensors
from fedham_flwr.models.heads import HeadSettings, features
from fedham_flwr.models.parts import Valve
from fedham_flwr.settings import parse
from fedham_flwr.training.engine.network import StackedNetwork
from fedham_flwr.training.engine.rows import pad, real_samples
from fedham_flwr.training.own_loss import Batch

CPU = torch.device("cpu")
CONDITION, EMBEDDINGS = "fc2.condition.value", "fc2.embeddings.weight"


def network(seed: int = 0) -> Any:
    return models.build("digits-cnn", (1, 8, 8), 10, seed, models.NetworkSettings.of(HeadSettings("valve")))


def samples(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 8, 8, generator=draw), torch.randint(0, 10, (count,), generator=draw)


# ---- the mathematics -------------------------------------------------------------------------------------------------


def test_a_condition_is_the_mean_of_embeddings_by_shares() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]])
    assert condition(embeddings, [3, 1, 0]).tolist() == [0.75, 0.5]
    assert condition(embeddings, [3, 1]).tolist() == [0.75, 0.5]  # of data that know of fewer classes
    assert condition(embeddings, [2, 2, 2]).tolist() == pytest.approx(embeddings.mean(0).tolist())


def test_the_angular_loss_by_hand() -> None:
    rows = torch.tensor([[2.0, 0.0], [0.0, 0.5]], dtype=torch.float64)
    embeddings = torch.tensor([[[3.0, 0.0], [0.0, 7.0]]], dtype=torch.float64)
    found = angular(rows, embeddings, torch.tensor([0, 0]))
    assert found.tolist() == pytest.approx([math.log(1 + math.exp(-1)), math.log(1 + math.e)])


def test_the_distance_is_of_the_whole_batch_and_no_mean_and_flat_at_zero() -> None:
    goals = torch.tensor([[[1.0, 1.0], [0.0, 2.0]]])
    rows = torch.tensor([[1.0, 4.0], [4.0, 2.0]], requires_grad=True)
    batch = Batch(torch.zeros(2), torch.tensor([0, 1]))
    assert distance(rows, goals, batch.y, batch).tolist() == [5.0]  # of (0, 3) and (4, 0)
    (slope,) = torch.autograd.grad(distance(rows * 0 + goals[0], goals, batch.y, batch).sum(), rows)
    assert not slope.any()


def test_the_losses_have_the_gradients_of_finite_differences() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    embeddings = torch.randn(2, 5, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    batch = Batch(torch.zeros(4), torch.tensor([0, 4, 1, 1]), 2)
    assert torch.autograd.gradcheck(lambda x, e: angular(x, e, batch.y), (rows, embeddings))
    assert torch.autograd.gradcheck(lambda x: distance(x, embeddings.detach(), batch.y, batch), (rows,))


def test_the_valve_is_what_the_formula_says_of_each_sample_under_its_clients_condition() -> None:
    valve, draw = Valve(3), torch.Generator().manual_seed(0)
    z, conditions = torch.randn(4, 2, 3, generator=draw), torch.randn(2, 3, generator=draw)
    found = valve(z, conditions)
    for i in range(4):
        c = conditions[i // 2]
        gamma, beta = (
            layer_norm(torch.relu(p[0].weight @ c + p[0].bias), (3,), p[2].weight, p[2].bias)  # type: ignore[union-attr,operator]
            for p in (valve.gamma, valve.beta)
        )
        for word in range(2):
            wanted = torch.clamp(z[i, word] * (gamma + 1) + beta, min=0)
            assert torch.allclose(found[i, word], wanted, atol=1e-6)
    assert torch.allclose(valve(z[:2, 0], conditions[:1]), found[:2, 0], atol=1e-6)


@few(max_examples=10)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_the_loss_of_many_clients_is_that_of_each(sizes: list[int]) -> None:
    """Of a folded batch, with weights of each client's own, and in which its samples are filled up with its first."""
    nets, (x, y) = [network(k) for k in range(len(sizes))], samples(sum(sizes))
    for net in nets:
        net.fc2.condition.value.normal_(generator=torch.Generator().manual_seed(len(y)))
    losses = [Guided("fc2", torch.randn(10, 64, generator=torch.Generator().manual_seed(k)), 0.3) for k in range(5)]
    whole = losses[0].stacked(losses)  # the last ones have no step any more
    stacked = {name: torch.stack([net.state_dict()[name] for net in nets]) for name in nets[0].state_dict()}
    places = pad(torch.arange(len(y)).split(sizes), max(sizes)).flatten()
    batch = Batch(x[places], y[places], len(sizes), real_samples(sizes, CPU))
    found = StackedNetwork(network().eval(), [x[:2]]).apply(whole, stacked, (batch,), batch.real)
    parts = zip(losses, nets, x.split(sizes), y.split(sizes), strict=False)
    wanted = torch.stack([loss(net, a, b) for loss, net, a, b in parts])
    assert torch.allclose(found, wanted, rtol=1e-4)


def test_decay_is_of_the_named_parameters_alone() -> None:
    term, slopes = Decay(("a",), 0.5), {name: torch.ones(2) for name in "ab"}
    for name, slope in slopes.items():
        term(name, torch.tensor([2.0, 4.0]), slope)
    assert {name: slope.tolist() for name, slope in slopes.items()} == {"a": [2.0, 3.0], "b": [1.0, 1.0]}


# ---- the rounds ------------------------------------------------------------------------------------------------------


def kept(run: Any) -> list[dict[str, torch.Tensor]]:
    return [tensors(context.state.array_records["personal"]) for context in run.grid.contexts.values()]


def test_a_round_is_the_training_written_out(federate: Callable[..., Any], settings: Callable[..., Any]) -> None:
    """Three losses on three optimisers, of which two have a decay, as the authors have it."""
    given = {"strategy": "gpfl", "num_server_rounds": 1, "samples_per_client": 64, "gpfl.magnitude": 0.2}
    run = federate(clients=1, partitioner="iid", min_clients=1, **given)
    chosen = parse(settings(partitioner="iid", min_clients=1, **given))
    data, training, model = open_partition(chosen.data(), 0, 1), chosen.local_training(1), network()
    guided = [p for name, p in model.named_parameters() if "valve" in name or "embeddings" in name]
    others = [p for name, p in model.named_parameters() if "valve" not in name and "embeddings" not in name]
    optimizers = [
        torch.optim.SGD(params, training.learning_rate, training.momentum, weight_decay=decay)
        for params, decay in ((others, 0.0), (guided, 0.1))
    ]
    index, first = data.splits["train"], model.fc2.embeddings.weight.detach().clone()
    shares = torch.tensor(data.label_counts("train")) / len(index)
    personal, common = shares @ first, first.mean(0)
    order = index[torch.randperm(len(index), generator=torch_stream(0, "batches", 1, "0"))]
    for batch in order.split(training.batch_size):
        x, y = inputs_and_targets(data.features[batch], data.labels[batch])
        z, _ = features(model, "fc2", x)
        outputs = model.fc2.valve(z, personal[None]) @ model.fc2.weight.T + model.fc2.bias
        rows, classes = model.fc2.valve(z, common[None]), model.fc2.embeddings.weight
        cosines = (rows @ classes.T) / rows.norm(dim=1, keepdim=True) / classes.norm(dim=1)
        loss = cross_entropy(outputs, y) + cross_entropy(cosines, y) + 0.2 * (rows - first[y]).norm()
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    wanted, (own,) = {**model.state_dict(), CONDITION: personal}, kept(run)
    assert own.keys() == {"fc2.weight", "fc2.bias", CONDITION}
    for name, tensor in {**run.state, **own}.items():
        assert torch.allclose(tensor, wanted[name], atol=2e-5), name


def test_with_an_open_valve_and_without_both_losses_it_is_fedper(
    federate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Valve, "forward", lambda self, features, conditions: features)
    monkeypatch.setattr(gpfl, "angular", lambda rows, embeddings, targets: torch.zeros(len(rows)))
    given = {"num_server_rounds": 2, "samples_per_client": 64}
    run = federate(strategy="gpfl", **given, **{"gpfl.magnitude": 0.0})
    fedper = federate(strategy="fedper", **given)
    assert not [name for name in fedper.state if name.startswith("fc2")]
    for name, tensor in fedper.state.items():
        assert torch.allclose(run.state[name], tensor, atol=1e-5), name
    for mine, theirs in zip(kept(run), kept(fedper), strict=True):
        assert theirs.keys() == {"fc2.weight", "fc2.bias"}
        assert all(torch.allclose(mine[name], tensor, atol=1e-5) for name, tensor in theirs.items())


def test_the_exported_model_has_the_head_that_was_kept_and_the_condition_of_the_last_embeddings(
    federate: Callable[..., Any], settings: Callable[..., Any]
) -> None:
    given = {"strategy": "gpfl", "classes_per_client": 3, "samples_per_client": 64}
    run = federate(**given)
    assert {name.rpartition(".")[0] for name in run.state if name.startswith("fc2")} >= {"fc2.embeddings"}
    assert not {"fc2.weight", "fc2.bias", CONDITION} & run.state.keys()
    files = sorted((run.path / "model").glob("*.safetensors"))
    for number, (file, own) in enumerate(zip(files, kept(run), strict=True)):
        counts = open_partition(parse(settings(**given)).data(), number, 4).label_counts("train")
        shares = torch.tensor(counts, dtype=torch.float32) / sum(counts)
        model = load_file(file)
        assert torch.allclose(model[CONDITION], shares @ run.state[EMBEDDINGS], atol=1e-6)
        assert torch.equal(model["fc2.weight"], own["fc2.weight"])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"label_smoothing": 0.1}, r'strategy="gpfl" has losses of its own: wanted .* not label-smoothing=0.1'),
        ({"gpfl.magnitude": -1.0}, r"gpfl\.magnitude"),
        ({"gpfl.decay": -1.0}, r"gpfl\.decay"),
    ],
)
def test_settings_that_cannot_be_are_a_sentence(
    federate: Callable[..., Any], changed: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        federate(strategy="gpfl", **changed)
