"""The two pictures: that they are drawn, of what size, and in which order."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from fedham_flwr.core.records import Row
from fedham_flwr.reporting import run_directory as results
from fedham_flwr.reporting.plots import client_bars, learning_curves


def row(client: str, value: float, **changes) -> Row:
    return Row(1, client, "test", "personal", "after", "accuracy", value, 10)._replace(**changes)


def measured(clients: int, rounds: int) -> list[Row]:
    return [
        row(f"${k}$", k / clients, round=number, model=model)
        for number in range(1, rounds + 1)
        for k in range(clients if number in (1, rounds) else 1)
        for model in ("global", "personal")
    ]


@pytest.mark.parametrize("clients", [1, 40, 61])
def test_the_plots_are_pngs_a_thousand_pixels_wide(tmp_path, clients):
    rows = measured(clients, rounds=3)
    paths = [
        learning_curves(rows, tmp_path / "curves.png", "fedper", "a$b"),
        client_bars(rows, tmp_path / "bars.png", "fedper", "a$b"),
    ]
    for path in paths:
        assert path is not None
        head = path.read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(head[16:20], "big") == 1000


def test_without_test_accuracy_there_is_no_plot(tmp_path):
    rows = [row("a", 0.5, metric="loss"), row("a", 0.5, split="train")]
    assert learning_curves(rows, tmp_path / "curves.png") is None
    assert client_bars(rows, tmp_path / "bars.png") is None
    assert not any(tmp_path.iterdir())


def test_clients_are_sorted_by_the_personal_value():
    from fedham_flwr.reporting.plots import _sorted_clients

    table = {("global", "before"): {"1": 0.1, "2": 0.9, "10": 0.5}, ("personal", "before"): {"1": 0.7, "2": 0.3}}
    assert _sorted_clients(table) == ["1", "2", "10"]  # the one without a personal value comes last


@pytest.mark.parametrize("module", ["run_directory", "plots", "terminal"])
def test_what_draws_and_prints_is_imported_late(module):
    tree = ast.parse((Path(results.__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
    late = {node for part in ast.walk(tree) if isinstance(part, ast.FunctionDef | ast.If) for node in ast.walk(part)}
    names = {
        (node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0]
        for node in set(ast.walk(tree)) - late
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert "fedham_flwr" in names
    assert not {"matplotlib", "pyarrow", "rich", "flwr"} & names
