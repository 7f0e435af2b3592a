"""FedCP: its discrepancy by hand, noise that each client draws for itself, two heads, and what of them is sent."""

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
from torch.nn.functional import cross_entropy, layer_norm, linear

from fedham_flwr import models
from fedham_flwr.algorithms.fedcp import BANDWIDTHS, Conditional, as_in_evaluation, discrepancy
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.record_values import tensors
from fedham_flwr.models.heads import HeadSettings, features
from fedham_flwr.models.kernels import gumbel
from fedham_flwr.models.parts import Head, Policy, direction
from fedham_flwr.settings import parse
from fedham_flwr.training.engine.network import StackedNetwork
from fedham_flwr.training.engine.rows import generator, pad, real_samples
from fedham_flwr.training.modes import seeded
from fedham_flwr.training.own_loss import Batch

CPU = torch.device("cpu")
OWN, CONTEXT = ("fc2.personal.weight", "fc2.personal.bias"), "fc2.context.value"


def network(seed: int = 0, name: str = "digits-cnn", shape: tuple[int, ...] = (1, 8, 8)) -> Any:
    return models.build(name, shape, 10, seed, models.NetworkSettings.of(HeadSettings("policy")))


def samples(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 8, 8, generator=draw), torch.randint(0, 10, (count,), generator=draw)


# ---- the mathematics -------------------------------------------------------------------------------------------------


def test_the_discrepancy_by_hand() -> None:
    """One sample each, a distance of 5 apart: k(x, x) + k(y, y) - 2 k(x, y)."""
    found = discrepancy(torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[3.0, 4.0]]]))
    assert found.tolist() == pytest.approx([sum(2 - 2 * math.exp(-25 / (2 * width)) for width in BANDWIDTHS)])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 2**31))
def test_the_discrepancy_is_that_of_loops_over_each_clients_own_samples(sizes: list[int], seed: int) -> None:
    draw, width = torch.Generator().manual_seed(seed), max(sizes)
    rows, others = (3 * torch.randn(len(sizes), width, 2, generator=draw, dtype=torch.float64) for _ in range(2))

    def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        return sum(math.exp(-float((x - y).square().sum()) / (2 * s)) for s in BANDWIDTHS)

    real = real_samples(sizes, CPU)
    found = discrepancy(rows, others, None if real is None else real)
    for client, size in enumerate(sizes):
        a, b = rows[client, :size], others[client, :size]
        pairs = [kernel(p, q) + kernel(r, s) - 2 * kernel(p, s) for p, r in zip(a, b) for q, s in zip(a, b)]  # noqa: B905
        assert found[client].item() == pytest.approx(sum(pairs) / size**2, abs=1e-9)


def test_the_discrepancy_is_zero_and_flat_at_the_same_features_and_has_the_gradient_of_finite_differences() -> None:
    draw = torch.Generator().manual_seed(0)
    rows, others = (torch.randn(2, 3, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    rows.requires_grad_()
    same = discrepancy(rows, rows.detach())
    assert same.detach().tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    (slope,) = torch.autograd.grad(same.sum(), rows)
    assert slope.abs().max() < 1e-12
    assert torch.autograd.gradcheck(lambda x: discrepancy(x, others), (rows,))


def test_gumbel_noise_makes_the_largest_a_draw_of_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0])
    with seeded(CPU, 3):
        found = gumbel(logits.expand(20_000, 3), True).argmax(1).bincount() / 20_000
    assert torch.allclose(found, logits.softmax(0), atol=0.015)
    assert torch.equal(gumbel(logits, False), logits)


