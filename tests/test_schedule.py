"""The learning rate of each round: known answers, torch's scheduler, and who asks for which round."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from fedham_flwr.core.errors import UserError
from fedham_flwr.settings import Value, parse
from fedham_flwr.training.local import LocalTraining
from fedham_flwr.training.schedule import Schedule, rate
from fedham_flwr.training.trainer import Trainer

COSINE, STEP = Schedule("cosine", rounds=4), Schedule("step", rounds=8, every=3, factor=0.5)


def rates(schedule: Schedule, full: float = 0.8) -> list[float]:
    return [rate(schedule, full, number) for number in range(1, schedule.rounds + 1)]


def test_a_constant_rate_is_the_very_number() -> None:
    assert rates(Schedule(rounds=3), 0.1 + 0.2) == [0.1 + 0.2] * 3


def test_a_cosine_by_hand() -> None:
    half = math.sqrt(0.5)
    assert rates(COSINE) == pytest.approx([0.8, 0.4 * (1 + half), 0.4, 0.4 * (1 - half)])
    assert rates(replace(COSINE, least=0.2))[2] == pytest.approx(0.5)  # half way between the two
    assert rates(replace(COSINE, least=0.8)) == pytest.approx([0.8] * 4)


def test_steps_by_hand() -> None:
    assert rates(STEP) == pytest.approx([0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2])
    assert rates(replace(STEP, factor=1.0)) == [0.8] * 8


def test_a_warm_up_rises_linearly_and_the_schedule_begins_after_it() -> None:
    assert rates(Schedule(rounds=6, warmup=3)) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert rates(replace(STEP, warmup=1)) == pytest.approx([0.4, 0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2])
    assert rates(replace(COSINE, rounds=6, warmup=2))[2:] == pytest.approx(rates(COSINE))


def test_a_cosine_is_that_of_torchs_scheduler() -> None:
    schedule = Schedule("cosine", rounds=7, least=0.01)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7, eta_min=0.01)
    for ours in rates(schedule, 0.3):
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rate(schedule, 0.3, 7) > 0.01


@pytest.mark.parametrize("schedule", [COSINE, STEP, Schedule(rounds=5, warmup=4)])
def test_what_comes_after_the_last_round_has_its_rate(schedule: Schedule) -> None:
    last = rate(schedule, 0.8, schedule.rounds)
    assert last > 0
    assert {rate(schedule, 0.8, schedule.rounds + more) for more in (1, 2, 50)} == {last}


def test_the_settings_give_the_training_of_a_round() -> None:
    given: dict[str, Value] = {"schedule": "step", "schedule-every": 2, "schedule-factor": 0.5, "learning-rate": 0.4}
    settings = parse({**given, "num-server-rounds": 5})
    assert [settings.local_training(t).learning_rate for t in range(1, 8)] == pytest.approx(
        [0.4, 0.4, 0.2, 0.2, 0.1, 0.1, 0.1]
    )
    assert replace(settings.local_training(1), learning_rate=0.1) == settings.local_training(5)
    warm = parse({"warmup-rounds": 3, "num-server-rounds": 4, "learning-rate": 0.4})
    assert [warm.local_training(t).learning_rate for t in (1, 4)] == pytest.approx([0.1, 0.4])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"warmup-rounds": 5, "num-server-rounds": 5},
            "warmup-rounds=5 leaves none of num-server-rounds=5 at the full learning rate",
        ),
        (
            {"schedule": "cosine", "min-learning-rate": 0.5, "learning-rate": 0.1},
            "min-learning-rate=0.5 is above learning-rate=0.1, from where the cosine falls",
        ),
        ({"schedule": "linear"}, "schedule='linear': wanted 'constant', 'cosine' or 'step'"),
        ({"schedule-every": 0}, "schedule-every=0: wanted greater than 0"),
        ({"schedule-factor": 0.0}, "schedule-factor=0.0: wanted greater than 0"),
        ({"schedule-factor": 1.5}, "schedule-factor=1.5: wanted less than or equal to 1"),
        ({"warmup-rounds": -1}, "warmup-rounds=-1: wanted greater than or equal to 0"),
        ({"min-learning-rate": -0.1}, "min-learning-rate=-0.1: wanted greater than or equal to 0"),
    ],
)
def test_settings_that_do_not_fit(given: dict[str, Value], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(given)
    assert str(caught.value) == f"settings: {sentence}"


def watched(monkeypatch: pytest.MonkeyPatch) -> list[LocalTraining]:
    """What every fit from now on is given."""
    seen: list[LocalTraining] = []
    fit = Trainer.fit

    def watching(self: Trainer, samples: Any, training: LocalTraining, *rest: Any) -> float:
        seen.append(training)
        return fit(self, samples, training, *rest)

    monkeypatch.setattr(Trainer, "fit", watching)
    return seen


def test_rounds_follow_the_schedule_and_the_closing_evaluation_the_last_round(
    federate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(monkeypatch)
    given: dict[str, Value] = {"schedule": "step", "schedule-every": 1, "schedule-factor": 0.5, "learning-rate": 0.4}
    federate(clients=2, strategy="fedavg", **{**given, "num-server-rounds": 3, "local-steps": 1})
    assert [training.learning_rate for training in seen] == pytest.approx([0.4] * 2 + [0.2] * 2 + [0.1] * 4)


@pytest.mark.parametrize(("own_rate", "wanted"), [(0.0, 0.2), (0.05, 0.05)])
def test_a_personal_stage_has_its_own_epochs_and_rate_or_the_last_rounds(
    federate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, own_rate: float, wanted: float
) -> None:
    seen = watched(monkeypatch)
    given: dict[str, Value] = {"schedule": "step", "schedule-every": 1, "schedule-factor": 0.5, "learning-rate": 0.4}
    own: dict[str, Value] = {"fedtransfer.personal-epochs": 2, "fedtransfer.learning-rate": own_rate}
    federate(clients=2, strategy="fedtransfer", **{**given, **own, "num-server-rounds": 2, "local-steps": 3})
    assert [t.learning_rate for t in seen] == pytest.approx([0.4] * 2 + [0.2] * 2 + [wanted] * 2)
    assert [t.steps for t in seen] == [3] * 4 + [0] * 2
    assert [t.local_epochs for t in seen] == [1] * 4 + [2] * 2
