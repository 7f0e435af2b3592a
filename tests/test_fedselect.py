"""FedSelect: masks that grow, their bits, means by loops, steps of some weights, and FedAvg where nothing is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from faults import tampered
from hypothesis import given
from hypothesis import strategies as st
from presets import network
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedham_flwr.algorithms import fedavg
from fedham_flwr.algorithms.fedselect import (
    MASK,
    Masked,
    aggregate,
    check_mask,
    grown,
    packed,
    unpacked,
    weights,
)
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params, load_, read
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.record_values import tensors
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.runners.cohort import CohortGrid
from fedham_flwr.settings import Value, parse
from fedham_flwr.training.trainer import Trainer

Federate = Callable[..., Any]
FEW: dict[str, Value] = {"strategy": "fedselect", "samples_per_client": 64}
SOON: dict[str, Value] = {"fedselect.every": 1, "fedselect.growth": 0.5}
CPU = torch.device("cpu")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kept(run: Any) -> list[Params]:
    return [tensors(context.state.array_records["personal"]) for context in run.grid.contexts.values()]


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_the_weights_that_moved_furthest_become_personal_until_the_limit_by_hand() -> None:
    mask = torch.tensor([[False, False, True], [False, False, False]])
    moved = torch.tensor([[0.1, -3.0, 9.0], [2.0, 0.0, -0.5]])
    once = grown(mask, moved, 0.4, 0.8)  # two of five
    assert once.tolist() == [[False, True, True], [True, False, False]]
    assert grown(once, moved, 0.4, 0.8).tolist() == [[False, True, True], [True, False, True]]  # one of three
    assert torch.equal(grown(once, moved, 1.0, 0.5), once)  # three of six is the limit
    assert torch.equal(grown(once, moved, 0.0, 1.0), once)
    assert grown(torch.zeros(3, dtype=torch.bool), torch.ones(3), 0.4, 1.0).tolist() == [True, False, False]


@given(st.integers(1, 40), st.floats(0, 1), st.floats(0, 1), st.integers(0, 999))
def test_a_mask_only_grows_and_ends_at_the_limit(size: int, growth: float, limit: float, seed: int) -> None:
    mask = torch.zeros(size, dtype=torch.bool)
    for number in range(4):
        new = grown(mask, noise(size, seed=seed + number), growth, limit)
        assert bool((new | ~mask).all())
        assert int(new.sum()) <= int(limit * size)
        added = new & ~mask
        if bool(added.any()):
            rest = noise(size, seed=seed + number).abs()
            assert rest[added].min() >= rest[~new].max() if bool((~new).any()) else True
        mask = new


@given(st.lists(st.integers(1, 5), min_size=0, max_size=3), st.integers(0, 999))
def test_bits_come_back_as_the_mask(shape: list[int], seed: int) -> None:
    mask = noise(*shape, seed=seed) > 0
    bits = packed(mask)
    assert len(bits) == -(-mask.numel() // 8)
    assert torch.equal(unpacked(bits, tuple(shape)), mask)
    check_mask("w", bits, tuple(shape), 1.0)


def test_bits_by_hand() -> None:
    mask = torch.tensor([True, False, False, False, False, False, True, True, True, False])
    assert packed(mask).tolist() == [0b10000011, 0b10000000]


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (torch.zeros(2), r"the mask of w is torch.float32 \(2,\), wanted torch.uint8 \(2,\)"),
        (torch.zeros(3, dtype=torch.uint8), r"the mask of w is torch.uint8 \(3,\), wanted torch.uint8 \(2,\)"),
        (torch.tensor([0, 1], dtype=torch.uint8), r"the mask of w has bits beyond its 10 weights"),
        (torch.tensor([255, 128], dtype=torch.uint8), r"the mask of w keeps 9 of 10 weights, wanted at most 0.8 of it"),
    ],
)
def test_what_is_no_mask_is_refused(bits: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_mask("w", bits, (2, 5), 0.8)


def test_biases_are_never_personal() -> None:
    manifest = manifest_of(network("fedselect"), [])
    assert weights(manifest) == ("conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight")
    torch_names = {"rnn.bias_ih_l0", "attention.in_proj_bias", "fc.bias"}
    assert all("bias" in name.rpartition(".")[2] for name in torch_names)


# ---- the mean --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(0, 999))
def test_the_mean_is_that_of_loops(n: int, seed: int) -> None:
    before = {"w": noise(3, 2, seed=seed), "b": noise(2, seed=seed + 1)}
    models = [{"w": noise(3, 2, seed=seed + 10 + k), "b": noise(2, seed=seed + 20 + k)} for k in range(n)]
    masks = [{"w": noise(3, 2, seed=seed + 30 + k) > 0} for k in range(n)]
    samples = [k + 1 for k in range(n)]
    found = aggregate(before, models, masks, samples)
    torch.testing.assert_close(found["b"], fedavg.aggregate(models, samples)["b"])
    for row in range(3):
        for column in range(2):
            there = [k for k in range(n) if not masks[k]["w"][row, column]]
            total = sum(samples[k] * models[k]["w"][row, column].item() for k in there)
            wanted = total / sum(samples[k] for k in there) if there else before["w"][row, column].item()
            assert found["w"][row, column].item() == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    if n > 1 and not any(bool(mask["w"][0, 0]) for mask in masks):
        assert found["w"][0, 0] == fedavg.aggregate(models, samples)["w"][0, 0]


def test_without_masks_the_mean_is_fedavgs_bit_for_bit_and_nobodys_weight_stays() -> None:
    models, samples = [{"w": noise(50, seed=k)} for k in range(3)], [3, 11, 17]
    none, whole = ([{"w": torch.full((50,), on)} for _ in models] for on in (False, True))
    before = {"w": noise(50, seed=9)}
    assert torch.equal(aggregate(before, models, none, samples)["w"], fedavg.aggregate(models, samples)["w"])
    assert torch.equal(aggregate(before, models, whole, samples)["w"], before["w"])


# ---- steps -----------------------------------------------------------------------------------------------------------


def test_frozen_weights_stay_bit_for_bit_and_the_others_take_torchs_steps(settings: Callable[..., Any]) -> None:
    """With momentum and weight decay; torch's model has its frozen weights put back after each step."""
    chosen = parse(settings(**FEW, momentum=0.9, weight_decay=0.1))
    data, training = open_partition(chosen.data(), 0, 4), chosen.local_training(1)
    net, plain = network("fedselect"), network("fedselect")
    trainer = Trainer(net, CPU, "fp32")
    first = read(net, trainer.manifest.names())
    free = {name: (noise(*first[name].shape, seed=1) > 0).float() for name in trainer.parameter_names}
    trainer.fit(data, training, torch_stream(0, "x"), rule=Masked(free, training.learning_rate, training.momentum))
    after = trainer.read(trainer.manifest.names())
    load_(plain, first)
    plain.train()
    optimizer = torch.optim.SGD(plain.parameters(), training.learning_rate, 0.9, weight_decay=0.1)
    order = data.splits["train"][torch.randperm(len(data.splits["train"]), generator=torch_stream(0, "x"))]
    for batch in order.split(training.batch_size):
        x, y = inputs_and_targets(data.features[batch], data.labels[batch])
        optimizer.zero_grad()
        cross_entropy(plain(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            for name, param in plain.named_parameters():
                param.copy_(torch.where(free[name] > 0, param, first[name]))
    for name, param in plain.named_parameters():
        assert torch.equal(after[name][free[name] == 0], first[name][free[name] == 0])
        torch.testing.assert_close(after[name], param.detach(), rtol=1e-4, atol=1e-6)


# ---- federations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"fedselect.growth": 0.0, "fedselect.every": 1}, {"fedselect.limit": 0.0}])
def test_with_nothing_personal_it_is_fedavg_bit_for_bit(federate: Federate, given: dict[str, Value]) -> None:
    mine, theirs = federate(**FEW, **given), federate(**{**FEW, "strategy": "fedavg"})
    assert mine.state.keys() == theirs.state.keys()
    assert all(torch.equal(tensor, theirs.state[name]) for name, tensor in mine.state.items())
    personal = [[row.value for row in run.rows if row.phase == "after"] for run in (mine, theirs)]
    assert personal[0] == personal[1]


def test_masks_grow_and_what_is_personal_stays(federate: Federate) -> None:
    run = federate(**FEW, **SOON, num_server_rounds=3)
    for own in kept(run):
        was, mask = (unpacked(own[f"{p}/fc1.weight"], run.state["fc1.weight"].shape) for p in ("was", "next"))
        assert float(was.float().mean()) == pytest.approx(0.75, abs=0.01)  # after two growths
        assert float(mask.float().mean()) == pytest.approx(0.8, abs=0.01)  # the limit
        assert bool((mask | ~was).all())
        assert own["count/rounds"].tolist() == [3]
        assert not torch.equal(own["own/fc1.weight"], run.state["fc1.weight"])
    first, second = (own["next/fc1.weight"] for own in kept(run)[:2])
    assert not torch.equal(first, second)


def test_a_round_with_personal_weights_written_out(federate: Federate, settings: Callable[..., Any]) -> None:
    """The second round: from what the first left, by torch, an epoch of the personal weights and one of the others."""
    given = {**FEW, **SOON, "momentum": 0.5, "partitioner": "iid", "min_clients": 1, "local_epochs": 2}
    one, two = (federate(**given, clients=1, num_server_rounds=rounds) for rounds in (1, 2))
    (own,), chosen = kept(one), parse(settings(**given))
    data, training = open_partition(chosen.data(), 0, 1), chosen.local_training(2)
    net = network("fedselect")
    load_(net, one.state)  # what became personal in the first round starts from its mean
    free = {n: torch.zeros(p.shape, dtype=torch.bool) for n, p in net.named_parameters()}
    free |= {n: unpacked(own[f"next/{n}"], tuple(free[n].shape)) for n in weights(manifest_of(net, []))}
    for epoch in range(2):
        for what in ("personal", "shared"):
            moment = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
            index = data.splits["train"]
            order = index[torch.randperm(len(index), generator=torch_stream(0, f"{what} {epoch}", 2, "0"))]
            for batch in order.split(training.batch_size):
                net.zero_grad()
                x, y = inputs_and_targets(data.features[batch], data.labels[batch])
                cross_entropy(net(x), y).backward()
                with torch.no_grad():
                    for name, param in net.named_parameters():
                        assert param.grad is not None
                        moment[name] = 0.5 * moment[name] + param.grad * (free[name] == (what == "personal"))
                        param.sub_(moment[name], alpha=training.learning_rate)
    (later,) = kept(two)
    for name, param in net.named_parameters():
        shared = torch.where(free[name], one.state[name], param.detach())
        torch.testing.assert_close(two.state[name], shared, rtol=1e-4, atol=1e-6)
        if name in weights(manifest_of(net, [])):
            torch.testing.assert_close(later[f"own/{name}"], param.detach(), rtol=1e-4, atol=1e-6)


def test_a_cohort_with_masks_is_one_client_after_the_other(federate: Federate) -> None:
    given = {**FEW, **SOON, "clients": 3, "num_server_rounds": 2, "weight_decay": 0.01}
    alone, cohort = federate(**given), federate(**given, grid=CohortGrid)
    assert cohort.summary["engine"]["alone"] == {}
    for name, tensor in alone.state.items():
        torch.testing.assert_close(cohort.state[name], tensor, rtol=1e-3, atol=1e-4)


def test_masks_travel_as_bits_and_a_bad_one_is_one_failed_reply(federate: Federate) -> None:
    def lie(_message: Any, reply: Any) -> None:
        for record in reply.content.array_records.values():
            for name in [name for name in record if name.startswith(MASK)]:
                del record[name]

    run = federate(**FEW, clients=3, num_server_rounds=1, client_app=tampered(lie, client=1))
    (failure,) = run.records[0]["failures"]
    assert failure["client"] == "1"
    assert failure["error"].startswith("tensors are missing: ['mask/conv1.weight'")
    shapes = run.state
    bits = sum(-(-shapes[name].numel() // 8) for name in weights(manifest_of(network("fedselect"), [])))
    assert run.summary["bytes"]["train"]["up"] == 2 * (4 * sum(t.numel() for t in shapes.values()) + bits)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"optimizer": "adam"}, r'takes steps of its own, of SGD: wanted .*, not optimizer="adam"$'),
        ({"nesterov": True, "momentum": 0.9}, r"not nesterov=true$"),
        ({"max_grad_norm": 1.0}, r"not max-grad-norm=1$"),
    ],
)
def test_another_optimiser_is_refused(federate: Federate, changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        federate(**FEW, **changed)
