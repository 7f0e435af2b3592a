"""The key of a run: the same for whatever is the same run, another one for whatever may have other results."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedham_flwr.core.errors import UserError
from fedham_flwr.settings import Value, defaults
from fedham_flwr.study import keys, sources
from fedham_flwr.study.keys import Contents, key_of

MODULE = """
import helper
from fedham_flwr import AveragingStrategy, Method, RoundClient, split_groups

class Server(AveragingStrategy):
    pass

class Client(RoundClient):
    pass

MINE = Method(Server, Client, lambda manifest, settings: split_groups(manifest, ()))
"""


@pytest.fixture
def here(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of the test's own, with the cache of all tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_dir))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


BASE: dict[str, Value] = {"strategy": "fedprox", "fedprox.mu": 0.5, "batch-size": 7, "model": "mlp", "mlp.depth": 1}


@given(st.permutations(list(BASE)), st.sets(st.sampled_from([k for k in defaults() if k not in BASE])))
def test_order_and_defaults_that_are_spelled_out_make_no_other_run(order: list[str], spelled: set[str]) -> None:
    usual = {key: defaults()[key] for key in spelled}
    assert key_of({**usual, **{key: BASE[key] for key in order}}, 5) == key_of(BASE, 5)


CHANGES: dict[str, Value] = {
    "strategy": "fedavg", "fedprox.mu": 0.25, "batch-size": 8, "mlp.depth": 2, "seed": 1, "data-seed": 3,
    "score-test": "closing", "learning-rate": 0.01, "num-server-rounds": 3, "alpha": 0.2, "test-fraction": 0.3,
    "metrics": "f1", "precision": "bf16", "dataset": "mnist", "model": "cnn", "cross-evaluation": True,
}  # fmt: skip


@pytest.mark.parametrize("key", CHANGES)
def test_whatever_can_change_results_makes_another_run(key: str) -> None:
    before = {k: v for k, v in BASE.items() if key != "strategy" or not k.startswith("fedprox.")}
    assert key_of({**before, key: CHANGES[key]}, 5) != key_of(BASE, 5)


def test_clients_the_version_and_the_kind_of_device_make_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(BASE, 5)
    assert len(before) == 32
    assert key_of(BASE, 6) != before
    assert key_of({**BASE, "device": "cpu"}, 5) == key_of({**BASE, "device": "auto"}, 5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert key_of({**BASE, "device": "auto"}, 5) != before
    assert key_of({**BASE, "device": "auto"}, 5) == key_of({**BASE, "device": "cuda:1"}, 5)
    monkeypatch.undo()
    monkeypatch.setattr(keys, "__version__", "0.0.0")
    assert key_of(BASE, 5) != before


@pytest.mark.parametrize(
    "more",
    [
        {"results-dir": "elsewhere"}, {"checkpoint-every": 3}, {"pfedla.retained-layers": 1}, {"vit.depth": 2},
    ],
)  # fmt: skip
def test_where_a_run_lies_and_what_others_read_makes_none(more: dict[str, Value]) -> None:
    assert key_of({**BASE, **more}, 5) == key_of(BASE, 5)


def test_the_network_that_the_data_will_choose_may_be_any(here: Path) -> None:
    assert key_of({"vit.depth": 2}, 5) != key_of({}, 5)


def test_one_and_one_point_nought_are_the_same_rate_and_true_is_no_number() -> None:
    assert key_of({"learning-rate": 1}, 5) == key_of({"learning-rate": 1.0}, 5)
    with pytest.raises(UserError, match="batch-size=True"):
        key_of({"batch-size": True}, 5)


def test_data_count_by_their_content_wherever_they_lie(here: Path) -> None:
    (here / "a").mkdir()
    (here / "a" / "one.csv").write_text("x,y\n1,2\n")
    (here / "a" / "two.csv").write_text("x,y\n3,4\n")
    shutil.copytree(here / "a", here / "b")
    told = {name: key_of({"dataset": name}, 2) for name in ("a", "./a", "b/../a", str(here / "a"), "b", "a/one.csv")}
    assert len({told[name] for name in ("a", "./a", "b/../a", str(here / "a"), "b")}) == 1
    assert told["a/one.csv"] != told["a"]
    (here / "c.tsv").write_bytes((here / "a" / "one.csv").read_bytes())
    assert key_of({"dataset": "c.tsv"}, 2) != told["a/one.csv"], "it is read in another way"
    (here / "b" / "one.csv").write_text("x,y\n1,3\n")
    assert key_of({"dataset": "b"}, 2) != told["a"]
    with pytest.raises(UserError, match=r"dataset is './none', but there is no file or folder"):
        key_of({"dataset": "./none"}, 2)


FILES = {
    "class-table": {"partitioner": "class-table"},
    "table.schema": {},
    "text.tokenizer": {},
    "torchvision.weights": {"model": "torchvision:resnet18"},
    "hub.folder": {"model": "hub"},
    "lora.base": {"strategy": "lora"},
    "clustered.table": {"strategy": "clustered"},
}


@pytest.mark.parametrize("setting", FILES)
def test_files_that_settings_name_count_by_their_content(here: Path, setting: str) -> None:
    def key(path: str) -> str:
        return key_of({**FILES[setting], setting: path}, 2)

    assert set(FILES) == set(keys.FILES)
    for name, text in (("a.toml", "x"), ("b.toml", "x"), ("c.toml", "y")):
        (here / name).write_text(text)
    assert key("a.toml") == key("b.toml") == key(str(here / "a.toml")) == key("./b.toml")
    assert key("a.toml") != key("c.toml")
    if setting == "table.schema":
        assert key("a.toml") != key("")
    with pytest.raises(UserError, match=rf"{setting}='no.toml': .*no.toml cannot be read \(No such file"):
        key("no.toml")


def test_a_folder_that_a_setting_names_counts_by_its_files(here: Path) -> None:
    keys_of = []
    for name, config in (("a", "x"), ("b", "x"), ("c", "y")):
        (here / name).mkdir()
        (here / name / "config.json").write_text(config)
        keys_of.append(key_of({"model": "hub", "hub.folder": name}, 2))
    assert keys_of[0] == keys_of[1] != keys_of[2]


@pytest.mark.parametrize(("module", "models"), [("dealtnets", "dealtnets:one, vit"), ("tablenets", "who.toml")])
def test_all_networks_of_clients_count(here: Path, module: str, models: str) -> None:
    (here / f"{module}.py").write_text("def one(shape, outputs):\n    pass\n")
    (here / "who.toml").write_text(f'0 = "{module}:one"\n1 = "vit"\n')
    (here / "same.toml").write_bytes((here / "who.toml").read_bytes())
    given: dict[str, Value] = {"strategy": "local", "model": "mlp", "client-models": models}
    before = key_of(given, 2)
    assert key_of({**given, "vit.depth": 2}, 2) != before
    assert (key_of({**given, "client-models": "same.toml"}, 2) == before) == (models == "who.toml")
    (here / f"{module}.py").write_text("def one(shape, outputs):\n    return None\n")
    changed = key_of(given, 2)
    assert changed != before
    (here / "who.toml").write_text(f'0 = "{module}:one"\n')
    assert (key_of(given, 2) == changed) == (models != "who.toml")


def test_the_sources_of_a_users_modules_and_of_what_they_import_count(here: Path) -> None:
    (here / "helper.py").write_text("import json\nimport numpy\nimport deeper.still\n")
    (here / "deeper").mkdir()
    (here / "deeper" / "still.py").write_text("RATE = 1\n")
    (here / "other.py").write_text("")
    (here / "mymethod.py").write_text(MODULE)
    settings: dict[str, Value] = {"strategy": "mymethod:MINE"}
    before = key_of(settings, 2)
    assert set(sources.of_method("mymethod:MINE")) == {"mymethod", "helper", "deeper.still"}
    assert key_of(settings, 2) == before
    (here / "other.py").write_text("RATE = 2\n")
    assert key_of(settings, 2) == before
    (here / "deeper" / "still.py").write_text("RATE = 2\n")
    changed = key_of(settings, 2)
    assert changed != before
    (here / "mymethod.py").write_text(MODULE + "\n# a remark\n")
    assert key_of(settings, 2) not in (before, changed)


def test_relative_imports_lead_to_the_modules_beside(here: Path) -> None:
    (here / "keyed").mkdir()
    (here / "keyed" / "__init__.py").write_text("")
    (here / "keyed" / "parts.py").write_text("SIZE = 1\n")
    (here / "keyed" / "nets.py").write_text(
        "from .parts import SIZE\nfrom . import parts as p\n\ndef net():\n    pass\n"
    )
    assert set(sources.of_module("model", "keyed.nets:net")) == {"keyed", "keyed.nets", "keyed.parts"}
    (here / "keyed" / "nets.py").write_text("def broken(:\n")
    assert set(sources.of_module("model", "keyed.nets:net")) == {"keyed.nets"}, "what cannot be parsed still counts"


def test_a_built_in_method_counts_by_its_own_files() -> None:
    found = sources.of_method("pfedla")
    assert set(found) == {"strategies.pfedla", "clients.pfedla", "fedham_flwr.algorithms.pfedla"}
    file = importlib.import_module("clients.pfedla").__file__
    assert file is not None
    assert found["clients.pfedla"] == sources.digest(Path(file))


def test_a_study_has_the_content_as_it_is_when_it_is_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "data.csv").write_text("x,y\n1,2\n")
    calls: list[str] = []

    def counted(source: str, memo: Path, real: Callable[[str, Path], str] = keys.content_key) -> str:
        calls.append(source)
        return real(source, memo)

    monkeypatch.setattr(keys, "content_key", counted)
    known, told = Contents(), []
    for seed in range(3):
        settings: dict[str, Any] = {"dataset": "data.csv", "seed": seed}
        told.append(key_of(settings, 2, known))
    assert len(set(told)) == 3
    assert calls == ["data.csv"]
