"""Which workers there are, which clients each trains, and what of this a user is told."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedham_flwr.core.errors import UserError
from fedham_flwr.runners import ENGINES, Simulation
from fedham_flwr.runners.clusters import check_address
from fedham_flwr.runners.placing import SLACK, Node, Workers, owners, plan, shares, usable_cpus
from fedham_flwr.simulation import simulate

COSTS = st.lists(st.floats(1, 1e4), min_size=1, max_size=40)


# ---- shares ----------------------------------------------------------------------------------------------------------


@given(COSTS, st.integers(1, 6))
def test_no_worker_has_much_more_to_do_than_its_share(costs: list[float], workers: int) -> None:
    found = shares(costs, owners(len(costs), workers), workers)
    load = [sum(cost for cost, worker in zip(costs, found, strict=True) if worker == k) for k in range(workers)]
    fair = sum(costs) / workers
    assert max(load) <= max(SLACK * fair, fair + max(costs)) * (1 + 1e-9)


@given(COSTS, st.integers(1, 6), st.randoms())
def test_the_same_cohort_is_dealt_out_in_the_same_way(costs: list[float], workers: int, draw: Any) -> None:
    owned = [draw.randrange(workers) for _ in costs]
    assert shares(costs, owned, workers) == shares(list(costs), list(owned), workers)


def test_a_client_stays_with_its_owner_unless_that_has_too_much() -> None:
    assert shares([10, 10, 10, 10], [0, 1, 1, 0], 2) == [0, 1, 1, 0]
    assert shares([10, 10, 10, 10], [1, 1, 1, 1], 2) == [1, 1, 0, 0]
    assert shares([100, 1, 1, 1], [0, 0, 0, 0], 2) == [0, 1, 1, 1]


def test_clients_are_owned_there_and_back_again() -> None:
    assert owners(7, 2) == [0, 1, 1, 0, 0, 1, 1]
    assert owners(3, 1) == [0, 0, 0]


# ---- workers ---------------------------------------------------------------------------------------------------------

ONE, TWO = [Node(8)], [Node(8, 2), Node(4, 1)]


@pytest.mark.parametrize(
    ("nodes", "given", "wanted"),
    [
        (ONE, {}, Workers(8)),
        (ONE, {"clients": 3}, Workers(3)),
        (ONE, {"num_cpus": 3}, Workers(2, 3)),
        (ONE, {"num_workers": 2}, Workers(2)),
        (ONE, {"device": "auto"}, Workers(8)),
        ([Node(3), Node(3)], {"num_cpus": 2}, Workers(2, 2)),
        (TWO, {}, Workers(12)),
        (TWO, {"device": "auto"}, Workers(3, 1, 1.0)),
        (TWO, {"device": "cuda", "num_workers": 2}, Workers(2, 1, 1.0)),
        (TWO, {"device": "cuda", "num_cpus": 8}, Workers(1, 8, 1.0)),
        (TWO, {"device": "auto", "shared": True}, Workers(12, 1, 0.25)),
        (TWO, {"device": "auto", "shared": True, "num_cpus": 4}, Workers(3, 4, 1.0)),
        ([Node(2, 8)], {"device": "auto", "shared": True}, Workers(2, 1, 1.0)),
    ],
)
def test_workers_are_as_many_as_fit(nodes: list[Node], given: dict[str, Any], wanted: Workers) -> None:
    assert plan(nodes, **{"clients": 100, "device": "cpu", **given}) == wanted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_cpus": 9}, "--num-cpus 9 is more than the 8 processors of any machine here"),
        ({"device": "cuda:1"}, 'device="cuda:1" needs a GPU, and Ray has none here'),
        ({"num_workers": 9}, "--num-workers 9 of 1 processors each do not fit: there are 8 processors and 0 GPUs"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(ONE, **{"clients": 100, "device": "cpu", **given})


def test_the_plan_is_told_in_a_line() -> None:
    assert Workers(1).told() == "1 worker of 1 processor"
    assert Workers(2, 4, 0.5).told() == "2 workers of 4 processors and 0.5 GPU each"


def test_slurm_and_the_binding_of_a_process_bound_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert usable_cpus() == 6
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "16")
    assert usable_cpus() == 6
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    assert usable_cpus() == 4
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2(x3)")
    assert usable_cpus() == 6


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("head:6379", "there is no Ray cluster at head:6379: Connection refused"),
        ("head", "the address of a Ray cluster is 'head', and wanted is HOST:PORT"),
        (":6379", "the address of a Ray cluster is ':6379', and wanted is HOST:PORT"),
        ("head:six", "the address of a Ray cluster is 'head:six', and wanted is HOST:PORT"),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_address_where_nobody_listens_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, engine: Any, address: str, message: str
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=message):
        simulate(clients=2, backend="ray", engine=engine, ray_address=address)
    os.environ.pop("RAY_ADDRESS", None)


def test_other_addresses_are_rays_to_judge() -> None:
    for address in ("", "auto", "local", "ray://head:10001"):
        check_address(address)


# ---- what is asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backend": "slow"}, "backend='slow': wanted one of 'ray', 'cohort', 'in-process'"),
        ({"engine": "fast"}, "engine='fast': wanted one of 'cohort', 'one-by-one'"),
        ({"num_cpus": 0}, "num_cpus=0 must be a whole number of at least 1"),
        ({"num_workers": 1.5}, "num_workers=1.5 must be a whole number of at least 0"),
        ({"backend": "cohort", "num_cpus": 2}, "num_cpus=2 is for backend='ray', and this is 'cohort'"),
        ({"backend": "in-process", "engine": "one-by-one"}, "engine='one-by-one' is for backend='ray'"),
        ({"engine": "one-by-one", "num_workers": 2}, "num_workers=2 is for engine='cohort'"),
    ],
)
def test_a_simulation_that_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Simulation(4, **given).check()


def test_a_program_is_told_the_same() -> None:
    with pytest.raises(UserError, match="num_workers=2 is for backend='ray', and this is 'in-process'"):
        simulate(clients=2, num_workers=2)
