"""Many clients trained as one program, against one at a time: the same numbers to rounding, whatever the cohort."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from cohorts import (
    LOOSE,
    MOMENTUM,
    NETWORKS,
    PLAIN,
    TIGHT,
    dealt,
    far,
    models,
    one_at_a_time,
    stream,
    together,
    trainer,
)
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedham_flwr.algorithms.fedprox import Proximal
from fedham_flwr.core.errors import UserError
from fedham_flwr.training.engine.cohort import CohortTrainer, run_together
from fedham_flwr.training.engine.engine import Engine
from fedham_flwr.training.engine.network import StackedNetwork
from fedham_flwr.training.local import LocalTraining
from fedham_flwr.training.losses import LossSettings
from fedham_flwr.training.metrics import METRICS
from fedham_flwr.training.trainer import Trainer


def check(
    name: str, sizes: list[int], training: LocalTraining, dtype: torch.dtype = torch.float64, **given: Any
) -> Engine:
    """Both ways, compared; the engine, for what it says of itself."""
    make, shape = NETWORKS[name]
    most = TIGHT if dtype == torch.float64 else LOOSE
    alone, engine = trainer(make, shape, dtype)
    data = dealt(shape, sizes, dtype)
    starts = models(alone, len(sizes))
    made = {key: make_each(starts) for key, make_each in given.items()}
    wanted = one_at_a_time(alone, starts, data, training, **made)
    found = together(engine, starts, data, training, **made)
    for (mine, mean), (theirs, loss) in zip(found, wanted, strict=True):
        assert far(mine, theirs) < most
        assert mean == pytest.approx(loss, rel=1e-5)  # both are summed in float32
    return engine


UNEQUAL = [30, 17, 8, 3, 24, 9, 16]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_trains_as_one_at_a_time(name: str) -> None:
    engine = check(name, [size + 1 if name == "lenet-bn" and size % 8 == 1 else size for size in UNEQUAL], MOMENTUM)
    assert engine.network.way == {"scaled": "vmap", "deciding": "none"}.get(name, "folded")
    assert (engine.together == 0) == (name == "deciding")
    assert (engine.alone == {}) == (name != "deciding")


TRAININGS = {
    "plain": PLAIN,
    "nesterov": dataclasses.replace(MOMENTUM, nesterov=True),
    "adam": dataclasses.replace(PLAIN, optimizer="adam", learning_rate=0.01, weight_decay=0.1),
    "adamw": dataclasses.replace(PLAIN, optimizer="adamw", learning_rate=0.01, weight_decay=0.1),
    "clipped": dataclasses.replace(MOMENTUM, max_grad_norm=0.3),
    "steps": dataclasses.replace(MOMENTUM, steps=5),
    "smooth": dataclasses.replace(PLAIN, loss=LossSettings(label_smoothing=0.2)),
    "balanced": dataclasses.replace(PLAIN, loss=LossSettings(class_weights="balanced")),
    "both": dataclasses.replace(PLAIN, loss=LossSettings(label_smoothing=0.2, class_weights="balanced")),
}


@pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS)
def test_every_way_to_train_is_that_of_one_at_a_time(training: LocalTraining) -> None:
    weighed = training.loss.class_weights == "balanced"  # with weights in float32
    assert check("mlp", UNEQUAL, training, torch.float32 if weighed else torch.float64).alone == {}


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_cohorts_of_any_size_and_very_unequal_data(count: int) -> None:
    sizes = [1 + (17 * place) % 41 if place else 1 for place in range(count)]
    engine = check("digits-cnn", sizes, MOMENTUM)
    assert (engine.together, engine.alone) == ((count, {}) if count > 1 else (0, {"fit": 1}))


@given(st.lists(st.integers(1, 40), min_size=2, max_size=9), st.integers(1, 12), st.integers(1, 3))
@hypothesis_settings(max_examples=25)
def test_any_sizes(sizes: list[int], batch_size: int, epochs: int) -> None:
    engine = check("mlp", sizes, dataclasses.replace(MOMENTUM, batch_size=batch_size, local_epochs=epochs))
    assert (engine.together, engine.alone) == (len(sizes), {})


def test_only_some_parameters_are_trained_and_frozen_statistics_rest() -> None:
    make, shape = NETWORKS["lenet-bn"]
    alone, engine = trainer(make, shape, torch.float64)
    names, sizes = alone.manifest.names(["fc2", "fc3"]), [16, 8, 24]
    assert check("lenet-bn", sizes, MOMENTUM, only=lambda starts: [names] * len(starts)).alone == {}
    starts = models(alone, len(sizes))
    found = together(engine, starts, dealt(shape, sizes), MOMENTUM, only=[names] * len(sizes))
    for (mine, _), start in zip(found, starts, strict=True):
        assert {name for name, tensor in start.items() if not torch.equal(tensor, mine[name])} == set(names)


def test_a_term_of_the_gradient_that_can_be_stacked_is() -> None:
    engine = check("mlp", UNEQUAL, MOMENTUM, gradient_term=lambda starts: [Proximal(start, 0.5) for start in starts])
    assert engine.alone == {}


def test_a_term_of_somebodys_own_runs_one_at_a_time() -> None:
    def term(name: str, param: Tensor, gradient: Tensor) -> None:
        gradient.add_(param, alpha=0.1)

    engine = check("mlp", UNEQUAL, MOMENTUM, gradient_term=lambda starts: [term] * len(starts))
    assert engine.alone == {"fit": len(UNEQUAL)}


def test_other_blocks_change_nothing_beyond_rounding() -> None:
    make, shape = NETWORKS["digits-cnn"]
    alone, engine = trainer(make, shape, torch.float64)
    data, starts = dealt(shape, UNEQUAL), models(alone, len(UNEQUAL))
    whole = together(engine, starts, data, MOMENTUM)
    engine._block = 3
    for (mine, _), (theirs, _) in zip(together(engine, starts, data, MOMENTUM), whole, strict=True):
        assert far(mine, theirs) < TIGHT


def test_float32_is_close_after_one_round() -> None:
    for name in ("mlp", "digits-cnn", "lenet"):
        make, shape = NETWORKS[name]
        alone, engine = trainer(make, shape, torch.float32)
        data, starts = dealt(shape, UNEQUAL, torch.float32), models(alone, len(UNEQUAL))
        wanted = one_at_a_time(alone, starts, data, MOMENTUM)
        for (mine, _), (theirs, _) in zip(together(engine, starts, data, MOMENTUM), wanted, strict=True):
            assert far(mine, theirs) < LOOSE


def test_bfloat16_is_no_farther_from_float32_than_one_at_a_time() -> None:
    make, shape = NETWORKS["digits-cnn"]
    exact, _ = trainer(make, shape, torch.float32)
    alone, engine = trainer(make, shape, torch.float32, "bf16")
    data, starts = dealt(shape, UNEQUAL, torch.float32), models(alone, len(UNEQUAL))
    true = one_at_a_time(exact, starts, data, PLAIN)
    wanted = one_at_a_time(alone, starts, data, PLAIN)
    found = together(engine, starts, data, PLAIN)
    assert engine.alone == {}
    mine, theirs = ([far(each, t) for (each, _), (t, _) in zip(got, true, strict=True)] for got in (found, wanted))
    assert sum(mine) < 1.5 * sum(theirs)


# ---- what goes wrong at one client ---------------------------------------------------------------------------------


def test_a_client_that_diverges_fails_alone() -> None:
    make, shape = NETWORKS["mlp"]
    alone, engine = trainer(make, shape, torch.float32)
    data, starts = dealt(shape, [16, 16, 16], torch.float32), models(alone, 3)
    good = together(engine, starts, data, MOMENTUM)
    data[1] = dataclasses.replace(data[1], features=data[1].features.clone().fill_(float("nan")))

    def task(place: int) -> Any:
        view = CohortTrainer(engine)
        view.load(starts[place])
        try:
            view.fit(data[place], MOMENTUM, stream(place))
        except UserError as error:
            return str(error)
        return view.read_checked()

    found = run_together([lambda place=place: task(place) for place in range(3)])  # type: ignore[misc]
    assert found[1] == "training diverged: the loss is nan; lower learning-rate=0.05"
    for place in (0, 2):
        assert far(found[place], good[place][0]) < LOOSE


def test_a_batch_of_one_is_refused_by_batch_normalisation_for_its_client_only() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 4)
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.linear(x))

    alone, engine = trainer(Flat, (5,), torch.float32)
    data, starts = dealt((5,), [16, 9, 16], torch.float32), models(alone, 3)

    def task(place: int) -> Any:
        view = CohortTrainer(engine)
        view.load(starts[place])
        try:
            return view.fit(data[place], MOMENTUM, stream(place))
        except UserError as error:
            return str(error)

    found = run_together([lambda place=place: task(place) for place in range(3)])  # type: ignore[misc]
    assert isinstance(found[0], float)
    assert isinstance(found[2], float)
    assert found[1].startswith("batch normalisation needs two values per channel or more")
    assert engine.alone == {"fit": 3}
    assert str(engine.told()["why-alone"]).startswith("batch normalisation needs two values per channel")


def test_what_fails_together_draws_again_what_it_would_have_drawn_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape = NETWORKS["mlp"]
    alone, engine = trainer(make, shape, torch.float64)
    data, starts = dealt(shape, UNEQUAL), models(alone, len(UNEQUAL))
    wanted = one_at_a_time(alone, starts, data, MOMENTUM)

    def slopes(place: int, view: Trainer | CohortTrainer) -> Any:
        view.load(starts[place])
        return {n: t.clone() for n, t in view.gradient(data[place], "train", 4, stream(place)).items()}

    theirs = [slopes(place, alone) for place in range(len(data))]

    def broken(*_: object) -> None:
        raise KeyError("a fault of this network's own")

    monkeypatch.setattr(StackedNetwork, "__call__", broken)
    found = together(engine, starts, data, MOMENTUM)
    mine = run_together([lambda place=place: slopes(place, CohortTrainer(engine)) for place in range(len(data))])  # type: ignore[misc]
    assert engine.alone == {"fit": len(data), "gradient": len(data)}
    for place in range(len(data)):
        assert far(found[place][0], wanted[place][0]) == 0
        assert far(mine[place], theirs[place]) == 0


def test_an_error_of_a_task_ends_all() -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_together([fail, lambda: None])


# ---- gradients and scores ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "deciding"])
def test_gradients_and_scores_are_those_of_one_at_a_time(name: str) -> None:
    make, shape = NETWORKS[name]
    alone, engine = trainer(make, shape, torch.float64)
    data, starts = dealt(shape, UNEQUAL), models(alone, len(UNEQUAL))
    measured = [METRICS["accuracy"]]

    def task(place: int, view: Trainer | CohortTrainer) -> Any:
        view.load(starts[place])
        draw = stream(place)
        slopes = [view.gradient(data[place], "train", 6, draw) for _ in range(2)]
        slopes = [{n: t.clone() for n, t in slope.items()} for slope in slopes]
        return slopes, view.evaluate(data[place], "test", None, measured), view.evaluate(data[place], "test")

    found = run_together([lambda place=place: task(place, CohortTrainer(engine)) for place in range(len(data))])  # type: ignore[misc]
    for place, (slopes, scores, more) in enumerate(found):
        theirs, score, also = task(place, alone)
        if name != "everything":  # one at a time, the second seed is drawn from torch's global generator too
            for mine, other in zip(slopes, theirs, strict=True):
                assert far(mine, other) < TIGHT
        assert scores.n == score.n == more.n == also.n == UNEQUAL[place] * (6 if name == "char-transformer" else 1)
        for mine, other in ((scores, score), (more, also)):
            assert mine.values == pytest.approx(other.values, rel=1e-5)
            assert mine.values["accuracy"] == other.values["accuracy"]


def test_one_model_for_all_is_scored_as_one() -> None:
    make, shape = NETWORKS["mlp"]
    alone, engine = trainer(make, shape, torch.float32)
    data = dealt(shape, [600, 3, 41], torch.float32)
    measured = [METRICS["accuracy"]]

    def task(place: int, view: Trainer | CohortTrainer) -> Any:
        view.load(alone.initial)
        return view.evaluate(data[place], "test", None, measured)

    found = run_together([lambda place=place: task(place, CohortTrainer(engine)) for place in range(3)])  # type: ignore[misc]
    for place, scores in enumerate(found):
        wanted = task(place, alone)
        assert scores.n == wanted.n
        assert scores.values["accuracy"] == wanted.values["accuracy"]
        assert scores.loss == pytest.approx(wanted.loss, rel=1e-6)
