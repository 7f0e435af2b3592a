"""FedRoD: its balanced softmax by hand, two losses that share no gradient, and a head that stays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from fedham_flwr import models, registry
from fedham_flwr.algorithms.fedrod import BothHeads, balanced_cross_entropy
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.record_values import tensors
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.models.heads import HeadSettings
from fedham_flwr.settings import parse

PERSONAL = ("fc2.personal.weight", "fc2.personal.bias")


@given(st.integers(2, 6), st.integers(1, 5), st.integers(1, 50), st.integers(0, 2**31))
def test_balanced_softmax_with_equal_counts_is_the_cross_entropy(k: int, b: int, count: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(b, k, generator=draw, dtype=torch.float64)
    targets = torch.randint(k, (b,), generator=draw)
    counts = torch.full((k,), float(count), dtype=torch.float64)
    torch.testing.assert_close(balanced_cross_entropy(logits, targets, counts).mean(), cross_entropy(logits, targets))


def test_balanced_softmax_by_hand_and_a_class_without_samples_is_never_predicted() -> None:
    logits = torch.tensor([[0.0, math.log(2.0), 5.0]], dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
    # 3 e^0 : 1 e^(log 2) : 0 e^5 = 3 : 2 : 0
    loss = balanced_cross_entropy(logits, torch.tensor([1]), counts)
    assert loss.item() == pytest.approx(-math.log(2 / 5))
    (slope,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(slope, torch.tensor([[3 / 5, 2 / 5 - 1, 0.0]], dtype=torch.float64))


def test_balanced_softmax_has_the_gradient_of_finite_differences() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([7.0, 2.0, 11.0], dtype=torch.float64)
    targets = torch.tensor([0, 2, 1, 1])
    assert torch.autograd.gradcheck(lambda x: balanced_cross_entropy(x, targets, counts), (logits,))


def test_a_step_is_that_of_two_losses_of_which_one_moves_the_personal_head_alone() -> None:
    """By autograd of each loss on its own: on a body and a generic head, and on detached features and logits."""
    settings = models.NetworkSettings.of(HeadSettings("second"))
    model: Any = models.build("digits-cnn", (1, 8, 8), 10, 0, settings)
    draw = torch.Generator().manual_seed(0)
    model.fc2.personal.weight.data.normal_(generator=draw)
    x, y = torch.randn(7, 1, 8, 8, generator=draw), torch.randint(10, (7,), generator=draw)
    counts = torch.bincount(y, minlength=10)
    BothHeads("fc2", counts.tolist(), torch.device("cpu"))(model, x, y).backward()
    found = {name: param.grad.clone() for name, param in model.named_parameters()}
    model.zero_grad()
    seen: list[torch.Tensor] = []
    hook = model.fc2.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(x)
    hook.remove()
    generic = seen[0] @ model.fc2.weight.T + model.fc2.bias
    cross_entropy(generic + counts.log(), y).backward()
    personal = seen[0].detach() @ model.fc2.personal.weight.T + model.fc2.personal.bias
    cross_entropy(generic.detach() + personal, y).backward()
    for name, param in model.named_parameters():
        assert torch.allclose(found[name], param.grad, atol=1e-6), name


def kept(run: Any) -> list[dict[str, torch.Tensor]]:
    return [tensors(context.state.array_records["personal"]) for context in run.grid.contexts.values()]


def test_a_round_is_the_training_written_out(federate: Callable[..., Any], settings: Callable[..., Any]) -> None:
    given = {"strategy": "fedrod", "num_server_rounds": 1, "samples_per_client": 64}
    run = federate(clients=1, partitioner="iid", min_clients=1, **given)
    chosen = parse(settings(partitioner="iid", min_clients=1, **given))
    data = open_partition(chosen.data(), 0, 1)
    model = models.build("digits-cnn", (1, 8, 8), 10, 0, chosen.networks())
    training, counts = chosen.local_training(1), data.label_counts("train")
    optimizer = torch.optim.SGD(model.parameters(), training.learning_rate, training.momentum)
    index = data.splits["train"]
    order = index[torch.randperm(len(index), generator=torch_stream(0, "batches", 1, "0"))]
    loss = BothHeads("fc2", counts, torch.device("cpu"))
    for batch in order.split(training.batch_size):
        x, y = inputs_and_targets(data.features[batch], data.labels[batch])
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()
    wanted, (own,) = model.state_dict(), kept(run)
    assert own.keys() == set(PERSONAL)
    for name, tensor in {**run.state, **own}.items():
        assert torch.allclose(tensor, wanted[name], atol=1e-6), name


def test_personal_heads_stay_and_are_part_of_the_exported_model(federate: Callable[..., Any]) -> None:
    run = federate(strategy="fedrod", classes_per_client=3, samples_per_client=64)
    assert not [name for name in run.state if "personal" in name]
    heads = [own[PERSONAL[0]] for own in kept(run)]
    assert not torch.equal(heads[0], heads[1])
    files = sorted((run.path / "model").glob("*.safetensors"))
    assert len(files) == 4
    assert all(torch.equal(load_file(file)[PERSONAL[0]], head) for file, head in zip(files, heads, strict=True))


def test_the_generic_head_is_fedavgs_where_every_client_has_as_many_samples_of_each_class() -> None:
    method = registry.method("fedrod")
    model = models.build("mlp", (2, 13), 2, 0, models.NetworkSettings.of(HeadSettings("second")))
    split = method.split_of(manifest_of(model, []), None)
    assert split.personal == ("head.personal.weight", "head.personal.bias")
    x, y = torch.randn(6, 2, 13, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 0, 1, 0, 1])
    loss = BothHeads("head", [3, 3], torch.device("cpu"))
    slopes = torch.autograd.grad(loss(model, x, y), [model.head.weight, model.head.bias])  # type: ignore[list-item]
    plain = models.build("mlp", (2, 13), 2, 0)
    theirs = torch.autograd.grad(cross_entropy(plain(x), y), [plain.head.weight, plain.head.bias])  # type: ignore[list-item]
    assert all(torch.allclose(mine, other, atol=1e-6) for mine, other in zip(slopes, theirs, strict=True))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"label_smoothing": 0.1}, r'strategy="fedrod" has losses of its own: wanted .* not label-smoothing=0.1'),
        ({"class_weights": "balanced"}, r'strategy="fedrod" has losses of its own: .* not class-weights="balanced"'),
    ],
)
def test_another_loss_is_refused(federate: Callable[..., Any], changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        federate(strategy="fedrod", **changed)
