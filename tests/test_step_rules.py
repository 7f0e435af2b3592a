"""Steps and losses of a method's own: written once, the same for one client and for many, and as written out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from cohorts import MOMENTUM, NETWORKS, TIGHT, dealt, far, models, one_at_a_time, stream, together, trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedham_flwr.core.errors import DivergedError, UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.models.heads import features, head_name
from fedham_flwr.training.engine.cohort import CohortTrainer, run_together
from fedham_flwr.training.local import LocalTraining
from fedham_flwr.training.own_loss import Batch, OwnLoss
from fedham_flwr.training.step_rules import Descent, Slopes, StepRule, placed, wide

SIZES = [30, 17, 8, 3, 24, 9, 1]
PLAIN = LocalTraining(2, 8, 0.05, 0.0, 0.0, augment=False)


class Averaged(StepRule):
    """Descends at a point between the model and a second one, which follows it; with two batches of every step's."""

    parts: ClassVar[int] = 2

    def step(self, params: Params, own: Params, slopes: Slopes) -> Params:
        share = own["share"]
        between = {n: p + wide(share, p) * (own[n] - p) for n, p in params.items()}
        first = slopes(between, 0)
        second = slopes({n: p - 0.1 * first[n] for n, p in params.items()}, 1)
        after = {n: p - 0.05 * (first[n] + second[n]) for n, p in params.items()}
        for n, p in after.items():
            own[n].lerp_(p, 0.3)
        share.mul_(0.9)
        return after


def rules(starts: list[Params], names: tuple[str, ...]) -> list[Averaged]:
    shares = torch.linspace(0.2, 0.8, len(starts), dtype=torch.float64)
    return [
        Averaged({**{n: s[n] + 0.01 for n in names}, "share": share}) for s, share in zip(starts, shares, strict=True)
    ]


