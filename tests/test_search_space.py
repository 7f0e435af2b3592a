"""What is searched: the spaces of the methods, the common one, and those that a study asks for."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedham_flwr import AveragingStrategy, Choice, Method, Range, RoundClient, registry, split_groups
from fedham_flwr.core.errors import UserError
from fedham_flwr.settings import defaults, flatten, parse
from fedham_flwr.study.points import start_of
from fedham_flwr.study.spaces import CORE, described, space_of

ROOT = Path(__file__).resolve().parents[1]
RATE = {"learning-rate": Range(0.001, 0.2, 0.02, log=True)}


def values_of(dimension: Range | Choice) -> tuple[Any, ...]:
    if isinstance(dimension, Choice):
        return dimension.values
    ends = (dimension.low, dimension.start, dimension.high)
    return tuple(map(int, ends)) if dimension.whole else ends


# ---- what the methods declare -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", registry.BUILT_IN)
def test_a_method_declares_settings_of_its_own_and_values_that_a_run_takes(method: str) -> None:
    declared = registry.method(method).search
    assert len(declared) <= 4
    assert all(key.startswith(f"{method}.") and key in defaults() for key in declared)
    for key, dimension in declared.items():
        for value in values_of(dimension):
            settings = parse({"strategy": method, key: value})
            assert flatten(settings)[key] == value


@pytest.mark.parametrize("method", registry.BUILT_IN)
def test_a_search_starts_from_the_defaults(method: str) -> None:
    """Where a paper or its authors' code says a value, it is the default too, so the start says both."""
    space = space_of(method, {})
    assert dict(start_of(space)) == {key: defaults()[key] for key in space}
    assert next(iter(space)) == "learning-rate"
    for dimension in space.values():
        if isinstance(dimension, Range) and dimension.log:
            assert dimension.high / dimension.low <= 10_000


def test_every_method_that_has_settings_to_tune_declares_some() -> None:
    without = {name for name in registry.BUILT_IN if not registry.method(name).search}
    of_files = {"clustered"}  # its one setting is the path of a table
    assert without == of_files | {name for name in registry.BUILT_IN if registry.method(name).settings is None}


# ---- the common space ---------------------------------------------------------------------------------------------


def test_the_common_space_is_the_learning_rate_around_the_runs_own() -> None:
    assert space_of("fedavg", {}) == RATE
    assert space_of("local", {"learning-rate": 0.3}) == {"learning-rate": Range(0.015, 3.0, 0.3, log=True)}


def test_what_the_study_sets_of_a_method_is_not_searched() -> None:
    assert set(space_of("fedrep", {"fedrep.head-epochs": 3})) == {"learning-rate", "fedrep.personal-layers"}


def test_what_no_trial_would_read_is_not_searched() -> None:
    assert set(space_of("fedamp", {})) == {*RATE, "fedamp.alpha", "fedamp.sigma", "fedamp.penalty"}
    heuristic = space_of("fedamp", {"fedamp.variant": "heuristic"})
    assert set(heuristic) == {*RATE, "fedamp.alpha", "fedamp.penalty", "fedamp.self-weight"}
    assert space_of("fedtp", {"fedtp.personal": "vanilla"}) == RATE
    both = space_of("fedamp", {}, {"fedamp.variant": ["amp", "heuristic"]})
    assert {"fedamp.sigma", "fedamp.self-weight"} < both.keys()  # each is read in some trial
    asked = {"fedtp.learning-rate": [0.1, 0.2]}
    assert space_of("fedtp", {"fedtp.personal": "vanilla"}, {}, asked).keys() == asked.keys()  # the study's own word


def test_a_study_replaces_the_common_space_and_that_of_a_method() -> None:
    found = space_of("fedprox", {}, {"batch-size": [10, 20]}, {"fedprox.mu": [0.5, 1]})
    assert found == {"batch-size": Choice((10, 20), 10), "fedprox.mu": Choice((0.5, 1.0), 0.5)}
    assert [type(value) for value in values_of(found["fedprox.mu"])] == [float, float]
    assert space_of("fedprox", {}, {}, {}) == {}
    assert set(space_of("fedprox", {}, {})) == {"fedprox.mu"}
    assert space_of("fedprox", {}, None, {}) == RATE


def test_a_study_may_search_what_it_sets_if_it_asks() -> None:
    found = space_of("fedprox", {"fedprox.mu": 0.5}, {}, {"fedprox.mu": [0.1, 0.5]})
    assert found == {"fedprox.mu": Choice((0.1, 0.5), 0.5)}


