"""pFedLA's mathematics: known answers, naive loops, finite differences, and the ends of the range."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedham_flwr.algorithms import pfedla
from fedham_flwr.algorithms.pfedla import Normaliser, PFedLASettings
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import LayerGroup, Manifest, Params
from fedham_flwr.core.perceptrons import outputs as logits
from fedham_flwr.core.sparse import largest
from fedham_flwr.mixing.bank import Bank
from fedham_flwr.mixing.hypernetworks import Hypernetworks

both = pytest.mark.parametrize("normaliser", ["softmax", "relu-sum"])
RATE = 0.005
small = {"embedding_dim": 4, "hidden_dim": 5, "hidden_layers": 2, "hypernetwork_learning_rate": RATE}


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 * seed + i) for i in range(count)]


def networks(clients: int, layers: int = 3, seed: int = 0, **given: Any) -> Hypernetworks:
    """Hypernetworks in float64 whose heads are not zero, so that every tensor has a gradient."""
    made = Hypernetworks(PFedLASettings(**(small | given)), layers)
    made.add(generators(clients, seed))
    noise = torch.Generator().manual_seed(seed)
    made.params = {
        name: tensor.double() + 0.3 * torch.randn(tensor.shape, generator=noise, dtype=torch.float64)
        for name, tensor in made.params.items()
    }
    made.velocity = {name: tensor.double() for name, tensor in made.velocity.items()}
    return made


def all_of(s: Tensor) -> Tensor:
    return torch.ones_like(s, dtype=torch.bool)


def places(s: Tensor) -> Tensor:
    return torch.arange(len(s))


def weigh(s: Tensor, normaliser: Normaliser) -> Tensor:
    return pfedla.mixing_weights(s, all_of(s), places(s), normaliser)


def random_models(clients: int, layers: int, size: int, seed: int) -> Tensor:
    return torch.randn(clients, layers, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- the naive triple loop -------------------------------------------------------------------------------------------


def weights_slowly(s: list[float], own: int, normaliser: Normaliser) -> list[float]:
    values = [math.exp(x - max(s)) if normaliser == "softmax" else max(x, 0.0) for x in s]
    total = sum(values)
    return [v / total for v in values] if total > 0 else [float(j == own) for j in range(len(s))]


def gradient_slowly(alpha: list[float], s: list[float], scores: list[float], normaliser: Normaliser) -> list[float]:
    """ds_j by the sum over k of dalpha_k/ds_j S_k, entry by entry."""
    total = sum(max(x, 0.0) for x in s)
    out = []
    for j in range(len(s)):
        slope = 0.0
        for k, score in enumerate(scores):
            if normaliser == "softmax":
                jacobian = alpha[k] * (float(j == k) - alpha[j])
            else:
                jacobian = (float(j == k) - alpha[k]) / total if s[j] > 0 else 0.0
            slope += jacobian * score
        out.append(slope)
    return out


@both
@given(clients=st.integers(1, 5), layers=st.integers(1, 3), size=st.integers(1, 6), seed=st.integers(0, 999))
def test_the_vectorised_step_is_the_naive_triple_loop(
    normaliser: Normaliser, clients: int, layers: int, size: int, seed: int
) -> None:
    made = networks(clients, layers, seed, normaliser=normaliser)
    bank, after = random_models(clients, layers, size, seed), random_models(clients, layers, size, seed + 1)
    s = made.logits(torch.arange(clients))
    alpha = weigh(s, normaliser)
    mixed, scores, slopes = torch.zeros_like(bank), torch.zeros_like(s), torch.zeros_like(s)
    for i in range(clients):
        for layer in range(layers):
            row = weights_slowly(s[i, layer].tolist(), i, normaliser)
            assert alpha[i, layer].tolist() == pytest.approx(row, abs=1e-12)
            for j in range(clients):
                mixed[i, layer] += row[j] * bank[j, layer]
            for j in range(clients):
                scores[i, layer, j] = ((mixed[i, layer] - after[i, layer]) * bank[j, layer]).sum()
            slopes[i, layer] = torch.tensor(
                gradient_slowly(row, s[i, layer].tolist(), scores[i, layer].tolist(), normaliser)
            )
    together = pfedla.logit_gradient(alpha, s, scores, all_of(s), normaliser)
    assert torch.allclose(together, slopes, atol=1e-10)
    separate = {name: tensor.clone() for name, tensor in made.params.items()}
    made.step(torch.arange(clients), together)
    for i in range(clients):
        mine = {name: tensor[i : i + 1].clone().requires_grad_() for name, tensor in separate.items()}
        (logits(mine)[0] * together[i]).sum().backward()
        for name, tensor in mine.items():
            moved = tensor.detach() - RATE * tensor.grad
            assert torch.allclose(made.params[name][i : i + 1], moved, atol=1e-12)


# ---- invariants 1 to 8 of the specification --------------------------------------------------------------------------


@both
@given(clients=st.integers(1, 6), seed=st.integers(0, 999))
def test_1_weights_are_not_negative_and_sum_to_one(normaliser: Normaliser, clients: int, seed: int) -> None:
    s = 5 * networks(clients, seed=seed, normaliser=normaliser).logits(torch.arange(clients)).float()
    alpha = weigh(s, normaliser)
    assert (alpha.sum(-1) - 1).abs().max() < 1e-6
    assert bool((alpha > 0).all()) if normaliser == "softmax" else bool((alpha >= 0).all())


def test_1_relu_sum_without_a_positive_logit_is_the_client_alone_without_a_gradient() -> None:
    s = -torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(0))
    alpha = weigh(s, "relu-sum")
    assert torch.equal(alpha, torch.eye(3)[:, None].expand(3, 2, 3))
    assert not pfedla.logit_gradient(
        alpha, s, torch.randn(3, 2, 3, generator=generators(1)[0]), all_of(s), "relu-sum"
    ).any()


@both
def test_4_equal_models_in_the_bank_give_that_model_and_no_gradient(normaliser: Normaliser) -> None:
    manifest = Manifest((LayerGroup("a", ("a",)),), {"a": (7,)}, {"a": torch.float64})
    bank, model = Bank(manifest, ("a",), torch.device("cpu")), random_models(1, 1, 7, 3)[0, 0]
    bank.add(list("0123"), {"a": model})
    s = networks(4, 1, normaliser=normaliser).logits(torch.arange(4))
    alpha = weigh(s, normaliser)
    assert torch.allclose(bank.mix("a", alpha[:, 0]), model.expand(4, 7), atol=1e-14)
    trained = [{"a": row} for row in random_models(4, 1, 7, 4)[:, 0]]
    scores = bank.absorb("a", bank.clients, trained, alpha[:, 0])
    assert scores.abs().min() > 1e-3
    assert pfedla.logit_gradient(alpha, s, scores[:, None], all_of(s), normaliser).abs().max() < 1e-14


@both
def test_5_without_a_change_nothing_is_learned(normaliser: Normaliser) -> None:
    made = networks(3, normaliser=normaliser)
    s = made.logits(torch.arange(3))
    gradient = pfedla.logit_gradient(weigh(s, normaliser), s, torch.zeros_like(s), all_of(s), normaliser)
    before = {name: tensor.clone() for name, tensor in made.params.items()}
    made.step(torch.arange(3), gradient)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.params.items())


def check_slopes(start: Params, after: Params, surrogate: Callable[[Params], float]) -> None:
    """Compare the step from `start` to `after` with finite differences, in twenty numbers of each tensor."""
    draw = torch.Generator().manual_seed(0)
    for name, tensor in start.items():
        for at in torch.randint(tensor.numel(), (20,), generator=draw).tolist():
            sides = []
            for h in (1e-6, -1e-6):
                moved = tensor.clone()
                moved.view(-1)[at] += h
                sides.append(surrogate({**start, name: moved}))
            slope = (tensor - after[name]).view(-1)[at] / RATE
            assert float(slope) == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-8), name


@both
def test_6_the_step_is_the_finite_difference_of_the_surrogate(normaliser: Normaliser) -> None:
    """F(psi) = <wbar(psi), -delta> with delta frozen; error below 1e-8 for steps of 1e-6 in float64."""
    made = networks(3, 2, seed=5, normaliser=normaliser)
    models, change = random_models(3, 2, 6, 5), random_models(3, 2, 6, 6)

    def surrogate(params: dict[str, Tensor]) -> float:
        mixed = torch.einsum("nlj,jlp->nlp", weigh(logits(params), normaliser), models)
        return float((mixed * -change).sum())

    s = made.logits(torch.arange(3))
    scores = torch.einsum("nlp,jlp->nlj", -change, models)
    gradient = pfedla.logit_gradient(weigh(s, normaliser), s, scores, all_of(s), normaliser)
    start = {name: tensor.clone() for name, tensor in made.params.items()}
    made.step(torch.arange(3), gradient)
    check_slopes(start, made.params, surrogate)


@both
def test_7_one_full_batch_step_of_rate_eta_gives_eta_times_the_true_gradient(normaliser: Normaliser) -> None:
    """L_i(w) = sum of (w - target)^4 / 4, a loss whose gradient is known; delta = -eta grad L_i(wbar)."""
    eta, made = 0.01, networks(3, 2, seed=8, normaliser=normaliser)
    models, targets = random_models(3, 2, 6, 8), random_models(3, 2, 6, 9)
    params = {name: tensor.clone().requires_grad_() for name, tensor in made.params.items()}
    mixed = torch.einsum("nlj,jlp->nlp", weigh(logits(params), normaliser), models)
    ((mixed - targets) ** 4 / 4).sum().backward()
    before = mixed.detach()
    after = before - eta * (before - targets) ** 3
    s = made.logits(torch.arange(3))
    scores = torch.einsum("nlp,jlp->nlj", before - after, models)
    made.step(torch.arange(3), pfedla.logit_gradient(weigh(s, normaliser), s, scores, all_of(s), normaliser))
    for name, tensor in params.items():
        assert torch.allclose((tensor.detach() - made.params[name]) / RATE, eta * tensor.grad, atol=1e-11)


@both
@given(seed=st.integers(0, 999))
def test_8_gradient_rows_sum_to_zero_and_softmax_forgets_a_constant(normaliser: Normaliser, seed: int) -> None:
    s = networks(4, seed=seed, normaliser=normaliser).logits(torch.arange(4))
    scores = torch.randn(s.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    alpha = weigh(s, normaliser)
    gradient = pfedla.logit_gradient(alpha, s, scores, all_of(s), normaliser)
    if normaliser == "softmax":
        assert gradient.sum(-1).abs().max() < 1e-12
        assert torch.allclose(weigh(s + 3.0, normaliser), alpha, atol=1e-12)
    # relu(c s) / sum relu(c s) does not depend on c: the gradient has no part along s
    else:
        assert (gradient * s).sum(-1).abs().max() < 1e-10
        assert torch.allclose(weigh(3.0 * s, normaliser), alpha, atol=1e-12)


# ---- known answers 10 and 11 -----------------------------------------------------------------------------------------


def one_step(models: list[list[float]], change: list[float], s: list[float], normaliser: Normaliser) -> tuple[Any, Any]:
    """The gradient with respect to one client's logits, and the weights after a step of rate 1."""
    before, bank = torch.tensor([[s]]).double(), torch.tensor(models).double()
    scores = (bank @ -torch.tensor(change).double())[None, None]
    own = torch.tensor([0])
    alpha = pfedla.mixing_weights(before, all_of(before), own, normaliser)
    gradient = pfedla.logit_gradient(alpha, before, scores, all_of(before), normaliser)
    after = pfedla.mixing_weights(before - gradient, all_of(before), own, normaliser)
    return gradient[0, 0].tolist(), after[0, 0].tolist()


