"""FedAvg: the mean against a naive loop, and whole rounds against FedAvg written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedham_flwr import models
from fedham_flwr.algorithms import fedavg
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.core.trees import weighted_mean
from fedham_flwr.data.clients import open_partition
from fedham_flwr.settings import Value, parse
from fedham_flwr.training.trainer import Trainer


def test_aggregate_by_hand() -> None:
    models_ = [{"w": torch.tensor([0.0, 3.0])}, {"w": torch.tensor([6.0, 0.0])}]
    assert torch.equal(fedavg.aggregate(models_, [10, 5])["w"], torch.tensor([(0 * 10 + 6 * 5) / 15, 3 * 10 / 15]))


@given(st.lists(st.tuples(st.integers(1, 999), st.integers(-50, 50)), min_size=1, max_size=7))
def test_aggregate_against_a_naive_loop(clients: list[tuple[int, int]]) -> None:
    mean = fedavg.aggregate([{"w": torch.tensor([float(v)])} for _, v in clients], [n for n, _ in clients])["w"].item()
    total = 0.0
    for n, value in clients:
        total += value * n / sum(m for m, _ in clients)
    assert mean == pytest.approx(total, rel=1e-6, abs=1e-5)


def rounds_written_out(given_settings: dict[str, Value], clients: int) -> tuple[dict[str, Any], list[float]]:
    """The server's model after all rounds, and the accuracies before local training of each client in each round."""
    settings = parse(given_settings)
    trainer = Trainer(models.build("digits-cnn", (1, 8, 8), 10, settings.seed), torch.device("cpu"), "fp32")
    server, accuracies = trainer.initial, []
    for number in range(1, settings.num_server_rounds + 1):
        trained, sizes = [], []
        for k in range(clients):
            data = open_partition(settings.data(), k, clients)
            trainer.load(server)
            accuracies.append(trainer.evaluate(data, "test").values["accuracy"])
            trainer.fit(data, settings.local_training(number), torch_stream(settings.seed, "batches", number, str(k)))
            trained.append(trainer.read(list(server)))
            sizes.append(len(data.splits["train"]))
        server = weighted_mean(trained, sizes)
    return server, accuracies


def test_rounds_are_fedavg_written_out_bit_for_bit(
    federate: Callable[..., Any], settings: Callable[..., dict[str, Value]]
) -> None:
    run = federate(clients=3, strategy="fedavg")
    server, accuracies = rounds_written_out(settings(strategy="fedavg"), 3)
    assert run.state.keys() == server.keys()
    assert all(torch.equal(run.state[name], server[name]) for name in server)
    rows = [r for r in run.rows if r.round <= 2 and (r.split, r.phase, r.metric) == ("test", "before", "accuracy")]
    assert [row.value for row in rows] == accuracies


def test_batch_normalisation_statistics_are_averaged_and_counters_are_not_sent(
    federate: Callable[..., Any], settings: Callable[..., dict[str, Value]], tmp_path: Any
) -> None:
    path = images(tmp_path)
    run = federate(clients=2, strategy="fedavg", model="lenet-bn", dataset=path, partitioner="iid", num_server_rounds=1)
    assert "bn1.running_mean" in run.state
    assert not any("num_batches" in name for name in run.state)
    assert bool((run.state["bn1.running_mean"] != 0).any())


def images(folder: Any) -> str:
    """A local data set of 80 random 16 x 16 images in two classes, as a Parquet file."""
    import datasets
    import numpy as np

    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (16, 16), dtype=np.uint8) for _ in range(80)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict({"image": pixels, "label": [0, 1] * 40}, features=features)
    (folder / "images").mkdir()
    data.to_parquet(folder / "images" / "train.parquet")
    return str(folder / "images")
