"""Federations of pFedLA with factorised heads: their state, their ends, who is late, many clients, one that is bad."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from presets import planned
from test_bounds_rounds import BAD, C, attacks, diameter, rounds
from test_pfedla_rounds import after_rounds, names, scores, server, state_of, trained

from fedham_flwr.core.perceptrons import outputs as logits
from fedham_flwr.federation.messages import Upload
from fedham_flwr.mixing import hypernetworks
from strategies import pfedla as strategy

Federate = Callable[..., Any]


# ---- the state -------------------------------------------------------------------------------------------------------


def test_a_state_keeps_the_head_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypernetworks, "DENSE_CLIENTS", 3)
    few, many = server(clients=3), server(clients=4)
    many.add_clients(names(5))
    few.add_clients(names(5))
    for made, head in ((few, "dense"), (many, "factorised")):
        after_rounds(made, 2, 5)
        again = server(clients=0 if head == "dense" else 2)
        again.load_state_dict(state_of(made))
        assert again._networks.head == head
        assert again.state_dict().keys() == made.state_dict().keys()
        assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in state_of(made).items())
        again.add_clients(names(6))
        assert again.mixing_weights(3, names(6), {}).weights.shape == (6, 4, 6)


def test_a_state_with_another_head_is_refused() -> None:
    made = state_of(server(head="factorised", head_rank=3))
    with pytest.raises(ValueError, match=r'factorised heads of rank 3, and .* pfedla.head="dense" with .*head-rank=3'):
        server(head="dense", head_rank=3).load_state_dict(made)
    with pytest.raises(
        ValueError, match=r'of rank 3, and the settings ask for pfedla.head="auto" with pfedla.head-rank=8'
    ):
        server().load_state_dict(made)
    with pytest.raises(ValueError, match=r'the state has dense heads .* ask for pfedla.head="factorised"'):
        server(head="factorised").load_state_dict(state_of(server()))
    made["hypernetworks/peers"] = made["hypernetworks/peers"][:3]
    with pytest.raises(ValueError, match=r"hypernetworks/peers is .*3, 4, 3.*, wanted .*4, 4, 3"):
        server(head="factorised", head_rank=3).load_state_dict(made)


# ---- rounds ----------------------------------------------------------------------------------------------------------


def test_a_client_that_comes_late_moves_nobody_until_it_has_trained() -> None:
    made = after_rounds(server(hypernetwork_learning_rate=1.0, head="factorised", head_rank=2), 3)
    before = planned(made.plan(4, names(4)))
    made.add_clients((*names(4), "late"))
    after = planned(made.plan(4, names(4)))
    for client, params in before.items():
        assert all(torch.allclose(t, after[client][n], rtol=0, atol=1e-7) for n, t in params.items())
    weights = made.mixing_weights(4, (*names(4), "late"), {}).weights
    assert not weights[..., 4].any()
    assert torch.allclose(weights[4, :, :4], torch.tensor(0.25))
    start = planned(made.plan(4, ("late",)))["late"]
    made.merge(4, {"late": Upload("late", {n: t + 1 for n, t in start.items()}, 10, ())})
    assert bool((made.mixing_weights(5, names(4), {}).weights[..., 4] > 0).all())


@pytest.mark.parametrize("normaliser", ["softmax", "relu-sum"])
def test_everything_that_is_learned_is_in_the_state_and_latecomers_too(normaliser: str) -> None:
    """Retained layers, momentum, the largest weights, a client more in round 3: five rounds are three and two."""
    given = {"retained_layers": 1, "hypernetwork_momentum": 0.9, "top_k_peers": 2, "normaliser": normaliser}
    given |= {"hypernetwork_learning_rate": 1.0, "head": "factorised", "head_rank": 2}
    whole, again, state = server(**given), server(**given), {}
    for number in range(1, 6):
        if number == 4:
            again = server(**given)
            again.load_state_dict(state)
            again.progress.trained |= whole.progress.trained
        for made in (whole, again):
            some = names(4) if number < 3 else names(5)
            made.add_clients(some)
            starts = planned(made.plan(number, some))
            made.merge(number, trained(starts, made.first, number))
            made.progress.trained |= starts.keys()
        state = state_of(again)
    assert state["velocity/peers"].any()
    assert state.keys() == state_of(whole).keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in state_of(whole).items())


@pytest.mark.parametrize("given", [{"self-bias": 1e4}, {"retained-layers": 4}, {"top-k-peers": 1}])
def test_its_ends_are_local_training_bit_for_bit(federate: Federate, given: dict[str, Any]) -> None:
    alone = federate(strategy="pfedla", **{"pfedla.head": "factorised", **{f"pfedla.{k}": v for k, v in given.items()}})
    assert scores(alone) == scores(federate(strategy="local"))


def test_a_whole_run_learns_and_says_which_head_it_has(federate: Federate) -> None:
    run = federate(strategy="pfedla", num_server_rounds=4, **{"pfedla.head": "factorised", "pfedla.head-rank": 3})
    assert run.summary["failures"] == 0
    assert run.state["hypernetworks/peers"].shape == (4, 4, 3)
    assert run.state["hypernetworks/heads.weight"].shape == (4, 4, 4, 100)
    assert run.state["hypernetworks/heads.bias"].abs().max() > 0


def test_many_starts_are_planned_in_blocks_and_the_first_weights_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    made = after_rounds(server(clients=7, head="factorised", hypernetwork_learning_rate=1.0), 3, 7)
    whole, weights = planned(made.plan(4, names(7))), made.mixing_weights(4, names(7), {}).weights
    assert weights.std(-1).max() > 1e-3
    monkeypatch.setattr(strategy, "AT_ONCE", 3)
    for client, params in planned(made.plan(4, names(7))).items():
        assert all(torch.allclose(t, whole[client][n], atol=1e-6) for n, t in params.items())
    some = made.mixing_weights(4, names(7), {})
    assert some.clients == names(3)
    assert torch.allclose(some.weights, weights[:3], atol=1e-6)
    assert math.isclose(float(some.weights.sum()), 3 * 4, rel_tol=1e-5)


# ---- one that is bad -------------------------------------------------------------------------------------------------


@attacks
def test_embeddings_of_peers_move_by_no_more_than_the_bound_times_the_pools_diameter(attack: str) -> None:
    """With `clip-norm` C: eta |a_bl| C D_l for layer l, of all peers together."""
    moved_at_all = False
    for _, before, after, without, _ in rounds("pfedla", attack, **{"pfedla.head": "factorised"}):
        row, params = before._pool.bank.rows([BAD]), before._networks.params
        outputs = logits({name: tensor[row] for name, tensor in params.items() if name != "peers"})[0]
        moved = (after._networks.params["peers"] - without._networks.params["peers"]).norm(dim=(0, 2))
        for layer, group in enumerate(before._pool.bank.groups):
            bound = float(outputs[layer, :-1].norm()) * C * diameter(before, group)  # the learning rate is 1
            assert float(moved[layer]) <= bound * (1 + 1e-5) + 1e-7
            moved_at_all |= float(moved[layer]) > 1e-4 * bound > 0
    assert moved_at_all
