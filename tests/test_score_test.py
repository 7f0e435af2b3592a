"""The setting score-test: what is shown of a run where the test split is not scored, or only at the end."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome
from rich.console import Console

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.records import NOVEL, Row
from fedham_flwr.reporting import plots
from fedham_flwr.reporting.progress import Progress, line_values
from fedham_flwr.reporting.shown import split_shown
from fedham_flwr.reporting.summary import final, selected
from fedham_flwr.reporting.terminal import final_table
from fedham_flwr.run_settings import Settings
from fedham_flwr.settings import parse
from fedham_flwr.training.metrics import ACCURACY

Federate = Callable[..., Outcome]


def row(number: int, split: str, value: float, client: str = "a", **changes: Any) -> Row:
    return Row(number, client, split, "personal", "before", "accuracy", value, 10)._replace(**changes)


VALIDATED = [row(1, "validation", 0.5), row(2, "validation", 0.75), row(3, "validation", 0.25)]
CLOSING = [*VALIDATED, row(3, "test", 0.125)]
ALWAYS = [*CLOSING, row(1, "test", 0.5), row(2, "test", 0.625)]


def table(rows: list[Row]) -> list[str]:
    """The lines of the table at the end that are not blank."""
    console = Console(file=(out := StringIO()), width=100, force_terminal=False)
    final_table({"final": final(rows), "selected": selected(rows, {"a"})}, console)
    return [line for line in out.getvalue().splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("rows", "once", "over_rounds"),
    [
        ([], "test", "test"),
        (VALIDATED, "validation", "validation"),
        (CLOSING, "test", "validation"),
        (ALWAYS, "test", "test"),
        (CLOSING[2:], "test", "test"),
        ([*VALIDATED, row(3, "test", 1.0, population=NOVEL)], "validation", "validation"),
        ([row(1, "train", 0.5)], "test", "test"),
    ],
)
def test_the_test_split_is_shown_where_it_was_scored(rows: list[Row], once: str, over_rounds: str) -> None:
    assert split_shown(rows, ACCURACY) == once
    assert split_shown(rows, ACCURACY, over_rounds=True) == over_rounds


def test_a_round_without_test_scores_shows_those_of_validation_and_says_so() -> None:
    found = line_values([row(1, "validation", 0.5), row(1, "validation", 1.0, "b")], 4, 2, 1.5)
    assert found == {"validation personal before": 0.75, "cohort": 4, "replies": 2, "seconds": 1.5}
    with Progress(20, "fedper", Console(file=(out := StringIO()), width=100)) as progress:
        progress.round(1, found)
    assert out.getvalue() == "round 1/20  validation personal before 0.750  2 of 4 clients  1.5 s\n"


def test_the_table_at_the_end_says_which_split_it_is_of() -> None:
    never = table(VALIDATED)
    assert never[1].split()[:2] == ["validation", "accuracy"]
    assert [line.split()[-1] for line in never if "personal" in line] == ["3", "2"]
    closing = table(CLOSING)
    assert closing[1].split()[:2] == ["test", "accuracy"]
    assert [line.split()[4] for line in closing if "last round" in line] == ["0.125"]
    assert closing[-1] == "chosen on validation, but not scored on the test split: personal before of round 2"
    always = "\n".join(table(ALWAYS))
    assert "not scored" not in always
    assert "0.625" in always


def test_the_axes_say_which_split_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, str]] = []

    def keep(figure: Any, axes: Any, path: Path, *_: Any) -> Path:
        drawn.append((path.name, axes.get_ylabel()))
        return path

    monkeypatch.setattr(plots, "finish_figure", keep)
    for rows in (VALIDATED, CLOSING, ALWAYS):
        plots.learning_curves(rows, tmp_path / "curves")
        plots.client_bars(rows, tmp_path / "bars")
    said = [axis.split()[0] for _, axis in drawn]
    assert said == ["validation", "validation", "validation", "test", "test", "test"]


def test_a_card_shows_the_split_that_was_scored(federate: Federate) -> None:
    given: dict[str, Any] = {"strategy": "fedavg", "samples_per_client": 60, "clients": 2}
    folder = federate(**given, score_test="never").path / "model"
    card = json.loads((folder / "0.json").read_text())
    assert card["history"]["split"] == "validation"
    assert [entry["round"] for entry in card["history"]["rounds"]] == [1, 2, 3]
    assert "calibration-error" not in card
    assert card["compared"]["global"].endswith("on the validation split.")
    assert "on a test split that is scored" in (folder / "0.md").read_text()
    closing = json.loads((federate(**given, score_test="closing").path / "model" / "0.json").read_text())
    assert closing["history"]["split"] == "validation"
    assert closing["calibration-error"] >= 0
    assert closing["compared"]["global"].endswith("on the test split.")


@pytest.mark.parametrize(
    ("score_test", "said"),
    [
        ("always", ""),
        ("closing", "nothing is measured before the closing evaluation, since no client has validation samples"),
        ("never", "nothing is measured of any model, since no client has validation samples"),
    ],
)
def test_a_run_that_measures_nothing_says_so(
    federate: Federate, caplog: pytest.LogCaptureFixture, score_test: str, said: str
) -> None:
    with caplog.at_level(logging.WARNING, logger="fedham_flwr"):
        run = federate(
            clients=2, strategy="local", samples_per_client=40, validation_fraction=0.0, score_test=score_test
        )
    warned = [record.getMessage() for record in caplog.records if "nothing is measured" in record.getMessage()]
    assert [text.startswith(said) for text in warned] == ([True] if said else [])
    assert {row.round for row in run.rows} == {"always": {1, 2, 3}, "closing": {3}, "never": set()}[score_test]
    if score_test == "never":
        assert run.summary["final"] == run.summary["selected"] == []
        card = json.loads((run.path / "model" / "0.json").read_text())
        assert card["compared"]["global"] == "Against everybody's model: not measured."


def test_which_splits_are_scored() -> None:
    def splits(score_test: str) -> list[tuple[str, ...]]:
        settings: Settings = parse({"score-test": score_test})
        return [settings.scored_splits(closing) for closing in (False, True)]

    both, one = ("validation", "test"), ("validation",)
    assert splits("always") == [both, both]
    assert splits("closing") == [one, both]
    assert splits("never") == [one, one]


def test_cross_evaluation_and_never_exclude_each_other() -> None:
    with pytest.raises(UserError, match='cross-evaluation=true scores models on test splits, which score-test="never"'):
        parse({"cross-evaluation": True, "score-test": "never"})
    with pytest.raises(UserError, match="score-test='sometimes': wanted 'always', 'closing' or 'never'"):
        parse({"score-test": "sometimes"})
