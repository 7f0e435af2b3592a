"""What a comparison lacks is said beside its numbers: seeds, clients, intervals, tests that are not adjusted."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from comparisons import Made, write_study

from fedham_flwr.analysis.client_tables import clients
from fedham_flwr.analysis.collection import Collection, of_runs, of_study
from fedham_flwr.analysis.cost_tables import costs
from fedham_flwr.analysis.difference_table import differences
from fedham_flwr.analysis.result_tables import best, results
from fedham_flwr.analysis.tables import all_tables
from fedham_flwr.analysis.writing import to_latex, to_markdown
from fedham_flwr.core.errors import UserError
from fedham_flwr.page.clients import client_parts
from fedham_flwr.page.forest import forest
from fedham_flwr.page.headline import scope, verdict
from fedham_flwr.page.write import page
from fedham_flwr.training.metrics import METRICS

CLIENTS = ("0", "1", "2")


def scores(value: float, who: tuple[str, ...] = CLIENTS) -> dict[str, float]:
    return {client: value + 0.01 * int(client) for client in who}


def study(folder: Path, runs: dict[tuple[str, str, int], Made], **plan: object) -> Collection:
    methods = {method: {} for method, _, _ in runs}
    return of_study(write_study(folder, methods, runs, **{"floors": ["local"], **plan}))


def usual(seeds: int = 3) -> dict[tuple[str, str, int], Made]:
    return {
        (method, "digits", seed): Made(method, seed, scores(base + 0.003 * (seed * len(method) % 4)))
        for method, base in (("local", 0.5), ("fedavg", 0.6), ("fedper", 0.7))
        for seed in range(seeds)
    }


def test_a_mean_over_fewer_clients_is_warned_of(tmp_path: Path) -> None:
    runs = usual()
    assert study(tmp_path / "whole", runs).warnings == ()
    runs["fedper", "digits", 1] = Made("fedper", 1, scores(0.9, ("0", "1")))
    found = study(tmp_path / "less", runs)
    said = (
        "fedper, digits, seed 1: 2 of 3 clients have a test accuracy: its mean is over these alone, and differences "
        "are over the clients that both have."
    )
    assert found.warnings == (said,)
    assert said in results(found).notes


def test_a_method_is_not_above_for_want_of_a_bad_client(tmp_path: Path) -> None:
    def of(seed: int, more: float) -> dict[str, float]:
        return {"0": 0.9 + more, "1": 0.9 + 0.01 * seed + more, "2": 0.1 + more}

    runs = {("local", "digits", seed): Made("local", seed, of(seed, 0.0)) for seed in range(3)}
    lucky = {seed: {client: of(seed, -0.01 - 0.001 * seed)[client] for client in ("0", "1")} for seed in range(3)}
    runs |= {("fedper", "digits", seed): Made("fedper", seed, lucky[seed]) for seed in range(3)}
    found = study(tmp_path, runs)
    (row,) = differences(found).rows
    assert row[1].value == pytest.approx(-0.011)
    assert row[4].text == "below"
    assert best(found, "digits") == ""  # its mean is the highest


def test_where_each_seed_has_its_own_clients_their_number_may_differ(tmp_path: Path) -> None:
    runs = {
        (method, "digits", seed): Made(method, seed, scores(0.5, CLIENTS[: 3 - seed]), settings={"data-seed": -1})
        for method in ("local", "fedper")
        for seed in (0, 1)
    }
    assert study(tmp_path, runs).warnings == ()


def test_a_number_of_fewer_seeds_says_so_in_files_too(tmp_path: Path) -> None:
    runs = usual()
    del runs["fedper", "digits", 2]
    table = results(study(tmp_path, runs))
    for text in (to_markdown(table), to_latex(table)):
        assert "accuracy, before, after of fedper: 2 of 3 seeds." in text


def test_a_number_without_spread_says_so_in_files_too(tmp_path: Path) -> None:
    runs = {
        (method, "digits", seed): Made(method, seed, scores(0.5)) for method in ("local", "fedper") for seed in (0, 1)
    }
    found = study(tmp_path, runs)
    assert "accuracy, before, after of all rows: no spread over seeds: no interval." in to_markdown(results(found))


def test_a_run_whose_score_is_no_number_is_a_failure_that_says_so(tmp_path: Path) -> None:
    runs = usual()
    runs["fedper", "digits", 1] = Made("fedper", 1, {**scores(0.7), "1": math.nan})
    (fault,) = study(tmp_path, runs).failures
    assert fault.error == "its closing evaluation has no finite test accuracy"


def test_tests_that_are_not_adjusted_are_named(tmp_path: Path) -> None:
    found = study(tmp_path / "few", usual())
    assert any(note.startswith("The sign test is not adjusted") for note in clients(found).notes)
    assert not any("Wilcoxon" in note for note in differences(found).notes)
    assert any("Wilcoxon" in note for note in differences(study(tmp_path / "many", usual(6))).notes)


def test_one_comparison_needs_no_adjustment(tmp_path: Path) -> None:
    runs = {key: made for key, made in usual().items() if key[0] != "fedavg"}
    notes = differences(study(tmp_path, runs)).notes
    assert notes[0] == "With one comparison in this table there is nothing to adjust for: Holm's p is p."


def test_differences_of_fractions_are_points_where_units_are_mixed(tmp_path: Path) -> None:
    runs = {
        (method, task, seed): Made(method, seed, scores(base + 0.01 * seed * len(method)), metric=METRICS[metric])
        for method, base in (("local", 0.5), ("fedper", 0.7))
        for task, metric in (("digits", "accuracy"), ("houses", "mae"))
        for seed in range(3)
    }
    rows = differences(study(tmp_path, runs, tasks={"digits": {}, "houses": {}})).rows
    assert [cell.text.endswith(" points") for row in rows for cell in [row[2]]] == [True, False]


def test_the_page_counts_clients_as_the_table_does(tmp_path: Path) -> None:
    # Sums of the same three numbers in another order differ in their last bits: the client is a tie.
    tie = {"local": (0.1, 0.2, 0.3), "fedper": (0.3, 0.2, 0.1)}
    runs = {
        (method, "digits", seed): Made(method, seed, {"0": values[seed], "1": 0.5 + 0.1 * (method == "fedper")})
        for method, values in tie.items()
        for seed in range(3)
    }
    found = study(tmp_path, runs)
    won, tied, lost = (clients(found).rows[1][at].value for at in (1, 2, 3))
    assert (won, tied, lost) == (1, 1, 0)
    assert "Clients against local: fedper 1 better, 0 worse of 2." in client_parts(found)


@pytest.mark.parametrize("end", [0.5, 1e15, 1e30])
def test_a_picture_has_a_scale_for_any_scores(tmp_path: Path, end: float) -> None:
    runs = {
        (method, "digits", seed): Made(method, seed, {"0": base + seed, "1": base}, metric=METRICS["mae"])
        for method, base in (("local", 0.5), ("fedper", end))
        for seed in range(2)
    }
    assert forest(study(tmp_path, runs), "digits").count("<circle") == 2


def test_ends_of_an_interval_are_no_score_that_cannot_be(tmp_path: Path) -> None:
    # Student's interval of 0.97 and 0.99 is 0.98 +- 0.127, and of 0 and 0.1 it is 0.05 +- 0.635.
    runs = {
        (method, "digits", seed): Made(method, seed, {"0": pair[seed], "1": pair[seed]})
        for method, pair in {"local": (0.97, 0.99), "fedper": (0.0, 0.1)}.items()
        for seed in range(2)
    }
    picture = forest(study(tmp_path, runs), "digits")
    assert "98.00 % (85.29 to 100.00)" in picture
    assert "5.00 % (0.00 to 68.53)" in picture


def test_long_labels_have_room_and_are_told_apart(tmp_path: Path) -> None:
    label = "fedper, batch-size=10, learning-rate=0.001"
    runs = {(method, "digits", 0): Made("fedper", 0, scores(0.5)) for method in (label, f"{label}2")}
    found = study(tmp_path, runs, floors=[])
    picture = forest(found, "digits")
    assert ">fedper, …learning-rate=0.001<" in picture
    assert 'x="232" y="25" text-anchor="end"' in picture  # 28 characters of 8 pixels
    assert f"({label}; {label}2)" in scope(found)


def test_the_headline_says_that_one_seed_tells_nothing_apart(tmp_path: Path) -> None:
    said = "No method can be told apart from local in test accuracy with one seed."
    assert verdict(study(tmp_path, usual(1)), "digits") == said


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    found = study(tmp_path, usual(1))
    for part in (found.runs[0].directory / "metrics").glob("*-evaluate.parquet"):
        part.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"round-00003-evaluate\.parquet cannot be read: .*; wanted a Parquet file"):
        all_tables(found)


def test_a_run_without_a_score_at_the_budget_is_left_out_there(tmp_path: Path) -> None:
    runs = {
        (method, "digits", seed): Made(method, seed, scores(0.5), metric=METRICS["mae"], rounds=4, up=up)
        for method, up in (("local", 2**18), ("fedper", 2**19))
        for seed in range(2)
    }
    found = study(tmp_path, runs)
    for number in (2, 3):  # what diverges on the way
        (part,) = (found.runs[-1].directory / "metrics").glob(f"round-0000{number}-*.parquet")
        table = pq.ParquetFile(part).read()
        lost = pa.array([math.nan] * len(table))
        pq.write_table(table.set_column(table.schema.get_field_index("value"), "value", lost), part)
    table = costs(found)
    names = [column.name for column in table.columns]
    at_equal = [table.rows[1][names.index(name)] for name in ("at equal MiB", "area, MiB")]
    assert [cell.note for cell in at_equal] == ["1 of 2 seeds; one seed: no interval"] * 2
    assert at_equal[0].value == pytest.approx(0.51 / 2)  # of seed 0, half way
    assert "nan %" not in page(found, all_tables(found), "")
    assert not any("nan" in cell.text for each in all_tables(found) for row in each.rows for cell in row)


def test_a_run_without_readable_settings_is_a_failure(tmp_path: Path) -> None:
    Made("local").write(tmp_path / "local")
    (Made("fedper").write(tmp_path / "fedper") / "config.toml").write_text("seed = ")
    (fault,) = of_runs([tmp_path]).failures
    assert (fault.method, fault.error) == ("fedper", "its config.toml cannot be read")


def test_a_plan_that_lacks_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"name": "x", "seeds": [0]}')
    with pytest.raises(
        UserError, match=r"plan\.json has no methods, tasks, floors, reference: wanted the plan of a st"
    ):
        of_study(tmp_path)
