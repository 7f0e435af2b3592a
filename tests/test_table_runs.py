"""Whole federations of clients that have tables, and the models that they leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Outcome
from presets import FASTER, predictor_of, used_phase

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.clients import open_partition
from fedham_flwr.data.kinds import table as tables
from fedham_flwr.models import export
from fedham_flwr.settings import Value, methods, parse
from fedham_flwr.training.trainer import Trainer

Federate = Callable[..., Outcome]
HEART = "age sex cp trestbps chol fbs restecg thalach exang oldpeak slope ca thal"
FROZEN: dict[str, dict[str, Value]] = {"fedtransfer": {"fedtransfer.frozen": "fc1"}}


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three hospitals of 48 patients; who is ill has more of a, and a marker of which one hospital knows nothing."""
    import datasets

    rng = np.random.default_rng(0)
    label, site = np.arange(144) % 2, np.arange(144) % 3
    marker = np.where(site == 2, np.nan, label + 0.3 * rng.standard_normal(144))
    columns = {
        "a": (4 * label + rng.standard_normal(144)).astype(np.float32),
        "marker": marker,
        "sex": rng.integers(0, 2, 144),
        "site": site,
        "ill": label,
    }
    path = tmp_path_factory.mktemp("hospitals") / "rows.parquet"
    table = datasets.Dataset.from_dict(columns).cast_column("sex", datasets.ClassLabel(names=["f", "m"]))
    table.cast_column("ill", datasets.ClassLabel(names=["no", "yes"])).to_parquet(path)
    return str(path)


@pytest.fixture
def small(hospitals: str) -> dict[str, Value]:
    return {
        "dataset": hospitals, "feature-column": "a marker sex", "partitioner": "natural", "client-column": "site",
        "mlp.width": 16, "num-server-rounds": 4, "batch-size": 4, "learning-rate": 0.1, "pfedla.hidden-dim": 8,
        "pfedla.embedding-dim": 8,
    }  # fmt: skip


@pytest.mark.parametrize("strategy", [name for name in methods() if name != "fedtp"])
def test_every_method_learns_from_tables_and_its_models_take_raw_rows(
    federate: Federate, settings: Callable[..., dict[str, Value]], small: dict[str, Value], strategy: str
) -> None:
    import pandas as pd

    given = {**small, **FROZEN.get(strategy, {}), **FASTER.get(strategy, {}), "strategy": strategy}
    run = federate(clients=3, **given)
    assert run.summary["failures"] == 0
    raw, chosen = pd.read_parquet(str(small["dataset"])), parse(settings(**given))
    for number in range(3):
        data = open_partition(chosen.data(), number, 3)
        file, test = run.path / "model" / f"{data.name}.safetensors", data.splits["test"].tolist()
        x = tables.read_scaling(file).inputs(raw.iloc[test])
        model = export.load(file)
        predict = predictor_of(chosen, data.name, Trainer(model, torch.device("cpu"), "fp32"), data)
        hits = predict(model, x).argmax(1) == torch.from_numpy(raw["ill"].to_numpy()[test])
        last = [row for row in run.rows if row[1] == data.name and row[0] == 5 and row[2] == "test"]
        (row,) = [r for r in last if (r.metric, r.phase) == ("accuracy", used_phase(strategy))]
        assert hits.float().mean().item() == pytest.approx(row.value)
        assert row.value >= 0.75


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strategy": "fedtp"}, r'strategy="fedtp" personalises self-attention, and model="auto" has none'),
        ({"strategy": "fedavg", "model": "cnn"}, r'model="cnn" is for images, and the data set is a table of 4'),
        ({"strategy": "fedavg", "augment": True}, r"it shifts and mirrors images, and the data set is a table; set it"),
        ({"strategy": "fedtransfer"}, r'fedtransfer\.frozen="auto" freezes convolutions, and this model has none'),
        ({"strategy": "fedtransfer", "fedtransfer.attention": "adapter"}, r'"adapter" is grafted .* model="mlp"'),
    ],
)  # fmt: skip
def test_what_a_table_has_no_use_for(
    federate: Federate, small: dict[str, Value], given: dict[str, Value], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        federate(clients=3, **(small | given))


def test_four_hospitals_predict_heart_disease_better_than_the_larger_class_does(
    federate: Federate, shared_data: Path
) -> None:
    run = federate(
        clients=4, dataset=str(shared_data / "heart_disease"), feature_column=HEART, partitioner="natural",
        client_column="center", strategy="fedper", num_server_rounds=8,
    )  # fmt: skip
    clients = json.loads((run.path / "clients.json").read_text())
    assert {client["name"]: client["test"] for client in clients} == {
        "cleveland": 84, "hungarian": 68, "va": 42, "switzerland": 36,
    }  # fmt: skip
    # The larger class of each hospital's patients: 164 of 303 absent, 188 of 294, then 149 of 200 present, 115 of 123.
    chance = (84 * 164 / 303 + 68 * 188 / 294 + 42 * 149 / 200 + 36 * 115 / 123) / 230
    last = [r for r in run.rows if r[0] == 9 and r[2:6] == ("test", "personal", "before", "accuracy")]
    assert len(last) == 4
    assert chance == pytest.approx(0.669, abs=0.003)
    assert sum(row.value * row.n for row in last) / 230 > chance + 0.1
    cleveland = next(row.value for row in last if row.client == "cleveland")
    assert cleveland > 0.7
