"""Who takes part: clients that data name, by a column or by files, all of them unless fewer are asked for."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedham_flwr.cli import main
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.files import SAFE_ID, SAFE_NAME, safe_name
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.data.clients import clients_there, open_node, open_partitions, said_of
from fedham_flwr.data.data_settings import DataSettings, Partitioning
from fedham_flwr.data.partitioners import _dirichlet, dirichlet_smallest
from fedham_flwr.resume.continuing import clients_of
from fedham_flwr.settings import parse
from fedham_flwr.simulation import simulate

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a CSV left open


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("north", "north"),
        ("001", "001"),
        ("", "%-e3b0c44298fc1c14"),
        ("north ", "north%20"),
        (".hidden", "%2Ehidden"),
        ("a/b", "a%2Fb"),
        ("a%20b", "a%2520b"),
        ("Zürich", "Z%C3%BCrich"),
        ("x" * 65, "x" * 46 + "%-9537c5fdf120482f"),
    ],
)
def test_a_name_becomes_that_of_a_file(name: str, written: str) -> None:
    assert safe_name(name) == written


@given(st.lists(st.text(max_size=80), min_size=2, max_size=8, unique=True))
def test_no_two_names_become_one(names: list[str]) -> None:
    written = [safe_name(name) for name in names]
    assert len(set(written)) == len(names)
    assert all(SAFE_ID.fullmatch(each) for each in written)
    assert all(one == other for one, other in zip(names, written, strict=True) if SAFE_NAME.fullmatch(one))


# ---- a file or a folder for each client ------------------------------------------------------------------------------


def table(path: Path, count: int, one_class: bool = False, columns: str = "age,chol,label") -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    rng = np.random.default_rng([count, *path.stem.encode()])
    names, lines = columns.split(","), [columns]
    for age in rng.integers(30, 90, count).tolist():
        row = {"age": age, "chol": age * 3 + 1, "label": 1 if one_class else int(age > 60)}
        lines.append(",".join(str(row[name]) for name in names))
    path.write_text("\n".join(lines) + "\n")


def by_files(folder: Path, cache: Path, **more: Any) -> DataSettings:
    usual = {"feature_column": "age chol", "label_column": "label"}
    return DataSettings(str(folder), cache_dir=str(cache), partitioning=Partitioning("files"), **{**usual, **more})


def opened(settings: DataSettings) -> tuple[dict[str, ClientData], list[str]]:
    """All clients by name, and what is said of them."""
    count = clients_there(settings)
    assert count is not None
    opener = open_partitions(settings, count)
    clients = [opener(number) for number in range(count)]
    return {client.name: client for client in clients}, said_of(settings, clients[0].pin)[0]


def test_files_and_folders_are_clients_and_nothing_else_is(tmp_path: Path) -> None:
    folder = tmp_path / "sites"
    table(folder / "north.csv", 30)
    table(folder / "south" / "2024.csv", 20, columns="label,chol,age")
    table(folder / "south" / "2025.csv", 15, columns="label,chol,age")
    table(folder / "one.csv", 1)
    for name in ("north.csv.bak", "north.csv~", ".hidden.csv", "~$north.csv", "notes.md"):
        (folder / name).write_text("no data")
    (folder / "empty").mkdir()
    clients, said = opened(by_files(folder, tmp_path / "cache"))
    assert {name: sum(client.counts().values()) for name, client in clients.items()} == {"north": 30, "south": 35}
    assert said[0] == (
        f"left out of {folder}, since they are no data: empty, north.csv.bak, north.csv~, notes.md, ~$north.csv"
    )
    assert said[1] == "left out of 3 clients, with fewer than 2 samples, or none to train on: one"
    south = clients["south"]
    assert south.scaling is not None
    numbers = np.concatenate([south.splits[which].numpy() for which in ("train", "validation", "test")])
    raw = south.features.numpy()[numbers] * south.scaling.std + south.scaling.mean
    assert np.allclose(raw[:, 1], raw[:, 0] * 3 + 1, atol=1e-3)  # columns go by name


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {},
            r"the folder .*sites has no client: wanted a file for each one \(\.parquet, \.csv, .*\.txt\), or a folder",
        ),
        ({"a.csv": "age,chol,label", "a/b.csv": "age,chol,label"}, "both a and a.csv would be the client 'a': give"),
        ({"a.csv": "age,chol,label", "b.csv": "age,label"}, r"a\.csv has a column 'chol' and .*b\.csv has none: all"),
    ],
)
def test_what_is_no_folder_of_clients_is_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    folder = tmp_path / "sites"
    folder.mkdir()
    for name, columns in files.items():
        table(folder / name, 5, columns=columns)
    with pytest.raises(UserError, match=message):
        clients_there(by_files(folder, tmp_path / "cache"))


def test_images_and_texts_have_their_folders_too(tmp_path: Path) -> None:
    for client, classes in {"a": ("cat", "dog"), "b": ("dog",)}.items():
        for kind in classes:
            place = tmp_path / "pictures" / client / kind
            place.mkdir(parents=True)
            for shade in range(12):
                Image.fromarray(np.full((4, 4), 9 * shade + len(client + kind), np.uint8)).save(place / f"{shade}.png")
    columns = {"feature_column": "", "label_column": ""}
    clients, _ = opened(by_files(tmp_path / "pictures", tmp_path / "cache", **columns))
    assert {name: sum(client.counts().values()) for name, client in clients.items()} == {"a": 24, "b": 12}
    assert clients["b"].classes == ("cat", "dog")
    assert clients["b"].label_counts("train")[0] == 0
    (tmp_path / "plays").mkdir()
    (tmp_path / "plays" / "romeo.txt").write_text("But soft, what light through yonder window breaks?")
    (tmp_path / "plays" / "hamlet.txt").write_text("To be, or not to be, that is the question.")
    texts, _ = opened(by_files(tmp_path / "plays", tmp_path / "cache", sequence_length=4, **columns))
    assert list(texts) == ["romeo", "hamlet"]
    with pytest.raises(UserError, match=r'but partitioner="files" needs a folder, in which each file'):
        clients_there(by_files(tmp_path / "plays" / "romeo.txt", tmp_path / "cache"))


# ---- how many, and who is left out -----------------------------------------------------------------------------------


@pytest.fixture
def hospitals(tmp_path: Path) -> dict[str, Any]:
    lines = ["site,age,label"]
    for site, count in {"north": 30, "North": 25, "south": 20, "west": 1}.items():
        lines += [f"{site},{age},{age % 2}" for age in range(count)]
    (tmp_path / "sites.csv").write_text("\n".join(lines) + "\n")
    columns = {"feature-column": "age", "label-column": "label", "client-column": "site"}
    return {"dataset": str(tmp_path / "sites.csv"), "cache-dir": str(tmp_path / "cache"), **columns}


def test_a_natural_split_has_as_many_clients_as_the_data(hospitals: dict[str, Any]) -> None:
    assert clients_of(hospitals) == 3
    assert clients_of({}) == 10
    settings = parse(hospitals).data()
    assert settings.partitioning.partitioner == "natural"
    named, said = opened(settings)
    assert list(named) == ["north", "North", "south"]
    assert said == [
        "left out of 4 clients, with fewer than 2 samples, or none to train on: west",
        "of the 4 names of clients, some differ by case or blanks only, and are clients of their own: 'North', 'north'",
    ]
    fewer = open_partitions(settings, 2)(0)
    assert said_of(settings, fewer.pin) == (
        [
            "2 clients take part of the 3 that there are, those with most samples; left out are south "
            "(--num-supernodes 3 has them all)",
            *said,
        ],
        3,
    )
    with pytest.raises(UserError, match=r"7 clients were asked for, but client-column names only 3 clients \(left out"):
        open_partitions(settings, 7)


@pytest.mark.parametrize("partitioner", ["iid", "pathological", "files", "own_objects:by_turns"])
def test_a_client_column_goes_with_no_other_partitioner(hospitals: dict[str, Any], partitioner: str) -> None:
    with pytest.raises(
        UserError, match=rf'^settings: client-column=\'site\' .*, and partitioner="{partitioner}" deals'
    ):
        parse({**hospitals, "partitioner": partitioner})


def test_a_client_column_that_is_not_there_is_an_error(
    hospitals: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    given = " ".join(f'{key}="{value}"' for key, value in {**hospitals, "client-column": "ward"}.items())
    assert main(["run", "-c", given, "--backend", "in-process"]) == 1
    assert re.search(r"^error: client-column is 'ward', but the columns are site \(", capsys.readouterr().err)


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("backend", ["in-process", "cohort"])
def test_a_client_that_has_hardly_any_data_is_trained_and_scored_where_it_can_be(
    tmp_path: Path, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "sites"
    table(folder / "big.csv", 40)
    table(folder / "one-class.csv", 12, one_class=True)
    table(folder / "three.csv", 3)
    table(folder / "two.csv", 2)
    with caplog.at_level(logging.WARNING, "fedham_flwr"):
        run = simulate(
            "fedper", dataset=folder, feature_column="age chol", label_column="label", partitioner="files",
            num_server_rounds=1, evaluate_every=1, backend=backend, verbose=False, metrics="accuracy auroc",
        )  # fmt: skip
    clients = run.clients.set_index("client")
    untested = [client for client in clients.index if not clients["test"][client]]
    assert f"with nothing to test on, trained but not scored: {', '.join(untested)}" in caplog.text
    assert run.summary["failures"] == 0
    assert set(run.models) == {"big", "one-class", "three", "two"}
    tested = run.rows[(run.rows.split == "test") & (run.rows.metric == "accuracy")]
    assert set(tested.client) == set(clients.index) - set(untested)
    assert "one-class" not in set(run.rows[run.rows.metric == "auroc"].client)  # which one class has none of
    scored = {row["clients"] for row in run.summary["final"] if row["split"] == "test" and row["metric"] == "accuracy"}
    assert scored == {len(set(tested.client))}


# ---- dirichlet -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clients", "least", "best"), [(100, 8, 1), (500, 1, 0)])
def test_a_dirichlet_split_that_cannot_be_is_refused_at_once(clients: int, least: int, best: int) -> None:
    labels = np.arange(1797) % 10
    message = (
        rf"each of {clients} clients at least {least} of 1797 samples: of 110 draws the best left a client {best}; "
    )
    with pytest.raises(UserError, match=message):
        _dirichlet(Partitioning("dirichlet", alpha=0.1), labels, clients)


@pytest.mark.parametrize("seed", range(4))
def test_what_the_library_draws_is_known_before(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 6, 400)
    parts = _dirichlet(Partitioning("dirichlet", alpha=0.5, seed=seed), labels, 8)
    from fedham_flwr.core.seeding import derive

    smallest = [dirichlet_smallest(labels, 8, 0.5, 10, derive(seed, "partition", attempt)) for attempt in range(10)]
    assert next(each for each in smallest if each >= 10) == min(map(len, parts))


# ---- nodes with data of their own ------------------------------------------------------------------------------------


def test_a_node_says_once_that_its_data_have_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = by_files(tmp_path, tmp_path / "cache")
    table(tmp_path / "site.csv", 30)
    open_node(settings, str(tmp_path / "site.csv"))
    before = open_node(settings, str(tmp_path / "site.csv"), "run-1")
    assert not caplog.messages
    lines = (tmp_path / "site.csv").read_text()
    (tmp_path / "site.csv").write_text(f"{lines}99,9,1\n")
    after = open_node(settings, str(tmp_path / "site.csv"), "run-1")
    open_node(settings, str(tmp_path / "site.csv"), "run-1")
    assert caplog.messages == [
        f"the data at {tmp_path / 'site.csv'} have changed: 31 samples, and there were 30; this client goes on with "
        "what is there now"
    ]
    for which in ("train", "validation", "test"):  # the old rows stay where they were
        assert before.splits[which].tolist() == [i for i in after.splits[which].tolist() if i < 30]
    (tmp_path / "site.csv").write_text(f"{lines}99,9,2\n")
    with pytest.raises(
        UserError, match=r"site\.csv are others than when this training began: they were 0, 1 and age, "
    ):
        open_node(settings, str(tmp_path / "site.csv"), "run-1")
    assert open_node(settings, str(tmp_path / "site.csv"), "run-2").classes == ("0", "1", "2")
