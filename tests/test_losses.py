"""Losses: smoothing and class weights against naive loops, and a user's own by import path."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_training import CLASSES, CPU, PLAIN, Linear, data, gap, generator, linear
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.settings import Value, parse
from fedham_flwr.training import losses
from fedham_flwr.training.losses import TASK_LOSS, LossSettings
from fedham_flwr.training.trainer import Trainer

Federate = Callable[..., Any]
BALANCED = LossSettings(class_weights="balanced")


def never() -> Tensor:
    raise AssertionError("the targets of the training split were asked for")


def naive(logits: Tensor, targets: Tensor, smoothing: float, weights: list[float]) -> float:
    """The weighted mean of sum_c q_c w_c (-log p_c), where q is the smoothed one-hot target."""
    total = norm = 0.0
    k = logits.shape[-1]
    for row, target in zip(logits.double().tolist(), targets.tolist(), strict=True):
        top = max(row)
        log_sum = top + math.log(sum(math.exp(value - top) for value in row))
        for c in range(k):
            q = (1 - smoothing) * (c == target) + smoothing / k
            total += q * weights[c] * (log_sum - row[c])
        norm += weights[target]
    return total / norm


@given(st.integers(0, 1000), st.integers(2, 5), st.sampled_from([0.0, 0.1, 0.5]), st.booleans())
def test_the_cross_entropy_against_a_naive_loop(seed: int, k: int, smoothing: float, balance: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits, everything = torch.randn(6, k, generator=draw) * 3, torch.randint(k, (20,), generator=draw)
    targets = everything[:6]
    counts = [int((everything == c).sum()) for c in range(k)]
    weights = [20 / (k * n) if n else 0.0 for n in counts] if balance else [1.0] * k
    options = LossSettings(label_smoothing=smoothing, class_weights="balanced" if balance else "none")
    loss = losses.make(options, lambda: everything, CPU)
    assert loss(logits, targets).item() == pytest.approx(naive(logits, targets, smoothing, weights), rel=1e-5)


def test_by_default_it_is_the_mean_cross_entropy_bit_for_bit_and_counts_nothing() -> None:
    loss = losses.make(TASK_LOSS, never, CPU)
    for shape in ((5, 3), (5, 4, 3)):
        logits, targets = torch.randn(shape, generator=generator()), torch.ones(shape[:-1], dtype=torch.int64)
        assert torch.equal(loss(logits, targets), cross_entropy(logits.flatten(0, -2), targets.flatten()))


def test_balanced_weights_by_hand() -> None:
    targets = torch.tensor([0, 0, 0, 2, 2, 2, 2, 3])
    assert losses.balanced(targets, 4).tolist() == pytest.approx([8 / 12, 0.0, 8 / 16, 8 / 4])
    assert losses.balanced(targets.view(2, 4), 4).tolist() == losses.balanced(targets, 4).tolist()
    assert losses.balanced(torch.arange(5), 5).tolist() == [1.0] * 5


# ---- in training -----------------------------------------------------------------------------------------------------


def step_of(options: Any, samples: ClientData) -> dict[str, Tensor]:
    """The gradient by which one step over all samples goes."""
    trainer = linear()
    start = trainer.state_dict()
    trainer.fit(samples, replace(PLAIN, local_epochs=1, batch_size=100, learning_rate=1.0, loss=options), generator())
    return {name: start[name] - tensor for name, tensor in trainer.state_dict().items()}


@pytest.mark.parametrize(
    "options", [BALANCED, LossSettings(label_smoothing=0.2), replace(BALANCED, label_smoothing=0.3)]
)
def test_training_descends_it_with_the_counts_of_the_training_split(options: LossSettings) -> None:
    samples = data(11, test=9)
    index = samples.splits["train"]
    x, y = inputs_and_targets(samples.features[index], samples.labels[index])
    counts = torch.tensor([(y == c).sum().item() for c in range(CLASSES)]).float()
    weights = 11 / (CLASSES * counts) if options.class_weights == "balanced" else None
    model = Linear()
    cross_entropy(model(x), y, weights, label_smoothing=options.label_smoothing).backward()  # type: ignore[no-untyped-call]
    wanted = {name: param.grad for name, param in model.named_parameters() if param.grad is not None}
    assert gap(step_of(options, samples), wanted) < 1e-6
    assert gap(step_of(TASK_LOSS, samples), wanted) > 1e-3


def test_the_counts_are_of_the_whole_split_and_not_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor] = []
    balanced = losses.balanced
    monkeypatch.setattr(losses, "balanced", lambda targets, k: found.append(targets) or balanced(targets, k))
    samples = data(300)  # more than are gathered at once
    linear().fit(samples, replace(PLAIN, batch_size=7, loss=BALANCED), generator())
    assert len(found) == 1
    assert torch.equal(found[0].sort().values, samples.labels[samples.splits["train"]].sort().values)


def test_a_gradient_is_of_the_same_loss() -> None:
    samples = data(11)
    slope = linear().gradient(samples, "train", 100, generator(), BALANCED)
    assert gap(slope, step_of(BALANCED, samples)) < 1e-6
    assert gap(slope, dict(linear().gradient(samples, "train", 100, generator()))) > 1e-3


def test_the_loss_of_a_method_goes_before_the_setting() -> None:
    def half(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model(x), y) / 2

    samples, options = data(8), replace(PLAIN, local_epochs=1, batch_size=8)
    mine, plain = linear(), linear()
    mine.fit(samples, replace(options, loss=LossSettings("test_losses:refuses")), generator(), None, half)
    plain.fit(samples, replace(options, learning_rate=options.learning_rate / 2), generator())
    assert gap(mine.state_dict(), plain.state_dict()) < 1e-7


# ---- a user's own ----------------------------------------------------------------------------------------------------


def focal(outputs: Tensor, targets: Tensor, gamma: float = 0.0) -> Tensor:
    chosen = outputs.log_softmax(-1).gather(-1, targets[:, None])
    return -((1 - chosen.exp()) ** gamma * chosen).mean()


def make_focal() -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs, targets: focal(outputs, targets, 0.0)


def refuses(outputs: Tensor, targets: Tensor) -> Tensor:
    raise ValueError(f"not with {list(outputs.shape)}\nnor any others")


def one_each(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets, reduction="none")


def a_number(outputs: Tensor, targets: Tensor) -> float:
    return cross_entropy(outputs.detach(), targets).item()


def constant(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.tensor(1.0)


def makes_nothing() -> None:
    return None


class Wants:
    def __init__(self, power: float) -> None:
        self.power = power


class Breaks:
    def __init__(self) -> None:
        raise RuntimeError("out of order")


module = nn.CrossEntropyLoss()
NOT_ONE = 3


@pytest.mark.parametrize("name", ["test_losses:focal", "test_losses:make_focal", "test_losses:module"])
def test_a_function_what_makes_one_and_a_module_are_losses(name: str) -> None:
    samples, own = data(8), linear()
    own.fit(samples, replace(PLAIN, loss=LossSettings(name)), generator())
    plain = linear()
    plain.fit(samples, PLAIN, generator())
    assert gap(own.state_dict(), plain.state_dict()) < 1e-6


@pytest.mark.parametrize("name", ["torch.nn:CrossEntropyLoss", "torch.nn.functional:cross_entropy"])
def test_torchs_losses_work_as_they_are_for_texts_too(name: str) -> None:
    own, task = (losses.make(options, never, CPU) for options in (LossSettings(name), TASK_LOSS))
    for shape in ((5, 3), (5, 4, 3)):
        logits, targets = torch.randn(shape, generator=generator(), requires_grad=True), torch.ones(shape[:-1]).long()
        assert torch.equal(own(logits, targets), task(logits, targets))


def test_targets_that_are_no_classes_are_passed_as_they_are() -> None:
    own = losses.make(LossSettings("torch.nn:MSELoss"), never, CPU)
    outputs = torch.tensor([[1.0], [3.0]], requires_grad=True)
    assert own(outputs, torch.tensor([[0.0], [1.0]])).item() == pytest.approx((1 + 4) / 2)


REFUSED = [
    ("test_losses:lost", 'loss="test_losses:lost": the module test_losses has no lost; it has '),
    ("no_such_module:loss", 'loss="no_such_module:loss": there is no module no_such_module'),
    ("test_losses:NOT_ONE", 'loss="test_losses:NOT_ONE" gives int, and wanted is a function of (outputs, targets)'),
    ("test_losses:makes_nothing", 'loss="test_losses:makes_nothing" gives NoneType, and wanted is a function of '),
    ("test_losses:Wants", "loss: Wants wants power, which it is not called with"),
    ("test_losses:Breaks", 'loss="test_losses:Breaks" cannot be made: RuntimeError: out of order'),
    (
        "test_losses:refuses",
        'loss="test_losses:refuses" cannot be called with outputs [2, 3] and targets [2]: ValueError: not with [2, 3]',
    ),
    (
        "test_losses:one_each",
        'loss="test_losses:one_each": one_each gives (2,), and wanted is the mean loss, a tensor without dimensions',
    ),
    ("test_losses:a_number", 'loss="test_losses:a_number": a_number gives float, and wanted is the mean loss'),
    ("test_losses:constant", 'loss="test_losses:constant": what constant gives does not depend on the outputs'),
]


@pytest.mark.parametrize(("name", "sentence"), REFUSED)
def test_what_is_no_loss_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        losses.check(LossSettings(name), torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_run_ends_before_its_first_round(federate: Federate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "fit", lambda *_: pytest.fail("trained"))
    with pytest.raises(UserError, match=r'^loss="test_losses:one_each": one_each gives \(2,\)'):
        federate(clients=2, strategy="fedavg", loss="test_losses:one_each")


def test_federations_with_a_loss_of_ones_own_and_with_smoothing_and_weights(federate: Federate) -> None:
    small: dict[str, Value] = {"strategy": "fedavg", "num-server-rounds": 1}
    digests = [
        federate(clients=2, **small, **more).summary["digest"]
        for more in ({}, {"loss": "torch.nn:CrossEntropyLoss"}, {"label-smoothing": 0.1, "class-weights": "balanced"})
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("given_settings", "sentence"),
    [
        ({"loss": "huber"}, "loss='huber': wanted 'auto' or an import path 'package.module:Object'"),
        ({"label-smoothing": 1.0}, "label-smoothing=1.0: wanted less than 1"),
        ({"class-weights": "equal"}, "class-weights='equal': wanted 'none' or 'balanced'"),
        (
            {"loss": "torch.nn:HuberLoss", "label-smoothing": 0.1},
            'label-smoothing and class-weights belong to the cross-entropy, not to loss="torch.nn:HuberLoss": wanted 0 '
            'and "none"',
        ),
    ],
)
def test_settings_that_do_not_fit(given_settings: dict[str, Value], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(given_settings)
    assert str(caught.value) == f"settings: {sentence}"


def test_the_settings_reach_local_training() -> None:
    settings = parse({"label-smoothing": 0.2, "class-weights": "balanced"})
    assert settings.local_training(1).loss == LossSettings("auto", 0.2, "balanced")
    assert parse({"loss": "torch.nn:MSELoss"}).local_training(1).loss.name == "torch.nn:MSELoss"


@dataclass(frozen=True)
class Power:
    power: float = 1.0


def by_settings(outputs: Tensor, targets: Tensor, settings: Power) -> Tensor:
    return cross_entropy(outputs, targets) ** settings.power


def make_by_settings(settings: Power) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs, targets: by_settings(outputs, targets, settings)


@pytest.mark.parametrize(
    ("given_settings", "wanted"),
    [
        ({"loss": "test_losses:focal", "focal.gamma": 2.0}, lambda p: -((1 - p) ** 2) * math.log(p)),
        ({"loss": "test_losses:by_settings", "by-settings.power": 2.0}, lambda p: math.log(p) ** 2),
        ({"loss": "test_losses:make_by_settings", "make-by-settings.power": 3.0}, lambda p: (-math.log(p)) ** 3),
        ({"loss": "torch.nn:CrossEntropyLoss", "crossentropyloss.reduction": "sum"}, lambda p: -math.log(p)),
    ],
)
def test_an_own_loss_has_settings_of_its_own(
    given_settings: dict[str, Value], wanted: Callable[[float], float]
) -> None:
    loss = losses.make(parse(given_settings).local_training(1).loss, never, CPU)
    logits = torch.tensor([[1.0, 0.0]], requires_grad=True)
    assert loss(logits, torch.tensor([0])).item() == pytest.approx(wanted(1 / (1 + math.exp(-1))), rel=1e-5)
