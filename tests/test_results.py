import errno
import json
import math
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.files import replacing
from fedham_flwr.core.records import Failure, RoundRecord, Row
from fedham_flwr.models.export import write_model
from fedham_flwr.reporting import environment, formats
from fedham_flwr.reporting import run_directory as results
from fedham_flwr.reporting.run_directory import RunDirectory, read_rows, to_rows
from fedham_flwr.reporting.summary import score

SETTINGS = {"strategy": "fedper", "alpha": 0.1, "augment": False, "seed": 3, "device": "cpu", "fedprox.mu": 1e-05}


def row(client: str, value: float, **changes) -> Row:
    return Row(1, client, "test", "personal", "after", "accuracy", value, 10)._replace(**changes)


def record(**changes) -> RoundRecord:
    given = {
        "round": 3,
        "kind": "train",
        "cohort": ("a", "b"),
        "replies": 1,
        "failures": (Failure(3, "train", "b", 'KeyError: "x"'),),
        "seconds": {"exchange": 1.5},
        "bytes_up": 10,
        "bytes_down": 20,
    }
    return RoundRecord(**{**given, **changes})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path, "fedper", 3, SETTINGS)


@pytest.fixture
def midnight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_utc_now", lambda: datetime(2026, 11, 21, 1, 30, 0, 999, tzinfo=UTC))


# ---- the directory --------------------------------------------------------------------------------------------------


def test_a_run_is_named_by_strategy_time_and_seed(tmp_path, midnight):
    assert RunDirectory.create(tmp_path, "fedper", 7, {}).path == tmp_path / "fedper" / "20261121T013000Z-7"


def test_runs_of_the_same_second_get_different_directories(tmp_path, midnight):
    names = [RunDirectory.create(tmp_path, "fedper", 7, {}).path.name for _ in range(3)]
    assert names == ["20261121T013000Z-7", "20261121T013000Z-7-2", "20261121T013000Z-7-3"]


def test_a_relative_root_starts_at_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = RunDirectory.create("results", "fedper", 0, {}).path
    assert path.is_absolute()
    assert path.parent == tmp_path / "results" / "fedper"


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunDirectory.create("~/runs", "fedper", 0, {}).path.parent == tmp_path / "runs" / "fedper"


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    wanted = rf"results-dir {re.escape(str(tmp_path / 'file'))} cannot be written: .*; name another with results-dir="
    with pytest.raises(UserError, match=wanted):
        RunDirectory.create(tmp_path / "file", "fedper", 0, {})