def test_10_known_answer_b() -> None:
    gradient, weights = one_step([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [0.1, -0.2], [0.0, 0.0, 0.0], "softmax")
    assert gradient == pytest.approx([-1 / 15, 0.0, 1 / 15], abs=1e-8)
    assert weights == pytest.approx([0.3557858, 0.3328401, 0.3113742], abs=5e-8)


def test_11_the_step_goes_towards_the_model_that_training_went_to() -> None:
    # w_1 = 0, w_2 = 10; client 1 minimises w^2 / 2 from 5 with one step of 0.1
    _, weights = one_step([[0.0], [10.0]], [-0.5], [0.0, 0.0], "softmax")
    assert weights == pytest.approx([0.9241418, 0.0758582], abs=5e-8)
    _, reversed_sign = one_step([[0.0], [10.0]], [0.5], [0.0, 0.0], "softmax")
    assert reversed_sign == pytest.approx([0.0758582, 0.9241418], abs=5e-8)
    assert one_step([[0.0], [10.0]], [-0.5], [1.0, 1.0], "relu-sum")[1] == [1.0, 0.0]
    assert one_step([[0.0], [10.0]], [0.5], [1.0, 1.0], "relu-sum")[1] == [0.0, 1.0]


@both
@given(seed=st.integers(0, 999))
def test_12_permuting_the_clients_permutes_weights_and_gradients_and_nothing_else(
    normaliser: Normaliser, seed: int
) -> None:
    clients = 5
    made, draw = networks(clients, seed=seed, normaliser=normaliser), torch.Generator().manual_seed(seed)
    order = torch.randperm(clients, generator=draw)
    scores = torch.randn(clients, 3, clients, generator=draw, dtype=torch.float64)
    params = {name: tensor[order] for name, tensor in made.params.items()}
    params["heads.weight"], params["heads.bias"] = params["heads.weight"][:, :, order], params["heads.bias"][..., order]
    s, permuted = made.logits(torch.arange(clients)), logits(params)
    assert torch.allclose(permuted, s[order][..., order], atol=1e-12)
    alpha, other = weigh(s, normaliser), weigh(permuted, normaliser)
    assert torch.allclose(other, alpha[order][..., order], atol=1e-12)
    gradient = pfedla.logit_gradient(alpha, s, scores, all_of(s), normaliser)
    turned = pfedla.logit_gradient(other, permuted, scores[order][..., order], all_of(s), normaliser)
    assert torch.allclose(turned, gradient[order][..., order], atol=1e-10)


# ---- starts, retained layers, the largest weights, latecomers --------------------------------------------------------


@given(clients=st.integers(1, 7), bias=st.floats(0, 8))
def test_weights_start_equal_or_with_a_bias_to_oneself(clients: int, bias: float) -> None:
    made = Hypernetworks(PFedLASettings(self_bias=bias, **small), 3)
    made.add(generators(clients))
    alpha = weigh(made.logits(torch.arange(clients)), "softmax")
    own = math.exp(bias) / (math.exp(bias) + clients - 1)
    for i in range(clients):
        assert torch.allclose(alpha[i, :, i], torch.tensor(own))
    if bias == 0:
        assert torch.equal(alpha, torch.full_like(alpha, 1 / clients))


def test_the_parameter_count_is_that_of_the_published_reconstruction() -> None:
    for clients, layers, count in ((10, 5, 35_450), (10, 7, 37_470), (100, 7, 101_100)):
        made = Hypernetworks(PFedLASettings(), layers)
        made.add(generators(clients))
        assert sum(tensor[0].numel() for tensor in made.params.values()) == count


def test_the_layers_of_largest_self_weight_are_retained_and_of_equal_ones_the_first() -> None:
    alpha = torch.full((2, 4, 2), 0.5)
    alpha[0, :, 0] = torch.tensor([0.1, 0.9, 0.3, 0.9])
    own = torch.tensor([0, 1])
    table = {
        0: [[False] * 4, [False] * 4],
        1: [[False, True, False, False], [True, False, False, False]],
        2: [[False, True, False, True], [True, True, False, False]],
        3: [[False, True, True, True], [True, True, True, False]],
        4: [[True] * 4, [True] * 4],
    }
    for k, wanted in table.items():
        assert pfedla.retained(alpha, own, k).tolist() == wanted


@given(peers=st.integers(1, 8), data=st.data())
def test_the_largest_weights_are_kept_and_of_equal_ones_those_first_in_the_order(
    peers: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, peers))
    alpha = torch.tensor(data.draw(st.lists(st.sampled_from([0.0, 0.1, 0.2]), min_size=peers, max_size=peers)))
    order = data.draw(st.permutations(range(peers)))
    chosen = largest(alpha[None, None], k, torch.tensor([order]))[0, 0]
    best = sorted(range(peers), key=lambda j: (-alpha[j].item(), order.index(j)))[:k]
    assert chosen.nonzero().flatten().tolist() == sorted(best)


