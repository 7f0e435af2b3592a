"""What a method may change of training and evaluation (which parameters, how many steps, which loss, how to predict).

And text, of which every position is a prediction.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_training import CPU, HOW, PLAIN, Linear, data, gap, generator, lenet, linear
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import LayerGroup, Params, module_group
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.training.local import LocalTraining
from fedham_flwr.training.trainer import Trainer

# ---- which parameters, how many steps, which loss --------------------------------------------------------------------


def moved(trainer: Trainer) -> set[str]:
    """Names of the parameters that are not what they were at first, bit for bit."""
    now = trainer.read(trainer.parameter_names)
    return {name for name in now if not torch.equal(now[name], trainer.initial[name])}


def ready(trainer: Trainer) -> bool:
    return all(param.requires_grad for param in trainer._model.parameters())


@pytest.mark.parametrize("names", [("fc1.weight",), ("fc3.bias", "conv1.weight")])
def test_only_the_named_parameters_are_trained(names: tuple[str, ...]) -> None:
    trainer, samples = lenet(), data(10, side=16)
    trainer.fit(samples, HOW, generator(), only=names)  # whose weight decay would move all others too
    assert moved(trainer) == set(names)
    assert ready(trainer)
    trainer.fit(samples, HOW, generator())
    assert moved(trainer) == set(trainer.parameter_names)


def test_a_group_that_is_not_trained_keeps_its_running_statistics_and_works_as_in_evaluation() -> None:
    """Of the normalisations only bn2 is trained: bn1 must neither move nor look at the batch."""
    trainer, samples = lenet(), data(10, side=16)
    first = trainer.state_dict()
    trainer.fit(samples, HOW, generator(), only=["bn2.weight", "bn2.bias", "fc3.weight"])
    now = trainer.state_dict()
    for name in first:
        stays = not name.startswith("bn2") and name != "fc3.weight"
        assert torch.equal(now[name], first[name]) == stays, name
    assert not trainer._model.get_submodule("bn1").training
    trainer.fit(samples, HOW, generator())
    assert not any(torch.equal(trainer.state_dict()[name], first[name]) for name in first)


def test_what_is_not_trained_has_no_gradient() -> None:
    trainer, seen = lenet(), []

    def look(name: str, _param: Tensor, _gradient: Tensor) -> None:
        seen.append((name, {n for n, param in trainer._model.named_parameters() if param.grad is not None}))

    trainer.fit(data(10, side=16), replace(HOW, steps=2), generator(), look, only=["fc2.weight", "fc3.bias"])
    trained = ("fc2.weight", "fc3.bias")
    assert seen == [(name, set(trained)) for name in trained] * 2


def test_training_all_by_name_is_training_and_training_one_is_holding_the_others() -> None:
    def hold_weight(name: str, _param: Tensor, gradient: Tensor) -> None:
        if name == "fc.weight":
            gradient.zero_()

    samples, (every, whole, one, held) = data(11), (linear() for _ in range(4))
    settings = replace(HOW, weight_decay=0.0)
    assert every.fit(samples, settings, generator(), only=every.parameter_names) == whole.fit(
        samples, settings, generator()
    )
    assert gap(every.state_dict(), whole.state_dict()) == 0
    assert one.fit(samples, settings, generator(), only=["fc.bias"]) == held.fit(
        samples, settings, generator(), hold_weight
    )
    assert gap(one.state_dict(), held.state_dict()) == 0
    assert gap(one.state_dict(), whole.state_dict()) > 1e-3


@pytest.mark.parametrize("settings", [PLAIN, replace(PLAIN, learning_rate=1e20)])
def test_after_an_error_all_parameters_can_be_trained_again(settings: LocalTraining) -> None:
    def fail(*_: object) -> Tensor:
        raise RuntimeError("the objective fails")

    trainer, samples = lenet(), data(8, side=16)
    objective = fail if settings is PLAIN else None
    with pytest.raises(
        RuntimeError if settings is PLAIN else UserError, match=r"the objective fails|training diverged"
    ):
        trainer.fit(samples, settings, generator(), loss=objective, only=["fc1.weight", "fc3.weight"])
    assert ready(trainer)


def batches_of(settings: LocalTraining, count: int = 11) -> tuple[list[Tensor], Params, float]:
    """The batches of a training, what it leaves, and the loss it reports."""
    seen, trainer = [], linear()

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append(x)
        return cross_entropy(model(x), y)

    loss = trainer.fit(data(count), settings, generator(), loss=objective)
    return seen, trainer.state_dict(), loss


@pytest.mark.parametrize("steps", [1, 3, 4, 6, 7])
def test_so_many_steps_are_taken_whatever_epochs_they_make(steps: int) -> None:
    """Of 11 samples in batches of 4, 4 and 3: the same batches as those of three epochs, and then no more."""
    all_batches = batches_of(replace(HOW, local_epochs=3))[0]
    for epochs in (1, 5):
        seen, _, loss = batches_of(replace(HOW, local_epochs=epochs, steps=steps))
        assert len(seen) == steps
        assert all(torch.equal(x, other) for x, other in zip(seen, all_batches, strict=False))
    if steps % 3 == 0:
        assert gap(batches_of(replace(HOW, steps=steps))[1], batches_of(replace(HOW, local_epochs=steps // 3))[1]) == 0
        assert loss == batches_of(replace(HOW, local_epochs=steps // 3))[2]


def test_the_loss_of_some_steps_is_that_of_the_epoch_they_end_in() -> None:
    losses: list[float] = []

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        losses.append(cross_entropy(model(x), y).item())
        return cross_entropy(model(x), y)

    loss = linear().fit(data(11), replace(PLAIN, steps=5), generator(), loss=objective)
    assert loss == pytest.approx((losses[3] + losses[4]) / 2)  # batches of 4, 4, 3 and then 4, 4


@pytest.mark.parametrize("count", [1, 4, 9])
def test_the_reach_of_some_steps_is_theirs(count: int) -> None:
    assert replace(PLAIN, steps=5).reach(count) == pytest.approx(5 * 0.1)
    assert replace(HOW, steps=5).reach(count) == pytest.approx(5 * 0.1 / (1 - 0.9))


def test_the_cross_entropy_is_the_objective_unless_another_is_given() -> None:
    samples, (usual, given, double) = data(11), (linear() for _ in range(3))
    once = replace(PLAIN, steps=1)
    loss = usual.fit(samples, once, generator())
    assert given.fit(samples, once, generator(), loss=lambda m, x, y: cross_entropy(m(x), y)) == loss
    assert gap(given.state_dict(), usual.state_dict()) == 0
    twice = double.fit(samples, once, generator(), loss=lambda m, x, y: 2 * cross_entropy(m(x), y))
    assert twice == pytest.approx(2 * loss)
    for name, start in usual.initial.items():
        step = usual.state_dict()[name] - start
        assert torch.allclose(double.state_dict()[name] - start, 2 * step, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("count", [1, 256, 300])
def test_encoding_gives_features_and_targets_in_the_order_of_the_split(count: int) -> None:
    samples, trainer = data(4, count), Trainer(Linear(rate=0.5), CPU, "fp32")
    trainer.fit(samples, PLAIN, generator())  # so that it was in training last
    features, targets = trainer.encode(samples, "test")
    index = samples.splits["test"]
    assert (features.dtype, features.requires_grad) == (torch.float32, False)
    assert torch.equal(features, samples.features[index].flatten(1) / 127.5 - 1)
    assert torch.equal(targets, samples.labels[index])


@pytest.mark.parametrize("count", [1, 300])
def test_what_a_method_predicts_is_what_is_scored(count: int) -> None:
    trainer, samples = linear(), data(4, count)
    rows = []

    def predictor(model: nn.Module, x: Tensor) -> Tensor:
        assert model is trainer._model
        assert not torch.is_grad_enabled()
        rows.append(len(x))
        return torch.tensor([[math.log(0.25), math.log(0.5), math.log(0.25)]]).expand(len(x), -1)

    hits = int((samples.labels[samples.splits["test"]] == 1).sum())
    scores = trainer.evaluate(samples, "test", predictor)
    assert scores.n == sum(rows) == count
    assert scores.values["accuracy"] == hits / count
    assert scores.loss == pytest.approx((hits * math.log(2) + (count - hits) * math.log(4)) / count, rel=1e-6)


# ---- text ------------------------------------------------------------------------------------------------------------

T, VOCABULARY = 5, 7


class Table(nn.Module):
    """Logits of the next character by the present one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, VOCABULARY)
        self.table.weight.data = torch.sin(torch.arange(49.0)).reshape(VOCABULARY, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.table(x)
        return logits

    def layer_groups(self) -> list[LayerGroup]:
        return [module_group(self, "table")]


class OneHot(nn.Module):
    """A linear layer on which character it is."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(VOCABULARY, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.nn.functional.one_hot(x, VOCABULARY).float())
        return logits

    def layer_groups(self) -> list[LayerGroup]:
        return [module_group(self, "head")]


def texts(train: int, test: int = 0) -> ClientData:
    rng, count = np.random.default_rng(0), train + test + 3
    numbers = torch.from_numpy(rng.permutation(count))
    return ClientData(
        torch.from_numpy(rng.integers(0, VOCABULARY, (count, T + 1), dtype=np.uint8)),
        torch.zeros(count, dtype=torch.int64),
        {"train": numbers[:train], "test": numbers[train : train + test]},
        tuple("abcdefg"),
        "someone",
    )


@pytest.mark.parametrize("count", [1, 300])
def test_of_a_text_every_position_is_a_prediction(count: int) -> None:
    samples, trainer = texts(2, count), Trainer(Table(), CPU, "fp32")
    table, hits, loss = Table().table.weight.tolist(), 0, 0.0
    for row in samples.features[samples.splits["test"]].tolist():
        for present, following in pairwise(row):
            logits = table[present]
            hits += max(range(VOCABULARY), key=lambda k, z=logits: z[k]) == following
            loss += math.log(sum(map(math.exp, logits))) - logits[following]
    scores = trainer.evaluate(samples, "test")
    assert scores.n == count * T
    assert scores.values["accuracy"] == hits / scores.n
    assert scores.loss == pytest.approx(loss / scores.n, rel=1e-5)
    features, targets = Trainer(OneHot(), CPU, "fp32").encode(samples, "test")
    assert features.shape == (count * T, VOCABULARY)
    stored = samples.features[samples.splits["test"]].long()
    assert torch.equal(features.argmax(1), stored[:, :-1].flatten())
    assert torch.equal(targets, stored[:, 1:].flatten())


def test_a_step_on_text_is_that_of_the_mean_over_all_positions() -> None:
    samples, trainer = texts(6), Trainer(Table(), CPU, "fp32")
    loss = trainer.fit(samples, replace(PLAIN, local_epochs=1, batch_size=6), generator())
    weight = Table().table.weight.detach().double()
    slope, total = torch.zeros_like(weight), 0.0
    for row in samples.features[samples.splits["train"]].tolist():
        for present, following in pairwise(row):
            p = torch.softmax(weight[present], 0)
            total -= math.log(p[following]) / (6 * T)
            p[following] -= 1
            slope[present] += p / (6 * T)
    assert loss == pytest.approx(total, rel=1e-5)
    assert gap(trainer.read(["table.weight"]), {"table.weight": weight - 0.1 * slope}) <= 1e-6
