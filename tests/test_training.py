"""Local training and evaluation against torch.optim, loops written out by hand, and a model of its own per client."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from fedham_flwr.core.devices import resolve_device
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import LayerGroup, Params, module_group
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.models import build
from fedham_flwr.training import augment
from fedham_flwr.training.augment import shift_flip
from fedham_flwr.training.local import LocalTraining
from fedham_flwr.training.optim import SGD
from fedham_flwr.training.trainer import Trainer

HOW = LocalTraining(local_epochs=2, batch_size=4, learning_rate=0.1, momentum=0.9, weight_decay=0.01, augment=False)
PLAIN = replace(HOW, momentum=0.0, weight_decay=0.0)
CPU = torch.device("cpu")
CLASSES = 3


class Linear(nn.Module):
    """fc(dropout(x)) of 16 pixels, the smallest model that has everything training deals with."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.fc, self.rate = nn.Linear(16, CLASSES), rate
        self.fc.weight.data = torch.linspace(-0.5, 0.5, CLASSES * 16).reshape(CLASSES, 16)
        self.fc.bias.data = torch.tensor([0.1, -0.2, 0.3])

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(dropout(x.flatten(1), self.rate, self.training))
        return logits

    def layer_groups(self) -> list[LayerGroup]:
        return [module_group(self, "fc")]


def data(train: int, test: int = 0, side: int = 4, seed: int = 0) -> ClientData:
    """Random images; the splits are numbers into arrays that hold other clients' samples too."""
    rng, count = np.random.default_rng(seed), train + test + 5
    numbers = torch.from_numpy(rng.permutation(count))
    return ClientData(
        torch.from_numpy(rng.integers(0, 256, (count, side, side, 1), dtype=np.uint8)),
        torch.from_numpy(rng.integers(0, CLASSES, count)),
        {"train": numbers[:train], "test": numbers[train : train + test]},
        tuple(map(str, range(CLASSES))),
        "someone",
    )


def linear(rate: float = 0.0) -> Trainer:
    return Trainer(Linear(rate), CPU, "fp32")


def lenet(precision: str = "fp32") -> Trainer:
    return Trainer(build("lenet-bn", (1, 16, 16), CLASSES, 0), CPU, precision)


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gap(a: Params, b: Params) -> float:
    """The largest difference of two entries; 0 for trees that are equal."""
    assert a.keys() == b.keys()
    return torch.cat([(a[name].double() - b[name].double()).abs().flatten() for name in a]).max().item()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_is_torchs_bit_for_bit(momentum: float, weight_decay: float) -> None:
    start = torch.linspace(-1, 1, 6).reshape(2, 3)
    ours, theirs = ([nn.Parameter(start.clone()), nn.Parameter(start[0] + 2)] for _ in range(2))
    sgd = SGD(ours, replace(HOW, momentum=momentum, weight_decay=weight_decay))
    oracle = torch.optim.SGD(theirs, lr=0.1, momentum=momentum, weight_decay=weight_decay, fused=True)
    for step in range(4):
        for param in (*ours, *theirs):
            param.grad = torch.cos(param.detach() + step)
        sgd.step()
        oracle.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], start)


def by_hand(samples: ClientData, settings: LocalTraining, seed: int) -> tuple[Params, float]:
    """Softmax regression with the gradient worked out: dL/dlogits = (p - onehot) / B, in float64."""
    params = [tensor.detach().double() for tensor in Linear().parameters()]
    momenta: list[Tensor] = []
    index, shuffle, total = samples.splits["train"], generator(seed), 0.0
    for _ in range(settings.local_epochs):
        order, total = index[torch.randperm(len(index), generator=shuffle)].tolist(), 0.0
        for first in range(0, len(order), settings.batch_size):
            batch = order[first : first + settings.batch_size]
            x = torch.stack([samples.features[i].flatten().double() / 127.5 - 1 for i in batch])
            p = torch.softmax(x @ params[0].T + params[1], 1)
            error = p.clone()
            for row, i in enumerate(batch):
                total -= math.log(p[row, samples.labels[i]])
                error[row, samples.labels[i]] -= 1
            grads = [error.T @ x / len(batch), error.sum(0) / len(batch)]
            grads = [g + settings.weight_decay * w for g, w in zip(grads, params, strict=True)]
            momenta = [settings.momentum * m + g for m, g in zip(momenta, grads, strict=True)] if momenta else grads
            params = [w - settings.learning_rate * m for w, m in zip(params, momenta, strict=True)]
    return {"fc.weight": params[0].float(), "fc.bias": params[1].float()}, total / len(index)


