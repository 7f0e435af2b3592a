"""FedDBE: its means by hand, the loss of many clients, an offset that stays, and a common mean asked for once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as few
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_bounds_rounds import CLIENTS, server
from torch.nn.functional import cross_entropy

from fedham_flwr import models
from fedham_flwr.algorithms.feddbe import MEAN, MeanRegularised, mean_of, regularisation
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.messages import Upload
from fedham_flwr.federation.record_values import tensors
from fedham_flwr.models.heads import HeadSettings, features
from fedham_flwr.models.parts import OffsetHead
from fedham_flwr.settings import parse
from fedham_flwr.training.engine.rows import pad, real_samples
from fedham_flwr.training.own_loss import Batch

CPU = torch.device("cpu")
OFFSET, D = "fc2.offset.vector", 64


def network(offset: float = 0.0) -> Any:
    model: Any = models.build("digits-cnn", (1, 8, 8), 10, 0, models.NetworkSettings.of(HeadSettings("offset")))
    model.fc2.offset.vector.data.normal_(std=offset, generator=torch.Generator().manual_seed(1)) if offset else None
    return model


def samples(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 8, 8, generator=draw), torch.randint(0, 10, (count,), generator=draw)


# ---- the mathematics --------------------------------------------------------------------------------


def test_the_common_mean_by_hand() -> None:
    found = mean_of([torch.tensor([1.0, 0.0]), torch.tensor([5.0, 4.0])], [3, 1])
    assert found.tolist() == [2.0, 1.0]
    assert found.dtype == torch.float32


def test_the_regularisation_by_hand_and_by_finite_differences() -> None:
    means = torch.tensor([[1.0, 3.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    goal = torch.tensor([[0.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    assert regularisation(means, goal, 50.0).tolist() == [25 * (1 + 4) / 2, 25 * 4 / 2]
    assert torch.autograd.gradcheck(lambda x: regularisation(x, goal, 3.0), (means,))


@few(max_examples=10)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.sampled_from([0.3, 1.0]))
def test_the_loss_of_many_clients_is_that_of_each_in_each_of_two_steps(sizes: list[int], mu: float) -> None:
    """Of a folded batch, in which each client's samples are filled up with its first one."""
    model, (x, y) = network(0.5).eval(), samples(sum(sizes))
    goals = torch.randn(len(sizes) + 1, D, generator=torch.Generator().manual_seed(2))
    losses = [MeanRegularised("fc2", goal, 20.0, mu) for goal in goals]
    whole = losses[0].stacked(losses)  # the last one has no step any more
    places = pad(torch.arange(len(y)).split(sizes), max(sizes)).flatten()
    for shift in (0.0, 0.3):
        found = whole(model, Batch(x[places] + shift, y[places], len(sizes), real_samples(sizes, CPU)))
        apart = zip(losses, (x + shift).split(sizes), y.split(sizes), strict=False)
        wanted = torch.stack([loss(model, a, b) for loss, a, b in apart])
        assert torch.allclose(found, wanted, rtol=1e-5)


def test_the_running_mean_takes_in_each_batch_and_has_the_gradient_of_the_last_alone() -> None:
    """By a loop over samples: first m = 0.4 mean(z), then 0.6 of that and 0.4 of the next batch's."""
    model, (x, y), goal = network(0.5).eval(), samples(6), torch.full((D,), 0.2)
    loss = MeanRegularised("fc2", goal, 10.0, 0.4)
    loss(model, x[:2], y[:2])
    found = loss(model, x[2:], y[2:])
    (slope,) = torch.autograd.grad(found, [model.fc1.weight])

    def mean(some: torch.Tensor) -> torch.Tensor:
        return sum(features(model, "fc2", one[None])[0][0] for one in some) / len(some)  # type: ignore[return-value]

    running = 0.6 * 0.4 * mean(x[:2]).detach() + 0.4 * mean(x[2:])
    wanted = cross_entropy(model(x[2:]), y[2:]) + 5.0 * sum((running - goal) ** 2) / D
    assert torch.allclose(found, wanted, rtol=1e-5)
    assert torch.allclose(slope, torch.autograd.grad(wanted, [model.fc1.weight])[0], atol=1e-6)
    assert torch.allclose(loss.values["running"], running.detach(), atol=1e-6)