def test_a_read_only_file_system_is_refused(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    wanted = rf"^results-dir {re.escape(str(tmp_path))} cannot be written: Read-only file system; name another"
    with pytest.raises(UserError, match=wanted):
        RunDirectory.create(tmp_path, "fedper", 0, {})


def test_a_full_disk_at_the_start_is_refused(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        RunDirectory.create(tmp_path, "fedper", 0, {})


def test_the_environment_is_recorded(run):
    facts = json.loads((run.path / "environment.json").read_text())
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"fedham-flwr", "torch", "numpy", "platform", "cpu-count"} <= set(facts)
    assert facts["torch-threads"] == torch.get_num_threads()
    assert facts["device"] == "cpu"
    assert datetime.now(UTC) >= datetime.fromisoformat(facts["started"])


def test_a_package_that_is_not_there_is_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_version", lambda name: None if name == "ray" else "1.0")
    facts = json.loads((RunDirectory.create(tmp_path, "fedper", 0, {}).path / "environment.json").read_text())
    assert "ray" not in facts
    assert facts["flwr"] == "1.0"


def test_the_commit_is_that_of_a_checkout_only(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_SOURCE", tmp_path)
    assert environment._commit() is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert environment._commit() is None  # nothing committed yet
    (tmp_path / "file").write_text("1")
    subprocess.run(["git", "-C", tmp_path, "add", "file"], check=True)
    subprocess.run(["git", *identity, "-C", tmp_path, "commit", "-qm", "first"], check=True)
    commit = environment._commit()
    assert re.fullmatch("[0-9a-f]{40}", str(commit))
    (tmp_path / "file").write_text("2")
    assert environment._commit() == f"{commit}-dirty"
    (tmp_path / "installed").mkdir()
    monkeypatch.setattr(environment, "_SOURCE", tmp_path / "installed")  # inside somebody else's checkout
    assert environment._commit() is None


# ---- config.toml ----------------------------------------------------------------------------------------------------


def flatten(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def test_the_settings_are_written_as_toml(run):
    assert (run.path / "config.toml").read_text() == (
        "# Every setting of this run; give it back with -c config.toml\n"
        'strategy = "fedper"\nalpha = 0.1\naugment = false\nseed = 3\ndevice = "cpu"\nfedprox.mu = 1e-05\n'
    )


scalars = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text("ab\"'\\\n\r\t\0\x1b\x7f\x80#=[]{}é😀")
)
keys = st.sampled_from(["strategy", "dataset", "cache-dir", "seed", "alpha", "fedprox.mu", "fedper.personal-layers"])


@given(st.dictionaries(keys, scalars))
def test_the_settings_survive_a_round_trip(values):
    read = flatten(tomllib.loads(formats.toml_text(values)))
    assert read == values
    assert {name: type(value) for name, value in read.items()} == {name: type(value) for name, value in values.items()}


def test_flower_reads_the_settings_back(tmp_path):
    config = pytest.importorskip("flwr.common.config")
    values = {**SETTINGS, "dataset": 'C:\\data "old"\n\x7f é 😀', "learning-rate": 5.0}
    path = RunDirectory.create(tmp_path, "fedper", 0, values).path / "config.toml"
    assert config.parse_config_args([str(path)]) == values


# ---- rounds ---------------------------------------------------------------------------------------------------------


def test_a_round_is_one_line_and_one_part(run):
    run.write_round(record(), [row("a", 0.5, round=3)])
    run.write_round(record(round=4, kind="evaluate", failures=(), seconds={"exchange": math.nan}), [])
    lines = (run.path / "rounds.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {
        "round": 3,
        "kind": "train",
        "cohort": ["a", "b"],
        "replies": 1,
        "failures": [{"round": 3, "stage": "train", "client": "b", "error": 'KeyError: "x"'}],
        "seconds": {"exchange": 1.5},
        "bytes-up": 10,
        "bytes-down": 20,
        "restored": [],
        "restarted": [],
        "clipped": [],
        "ages": {},
    }
    assert json.loads(lines[1])["seconds"] == {"exchange": None}
    assert [path.name for path in (run.path / "metrics").iterdir()] == ["round-00003-train.parquet"]


def test_rows_are_read_back_sorted(run):
    rows = [
        Row(number, client, split, "personal", phase, metric, number / 7, 5)
        for number in (2, 1)
        for client in ("b", "a")
        for split in ("test", "train")
        for phase in ("before", "after")
        for metric in ("loss", "accuracy")
    ]
    run.write_round(record(round=2, kind="evaluate"), [r for r in rows if r.round == 2 and r.split == "train"])
    run.write_round(record(round=2), [r for r in rows if r.round == 2 and r.split == "test"])
    run.write_round(record(round=1), [r for r in rows if r.round == 1])
    table = read_rows(run.path)
    assert table.column_names == ["round", "client", "split", "model", "phase", "metric", "value", "n", "population"]
    assert [str(kind) for kind in table.schema.types] == ["int64", *["string"] * 5, "double", "int64", "string"]
    assert to_rows(table) == sorted(rows)
    assert {row.population for row in to_rows(table)} == {"member"}


def test_rows_of_novel_clients_are_in_parts_of_their_own(run):
    member, novel = row("a", 0.5, round=3), row("b", 0.25, round=3, population="novel")
    run.write_round(record(kind="evaluate"), [member])
    run.write_round(record(kind="novel"), [novel])
    assert to_rows(read_rows(run.path)) == [member, novel]
    names = sorted(path.name for path in (run.path / "metrics").iterdir())
    assert names == ["round-00003-evaluate.parquet", "round-00003-novel.parquet"]


def test_rows_from_before_there_were_novel_clients_are_of_members(run):
    run.write_round(record(round=4), [row("b", 0.25, round=4, population="novel")])
    old = results._table([row("a", 0.5, round=3)]).drop_columns(["population"])
    pq.write_table(old, run.path / "metrics" / "round-00003-train.parquet")
    assert [(r.round, r.population) for r in to_rows(read_rows(run.path))] == [(3, "member"), (4, "novel")]


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path):
    run = RunDirectory.create(tmp_path / "alpha=0.1", "fedper", 0, {})
    run.write_round(record(), [row("a", 0.5, round=3)])
    assert to_rows(read_rows(run.path)) == [row("a", 0.5, round=3)]


def test_a_run_without_rows_has_an_empty_table(run):
    run.write_round(record(), [])
    assert read_rows(run.path).num_rows == 0
    assert to_rows(read_rows(run.path)) == []


def test_reading_from_elsewhere_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere is not the directory of a run: it has no folder 'metrics'"):
        read_rows(tmp_path / "nowhere")


def test_a_repeated_round_replaces_its_part(run):
    run.write_round(record(), [row("a", 0.5, round=3)])
    run.write_round(record(), [row("a", 0.75, round=3)])
    assert [r.value for r in to_rows(read_rows(run.path))] == [0.75]


def test_two_values_for_one_thing_are_refused(run):
    with pytest.raises(ValueError, match="client 'a' has two values for test personal after accuracy in round 3"):
        run.write_round(record(), [row("a", 0.5, round=3), row("a", 0.6, round=3)])
    with pytest.raises(ValueError, match="client 'a' has two values"):
        score([row("a", 0.5), row("b", 0.5), row("a", 0.5)])


def test_a_row_of_another_round_is_refused(run):
    with pytest.raises(ValueError, match="a row of round 2 was given with round 3"):
        run.write_round(record(), [row("a", 0.5, round=2)])


def test_a_crash_before_the_rename_leaves_the_old_part(run, monkeypatch):
    run.write_round(record(), [row("a", 0.5, round=3)])

    def crash(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        for write in (
            lambda: run.write_round(record(), [row("a", 0.75, round=3)]),
            lambda: run.write_round(record(round=4), [row("a", 0.75, round=4)]),
            lambda: write_model(run.path / "model", "a", {"w": torch.zeros(2)}, {}),
            lambda: run.finish({}),
        ):
            with pytest.raises(KeyboardInterrupt):
                write()
    assert to_rows(read_rows(run.path)) == [row("a", 0.5, round=3)]
    assert len((run.path / "rounds.jsonl").read_text().splitlines()) == 1
    names = {path.name for path in run.path.rglob("*") if path.is_file()}
    assert names == {"config.toml", "resume.toml", "environment.json", "rounds.jsonl", "round-00003-train.parquet"}


def test_a_half_written_part_is_not_read(run, monkeypatch):
    # what a killed process leaves, which could not remove its temporary file
    run.write_round(record(), [row("a", 0.5, round=3)])
    with replacing(run.path / "metrics" / "round-00004-train.parquet") as part:
        part.write_bytes(b"PAR1 half")
        assert to_rows(read_rows(run.path)) == [row("a", 0.5, round=3)]
        part.unlink()
        (run.path / "metrics" / "round-00003-train.parquet").replace(part)
    assert to_rows(read_rows(run.path)) == [row("a", 0.5, round=3)]


# ---- models and summary ---------------------------------------------------------------------------------------------


def test_a_model_is_read_back_with_its_metadata(run):
    shared = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "tied": shared,
        "again": shared,
        "turned": shared.T,
        "image": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "count": torch.tensor(7),
        "trained": torch.ones(2, requires_grad=True),
    }
    path = write_model(run.path / "model", "site_1.b-2", tensors, {"strategy": "fedper"})
    assert path == run.path / "model" / "site_1.b-2.safetensors"
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"strategy": "fedper"}