# ---- what TOML says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "given", "wanted"),
    [
        ("batch-size", "[20, 50, 10]", Choice((20, 50, 10), 10)),
        ("batch-size", "[20, 50]", Choice((20, 50), 20)),
        ("nesterov", "[true, false]", Choice((True, False), False)),
        ("schedule", "['cosine', 'constant']", Choice(("cosine", "constant"), "constant")),
        ("momentum", "[0, 0.9]", Choice((0.0, 0.9), 0.9)),
        ("learning-rate", "{low = 0.01, high = 0.1}", Range(0.01, 0.1, 0.02)),
        ("learning-rate", "{low = 0.1, high = 0.4, log = true}", Range(0.1, 0.4, 0.2, log=True)),
        ("learning-rate", "{low = 0.1, high = 0.4}", Range(0.1, 0.4, 0.25)),
        ("learning-rate", "{low = 0.1, high = 0.4, start = 0.3}", Range(0.1, 0.4, 0.3)),
        ("local-epochs", "{low = 1, high = 5}", Range(1, 5, 1, whole=True)),
        ("local-epochs", "{low = 2, high = 8, log = true, whole = true}", Range(2, 8, 4, log=True, whole=True)),
        ("weight-decay", "{low = 1, high = 4, whole = true}", Range(1, 4, 2, whole=True)),
        ("mlp.width", "{low = 16, high = 128, start = 32}", Range(16, 128, 32, whole=True)),
        ("dp.clipping-norm", "[0.5, 2]", Choice((0.5, 2.0), 0.5)),
    ],
)
def test_lists_are_choices_and_tables_ranges(key: str, given: str, wanted: Range | Choice) -> None:
    found = space_of("local", {}, tomllib.loads(f"{key} = {given}"))
    assert list(found) == [key]
    assert same(found[key], wanted), found


def same(found: Range | Choice, wanted: Range | Choice) -> bool:
    if isinstance(found, Choice) or isinstance(wanted, Choice):
        return repr(found) == repr(wanted)
    kinds = (found.log, found.whole) == (wanted.log, wanted.whole)
    return kinds and values_of(found) == pytest.approx(values_of(wanted))