def test_the_offset_is_added_to_what_the_head_sees_and_starts_at_zero() -> None:
    model, plain, (x, _) = network(), models.build("digits-cnn", (1, 8, 8), 10, 0), samples(3)
    assert torch.equal(model(x), plain(x))
    model.fc2.offset.vector.data.fill_(0.25)
    seen, outputs = features(model, "fc2", x)
    assert torch.equal(seen, features(plain, "fc2", x)[0])
    assert torch.allclose(outputs, (seen + 0.25) @ model.fc2.weight.T + model.fc2.bias, atol=1e-6)


# ---- the rounds --------------------------------------------------------------------------------


def kept(run: Any) -> list[dict[str, torch.Tensor]]:
    return [tensors(context.state.array_records["personal"]) for context in run.grid.contexts.values()]


def trained(model: Any, data: Any, training: Any, purpose: str, loss: Callable[..., torch.Tensor]) -> None:
    """An epoch of SGD, written out."""
    optimizer = torch.optim.SGD(model.parameters(), training.learning_rate, training.momentum)
    index = data.splits["train"]
    order = index[torch.randperm(len(index), generator=torch_stream(0, purpose, 1, "0"))]
    for batch in order.split(training.batch_size):
        x, y = inputs_and_targets(data.features[batch], data.labels[batch])
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()


def test_a_round_is_the_training_written_out(federate: Callable[..., Any], settings: Callable[..., Any]) -> None:
    given = {"strategy": "feddbe", "num_server_rounds": 1, "samples_per_client": 64, "feddbe.mu": 0.7}
    run = federate(clients=1, partitioner="iid", min_clients=1, **given)
    chosen = parse(settings(partitioner="iid", min_clients=1, **given))
    data, training = open_partition(chosen.data(), 0, 1), chosen.local_training(1)
    plain = models.build("digits-cnn", (1, 8, 8), 10, 0)
    trained(plain, data, training, "first", lambda x, y: cross_entropy(plain(x), y))
    index = data.splits["train"]
    x, _ = inputs_and_targets(data.features[index], data.labels[index])
    goal = features(plain, "fc2", x)[0].mean(0).detach()
    assert torch.allclose(run.state["feddbe/mean"], goal, atol=1e-5)
    model, running = network(), torch.zeros(D)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        nonlocal running
        z, outputs = features(model, "fc2", x)
        now = 0.3 * running + 0.7 * z.mean(0)
        running = now.detach()
        return cross_entropy(outputs, y) + 25.0 * ((now - goal) ** 2).mean()

    trained(model, data, training, "batches", loss)
    wanted, (own,) = model.state_dict(), kept(run)
    assert own.keys() == {OFFSET}
    found = {**run.state, **own}
    found.pop("feddbe/mean")
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert torch.allclose(tensor, wanted[name], atol=1e-5), name


def test_without_regularisation_and_offset_it_is_fedavg(
    federate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OffsetHead, "forward", lambda self, features: self.own(features))
    given = {"num_server_rounds": 2, "samples_per_client": 64}
    run, fedavg = federate(strategy="feddbe", **given, **{"feddbe.kappa": 0.0}), federate(strategy="fedavg", **given)
    assert all(not own[OFFSET].any() for own in kept(run))
    assert run.state.keys() == fedavg.state.keys() | {"feddbe/mean"}
    for name, tensor in fedavg.state.items():
        assert torch.allclose(run.state[name], tensor, atol=1e-5), name


