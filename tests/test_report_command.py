"""The command that writes a page, and what makes a page small."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from compared import make_run
from hypothesis import given
from hypothesis import strategies as st

from fedham_flwr.cli import main
from fedham_flwr.page import compact

# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_writes_the_page_and_says_where(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for strategy in ("local", "fedper"):
        make_run(left / "runs", strategy, 0, ["a", "b"])
    assert main(["report", "runs/local", "runs/fedper", "--tables", "tables"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(left / "report.html"), str(left / "tables")]
    assert (left / "report.html").stat().st_size < 6e6
    assert {f"results.{ending}" for ending in ("md", "tex", "csv")} <= {
        file.name for file in (left / "tables").iterdir()
    }


def test_the_page_of_one_folder_lies_in_it(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(left, "fedavg", 5, ["a", "b"])
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], r"error: .*/nothing is no folder: wanted that of a study, of a run, or of several runs\n"),
        (["."], r"error: [^\n]* run[^\n]*\n"),
        (["half"], r"error: .*half holds no run with scores of its end: it has not come to its end\n"),
        (["half", "-o", "page.pdf"], r"error: --output page\.pdf: wanted a file that ends in \.html\n"),
        (["whole", "-o", "no/page.html"], r"error: no/page\.html cannot be written: No such file or directory\n"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], said: str, left: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments != ["."]:
        make_run(left, "local", 0, ["a", "b"]).rename(left / "whole")
        (make_run(left, "local", 1, ["a", "b"]) / "summary.json").unlink()
        (left / "local").rename(left / "half")
    assert main(["report", *arguments]) == 1
    assert re.fullmatch(said, capsys.readouterr().err)


# ---- fewer bytes -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 300), st.integers(2, 60))
def test_thinned_places_have_the_ends_and_are_spread(count: int, most: int) -> None:
    places = compact.thinned(count, most)
    assert len(places) == min(count, most)
    assert places == sorted(set(places))
    if count:
        assert (places[0], places[-1]) == (0, count - 1)
        steps = np.diff(places)
        assert not len(steps) or steps.max() - steps.min() <= 1


@given(st.lists(st.floats(0, 1) | st.just(float("nan")), min_size=1, max_size=20), st.floats(0.1, 1))
def test_a_quantised_weight_is_within_half_a_step(weights: Sequence[float], highest: float) -> None:
    given_weights = np.array(weights)
    steps = np.frombuffer(base64.b64decode(compact.quantised(given_weights, highest)), dtype=np.uint8)
    assert ((steps == compact.NONE) == np.isnan(given_weights)).all()
    known = ~np.isnan(given_weights)
    error = steps[known] / compact.LEVELS * highest - np.minimum(given_weights[known], highest)
    assert np.abs(error).max(initial=0) <= highest / compact.LEVELS / 2 * (1 + 1e-9)


@pytest.mark.parametrize(("value", "short"), [(0.123456789, 0.12346), (2.0, 2), (1234567, 1234600), (None, None)])
def test_a_number_is_shortened(value: float | None, short: float | None) -> None:
    assert compact.short(value) == short
    assert compact.short(float("inf")) is None