def test_the_gate_is_what_the_formula_says_and_without_noise_in_evaluation() -> None:
    model, (x, _) = network().eval(), samples(4)
    head, draw = model.fc2, torch.Generator().manual_seed(1)
    for param in head.parameters():
        param.data.normal_(generator=draw)
    z, outputs = features(model, "fc2", x)
    context = head.personal.weight.sum(0) / head.personal.weight.sum(0).norm()
    head.context.value.copy_(direction(head.personal.weight.detach()))
    assert torch.allclose(head.context.value, context)
    norm, outputs = head.policy.norm, model(x)
    logits = torch.relu(layer_norm((z * context) @ head.policy.linear.weight.T + head.policy.linear.bias, (128,),
                                   norm.weight, norm.bias))  # fmt: skip
    share = torch.exp(logits[:, :64]) / (torch.exp(logits[:, :64]) + torch.exp(logits[:, 64:]))
    wanted = linear(share * z, head.personal.weight, head.personal.bias)
    wanted = wanted + linear((1 - share) * z, head.weight, head.bias)
    assert torch.allclose(outputs, wanted, atol=1e-4)
    assert torch.equal(model(x), outputs)
    model.train()
    assert not torch.allclose(model(x), outputs, atol=1e-3)


@few(max_examples=10)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_loss_and_noise_of_many_clients_are_those_of_each(sizes: list[int]) -> None:
    """Of a folded batch, with weights of each client's own, and in which its samples are filled up with its first."""
    nets, (x, y) = [network(k) for k in range(len(sizes))], samples(sum(sizes))
    bodies = [{n: t for n, t in network(9 + k).state_dict().items() if not n.startswith("fc2")} for k in range(5)]
    losses = [Conditional("fc2", body, 3.0) for body in bodies]
    whole = losses[0].stacked(losses)  # the last ones have no step any more
    stacked = {name: torch.stack([net.state_dict()[name] for net in nets]) for name in nets[0].state_dict()}
    places = pad(torch.arange(len(y)).split(sizes), max(sizes)).flatten()
    batch = Batch(x[places], y[places], len(sizes), real_samples(sizes, CPU))
    runner, draws = StackedNetwork(network(), [x[:2]]), [generator(CPU, 100 + k) for k in range(len(sizes))]
    assert runner.drops
    found = runner.apply(whole, stacked, (batch,), batch.real, draws, sizes)
    wanted = []
    for place, (loss, net, a, b) in enumerate(zip(losses, nets, x.split(sizes), y.split(sizes), strict=False)):
        with seeded(CPU, 100 + place):
            wanted.append(loss(net, a, b))
        assert net.training
    assert torch.allclose(found, torch.stack(wanted), rtol=1e-4)


