"""Early stopping: known answers, a naive oracle, runs, interruptions, and what it cannot do without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st
from own_callbacks import Listener

from fedham_flwr import Run, RunStart, simulate
from fedham_flwr.callbacks.early_stopping import EarlyStopping
from fedham_flwr.callbacks.protocol import RoundReport
from fedham_flwr.core.callback_settings import EarlyStoppingSettings
from fedham_flwr.core.errors import UserError
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.settings import parse

SHORT: dict[str, Any] = {
    "clients": 3, "samples_per_client": 48, "batch_size": 24, "verbose": False, "device": "cpu", "model": "digits-cnn",
}  # fmt: skip
Value = float | None
NAN = float("nan")


def start(metric: str = "accuracy", validated: int = 3) -> RunStart:
    measured = {"accuracy": True, "rmse": False, "loss": False}
    return RunStart(Path(), {}, "fedper", "mlp", 3, 99, 0, metric, measured, validated)


def report(number: int, value: Value, metric: str = "accuracy", closing: bool = False) -> RoundReport:
    validation = {} if value is None else {metric: value}
    return RoundReport(number, ("train",), (), (), validation, 0.0, 0, 0, (), closing)


def stopped(values: Sequence[Value], metric: str = "accuracy", headline: str = "accuracy", **given: Any) -> int:
    """The round in which a run with these values is ended; 0 if it is not."""
    its = EarlyStopping(EarlyStoppingSettings(**given))
    its.on_start(start(headline))
    for number, value in enumerate(values, 1):
        if its.on_round(report(number, value, metric)):
            return number
    return 0


# ---- the rule --------------------------------------------------------------------------------------------------------

CASES: list[tuple[Sequence[Value], dict[str, Any], int]] = [
    ([0.1, 0.2, 0.3, 0.4], {"patience": 1}, 0),
    ([0.5, 0.4], {"patience": 1}, 2),
    ([0.5, 0.5], {"patience": 1}, 2),  # as good is no better
    ([0.5, 0.4, 0.6, 0.6, 0.5], {"patience": 2}, 5),
    ([0.5, 0.6, 0.65, 0.69], {"patience": 2, "min_delta": 0.1}, 0),  # 0.69 is 0.19 above the last improvement, 0.5
    ([0.5, 0.6, 0.6, 0.6], {"patience": 3, "min_delta": 0.125}, 4),
    ([0.5, 0.625, 0.625], {"patience": 2, "min_delta": 0.125}, 3),  # by no more than min_delta
    ([0.5, None, None, 0.4, None, 0.3], {"patience": 2}, 6),  # rounds without an evaluation do not count
    ([NAN, NAN, 0.5, NAN, NAN, NAN], {"patience": 3}, 6),
    ([NAN, NAN], {"patience": 2}, 2),
    ([0.5, 0.4, 0.3, 0.2, 0.1], {"patience": 2, "min_rounds": 4}, 4),
    ([0.5, 0.4, 0.3, 0.6, 0.1, 0.1], {"patience": 2, "min_rounds": 4}, 6),  # better again in time
    ([None] * 9, {"patience": 1}, 0),
]


@pytest.mark.parametrize(("values", "given", "wanted"), CASES)
def test_a_known_answer(values: Sequence[Value], given: dict[str, Any], wanted: int) -> None:
    assert stopped(values, **given) == wanted
    mirrored = [None if value is None else -value for value in values]
    assert stopped(mirrored, "rmse", "rmse", **given) == wanted  # lower is better


def naive(values: Sequence[Value], patience: int, delta: float, least: int) -> int:
    """By the definition: for each round, how many of the values since the last improvement there are."""
    for end in range(1, len(values) + 1):
        seen = [value for value in values[:end] if value is not None]
        best, last = None, -1
        for place, value in enumerate(seen):
            if best is None or value - best > delta:
                best, last = value, place
        if values[end - 1] is not None and len(seen) - 1 - last >= patience and end >= least:
            return end
    return 0


@given(
    st.lists(st.none() | st.integers(0, 8).map(lambda n: n / 8), max_size=20),
    st.integers(1, 4), st.sampled_from([0.0, 0.125, 0.25]), st.integers(0, 12),
)  # fmt: skip
def test_it_does_what_the_definition_says(values: list[Value], patience: int, delta: float, least: int) -> None:
    assert stopped(values, patience=patience, min_delta=delta, min_rounds=least) == naive(
        values, patience, delta, least
    )


def test_the_reason_says_the_best_and_where_it_was() -> None:
    its = EarlyStopping(EarlyStoppingSettings(patience=2, metric="loss"))
    for _ in range(2):  # and begins anew with each run
        its.on_start(start())
        answers = [its.on_round(report(n, v, "loss")) for n, v in enumerate((0.75, 0.5, 0.625, 0.5), 1)]
        assert answers == [None, None, None, "no better validation loss for 2 evaluations (best: 0.5 in round 2)"]
    its = EarlyStopping(EarlyStoppingSettings(patience=1))
    its.on_start(start())
    assert its.on_round(report(1, NAN)) == "no better validation accuracy for 1 evaluation (best: none was a number)"
    assert its.on_round(report(2, NAN, closing=True)) is None


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"early-stopping.patience": 0}, "early-stopping.patience=0: wanted greater than or equal to 1"),
    ({"early-stopping.min-delta": -0.1}, "early-stopping.min-delta=-0.1: wanted greater than or equal to 0"),
    ({"early-stopping.min-rounds": -1}, "early-stopping.min-rounds=-1: wanted greater than or equal to 0"),
    ({"early-stopping.metric": ""}, "early-stopping.metric='': wanted at least 1 character"),
    ({"patience": 3}, r"there is no key patience \(given 3\): did you mean early-stopping.patience\?"),
    (
        {"callbacks": "early-stopping", "validation-fraction": 0.0},
        '^settings: callbacks="early-stopping" goes by the validation samples, and validation-fraction=0 leaves none',
    ),
]


@pytest.mark.parametrize(("given", "sentence"), WRONG)
def test_what_cannot_be_is_a_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse(given)


# ---- runs ------------------------------------------------------------------------------------------------------------

RULE: dict[str, Any] = {"callbacks": "early-stopping", "early_stopping": {"patience": 2}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("early")


@pytest.fixture
def go(place: Path, cache_dir: Path, no_pictures: None) -> Callable[..., Run]:
    def run(strategy: str = "fedper", rounds: int = 20, **given: Any) -> Run:
        where = {"results_dir": place, "cache_dir": cache_dir, "num_server_rounds": rounds}
        return simulate(strategy, **{**SHORT, **RULE, **where, **given})

    return run


def of_rows(run: Run) -> dict[int, float]:
    """Round -> the mean validation accuracy over samples before local training, where all three clients have one."""
    found: dict[int, float] = {}
    rows = run.rows[(run.rows["split"] == "validation") & (run.rows["metric"] == "accuracy")]
    for number, its in rows[rows["phase"] == "before"].groupby("round"):
        if its["client"].nunique() == SHORT["clients"]:
            found[int(str(number))] = float((its["value"] * its["n"]).sum() / its["n"].sum())
    return found


def test_a_run_ends_where_its_rows_say_in_one_process_and_as_a_cohort(go: Callable[..., Run]) -> None:
    runs = [go(backend="in-process"), go(backend="cohort")]
    for run in runs:
        found, last = of_rows(run), run.summary["stopped"]["round"]
        assert naive([found[number] for number in range(1, last + 1)], 2, 0.0, 0) == last
        assert run.summary["stopped"]["by"] == "early-stopping"
        assert max(run.rows["round"]) == last + 1 == run.summary["final"][0]["round"]
    assert runs[0].summary["stopped"] == runs[1].summary["stopped"]


def test_with_a_part_of_the_clients_it_counts_evaluations_of_all(go: Callable[..., Run]) -> None:
    heard = Listener()
    run = go(fraction_train=0.67, evaluate_every=2, rounds=30, callbacks=["early-stopping", heard])
    found = of_rows(run)
    counted = {report.round: report.value for report in heard.reports if report.value is not None}
    assert counted == {number: pytest.approx(value) for number, value in found.items()}
    last = run.summary["stopped"]["round"]
    assert set(counted) == {*range(2, last + 1, 2), last + 1}
    values = [counted.get(number) for number in range(1, last + 1)]
    assert naive(values, 2, 0.0, 0) == last


def test_another_metric_and_least_rounds(go: Callable[..., Run]) -> None:
    run = go(early_stopping={"patience": 1, "metric": "loss", "min_rounds": 3, "min_delta": 10.0})
    assert run.summary["stopped"]["round"] == 3
    assert run.summary["stopped"]["why"].startswith("no better validation loss for 2 evaluations (best: 2.")
    with pytest.raises(UserError, match=r'^early-stopping.metric="f1" is not measured: wanted "auto" or one of accura'):
        go(early_stopping={"metric": "f1"})


def test_data_without_validation_samples_are_refused_and_leave_nothing(go: Callable[..., Run], tmp_path: Path) -> None:
    def load(client: int) -> dict[str, Any]:
        x = torch.randn(20, 3, generator=torch.Generator().manual_seed(client))
        return {"train": (x, (x[:, 0] > 0).long()), "test": (x, (x[:, 0] > 0).long())}

    given = {"dataset": load, "model": "own_objects:linear", "samples_per_client": 0, "results_dir": tmp_path / "none"}
    with pytest.raises(UserError, match=r'^callbacks="early-stopping" goes by the validation samples, and no client'):
        go("fedavg", **given)
    assert not (tmp_path / "none").exists()


# ---- interruptions ---------------------------------------------------------------------------------------------------


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Have the server interrupted when a round's training has been asked for and not been merged."""
    through = InProcessGrid.send_and_receive

    def send(self: InProcessGrid, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        messages = list(messages)
        replies = through(self, messages, timeout=timeout)
        if any((m.metadata.group_id, m.metadata.message_type) == (str(at), "train") for m in messages):
            raise KeyboardInterrupt
        return replies

    monkeypatch.setattr(InProcessGrid, "send_and_receive", send)


@pytest.mark.parametrize("backend", ["in-process", "cohort"])
def test_a_run_that_was_interrupted_ends_where_it_would_have(
    go: Callable[..., Run], place: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    whole = go(backend=backend, checkpoint_every=2)
    last = whole.summary["stopped"]["round"]
    assert last > 3  # before a checkpoint there is nothing to go on from
    for at in (last - 1, last):
        before = set(place.glob("fedper/*"))
        with monkeypatch.context() as patch:
            interrupt(patch, at)
            with pytest.raises(KeyboardInterrupt):
                go(backend=backend, checkpoint_every=2)
        (left,) = set(place.glob("fedper/*")) - before
        resumed = simulate(resume=left, verbose=False, backend=backend)
        assert resumed.summary["stopped"] == whole.summary["stopped"]
        assert resumed.summary["digest"] == whole.summary["digest"]


def test_a_run_that_has_stopped_is_not_continued_but_by_another_rule(go: Callable[..., Run]) -> None:
    run = go(rounds=12)
    last = run.summary["stopped"]["round"]
    for more in ({}, {"num_server_rounds": 40}):
        with pytest.raises(
            UserError, match=rf"^resume=.* has come to its end: early-stopping stopped it after round {last} \(no bett"
        ):
            simulate(resume=run.directory, verbose=False, **more)
    patient = simulate(resume=run.directory, verbose=False, early_stopping={"patience": 3})
    assert patient.summary["digest"] == go(rounds=12, early_stopping={"patience": 3}).summary["digest"]
    assert patient.summary["resumed-from"][0] == last
    free = simulate(resume=run.directory, verbose=False, callbacks="")
    assert "stopped" not in free.summary
    assert free.summary["num-rounds"] == 12
    assert free.summary["digest"] == go(rounds=12, callbacks="", early_stopping={}).summary["digest"]