@pytest.mark.parametrize(
    ("key", "given", "sentence"),
    [
        ("lerning-rate", [1.0, 2.0], r"\[tune.space\] lerning-rate is no setting: did you mean learning-rate\?"),
        ("batch_size", [1, 2], "batch_size is no setting: did you mean batch-size"),
        ("quux", {"low": 1, "high": 2}, r"\[tune.space\] quux is no setting: `fedham settings` prints them"),
        ("ditto.penalty", [1.0, 2.0], r"ditto.penalty is a setting of the method ditto, and this is for fedprox"),
        ("batch-size", 10, "batch-size = 10: wanted a list of values, or a table"),
        ("batch-size", [10, 0.5], "batch-size = .*: 0.5 is not of its type: wanted values such as 10"),
        ("batch-size", [10, True], "True is not of its type"),
        ("batch-size", [10], r"wanted at least two different values, not \(10,\)"),
        ("batch-size", [], "wanted at least two different values"),
        ("batch-size", [10, 10], "wanted at least two different values"),
        ("batch-size", [10, 0], "batch-size has a value that no run takes: batch-size=0: wanted greater than 0"),
        ("schedule", ["cosine", "sine"], "schedule has a value that no run takes: schedule='sine'"),
        ("schedule", {"low": 1, "high": 2}, "schedule = .*: it has no range: wanted a list of values such as"),
        ("nesterov", {"low": 0, "high": 1}, "nesterov = .*: it has no range"),
        ("momentum", {"low": 0.5, "high": 1.5}, "momentum has a value that no run takes: momentum=1.5"),
        ("momentum", {"low": 0.5}, "momentum = .*: it has no high"),
        ("momentum", {"low": "0", "high": 1}, "wanted a number for low, not '0'"),
        ("momentum", {"low": 0.0, "high": 0.9, "step": 0.1}, "there is no step of a range: wanted low, high, log"),
        ("momentum", {"low": 0.0, "high": 0.9, "log": True}, "a logarithmic range begins above 0"),
        ("momentum", {"low": 0.0, "high": 0.9, "log": 1}, "log and whole are true or false"),
        ("momentum", {"low": 0.9, "high": 0.5}, "a range has its lowest number first, and goes not from 0.9 to 0.5"),
        ("local-epochs", {"low": 1, "high": 5, "whole": False}, "it takes whole numbers"),
        ("local-epochs", {"low": 1, "high": 5, "start": 2.5}, "a range of whole numbers has whole ends and start"),
    ],
)
def test_a_fault_is_said_in_a_sentence(key: str, given: object, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        space_of("fedprox", {}, {key: given})


NOT_SEARCHED = (
    "seed", "strategy", "task", "dataset", "partitioner", "alpha", "validation-fraction", "test-fraction", "resume",
    "results-dir", "metrics", "selection-metric", "num-server-rounds", "evaluate-every", "fraction-train", "device",
    "dp.epsilon", "table.missing", "image.resize",
)  # fmt: skip


def test_what_a_search_may_not_change_is_refused_all_at_once() -> None:
    given = {key: [defaults()[key], defaults()[key]] for key in NOT_SEARCHED}
    with pytest.raises(UserError) as refused:
        space_of("fedprox", {}, given, {"fedper.personal-layers": [1, 2]})
    sentences = str(refused.value).split("; ")
    assert len(sentences) == len(NOT_SEARCHED) + 1
    for key in NOT_SEARCHED:
        assert any(sentence.startswith(f"[tune.space] {key} is not searched") for sentence in sentences), key
    assert sentences[-1].startswith("[tune.methods] fedper.personal-layers is a setting of the method fedper")


def test_the_settings_of_each_network_that_is_dealt_may_be_searched() -> None:
    given = {"client-models": "cnn, own_objects:Wide"}
    found = space_of("local", given, {"wide": {"width": [3, 5]}})
    assert found == {"wide.width": Choice((3, 5), 3)}


def test_what_may_be_searched_exists() -> None:
    assert [key for key in CORE if key not in defaults()] == []


def test_toml_takes_a_dotted_key_for_a_table() -> None:
    given = tomllib.loads("fedprox.mu = {low = 0.1, high = 1}\nmlp.width = [16, 32]\nbatch-size = [5, 10]")
    found = space_of("fedprox", {}, None, given)
    assert set(found) == {"learning-rate", "fedprox.mu", "mlp.width", "batch-size"}


# ---- a method of a user's own -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnSettings:
    strength: float = 0.5
    low: int = 3


def mine(**search: Any) -> Method:
    def split(manifest: Any, settings: Any) -> Any:
        return split_groups(manifest, ())

    given = {key.replace("_", "."): value for key, value in search.items()}
    return Method(AveragingStrategy, RoundClient, split, OwnSettings, name="mine", search=given)


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Any:
    def name(method: Method) -> None:
        monkeypatch.setitem(registry.METHODS, "mine", method)

    return name


def test_a_method_of_ones_mine_declares_what_is_searched(named: Any) -> None:
    strength = Range(0.1, 2.0, start=0.5, log=True, source="my thesis, table 3")
    named(mine(mine_strength=strength))
    assert space_of("mine", {}) == {**RATE, "mine.strength": strength}
    given = tomllib.loads("mine.low = {low = 1, high = 4}\nmine.strength = [0.5, 1]")
    assert set(space_of("mine", {}, {}, given)) == {"mine.low", "mine.strength"}


def test_the_faults_of_a_method_of_ones_mine_are_said(named: Any) -> None:
    named(
        mine(mine_strong=Range(0, 1, 0.5), mine_low=Range(0.5, 1.5, 1.0), mine_strength=[1, 2], seed=Choice((1, 2), 1))
    )
    with pytest.raises(UserError) as refused:
        space_of("mine", {})
    said = str(refused.value)
    assert "search of the method mine: mine.strong is no setting: did you mean mine.strength?" in said
    assert "search of the method mine: mine.low has a value that no run takes: mine.low=0.5" in said
    assert "search of the method mine: mine.strength is list, and wanted is a Range or a Choice" in said
    assert "search of the method mine: seed is not searched" in said


# ---- words and pages ----------------------------------------------------------------------------------------------


def test_a_dimension_in_words() -> None:
    assert described(Range(0.001, 1.0, 0.01, log=True)) == "0.001 to 1 (logarithmic)"
    assert described(Range(1, 3, 2, whole=True)) == "1 to 3 (whole numbers)"
    assert described(Range(0.0, 0.5, 0.1)) == "0 to 0.5"
    assert described(Choice(("a", "b"), "a")) == "a, b"


def test_the_tables_of_the_page_on_tuning_are_read() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "tuning.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        tune = tomllib.loads(block)["tune"]
        for label, asked in {"fedprox": None, **tune.get("methods", {})}.items():
            assert space_of(label, {}, tune.get("space"), asked)
