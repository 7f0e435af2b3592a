"""Sections of settings that objects bring, methods by name and entry point, and advice for keys that do not exist."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedham_flwr import registry
from fedham_flwr.algorithms.fedper import METHOD as FEDPER
from fedham_flwr.core.errors import UserError
from fedham_flwr.settings import defaults, flatten, parse


def complaint(given: dict[str, Any]) -> str:
    with pytest.raises(UserError) as raised:
        parse(given)
    return str(raised.value)


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("rounds", "did you mean num-server-rounds?"),
        ("num_rounds", "did you mean num-server-rounds?"),
        ("lr", "did you mean learning-rate?"),
        ("lr-decay", "did you mean schedule?"),
        ("epochs", "did you mean local-epochs?"),
        ("num-clients", "the number of clients is --num-supernodes on the command line and clients in simulate()"),
        ("personal-layers", "did you mean fedper.personal-layers?"),  # of the run's own method, not fedrep's
        ("bn-buffers", "did you mean pfedla.bn-buffers?"),  # of one method only
        ("fedprox", "did you mean fedprox.mu?"),
    ],
)
def test_advice_for_what_others_call_a_setting(key: str, advice: str) -> None:
    assert complaint({key: 1}) == f"settings: there is no key {key} (given 1): {advice}"


def test_advice_never_names_another_methods_key_for_one_like_the_core() -> None:
    assert "the keys are strategy" in complaint({"hidden-dim": 3})  # pfedla's, vit's, ...
    assert "did you mean pfedla.hidden-dim?" in complaint({"hidden-dim": 3, "strategy": "pfedla"})
    assert "did you mean vit.hidden-dim?" in complaint({"hidden-dim": 3, "model": "vit"})


def test_all_faults_of_objects_and_keys_come_at_once() -> None:
    text = complaint({"model": "nowhere:Net", "strategy": "own_objects:NUMBER", "alpha": 0.0, "rounds": 3})
    for part in (
        "there is no module nowhere",
        "is int, and wanted is a fedham_flwr.Method",
        "alpha=0.0: wanted",
        "rounds",
    ):
        assert part in text


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, b"x"])
def test_a_value_that_is_no_scalar_is_a_sentence(value: object) -> None:
    assert complaint({"seed": value}) == f"settings: seed={value!r}: wanted a truth value, a number or a text"


MODULE = """
from dataclasses import dataclass
from torch import nn

def loss(outputs, targets, gamma: float = 2.0):
    return outputs.sum()

def build_model(shape, outputs, width=4):
    return nn.Linear(3, outputs)

class Momentum:
    def __init__(self, shape, depth=3):
        pass

def fedprox(outputs, targets, gamma: float = 2.0):
    return outputs.sum()

class FedPer(nn.Module):
    def __init__(self, shape, depth=3):
        pass

class MLP(nn.Module):
    def __init__(self, shape, depth=3):
        pass

def Build_Model(outputs, targets, sharp=True):
    return outputs.sum()

@dataclass
class Loose:
    width: int = 3

class Net(nn.Module):
    Settings = Loose
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brought.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "brought", raising=False)


@pytest.mark.usefixtures("mine")
def test_a_task_may_have_a_loss_with_settings() -> None:
    settings = parse({"task": "brought", "own-loss.gamma": 3.0, "build-model.width": 5})
    assert (settings.loss, settings.model) == ("brought:loss", "brought:build_model")
    assert settings.section("own-loss").gamma == 3.0
    assert settings.section("build-model").width == 5
    assert settings.local_training(1).loss.own == settings.section("own-loss")
    assert parse(flatten(settings)) == settings


@pytest.mark.usefixtures("mine")
def test_an_own_network_may_be_called_like_a_built_in_one() -> None:
    settings = parse({"model": "brought:MLP", "mlp.depth": 5})
    assert settings.section("mlp").depth == 5


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"model": "brought:Momentum"}, "would be momentum, which is a setting: wanted another name for the object"),
        ({"loss": "brought:fedprox"}, "would be fedprox, which is built in: wanted another name for the object"),
        ({"model": "brought:FedPer"}, "would be fedper, which is built in: wanted another name for the object"),
        (
            {"model": "brought:build_model", "loss": "brought:Build_Model"},
            "would be build-model, as that of brought:build_model: wanted another name for one of them",
        ),
        ({"model": "brought:Net"}, "Loose holds settings and can be changed: wanted @dataclass(frozen=True)"),
    ],
)
def test_a_section_that_cannot_be_is_a_sentence(given: dict[str, Any], sentence: str) -> None:
    assert sentence in complaint(given)


# ---- methods by name -------------------------------------------------------------------------------------------------


@pytest.fixture
def _forgotten() -> Iterator[None]:
    yield
    registry.METHODS.pop("mine", None)


@pytest.mark.usefixtures("_forgotten")
def test_a_registered_method_has_a_name_and_a_section() -> None:
    assert "mine.personal-layers" not in defaults()
    assert "wanted 'local'" in complaint({"strategy": "mine"})
    registry.register("mine", FEDPER)
    assert defaults()["mine.personal-layers"] == 1
    settings = parse({"strategy": "mine", "mine.personal-layers": 2})
    assert settings.own.personal_layers == 2
    registry.register("mine", registry.method("fedavg"))  # in a notebook a cell is run again
    assert parse({"strategy": "mine"}).own is None


@pytest.mark.parametrize(
    ("name", "declared", "sentence"),
    [
        ("fedper", FEDPER, "fedper is a built-in method: wanted another name"),
        ("My Method", FEDPER, "'My Method' is no name for a method: wanted small letters, digits and hyphens"),
        ("mine", 3, "mine is int, and wanted is a fedham_flwr.Method"),
    ],
)
def test_what_cannot_be_registered(name: str, declared: Any, sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        registry.register(name, declared)
    assert str(raised.value) == sentence
    assert name not in registry.METHODS or name in registry.BUILT_IN


def test_an_installed_package_brings_a_method_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [
        importlib.metadata.EntryPoint("theirs", "fedham_flwr.algorithms.fedper:METHOD", registry.GROUP),
        importlib.metadata.EntryPoint("fedavg", "nowhere:METHOD", registry.GROUP),
        importlib.metadata.EntryPoint("broken", "nowhere:METHOD", registry.GROUP),
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [e for e in given if e.group == group])
    registry._entry_points.cache_clear()
    try:
        assert registry.method("theirs") is FEDPER
        assert parse({"strategy": "theirs", "theirs.personal-layers": 3}).own.personal_layers == 3
        assert registry.method("fedavg").settings is None  # ours comes first
        assert 'strategy="nowhere:METHOD": there is no module nowhere' in complaint({"strategy": "broken"})
    finally:
        registry._entry_points.cache_clear()
