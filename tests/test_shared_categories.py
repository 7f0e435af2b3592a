"""Three sites with files of their own: a word that one of them lacks, and the union that they agree upon."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome

from fedham_flwr.core.errors import UserError
from fedham_flwr.federation.categories import FILE, united
from fedham_flwr.runners.in_process import InProcessGrid

Federate = Callable[..., Outcome]
SITES = ("north", "south", "west")
UNION = ("atypical", "none", "typical")


def write(folder: Path) -> dict[str, Path]:
    """40 patients of each site; west has nobody with typical pain, and south has its columns in another order."""
    draw = random.Random(0)
    found = {}
    for site in SITES:
        rows = []
        for _ in range(40):
            ill = draw.random() < 0.5
            pain = draw.choice(("typical", "atypical") if ill else ("none", "atypical"))
            rows.append(
                ((40 + 15 * ill + draw.randint(-3, 3)), "atypical" if site == "west" and ill else pain, int(ill))
            )
        found[site] = folder / f"{site}.csv"
        if site == "south":
            lines = ["ill;pain;age", *(f"{ill};{pain};{age},5" for age, pain, ill in rows)]
        else:
            lines = ["age,pain,ill", *(f"{age},{pain},{ill}" for age, pain, ill in rows)]
        found[site].write_text("\n".join(lines) + "\n")
    return found


def nodes(files: Mapping[str, Path], more: Mapping[str, Mapping[str, str]] | None = None) -> Any:
    """A grid of nodes with data of their own."""
    configs = [
        {"client-id": site, "data-path": str(path), **(more or {}).get(site, {})} for site, path in files.items()
    ]
    return lambda app, clients: InProcessGrid(app, clients, node_configs=configs)


@pytest.fixture
def run(federate: Federate) -> Federate:
    return partial(
        federate,
        clients=3,
        strategy="fedavg",
        model="mlp",
        feature_column="age pain",
        label_column="ill",
        num_server_rounds=2,
        client_timeout=2.0,
    )


def test_the_sites_agree_on_the_union_of_their_words(
    run: Federate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = write(tmp_path)
    quick: dict[str, Any] = {"learning_rate": 0.1, "batch_size": 4, "checkpoint_every": 1, "table.categories": "shared"}
    allowed = {site: {"table.categories": "shared"} for site in SITES}
    with pytest.raises(UserError, match=r"asks client \w+ for the words of its columns .* does not allow that: wanted"):
        run(grid=nodes(files, {"south": allowed["south"]}), **quick)
    done = run(grid=nodes(files, allowed), **quick)
    assert done.summary["failures"] == 0
    assert json.loads((done.path / FILE).read_text()) == {"pain": list(UNION)}
    wanted = [row for row in done.rows if (row.round, row.split, row.metric) == (3, "test", "accuracy")]
    assert {row.client for row in wanted} == set(SITES)
    assert sum(row.value * row.n for row in wanted) / sum(row.n for row in wanted) > 0.75
    # A run that goes on has the same categories: a new word is none of them.
    with files["west"].open("a") as file:
        file.write("".join(f"{age},odd,{age % 2}\n" for age in range(50, 60)))
    again = run(grid=nodes(files, allowed), **quick, resume=str(done.path), num_server_rounds=3)
    assert json.loads((done.path / FILE).read_text()) == {"pain": list(UNION)}
    assert "column 'pain' has odd in 10 rows, which is none of its categories" in caplog.text
    assert max(row.round for row in again.rows) == 4
    assert again.summary["failures"] == 0


def test_without_sharing_nodes_refuse_words(run: Federate, tmp_path: Path) -> None:
    files = write(tmp_path)
    with pytest.raises(
        UserError, match=r"feature-column names 'pain', which holds '\w+' in \w+\.csv, line \d+, a word"
    ):
        run(grid=nodes(files))
    with pytest.raises(
        UserError, match=r'table\.categories="found" takes the words of .*\.csv alone for the categories'
    ):
        run(grid=nodes(files), **{"table.categories": "found"})


SCHEMA = (
    '[columns.pain]\nkind = "category"\ncategories = ["none", "atypical", "typical"]\n[columns.age]\nkind = "number"\n'
)


def test_a_schema_at_each_site_and_two_that_differ(run: Federate, tmp_path: Path) -> None:
    files = write(tmp_path)
    same, other = tmp_path / "a.toml", tmp_path / "b.toml"
    same.write_text("# of all\n" + SCHEMA)
    other.write_text(SCHEMA + 'unit = "months"\n')
    at = {site: {"table.schema": str(same)} for site in SITES}
    done = run(grid=nodes(files, at), feature_column="")
    assert done.summary["failures"] == 0
    differs = {**at, "west": {"table.schema": str(other)}}
    with pytest.raises(
        UserError, match=r"client north and client west have different schemas \(\w+ and \w+\): all clie"
    ):
        run(grid=nodes(files, differs), feature_column="")


def test_the_union() -> None:
    assert united([{"a": ["x", "z"]}, {}, {"b": ["q"], "a": ["y", "x"]}]) == {"a": ["x", "y", "z"], "b": ["q"]}


def test_a_node_whose_network_there_is_not_is_left_out_with_its_words(run: Federate, tmp_path: Path) -> None:
    allowed = {site: {"table.categories": "shared"} for site in SITES}
    wrong = nodes(write(tmp_path), {**allowed, "west": {**allowed["west"], "model": "vitt"}})

    def grid(app: Any, clients: int) -> InProcessGrid:
        made: InProcessGrid = wrong(app, clients)
        for context in made.contexts.values():
            del context.node_config["partition-id"], context.node_config["num-partitions"]
        return made

    done = run(grid=grid, strategy="local", min_clients=2, **{"table.categories": "shared"})
    assert {row.client for row in done.rows} == {"north", "south"}
