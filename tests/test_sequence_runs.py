"""Whole federations of clients that have time series, or texts with labels: every method, and what they learn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Outcome
from presets import predictor_of

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.clients import open_partition
from fedham_flwr.data.kinds.words import split_words
from fedham_flwr.models import export
from fedham_flwr.run_settings import Settings
from fedham_flwr.settings import Value, methods, parse
from fedham_flwr.training.trainer import Trainer

Federate = Callable[..., Outcome]
STEPS, KINDS = 16, ("sit", "walk", "run")
TOPICS = {"sport": "goal match team", "money": "bank stock trade", "tech": "chip code robot"}
NEEDS: dict[str, dict[str, Value]] = {
    "fedtp": {"model": "series-transformer"},
    "lora": {"model": "series-transformer"},
    "pfedla": {"pfedla.hidden-dim": 8, "pfedla.embedding-dim": 8},
    "fedtransfer": {"fedtransfer.personal-epochs": 1},
    "fedrep": {"fedrep.head-epochs": 1},
}
"""What a method needs for series. FedTP: self-attention."""
NEEDS_OF_TEXT: dict[str, dict[str, Value]] = NEEDS | {
    "fedtp": {"model": "text-transformer"},
    "lora": {"model": "text-transformer"},
    "fedtransfer": {"fedtransfer.frozen": "words", "fedtransfer.personal-epochs": 1},
}
"""What a method needs for texts with labels. FedTransfer: layers to freeze, where there are no convolutions."""


@pytest.fixture(scope="module")
def sensor(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Windows of three kinds of movement, of any phase: their mean and every step's are the same for all kinds."""
    import datasets

    rng = np.random.default_rng(0)
    label, site = np.arange(240) % 3, np.arange(240) // 3 % 2
    phase = rng.uniform(0, 2 * np.pi, (240, 1))
    angle = 2 * np.pi * (1 + label[:, None]) * np.arange(STEPS) / STEPS + phase
    x = np.stack([np.sin(angle), 3 + (1 + site[:, None]) * np.cos(angle)], axis=2) + rng.normal(0, 0.1, (240, STEPS, 2))
    x[rng.random(x.shape) < 0.05] = np.nan
    rows = datasets.Dataset.from_dict({"x": x.astype(np.float32), "label": label, "site": site})
    path = tmp_path_factory.mktemp("sensor") / "rows.parquet"
    rows.cast_column("label", datasets.ClassLabel(names=list(KINDS))).to_parquet(path)
    return str(path)


@pytest.fixture(scope="module")
def news(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve words of no meaning and two of a topic, at any place."""
    import datasets

    rng = np.random.default_rng(0)
    rows: dict[str, list[str]] = {"text": [], "topic": [], "site": []}
    for number in range(360):
        topic = [*TOPICS][number % 3]
        said = [f"w{i}" for i in rng.integers(0, 100, 8)]
        for word in rng.choice(TOPICS[topic].split(), 2):
            said.insert(int(rng.integers(0, len(said) + 1)), str(word))
        for name, value in zip(rows, (" ".join(said), topic, f"s{number // 3 % 2}"), strict=True):
            rows[name].append(value)
    path = tmp_path_factory.mktemp("news") / "rows.parquet"
    names = datasets.ClassLabel(names=[*TOPICS])
    datasets.Dataset.from_dict(rows).cast_column("topic", names).to_parquet(path)
    return str(path)


def of_series(path: str, **more: Value) -> dict[str, Value]:
    small: dict[str, Value] = {"cnn1d.width": 8, "cnn1d.depth": 2, "gru.width": 8, "series-transformer.width": 16}
    given: dict[str, Value] = {"dataset": path, "partitioner": "natural", "client-column": "site", "batch-size": 8}
    return given | small | {"num-server-rounds": 1, "local-steps": 2, "series-transformer.depth": 1} | more


def of_news(path: str, **more: Value) -> dict[str, Value]:
    given = of_series(path) | {"label-column": "topic", "sequence-length": 12, "text.buckets": 500}
    return given | {"fasttext.pairs": 50, "text-transformer.width": 16, "text-transformer.depth": 1} | more


def accuracy(run: Outcome, phase: str = "before") -> float:
    last = max(row.round for row in run.rows)
    found = [
        row for row in run.rows if (row.round, row.split, row.phase, row.metric) == (last, "test", phase, "accuracy")
    ]
    return sum(row.value * row.n for row in found) / sum(row.n for row in found)


# ---- every method ----------------------------------------------------------------------------------------------------


def some_fast(*fast: str) -> list[object]:
    """All methods, of which some are tried with every change."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in methods()]


def repeated(run: Outcome, chosen: Settings) -> list[bool]:
    """For each client, whether the model in its file predicts its test samples as the run says."""
    found = []
    for number in range(2):
        data = open_partition(chosen.data(), number, 2)
        (file,) = [path for path in (run.path / "model").glob("*.safetensors") if path.stem in (data.name, str(number))]
        trainer = Trainer(export.load(file), torch.device("cpu"), "fp32")
        scores = trainer.evaluate(data, "test", predictor_of(chosen, file.stem, trainer, data))
        last = max(row.round for row in run.rows)
        mine = [row for row in run.rows if (row.round, row.client, row.split) == (last, file.stem, "test")]
        told = [row.value for row in mine if row.metric == "accuracy"]
        found.append(any(scores.values["accuracy"] == pytest.approx(value, abs=1e-6) for value in told))
    return found


@pytest.mark.parametrize("strategy", some_fast("fedper", "fedtp", "fedtransfer"))
def test_every_method_trains_on_series(
    federate: Federate, settings: Callable[..., dict[str, Value]], sensor: str, strategy: str
) -> None:
    given = of_series(sensor, **NEEDS.get(strategy, {}), strategy=strategy)
    run = federate(clients=2, **given)
    assert run.summary["failures"] == 0
    assert repeated(run, parse(settings(**given))) == [True, True]


@pytest.mark.parametrize("strategy", some_fast("fedtp", "fedtransfer", "pfedla"))
def test_every_method_trains_on_texts_with_labels(
    federate: Federate, settings: Callable[..., dict[str, Value]], news: str, strategy: str
) -> None:
    given = of_news(news, **NEEDS_OF_TEXT.get(strategy, {}), strategy=strategy)
    run = federate(clients=2, **given)
    assert run.summary["failures"] == 0
    assert repeated(run, parse(settings(**given))) == [True, True]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strategy": "fedtp"}, r'model="auto" has none: .*"series-transformer" for series'),
        (
            {"strategy": "fedtransfer", "model": "gru"},
            r'fedtransfer\.frozen="auto" freezes convolutions, and this model has',
        ),
        ({"augment": True}, r"it shifts and mirrors images, and the data set is series; set it false"),
        ({"model": "cnn"}, r'model="cnn" is for images, and the data set is series of 2 channels and 16 steps'),
    ],
)
def test_what_series_have_no_use_for(federate: Federate, sensor: str, given: dict[str, Value], message: str) -> None:
    with pytest.raises(UserError, match=message):
        federate(clients=2, **of_series(sensor, **given))


