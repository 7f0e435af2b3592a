"""FedAGHN: rows and slopes by hand, loops and finite differences, a naive server of its rounds, and AMN's attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from presets import planned
from torch import Tensor

from fedham_flwr.algorithms import amn, fedaghn
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import LayerGroup, Manifest, Params
from fedham_flwr.federation.contract import Setup, Task
from fedham_flwr.federation.messages import Upload
from fedham_flwr.mixing.updates import Updates
from fedham_flwr.server_app import build_strategy
from fedham_flwr.settings import Value, parse
from strategies.fedaghn import FedAGHNStrategy

Federate = Callable[..., Any]
GROUPS = (LayerGroup("conv", ("a", "b")), LayerGroup("fc", ("c",)))
MANIFEST = Manifest(GROUPS, {"a": (2, 3), "b": (2,), "c": (4,)}, dict.fromkeys("abc", torch.float32))
NAMES = [group.parameters for group in GROUPS]
RATE = 0.05


def drawn(seed: int, scale: float = 1.0) -> Params:
    draw = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=draw) for name, shape in MANIFEST.shapes.items()}


def server(clients: tuple[str, ...], **given: Value) -> FedAGHNStrategy:
    keys = {f"fedaghn.{name.replace('_', '-')}": value for name, value in {"learning_rate": RATE, **given}.items()}
    made = build_strategy(
        parse({"strategy": "fedaghn", "device": "cpu", **keys}), MANIFEST, drawn(0), Task((1, 8, 8), 10)
    )
    assert isinstance(made, FedAGHNStrategy)
    made.add_clients(clients)
    return made


def moved(starts: dict[str, Params], number: int) -> dict[str, Upload]:
    """What clients send that have trained a way of their own from where they started."""
    steps = {client: drawn(1000 * number + int(client), 0.3) for client in starts}
    return {c: Upload(c, {n: t + steps[c][n] for n, t in start.items()}, 9, ()) for c, start in starts.items()}


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def everyone(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool)


def copy(state: Params) -> Params:
    return {name: tensor.clone() for name, tensor in state.items()}


# ---- rows and slopes -------------------------------------------------------------------------------------------------


def test_a_row_and_its_slopes_by_hand() -> None:
    alike = torch.tensor([[[1.0, 1.0, 0.0]]], dtype=torch.float64)
    beta, gamma, own = torch.full((1, 1), 2.0).double(), torch.full((1, 1), 0.5).double(), torch.tensor([0])
    rows = fedaghn.attend(beta, gamma, alike, own, torch.ones(1, 3, dtype=torch.bool))
    near = math.exp(2) / (math.exp(2) + 1)
    wanted = [0.5 / 1.5, near / 1.5, (1 - near) / 1.5]
    assert rows.weights[0, 0].tolist() == pytest.approx(wanted)
    scores = torch.tensor([[[3.0, 1.0, -1.0]]], dtype=torch.float64)
    of_beta, of_gamma = fedaghn.gradient(rows, alike, own, torch.ones(1, 3, dtype=torch.bool), scores)
    mean = near - (1 - near)
    assert of_gamma.item() == pytest.approx((3 - mean) / 1.5**2)
    assert of_beta.item() == pytest.approx(near * (1 - mean) / 1.5)


@given(st.integers(2, 5), st.integers(0, 999))
def test_slopes_are_those_of_finite_differences_and_rows_those_of_loops(n: int, seed: int) -> None:
    beta, gamma = noise(n, 2, seed=seed), noise(n, 2, seed=seed + 1).abs() + 0.05
    alike, scores = noise(n, 2, n, seed=seed + 2).clamp(-1, 1), noise(n, 2, n, seed=seed + 3)
    own, allowed = torch.arange(n), everyone(n)

    def objective(b: Tensor, g: Tensor) -> Tensor:
        return (fedaghn.attend(b, g, alike, own, allowed).weights * scores).sum(-1)

    rows = fedaghn.attend(beta, gamma, alike, own, allowed)
    assert torch.allclose(rows.weights.sum(-1), torch.ones(n, 2).double())
    for i in range(n):
        for layer in range(2):
            terms = [math.exp(beta[i, layer] * alike[i, layer, j]) if j != i else 0.0 for j in range(n)]
            whole = [gamma[i, layer].item() if j == i else t / sum(terms) for j, t in enumerate(terms)]
            assert rows.weights[i, layer].tolist() == pytest.approx([w / sum(whole) for w in whole])
    found, step = fedaghn.gradient(rows, alike, own, allowed, scores), 1e-6
    ahead = objective(beta + step, gamma), objective(beta, gamma + step)
    behind = objective(beta - step, gamma), objective(beta, gamma - step)
    for slope, up, down in zip(found, ahead, behind, strict=True):
        torch.testing.assert_close(slope, (up - down) / (2 * step), rtol=1e-5, atol=1e-8)


@given(st.integers(2, 5), st.integers(0, 999))
def test_it_is_amns_attention_for_the_same_features_and_log_gamma(n: int, seed: int) -> None:
    """Rows are the same, and slopes but for the factor of gamma that the logarithm brings."""
    points, scores = noise(n, 2, 6, seed=seed), noise(n, 2, n, seed=seed + 1)
    beta, gamma = noise(n, 2, seed=seed + 2), noise(n, 2, seed=seed + 3).abs() + 0.05
    own, allowed = torch.arange(n), everyone(n)
    psi = {"temperature": beta, "gate": gamma.log()}
    theirs = amn.attend(psi, points, own, allowed, "aghn")
    products = torch.einsum("ild,jld->lij", points, points)
    alike = torch.stack([fedaghn.cosines(p, p.diagonal(), p.diagonal()) for p in products], 1)
    mine = fedaghn.attend(beta, gamma, alike, own, allowed)
    torch.testing.assert_close(mine.weights, theirs.effective(own))
    slopes = amn.gradient(psi, theirs, own, scores, "aghn")
    of_beta, of_gamma = fedaghn.gradient(mine, alike, own, allowed, scores)
    torch.testing.assert_close(of_beta, slopes["temperature"])
    torch.testing.assert_close(gamma * of_gamma, slopes["gate"])


def test_with_beta_0_all_peers_weigh_the_same_and_gamma_1_over_n_less_1_makes_it_the_mean() -> None:
    alike, own = noise(4, 2, 4, seed=1).clamp(-1, 1), torch.arange(4)
    rows = fedaghn.attend(torch.zeros(4, 2).double(), torch.full((4, 2), 1 / 3).double(), alike, own, everyone(4))
    assert torch.allclose(rows.weights, torch.full((4, 2, 4), 0.25).double())
    below = fedaghn.attend(torch.zeros(4, 2).double(), torch.full((4, 2), -1.0).double(), alike, own, everyone(4))
    assert below.self_weight.abs().max() == 0
    assert torch.allclose(below.weights.max(-1).values, torch.full((4, 2), 1 / 3).double())


def test_who_may_not_be_mixed_has_no_weight_and_no_slope() -> None:
    one, alike, own = torch.ones(2, 1).double(), torch.ones(2, 1, 3).double(), torch.tensor([0, 2])
    allowed = torch.tensor([[True, False, False], [True, True, False]])  # nobody else; itself not
    rows = fedaghn.attend(one, one, alike, own, allowed)
    assert rows.weights[:, 0].tolist() == [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]
    for slope in fedaghn.gradient(rows, alike, own, allowed, noise(2, 1, 3, seed=0) * torch.tensor([1.0, 1.0, 1e9])):
        assert slope.abs().max() < 1e-12


def test_cosines_by_hand_and_of_no_update() -> None:
    d = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0], [-2.0, 0.0]], dtype=torch.float64)
    squares = d.square().sum(1)
    found = fedaghn.cosines(d @ d.T, squares, squares)
    assert found[0].tolist() == pytest.approx([1, 0.5**0.5, 0, -1])
    assert found[2].tolist() == [0, 0, 0, 0]


# ---- the server ------------------------------------------------------------------------------------------------------


class Naive:
    """The round word by word: models and updates in dictionaries, rows by loops, slopes by autograd."""

    def __init__(self, clients: tuple[str, ...]) -> None:
        self.models = {client: {n: t.double() for n, t in drawn(0).items()} for client in clients}
        self.updates = {client: {n: torch.zeros_like(t) for n, t in drawn(0, 1).items()} for client in clients}
        self.scalars = {c: [[torch.tensor(0.5).double(), torch.tensor(0.03).double()] for _ in GROUPS] for c in clients}

    def mixture(self, client: str, layer: int, beta: Tensor, gamma: Tensor) -> Params:
        flat = {c: torch.cat([u[n].double().flatten() for n in NAMES[layer]]) for c, u in self.updates.items()}
        terms = {}
        for other, update in flat.items():
            lengths = update.norm() * flat[client].norm()
            cosine = (update @ flat[client]) / lengths if lengths else torch.tensor(0.0).double()
            terms[other] = (beta * cosine).exp()
        total = sum(term for other, term in terms.items() if other != client)
        row = {other: gamma if other == client else term / total for other, term in terms.items()}
        whole = sum(row.values())
        return {n: sum(w / whole * self.models[o][n] for o, w in row.items()) for n in NAMES[layer]}  # type: ignore[misc]

    def start(self, client: str) -> Params:
        return {n: t for at in range(2) for n, t in self.mixture(client, at, *self.scalars[client][at]).items()}

    def merge(self, uploads: dict[str, Upload]) -> None:
        new = {}
        for client, upload in uploads.items():
            away = {name: tensor - upload.params[name].double() for name, tensor in self.start(client).items()}
            for at, pair in enumerate(self.scalars[client]):
                free = [scalar.clone().requires_grad_() for scalar in pair]
                inner = sum((t * away[n]).sum() for n, t in self.mixture(client, at, *free).items())
                slopes = torch.autograd.grad(inner, free, allow_unused=True)  # type: ignore[arg-type]
                stepped = [f.detach() - RATE * (0.0 if s is None else s) for f, s in zip(free, slopes, strict=True)]
                new[client, at] = [stepped[0], stepped[1].clamp(min=0)]
            new[client, "update"] = {name: -tensor for name, tensor in away.items()}  # type: ignore[index, assignment]
        for client, upload in uploads.items():
            self.scalars[client] = [new[client, at] for at in range(2)]
            self.updates[client] = new[client, "update"]  # type: ignore[index, assignment]
            self.models[client] = {n: t.double() for n, t in upload.params.items()}


@settings(max_examples=6)
@given(st.integers(2, 4), st.integers(0, 99))
def test_rounds_are_those_of_a_naive_server(n: int, seed: int) -> None:
    clients = tuple("0123"[:n])
    made, naive = server(clients), Naive(clients)
    for number in range(1, 5):
        cohort = clients if number % 2 else clients[1:]
        starts = planned(made.plan(number, cohort))
        for client in cohort:
            wanted = naive.start(client)
            for name, tensor in starts[client].items():
                torch.testing.assert_close(tensor.double(), wanted[name], rtol=1e-4, atol=1e-5)
        uploads = moved(starts, 10 * seed + number)
        made.merge(number, uploads)
        naive.merge(uploads)
        state = made.state_dict()
        for at, name in enumerate(("beta", "gamma")):
            pairs = [[naive.scalars[c][layer][at].item() for layer in range(2)] for c in clients]
            torch.testing.assert_close(state[name], torch.tensor(pairs), rtol=1e-3, atol=1e-5)
    assert torch.allclose(state["beta"], torch.tensor(0.5), atol=1e-3) == (n == 2)  # one peer has all of the weight


def test_the_steps_go_down_and_as_in_the_code_up() -> None:
    """A client that trains towards one peer's model gets more of it by descent, and less by ascent."""
    weights = {}
    for direction in ("descent", "ascent"):
        made = server(("0", "1", "2"), direction=direction, learning_rate=0.5)
        made.merge(1, moved(planned(made.plan(1, ("0", "1", "2"))), 1))
        before = made.mixing_weights(2, ("0",), {}).weights[0]
        start = planned(made.plan(2, ("0",)))["0"]
        own = made._pool.model("0")
        after = {name: tensor + 0.2 * (own[name] - tensor) for name, tensor in start.items()}
        kept = copy(made._updates.state_dict())  # what it looks at stays as it was
        made.merge(2, {"0": Upload("0", after, 9, ())})
        for name, tensor in made._updates.state_dict().items():
            tensor.copy_(kept[name])
        weights[direction] = made.mixing_weights(3, ("0",), {}).weights[0] - before
    assert bool((weights["descent"][:, 0] > 0).all())
    assert bool((weights["ascent"][:, 0] < 0).all())


