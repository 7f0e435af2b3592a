"""FedPer: which groups are personal, and its two ends, FedAvg and local training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedham_flwr.algorithms.fedper import personal_groups
from fedham_flwr.core.errors import UserError
from fedham_flwr.federation.record_values import tensors


@given(st.lists(st.text("abc", min_size=1), min_size=1, max_size=6, unique=True), st.data())
def test_the_last_groups_are_personal(groups: list[str], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(groups)))
    personal = personal_groups(groups, count)
    assert len(personal) == count
    assert groups == [*groups[: len(groups) - count], *personal]


def test_more_personal_layers_than_the_model_has_are_refused(federate: Callable[..., Any]) -> None:
    with pytest.raises(
        UserError, match=r"fedper.personal-layers=5 is more than the model's 4 layer groups: conv1, conv2"
    ):
        federate(strategy="fedper", **{"fedper.personal-layers": 5})


def test_nothing_personal_is_fedavg_bit_for_bit(federated: Callable[..., Any]) -> None:
    none = federated(strategy="fedper", samples_per_client=64, **{"fedper.personal-layers": 0})
    average = federated(strategy="fedavg", samples_per_client=64)
    assert none.summary["digest"] == average.summary["digest"]


def test_everything_personal_is_local_training_bit_for_bit(federated: Callable[..., Any]) -> None:
    everything = federated(strategy="fedper", samples_per_client=64, **{"fedper.personal-layers": 4})
    local = federated(strategy="local", samples_per_client=64)
    assert everything.summary["digest"] == local.summary["digest"]
    assert everything.summary["bytes"]["up"] == everything.summary["bytes"]["down"] == 0


def test_heads_differ_and_the_base_does_not(federated: Callable[..., Any]) -> None:
    run = federated(strategy="fedper", samples_per_client=64)
    assert set(run.state) == {f"{layer}.{kind}" for layer in ("conv1", "conv2", "fc1") for kind in ("weight", "bias")}
    heads = [tensors(c.state.array_records["personal"])["fc2.bias"] for c in run.grid.contexts.values()]
    assert len({tuple(head.tolist()) for head in heads}) == 4


def test_the_base_is_the_mean_of_bases_trained_with_their_own_heads(federate: Callable[..., Any]) -> None:
    """One client: its base is the mean, so base and head together are those of local training."""
    run = federate(clients=1, strategy="fedper", min_clients=1, samples_per_client=64)
    local = federate(clients=1, strategy="local", min_clients=1, samples_per_client=64)
    (own,) = (tensors(c.state.array_records["personal"]) for c in local.grid.contexts.values())
    assert all(torch.equal(tensor, own[name]) for name, tensor in run.state.items())


def test_a_run_says_what_is_shared_and_what_is_personal(
    federate: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    federate(strategy="fedper", num_server_rounds=1)
    # 160 + 4,640 + 8,256 shared and 650 personal: see test_models
    assert "fedper  shared: conv1, conv2, fc1 (13,056 scalars); personal: fc2 (650 scalars)" in capsys.readouterr().out