def test_offsets_stay_and_are_part_of_the_exported_model(federate: Callable[..., Any]) -> None:
    run = federate(strategy="feddbe", classes_per_client=3, samples_per_client=64)
    assert not [name for name in run.state if "offset" in name]
    offsets = [own[OFFSET] for own in kept(run)]
    assert all(own.keys() == {OFFSET} for own in kept(run))
    assert not torch.equal(offsets[0], offsets[1])
    files = sorted((run.path / "model").glob("*.safetensors"))
    assert all(torch.equal(load_file(file)[OFFSET], own) for file, own in zip(files, offsets, strict=True))


def test_everyone_is_asked_once_and_the_mean_stays(federate: Callable[..., Any]) -> None:
    given = {"strategy": "feddbe", "fraction_train": 0.5, "samples_per_client": 64, "evaluate_every": 1}
    runs = [federate(num_server_rounds=rounds, **given) for rounds in (1, 2)]
    asked = [(record["round"], record["cohort"]) for record in runs[1].records if record["kind"] == "query"]
    assert [(number, sorted(who)) for number, who in asked] == [(1, ["0", "1", "2", "3"])]
    assert len(next(record for record in runs[1].records if record["kind"] == "train")["cohort"]) == 2
    assert torch.equal(runs[0].state["feddbe/mean"], runs[1].state["feddbe/mean"])


# ---- the server's half --------------------------------------------------------------------------------


def answers(means: Mapping[str, torch.Tensor]) -> dict[str, Upload]:
    return {client: Upload(client, {}, 10 + int(client), (), extras={MEAN: mean}) for client, mean in means.items()}


def test_who_gives_no_answer_is_left_out_and_the_state_holds_the_mean() -> None:
    made = server("feddbe")
    assert set(made.questions(1, CLIENTS[:1])) == set(CLIENTS)
    assert all(not start.extras.tensors for start in made.plan(1, CLIENTS).values())
    made.answered(1, answers({"1": torch.full((D,), 1.0), "3": torch.full((D,), 4.0)}))
    wanted = torch.full((D,), (11 * 1.0 + 13 * 4.0) / 24)
    assert torch.allclose(made.plan(1, CLIENTS)["0"].extras.tensors[MEAN], wanted)
    assert not made.questions(2, CLIENTS)
    other = server("feddbe")
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.plan(1, ("9",))["9"].extras.tensors[MEAN], made.plan(1, ("9",))["9"].extras.tensors[MEAN])
    assert not other.questions(2, CLIENTS)
    fresh = server("feddbe")
    fresh.load_state_dict(server("feddbe").state_dict())
    assert fresh.questions(1, CLIENTS)
    with pytest.raises(ValueError, match=r"the mean of features is torch\.float32"):
        fresh.load_state_dict({**made.state_dict(), "feddbe/mean": torch.zeros(3)})


@pytest.mark.parametrize(
    ("stage", "sent", "sentence"),
    [
        ("query", {}, r"tensors other than the model's are \[\], wanted \['mean'\]"),
        ("train", {MEAN: torch.zeros(D)}, r"tensors other than the model's are \['mean'\], wanted \[\]"),
        ("query", {MEAN: torch.zeros(D - 1)}, r"the mean of features is torch.float32 \(63,\), wanted float32 \(64,\)"),
        ("query", {MEAN: torch.zeros(D).double()}, r"the mean of features is torch.float64"),
        ("query", {MEAN: torch.full((D,), torch.nan)}, "the mean of features is not finite, or longer than 1e"),
        ("query", {MEAN: torch.full((D,), 1e30)}, "the mean of features is not finite, or longer than 1e"),
    ],
)
def test_what_is_no_mean_is_refused(stage: str, sent: dict[str, torch.Tensor], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        server("feddbe").check_extras(stage, "0", sent)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"label_smoothing": 0.1}, r'strategy="feddbe" has losses of its own: wanted .* not label-smoothing=0.1'),
        ({"feddbe.mu": 0.0}, r"feddbe\.mu"),
        ({"feddbe.kappa": -1.0}, r"feddbe\.kappa"),
    ],
)
def test_settings_that_cannot_be_are_a_sentence(
    federate: Callable[..., Any], changed: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        federate(strategy="feddbe", **changed)
