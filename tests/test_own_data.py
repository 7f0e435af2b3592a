"""Data of a user's own by a function: each form that it may return, and a sentence for what is no data."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from fedham_flwr import simulate
from fedham_flwr.core.errors import UserError
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.data.own import open_own
from fedham_flwr.data.own_partitions import deal_by_function
from fedham_flwr.settings import parse

Open = Callable[..., ClientData]
X, Y = torch.arange(24.0).reshape(8, 3), torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
NUMBER = itertools.count()


@pytest.fixture
def module() -> Iterator[ModuleType]:
    made = ModuleType(f"brought_{next(NUMBER)}")
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


@pytest.fixture
def opened(module: ModuleType) -> Open:
    """What the loader gives: opened(a function, or what one returns, settings)."""

    def make(loaded: Any, settings: dict[str, Any] | None = None, path: str = "", client: int = 0) -> ClientData:
        setattr(module, "load", loaded if callable(loaded) else lambda: loaded)  # noqa: B010
        data = parse({"dataset": f"{module.__name__}:load", **(settings or {})}).data()
        return open_own(data, client, 3, path)

    return make


def rows(data: ClientData, which: str) -> list[list[float]]:
    return data.features[data.splits[which]].tolist()


def test_a_mapping_keeps_its_splits(opened: Open) -> None:
    data = opened({"test": (X[6:], Y[6:]), "train": (X[:4], Y[:4]), "validation": (X[4:6], Y[4:6])})
    assert {which: rows(data, which) for which in data.splits} == {
        "train": X[:4].tolist(),
        "validation": X[4:6].tolist(),
        "test": X[6:].tolist(),
    }
    assert (data.kind, data.shape, data.target, data.outputs) == ("array", (3,), "class", 2)
    assert data.labels.tolist() == [*Y[:4].tolist(), *Y[4:6].tolist(), *Y[6:].tolist()]


def test_validation_may_be_missing(opened: Open) -> None:
    assert opened({"train": (X[:4], Y[:4]), "test": (X[4:], Y[4:])}).counts() == {
        "train": 4,
        "validation": 0,
        "test": 4,
    }


def test_a_pair_is_split_with_the_same_classes_in_each(opened: Open) -> None:
    data = opened((np.repeat(X.numpy(), 5, 0), np.repeat(Y.numpy(), 5)), {"test-fraction": 0.5})
    assert data.counts() == {"train": 16, "validation": 4, "test": 20}
    assert [data.label_counts(which) for which in data.splits] == [[8, 8], [2, 2], [10, 10]]
    together = torch.cat(list(data.splits.values())).sort().values
    assert together.tolist() == list(range(40))


def test_the_function_gets_what_it_names(opened: Open) -> None:
    found = []

    def load(client: int, clients: int, seed: int, data_path: str, scale: float = 2.0) -> Any:
        found.append((client, clients, seed, data_path, scale))
        return X * scale, Y

    data = opened(load, {"seed": 7, "load.scale": 0.5}, path="/data/ward-3/", client=1)
    assert found == [(1, 3, 7, "/data/ward-3/", 0.5)]
    assert data.name == "ward-3"
    assert data.features.max() == 11.5


def test_a_client_is_loaded_once_in_a_process(opened: Open) -> None:
    found = []

    def load(client: int) -> Any:
        found.append(client)
        return X, Y

    for client in (0, 1, 0, 1):
        opened(load, client=client)
    assert found == [0, 1]


@pytest.mark.parametrize(
    ("targets", "target", "outputs", "dtype"),
    [
        (np.arange(8, dtype=np.int32), "class", 8, torch.int64),
        (list("abababab"), "class", 2, torch.int64),
        (np.array(list("abababab")), "class", 2, torch.int64),
        ([0, 1] * 4, "class", 2, torch.int64),
        (torch.rand(8).double(), "value", 1, torch.float32),
        (torch.rand(8, 3), "value", 3, torch.float32),
        (torch.ones(8, 3, dtype=torch.bool), "multi-label", 3, torch.uint8),
        (torch.ones(8, 3, dtype=torch.int64), "multi-label", 3, torch.uint8),
        (torch.ones(8, 1, dtype=torch.uint8), "multi-label", 1, torch.uint8),
    ],
)
def test_targets_say_what_is_learned(opened: Open, targets: Any, target: str, outputs: int, dtype: torch.dtype) -> None:
    data = opened({"train": (X, targets), "test": (X, targets)})
    assert (data.target, data.outputs, data.labels.dtype) == (target, outputs, dtype)


def test_classes_that_are_texts_have_numbers_by_their_order_or_as_named(opened: Open) -> None:
    parts = {"train": (X[:2], ["sick", "well"]), "test": (X[:1], ["sick"])}
    data = opened(parts)
    assert (data.classes, data.labels.tolist()) == (("sick", "well"), [0, 1, 0])
    data = opened({**parts, "classes": ["well", "sick", "dead"]}, {"seed": 1})
    assert (data.classes, data.labels.tolist(), data.outputs) == (("well", "sick", "dead"), [1, 0, 1], 3)
    data = opened({"train": (X, Y), "test": (X, Y), "classes": ["a", "b", "c"]}, {"seed": 2})
    assert (data.classes, data.outputs) == (("a", "b", "c"), 3)


def net(shape: tuple[int, ...], outputs: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(*shape, 4), torch.nn.ReLU(), torch.nn.Linear(4, outputs))


@pytest.mark.parametrize("method", ["fedrod", "pfedfda"])
def test_a_client_that_lacks_the_last_class_takes_part(method: str, tmp_path: Path) -> None:
    def load(client: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(24, 3, generator=torch.Generator().manual_seed(client)), torch.arange(24) % (2 + client)

    run = simulate(method, dataset=load, model=net, clients=2, num_server_rounds=1, results_dir=tmp_path, verbose=False)
    assert not run.summary["failures"]


def test_images_are_bytes_and_floats_are_arrays_of_any_shape(opened: Open) -> None:
    data = opened((np.zeros((8, 6, 5, 3), np.uint8), Y))
    assert (data.kind, data.shape) == ("image", (3, 6, 5))
    data = opened((np.zeros((8, 2, 3, 4, 5), np.float16), Y), {"seed": 1})
    assert (data.kind, data.shape, data.features.dtype) == ("array", (2, 3, 4, 5), torch.float32)


# ---- data sets of Hugging Face ---------------------------------------------------------------------------------------


def test_a_data_set_stands_for_a_pair_and_several_for_a_mapping(opened: Open) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

    features = Features({"x": List(Value("float32")), "y": ClassLabel(names=["no", "yes", "maybe"])})
    data = Dataset.from_dict({"x": X.tolist(), "y": Y.tolist()}, features)
    columns = {"feature-column": "x", "label-column": "y"}
    one = opened(data, columns)
    assert sum(one.counts().values()) == 8
    assert (one.classes, one.kind) == (("no", "yes", "maybe"), "array")
    several = opened(DatasetDict(train=data, test=data), {**columns, "seed": 1})
    assert several.counts() == {"train": 8, "validation": 0, "test": 8}
    assert several.classes == ("no", "yes", "maybe")
    with pytest.raises(UserError, match=r"the data set has the columns x, y, wanted inputs and targets$"):
        opened(data)
    with pytest.raises(UserError, match=r"the data set has the columns x, y, wanted x and z$"):
        opened(data, {"feature-column": "x", "label-column": "z"})
    ragged = Dataset.from_dict({"inputs": [[1.0], [1.0, 2.0]], "targets": [0, 1]})
    with pytest.raises(UserError, match=r"column inputs: .*wanted samples of one shape$"):
        opened(ragged, {"seed": 2})


def test_grey_images_of_a_data_set_have_one_channel(opened: Open) -> None:
    from datasets import Dataset, Features, Image, Value

    images = [np.full((5, 4), number, np.uint8) for number in range(8)]
    data = Dataset.from_dict(
        {"image": images, "label": Y.tolist()}, Features({"image": Image(), "label": Value("int64")})
    )
    found = opened(data)
    assert (found.kind, found.shape) == ("image", (1, 5, 4))
    assert found.features[:, 0, 0, 0].tolist() == list(range(8))


# ---- what is no data -------------------------------------------------------------------------------------------------

GOOD = (X, Y)
FAULTS: list[tuple[Any, str]] = [
    (None, "all is NoneType, and wanted is a pair (inputs, targets)"),
    ((X, Y, Y), "all is tuple, and wanted is a pair"),
    ({"train": GOOD}, "client 0 has the splits train, and lacks test"),
    ({"train": GOOD, "test": GOOD, "dev": GOOD}, "'dev' is no split; wanted train, validation, test"),
    ({"train": GOOD, "test": X}, "test is Tensor, and wanted is a pair"),
    ((X, Y[:3]), "all has 8 inputs and 3 targets, wanted as many of both"),
    ((X[:0], Y[:0]), "all has no samples"),
    ({"train": (X[:0], Y[:0]), "test": GOOD}, "train has no samples"),
    ((X / 0, Y), "the inputs of all hold NaN or infinity, wanted numbers"),
    ((X.long(), Y), "the inputs of all are torch.int64 [8, 3], and wanted are floats of any shape"),
    ((X[:, 0], Y), "the inputs of all have the shape [8], wanted [n, ...]"),
    ((["a"] * 8, Y), "the inputs of all are no numbers ("),
    ({"train": GOOD, "test": (X[:, :2], Y)}, "samples differ in shape: train (3,), test (2,)"),
    ((X, Y - 1), "a class in all is -1, wanted whole numbers from 0"),
    ((X, Y / 0), "the targets of all hold NaN or infinity, wanted numbers"),
    ((X, Y[:, None]), "the targets of all are torch.int64 [8, 1], and wanted are classes [n], or bool or uint8 [n, k]"),
    ((X, Y[:, None] + torch.ones(1, 2).long()), "[8, 2] with other numbers than 0 and 1, which labels are"),
    ((X, torch.zeros(8, 2, 2)), "the targets of all are torch.float32 [8, 2, 2], and wanted are whole numbers or"),
    ({"train": GOOD, "test": (X, Y.float())}, "targets differ in type: train torch.int64, test torch.float32"),
    ({"train": GOOD, "test": (X, ["a"] * 8)}, "targets differ in type: train torch.int64, test texts"),
    ({"train": (X, torch.rand(8, 2)), "test": (X, torch.rand(8, 3))}, "targets differ in shape: train [2], test [3]"),
    ({"train": GOOD, "test": GOOD, "classes": ["a"]}, "a class is 1, and classes names 1, from 0"),
    ({"train": (X, ["a"] * 8), "test": (X, ["b"] * 8), "classes": ["a"]}, "'b' is no class; classes names a"),
]


@pytest.mark.parametrize(("loaded", "sentence"), FAULTS)
def test_what_is_no_data_is_a_sentence(opened: Open, module: ModuleType, loaded: Any, sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        opened(loaded)
    assert str(raised.value).startswith(f'dataset="{module.__name__}:load"')
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_loader_that_raises_or_wants_more_is_a_sentence(opened: Open) -> None:
    def fail(client: int) -> Any:
        raise OSError(f"no disk {client}\nof two lines")

    with pytest.raises(UserError, match=r':load" failed for client 2: OSError: no disk 2 \(test_own_data.py, line \d'):
        opened(fail, client=2)
    with pytest.raises(UserError, match=r"^dataset: <lambda> wants colour, which it is not called with; wanted a sig"):
        opened(lambda colour: colour, {"seed": 1})
    with pytest.raises(UserError, match=r"^image-size=8 resizes images when they are decoded, and dataset="):
        opened(GOOD, {"image-size": 8})


# ---- partitioners ----------------------------------------------------------------------------------------------------

LABELS = np.arange(60) % 3


@pytest.mark.parametrize("name", ["IidPartitioner", "DirichletPartitioner", "PathologicalPartitioner"])
def test_flowers_partitioners_deal(name: str, cache_dir: Path) -> None:
    path = f"flwr_datasets.partitioner:{name}"
    own = parse({"partitioner": path}).data().partitioning.own
    parts = deal_by_function(path, own, LABELS, 3, 5, alpha=100.0, num_classes_per_partition=2)
    assert sorted(np.concatenate(parts).tolist()) == list(range(60))
    if name == "PathologicalPartitioner":
        assert [len(set(LABELS[part])) for part in parts] == [2, 2, 2]


@pytest.mark.parametrize(
    ("dealt", "sentence"),
    [
        (lambda labels: [[0, 1], [2, 3]], "gives 2, 2 samples, and wanted are 3 lists of at least 2 numbers"),
        (lambda labels: [[0, 1], [2, 3], [4]], "gives 2, 2, 1 samples, and wanted are 3 lists"),
        (lambda labels: [], "gives no samples, and wanted are 3 lists"),
        (lambda labels: [[0, 1], [1, 2], [3, 4]], "wanted numbers from 0 to 59, each of them at most once"),
        (lambda labels: [[0, 1], [2, 3], [4, 60]], "wanted numbers from 0 to 59, each of them at most once"),
        (lambda labels: [[0, 1], [2, 3], [-1, 5]], "wanted numbers from 0 to 59, each of them at most once"),
        (lambda labels: [["a"], [2, 3], [-1, 5]], "failed: ValueError: invalid literal for int()"),
        (lambda labels: 1 / 0, "failed: ZeroDivisionError: division by zero"),
        (lambda owners: [], "partitioner: <lambda> wants owners, which it is not called with"),
    ],
)
def test_what_deals_nothing_is_a_sentence(module: ModuleType, dealt: Any, sentence: str) -> None:
    setattr(module, "deal", dealt)  # noqa: B010
    with pytest.raises(UserError) as raised:
        deal_by_function(f"{module.__name__}:deal", None, LABELS, 3, 0)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_data_folder_is_named_once(federate: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path / "nowhere")):
        federate(dataset=str(tmp_path / "nowhere"))


def test_an_impossible_split_says_what_would_be_possible(federate: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="classes-per-client"):
        federate(classes_per_client=11)