@pytest.mark.parametrize("settings", [HOW, PLAIN, replace(HOW, local_epochs=3, batch_size=100)])
@pytest.mark.parametrize("count", [1, 8, 11])
def test_fit_against_a_loop_by_hand(settings: LocalTraining, count: int) -> None:
    trainer, samples = linear(), data(count)
    loss = trainer.fit(samples, settings, generator(7))
    wanted, mean_loss = by_hand(samples, settings, 7)
    assert gap(trainer.read(trainer.manifest.names()), wanted) <= 1e-6
    assert loss == pytest.approx(mean_loss, abs=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_no_momentum_crosses_from_one_call_to_the_next(momentum: float) -> None:
    # One step per epoch: after the same first step, the second one differs by rate * momentum * first gradient,
    # which is momentum * (start - first). Without momentum the two ways are one.
    samples, once = data(6), replace(PLAIN, local_epochs=1, batch_size=6, momentum=momentum)
    two_calls, one_call = linear(), linear()
    two_calls.fit(samples, once, generator())
    first = two_calls.read(["fc.weight"])["fc.weight"]
    two_calls.fit(samples, once, generator())
    one_call.fit(samples, replace(once, local_epochs=2), generator())
    apart = two_calls.read(["fc.weight"])["fc.weight"] - one_call.read(["fc.weight"])["fc.weight"]
    step = two_calls.initial["fc.weight"] - first
    assert bool((step.abs() > 1e-3).any())
    assert torch.allclose(apart, momentum * step, rtol=0, atol=1e-6)


def test_one_model_serves_two_clients_and_nothing_of_the_first_remains() -> None:
    shared, fresh = lenet(), lenet()
    first, second = data(13, side=16, seed=1), data(10, side=16, seed=2)
    shared.fit(first, HOW, generator(1))
    shared.evaluate(second, "train")
    shared.load(shared.initial)
    shared.fit(second, HOW, generator(2))
    fresh.fit(second, HOW, generator(2))
    assert gap(shared.state_dict(), fresh.state_dict()) == 0
    assert fresh.state_dict()["bn1.num_batches_tracked"] == 2 * 3


def test_the_seed_alone_decides_the_result() -> None:
    results = []
    for seed, noise in ((1, 0), (1, 5), (2, 0)):
        trainer = linear(rate=0.5)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(noise)  # the global generator, which must not matter, though dropout draws from it
            trainer.fit(data(11), replace(PLAIN, batch_size=11), generator(seed))  # one batch: its order is nothing
        results.append(trainer.state_dict())
    assert gap(results[0], results[1]) == 0
    assert gap(results[0], results[2]) > 1e-3


def test_no_global_generator_is_touched() -> None:
    trainer, samples = linear(rate=0.5), data(11, 9)
    before, numpys = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    trainer.fit(samples, replace(HOW, augment=True), generator())
    trainer.evaluate(samples, "test")
    assert torch.equal(torch.get_rng_state(), before)
    assert str(np.random.get_state()) == numpys  # noqa: NPY002


@pytest.mark.parametrize("name", ["cnn", "lenet-bn"])
def test_channels_last_gives_what_a_contiguous_model_gives(name: str) -> None:
    samples, model = data(10, side=16), build(name, (1, 16, 16), CLASSES, 0)
    trainer = Trainer(build(name, (1, 16, 16), CLASSES, 0), CPU, "fp32")
    trainer.fit(samples, replace(PLAIN, local_epochs=1), generator())
    for batch in torch.split(samples.splits["train"][torch.randperm(10, generator=generator())], 4):
        x = (samples.features[batch].float() / 127.5 - 1).permute(0, 3, 1, 2).contiguous()
        model.zero_grad()
        cross_entropy(model(x), samples.labels[batch]).backward()  # type: ignore[no-untyped-call]
        for param in model.parameters():
            param.data.sub_(param.grad, alpha=0.1)  # type: ignore[arg-type]
    assert gap(trainer.state_dict(), dict(model.state_dict())) <= 1e-5


def test_bf16_gets_near_fp32_and_keeps_fp32_parameters() -> None:
    samples, settings = data(12, 9, side=16), replace(PLAIN, learning_rate=0.01)
    full, half = lenet(), lenet("bf16")
    losses = [trainer.fit(samples, settings, generator()) for trainer in (full, half)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]
    assert gap(half.state_dict(), full.state_dict()) <= 0.02
    assert {t.dtype for t in half.read(half.manifest.names()).values()} == {torch.float32}
    assert half.evaluate(samples, "test").loss == pytest.approx(full.evaluate(samples, "test").loss, rel=0.05)


def test_the_gradient_term_is_called_once_per_step_and_parameter_and_decides_the_step() -> None:
    trainer, seen = lenet(), []

    def term(name: str, param: Tensor, gradient: Tensor) -> None:
        assert bool(gradient.isfinite().all())
        seen.append((name, tuple(param.shape), tuple(gradient.shape)))
        gradient.fill_(1.0)

    trainer.fit(data(10, side=16), PLAIN, generator(), term)
    steps, shapes = 2 * math.ceil(10 / 4), trainer.manifest.shapes
    assert seen == [(name, shapes[name], shapes[name]) for name in trainer.parameter_names] * steps
    wanted = {name: trainer.initial[name] - 0.1 * steps for name in trainer.parameter_names}
    assert gap(trainer.read(trainer.parameter_names), wanted) <= 1e-6


# ---- the gradient alone ----------------------------------------------------------------------------------------------


def slope_by_hand(samples: ClientData, chosen: Sequence[int]) -> Params:
    """Of softmax regression at the start: the mean of (p - onehot) x over some samples, in float64."""
    start = [tensor.detach().double() for tensor in Linear().parameters()]
    slopes = [torch.zeros_like(tensor) for tensor in start]
    for i in chosen:
        x = samples.features[i].flatten().double() / 127.5 - 1
        error = torch.softmax(start[0] @ x + start[1], 0)
        error[samples.labels[i]] -= 1
        slopes = [slopes[0] + torch.outer(error, x) / len(chosen), slopes[1] + error / len(chosen)]
    return {"fc.weight": slopes[0], "fc.bias": slopes[1]}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 99])
