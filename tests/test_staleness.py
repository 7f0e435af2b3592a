"""`staleness-discount`: what a model counts whose client has not trained in the last rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from presets import planned
from test_amn import moved
from test_amn import server as amn_server

from fedham_flwr.mixing.attention import LEAST
from fedham_flwr.settings import Value

Federate = Callable[..., Any]
IDS = ("0", "1", "2")
UNEVEN: dict[str, Value] = {"partitioner": "dirichlet", "alpha": 0.3, "batch_size": 10, "fraction_train": 0.5}
HOSTS: dict[str, dict[str, Value]] = {
    "amn": {"strategy": "amn"},
    "peers": {"strategy": "fedham", "fedham.peers": 0},
    "few": {"strategy": "fedham", "fedham.peers": 2},
    "mediated": {"strategy": "fedham", "fedham.transport": "mediated"},
}


def after(rounds: list[tuple[str, ...]], discount: float, power: float = 0.0) -> Any:
    """The server after rounds of some clients."""
    made: Any = amn_server(IDS, staleness_discount=discount, sample_power=power)
    for number, who in enumerate(rounds, start=1):
        made.merge(number, moved(planned(made.plan(number, who)), number))
    return made


def test_a_model_counts_less_the_more_others_have_trained_since() -> None:
    """Three of three would be one turn; then two train, and then one."""
    made = after([IDS, ("0", "1"), ("0",)], 0.125)
    assert made._projections.shares().tolist() == pytest.approx([1.0, 0.125 ** (1 / 3), 0.125])
    assert made._projections.shares().dtype == torch.float32
    made.add_clients((*IDS, "late"))
    assert made._projections.shares()[3] == 0  # it may not be mixed until it has trained


def test_of_a_client_that_never_trains_the_first_model_fades() -> None:
    made = after([("0", "1")] * 3, 0.5)
    assert made._projections.shares().tolist() == pytest.approx([1.0, 1.0, 0.25])
    assert after([("0", "1")] * 30, 0.01)._projections.shares()[2] == pytest.approx(LEAST)  # and may still be mixed


def test_samples_count_beside_it() -> None:
    """Clients have 10, 17 and 24 samples, on average 17."""
    shares = after([IDS, ("2",)], 0.125, power=1.0)._projections.shares()
    assert shares.tolist() == pytest.approx([10 / 17 / 2, 1 / 2, 24 / 17])
    alone = after([IDS, IDS], 1.0, power=4.0)._projections.shares()
    assert float(alone[2] / alone[0]) == pytest.approx(2.4**4, rel=1e-5)


def test_who_has_not_trained_is_like_nobody() -> None:
    """Its model is the first one, which others of them have too: they would be alike, and mixed among themselves."""
    made = after([("0", "1")], 0.5)
    seen = made._projections.seen()
    assert seen[:2].abs().sum((1, 2)).min() > 0
    assert not seen[2].any()
    assert not after([], 0.5)._projections.seen().any()


@pytest.mark.parametrize("discount", [1.0, 0.5])
def test_with_everybody_in_each_round_nothing_is_counted(discount: float) -> None:
    assert after([IDS, IDS], discount)._projections.shares().tolist() == [1, 1, 1]
    assert after([IDS, IDS], discount)._projections.shares().dtype == torch.uint8


def mean(strategy: Value, discount: float) -> dict[str, Value]:
    """Neither likeness nor learning: weights are what they start from."""
    start = {"initial-temperature": 0.0, "learning-rate": 0.0, "sample-power": 1.0, "staleness-discount": discount}
    return {f"{strategy}.{key}": value for key, value in start.items()}


def losses(run: Any) -> Mapping[tuple[int, str], float]:
    return {
        (r.round, r.client): r.value for r in run.rows if (r.metric, r.phase, r.split) == ("loss", "before", "test")
    }


@pytest.mark.parametrize("given", HOSTS.values(), ids=HOSTS)
def test_where_only_the_last_round_counts_the_start_is_fedavgs_model(
    federate: Federate, given: dict[str, Value]
) -> None:
    """That is the mean of the models of the last round, whichever clients were in it."""
    run: dict[str, Value] = {**UNEVEN, "clients": 6, "num_server_rounds": 3}
    average = losses(federate(strategy="fedavg", **run))
    mixed = losses(federate(**run, **given, **mean(given["strategy"], 1e-14)))
    undiscounted = losses(federate(**run, **given, **mean(given["strategy"], 1.0)))
    last = [key for key in average if key[0] == 4]
    assert len(last) == 6
    assert [mixed[key] for key in last] == pytest.approx([average[key] for key in last], rel=1e-3)
    assert [undiscounted[key] for key in last] != pytest.approx([average[key] for key in last], rel=1e-2)


@pytest.mark.parametrize("given", [HOSTS["amn"], HOSTS["few"], HOSTS["mediated"]], ids=["amn", "few", "mediated"])
def test_an_interrupted_run_goes_on_to_the_same_models(federate: Federate, given: dict[str, Value]) -> None:
    run: dict[str, Value] = {**UNEVEN, **given, "clients": 6}
    whole, half = federate(**run, num_server_rounds=4), federate(**run, num_server_rounds=2)
    rest = federate(**run, num_server_rounds=4, resume=str(half.path))
    assert bool((whole.state["ages"] > 0).any())
    assert all(torch.equal(tensor, rest.state[name]) for name, tensor in whole.state.items())