def test_the_body_that_came_works_as_in_evaluation_and_leaves_the_model_as_it_was() -> None:
    model = network(name="lenet-bn", shape=(3, 16, 16)).train()
    body = {n: t.clone() for n, t in model.state_dict().items() if t.is_floating_point() and not n.startswith("head.")}
    head = next(name for name, module in model.named_modules() if isinstance(module, Head))
    body = {name: tensor for name, tensor in body.items() if not name.startswith(head)}
    before = {name: tensor.clone() for name, tensor in body.items()}
    x, y = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
    with as_in_evaluation(model):
        was, _ = features(model, head, x)
    losses = []
    for weight in (0.0, 2.0):
        model.load_state_dict(before, strict=False)
        with seeded(CPU, 0):
            losses.append(Conditional(head, body, weight)(model, x, y))
    assert all(torch.equal(tensor, before[name]) for name, tensor in body.items())
    counts = [buffer for name, buffer in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert {int(count) for count in counts} == {2}  # of two losses, each of which ran the model itself once
    assert model.training
    model.load_state_dict(before, strict=False)
    now, _ = features(model, head, x)
    assert torch.allclose(losses[1] - losses[0], 2 * discrepancy(now[None], was[None])[0], atol=1e-4)


# ---- the rounds ------------------------------------------------------------------------------------------------------


def kept(run: Any) -> list[dict[str, torch.Tensor]]:
    return [tensors(context.state.array_records["personal"]) for context in run.grid.contexts.values()]


def test_a_round_is_the_training_written_out(federate: Callable[..., Any], settings: Callable[..., Any]) -> None:
    given = {"strategy": "fedcp", "num_server_rounds": 1, "samples_per_client": 64}
    run = federate(clients=1, partitioner="iid", min_clients=1, **given)
    chosen = parse(settings(partitioner="iid", min_clients=1, **given))
    data, training, model = open_partition(chosen.data(), 0, 1), chosen.local_training(1), network()
    stream, first = torch_stream(0, "batches", 1, "0"), models.build("digits-cnn", (1, 8, 8), 10, 0).eval()
    head, context = model.fc2, direction(model.fc2.weight.detach())
    trained = [param for name, param in model.named_parameters() if name not in ("fc2.weight", "fc2.bias")]
    optimizer = torch.optim.SGD(trained, training.learning_rate, training.momentum)
    index = data.splits["train"]
    with seeded(CPU, stream.initial_seed()):
        for batch in index[torch.randperm(len(index), generator=stream)].split(training.batch_size):
            x, y = inputs_and_targets(data.features[batch], data.labels[batch])
            with as_in_evaluation(model):
                z, _ = features(model, "fc2", x)
            logits = torch.relu(head.policy.norm(head.policy.linear(z * context))).view(-1, 2, 64)
            share = (logits - torch.empty_like(logits).exponential_().log()).softmax(1)[:, 0]
            loss = cross_entropy(head.personal(share * z) + linear((1 - share) * z, head.weight, head.bias), y)
            loss = loss + 5.0 * discrepancy(z[None], features(first, "fc2", x)[0].detach()[None])[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    wanted, (own,) = model.state_dict(), kept(run)
    assert own.keys() == {*OWN, CONTEXT}
    assert torch.allclose(own[CONTEXT], context)
    for name in ("weight", "bias"):
        assert torch.allclose(own[f"fc2.personal.{name}"], wanted[f"fc2.personal.{name}"], atol=2e-5)
        sent = (wanted[f"fc2.personal.{name}"] + first.state_dict()[f"fc2.{name}"]) / 2
        assert torch.allclose(run.state[f"fc2.{name}"], sent, atol=2e-5)
    assert not {*OWN, CONTEXT} & run.state.keys()
    for name in run.state.keys() - {"fc2.weight", "fc2.bias"}:
        assert torch.allclose(run.state[name], wanted[name], atol=2e-5), name


def test_with_the_gate_at_one_and_without_discrepancy_it_is_fedper(
    federate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Policy, "forward", lambda self, seen: torch.ones_like(seen))
    monkeypatch.setattr(Head, "own", lambda self, features: linear(features, self.weight))  # without its bias
    given = {"num_server_rounds": 2, "samples_per_client": 64}
    run = federate(strategy="fedcp", **given, **{"fedcp.discrepancy": 0.0})
    fedper = federate(strategy="fedper", **given)
    for name, tensor in fedper.state.items():
        assert torch.allclose(run.state[name], tensor, atol=1e-5), name
    for mine, theirs in zip(kept(run), kept(fedper), strict=True):
        for name in ("weight", "bias"):
            assert torch.allclose(mine[f"fc2.personal.{name}"], theirs[f"fc2.{name}"], atol=1e-5)


def test_the_exported_model_has_the_common_head_the_own_one_and_its_context(federate: Callable[..., Any]) -> None:
    run = federate(strategy="fedcp", classes_per_client=3, samples_per_client=64)
    files = sorted((run.path / "model").glob("*.safetensors"))
    heads = [own[OWN[0]] for own in kept(run)]
    assert not torch.equal(heads[0], heads[1])
    for file, own in zip(files, heads, strict=True):
        model = load_file(file)
        assert torch.equal(model["fc2.weight"], run.state["fc2.weight"])
        assert torch.equal(model[OWN[0]], own)
        assert torch.allclose(model[CONTEXT], direction(own))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"label_smoothing": 0.1}, r'strategy="fedcp" has losses of its own: wanted .* not label-smoothing=0.1'),
        ({"fedcp.discrepancy": -1.0}, r"fedcp\.discrepancy"),
    ],
)
def test_settings_that_cannot_be_are_a_sentence(
    federate: Callable[..., Any], changed: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        federate(strategy="fedcp", **changed)
