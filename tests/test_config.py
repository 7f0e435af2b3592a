"""Settings: those of pyproject.toml, strict types, every fault in one sentence, and the inverse pair flatten/parse."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from flwr.common.config import flatten_dict
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedham_flwr.core.errors import UserError
from fedham_flwr.models import NETWORKS
from fedham_flwr.run_settings import Settings
from fedham_flwr.settings import Value, defaults, flatten, methods, parse

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def written() -> dict[str, Value]:
    """The settings of pyproject.toml, as Flower gives them to an app."""
    return dict(flatten_dict(tomllib.loads(PYPROJECT.read_text())["tool"]["flwr"]["app"]["config"]))


def complaint(raw: dict[str, Value]) -> str:
    with pytest.raises(UserError) as caught:
        parse(raw)
    return str(caught.value)


# ---- what there is ---------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_pyproject_in_value_and_type() -> None:
    wanted = written()
    assert dict(defaults()) == wanted
    assert {key: type(value) for key, value in defaults().items()} == {k: type(v) for k, v in wanted.items()}


def test_the_keys_have_the_order_of_pyproject() -> None:
    assert list(defaults()) == list(written())


def test_what_flower_gives_without_overrides_parses_to_the_defaults() -> None:
    assert parse(written()) == parse({})
    assert flatten(parse({})) == defaults() | flatten(Settings()) == dict(defaults())


def test_a_method_has_its_settings_under_its_name() -> None:
    sections = {key.partition(".")[0] for key in defaults() if "." in key}
    others = {"dp", "server", "image", "table", "series", "text", "early-stopping", "tracking"}
    assert sections - others - set(NETWORKS) <= set(methods())
    settings = parse({"fedprox.mu": 0.5, "fedper.personal-layers": 3, "fedtp.head": "fedrod"})
    assert settings.section("fedprox").mu == 0.5
    assert settings.section("fedper").personal_layers == 3
    assert settings.section("fedtp").head == "fedrod"


def test_a_transformer_has_its_settings_under_its_name_and_fedrod_gives_it_a_second_head() -> None:
    given: dict[str, Value] = {"vit.depth": 3, "char-transformer.positions": "learned"}
    networks = parse(given).networks()
    vit, char = networks.section("vit"), networks.section("char-transformer")
    assert (vit.depth, char.depth) == (3, 2)
    assert (vit.positions, char.positions) == ("learned", "learned")
    heads = [
        parse({"strategy": strategy, "fedtp.head": head}).networks().head.asks
        for strategy in ("fedtp", "fedavg")
        for head in ("shared", "fedper", "fedrod")
    ]
    assert heads == ["", "", 'fedtp.head="fedrod"', "", "", ""]


@pytest.mark.parametrize("method", methods())
def test_every_method_can_be_chosen(method: str) -> None:
    assert parse({"strategy": method}).strategy == method


def test_settings_are_frozen() -> None:
    settings = parse({})
    with pytest.raises(ValidationError, match="frozen"):
        settings.seed = 1
    with pytest.raises(AttributeError, match="cannot assign"):
        settings.section("fedprox").mu = 1.0  # type: ignore[misc]


def test_the_layers_below_get_what_they_need() -> None:
    settings = parse({"seed": 5, "alpha": 2.0, "partitioner": "dirichlet", "test-fraction": 0.5, "local-epochs": 3})
    assert settings.data().partitioning.seed == 5
    assert settings.data().partitioning.alpha == 2.0
    assert settings.data().fractions.test == 0.5
    assert settings.local_training(1).local_epochs == 3
    text = parse({"sequence-length": 7, "vocabulary": "ab", "min-characters": 9}).data()
    assert (text.sequence_length, text.vocabulary, text.min_characters) == (7, "ab", 9)


# ---- one fault -------------------------------------------------------------------------------------------------------

WRONG: list[tuple[str, Value, str]] = [
    ("batch-size", True, "batch-size=True: wanted a valid integer"),
    ("batch-size", "3", "batch-size='3': wanted a valid integer"),
    ("batch-size", 1.5, "batch-size=1.5: wanted a valid integer"),
    ("batch-size", 10.0, "batch-size=10.0: wanted a valid integer"),
    ("batch-size", 0, "batch-size=0: wanted greater than 0"),
    ("learning-rate", True, "learning-rate=True: wanted a valid number"),
    ("learning-rate", "0.1", "learning-rate='0.1': wanted a valid number"),
    ("learning-rate", 0.0, "learning-rate=0.0: wanted greater than 0"),
    ("learning-rate", float("nan"), "learning-rate=nan: wanted a finite number"),
    ("client-timeout", float("inf"), "client-timeout=inf: wanted a finite number"),
    ("momentum", 1.0, "momentum=1.0: wanted less than 1"),
    ("fraction-train", 1.5, "fraction-train=1.5: wanted less than or equal to 1"),
    ("seed", -1, "seed=-1: wanted greater than or equal to 0"),
    ("owner-share", 1.5, "owner-share=1.5: wanted less than or equal to 1"),
    ("owner-share", -0.1, "owner-share=-0.1: wanted greater than or equal to 0"),
    ("class-table", 3, "class-table=3: wanted a valid string"),
    (
        "partitioner",
        "class-table.toml",
        "partitioner='class-table.toml': wanted 'auto', 'iid', 'dirichlet', 'pathological', 'noniid-1', 'noniid-2', "
        "'class-groups', 'class-owners', 'class-table', 'natural', 'files' or an import path 'package.module:Object'",
    ),
    ("sequence-length", 0, "sequence-length=0: wanted greater than 0"),
    ("min-characters", -1, "min-characters=-1: wanted greater than or equal to 0"),
    ("augment", 1, "augment=1: wanted a valid boolean"),
    ("augment", "true", "augment='true': wanted a valid boolean"),
    ("results-dir", 3, "results-dir=3: wanted a valid string"),
    ("dataset", "", "dataset='': wanted at least 1 character"),
    ("precision", "fp16", "precision='fp16': wanted 'fp32' or 'bf16'"),
    (
        "model",
        "resnet",
        "model='resnet': wanted 'auto', 'digits-cnn', 'cnn', 'lenet', 'lenet-bn', 'transfer-cnn', 'vit', "
        "'char-transformer', 'mlp', 'cnn1d', 'gru', "
        "'series-transformer', 'fasttext', 'text-transformer', 'hub', 'torchvision:<name>' "
        "or an import path 'package.module:Object'",
    ),
    ("novel-clients", -1, "novel-clients=-1: wanted greater than or equal to 0"),
    ("novel-steps", 0, "novel-steps=0: wanted greater than 0"),
    ("novel-turns", 0, "novel-turns=0: wanted greater than 0"),
    ("fedtp.personal", "none", "fedtp.personal='none': wanted 'generated' or 'vanilla'"),
    ("fedtp.head", "both", "fedtp.head='both': wanted 'shared', 'fedper' or 'fedrod'"),
    ("fedtp.rank", -1, "fedtp.rank=-1: wanted greater than or equal to 0"),
    ("fedtp.momentum", 1.0, "fedtp.momentum=1.0: wanted less than 1"),
    ("fedtp.knn-share", 1.5, "fedtp.knn-share=1.5: wanted less than or equal to 1"),
    ("fedtp.knn-neighbours", 0, "fedtp.knn-neighbours=0: wanted greater than 0"),
    ("vit.heads", 0, "vit.heads=0: wanted greater than 0"),
    ("char-transformer.dropout", 1.0, "char-transformer.dropout=1.0: wanted less than 1"),
    ("char-transformer.positions", "none", "char-transformer.positions='none': wanted 'learned' or 'sinusoidal'"),
    ("fedprox.mu", -0.5, "fedprox.mu=-0.5: wanted greater than or equal to 0"),
    ("fedprox.mu", True, "fedprox.mu=True: wanted a valid number"),
    ("fedper.personal-layers", 1.0, "fedper.personal-layers=1.0: wanted a valid integer"),
    ("fedper.personal-layers", -1, "fedper.personal-layers=-1: wanted greater than or equal to 0"),
]


@pytest.mark.parametrize(("key", "value", "sentence"), WRONG)
def test_a_wrong_value_is_named_with_what_was_wanted(key: str, value: Value, sentence: str) -> None:
    assert complaint({key: value}) == f"settings: {sentence}"


def test_a_bad_choice_names_every_choice() -> None:
    text = complaint({"strategy": "fedavgg"})
    assert all(f"'{method}'" in text for method in methods())


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("lerning-rate", "learning-rate"),
        ("learning_rate", "learning-rate"),
        ("num_server_rounds", "num-server-rounds"),
        ("fedprox.nu", "fedprox.mu"),
        ("fedper.personal_layers", "fedper.personal-layers"),
        ("fedprox", "fedprox.mu"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(key: str, nearest: str) -> None:
    assert complaint({key: 1}) == f"settings: there is no key {key} (given 1): did you mean {nearest}?"


def test_a_key_like_no_other_is_answered_with_the_list_of_keys() -> None:
    text = complaint({"qqqq": 1})
    assert text.startswith("settings: there is no key qqqq (given 1): the keys are strategy, task, dataset, ")
    assert all(key in text for key in defaults())


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (0.9, 0.2)])
def test_fractions_that_leave_no_training_data_are_refused(validation: float, test: float) -> None:
    text = complaint({"validation-fraction": validation, "test-fraction": test})
    assert text == (
        f"settings: validation-fraction={validation} and test-fraction={test} leave nothing to train on: "
        "their sum must be below 1"
    )


def test_the_natural_partitioner_needs_a_client_column() -> None:
    assert 'partitioner="natural" needs client-column' in complaint({"partitioner": "natural"})
    assert parse({"partitioner": "natural", "client-column": "writer"}).client_column == "writer"


# ---- many faults, and what is not one --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["learning-rate", "weight-decay", "fedprox.mu", "pfedla.self-bias", "fedtransfer.learning-rate"]
)
def test_a_number_that_no_tensor_can_hold_is_refused(key: str) -> None:
    assert f"{key}=1e+39: wanted at most 3.4e38 in size, what a 32-bit float can hold" in complaint({key: 1e39})
    assert "batch-size=0" in complaint({key: -1e39, "batch-size": 0})
    parse({key: 1e38})


def test_every_fault_is_reported_at_once() -> None:
    faulty = {key: value for key, value, _ in WRONG}  # the last fault of each key
    sentences = {key: sentence for key, _, sentence in WRONG}
    text = complaint(faulty | {"bach-size": 1, "learning_rate": 1, "alpha": 1.0})
    assert all(sentence in text for sentence in sentences.values())
    assert "there is no key bach-size (given 1): did you mean batch-size?" in text
    assert "there is no key learning_rate (given 1): did you mean learning-rate?" in text
    assert "alpha" not in text
    assert text.count("; ") == len(sentences) + 2 - 1


def test_faults_of_several_settings_together_are_reported_with_the_others() -> None:
    text = complaint({"validation-fraction": 0.9, "test-fraction": 0.9, "partitioner": "natural", "sed": 1})
    assert "there is no key sed (given 1): did you mean seed?" in text
    assert "leave nothing to train on" in text
    assert "needs client-column" in text
    text = complaint({"batch-size": 0, "partitioner": "natural"})
    assert "batch-size=0: wanted greater than 0" in text
    assert "needs client-column" in text


def test_a_whole_number_will_do_for_a_float() -> None:
    settings = parse({"learning-rate": 1, "fedprox.mu": 2})
    assert (settings.learning_rate, settings.section("fedprox").mu) == (1.0, 2.0)
    assert isinstance(settings.learning_rate, float)
    assert isinstance(settings.section("fedprox").mu, float)


@pytest.mark.parametrize("order", [(1, True, 1.0), (True, 1, 1.0), (1.0, True, 1)])
def test_values_that_are_equal_but_of_other_types_are_not_confused(order: tuple[Value, ...]) -> None:
    for value in order:  # parse remembers its last answers, and 1 == True == 1.0
        if type(value) is int:
            assert parse({"batch-size": value}).batch_size == 1
        else:
            assert complaint({"batch-size": value}) == f"settings: batch-size={value}: wanted a valid integer"


def test_the_order_of_the_keys_does_not_matter() -> None:
    raw: dict[str, Value] = {"seed": 3, "batch-size": 4, "augment": True}
    assert parse(raw) == parse(dict(reversed(raw.items())))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "strategy": st.sampled_from(methods()),
            "dataset": st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
            "alpha": st.floats(0, 3e38, exclude_min=True),
            "batch-size": st.integers(1, 2**40),
            "augment": st.booleans(),
            "momentum": st.floats(0, 1, exclude_max=True),
            "seed": st.integers(0, 2**63),
            "fedprox.mu": st.floats(0, 1e9) | st.integers(0, 10),
            "fedper.personal-layers": st.integers(0, 9),
        },
    )
)
def test_flatten_and_parse_are_inverse(raw: dict[str, Value]) -> None:
    settings = parse(raw)
    flat = flatten(settings)
    assert parse(flat) == settings
    assert flat == dict(defaults()) | raw
    assert {key: type(value) for key, value in flat.items()} == {key: type(v) for key, v in defaults().items()}
