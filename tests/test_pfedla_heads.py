"""pFedLA's factorised heads: naive loops, autograd and finite differences, their start, growth, head and state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_pfedla import RATE, all_of, both, check_slopes, generators, networks, random_models, small, weigh
from torch import Tensor

from fedham_flwr.algorithms import pfedla
from fedham_flwr.algorithms.pfedla import Normaliser, PFedLASettings
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.pairs import columns_gradient, outputs_gradient, pair_scores
from fedham_flwr.core.perceptrons import outputs as logits
from fedham_flwr.mixing.hypernetworks import Hypernetworks

Federate = Callable[..., Any]
sizes = {"n": st.integers(1, 4), "later": st.integers(0, 3), "layers": st.integers(1, 3), "rank": st.integers(1, 4)}


def factorised(clients: int, layers: int = 3, seed: int = 0, rank: int = 2, **chosen: Any) -> Hypernetworks:
    return networks(clients, layers, seed, head="factorised", head_rank=rank, **chosen)


def fresh(clients: int, layers: int = 3, **chosen: Any) -> Hypernetworks:
    made = Hypernetworks(PFedLASettings(**{**small, "head": "factorised", "head_rank": 2, **chosen}), layers)
    made.add(generators(clients))
    return made


def copied(made: Hypernetworks) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in made.params.items()}


# ---- the naive loop, and gradients -----------------------------------------------------------------------------------


@given(**sizes, seed=st.integers(0, 999))
def test_scores_of_pairs_and_their_gradients_are_the_naive_loop(
    n: int, later: int, layers: int, rank: int, seed: int
) -> None:
    draw, peers = torch.Generator().manual_seed(seed), n + later
    outputs = torch.randn(n, layers, rank + 1, generator=draw, dtype=torch.float64)
    columns = torch.randn(peers, layers, rank, generator=draw, dtype=torch.float64)
    slope = torch.randn(n, layers, peers, generator=draw, dtype=torch.float64)
    own = torch.randperm(peers, generator=draw)[:n]
    s, to_outputs, to_columns = torch.zeros_like(slope), torch.zeros_like(outputs), torch.zeros_like(columns)
    for i in range(n):
        for layer in range(layers):
            for j in range(peers):
                if j == own[i]:
                    s[i, layer, j] = outputs[i, layer, rank]
                    to_outputs[i, layer, rank] = slope[i, layer, j]
                    continue
                for q in range(rank):
                    s[i, layer, j] += outputs[i, layer, q] * columns[j, layer, q]
                    to_outputs[i, layer, q] += slope[i, layer, j] * columns[j, layer, q]
                    to_columns[j, layer, q] += slope[i, layer, j] * outputs[i, layer, q]
    assert torch.allclose(pair_scores(outputs, columns, own), s, atol=1e-12)
    assert torch.allclose(outputs_gradient(slope, columns, own), to_outputs, atol=1e-12)
    assert torch.allclose(columns_gradient(slope, outputs, own), to_columns, atol=1e-12)


@both
@given(**sizes, seed=st.integers(0, 99))
def test_a_step_is_that_of_autograd_through_logits_weights_and_mixtures(
    normaliser: Normaliser, n: int, later: int, layers: int, rank: int, seed: int
) -> None:
    """The cohort's surrogate, <wbar_i, -delta_i> summed over i; `later` clients are absent, and peers all the same."""
    peers, rows = n + later, torch.randperm(n + later, generator=torch.Generator().manual_seed(seed))[:n]
    made = factorised(peers, layers, seed, rank, normaliser=normaliser)
    models, change = random_models(peers, layers, 5, seed), random_models(n, layers, 5, seed + 1)
    params = {name: tensor.clone().requires_grad_() for name, tensor in made.params.items()}
    own = {name: tensor[rows] for name, tensor in params.items() if name != "peers"}
    s = pair_scores(logits(own), params["peers"], rows)
    alpha = pfedla.mixing_weights(s, all_of(s), rows, normaliser)
    (torch.einsum("nlj,jlp->nlp", alpha, models) * -change).sum().backward()
    scores = torch.einsum("nlp,jlp->nlj", -change, models)
    found = made.logits(rows)
    assert torch.equal(found, s.detach())
    made.step(rows, pfedla.logit_gradient(alpha.detach(), found, scores, all_of(s), normaliser))
    for name, tensor in params.items():
        slope = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        assert torch.allclose(made.params[name], tensor.detach() - RATE * slope, atol=1e-11), name


