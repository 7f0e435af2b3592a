"""The page of a comparison: one file, its tables hold the numbers of the runs, nothing of a name is markup."""

from __future__ import annotations

import base64
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared import make_run, score, weights_of

from fedham_flwr.analysis.collection import Collection, open_collection
from fedham_flwr.analysis.tables import all_tables
from fedham_flwr.core.errors import UserError
from fedham_flwr.page import write
from fedham_flwr.page.write import page, write_report
from fedham_flwr.reporting.console import clean
from fedham_flwr.reporting.run_directory import read_rows

CLIENTS = ("<script>alert(1)</script>", "a\"b'c&amp;", "north\u202e", "$x^2$ %{y}")
METHODS, SEEDS, GROUPS, ROUNDS = ("local", "fedavg", "fedper", "pfedla"), (0, 1, 2), ("conv", "</script><b>fc"), 3
SPACE = {"learning-rate": {"low": 0.001, "high": 0.1, "log": True, "whole": False, "start": 0.02, "source": ""},
         "batch-size": {"values": [10, 20], "start": 10, "source": "paper, section 5"}}  # fmt: skip


def tried(method: str, task: str) -> dict[str, Any]:
    """An entry of tuning.json with a trial of each state."""
    states = (("complete", 0.5, ""), ("pruned", None, ""), ("failed", None, "loss is <nan>"), ("complete", 0.625, ""))
    trials = [
        {"number": at, "values": {"learning-rate": 0.01 * (at + 1), "batch-size": 10 + 10 * (at % 2)}, "value": value,
         "state": state, "error": error, "steps": [[1, 0.25]] if state != "failed" else [], "runs": []}
        for at, (state, value, error) in enumerate(states)
    ]  # fmt: skip
    return {"method": method, "task": task, "space": SPACE, "trials": trials, "chosen": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs."""
    root = tmp_path_factory.mktemp("runs")
    for method in METHODS:
        for seed in SEEDS:
            make_run(root, method, seed, CLIENTS, ROUNDS, GROUPS if method == "pfedla" else ())
    return root


@pytest.fixture(scope="module")
def collection(root: Path) -> Collection:
    found = open_collection([root])
    return replace(found, tuning=tuple(tried(method, found.tasks[0]) for method in METHODS))


@pytest.fixture(scope="module")
def text(collection: Collection) -> str:
    """The page, with a word in place of plotly."""
    return page(collection, all_tables(collection), "PLOTLY")


class Parsed(HTMLParser):
    """Elements with their attributes, tables as rows of (text, value), and texts of elements by name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[tuple[str, float | None]]]] = {}
        self.texts: dict[str, list[str]] = {}
        self.rows: list[list[tuple[str, float | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements.append((tag, given))
        self.open.append(tag)
        self.texts.setdefault(tag, []).append("")
        if tag == "table":
            self.rows = self.tables.setdefault(str(given["id"]), [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            value = given.get("data-value")
            self.rows[-1].append(("", None if value is None else float(value)))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not self.open:
            return
        self.texts[self.open[-1]][-1] += data
        if self.open[-1] in ("th", "td"):
            said, value = self.rows[-1][-1]
            self.rows[-1][-1] = (said + data, value)


@pytest.fixture(scope="module")
def parsed(text: str) -> Parsed:
    return Parsed(text)


@pytest.fixture(scope="module")
def data(parsed: Parsed) -> dict[str, Any]:
    """What the figures are drawn from."""
    return dict(json.loads(parsed.texts["script"][0]))


# ---- one file, in order ----------------------------------------------------------------------------------------------


def test_the_file_is_whole_and_small_and_equal_for_equal_runs(
    collection: Collection, root: Path, tmp_path: Path
) -> None:
    files = [write_report(collection, tmp_path / name) for name in ("a.html", "b.html")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert 4e6 < files[0].stat().st_size < 6e6
    assert [file.name for file in tmp_path.iterdir()] in (["a.html", "b.html"], ["b.html", "a.html"])
    whole = files[0].read_text()
    assert str(root) not in whole
    assert len(re.findall(r"</script", whole)) == 3  # of data, plotly and ours: nothing in them ends them earlier


def test_nothing_is_asked_of_a_network(text: str, parsed: Parsed) -> None:
    asking = ("src", "href", "action", "srcset", "poster", "data", "formaction", "background")
    for tag, attributes in parsed.elements:
        for name in asking:
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    ours = text.replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in ours
    assert "https://" not in ours
    assert "@import" not in text
    assert "url(" not in text
    assert {tag for tag, _ in parsed.elements} & {"iframe", "object", "embed", "base", "img"} == set()


def test_the_page_has_its_landmarks_and_headings_in_order(parsed: Parsed) -> None:
    tags = [tag for tag, _ in parsed.elements]
    for landmark in ("header", "nav", "main", "footer", "h1", "title"):
        assert tags.count(landmark) == 1, landmark
    assert parsed.elements[0] == ("html", {"lang": "en"})
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    ids = [given["id"] for _, given in parsed.elements if "id" in given]
    assert len(ids) == len(set(ids))
    named = [given.get("aria-labelledby") or str(given.get("href"))[1:] for tag, given in parsed.elements
             if "aria-labelledby" in given or tag == "a"]  # fmt: skip
    assert set(named) <= set(ids)


def test_the_sections_are_in_their_order(parsed: Parsed) -> None:
    order = ["headline", "results", "differences", "clients", "costs", "ranks", "learning", "each-client", "listening"]
    order += ["over-bytes", "tuned", "settings", "failures", "runs"]
    sections = [str(given["id"]) for tag, given in parsed.elements if tag == "section"]
    assert sections == [name for name in order if name in sections]
    assert set(order) - set(sections) <= {"ranks"}  # of one task there are none


def test_every_figure_says_in_words_what_it_shows(parsed: Parsed) -> None:
    figures = [given for tag, given in parsed.elements if tag == "figure" and given.get("class") != "static"]
    plots = [given for tag, given in parsed.elements if given.get("class") == "plot"]
    assert [given["id"] for given in figures] == [
        "curves",
        "clients-figure",
        "mixing-figure",
        "costs-figure",
        "tuning-figure",
    ]
    assert all(len(str(given["aria-label"])) > 20 for given in (*figures, *plots))
    assert all(len(caption) > 40 for caption in parsed.texts["figcaption"])
    assert "fedper has 60.68 % as test accuracy, the best" in parsed.texts["figcaption"][1]


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_the_tables_hold_the_cells_of_the_comparison(collection: Collection, parsed: Parsed) -> None:
    for table in all_tables(collection):
        rows = parsed.tables[f"table-{table.name}"]
        assert [said for said, _ in rows[0]] == [f"{c.name} ({c.unit})" if c.unit else c.name for c in table.columns]
        for cells, shown in zip(table.rows, rows[1:], strict=True):
            assert [value for _, value in shown] == [None if c.value is None else float(c.value) for c in cells]
            assert [said.strip() for said, _ in shown] == [clean(cell.text) or "–" for cell in cells]


def test_each_clients_scores_are_those_of_the_parquet_files(collection: Collection, parsed: Parsed) -> None:
    rows = parsed.tables["table-each-client-0"]
    methods = [said.removesuffix(" (%)") for said, _ in rows[0][1:]]
    sums: dict[tuple[str, str], list[float]] = {}
    for run in collection.runs:
        for row in read_rows(run.directory).to_pylist():
            wanted = (ROUNDS + 1, "test", "before", "accuracy")
            if (row["round"], row["split"], row["phase"], row["metric"]) == wanted:
                sums.setdefault((row["client"], run.method), []).append(row["value"])
    assert len(sums) == len(CLIENTS) * len(METHODS)
    names = {clean(client): client for client in CLIENTS}
    for (name, _), *values in rows[1:]:
        for method, (_, value) in zip(methods, values, strict=True):
            found = sums[names[name], method]
            assert len(found) == len(SEEDS)
            assert value == pytest.approx(sum(found) / len(found), abs=1e-15)


def test_curves_are_the_means_over_clients(collection: Collection, data: dict[str, Any]) -> None:
    curves = data["curves"]
    assert (curves["splits"], curves["first"]) == (["test", "validation"], "test")
    for run in curves["runs"]:
        method, seed = data["methods"][run["method"]]["label"], data["seeds"][run["seed"]]
        for phase in ("before", "after"):
            values = run["values"][f"test {phase}"]
            expected = [
                np.mean([score(method, seed, c, r, phase) for c in range(len(CLIENTS))]) for r in values["round"]
            ]
            assert values["round"] == [1, 2, 3, 4]
            assert values["value"] == pytest.approx(expected, rel=5e-5)
            assert values["bytes"] == [0, 3000, 6000, 9000]
            assert values["seconds"] == [0, 0.5, 1, 1.5]
    told = parsed_values(data["clients"], 0)
    assert told[0] == score("local", 0, 0, ROUNDS + 1, "before")


def parsed_values(clients: dict[str, Any], run: int) -> list[float]:
    assert clients["names"][0] == sorted(CLIENTS)
    scores = clients["scores"][run]
    return [scores[scores["own"]][clients["names"][0].index(client)] for client in CLIENTS]


def test_curves_stand_in_a_table_too(parsed: Parsed) -> None:
    rows = parsed.tables["table-curves-test-0"]
    assert [said for said, _ in rows[0]] == ["method", "model", *(f"round {r} (%)" for r in (1, 2, 3, 4))]
    first = [np.mean([score("local", s, c, 1, "before") for s in SEEDS for c in range(len(CLIENTS))])]
    assert rows[1][2][1] == pytest.approx(first[0], abs=1e-15)
    assert parsed.tables["table-spent-0"][1][2][1] == 3000 / 2**20


def test_weights_are_there_to_half_a_step(data: dict[str, Any]) -> None:
    runs = data["mixing"]["runs"]
    assert [data["methods"][run["method"]]["label"] for run in runs] == ["pfedla"] * len(SEEDS)
    for run in runs:
        shape = [len(run[name]) for name in ("rounds", "groups", "clients", "peers")]
        steps = np.frombuffer(base64.b64decode(run["weights"]), dtype=np.uint8).reshape(shape)
        assert tuple(run["groups"]) == GROUPS
        for at, number in enumerate(run["rounds"]):
            given_weights = weights_of(CLIENTS, GROUPS, number)
            places = [CLIENTS.index(client) for client in run["clients"]]
            exact = given_weights.weights.numpy()[places][:, :, places].transpose(1, 0, 2)
            assert np.abs(steps[at] / 254 * run["highest"] - exact).max() <= run["highest"] / 508 + 1e-4


def test_the_last_weights_stand_in_a_table_too(parsed: Parsed) -> None:
    rows = parsed.tables["table-weights-3-0"]
    weights = weights_of(CLIENTS, GROUPS, ROUNDS + 1).weights.numpy()
    names = [clean(client) for client in CLIENTS]
    for (client, _), (group, _), *cells in rows[1:]:
        exact = weights[names.index(client), GROUPS.index(group)]
        assert sorted(value for _, value in cells if value is not None) == pytest.approx(sorted(exact))


def test_every_trial_is_in_the_figure_and_in_a_table(parsed: Parsed, data: dict[str, Any]) -> None:
    assert [search["method"] for search in data["tuning"]] == list(METHODS)
    trials = data["tuning"][0]["trials"]
    assert [trial["state"] for trial in trials] == ["complete", "pruned", "failed", "complete"]
    assert [trial["value"] for trial in trials] == [0.5, 0.25, None, 0.625]
    assert [trial["values"] for trial in trials[:2]] == [[0.01, "10"], [0.02, "20"]]
    rows = parsed.tables["table-trials-0"]
    assert [said for said, _ in rows[4]][:4] == ["3", "complete", "62.50", "0.04"]
    assert parsed.texts["small"].count("chosen") == len(METHODS)
    assert rows[3][5][0] == "loss is <nan>"


# ---- names are text --------------------------------------------------------------------------------------------------


def test_names_are_text_and_nothing_else(text: str, parsed: Parsed) -> None:
    assert "<script>alert" not in text
    assert "<b>fc" not in text
    assert "<b>out of memory" not in text
    assert "\u202e" not in text.replace(parsed.texts["script"][0], "")
    assert [tag for tag, _ in parsed.elements].count("script") == 3
    assert "b" not in {tag for tag, _ in parsed.elements}
    assert CLIENTS[0] in [row[0][0] for row in parsed.tables["table-each-client-0"]]
    assert "RuntimeError: <b>out of memory</b>" in [row[-1][0] for row in parsed.tables["table-lost-replies"]]


def test_data_in_the_page_have_no_tags(parsed: Parsed, data: dict[str, Any]) -> None:
    assert re.search("[<>&\u2028\u2029]", parsed.texts["script"][0]) is None
    assert sorted(data["clients"]["names"][0]) == sorted(CLIENTS)


def test_a_name_of_half_a_character_is_written(root: Path, tmp_path: Path) -> None:
    found = replace(open_collection([root / "local"]), title="odd \ud800 name")
    assert write_report(found, tmp_path / "report.html").stat().st_size > 4e6


# ---- what there is not ----------------------------------------------------------------------------------------------


def test_one_run_alone_has_a_page(root: Path) -> None:
    run = next((root / "fedper").iterdir())
    found = open_collection([run])
    text = page(found, all_tables(found), "")
    assert "<title>Run: fedper on digits</title>" in text
    told = Parsed(text)
    sections = [given["id"] for tag, given in told.elements if tag == "section"]
    assert "differences" not in sections
    assert "listening" not in sections
    assert "tuned" not in sections
    assert json.loads(told.texts["script"][0])["clients"]["against"] == ["before"]
    assert "accuracy" in told.texts["p"][1]


def test_a_page_of_no_run_says_so(collection: Collection) -> None:
    empty = replace(collection, runs=(), tuning=())
    assert "No run has come to its end." in page(empty, all_tables(empty), "")


def test_a_large_comparison_stays_small_and_says_what_was_left_out(tmp_path: Path) -> None:
    clients = [f"hospital-{at:03d}" for at in range(60)]
    for seed in range(2):
        make_run(tmp_path, "pfedla", seed, clients, 26, [f"layer{at}" for at in range(6)])
    found = open_collection([tmp_path])
    text = page(found, all_tables(found), "")
    assert len(text.encode()) < 1.1e6  # with plotly below 6 MB
    assert re.search(r"40 of 60 clients and 18 of 27 rounds are drawn of pfedla", text)
    weights = json.loads(Parsed(text).texts["script"][0])["mixing"]["runs"][0]
    assert weights["rounds"][0] == 1
    assert weights["rounds"][-1] == 27


def test_a_page_that_is_too_large_is_made_of_less(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "_plotly", lambda: "")
    whole = write_report(collection, tmp_path / "report.html").stat().st_size
    shares: list[float] = []

    def noted(*arguments: Any) -> str:
        shares.append(arguments[3])
        return page(*arguments)

    monkeypatch.setattr(write, "page", noted)
    monkeypatch.setattr(write, "LIMIT", whole - 1)
    write_report(collection, tmp_path / "report.html")
    assert shares == [1.0, 0.5, 0.25, 0.1]  # so small a comparison has nothing to leave out
    monkeypatch.setattr(write, "LIMIT", whole)
    write_report(collection, tmp_path / "report.html")
    assert shares[4:] == [1.0]


def test_without_plotly_the_extra_is_named(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(UserError, match=r"plotly, which is not installed: pip install 'fedham-flwr\[report\]'"):
        write_report(collection, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