def test_the_gradient_is_that_of_a_batch_drawn_without_replacement(count: int) -> None:
    samples, trainer = data(5, 4), linear()
    batches = list(combinations(samples.splits["train"].tolist(), min(count, 5)))
    wanted = [slope_by_hand(samples, batch) for batch in batches]
    found = []
    for seed in range(6):
        slope = trainer.gradient(samples, "train", count, generator(seed))
        assert {name: tensor.shape for name, tensor in slope.items()} == trainer.manifest.shapes
        found += [at for at, other in enumerate(wanted) if gap(slope, other) < 1e-6]
    assert len(found) == 6  # each is that of one batch
    assert len(set(found)) > (1 if len(batches) > 1 else 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_gradient_is_autograds_in_training_and_leaves_no_trace(precision: str) -> None:
    samples, trainer = data(10, 9, side=16), lenet(precision)
    trainer.fit(samples, HOW, generator())  # so that its running statistics are its own
    trainer.evaluate(samples, "test")  # and its last use was in evaluation
    before, noise = trainer.state_dict(), torch.get_rng_state()
    slope = {name: t.clone() for name, t in trainer.gradient(samples, "train", 10, generator()).items()}
    assert gap(trainer.state_dict(), before) == 0
    assert torch.equal(torch.get_rng_state(), noise)
    assert {tensor.dtype for tensor in slope.values()} == {torch.float32}

    model, train = build("lenet-bn", (1, 16, 16), CLASSES, 0), samples.splits["train"]
    model.load_state_dict(before)
    x = (samples.features[train].float() / 127.5 - 1).permute(0, 3, 1, 2)
    cross_entropy(model.train()(x), samples.labels[train]).backward()  # type: ignore[no-untyped-call]
    wanted = {name: param.grad for name, param in model.named_parameters()}
    assert slope.keys() == wanted.keys()
    whole, exact = (torch.cat([tree[name].flatten() for name in wanted]) for tree in (slope, wanted))  # type: ignore[misc]
    error = (whole - exact).norm() / exact.norm()
    assert error < (1e-5 if precision == "fp32" else 0.1)
    assert (error > 1e-4) == (precision == "bf16")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_gradients_seed_alone_decides_it(precision: str) -> None:
    slopes, samples = [], data(6)
    for seed, noise in ((1, 0), (1, 5), (2, 0)):
        trainer = Trainer(Linear(rate=0.5), CPU, precision)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(noise)
            slopes.append(trainer.gradient(samples, "train", 6, generator(seed)))
    assert gap(slopes[0], slopes[1]) == 0
    assert gap(slopes[0], slopes[2]) > 1e-3  # the batch is the same, and dropout is not
    draws, trainer = generator(1), linear()
    batches = {tuple(trainer.gradient(samples, "train", 2, draws)["fc.bias"].tolist()) for _ in range(15)}
    assert len(batches) > 4  # of 15 pairs; the generator goes on


@pytest.mark.parametrize("count", [1, 8, 10])
def test_the_reach_of_training_is_the_way_that_a_constant_gradient_goes(count: int) -> None:
    trainer = linear()
    trainer.fit(data(count), PLAIN, generator(), lambda _name, _param, gradient: gradient.fill_(1.0))
    went = trainer.initial["fc.bias"] - trainer.read(["fc.bias"])["fc.bias"]
    assert went.tolist() == pytest.approx([PLAIN.reach(count)] * CLASSES, rel=1e-5)
    assert replace(PLAIN, momentum=0.9).reach(count) == pytest.approx(10 * PLAIN.reach(count))  # 1 + 0.9 + 0.81 ...


# ---- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 256, 300])
def test_evaluation_against_one_sample_at_a_time(count: int) -> None:
    trainer, samples, model = linear(rate=0.5), data(4, count), Linear()
    hits, loss = 0, 0.0
    for i in samples.splits["test"].tolist():
        logits = model.fc(samples.features[i].flatten() / 127.5 - 1).tolist()
        top = max(range(CLASSES), key=lambda k: logits[k])
        hits += top == samples.labels[i]
        loss += math.log(sum(math.exp(z) for z in logits)) - logits[int(samples.labels[i])]
    scores = trainer.evaluate(samples, "test")
    assert scores.n == count
    assert scores.values["accuracy"] == hits / count
    assert scores.loss == pytest.approx(loss / count, rel=1e-5)


def test_evaluation_changes_nothing() -> None:
    trainer, samples = lenet(), data(8, 20, side=16)
    trainer.fit(samples, HOW, generator())
    before, scores = trainer.state_dict(), trainer.evaluate(samples, "test")
    assert gap(trainer.state_dict(), before) == 0
    assert trainer.evaluate(samples, "test") == scores


def test_images_are_augmented_in_training_and_never_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(x: Tensor, draws: torch.Generator) -> Tensor:
        sizes.append(len(x))
        return shift_flip(x, draws)

    monkeypatch.setattr(augment, "shift_flip", counted)
    samples, with_it, without = data(11, 9), linear(), linear()
    without.fit(samples, HOW, generator())
    assert not sizes
    with_it.fit(samples, replace(HOW, augment=True), generator())
    with_it.evaluate(samples, "test")
    assert sizes == [4, 4, 3] * 2
    assert gap(with_it.state_dict(), without.state_dict()) > 1e-3


def test_divergence_is_an_error_that_names_the_learning_rate() -> None:
    with pytest.raises(UserError, match=r"^training diverged: the loss is (nan|inf); lower learning-rate=1e\+20$"):
        lenet().fit(data(8, side=16), replace(PLAIN, learning_rate=1e20), generator())


@pytest.mark.parametrize("name", ["cuda:99", "gpu", ""])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    said = (
        r"is not available here \(.+\); \"auto\" or \"cpu\" always is"
        if "cuda" in name
        else "is no device: wanted auto, .*"
    )
    with pytest.raises(UserError, match=rf'^device="{name}" {said}$'):
        resolve_device(name)