@pytest.mark.parametrize("name", ["mlp", "digits-cnn", "lenet-bn", "vit", "scaled"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_rule_is_the_same_for_many_clients_as_one_at_a_time(name: str, decay: float) -> None:
    make, shape = NETWORKS[name]
    alone, engine = trainer(make, shape, torch.float64)
    # batch normalisation needs two samples in each part of every batch
    sizes = [32, 16, 8, 24] if name == "lenet-bn" else SIZES
    training = LocalTraining(2, 8, 0.05, 0.0, decay, augment=False)
    data, starts = dealt(shape, sizes), models(alone, len(sizes))
    here, there = (rules(starts, alone.parameter_names) for _ in range(2))
    wanted = one_at_a_time(alone, starts, data, training, rule=there)
    found = together(engine, starts, data, training, rule=here)
    for (mine, mean), (theirs, loss), one, other in zip(found, wanted, here, there, strict=True):
        assert far(mine, theirs) < TIGHT
        assert mean == pytest.approx(loss, rel=1e-5)
        assert far(one.own, other.own) < TIGHT
        assert float(one.own["share"]) != 0.5
    assert engine.alone == {}


class Twice(StepRule):
    """Moves by the difference of two gradients at the same place, on the same part after another."""

    parts: ClassVar[int] = 2

    def step(self, params: Params, own: Params, slopes: Slopes) -> Params:
        first, _, second = slopes(params, 0), slopes(params, 1), slopes(params, 0)
        return {n: p + first[n] - second[n] for n, p in params.items()}


class Same(Twice):
    """Drops the same values in both."""

    same_noise: ClassVar[bool] = True


@pytest.mark.parametrize("kind", [Twice, Same])
def test_a_part_that_is_looked_at_again_drops_the_same_values_if_the_rule_says_so(kind: type[Twice]) -> None:
    make, shape = NETWORKS["vit"]
    alone, engine = trainer(make, shape, torch.float64)
    data, starts = dealt(shape, [20, 9]), models(alone, 2)
    for found in (
        one_at_a_time(alone, starts, data, PLAIN, rule=[kind(), kind()]),
        together(engine, starts, data, PLAIN, rule=[kind(), kind()]),
    ):
        moved = max(far(after, start) for (after, _), start in zip(found, starts, strict=True))
        assert (moved < TIGHT) is (kind is Same)
    assert engine.alone == {}


def test_what_a_rule_has_is_copied_and_checked() -> None:
    given = {"share": torch.zeros(2)}
    rule = Averaged(given)
    with placed(rule, torch.device("cpu")):
        rule.own["share"] += 1
    assert (given["share"].tolist(), rule.own["share"].tolist()) == ([0, 0], [1, 1])
    with (
        pytest.raises(DivergedError, match=r"training diverged: share holds NaN or infinity"),
        placed(rule, torch.device("cpu")),
    ):
        rule.own["share"] /= torch.tensor([1.0, 0.0])


def test_descent_is_sgd_without_momentum() -> None:
    make, shape = NETWORKS["mlp"]
    alone, _ = trainer(make, shape, torch.float64)
    data, starts = dealt(shape, [20]), models(alone, 1)
    ((theirs, _),) = one_at_a_time(alone, starts, data, PLAIN)
    ((mine, _),) = one_at_a_time(alone, starts, data, MOMENTUM.changed(weight_decay=0.0), rule=[Descent(0.05)])
    assert far(mine, theirs) < TIGHT


def test_a_rule_is_what_is_written_out() -> None:
    """Two epochs of a linear model by autograd of the loss of every other sample."""
    torch.manual_seed(0)
    model = nn.Linear(5, 4).double()
    from fedham_flwr.models.grouping import manifest_of
    from fedham_flwr.training.trainer import Trainer

    single = Trainer(model, torch.device("cpu"), "fp32", manifest_of(model, [torch.zeros(1, 5).double()]))
    start = single.read(single.manifest.names())
    (data,) = dealt((5,), [9])
    (rule,) = rules([start], single.parameter_names)
    single.fit(data, PLAIN, stream(0), rule=rule)
    w, v, share = dict(start), {n: t + 0.01 for n, t in start.items()}, 0.2
    draw, index = stream(0), data.splits["train"]
    for _ in range(2):
        for chosen in index[torch.randperm(9, generator=draw)].split(8):
            halves = chosen[0::2], chosen[1::2]

            def slope(at: Params, half: Tensor) -> Params:
                if not len(half):
                    return {n: torch.zeros_like(t) for n, t in at.items()}
                leaves = {n: t.clone().requires_grad_() for n, t in at.items()}
                loss = cross_entropy(data.features[half] @ leaves["weight"].T + leaves["bias"], data.labels[half])
                return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

            first = slope({n: w[n] + share * (v[n] - w[n]) for n in w}, halves[0])
            second = slope({n: w[n] - 0.1 * first[n] for n in w}, halves[1])
            w = {n: w[n] - 0.05 * (first[n] + second[n]) for n in w}
            v = {n: v[n] + 0.3 * (w[n] - v[n]) for n in v}
            share *= 0.9
    assert far(single.read(single.manifest.names()), w) < 1e-9
    assert far(rule.own, {**v, "share": torch.tensor(share, dtype=torch.float64)}) < 1e-9


class Centred(OwnLoss):
    """The cross-entropy, and how far the batch's mean feature is from where the client's running one was."""

    def __init__(self, head: str, size: int, weight: float) -> None:
        super().__init__({"mean": torch.zeros(size, dtype=torch.float64), "weight": torch.tensor(weight).double()})
        self._head = head

    def of(self, model: nn.Module, batch: Batch, values: Mapping[str, Tensor]) -> Tensor:
        seen, outputs = features(model, self._head, batch.x)
        now = batch.mean_rows(seen)
        away = (now - values["mean"].clone()).square().sum(1)
        values["mean"].copy_(0.5 * (values["mean"] + now.detach()))
        terms = cross_entropy(outputs, batch.y, reduction="none") + batch.each(values["weight"]) * seen.square().sum(1)
        return batch.means(terms) + 0.1 * away


@pytest.mark.parametrize("name", ["mlp", "digits-cnn", "lenet-bn", "vit"])
def test_a_loss_is_the_same_for_many_clients_as_one_at_a_time(name: str) -> None:
    make, shape = NETWORKS[name]
    alone, engine = trainer(make, shape, torch.float64)
    sizes = [32, 16, 8, 24] if name == "lenet-bn" else SIZES
    data, starts, head = dealt(shape, sizes), models(alone, len(sizes)), head_name(alone.manifest)
    width = starts[0][f"{head}.weight"].shape[1]
    both: list[Any] = []
    for _ in range(2):
        losses = [Centred(head, width, 0.01 * (1 + place)) for place in range(len(sizes))]
        both.append(losses)
    wanted = one_at_a_time(alone, starts, data, MOMENTUM, loss=both[0])
    found = together(engine, starts, data, MOMENTUM, loss=both[1])
    for (mine, mean), (theirs, loss) in zip(found, wanted, strict=True):
        assert far(mine, theirs) < TIGHT
        assert mean == pytest.approx(loss, rel=1e-5)
    assert engine.alone == {}


@pytest.mark.parametrize("name", ["mlp", "lenet-bn", "vit", "char-transformer", "scaled", "deciding"])
def test_features_are_the_same_for_many_clients_as_one_at_a_time(name: str) -> None:
    make, shape = NETWORKS[name]
    alone, engine = trainer(make, shape, torch.float64)
    data, starts = dealt(shape, SIZES), models(alone, len(SIZES))

    def task(place: int) -> tuple[Tensor, Tensor]:
        view = CohortTrainer(engine)
        view.load(starts[place])
        return view.encode(data[place], "test")

    found = run_together([lambda place=place: task(place) for place in range(len(SIZES))])  # type: ignore[misc]
    for place, (mine, targets) in enumerate(found):
        alone.load(starts[place])
        theirs, labels = alone.encode(data[place], "test")
        assert torch.allclose(mine, theirs, atol=1e-6)
        assert torch.equal(targets, labels)
    assert (engine.alone == {}) == (name not in ("scaled", "deciding"))


class OneMean(OwnLoss):
    def of(self, model: nn.Module, batch: Batch, values: Mapping[str, Tensor]) -> Tensor:
        return cross_entropy(model(batch.x), batch.y)


class FirstAlone(StepRule):
    def step(self, params: Params, own: Params, slopes: Slopes) -> Params:
        return {name: param - slopes(params, 0)[name] for name, param in list(params.items())[:1]}


class OneForAll(StepRule):
    def step(self, params: Params, own: Params, slopes: Slopes) -> Params:
        return {name: param.mean(0) for name, param in params.items()}


FAULTS: list[tuple[dict[str, Any], str]] = [
    (
        {"loss": OneMean({})},
        r"OneMean.of gives a tensor of shape \(\) for a batch of \d clients: wanted \(\d,\), the mean",
    ),
    ({"rule": FirstAlone()}, r"FirstAlone.step gives nothing for the parameter .*bias: wanted shape \("),
    ({"rule": OneForAll()}, r"OneForAll.step gives a tensor of shape \(.*\) for the parameter .*: wanted shape \("),
]


@pytest.mark.parametrize(("mine", "sentence"), FAULTS)
def test_a_loss_or_a_step_of_another_shape_is_a_sentence(mine: dict[str, Any], sentence: str) -> None:
    make, shape = NETWORKS["mlp"]
    alone, engine = trainer(make, shape, torch.float64)
    data, starts, both = dealt(shape, [8, 8]), models(alone, 2), {key: [value] * 2 for key, value in mine.items()}
    for train in (
        lambda: one_at_a_time(alone, starts, data, PLAIN, **both),
        lambda: together(engine, starts, data, PLAIN, **both),
    ):
        with pytest.raises(UserError, match=sentence):
            train()


def test_parts_of_a_batch_are_every_so_manieth_sample_of_each_client() -> None:
    x, real = torch.arange(12.0).view(12, 1), torch.ones(2, 6)
    real[1, 4:] = 0
    part = Batch(x, x[:, 0], 2, real).part(1, 3)
    assert part.x.flatten().tolist() == [1, 4, 7, 10]
    assert part.real is not None
    assert part.real.tolist() == [[1, 1], [1, 0]]
    assert part.means(part.y).tolist() == [2.5, 7.0]
    assert part.mean_rows(part.x).tolist() == [[2.5], [7.0]]
