"""Running statistics taken anew from a client's training data: against a naive loop, for many clients, and in runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cohorts import CPU, NETWORKS, TIGHT, Data, dealt, far, models, stream, trainer
from torch import Tensor, nn

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.data.clients import open_partition
from fedham_flwr.models import export
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.models.lenet import LeNetBN
from fedham_flwr.runners.cohort import CohortGrid
from fedham_flwr.settings import parse
from fedham_flwr.training.engine.cohort import CohortTrainer, run_together
from fedham_flwr.training.recalibration import PART, parts
from fedham_flwr.training.trainer import Trainer

Federate = Callable[..., Any]
RECALIBRATED = {"batch_norm_statistics": "recalibrated"}


def recalibrated(alone: Trainer, start: Params, samples: Data, place: int = 0) -> Params:
    alone.load(start)
    alone.recalibrate(samples, stream(place))
    return alone.read(alone.manifest.names())


def by_hand(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """The means over batches of each normalisation's mean and unbiased variance, layer after layer."""
    found: dict[str, list[Tensor]] = {}

    def normalise(name: str, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
        values = x.transpose(0, 1).flatten(1)
        mean, variance = values.mean(1), values.var(1, unbiased=False)
        found.setdefault(f"{name}.running_mean", []).append(mean)
        found.setdefault(f"{name}.running_var", []).append(values.var(1, unbiased=True))
        scaled = (x - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
        return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]

    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.forward = lambda x, name=name, module=module: normalise(name, module, x)  # type: ignore[method-assign]
    with torch.no_grad():
        for x in batches:
            model(x)
    return {name: torch.stack(each).mean(0) for name, each in found.items()}


@pytest.mark.parametrize("count", [2, 40, PART, PART + 1, 2 * PART + 60])
def test_the_statistics_are_those_of_a_naive_loop(count: int) -> None:
    make, shape = NETWORKS["lenet-bn"]
    alone, _ = trainer(make, shape, torch.float64)
    (samples,), (start,) = dealt(shape, [count]), models(alone, 1)
    found = recalibrated(alone, start, samples)
    chosen = parts(samples.splits["train"], stream(0))
    assert sorted(torch.cat(chosen).tolist()) == sorted(samples.splits["train"].tolist())
    sizes = [len(some) for some in chosen]
    assert len(sizes) == -(-count // PART)
    assert max(sizes) - min(sizes) <= 1
    naive = make().double()
    naive.load_state_dict(start, strict=False)
    for name, wanted in by_hand(naive, [samples.features[some] for some in chosen]).items():
        torch.testing.assert_close(found[name], wanted, rtol=TIGHT, atol=TIGHT)
        assert not torch.allclose(found[name], start[name])
    assert all(torch.equal(found[n], start[n]) for n in start if "running" not in n)


def test_nothing_is_left_of_what_was_there_and_the_model_is_as_it_was() -> None:
    make, shape = NETWORKS["lenet-bn"]
    alone, _ = trainer(make, shape, torch.float64)
    (samples,), (start,) = dealt(shape, [PART + 40]), models(alone, 1)
    other = {n: 100 + t if "running" in n else t for n, t in start.items()}
    first, second = (recalibrated(alone, given, samples) for given in (start, other))
    assert all(torch.equal(first[n], second[n]) for n in first)
    state = alone.state_dict()
    norms = [m for m in alone._model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [norm.momentum for norm in norms] == [0.1, 0.1]
    assert not any(norm.training for norm in norms)
    assert [int(state[f"bn{k}.num_batches_tracked"]) for k in (1, 2)] == [0, 0]


def test_a_single_sample_says_nothing_of_a_variance() -> None:
    make, shape = NETWORKS["lenet-bn"]
    alone, _ = trainer(make, shape, torch.float64)
    (samples,), (start,) = dealt(shape, [1]), models(alone, 1)
    found = recalibrated(alone, start, samples)
    assert all(torch.equal(found[n], start[n]) for n in start)


def test_normalised_vectors_have_statistics_too() -> None:
    """Of a single vector there are none, and no part of the split is one."""
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, momentum=None), nn.Linear(6, 4)).double()
    alone = Trainer(model, CPU, "fp32", manifest_of(model, []))
    (samples,) = dealt((5,), [PART + 1])
    (start,) = models(alone, 1)
    found = recalibrated(alone, start, samples)
    alone.load(start)
    seen = [model[0](samples.features[some]).detach() for some in parts(samples.splits["train"], stream(0))]
    torch.testing.assert_close(found["1.running_mean"], torch.stack([x.mean(0) for x in seen]).mean(0))
    torch.testing.assert_close(found["1.running_var"], torch.stack([x.var(0) for x in seen]).mean(0))
    assert model[1].momentum is None


class Resting(LeNetBN):
    """The first normalisation is everybody's, and nothing changes it."""

    fixed_tensors = ("bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked")


def test_fixed_statistics_stay() -> None:
    model = Resting((1, 16, 16), 4).double()
    alone = Trainer(model, CPU, "fp32", manifest_of(model, []))
    (samples,), was = dealt((1, 16, 16), [30]), model.bn1.running_mean.clone()
    alone.recalibrate(samples, stream(0))
    assert torch.equal(model.bn1.running_mean, was)
    assert not torch.equal(model.bn2.running_mean, torch.zeros(16, dtype=torch.float64))


SIZES = [30, 17, 2 * PART + 1, 3, 1, PART, 24, 300]


@pytest.mark.parametrize("name", ["lenet-bn", "cbam", "cbam-plain", "mlp", "scaled", "deciding"])
def test_many_clients_at_once_have_the_statistics_of_one_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedham_flwr.training.engine.recalibrating.ROWS", 600)  # two or more clients in a pass, not all
    make, shape = NETWORKS[name]
    alone, engine = trainer(make, shape, torch.float64)
    data, starts = dealt(shape, SIZES), models(alone, len(SIZES))
    wanted = [recalibrated(alone, *pair, place) for place, pair in enumerate(zip(starts, data, strict=True))]

    def task(place: int) -> tuple[Params, dict[str, Tensor]]:
        view = CohortTrainer(engine)
        view.load(starts[place])
        view.recalibrate(data[place], stream(place))
        return view.read(alone.manifest.names()), view.state_dict()

    found = run_together([lambda place=place: task(place) for place in range(len(SIZES))])  # type: ignore[misc]
    for (mine, state), theirs in zip(found, wanted, strict=True):
        assert far(mine, theirs) < TIGHT
        assert all(torch.equal(state[n], tensor) for n, tensor in mine.items())
    folded = engine.network.way == "folded"
    assert engine.alone == {"recalibrate": 1 if folded else len(SIZES)}  # the single sample is looked at alone
    assert engine.together == (len(SIZES) - 1 if folded else 0)


@pytest.mark.parametrize(
    "strategy", ["fedham", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fedavg", "fedrep", "pfedfda"))]
)
def test_only_models_that_are_used_have_other_statistics(
    federate: Federate, settings: Callable[..., Any], coloured: str, strategy: str
) -> None:
    given = {"strategy": strategy, "dataset": coloured, "model": "lenet-bn", "partitioner": "iid"}
    usual, other = federate(**given), federate(**given, **RECALIBRATED)
    assert usual.state.keys() == other.state.keys()
    assert all(torch.equal(usual.state[n], other.state[n]) for n in usual.state)  # it trained as it did
    kept, now = ([c.state.array_records.get("personal") for c in run.grid.contexts.values()] for run in (usual, other))
    assert kept == now
    losses = [[r.value for r in run.rows if r.metric == "loss" and r.phase == "before"] for run in (usual, other)]
    assert losses[0] != losses[1]
    for client in range(4):
        files = [run.path / "model" / f"{client}.safetensors" for run in (usual, other)]
        plain, own = (export.load(file) for file in files)
        for (name, was), (_, tensor) in zip(plain.named_parameters(), own.named_parameters(), strict=True):
            assert torch.equal(was, tensor), name
        trained = Trainer(plain, CPU, "fp32")
        samples = open_partition(parse(settings(**given)).data(), client, 4)
        draw = torch.Generator()
        trained.recalibrate(samples, draw)  # of fewer samples than a part has, whose order says nothing
        for name, buffer in own.named_buffers():
            if "running" in name:
                torch.testing.assert_close(buffer, trained.read([name])[name], rtol=1e-4, atol=1e-5)
                assert not torch.allclose(buffer, torch.zeros_like(buffer))


def test_a_network_without_running_statistics_is_refused(federate: Federate) -> None:
    wanted = 'batch-norm-statistics="recalibrated" needs batch normalisation, and model=digits-cnn has none'
    with pytest.raises(UserError, match=wanted):
        federate(strategy="fedavg", **RECALIBRATED)


def test_a_cohort_recalibrates_as_one_client_after_the_other(federate: Federate, coloured: str) -> None:
    given = {"strategy": "fedham", "dataset": coloured, "model": "lenet-bn", "partitioner": "iid", **RECALIBRATED}
    one, all_at_once = federate(**given), federate(grid=CohortGrid, **given)
    losses = [[r.value for r in run.rows if r.metric == "loss"] for run in (one, all_at_once)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert len(losses[0]) > 0
