"""Objects by import path: what is found, what it is called with, which settings it has, and each fault."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import (
    call,
    is_path,
    load_function,
    load_object,
    section_of,
    settings_class,
    short_name,
    source_digest,
)
from fedham_flwr.task import expand


@dataclass(frozen=True)
class Sizes:
    width: int = 3


@dataclass
class Loose:
    width: int = 3


@dataclass(frozen=True)
class Bare:
    width: int


@dataclass(frozen=True)
class Listed:
    widths: tuple[int, ...] = (3, 4)


class Nested:
    Settings = Sizes

    class Inner:
        """Found by a dotted name."""


def sized(shape: Any, settings: Sizes) -> tuple[Any, Sizes]:
    return shape, settings


def keyed(shape: Any, *rest: int, width: int = 2, name: str = "a", seed: int = 1, **others: int) -> tuple[Any, ...]:
    return shape, rest, width, name, seed, others


class Made:
    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def __call__(self, x: float) -> float:
        return self.factor * x


def scaled(x: float, factor: float = 3.0) -> float:
    return factor * x


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("a:B", True),
        ("a.b_c:D.e", True),
        ("digits", False),
        ("uoft-cs/cifar10", False),
        ("C:/data", False),
        ("a:", False),
        (":B", False),
        ("a:B c:D", False),
        ("torchvision:resnet18", False),
        ("./a:B", False),
    ],
)
def test_what_is_an_import_path(name: str, is_one: bool) -> None:
    assert is_path(name) is is_one


def test_an_object_is_found_by_a_dotted_name() -> None:
    assert load_object("model", "test_imports:Nested.Inner") is Nested.Inner
    assert load_object("model", f"{__name__}:sized") is sized


def test_a_module_beside_the_user_is_found_and_stays_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lies_here.py").write_text("NUMBER = 5\n")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    assert load_object("model", "lies_here:NUMBER") == 5
    digest = source_digest("lies_here:NUMBER")
    (tmp_path / "lies_here.py").write_text("NUMBER = 6\n")
    assert source_digest("lies_here:NUMBER") != digest
    assert len(digest) == 64


@pytest.mark.parametrize(
    ("text", "path", "sentence"),
    [
        ("", "absent_module:X", 'loss="absent_module:X": there is no module absent_module (looked for beside'),
        ("import absent_thing", "mine:X", 'loss="mine:X": mine needs absent_thing, which is not installed'),
        ("1 / 0", "mine:X", 'loss="mine:X": mine cannot be imported: ZeroDivisionError: division by zero'),
        ("def", "mine:X", 'loss="mine:X": mine cannot be imported: SyntaxError: '),
        ("A = _b = 1", "mine:X", 'loss="mine:X": the module mine has no X; it has A'),
        ("", "mine:X", 'loss="mine:X": the module mine has no X; it has nothing'),
        ("class A: pass", "mine:A.x", 'loss="mine:A.x": the module mine has no A.x; it has A'),
        ("A = 1", "mine.part:X", 'loss="mine.part:X": there is no module mine.part'),
    ],
)
def test_what_is_not_found_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, path: str, sentence: str
) -> None:
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pytest.raises(UserError) as raised:
        load_object("loss", path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("setting", "path", "lacks"),
    [
        ("model", "clients.nets:Net", "has no nets:Net"),
        ("model", "clients:Net", "has no Net"),
        ("strategy", "strategies.fedavg:METHOD", "has no fedavg:METHOD"),  # ours has a module of that name
        ("task", "clients.hospital", "has no hospital"),
        ("task", "clients", "brings nothing"),
    ],
)
def test_a_folder_named_like_a_package_of_ours_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, path: str, lacks: str
) -> None:
    for folder in ("clients", "strategies"):
        (tmp_path / folder).mkdir()
        for name in ("__init__", "nets", "fedavg", "hospital"):
            (tmp_path / folder / f"{name}.py").write_text("Net = METHOD = build_model = 1\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        expand({"task": path}) if setting == "task" else load_object(setting, path)
    top = "strategies" if setting == "strategy" else "clients"
    assert str(raised.value) == (
        f'{setting}="{path}": {top} is a package of fedham-flwr, which {lacks}: wanted another name for a '
        f"folder {top} of yours"
    )


@pytest.mark.parametrize(
    ("path", "section", "short"),
    [
        ("mymodels:MyNet", "mynet", "mynet"),
        ("hospital:build_model", "build-model", "build-model"),
        ("a.b:Tasks.first_one", "first-one", "first-one"),
        ("hospital:loss", "own-loss", "loss"),
        ("hospital:Optimizer", "own-optimizer", "optimizer"),
        ("fedper", "fedper", "fedper"),
    ],
)
def test_a_section_is_the_name_of_the_object_and_never_a_setting(path: str, section: str, short: str) -> None:
    assert (section_of(path), short_name(path)) == (section, short)


def test_settings_are_a_dataclass_or_keyword_parameters() -> None:
    assert settings_class(Nested) is Sizes
    assert settings_class(sized) is Sizes
    made = settings_class(keyed, given=("seed",))
    assert made is not None
    assert [(field.name, field.type) for field in dataclasses.fields(made)] == [("width", int), ("name", str)]
    assert made() == made(width=2, name="a")
    assert settings_class(lambda shape: shape) is None
    assert settings_class(len) is None


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        (Loose, "Loose holds settings and can be changed: wanted @dataclass(frozen=True)"),
        (Bare, "Bare.width is a setting and has no default: wanted a bool, int, float or str"),
        (Listed, "Listed.widths is a setting and has the default (3, 4): wanted a bool, int, float or str"),
    ],
)
def test_a_dataclass_that_can_be_no_section_is_a_sentence(own: type, sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        settings_class(type("Net", (), {"Settings": own}))
    assert str(raised.value) == sentence


def test_calls_go_by_keyword_with_what_the_signature_names() -> None:
    assert call("model", sized, Sizes(5), shape=(1,), outputs=2) == ((1,), Sizes(5))
    own = settings_class(keyed, given=("seed",))
    assert own is not None
    assert call("model", keyed, own(width=9), shape=(1,), seed=4, outputs=2) == ((1,), (), 9, "a", 4, {})
    with pytest.raises(UserError, match=r"^model: sized wants settings, which it is not called with; wanted a sig"):
        call("model", sized, None, shape=(1,))


def test_a_function_is_itself_or_what_a_class_or_a_maker_gives() -> None:
    assert load_function("loss", "test_imports:scaled", None, "a function")(1.0) == 3.0
    own = settings_class(scaled)
    assert own is not None
    assert load_function("loss", "test_imports:scaled", own(factor=5.0), "a function")(1.0) == 5.0
    assert load_function("loss", "test_imports:Made", None, "a function")(1.0) == 2.0
    with pytest.raises(UserError, match=r'^loss="test_imports:__name__" gives str, and wanted is a function$'):
        load_function("loss", "test_imports:__name__", None, "a function")
