"""The tables of a comparison: their numbers by hand, what they say of them, and their files."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparisons import Made, write_study
from conftest import leave_out_pictures
from scipy import stats as oracle

from fedham_flwr import simulate
from fedham_flwr.analysis.cells import Cell, Column, Table
from fedham_flwr.analysis.collection import Collection, of_runs, of_study
from fedham_flwr.analysis.difference_table import compared, differences
from fedham_flwr.analysis.numbers import amount, averaged, difference, probability, score
from fedham_flwr.analysis.result_tables import best, results
from fedham_flwr.analysis.statistics import Interval, holm
from fedham_flwr.analysis.tables import all_tables
from fedham_flwr.analysis.writing import to_csv, to_latex, to_markdown, write_tables
from fedham_flwr.training.metrics import ACCURACY, METRICS

LOCAL = {0: {"0": 0.50, "1": 0.60}, 1: {"0": 0.52, "1": 0.64}, 2: {"0": 0.51, "1": 0.62}}
FEDPER = {0: {"0": 0.60, "1": 0.71}, 1: {"0": 0.63, "1": 0.74}, 2: {"0": 0.60, "1": 0.73}}
PFEDLA = {0: {"0": 0.45, "1": 0.66}, 1: {"0": 0.55, "1": 0.64}, 2: {"0": 0.51, "1": 0.60}}
SCORES = {"local": LOCAL, "fedper": FEDPER, "pfedla": PFEDLA}
SENT = {"local": 0, "fedper": 2**19, "pfedla": 2**20}


def study(folder: Path, scores: dict[str, Any] = SCORES, made: dict[str, Any] | None = None, **plan: Any) -> Collection:
    """A study of one task; `made` are further fields of every run."""
    runs = {
        (method, "digits", seed): Made(method, seed, each, up=SENT.get(method, 1), **(made or {}))
        for method, seeds in scores.items()
        for seed, each in seeds.items()
    }
    return of_study(write_study(folder, {method: {} for method in scores}, runs, **{"floors": ["local"], **plan}))


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return study(tmp_path_factory.mktemp("study"))


def tables(collection: Collection) -> dict[str, Table]:
    return {table.name: table for table in all_tables(collection)}


def cell(table: Table, row: str, column: str, at: int = 0) -> Cell:
    """The cell of a row that begins with a word, and of a column; the n-th of such rows."""
    place = [each.name for each in table.columns].index(column)
    return [row_[place] for row_ in table.rows if row_[0].text == row][at]


# ---- results and differences -----------------------------------------------------------------------------------------


def test_results_are_means_over_clients_then_over_seeds_with_students_interval(usual: Collection) -> None:
    table = results(usual)
    means = [np.mean([*FEDPER[seed].values()]) for seed in FEDPER]
    wanted = oracle.t.interval(0.95, 2, np.mean(means), oracle.sem(means))
    found = cell(table, "fedper", "accuracy")
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(means), *wanted), rel=1e-12)
    assert found.text == f"{100 * np.mean(means):.2f} ± {50 * (wanted[1] - wanted[0]):.2f}"
    assert cell(table, "fedper", "before") == Cell(
        found.text, found.value, found.low, found.high, marks=frozenset({"used"})
    )
    assert cell(table, "fedper", "after").value == pytest.approx(np.mean(means) - 0.1)
    assert [row[0].marks for row in table.rows] == [{"floor"}, set(), set()]
    assert table.columns[1].unit == "%"
    assert any("All seeds have the same clients, partition and splits" in note for note in table.notes)


def test_differences_are_tested_as_one_family_and_put_in_words(usual: Collection) -> None:
    table = differences(usual)
    means = {name: [np.mean([*each.values()]) for each in seeds.values()] for name, seeds in SCORES.items()}
    ps = [float(oracle.ttest_rel(means[name], means["local"]).pvalue) for name in ("fedper", "pfedla")]
    assert [row[0].text for row in table.rows] == ["fedper", "pfedla"]
    assert [cell(table, name, "p").value for name in ("fedper", "pfedla")] == pytest.approx(ps, rel=1e-10)
    adjusted = [cell(table, name, "p, Holm").value for name in ("fedper", "pfedla")]
    assert adjusted == pytest.approx(holm(ps), rel=1e-10)
    assert [cell(table, name, "verdict").text for name in ("fedper", "pfedla")] == ["above", "not distinguishable"]
    assert cell(table, "fedper", "verdict").marks == {"better"}
    gain = cell(table, "fedper", "minus local")
    assert re.fullmatch(r"\+10\.33 \[\+\d\.\d\d, \+1\d\.\d\d\]", gain.text)
    assert gain.value == pytest.approx(np.mean(means["fedper"]) - np.mean(means["local"]))
    assert "for the 2 comparisons of this table" in table.notes[0]


def test_the_best_is_marked_only_if_it_is_above_each_of_the_others(usual: Collection, tmp_path: Path) -> None:
    assert best(usual, "digits") == "fedper"
    assert cell(results(usual), "fedper", "accuracy").marks == {"best"}
    close = {
        **SCORES,
        "ditto": {seed: {"0": each["0"] + 0.01 * (seed - 1), "1": each["1"]} for seed, each in FEDPER.items()},
    }
    assert best(study(tmp_path / "close", close), "digits") == ""
    assert best(study(tmp_path / "one", {name: {0: each[0]} for name, each in SCORES.items()}), "digits") == ""
    assert best(study(tmp_path / "alone", {"fedper": FEDPER}), "digits") == ""


def test_where_lower_is_better_below_is_better(tmp_path: Path) -> None:
    found = study(tmp_path, made={"metric": METRICS["rmse"]})
    words = {name: cell(differences(found), name, "verdict") for name in ("fedper", "pfedla")}
    assert words["fedper"] == Cell("above (worse)", marks=frozenset({"worse"}))
    assert cell(results(found), "fedper", "rmse").text.startswith("0.668 ± 0.0")
    assert (results(found).columns[1].unit, best(found, "digits")) == ("", "")
    assert cell(tables(found)["clients"], "fedper", "lost").value == 2
    low = study(tmp_path / "low", {"local": FEDPER, "fedper": LOCAL}, made={"metric": METRICS["rmse"]})
    assert cell(differences(low), "fedper", "verdict") == Cell("below (better)", marks=frozenset({"better"}))
    assert best(low, "digits") == "fedper"


def test_one_seed_has_no_interval_and_no_verdict(tmp_path: Path) -> None:
    found = tables(study(tmp_path, {name: {0: each[0]} for name, each in SCORES.items()}))
    assert cell(found["results"], "fedper", "accuracy") == Cell(
        "65.50", pytest.approx(0.655), note="one seed: no interval"
    )
    assert any("no method can be said to be above another" in note for note in found["results"].notes)
    assert cell(found["differences"], "fedper", "verdict").text == "one seed: no interval"
    assert cell(found["differences"], "fedper", "p").text == "–"


def test_seeds_that_are_missing_are_said_and_pairs_are_of_those_that_both_have(tmp_path: Path) -> None:
    found = study(tmp_path, {**SCORES, "pfedla": {1: PFEDLA[1]}}, seeds=[0, 1, 2])
    assert cell(results(found), "pfedla", "accuracy").note == "1 of 3 seeds; one seed: no interval"
    assert (cell(differences(found), "pfedla", "seeds").value, compared(found)[1].seeds) == (1, 1)
    nothing = study(tmp_path / "nothing", {"local": LOCAL, "fedper": {}}, seeds=[0, 1, 2])
    assert cell(results(nothing), "fedper", "accuracy") == Cell("–", note="not measured")
    assert [row[0].text for row in tables(nothing)["failures"].rows] == ["fedper"] * 3


def test_from_six_seeds_on_a_signed_rank_test_stands_beside(tmp_path: Path) -> None:
    six = {"local": {s: {"0": 0.5 + s / 100} for s in range(6)}, "fedper": {s: {"0": 0.6 + s / 99} for s in range(6)}}
    found = differences(study(tmp_path, six))
    assert cell(found, "fedper", "p, signs").value == pytest.approx(2 / 64)


# ---- clients ---------------------------------------------------------------------------------------------------------


def test_clients_are_won_by_their_means_over_seeds_where_the_data_are_the_same(
    usual: Collection, tmp_path: Path
) -> None:
    table = tables(usual)["clients"]
    # pfedla: client 0 has 0.5033 and local 0.51; client 1 has 0.6333 and local 0.62.
    assert [cell(table, "pfedla", name).value for name in ("won", "tied", "lost")] == [1, 0, 1]
    assert [cell(table, "local", name).text for name in ("won", "tied", "lost")] == ["–"] * 3
    # Of seeds with a partition each: 0.45 < 0.5, 0.66 > 0.6; 0.55 > 0.52, 0.64 = 0.64; 0.51 = 0.51, 0.60 < 0.62.
    drawn = study(tmp_path, made={"settings": {"data-seed": -1}})
    assert [cell(tables(drawn)["clients"], "pfedla", name).value for name in ("won", "tied", "lost")] == [2, 2, 2]
    assert any("each seed's clients count on their own" in note for note in tables(drawn)["clients"].notes)
    assert cell(table, "fedper", "p, sign test").value == 0.5  # two of two


def test_spread_and_fairness_of_clients_are_means_over_seeds(usual: Collection) -> None:
    table, pairs = tables(usual)["clients"], [(each["0"], each["1"]) for each in FEDPER.values()]
    assert cell(table, "fedper", "worst tenth").value == pytest.approx(np.mean([min(pair) for pair in pairs]))
    assert cell(table, "fedper", "std").value == pytest.approx(np.mean([np.std(pair) for pair in pairs]))
    jains = [(a + b) ** 2 / (2 * (a**2 + b**2)) for a, b in pairs]
    assert cell(table, "fedper", "Jain").value == pytest.approx(np.mean(jains))
    assert cell(table, "fedper", "Gini").value == pytest.approx(np.mean([(b - a) / (2 * (a + b)) for a, b in pairs]))
    assert cell(table, "fedper", "clients").value == 2


# ---- costs -----------------------------------------------------------------------------------------------------------


def test_costs_are_those_of_training_and_equal_budgets_those_of_the_cheapest(usual: Collection) -> None:
    table = tables(usual)["costs"]
    # Two clients and two rounds: fedper sends 0.5 MiB each way, pfedla 1 MiB; in all 4 and 8 MiB, in 5 seconds.
    assert [cell(table, name, "MiB up").value for name in SCORES] == [0.0, 0.5, 1.0]
    assert [cell(table, name, "MiB in all").value for name in SCORES] == [0.0, 4.0, 8.0]
    assert [cell(table, "fedper", name).value for name in ("s a round", "s in all")] == [2.5, 9.0]
    ends = {name: np.mean([list(each.values()) for each in SCORES[name].values()]) for name in SCORES}
    # With 4 MiB fedper has its final score, pfedla that of the round before, which is half of it.
    at_equal = [cell(table, name, "at equal MiB").value for name in SCORES]
    assert at_equal == pytest.approx([ends["local"], ends["fedper"], ends["pfedla"] / 2])
    assert cell(table, "pfedla", "at equal s").value == pytest.approx(ends["pfedla"])
    # Scores of 0 at 0 MiB and of a half at 2 MiB: between 0 and 4 MiB the mean is a quarter of the final one.
    assert cell(table, "fedper", "area, MiB").value == pytest.approx(ends["fedper"] / 4)
    assert cell(table, "pfedla", "area, MiB").value == pytest.approx(0.0, abs=1e-12)


def test_what_it_takes_to_reach_the_reference_says_how_many_seeds_do(usual: Collection) -> None:
    table = tables(usual)["costs"]
    assert (cell(table, "fedper", "MiB to local").text, cell(table, "fedper", "s to local").value) == ("4.00", 5.0)
    # pfedla ends with 0.555, 0.595 and 0.555; local with 0.55, 0.58 and 0.565.
    assert cell(table, "pfedla", "MiB to local").text == "8.00 (2 of 3 seeds)"
    assert cell(table, "local", "MiB to local").value == 0.0
    assert any(
        "Equal means at most 4.00 MiB and 5.00 s, by validation scores; the area begins at 0 MiB" in note
        for note in table.notes
    )


# ---- tasks, tuning, account ------------------------------------------------------------------------------------------


def two_tasks(folder: Path, **plan: Any) -> Collection:
    values = {"one": (0.5, 0.7, 0.6), "two": (0.5, 0.6, 0.6)}
    runs = {
        (method, task, seed): Made(
            method, seed, {"0": mean + way * at / 50, "1": mean}, settings={"learning-rate": 0.1}
        )
        for task, means in values.items()
        for at, (method, mean) in enumerate(zip(("local", "fedper", "pfedla"), means, strict=True))
        for seed, way in enumerate((-1, 1))
    }
    methods: dict[str, Any] = {"local": {}, "fedper": {}, "pfedla": {}}
    return of_study(write_study(folder, methods, runs, tasks={task: {} for task in values}, **plan))


def test_ranks_are_of_means_over_seeds_and_tables_name_the_tasks(tmp_path: Path) -> None:
    found = tables(two_tasks(tmp_path))
    ranks = found["ranks"]
    assert [[entry.value for entry in row[1:]] for row in ranks.rows] == [[3, 3, 3], [1.25, 1, 1.5], [1.75, 2, 1.5]]
    assert cell(ranks, "local", "mean rank").note == "the same rank on each task: no interval"
    half = 0.25 * oracle.t.ppf(0.975, 1)
    mean = cell(ranks, "pfedla", "mean rank")
    assert (mean.low, mean.high) == pytest.approx((max(1, 1.75 - half), min(3, 1.75 + half)))
    assert [column.name for column in found["results"].columns][1:4] == ["one: accuracy", "one: before", "one: after"]
    assert [row[1].text for row in found["differences"].rows] == ["one", "one", "two", "two"]
    assert "for the 4 comparisons" in found["differences"].notes[0]


def test_tuned_values_stand_beside_the_papers(tmp_path: Path) -> None:
    space = {"learning-rate": {"low": 0.01, "high": 0.1, "start": 0.02, "source": "p. 7"},
             "optimizer": {"values": ["sgd", "adam"], "start": "sgd", "source": ""}}  # fmt: skip
    trials = [
        {"number": n, "values": {"learning-rate": rate, "optimizer": "adam"}, "value": value, "state": state}
        for n, (rate, value, state) in enumerate(
            [(0.02, 0.5, "complete"), (0.1, 0.75, "complete"), (0.01, None, "pruned"), (0.05, None, "failed")]
        )
    ]
    tuning = [{"method": "fedper", "task": "two", "space": space, "trials": trials, "chosen": 1}]
    table = tables(two_tasks(tmp_path, tuning=tuning))["tuned"]
    assert [[entry.text for entry in row] for row in table.rows] == [
        ["fedper", "two", "learning-rate", "0.1", "0.02", "p. 7", "75.00", "50.00", "2", "1", "1"],
        ["fedper", "two", "optimizer", "adam", "sgd", "", "75.00", "50.00", "2", "1", "1"],
    ]
    assert table.notes == ("Chosen at the edge of what was searched: fedper's learning-rate on two.",)


def test_settings_are_those_in_which_methods_differ(tmp_path: Path) -> None:
    own = {"pfedla.retained-layers": 1, "pfedla.hidden-dim": 100, "vit.width": 3, "batch-size": 5}
    runs = [Made("local"), Made("pfedla", settings=own), Made("pfedla", 1, settings=own)]
    found = tables(of_runs([run.write(tmp_path / str(at)) for at, run in enumerate(runs)]))["settings"]
    assert [[entry.text for entry in row] for row in found.rows] == [
        ["batch-size", "10", "5"],
        ["pfedla.retained-layers", "–", "1"],
    ]


def test_runs_are_identified(usual: Collection) -> None:
    table = tables(usual)["runs"]
    assert len(table.rows) == 9
    assert (cell(table, "fedper", "digest").text, cell(table, "fedper", "key").text) == ("ab" * 6, "fedper-digit")
    assert cell(table, "fedper", "score").value == pytest.approx(0.655)


def test_novel_clients_have_a_table_of_their_own(tmp_path: Path) -> None:
    found = of_runs([Made(seed=at, novel={"9": 0.4 + at / 10}).write(tmp_path / str(at)) for at in (0, 1)])
    table = tables(found)["novel"]
    assert cell(table, "fedper", "after").value == pytest.approx(0.45)
    assert cell(table, "fedper", "before").value == pytest.approx(0.225)
    assert "novel" not in tables(of_runs([Made().write(tmp_path / "without")]))


# ---- as real runs leave them -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Collection:
    folder = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        for method in ("local", "fedavg"):
            simulate(
                method, clients=3, num_server_rounds=2, samples_per_client=60, seed=1, verbose=False, backend="cohort",
                results_dir=str(folder), cache_dir=str(cache_dir),
            )  # fmt: skip
    return of_runs([folder])


def test_numbers_are_those_of_the_files(real: Collection) -> None:
    found = tables(real)
    assert list(found) == ["results", "differences", "clients", "costs", "runs"]
    for run in real.runs:
        rows = run.rows.to_pandas()
        last = rows[(rows["round"] == 3) & (rows["split"] == "test") & (rows["metric"] == "accuracy")]
        used = last[(last["phase"] == run.phase) & (last["model"] == run.model)]
        assert cell(found["results"], run.method, "accuracy").value == pytest.approx(used["value"].mean(), rel=1e-12)
        assert cell(found["clients"], run.method, "clients").value == len(used)
        assert run.per_client() == dict(zip(used["client"], used["value"], strict=True))
    assert cell(found["results"], "fedavg", "before").marks == set()
    assert cell(found["results"], "fedavg", "after").marks == {"used"}


def test_one_run_has_tables_without_comparisons(real: Collection) -> None:
    alone = tables(of_runs([real.runs[1].directory]))
    assert list(alone) == ["results", "clients", "costs", "runs"]
    assert [column.name for column in alone["clients"].columns] == [
        "method",
        "worst tenth",
        "std",
        "Jain",
        "Gini",
        "clients",
    ]
    assert len(alone["costs"].columns) == 6


# ---- text and files --------------------------------------------------------------------------------------------------


def test_numbers_have_the_digits_that_they_carry() -> None:
    rmse = METRICS["rmse"]
    assert score(Interval(0.97214, 0.96812, 0.97616, 3), ACCURACY).text == "97.21 ± 0.40"
    assert score(Interval(0.97214, 0.97213, 0.97215, 3), ACCURACY).text == "97.21 ± < 0.01"
    assert score(Interval(12.3456, 12.2, 12.4912, 3), rmse).text == "12.35 ± 0.15"
    assert score(Interval(1234.5, 1000.0, 1469.0, 3), rmse).text == "1234 ± 234"
    assert [score(Interval(value), rmse).text for value in (0.0012345, 12.3456, 0.0)] == ["0.001234", "12.35", "0.00"]
    assert difference(Interval(0.0158, -0.007, 0.0246, 3), ACCURACY).text == "+1.58 [-0.70, +2.46]"
    assert difference(Interval(-0.00001), ACCURACY).text == "0.00"
    assert [amount(value).text for value in (0, 0.01234, 1.5, 1234567.8, None)] == [
        "0",
        "0.0123",
        "1.50",
        "1,234,568",
        "–",
    ]
    assert [probability(p).text for p in (0.0001, 0.0123, 0.25, None)] == ["< 0.001", "0.012", "0.25", "–"]
    assert averaged([], ACCURACY, 3) == Cell("–", note="not measured")


EVIL = Table(
    "evil", "50 % of <b>a_b</b> & more", (Column("me|thod", "text"), Column("score", unit="%")),
    ((Cell("a|b_*c*\n{x}", marks=frozenset({"floor"})),
      Cell("1.00 ± 0.10", 1 / 3, 0.1, 0.2, marks=frozenset({"best"}))),
     (Cell('say "so", ~^\\'), Cell("–"))),
    ("100 % \\ $1 #2",),
)  # fmt: skip


def test_markdown_leaves_foreign_text_as_it_is() -> None:
    title, rule, first = (line for line in to_markdown(EVIL).splitlines() if re.match(r"\*\*50|\| ---|\| a", line))
    assert title == r"**50 % of \<b\>a\_b\</b\> & more**"
    assert rule == "| --- | ---: |"
    assert first.startswith(r"| a\|b\_\*c\*")
    assert first.endswith(r"(floor) | **1.00 ± 0.10** |")
    assert all(
        len(re.findall(r"(?<!\\)\|", line)) == 3 for line in to_markdown(EVIL).splitlines() if line.startswith("|")
    )


def test_latex_is_escaped_and_of_booktabs() -> None:
    text = to_latex(EVIL)
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{table}")] == [1] * 4
    assert r"\caption{50 \% of $<$b$>$a\_b$<$/b$>$ \& more}" in text
    assert r"\textbf{1.00 $\pm$ 0.10} \\" in text
    assert r"say \"so\"".replace("\\", "") + r", \textasciitilde{}\textasciicircum{}\textbackslash{} & -- \\" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert len(re.findall(r"(?<!\\)&", body)) == 2
    assert text.isascii()


def test_csv_has_numbers_at_full_precision() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(EVIL))))
    assert rows[0] == ["me|thod", "score", "score low", "score high"]
    assert [float(entry) for entry in rows[1][1:]] == [1 / 3, 0.1, 0.2]
    assert rows[2] == ['say "so", ~^\\', "", "", ""]


def test_files_are_written_of_every_table(usual: Collection, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "failures.md").write_text("of runs that have been done again since")
    written = write_tables(usual, tmp_path / "tables")
    names = {table.name for table in all_tables(usual)}
    assert {path.name for path in written} == {f"{name}.{ending}" for name in names for ending in ("md", "tex", "csv")}
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {path.name for path in written}
    rows = list(csv.DictReader(io.StringIO((tmp_path / "tables" / "results.csv").read_text())))
    found = cell(results(usual), "fedper", "accuracy")
    assert [float(rows[1][f"accuracy{end}"]) for end in ("", " low", " high")] == [found.value, found.low, found.high]


def test_a_table_has_as_many_cells_as_columns() -> None:
    with pytest.raises(ValueError, match="a row of the table x has 1 cells, wanted 2"):
        Table("x", "", (Column("a"), Column("b")), ((Cell("1"),),))
