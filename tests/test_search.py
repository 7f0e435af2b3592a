"""The search: what is proposed, that it is the same again, what is pruned, and which trial is best."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spaces_of_tests import MIXED, RATE

from fedham_flwr import registry
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.search_space import Choice, Range, Space
from fedham_flwr.study.points import every, identity, start_of
from fedham_flwr.study.samplers import SPREAD_FIRST
from fedham_flwr.study.search import COMPLETE_FIRST, PRUNERS, Search, is_below_median
from fedham_flwr.study.spaces import space_of

SAMPLERS = ("tpe", "sobol", "random", "grid")


def metric(values: Mapping[str, Any]) -> float:
    """The larger the nearer the rate is to 0.01, whatever the others are."""
    return -abs(math.log10(values["rate"]) + 2)


def run(search: Search, score: Callable[[Mapping[str, Any]], float] = metric, stop: int = 10**9) -> Search:
    """Ask and tell until the search, or its first batches, are over."""
    for _ in range(stop):
        batch = search.ask()
        for trial in batch:
            search.tell(trial.number, score(trial.values), "complete", [(1, score(trial.values))])
        if not batch:
            break
    return search


def proposals(search: Search) -> list[str]:
    return [identity(told.values) for told in search.told]


# ---- what is proposed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", registry.BUILT_IN)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_method_has_the_same_number_of_trials_the_start_first_and_none_twice(sampler: str, method: str) -> None:
    space = space_of(method, {})
    search = run(Search(space, 8, 0, sampler), lambda values: float(values["learning-rate"]))
    assert [told.number for told in search.told] == list(range(8))
    assert search.told[0].values == start_of(space)
    assert len(set(proposals(search))) == 8
    assert search.note == ""
    for told in search.told:
        for key, value in told.values.items():
            inside = space[key]
            assert value in inside.values if isinstance(inside, Choice) else inside.low <= value <= inside.high


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_small_space_ends_early_and_says_so(sampler: str) -> None:
    small: Space = {"layers": Range(1, 2, 1, whole=True), "kind": Choice((True, 1, "1"), 1)}
    search = run(Search(small, 10, 0, sampler, together=4), lambda values: 1.0)
    assert sorted(proposals(search)) == sorted(map(identity, every(small)))
    assert search.length == 6
    assert search.note == "the space of layers, kind has 6 different points, fewer than 10 trials"


def test_a_space_of_nothing_is_one_trial() -> None:
    search = run(Search({}, 3, 0), lambda values: 1.0)
    assert [dict(told.values) for told in search.told] == [{}]
    assert search.note == "the space of no setting has 1 different point, fewer than 3 trials"
    assert search.best() == 0


@pytest.mark.parametrize("higher", [True, False])
def test_the_estimator_comes_nearer_than_the_start_and_than_chance(higher: bool) -> None:
    def found(sampler: str, seed: int) -> float:
        search = Search({"rate": RATE, "share": MIXED["share"]}, 20, seed, sampler, higher=higher)
        run(search, lambda values: metric(values) * (1 if higher else -1))
        best = search.best()
        assert best is not None
        return -metric(search.told[best].values)

    tpe = [found("tpe", seed) for seed in range(6)]
    assert max(tpe) < -metric({"rate": 0.1}) / 2
    assert np.mean(tpe) < np.mean([found("random", seed) for seed in range(6)])


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [2, 4])
def test_the_estimator_is_ahead_on_noisy_quadratics(dimensions: int) -> None:
    """What docs/tuning.md says of the samplers; run with -s for its numbers."""
    space: Space = {str(n): Range(0.0, 1.0, 0.5) for n in range(dimensions)}

    def distance(sampler: str, trials: int, seed: int) -> float:
        draws = np.random.default_rng(seed)
        best, weight = draws.random(dimensions), 1 / (1 + np.arange(dimensions))

        def loss(values: Mapping[str, Any]) -> float:
            return float((weight * (np.array(list(values.values())) - best) ** 2).sum())

        search = run(Search(space, trials, seed, sampler), lambda values: draws.normal(-loss(values), 0.01))
        return loss(search.told[search.best() or 0].values)

    for trials in (8, 30):
        means = {name: np.mean([distance(name, trials, seed) for seed in range(100)]) for name in SAMPLERS}
        sys.stdout.write(f"{dimensions} settings, {trials} trials: {means}\n")
        assert means["tpe"] < min(means["grid"], means["random"])


@pytest.mark.parametrize(("sampler", "same"), [("tpe", SPREAD_FIRST), ("sobol", 8), ("random", 1), ("grid", 8)])
def test_the_seed_tells_of_what_is_drawn(sampler: str, same: int) -> None:
    runs = [proposals(run(Search(MIXED, 8, seed, sampler))) for seed in (0, 1)]
    assert [a == b for a, b in zip(*runs, strict=True)] == [at < same for at in range(8)]


@pytest.mark.parametrize(("sampler", "same"), [("tpe", SPREAD_FIRST), ("sobol", 12), ("random", 12)])
def test_methods_are_tried_with_the_same_learning_rates_whatever_else_is_searched(sampler: str, same: int) -> None:
    found = []
    for method in registry.BUILT_IN:
        search = run(Search(space_of(method, {}), 12, 1000, sampler), lambda values: float(values["learning-rate"]))
        found.append([told.values["learning-rate"] for told in search.told])
    assert len({len(set(rates)) for rates in found}) == 1
    assert len({tuple(rates[:same]) for rates in found}) == 1
    assert len(set(found[0][:same])) == same


# ---- the same again -----------------------------------------------------------------------------------------------


def result(number: int, values: Mapping[str, Any]) -> tuple[float | None, Any, list[tuple[int, float]]]:
    """What becomes of a trial, some of which fail or are pruned."""
    at = [(1, metric(values) - 1), (2, metric(values))]
    if number % 5 == 3:
        return None, "failed", []
    return (None, "pruned", at[:1]) if number % 5 == 4 else (metric(values), "complete", at)


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_is_killed_anywhere_goes_on_as_if_it_had_not_been(sampler: str, together: int) -> None:
    def fresh() -> Search:
        return Search(MIXED, 11, 7, sampler, together=together)

    def go_on(search: Search, stored: dict[int, Any], most: int, backwards: bool) -> None:
        """Run at most so many trials that are not stored."""
        while batch := search.ask():
            for trial in reversed(batch) if backwards else batch:
                if trial.number not in stored:
                    if most == 0:
                        return
                    most -= 1
                    stored[trial.number] = (trial.values, result(trial.number, trial.values))
                assert identity(stored[trial.number][0]) == identity(trial.values)
                search.tell(trial.number, *stored[trial.number][1])

    whole: dict[int, Any] = {}
    reference = fresh()
    go_on(reference, whole, 10**9, backwards=False)
    assert len(whole) == 11
    for killed in range(1, 11, 3):
        stored: dict[int, Any] = {}
        go_on(fresh(), stored, killed, backwards=True)
        again = fresh()
        go_on(again, stored, 10**9, backwards=killed % 2 == 0)
        assert again.told == reference.told
        assert again.best() == reference.best()


@pytest.mark.slow
def test_another_process_proposes_the_same() -> None:
    code = (
        "import json, sys; sys.path.insert(0, 'tests'); import test_search as t\n"
        "print(json.dumps([t.proposals(t.run(t.Search(t.MIXED, 9, 5, name, together=2))) for name in t.SAMPLERS]))"
    )
    here = [proposals(run(Search(MIXED, 9, 5, name, together=2))) for name in SAMPLERS]
    for hashes in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashes}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout.splitlines()[-1]) == here


def test_a_batch_is_over_when_all_of_it_are_told() -> None:
    search = Search(MIXED, 5, 0, together=3)
    batch = search.ask()
    assert [trial.number for trial in batch] == [0, 1, 2]
    with pytest.raises(RuntimeError, match=r"the trials \(0, 1, 2\) were asked for and are not told"):
        search.ask()
    search.tell(2, 0.5, "complete")
    search.tell(0, 0.1, "complete")
    assert search.waiting == (1,)
    assert search.told == []
    with pytest.raises(ValueError, match="the trial 2 was not asked for, or is told already"):
        search.tell(2, 0.5, "complete")
    search.tell(1, None, "failed")
    assert [told.number for told in search.told] == [0, 1, 2]
    assert [trial.number for trial in search.ask()] == [3, 4]


# ---- pruning ------------------------------------------------------------------------------------------------------

Curves = Sequence[Sequence[tuple[int, float]]]


def prunes(steps: Sequence[tuple[int, float]], others: Curves, higher: bool) -> bool:
    """The rule as it is said, one number at a time."""
    seen = [value for _, value in steps if not math.isnan(value)]
    at = sorted(value for other in others for place, value in other if place == steps[-1][0] and not math.isnan(value))
    if not seen:
        return True
    if not at:
        return False
    half = len(at) // 2
    middle = at[half] if len(at) % 2 else (at[half - 1] + at[half]) / 2
    return sorted(seen)[-1] < middle if higher else sorted(seen)[0] > middle


NUMBERS = st.one_of(st.sampled_from([0.25, 0.5, 0.75, math.nan]), st.floats(-1, 1, width=16))
CURVE = st.lists(NUMBERS, min_size=1, max_size=4).map(lambda values: list(enumerate(values, 1)))


@given(CURVE, st.lists(CURVE, min_size=1, max_size=6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_median_is_that_of_a_naive_loop_and_of_optuna(steps: Any, others: Any, higher: bool) -> None:
    found = is_below_median(steps, others, higher)
    assert found == prunes(steps, others, higher)
    assert found == optunas(steps, others, higher)


def optunas(steps: Any, others: Any, higher: bool) -> bool:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1)
    study = optuna.create_study(direction="maximize" if higher else "minimize", pruner=pruner)
    for other in others:
        study.add_trial(optuna.trial.create_trial(value=0.0, intermediate_values=dict(other)))
    trial = study.ask()
    for at, value in steps:
        trial.report(value, at)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nanmax of nothing but NaN
        return bool(trial.should_prune())


def with_complete(count: int, **more: Any) -> Search:
    """A search of so many complete trials, whose metric after rounds 2, 4 and 6 is number / 10."""
    search = Search(MIXED, 20, 0, "random", **more)
    for number in range(count):
        search.ask()
        search.tell(number, number / 10, "complete", [(at, number / 10) for at in (2, 4, 6)])
    search.ask()
    return search


def test_a_trial_below_the_median_is_pruned_and_the_first_never() -> None:
    search = with_complete(5)  # the median is 0.2
    assert search.should_prune(5, [(4, 0.19)])
    assert not search.should_prune(5, [(4, 0.2)])
    assert not search.should_prune(5, [(2, 0.21), (4, 0.1)])  # its best counts
    assert not search.should_prune(0, [(4, 0.0)])
    assert not search.should_prune(5, [])
    assert not search.should_prune(5, [(3, 0.0)])  # nobody has a number of that round
    assert with_complete(5, higher=False).should_prune(5, [(4, 0.21)])
    assert not with_complete(5, pruner="none").should_prune(5, [(4, 0.0)])


def test_nothing_is_pruned_before_some_are_complete_or_in_the_first_third() -> None:
    assert not with_complete(COMPLETE_FIRST - 1).should_prune(COMPLETE_FIRST - 1, [(4, -9.0)])
    assert with_complete(COMPLETE_FIRST).should_prune(COMPLETE_FIRST, [(4, -9.0)])
    search = with_complete(COMPLETE_FIRST)
    assert not search.should_prune(COMPLETE_FIRST, [(1, -9.0)])
    assert search.should_prune(COMPLETE_FIRST, [(2, -9.0)])  # a third of 6


def test_pruned_and_failed_trials_are_not_in_the_median_and_a_trial_of_the_batch_neither() -> None:
    search = Search(MIXED, 20, 0, "random", together=6)
    search.ask()
    for number in range(4):
        search.tell(number, 0.5, "complete", [(4, 0.5)])
    assert not search.should_prune(5, [(4, 0.1)])  # their batch is not over: who is told first must not tell
    search.tell(4, None, "pruned", [(4, 0.0)])
    search.tell(5, None, "failed", [(4, 0.0)])
    search.ask()
    assert search.should_prune(7, [(4, 0.49)])


# ---- the best -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("higher", "best"), [(True, 2), (False, 4)])
def test_the_best_is_the_first_of_the_best_complete_ones(higher: bool, best: int) -> None:
    search = Search(MIXED, 8, 0, "random", higher=higher)
    told: list[tuple[float | None, Any]] = [
        (0.5, "complete"), (9.0, "pruned"), (0.8, "complete"), (0.8, "complete"), (0.1, "complete"), (0.1, "complete"),
        (math.nan, "complete"), (math.inf if higher else -math.inf, "complete"),
    ]  # fmt: skip
    for number, (value, state) in enumerate(told):
        search.ask()
        search.tell(number, value, state)
    assert search.best() == best
    assert [one.state for one in search.told[6:]] == ["failed", "failed"]
    assert [one.value for one in search.told if one.state != "complete"] == [None] * 3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_if_all_fail_there_is_no_best_and_the_search_goes_on_to_its_end(sampler: str) -> None:
    search = run(Search(MIXED, 12, 0, sampler), lambda values: math.nan)
    assert len(search.told) == 12
    assert search.best() is None
    assert {told.state for told in search.told} == {"failed"}


def test_the_estimator_leaves_where_trials_fail() -> None:
    search = run(Search({"rate": RATE}, 30, 0, "tpe"), lambda values: math.nan if values["rate"] > 0.1 else 1.0)
    failed = [told.state == "failed" for told in search.told[10:]]
    assert sum(failed) < len(failed) / 4  # a third of the range fails


# ---- without Optuna, and mistakes ---------------------------------------------------------------------------------


def test_without_optuna_spread_points_are_searched_and_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    search = run(Search(MIXED, 9, 0))
    assert search.sampler == "sobol"
    assert search.pruner in PRUNERS
    assert len(search.told) == 9
    assert len(run(Search(MIXED, 9, 0, "random")).told) == 9
    with pytest.raises(UserError, match=r"sampler=\"tpe\" needs Optuna: pip install 'fedham-flwr\[tune\]'"):
        Search(MIXED, 9, 0, "tpe")


def test_with_optuna_auto_is_tpe() -> None:
    assert Search(MIXED, 9, 0).sampler == "tpe"


def test_mistakes_are_said() -> None:
    with pytest.raises(UserError, match='sampler="cmaes" is none: wanted auto, tpe, sobol, random, grid'):
        Search(MIXED, 9, 0, "cmaes")
    with pytest.raises(UserError, match='pruner="hyperband" is none: wanted median or none'):
        Search(MIXED, 9, 0, "grid", "hyperband")
    with pytest.raises(ValueError, match="wanted at least one trial"):
        Search(MIXED, 0, 0)