def test_gamma_never_falls_below_0_and_comes_back() -> None:
    made = server(("0", "1"), learning_rate=1e4)
    for number in range(1, 7):
        made.merge(number, moved(planned(made.plan(number, ("0", "1"))), number))
        assert bool((made.state_dict()["gamma"] >= 0).all())
        if number == 1:
            made.state_dict()["gamma"].zero_()
    assert bool((made.state_dict()["gamma"] > 0).any())


def test_who_comes_late_changes_nobody_and_starts_from_the_mean_of_all_others() -> None:
    made = server(("0", "1", "2"))
    made.merge(1, moved(planned(made.plan(1, ("0", "1", "2"))), 1))
    starts = planned(made.plan(2, ("0", "1", "2")))
    made.add_clients(("0", "1", "2", "3"))
    again = planned(made.plan(2, ("0", "1", "2", "3")))
    for client, start in starts.items():
        assert all(torch.equal(tensor, again[client][name]) for name, tensor in start.items())
    for name in MANIFEST.shapes:
        mean = torch.stack([made._pool.model(c)[name] for c in "012"]).mean(0)
        assert torch.allclose(again["3"][name], mean, atol=1e-6)
    made.merge(2, moved({"3": again["3"]}, 2))
    assert bool((made.mixing_weights(3, ("0",), {}).weights[0, :, 3] > 0).all())


