"""`sample-power`: peers with more samples have more weight before anything is learned of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedham_flwr.reporting.mixing_weights import latest
from fedham_flwr.settings import Value

Federate = Callable[..., Any]
UNEVEN: dict[str, Value] = {"partitioner": "dirichlet", "alpha": 0.3, "num_server_rounds": 3, "batch_size": 10}
HOSTS: dict[str, dict[str, Value]] = {
    "amn": {"strategy": "amn"},
    "layers": {"strategy": "amn", "amn.unit": "layer"},
    "candidates": {"strategy": "amn", "amn.candidates": 3},
    "mediated": {"strategy": "fedham", "fedham.transport": "mediated"},
    "peers": {"strategy": "fedham", "fedham.peers": 0},
    "few": {"strategy": "fedham", "fedham.peers": 3},
}


def mean(strategy: Value, power: float) -> dict[str, Value]:
    """Neither likeness nor learning: weights are what they start from."""
    start = {"initial-temperature": 0.0, "learning-rate": 0.0, "sample-power": power}
    return {f"{strategy}.{key}": value for key, value in start.items()}


def counts_of(run: Any) -> torch.Tensor:
    """Training samples of each client."""
    entries = json.loads((run.path / "clients.json").read_text())
    return torch.tensor([entry["train"] for entry in entries], dtype=torch.float64)


@pytest.mark.parametrize("power", [pytest.param(0.5, marks=pytest.mark.slow), 1.0])
@pytest.mark.parametrize("given", [
    pytest.param(given, id=key, marks=[] if key in ("amn", "few") else [pytest.mark.slow])
    for key, given in HOSTS.items()
])  # fmt: skip
def test_weights_start_in_proportion_to_samples_of_those_that_are_mixed(
    federate: Federate, given: dict[str, Value], power: float
) -> None:
    run = federate(clients=6, **{**UNEVEN, **given, **mean(given["strategy"], power)})
    assert run.summary["failures"] == 0
    shares = counts_of(run) ** power
    assert shares.max() > 1.5 * shares.min()
    found = latest(run.path).weights.double()
    for row in found.flatten(0, 1):
        wanted = torch.where(row > 0, shares, 0.0)
        torch.testing.assert_close(row, wanted / wanted.sum(), rtol=1e-5, atol=1e-6)
    assert {int(count) for count in (found > 0).sum(-1).flatten()} == {4 if "amn.candidates" in given else 6}


@pytest.mark.slow
@pytest.mark.parametrize("given", [HOSTS["amn"], HOSTS["peers"]], ids=["amn", "peers"])
def test_with_the_first_power_and_no_likeness_the_start_is_fedavgs_mean(
    federate: Federate, given: dict[str, Value]
) -> None:
    mixed = federate(**{**UNEVEN, **given, **mean(given["strategy"], 1.0)})
    average, equal = (
        federate(strategy="fedavg", **UNEVEN),
        federate(**{**UNEVEN, **given, **mean(given["strategy"], 0.0)}),
    )
    losses = [
        [row.value for row in run.rows if (row.metric, row.phase, row.round) == ("loss", "before", 4)]
        for run in (mixed, average, equal)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert losses[2] != pytest.approx(losses[1], rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("given", [HOSTS["amn"], HOSTS["mediated"], HOSTS["few"]], ids=["amn", "mediated", "few"])
def test_equal_numbers_are_no_numbers(federate: Federate, given: dict[str, Value]) -> None:
    same = {"partitioner": "iid", "samples_per_client": 40, "num_server_rounds": 3}
    with_power = federate(**{**same, **given, f"{given['strategy']}.sample-power": 1.0})
    without = federate(**{**same, **given, f"{given['strategy']}.sample-power": 0.0})
    assert len(set(counts_of(with_power).tolist())) == 1
    assert all(torch.equal(tensor, with_power.state[name]) for name, tensor in without.state.items())


@pytest.mark.parametrize("given", [HOSTS["amn"], HOSTS["few"]], ids=["amn", "few"])
def test_samples_are_a_part_of_the_state_where_they_count(federate: Federate, given: dict[str, Value]) -> None:
    power = {f"{given['strategy']}.sample-power": 1.0}
    run = federate(**{**UNEVEN, **given, **power})
    assert run.state["samples"].tolist() == counts_of(run).tolist()
    plain = federate(**{**UNEVEN, **given, f"{given['strategy']}.sample-power": 0.0})
    assert "samples" not in plain.state