@both
def test_a_latecomer_changes_no_tensor_of_the_others_and_a_step_none_of_the_absent(normaliser: Normaliser) -> None:
    made = Hypernetworks(PFedLASettings(normaliser=normaliser, hypernetwork_momentum=0.9, **small), 3)
    made.add(generators(4))
    made.step(torch.tensor([0, 2]), torch.ones(2, 3, 4))
    before, velocity = ({n: t.clone() for n, t in part.items()} for part in (made.params, made.velocity))
    assert velocity["heads.bias"][0].any()
    assert not velocity["heads.bias"][1].any()
    made.add(generators(1, seed=7))
    for part, old in ((made.params, before), (made.velocity, velocity)):
        for name, tensor in old.items():
            inner = tensor.shape if not name.startswith("heads.") else (4, 3, 4, *tensor.shape[3:])
            assert torch.equal(part[name][tuple(slice(size) for size in inner)], tensor)
    assert not torch.equal(made.params["embedding"][4], made.params["embedding"][3])
    new = made.logits(torch.arange(4))[..., 4]
    assert not new.any() if normaliser == "softmax" else bool((new > 0).all())
    made.step(torch.tensor([4, 1]), torch.ones(2, 3, 5))
    assert torch.equal(made.params["embedding"][0], before["embedding"][0])