def test_with_a_rate_of_0_the_scalars_stay() -> None:
    made = server(("0", "1"), learning_rate=0.0, beta=2.0, gamma=0.25)
    made.merge(1, moved(planned(made.plan(1, ("0", "1"))), 1))
    assert made.state_dict()["beta"].unique().tolist() == [2.0]
    assert made.state_dict()["gamma"].unique().tolist() == [0.25]


def test_updates_have_the_inner_products_of_loops() -> None:
    updates = Updates(MANIFEST, drawn(0), torch.device("cpu"), Setup.__dataclass_fields__["storage"].default_factory())  # type: ignore[misc]
    updates.add(("0", "1", "2"))
    first, second = drawn(5), drawn(6)
    updates.put(["2", "0"], [first, second])
    alike = updates.alike(torch.tensor([0, 1]))
    for at, names in enumerate(NAMES):
        a, b = (torch.cat([tree[name].flatten() for name in names]) for tree in (second, first))
        cosine = float(a @ b / a.norm() / b.norm())
        assert alike[0, at].tolist() == pytest.approx([1.0, 0.0, cosine], abs=1e-6)
        assert alike[1, at].tolist() == [0.0, 0.0, 0.0]


def test_a_state_whose_products_are_not_finite_is_refused() -> None:
    made = server(("0", "1"))
    state = copy(made.state_dict())
    state["update-products"][0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="inner products of the clients' updates hold NaN"):
        server(()).load_state_dict(state)


def test_scalars_that_diverge_end_in_a_sentence() -> None:
    made = server(("0", "1"), learning_rate=1e6)
    made.merge(1, moved(planned(made.plan(1, ("0", "1"))), 1))
    uploads = moved(planned(made.plan(2, ("0", "1"))), 2)
    weighed = made._weigh(tuple(uploads))
    with pytest.raises(UserError, match=r"the scalars diverged: lower fedaghn.learning-rate=1e\+06"):
        made._learn(weighed, torch.full((2, 2, 2), torch.inf, dtype=torch.float64))


def test_a_run_keeps_no_more_on_clients_than_running_statistics_and_leaves_its_weights(federate: Federate) -> None:
    run = federate(strategy="fedaghn", clients=3, samples_per_client=64)
    assert not any("personal" in c.state.array_records for c in run.grid.contexts.values())
    assert (run.path / "mixing").is_dir()
    assert run.state["beta"].shape == (3, 4)
    assert not torch.equal(run.state["gamma"], torch.full((3, 4), 0.03))