@both
def test_the_step_is_the_finite_difference_of_the_surrogate(normaliser: Normaliser) -> None:
    made, rows = factorised(4, 2, seed=5, normaliser=normaliser), torch.tensor([3, 0, 1])
    models, change = random_models(4, 2, 6, 5), random_models(3, 2, 6, 6)

    def surrogate(params: dict[str, Tensor]) -> float:
        made.params = params
        s = made.logits(rows)
        mixed = torch.einsum("nlj,jlp->nlp", pfedla.mixing_weights(s, all_of(s), rows, normaliser), models)
        return float((mixed * -change).sum())

    start, s = copied(made), made.logits(rows)
    alpha = pfedla.mixing_weights(s, all_of(s), rows, normaliser)
    found = torch.einsum("nlp,jlp->nlj", -change, models)
    made.step(rows, pfedla.logit_gradient(alpha, s, found, all_of(s), normaliser))
    check_slopes(start, copied(made), surrogate)


@both
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_with_unit_vectors_for_peers_it_is_the_dense_head(normaliser: Normaliser, momentum: float) -> None:
    """Rank N, and embeddings that are held: the outputs are the logits, and so are all steps."""
    clients, layers = 4, 3
    given = {"hypernetwork_momentum": momentum, "normaliser": normaliser}
    dense, other = networks(clients, layers, **given), factorised(clients, layers, rank=clients, **given)
    unit = torch.eye(clients, dtype=torch.float64)[:, None].expand(-1, layers, -1).clone()
    for name, tensor in dense.params.items():
        other.params[name] = tensor.clone()
    for name in ("heads.weight", "heads.bias"):
        ones = [torch.arange(clients), slice(None), torch.arange(clients)]
        selves = dense.params[name][tuple(ones)]
        other.params[name] = torch.cat([dense.params[name].clone(), selves[:, :, None]], dim=2)
        other.params[name][tuple(ones)] = 0  # no part of its own logit
        if momentum:
            other.velocity[name] = torch.zeros_like(other.params[name])
    for number in range(4):
        other.params["peers"] = unit.clone()
        rows = torch.tensor([[0, 1, 2, 3], [2, 0], [3, 1], [1, 2, 3]][number])
        s = dense.logits(rows)
        assert torch.allclose(other.logits(rows), s, atol=1e-12)
        scores = torch.randn(s.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        alpha = pfedla.mixing_weights(s, all_of(s), rows, normaliser)
        for made in (dense, other):
            made.step(rows, pfedla.logit_gradient(alpha, s, 100 * scores, all_of(s), normaliser))
    other.params["peers"] = unit
    s = dense.logits(torch.arange(clients))
    assert torch.allclose(other.logits(torch.arange(clients)), s, atol=1e-11)
    assert not torch.allclose(s, networks(clients, layers, **given).logits(torch.arange(clients)), atol=1e-3)


@given(seed=st.integers(0, 99))
def test_permuting_the_clients_permutes_the_logits(seed: int) -> None:
    made, order = factorised(5, seed=seed), torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    s = made.logits(torch.arange(5))
    made.params = {name: tensor[order] for name, tensor in made.params.items()}
    assert torch.allclose(made.logits(torch.arange(5)), s[order][..., order], atol=1e-12)


# ---- start, growth, absence ------------------------------------------------------------------------------------------


@given(clients=st.integers(1, 7), bias=st.floats(0, 8))
def test_weights_start_as_those_of_dense_heads(clients: int, bias: float) -> None:
    made, dense = fresh(clients, self_bias=bias), fresh(clients, self_bias=bias, head="dense")
    assert torch.equal(made.logits(torch.arange(clients)), dense.logits(torch.arange(clients)))
    for name in ("embedding", "hidden.0.weight", "hidden.1.bias"):
        assert torch.equal(made.params[name], dense.params[name])


def test_relu_sum_starts_positive_with_the_mean_of_dense_heads() -> None:
    means = []  # of 40 x 50 x 40 logits each, of equal hidden layers
    for head in ("factorised", "dense"):
        s = fresh(40, 50, normaliser="relu-sum", head=head, head_rank=8, hidden_dim=20).logits(torch.arange(40))
        assert bool((s > 0).all())
        means.append(float(s.mean()))
        assert (weigh(s, "relu-sum").mean((0, 1)) * 40 - 1).abs().max() < 0.15
    assert means[0] == pytest.approx(means[1], rel=0.03)


def test_the_first_step_is_that_of_dense_heads_on_average_over_peers_embeddings() -> None:
    """E <p_j, p_k> is 1 for k = j and 0 otherwise: 4,000 layers are as many draws."""
    layers, slope = 4000, torch.tensor([0.5, -0.2, 0.4, -0.7], dtype=torch.float64)
    moved = []
    for head in ("factorised", "dense"):
        made = fresh(4, layers, head=head, head_rank=8)
        made.step(torch.tensor([1]), slope.expand(1, layers, 4))
        moved.append(made.logits(torch.tensor([1]))[0].mean(0))
    assert torch.allclose(*moved, rtol=0, atol=0.02 * float(moved[1].abs().max()))
    assert moved[0][1] == pytest.approx(float(moved[1][1]), rel=1e-6)  # one's own is no matter of chance


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@given(first=st.integers(1, 6), later=st.integers(1, 4), layers=st.integers(1, 4), rank=st.integers(1, 9))
def test_a_new_client_is_a_row_more_and_the_rows_that_are_there_stay(
    momentum: float, first: int, later: int, layers: int, rank: int
) -> None:
    made = fresh(first, layers, head_rank=rank, hypernetwork_momentum=momentum)
    made.step(torch.arange(first), torch.randn(first, layers, first, generator=generators(1)[0]))
    before, velocity = copied(made), {name: tensor.clone() for name, tensor in made.velocity.items()}
    made.add(generators(later, seed=7))
    for part, old in ((made.params, before), (made.velocity, velocity)):
        assert all(torch.equal(part[name][:first], tensor) for name, tensor in old.items())
    trunk = 4 + (5 * 4 + 5) + (5 * 5 + 5)
    each = trunk + layers * (rank + 1) * (5 + 1) + layers * rank
    assert sum(tensor.numel() for tensor in made.params.values()) == (first + later) * each
    for place in range(first, first + later):
        assert bool(made.params["peers"][place].any()) == (place < rank)
        assert not made.logits(torch.tensor([place])).any()  # it weighs all alike


def test_a_latecomers_logit_is_0_for_all_and_then_learned_from_them() -> None:
    made = fresh(3, 1)
    made.step(torch.arange(3), torch.randn(3, 1, 3, generator=generators(1)[0]))
    made.add(generators(1, seed=7))
    assert not made.logits(torch.arange(3))[..., 3].any()
    assert made.logits(torch.arange(3))[..., :3].abs().min() > 0
    made.step(torch.tensor([0]), torch.tensor([[[0.0, 0.0, 0.0, -1.0]]]))
    assert made.logits(torch.tensor([0]))[0, 0, 3] > 0


def test_absent_clients_learn_nothing_but_as_peers() -> None:
    made = factorised(4, hypernetwork_momentum=0.9)
    before = copied(made)
    made.step(torch.tensor([0, 2]), torch.ones(2, 3, 4, dtype=torch.float64))
    for name, tensor in made.params.items():
        assert torch.equal(tensor[[1, 3]], before[name][[1, 3]]) == (name != "peers"), name
        assert bool(made.velocity[name][[1, 3]].any()) == (name == "peers"), name


def test_momentum_of_peers_is_that_of_sgd() -> None:
    made, rows = factorised(3, 1, hypernetwork_momentum=0.5), torch.tensor([0, 2])
    slope, peers, total = torch.zeros(2, 1, 3, dtype=torch.float64), made.params["peers"].clone(), 0.0
    slope[:, 0, 1] = torch.tensor([1.0, -3.0])
    for _ in range(3):
        out = logits({name: tensor[rows] for name, tensor in made.params.items() if name != "peers"})[:, 0, :2]
        total = 0.5 * total + out[0] - 3 * out[1]
        made.step(rows, slope)
        peers[1, 0] -= RATE * total
        assert torch.allclose(made.params["peers"], peers, atol=1e-12)


def test_a_client_that_diverges_has_no_part_in_the_peers(caplog: pytest.LogCaptureFixture) -> None:
    made, other = (factorised(5, hypernetwork_momentum=0.5) for _ in range(2))
    before, slope = copied(made), torch.full((3, 3, 5), 0.5, dtype=torch.float64)
    other.step(torch.tensor([0, 2]), slope[[0, 2]])
    slope[1] = float("inf")
    made.step(torch.arange(3), slope)
    assert "the hypernetworks of 1 clients would have diverged, and stay as they were" in caplog.text
    for name, tensor in made.params.items():
        assert name == "peers" or torch.equal(tensor[1], before[name][1]), name
        assert torch.allclose(tensor, other.params[name], atol=1e-14), name
        assert torch.allclose(made.velocity[name], other.velocity[name], atol=1e-14), name


def test_heads_that_diverge_say_so_and_leave_the_peers_as_they_were() -> None:
    made = factorised(2, hypernetwork_learning_rate=1e200)
    before = copied(made)
    with pytest.raises(UserError, match=r"the hypernetworks diverged: lower pfedla.hypernetwork-learning-rate=1e\+200"):
        made.step(torch.arange(2), torch.full((2, 3, 2), 1e200, dtype=torch.float64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.params.items())


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_peers_whose_sum_overflows_stay_as_they_were(caplog: pytest.LogCaptureFixture, momentum: float) -> None:
    made = fresh(3, 1, hypernetwork_learning_rate=1.0, hypernetwork_momentum=momentum)
    made.params = {name: tensor.double() for name, tensor in made.params.items()}
    made.velocity = {name: tensor.double() for name, tensor in made.velocity.items()}
    made.params["peers"].zero_()
    made.params["heads.bias"].fill_(1.0)
    slope = torch.zeros(2, 1, 3, dtype=torch.float64)
    slope[:, 0, 2] = 1e308  # of each finite, and together not
    before = copied(made)
    made.step(torch.arange(2), slope)
    assert "the embeddings of peers would have diverged, and stay as they were" in caplog.text
    assert torch.equal(made.params["peers"], before["peers"])
    assert not momentum or not made.velocity["peers"].any()


# ---- which head ------------------------------------------------------------------------------------------------------


def test_which_head_is_decided_by_the_clients_at_the_start_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    tiny = PFedLASettings(embedding_dim=1, hidden_dim=1, hidden_layers=1)
    at, above = Hypernetworks(tiny, 1), Hypernetworks(tiny, 1)
    at.add(generators(pfedla.DENSE_CLIENTS))
    above.add(generators(pfedla.DENSE_CLIENTS + 1))
    assert (at.head, above.head) == ("dense", "factorised")
    assert at.params.keys() == above.params.keys() - {"peers"}
    at.add(generators(1, seed=9))
    at.add(generators(1, seed=10))
    assert at.head == "dense"
    assert at.logits(torch.tensor([0])).shape == (1, 1, pfedla.DENSE_CLIENTS + 2)
    assert [r.message for r in caplog.records] == [
        "factorised heads, which are not of the paper, for 257 clients: see pfedla.head",
        '257 clients are many for dense heads; a run with pfedla.head="factorised" takes less',
    ]
