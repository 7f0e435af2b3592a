"""Optimisers against torch's classes, a user's own by import path, clipping, and local steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_training import HOW, PLAIN, data, gap, generator, linear
from torch import Tensor, nn

from fedham_flwr.core.errors import UserError
from fedham_flwr.mixing import hypernetworks
from fedham_flwr.settings import Value, parse
from fedham_flwr.training import optim
from fedham_flwr.training.local import LocalTraining, steps
from fedham_flwr.training.trainer import Trainer

Federate = Callable[..., Any]


def params(seed: int = 0) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((7, 5), (40,), (2, 3, 4))]


def descend(mine: Sequence[nn.Parameter], optimizer: Any, count: int = 6, skip: int = -1) -> None:
    """Some steps along gradients that depend on the parameters; the one at `skip` has none in the first two."""
    for step in range(count):
        for i, param in enumerate(mine):
            param.grad = None if i == skip and step < 2 else torch.cos(3 * param.detach() + step)
        optimizer.step()


ADAM, OWN = replace(HOW, optimizer="adam", beta1=0.8, beta2=0.95), replace(HOW, optimizer="torch.optim:RMSprop")
LIKE_SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
LIKE_ADAM: dict[str, Any] = {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.01}
CASES: list[tuple[LocalTraining, type[torch.optim.Optimizer], dict[str, Any]]] = [
    (HOW, torch.optim.SGD, {**LIKE_SGD, "fused": True}),
    (PLAIN, torch.optim.SGD, {"lr": 0.1, "fused": True}),
    (
        replace(HOW, nesterov=True),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True},
    ),
    (ADAM, torch.optim.Adam, {**LIKE_ADAM, "fused": True}),
    (replace(ADAM, optimizer="adamw"), torch.optim.AdamW, {**LIKE_ADAM, "fused": True}),
    (OWN, torch.optim.RMSprop, LIKE_SGD),
    (replace(ADAM, optimizer="torch.optim:NAdam"), torch.optim.NAdam, LIKE_ADAM),
]


@pytest.mark.parametrize(("settings", "theirs", "given"), CASES)
def test_an_optimiser_is_torchs_bit_for_bit(
    settings: LocalTraining, theirs: type[torch.optim.Optimizer], given: dict[str, Any]
) -> None:
    mine, other, start = params(), params(), params()
    descend(mine, optim.make(mine, settings))
    descend(other, theirs(other, **given))
    assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(mine, start, strict=True))


@pytest.mark.parametrize("settings", [PLAIN, replace(HOW, nesterov=True), ADAM, replace(ADAM, optimizer="adamw")])
def test_a_parameter_without_a_gradient_stays_as_it_is(settings: LocalTraining) -> None:
    mine, alone, start = params(), params(), params()
    descend(mine, optim.make(mine, settings), count=2, skip=1)
    assert torch.equal(mine[1], start[1])
    without = [alone[0], alone[2]]
    descend(without, optim.make(without, settings), count=2)
    assert torch.equal(mine[0], alone[0])
    assert torch.equal(mine[2], alone[2])


def test_adam_and_adamw_differ_by_where_weight_decay_goes() -> None:
    for decay, same in ((0.0, True), (0.1, False)):
        mine, other = params(), params()
        descend(mine, optim.make(mine, replace(ADAM, weight_decay=decay)))
        descend(other, optim.make(other, replace(ADAM, weight_decay=decay, optimizer="adamw")))
        assert torch.equal(mine[0], other[0]) is same


@pytest.mark.parametrize("settings", [HOW, ADAM])
def test_a_gradient_that_comes_later_is_a_first_one(settings: LocalTraining) -> None:
    late, early = params(), params()
    optimizer = optim.make(late, settings)
    for step in range(4):
        for i, param in enumerate(late):
            param.grad = None if i == 1 and step < 2 else torch.full_like(param, 0.5)
        optimizer.step()
    only = [early[1]]
    optimizer = optim.make(only, settings)
    for _ in range(2):
        only[0].grad = torch.full_like(only[0], 0.5)
        optimizer.step()
    torch.testing.assert_close(late[1], early[1], rtol=0, atol=1e-6)


def test_the_hypernetworks_take_the_same_step() -> None:
    assert hypernetworks.momentum_step is optim.momentum_step
    for fused in (None, True):
        weight, gradient = torch.ones(3), torch.tensor([1.0, 2.0, 3.0])
        momenta: list[Tensor | None] = [None]
        for _ in range(2):
            optim.momentum_step([weight], [gradient], momenta, rate=0.1, momentum=0.5, fused=fused)
        torch.testing.assert_close(weight, 1 - 0.1 * gradient - 0.1 * 1.5 * gradient)


# ---- in training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [HOW, ADAM, OWN, replace(ADAM, weight_decay=0.3, optimizer="adamw")])
def test_an_optimiser_starts_anew_in_each_fit(settings: LocalTraining) -> None:
    once, samples = replace(settings, local_epochs=1), data(12)
    trainer, fresh = linear(), linear()
    trainer.fit(samples, once, generator(1))
    middle = trainer.state_dict()
    trainer.fit(samples, once, generator(2))
    fresh.load(middle)
    fresh.fit(samples, once, generator(2))
    assert gap(trainer.state_dict(), fresh.state_dict()) == 0
    assert gap(trainer.state_dict(), middle) > 0


def test_clipping_by_hand() -> None:
    samples, one = data(8), replace(PLAIN, local_epochs=1, batch_size=8)
    moved = {}
    for norm in (0.0, 1e-3, 1e6):
        trainer = linear()
        start = trainer.state_dict()
        trainer.fit(samples, replace(one, max_grad_norm=norm), generator())
        after = trainer.state_dict()
        moved[norm] = torch.cat([(start[name] - after[name]).flatten() for name in start]) / one.learning_rate
    assert torch.equal(moved[0.0], moved[1e6])  # shorter than that, so it is as it was
    assert moved[1e-3].norm() == pytest.approx(1e-3, rel=1e-2)
    along = torch.nn.functional.cosine_similarity(moved[1e-3], moved[0.0], dim=0)
    assert along == pytest.approx(1, abs=1e-3)  # together: all parameters are shortened by the same factor


def test_clipping_comes_after_a_gradient_term_and_looks_at_what_is_trained_only() -> None:
    samples, one = data(8), replace(PLAIN, local_epochs=1, batch_size=8, max_grad_norm=0.5)

    def fill(_name: str, _param: Tensor, gradient: Tensor) -> None:
        gradient.fill_(2.0)

    for only, count in ((None, 3 * 16 + 3), (("fc.bias",), 3)):
        trainer = linear()
        start = trainer.state_dict()
        trainer.fit(samples, one, generator(), fill, None, only)
        step = start["fc.bias"] - trainer.state_dict()["fc.bias"]
        # The gradient is 2 everywhere, of length 2 sqrt(count), and becomes one of length 0.5.
        assert step.tolist() == pytest.approx([one.learning_rate * 0.5 / count**0.5] * 3, rel=1e-3)


@pytest.mark.parametrize(("wanted", "sizes"), [(1, [4]), (3, [4, 4, 2]), (5, [4, 4, 2, 4, 4])])
def test_local_steps_go_on_from_epoch_to_epoch(wanted: int, sizes: list[int]) -> None:
    settings = replace(HOW, local_epochs=7, steps=wanted)
    taken = list(steps(torch.arange(10), settings, generator()))
    assert [len(chosen) for _, chosen in taken] == sizes
    assert [epoch for epoch, _ in taken] == [0, 0, 0, 1, 1][:wanted]
    first = torch.cat([chosen for epoch, chosen in taken if epoch == 0])
    assert len(first.unique()) == len(first)
    assert settings.reach(10) == pytest.approx(wanted * 0.1 / 0.1)


def test_local_steps_that_make_the_epochs_are_the_epochs() -> None:
    samples, by_epochs, by_steps = data(10), linear(), linear()
    by_epochs.fit(samples, HOW, generator())
    by_steps.fit(samples, replace(HOW, local_epochs=1, steps=6), generator())
    assert gap(by_epochs.state_dict(), by_steps.state_dict()) == 0


def accuracy(run: Any, number: int) -> float:
    """The mean test accuracy of the models that a round starts from."""
    wanted = ("accuracy", "test", "before", number)
    found = [row.value for row in run.rows if (row.metric, row.split, row.phase, row.round) == wanted]
    return sum(found) / len(found)


def test_a_federation_with_adam_a_cosine_and_clipping(federate: Federate, monkeypatch: pytest.MonkeyPatch) -> None:
    stepped: list[tuple[str, float]] = []
    step = optim.Adam.step

    def counting(self: optim.Adam) -> None:
        stepped.append((self._settings.optimizer, self._settings.learning_rate))
        step(self)

    monkeypatch.setattr(optim.Adam, "step", counting)
    given: dict[str, Value] = {"optimizer": "adam", "learning-rate": 0.01, "schedule": "cosine", "local-steps": 4}
    run = federate(clients=2, strategy="fedper", **{**given, "max-grad-norm": 1.0, "num-server-rounds": 2})
    closing = [0.005] * 8  # each client's own fine-tuning after the last round
    assert [rate for _, rate in stepped] == pytest.approx([0.01] * 8 + [0.005] * 8 + closing)
    assert {name for name, _ in stepped} == {"adam"}
    assert accuracy(run, 3) > accuracy(run, 1) + 0.2


# ---- a user's own ----------------------------------------------------------------------------------------------------


class Recording:
    """An optimiser that is no torch.optim.Optimizer, which keeps what it is made with."""

    made: list[dict[str, Any]] = []  # noqa: RUF012

    def __init__(
        self, params: list[nn.Parameter], learning_rate: float, betas: tuple[float, float], scale: float = 0.5
    ):
        self.params, self.rate, self.scale = params, learning_rate, scale
        self.made.append({"params": len(params), "learning_rate": learning_rate, "betas": betas, "scale": scale})

    def step(self) -> None:
        for param in self.params:
            assert param.grad is not None
            param.data.sub_(param.grad, alpha=self.rate * self.scale)


def factory(params: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=lr / 2, momentum=momentum, weight_decay=weight_decay)


def nothing(params: list[nn.Parameter]) -> int:
    return len(params)


def other_names(weights: list[nn.Parameter]) -> None:
    raise AssertionError(weights)


def broken(params: list[nn.Parameter]) -> None:
    raise ValueError(f"cannot do with {len(params)}\nor any others")


NOT_ONE = 3


def test_an_own_class_gets_what_its_signature_names_and_only_what_is_trained() -> None:
    Recording.made.clear()
    trainer, plain = linear(), linear()
    settings = replace(PLAIN, optimizer="test_optim:Recording", learning_rate=0.2)
    trainer.fit(data(8), settings, generator(), None, None, ("fc.bias",))
    assert Recording.made == [{"params": 1, "learning_rate": 0.2, "betas": (0.9, 0.999), "scale": 0.5}]
    plain.fit(data(8), PLAIN, generator(), None, None, ("fc.bias",))
    assert gap(trainer.state_dict(), plain.state_dict()) < 1e-7


def test_an_own_factory_makes_the_optimiser() -> None:
    trainer, built_in = linear(), linear()
    trainer.fit(data(8), replace(HOW, optimizer="test_optim:factory"), generator())
    built_in.fit(data(8), replace(HOW, learning_rate=0.05), generator())
    assert gap(trainer.state_dict(), built_in.state_dict()) < 1e-6


def test_a_federation_with_an_optimiser_of_torchs(federate: Federate) -> None:
    run = federate(clients=2, strategy="fedavg", optimizer="torch.optim:RMSprop", **{"learning-rate": 0.001})
    assert accuracy(run, 3) > accuracy(run, 1) + 0.2


REFUSED = [
    (
        "torch.optim:RMSprob",
        'optimizer="torch.optim:RMSprob": the module torch.optim has no RMSprob; did you mean',
    ),
    ("no_such_module:Thing", 'optimizer="no_such_module:Thing": there is no module no_such_module'),
    ("test_optim:NOT_ONE", 'optimizer="test_optim:NOT_ONE" is int, and wanted is a class or function that makes an '),
    ("test_optim:nothing", 'optimizer="test_optim:nothing" makes int, which has no step() and so is no optimiser'),
    (
        "test_optim:other_names",
        "optimizer: other_names wants weights, which it is not called with; wanted a signature of some of params, lr, "
        "learning_rate, weight_decay, momentum, betas, or defaults",
    ),
    ("test_optim:broken", 'optimizer="test_optim:broken" cannot be made: ValueError: cannot do with 2'),
    ("torch.optim:LBFGS", 'optimizer="torch.optim:LBFGS": its step wants closure, and is called with nothing'),
    (
        "torch.optim:SparseAdam",
        'optimizer="torch.optim:SparseAdam" cannot train this model: RuntimeError: SparseAdam does not support dense',
    ),
]


@pytest.mark.parametrize(("path", "sentence"), REFUSED)
def test_what_is_no_optimiser_is_refused(path: str, sentence: str) -> None:
    model = [torch.zeros(3), torch.zeros(2, 2)]
    with pytest.raises(UserError) as caught:
        optim.check(model, replace(HOW, optimizer=path))
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_check_changes_nothing() -> None:
    model = [torch.ones(3), torch.ones(2, 2)]
    for name in ("sgd", "adam", "torch.optim:RMSprop", "test_optim:Recording"):
        optim.check(model, replace(HOW, optimizer=name))
    assert all(bool((tensor == 1).all()) for tensor in model)


def test_a_run_ends_before_its_first_round(federate: Federate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "fit", lambda *_: pytest.fail("trained"))
    with pytest.raises(UserError, match=r'^optimizer="torch\.optim:LBFGS": its step wants closure'):
        federate(clients=2, strategy="fedavg", optimizer="torch.optim:LBFGS")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"optimizer": "rmsprop"},
            "optimizer='rmsprop': wanted 'sgd', 'adam', 'adamw' or an import path 'package.module:Object'",
        ),
        (
            {"optimizer": "torch.optim:RMSprop", "rmsprop.lr": 0.5},
            "there is no key rmsprop.lr (given 0.5): did you mean",
        ),
        (
            {"nesterov": True, "momentum": 0.0},
            'nesterov=True needs optimizer="sgd" with momentum, not optimizer="sgd" with momentum=0',
        ),
        (
            {"nesterov": True, "optimizer": "adam"},
            'nesterov=True needs optimizer="sgd" with momentum, not optimizer="adam" with momentum=0.9',
        ),
        ({"beta1": 1.0}, "beta1=1.0: wanted less than 1"),
        ({"beta2": -0.1}, "beta2=-0.1: wanted greater than or equal to 0"),
        ({"max-grad-norm": -1.0}, "max-grad-norm=-1.0: wanted greater than or equal to 0"),
        ({"local-steps": -1}, "local-steps=-1: wanted greater than or equal to 0"),
    ],
)
def test_settings_that_do_not_fit(given: dict[str, Value], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(given)
    assert str(caught.value).startswith(f"settings: {sentence}")


def test_settings_of_an_own_optimiser_are_a_section_without_what_it_is_given() -> None:
    settings = parse(
        {"optimizer": "torch.optim:RMSprop", "rmsprop.alpha": 0.5, "rmsprop.centered": True}
    ).local_training(1)
    (group,) = optim.make(params(), settings).param_groups  # type: ignore[attr-defined]
    assert (group["alpha"], group["centered"], group["lr"], group["momentum"]) == (0.5, True, 0.02, 0.9)
    scaled = parse({"optimizer": "test_optim:Recording", "recording.scale": 0.25}).local_training(1)
    assert optim.make(params(), scaled).scale == 0.25  # type: ignore[attr-defined]


def test_the_settings_reach_local_training() -> None:
    given: dict[str, Value] = {"optimizer": "adamw", "beta1": 0.5, "beta2": 0.6, "max-grad-norm": 2.0, "local-steps": 9}
    settings = parse(given).local_training(1)
    assert (settings.optimizer, settings.beta1, settings.beta2, settings.max_grad_norm, settings.steps) == (
        "adamw",
        0.5,
        0.6,
        2.0,
        9,
    )
    assert parse({"nesterov": True}).local_training(1).nesterov