def test_momentum_of_the_hypernetworks_is_that_of_sgd() -> None:
    made = networks(2, 1, hypernetwork_momentum=0.5)
    start, slope = made.params["heads.bias"].clone(), torch.ones(2, 1, 2, dtype=torch.float64)
    made.step(torch.arange(2), slope)
    made.step(torch.arange(2), slope)
    # 1, then 0.5 + 1
    assert torch.allclose(made.params["heads.bias"], start - RATE * (1 + 1.5), atol=1e-12)


def test_hypernetworks_that_diverge_say_so_and_stay_as_they_were() -> None:
    made = networks(2, hypernetwork_learning_rate=1e200)
    before = {name: tensor.clone() for name, tensor in made.params.items()}
    with pytest.raises(UserError, match=r"the hypernetworks diverged: lower pfedla.hypernetwork-learning-rate=1e\+200"):
        made.step(torch.arange(2), torch.full((2, 3, 2), 1e200, dtype=torch.float64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.params.items())


def test_one_hypernetwork_that_diverges_stays_as_it_was_and_the_others_learn(caplog: pytest.LogCaptureFixture) -> None:
    made, other = networks(3, hypernetwork_momentum=0.5), networks(3, hypernetwork_momentum=0.5)
    before = {name: tensor.clone() for name, tensor in made.params.items()}
    slope = torch.full((3, 3, 3), 0.5, dtype=torch.float64)
    other.step(torch.arange(3), slope)
    slope[1] = float("inf")
    made.step(torch.arange(3), slope)
    assert "the hypernetworks of 1 clients would have diverged, and stay as they were" in caplog.text
    for name, tensor in made.params.items():
        assert torch.equal(tensor[1], before[name][1]), name
        assert torch.equal(tensor[[0, 2]], other.params[name][[0, 2]]), name
        assert not made.velocity[name][1].any(), name
    assert not torch.equal(other.params["heads.bias"], before["heads.bias"])


def test_a_layer_that_is_not_mixed_has_no_gradient() -> None:
    s = networks(3).logits(torch.arange(3))
    mixed = all_of(s)
    mixed[1, 2] = False
    scores = torch.randn(s.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for normaliser in ("softmax", "relu-sum"):
        gradient = pfedla.logit_gradient(weigh(s.abs(), normaliser), s.abs(), scores, mixed, normaliser)
        assert not gradient[1, 2].any()
        assert gradient[0].abs().min() > 0
