"""Of benchmarks/, which is no package: the statistics of cards, and the order of runs that start from others."""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import runs
from runs import Case, Result, Setup
from tables import Interval, paired

# Extra hours of sleep with two drugs of ten patients (Cushny and Peebles, 1905), Student's own example of 1908.
DEXTRO = (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
LAEVO = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)

numbers = st.floats(-100, 100)
pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12)


# ---- paired intervals ------------------------------------------------------------------------------------------------


def test_the_interval_is_that_of_students_sleep_data() -> None:
    # R: t.test(laevo, dextro, paired = TRUE) prints 0.7001142 and 2.4598858.
    assert paired(LAEVO, DEXTRO) == pytest.approx((1.58, 0.7001142, 2.4598858), abs=1e-7)


def test_the_interval_of_two_pairs_by_hand() -> None:
    # Differences 1 and 3: mean 2, s = sqrt(2), s / sqrt(2) = 1; with one degree of freedom t is tan(0.45 pi) at 95 %.
    t = math.tan(math.pi * 0.475)
    assert paired([2, 5], [1, 2]) == pytest.approx((2, 2 - t, 2 + t))
    assert paired([2, 5], [1, 2], confidence=0.5) == pytest.approx((2, 1, 3))  # tan(pi / 4) = 1


def test_one_pair_has_an_endless_interval_and_shows_its_mean_alone() -> None:
    one = paired([3.0], [1.0])
    assert one == (2.0, -math.inf, math.inf)
    assert one.holds(1e9)
    assert str(one) == "+2.00"


def test_an_interval_holds_its_ends_and_shows_signs() -> None:
    some = Interval(1.58, -0.7, 2.46)
    assert [some.holds(value) for value in (-0.71, -0.7, 0, 2.46, 2.47)] == [False, True, True, True, False]
    assert str(some) == "+1.58 [-0.70, +2.46]"


def test_nothing_is_compared_without_pairs() -> None:
    with pytest.raises(ValueError, match="there is no pair to compare"):
        paired([], [])
    with pytest.raises(ValueError, match="shorter"):
        paired([1.0, 2.0], [1.0])


@given(pairs)
def test_who_is_compared_with_whom_changes_the_sign_alone(some: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*some, strict=True)
    there, back = paired(ours, theirs), paired(theirs, ours)
    assert (-back.mean, -back.high, -back.low) == pytest.approx(there, abs=1e-9)


@given(pairs, numbers)
def test_what_is_common_to_a_pair_does_not_count(some: list[tuple[float, float]], shift: float) -> None:
    ours, theirs = zip(*some, strict=True)
    noisy = [at * shift for at in range(len(some))]  # as another seed has other data
    moved = paired(
        [a + n for a, n in zip(ours, noisy, strict=True)], [b + n for b, n in zip(theirs, noisy, strict=True)]
    )
    assert moved == pytest.approx(paired(ours, theirs), abs=1e-6)


# ---- runs that start from others -------------------------------------------------------------------------------------

FIRST, SECOND, THIRD = (Case("split", method, 0) for method in ("first", "second", "third"))
PLAN = {FIRST: Setup({}, 3), SECOND: Setup({"batch-size": 8}, 3, FIRST), THIRD: Setup({}, 3, FIRST)}


class Runs:
    """In place of processes: takes down the settings of each run, and leaves the files of one that ended well."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: dict[Case, dict[str, object]] = {}
        self.before: Callable[[Case], None] = lambda case: None
        monkeypatch.setattr(runs, "_run", self.run)
        monkeypatch.setattr(runs, "read", lambda path: Result(path, 3, {}, {}, {}))
        self._lock, self._count = threading.Lock(), 0

    def run(self, case: Case, text: str, clients: int) -> None:
        self.before(case)
        with self._lock:
            self._count += 1
            self.given[case] = json.loads(text)
            directory = Path(str(self.given[case]["results-dir"])) / "strategy" / f"time-{self._count}"
        directory.mkdir(parents=True)
        (directory / "summary.json").write_text("{}")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_a_run_starts_from_the_directory_of_another_however_few_processes(
    fake: Runs, tmp_path: Path, processes: int
) -> None:
    found = runs.run_all(PLAN, tmp_path, processes)
    assert list(found) == [FIRST, SECOND, THIRD]
    assert "resume" not in fake.given[FIRST]
    assert fake.given[SECOND]["resume"] == fake.given[THIRD]["resume"] == str(found[FIRST].path)
    assert found[FIRST].path.parent.parent == tmp_path / "split-first-0"


def test_what_is_there_is_found_again_and_starts_from_the_same_place(fake: Runs, tmp_path: Path) -> None:
    found = runs.run_all(PLAN, tmp_path, 2)
    fake.given.clear()
    assert runs.run_all(PLAN, tmp_path, 2) == found
    assert fake.given == {}


def test_who_starts_from_a_run_that_is_made_anew_is_made_anew(fake: Runs, tmp_path: Path) -> None:
    old = runs.run_all(PLAN, tmp_path, 2)
    fake.given.clear()
    new = runs.run_all({**PLAN, FIRST: Setup({"seed": 1}, 3)}, tmp_path, 2)
    assert set(fake.given) == {FIRST, SECOND, THIRD}
    assert new[FIRST].path != old[FIRST].path
    assert fake.given[THIRD]["resume"] == str(new[FIRST].path)


def test_a_failure_is_reported_once_and_nothing_starts_from_it(fake: Runs, tmp_path: Path) -> None:
    def fail(case: Case) -> None:
        raise SystemExit(f"{case.method} ended with 1")

    fake.before = fail
    with pytest.raises(SystemExit, match=r"^first ended with 1$"):
        runs.run_all(PLAN, tmp_path, 2)
    assert not (tmp_path / "split-second-0").exists()
    assert not (tmp_path / "split-third-0").exists()


def test_a_run_without_rounds_has_no_traffic_of_rounds(tmp_path: Path) -> None:
    line = {"round": 1, "kind": "personal", "bytes-up": 0, "bytes-down": 12}
    (tmp_path / "rounds.jsonl").write_text(json.dumps(line) + "\n")
    assert runs._traffic(tmp_path, 0) == {"up": 0, "down": 0}
