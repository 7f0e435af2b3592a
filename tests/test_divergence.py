"""Training that diverges to losses that are huge, but numbers: the run has its results, and a warning beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedham_flwr.core.records import Row
from fedham_flwr.reporting.divergence import warnings_of
from fedham_flwr.settings import parse


def loss(number: int, client: str, phase: str, value: float, split: str = "validation", **given: Any) -> Row:
    return Row(number, client, split, "personal", phase, "loss", value, 10, **given)


def rounds(first: tuple[float, ...], last: tuple[float, ...], phase: str = "before", **given: Any) -> list[Row]:
    """Losses of clients before the first of three rounds, and in the last."""
    begun = [loss(1, str(k), "before", value, **given) for k, value in enumerate(first)]
    return begun + [loss(3, str(k), phase, value, **given) for k, value in enumerate(last)]


def said(rows: list[Row], method: str = "fedper") -> str:
    found = warnings_of(rows, parse({"strategy": method}).phase(closing=True))
    assert found.keys() <= {"warnings"}
    (line,) = found.get("warnings", [""])
    return line


def test_a_loss_a_thousand_times_the_first_is_said_with_how_many_clients_have_it() -> None:
    line = (
        "training has diverged: the validation loss of {} of 2 clients is more than 1,000 times what it was at first, "
        "2, and up to {}: lower learning-rate, or a penalty of the method"
    )
    assert said(rounds((1.0, 3.0), (2001.0, 4e9))) == line.format(2, "4e+09")
    assert said(rounds((1.0, 3.0), (2000.0, 2001.0))) == line.format(1, "2e+03")
    assert said(rounds((1.0, 3.0), (2000.0, 0.1))) == ""
    test = rounds((1.0, 3.0), (2001.0, 4e9), split="test")
    assert said(test) == line.format(2, "4e+09").replace("validation", "test")
    assert said(rounds((1.0, 3.0), (1.0, 1.0)) + test) == "", "of validation, where there is some"
    assert said(rounds((1e-5,), (9.0,))) == "", "a model that was as good as without loss, and still learns"
    assert said(rounds((1e-5,), (11.0,)))
    assert said([]) == said(rounds((1.0,), ())) == said([loss(1, "0", "before", 1e9)]) == ""


@pytest.mark.parametrize("method", ["fedper", "fedavg", "fedbabu"])
def test_it_is_the_loss_of_the_model_that_the_method_stands_for_and_of_members(method: str) -> None:
    phase = "before" if method == "fedper" else "after"
    other = "after" if method == "fedper" else "before"
    assert said(rounds((1.0,), (2000.0,), phase), method)
    assert not said(rounds((1.0,), (1.0,), phase) + rounds((), (2000.0,), other), method)
    assert not said([*rounds((1.0,), (1.0,), phase), loss(3, "9", phase, 1e9, population="novel")], method)
    everybodys = loss(3, "0", phase, 1e9)._replace(model="global")
    assert not said([*rounds((1.0,), (1.0,), phase), everybodys], method)


def test_a_penalty_that_the_steps_cannot_follow_is_said_when_the_run_ends(
    federate: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    few = {"strategy": "fedamp", "samples_per_client": 64, "num_server_rounds": 1, "local_epochs": 2}
    for penalty in (1.0, 1000.0):
        caplog.clear()
        run = federate(**few, momentum=0.0, learning_rate=0.01, **{"fedamp.penalty": penalty})
        assert "error" not in run.summary
        assert caplog.messages == run.summary.get("warnings", [])
        assert bool(caplog.messages) == (penalty > 1)