# ---- what is learned -------------------------------------------------------------------------------------------------

ADAM: dict[str, Value] = {
    "optimizer": "adam", "learning-rate": 0.02, "local-steps": 20, "num-server-rounds": 5, "strategy": "fedavg",
    "evaluate-every": 99,
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "low", "high"),
    [
        ({"model": "cnn1d"}, 0.9, 1.0),
        pytest.param({"model": "gru", "gru.width": 16}, 0.9, 1.0, marks=pytest.mark.slow),
        ({"model": "mlp", "mlp.depth": 0}, 0.1, 0.6),
    ],
    ids=["cnn1d", "gru", "linear"],
)
def test_networks_learn_movements_that_a_linear_one_cannot(
    federate: Federate, sensor: str, given: dict[str, Value], low: float, high: float
) -> None:
    assert low < accuracy(federate(clients=2, **of_series(sensor, **ADAM | given))) <= high


@pytest.mark.parametrize("model", ["fasttext", pytest.param("text-transformer", marks=pytest.mark.slow)])
def test_networks_learn_the_topic_of_a_text(federate: Federate, news: str, model: str) -> None:
    assert accuracy(federate(clients=2, **of_news(news, **ADAM | {"model": model}))) > 0.9


@pytest.mark.parametrize(
    "model", ["cnn1d", *[pytest.param(m, marks=pytest.mark.slow) for m in ("gru", "series-transformer")]]
)
def test_a_run_on_series_goes_on_where_it_was(federate: Federate, sensor: str, model: str) -> None:
    given: dict[str, Value] = {"model": model, "strategy": "fedper", "checkpoint-every": 1}
    whole = federate(clients=2, **of_series(sensor, **given | {"num-server-rounds": 2}))
    half = federate(clients=2, **of_series(sensor, **given))
    again = federate(clients=2, **of_series(sensor, **given | {"num-server-rounds": 2, "resume": str(half.path)}))
    assert again.summary["digest"] == whole.summary["digest"]


@pytest.mark.parametrize("model", ["fasttext", pytest.param("text-transformer", marks=pytest.mark.slow)])
def test_a_run_on_texts_goes_on_where_it_was(federate: Federate, news: str, model: str) -> None:
    given: dict[str, Value] = {"model": model, "strategy": "fedper", "checkpoint-every": 1}
    whole = federate(clients=2, **of_news(news, **given | {"num-server-rounds": 2}))
    half = federate(clients=2, **of_news(news, **given))
    again = federate(clients=2, **of_news(news, **given | {"num-server-rounds": 2, "resume": str(half.path)}))
    assert again.summary["digest"] == whole.summary["digest"]


@pytest.mark.slow
def test_the_next_word_of_shakespeares_characters(federate: Federate, shared_data: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    source = shared_data / "shakespeare"
    said = " ".join(pq.read_table(source / "train.parquet").column("text").to_pylist())
    counts = Counter(split_words(said))
    (tmp_path / "words.txt").write_text("\n".join(word for word, _ in counts.most_common(1000)))
    given: dict[str, Value] = {
        "dataset": str(source), "partitioner": "natural", "client-column": "client_id", "sequence-length": 20,
        "text.tokenizer": str(tmp_path / "words.txt"), "min-characters": 2000, "metrics": "perplexity",
        "char-transformer.width": 64, "char-transformer.depth": 1, "optimizer": "adam", "learning-rate": 0.003,
        "strategy": "fedavg", "num-server-rounds": 6, "batch-size": 16, "evaluate-every": 99,
    }  # fmt: skip
    run = federate(clients=6, **given)
    last = [row for row in run.rows if row.round == 7 and row.split == "test" and row.phase == "before"]
    found = [row for row in last if row.metric == "perplexity"]
    unigram = []
    for number in range(6):
        data = open_partition(parse(given | {"cache-dir": ""}).data(), number, 6)
        train, test = (data.features[data.splits[which]][:, 1:].flatten().long() for which in ("train", "test"))
        frequency = torch.bincount(train, minlength=data.outputs) + 1.0
        unigram.append(math.exp(-(frequency / frequency.sum()).log()[test].mean().item()))
    assert len(found) == 6
    assert sum(row.value for row in found) / 6 < sum(unigram) / 6
