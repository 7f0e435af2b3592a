"""The setting data-seed: who has what, and in which split, whatever the seed of all else is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.clients import open_node, open_partitions
from fedham_flwr.data.own import open_own
from fedham_flwr.federation.roster import hold_out
from fedham_flwr.resume.otherwise import dealt_otherwise
from fedham_flwr.settings import Value, flatten, parse

Federate = Callable[..., Outcome]
Numbers = list[dict[str, list[int]]]
CLIENTS = 3


def numbers(splits: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    return {which: index.tolist() for which, index in splits.items()}


def dealt(given: Mapping[str, Value], cache: Path) -> Numbers:
    """Each client's sample numbers."""
    opened = open_partitions(parse({"cache-dir": str(cache), **given}).data(), CLIENTS)
    return [numbers(opened(client).splits) for client in range(CLIENTS)]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of rows that belong to somebody."""
    file = tmp_path_factory.mktemp("rows") / "rows.csv"
    lines = [f"{'abc'[k % 3]},{k * 37 % 101},{k * 11 % 7},{k % 2}" for k in range(90)]
    file.write_text("\n".join(["site,age,marker,ill", *lines]) + "\n")
    return str(file)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("table") / "table.toml"
    file.write_text("\n".join(f"[clients.{name}]\n0 = 20\n{k} = 0.5" for k, name in enumerate("abc", start=1)))
    return str(file)


DEALT: dict[str, dict[str, Value]] = {
    **{name: {"partitioner": name} for name in ("iid", "pathological", "noniid-1", "noniid-2", "class-owners")},
    "dirichlet": {"partitioner": "dirichlet", "alpha": 1.0},
    "few": {"partitioner": "iid", "samples-per-client": 50},
    "class-table": {"class-table": "TABLE"},
    "a function": {"partitioner": "own_partitioner:deal"},
    "a column": {"dataset": "ROWS", "client-column": "site", "feature-column": "age marker", "label-column": "ill"},
    "few of a column": {
        "dataset": "ROWS", "client-column": "site", "feature-column": "age marker", "label-column": "ill",
        "samples-per-client": 20,
    },
}  # fmt: skip


@pytest.mark.parametrize("given", DEALT.values(), ids=DEALT)
def test_it_decides_who_has_what_in_place_of_the_seed(
    given: dict[str, Value], cache_dir: Path, rows: str, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    from types import ModuleType

    module = ModuleType("own_partitioner")
    module.deal = lambda labels, clients, seed: [  # type: ignore[attr-defined]
        [(k + seed) % len(labels) for k in range(c, 60, clients)] for c in range(clients)
    ]
    monkeypatch.setitem(sys.modules, "own_partitioner", module)
    files = {"ROWS": rows, "TABLE": table}
    given = {key: files.get(str(value), value) for key, value in given.items()}
    same = [dealt({**given, "seed": seed, "data-seed": 5}, cache_dir) for seed in (0, 1)]
    assert same[0] == same[1] == dealt({**given, "seed": 5}, cache_dir)
    assert same[0] != dealt({**given, "seed": 0}, cache_dir) == dealt({**given, "seed": 0, "data-seed": -1}, cache_dir)
    assert same[0] != dealt({**given, "seed": 5, "data-seed": 0}, cache_dir)


def test_data_by_a_function_and_those_of_a_node_are_split_by_it(cache_dir: Path, rows: str) -> None:
    def words(**given: Any) -> dict[str, list[int]]:
        return numbers(open_own(parse({"dataset": "own_objects:words", **given}).data(), 0, CLIENTS).splits)

    def waves(**given: Any) -> list[float]:
        return open_own(parse({"dataset": "own_objects:waves", **given}).data(), 0, CLIENTS).features[0, 0].tolist()

    def node(**given: Any) -> dict[str, list[int]]:
        chosen = {"cache-dir": str(cache_dir), "feature-column": "age marker", "label-column": "ill", **given}
        return numbers(open_node(parse(chosen).data(), rows).splits)

    for opened in (words, waves, node):
        assert opened(seed=0, **{"data-seed": 5}) == opened(seed=1, **{"data-seed": 5}) == opened(seed=5)
        assert opened(seed=0, **{"data-seed": 5}) != opened(seed=0)


def test_runs_of_two_seeds_differ_in_all_but_the_data(federate: Federate) -> None:
    few: dict[str, Any] = {"strategy": "local", "samples_per_client": 40, "fraction_train": 0.5, "num_server_rounds": 3}
    runs = [federate(**few, seed=seed, data_seed=7) for seed in (0, 1)]
    clients = [json.loads((run.path / "clients.json").read_text()) for run in runs]
    assert clients[0] == clients[1]
    assert len({(run.path / "data.json").read_text() for run in runs}) == 1  # both opened the same partition
    first = [[row.value for row in run.rows if row.round == 4 and row.metric == "loss"] for run in runs]
    assert first[0] != first[1]
    cohorts = [[record["cohort"] for record in run.records] for run in runs]
    assert cohorts[0] != cohorts[1]
    other = federate(**few, seed=1)
    assert json.loads((other.path / "clients.json").read_text()) != clients[0]
    again = federate(**few, seed=1, data_seed=1)
    assert again.summary["digest"] == other.summary["digest"] != runs[1].summary["digest"]
    with pytest.raises(UserError, match=r"continued with the settings that it began with: data-seed=7 \(now 8\)"):
        federate(**few, seed=0, data_seed=8, resume=str(runs[0].path))


@pytest.mark.parametrize("data_seed", [-1, 0, 3])
def test_novel_clients_are_drawn_by_the_seed_of_the_data(federate: Federate, data_seed: int) -> None:
    few: dict[str, Any] = {"strategy": "local", "samples_per_client": 40, "num_server_rounds": 1, "novel_steps": 1}
    for seed in (0, 2):
        run = federate(**few, novel_clients=2, seed=seed, data_seed=data_seed)
        found = {told["client"] for told in json.loads((run.path / "clients.json").read_text()) if told["novel"]}
        assert found == set(hold_out(seed if data_seed < 0 else data_seed, "0123", 2))
    assert len({hold_out(seed, "0123", 2) for seed in (0, 2, 3)}) == 3


def test_a_start_that_was_dealt_otherwise_is_told_by_the_seed_of_its_data(tmp_path: Path) -> None:
    def differs(then: dict[str, Value], now: dict[str, Value]) -> tuple[str, ...]:
        lines = [f"{key} = {json.dumps(value)}" for key, value in flatten(parse(then)).items()]
        (tmp_path / "config.toml").write_text("\n".join(lines) + "\n")
        return dealt_otherwise(str(tmp_path), flatten(parse(now)))

    assert differs({"seed": 1}, {"seed": 2}) == ("seed=1",)
    assert differs({"seed": 1}, {"seed": 2, "data-seed": 1}) == ()
    assert differs({"seed": 1, "data-seed": 3}, {"seed": 2, "data-seed": 3}) == ()
    assert differs({"seed": 1, "data-seed": 3}, {"seed": 1}) == ("data-seed=3",)


@pytest.mark.parametrize("wrong", [-2, 0.5, "0"])
def test_it_is_a_whole_number_from_minus_one(wrong: Any) -> None:
    with pytest.raises(UserError, match=rf"data-seed={wrong!r}: wanted"):
        parse({"data-seed": wrong})