@pytest.mark.parametrize(
    "client", ["", ".", "..", ".hidden", "../a", "a/b", "a\\b", "a b", "a\n", "ä", "a\0", "x" * 65]
)
def test_a_client_id_that_cannot_name_a_file_is_refused(run, client):
    with pytest.raises(UserError, match=f"client id {re.escape(repr(client))} cannot name a file: wanted 1 to 64 of"):
        write_model(run.path / "model", client, {"w": torch.zeros(1)}, {})
    assert not any((run.path / "model").iterdir())


@pytest.mark.parametrize("client", ["0", "global", "a..b", "-a", "_", "x" * 64])
def test_a_plain_client_id_names_a_file(run, client):
    assert write_model(run.path / "model", client, {"w": torch.zeros(1)}, {}).name == f"{client}.safetensors"


def test_the_summary_has_null_for_what_is_not_finite(run):
    path = run.finish({"final": [{"mean": math.nan, "std": 0.5, "é": (1, -math.inf)}], "rounds": 3, "ok": True})
    assert json.loads(path.read_text()) == {
        "final": [{"mean": None, "std": 0.5, "é": [1, None]}],
        "rounds": 3,
        "ok": True,
    }
    assert path.read_text().startswith('{\n  "final": [\n')


@pytest.mark.skipif(not (Path(__file__).parents[1] / ".git").exists(), reason="needs a clone, of which this is a copy")
def test_the_environment_has_the_commit_of_the_source_tree() -> None:
    facts = environment.environment_facts("cpu", datetime(2026, 1, 1, tzinfo=UTC))
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", str(facts["commit"]))
