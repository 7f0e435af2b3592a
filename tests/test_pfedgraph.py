"""pFedGraph: rows against a solver, its two ends, the sign of its term by finite differences, and rounds by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixers import after_rounds, flat, models_of, names, server, state_of, trained
from presets import planned
from scipy.optimize import LinearConstraint, minimize

from fedham_flwr.algorithms import fedavg
from fedham_flwr.algorithms.pfedgraph import Similarity, graph, projected, reference_of
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.clients import open_partition
from fedham_flwr.models import build
from fedham_flwr.reporting.mixing_weights import read_weights
from fedham_flwr.settings import parse
from fedham_flwr.training.trainer import Trainer


@given(st.integers(1, 6), st.integers(0, 2**31), st.floats(0.05, 5.0))
def test_a_row_is_what_a_solver_of_quadratic_programs_finds(n: int, seed: int, alpha: float) -> None:
    draw = np.random.default_rng(seed)
    cosines, samples, allowed = draw.uniform(-1, ALMOST, (2, n)), draw.integers(1, 50, n), draw.random(n) < 0.7
    allowed[draw.integers(n)] = True
    p = np.where(allowed, samples, 0) / samples[allowed].sum()
    rows = graph(*(torch.from_numpy(each) for each in (cosines, p, np.tile(allowed, (2, 1)))), alpha).numpy()
    there = np.flatnonzero(allowed)
    for row, c in zip(rows, cosines, strict=True):
        assert not row[~allowed].any()

        def cost(x: Any, c: Any = c) -> float:
            return float(alpha * np.square(x - p[there]).sum() - c[there] @ x)

        found = minimize(
            cost, np.full(len(there), 1 / len(there)), method="SLSQP", bounds=[(0, 1)] * len(there),
            constraints=LinearConstraint(np.ones(len(there)), 1, 1), options={"ftol": 1e-13, "maxiter": 500},
        )  # fmt: skip
        np.testing.assert_allclose(row[there], found.x, atol=2e-5)
        assert cost(row[there]) <= cost(found.x) + 1e-9


ALMOST = 0.9


def test_a_projection_by_hand_and_of_a_point_that_is_there_already() -> None:
    everyone = torch.ones(2, 3, dtype=torch.bool)
    v = torch.tensor([[1.0, 0.5, -2.0], [0.2, 0.3, 0.5]], dtype=torch.float64)
    wanted = torch.tensor([[0.75, 0.25, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(projected(v, everyone), wanted)


def test_the_ends_are_fedavgs_weights_and_the_most_similar_alone() -> None:
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    cosines = torch.tensor([[1.0, 0.7, -0.1], [0.7, 1.0, 0.2], [-0.1, 0.2, 1.0]], dtype=torch.float64)
    everyone = torch.ones(3, 3, dtype=torch.bool)
    torch.testing.assert_close(graph(cosines, p, everyone, 1e12), p.expand(3, -1))
    assert torch.equal(graph(cosines, p, everyone, 1e-30), torch.eye(3, dtype=torch.float64))
    # A cosine above 0.9 counts as 1: both are equally similar, and differ by their shares alone.
    near = graph(torch.tensor([[1.0, 0.95, 0.0]], dtype=torch.float64), p, everyone[:1], 0.2)
    torch.testing.assert_close(near, torch.tensor([[0.6, 0.4, 0.0]], dtype=torch.float64))


# ---- the term --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clients", [0, 2])
def test_the_term_has_the_gradient_of_finite_differences(clients: int) -> None:
    draw = torch.Generator().manual_seed(1)
    one = {"a": (2, 3), "b": (4,)}
    terms, models = [], []
    for _ in range(max(1, clients)):
        reference, model = (
            {n: torch.randn(shape, generator=draw, dtype=torch.float64) for n, shape in one.items()} for _ in range(2)
        )
        terms.append(Similarity(reference, -0.3))
        models.append((reference, model))
    stacked = {n: torch.stack([model[n] for _, model in models]) for n in one}
    term, params = (terms[0].stacked(terms), stacked) if clients else (terms[0], models[0][1])
    # A layer that stays with each client has no reference, and no part in the term.
    params = {"own": torch.randn(clients or 1, 3, generator=draw, dtype=torch.float64), **params}
    slopes = {n: torch.ones_like(p) for n, p in params.items()}
    term.look({"own": params["own"]})
    term.look(params)
    for name, param in params.items():
        term(name, param, slopes[name])
    assert torch.equal(slopes.pop("own"), torch.ones_like(params["own"]))
    for place, (reference, model) in enumerate(models):
        r = flat(reference)

        def loss(w: torch.Tensor, r: torch.Tensor = r) -> torch.Tensor:
            return -0.3 * (r @ w) / w.norm()

        w, step = flat(model), 1e-6 * torch.eye(10, dtype=torch.float64)
        wanted = torch.stack([(loss(w + h) - loss(w - h)) / 2e-6 for h in step])
        found = flat({n: (s[place] if clients else s) - 1 for n, s in slopes.items()})
        torch.testing.assert_close(found, wanted, atol=1e-8, rtol=1e-6)
        assert loss(w - 0.01 * found) < loss(w)  # a step along it makes the model more similar
        assert torch.dot(r, w - 0.01 * found) / (w - 0.01 * found).norm() > torch.dot(r, w) / w.norm()


@pytest.mark.parametrize(
    ("sign", "weight", "reference"),
    [("paper", -0.5, "normalised"), ("code", 0.5, "normalised"), ("paper", -0.5, "mixture")],
)
def test_a_round_is_the_training_written_out(
    federate: Callable[..., Any], settings: Callable[..., Any], sign: str, weight: float, reference: str
) -> None:
    """The second round of two, from the first one's model, whose unit vector is either reference; by autograd."""
    given = {"strategy": "pfedgraph", "samples_per_client": 64, "momentum": 0.0}
    own = {"pfedgraph.penalty": 0.5, "pfedgraph.sign": sign, "pfedgraph.reference": reference}
    run = federate(clients=1, partitioner="iid", min_clients=1, **given, **own)
    chosen = parse(settings(partitioner="iid", min_clients=1, **given))
    data, model = open_partition(chosen.data(), 0, 1), build("digits-cnn", (1, 8, 8), 10, 0)
    trainer = Trainer(model, torch.device("cpu"), "fp32")
    trainer.fit(data, chosen.local_training(1), torch_stream(0, "batches", 1, "0"))
    first = flat(trainer.read(trainer.parameter_names))
    unit = (first / first.norm()).float()

    def similar(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        w = torch.cat([p.flatten() for p in network.parameters()])
        return torch.nn.functional.cross_entropy(network(x), y) + weight * torch.dot(unit, w) / w.norm()

    trainer.fit(data, chosen.local_training(2), torch_stream(0, "batches", 2, "0"), loss=similar)
    found = torch.cat([run.state[f"bank/{group}"][0] for group in ("conv1", "conv2", "fc1", "fc2")]).double()
    assert torch.allclose(found, flat(trainer.read(trainer.manifest.names())), atol=1e-6)


def test_the_mixture_as_a_reference_has_length_1_without_running_statistics() -> None:
    start = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]]), "running_mean": torch.tensor([100.0])}
    found = reference_of({}, start, ("a", "b"))
    assert found.keys() == {"a", "b"}
    torch.testing.assert_close(flat(found), torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64))
    assert reference_of({"reference/a": start["a"]}, start, ("a", "b")) == {"a": start["a"]}
    assert not flat(reference_of({}, {"a": torch.zeros(2)}, ("a",))).any()


# ---- rounds ----------------------------------------------------------------------------------------------------------


def test_what_is_sent_is_the_mixture_and_the_reference_of_the_row() -> None:
    made = after_rounds(server("pfedgraph", alpha=0.3), 2)
    w = models_of(made)
    u = w - flat(made.first)
    plan, recorded = made.plan(3, names(4)), made.mixing_weights(3, names(4), {}).weights
    p = torch.arange(10, 14).double() / 46
    cosines = torch.stack([torch.cosine_similarity(u[i], u, dim=1) for i in range(4)])
    wanted = graph(cosines, p, torch.ones(4, 4, dtype=torch.bool), 0.3)
    assert wanted.std() > 0.05
    for i, client in enumerate(names(4)):
        assert torch.allclose(recorded[i].double(), wanted[i], atol=1e-5)
        assert torch.allclose(flat(plan[client].params), wanted[i] @ w, atol=1e-5)
        reference = plan[client].extras.tensors
        assert list(reference) == [f"reference/{name}" for name in made.manifest.names()]
        assert torch.allclose(flat(reference), wanted[i] @ (w / w.norm(dim=1, keepdim=True)), atol=1e-5)


def test_with_a_large_alpha_everybody_starts_from_fedavgs_mean() -> None:
    made = after_rounds(server("pfedgraph", alpha=1e9), 1)
    uploads = trained(planned(made.plan(2, names(4))), 2)
    made.merge(2, uploads)
    mean = fedavg.aggregate([u.params for u in uploads.values()], [u.examples for u in uploads.values()])
    for start in planned(made.plan(3, names(4))).values():
        assert all(torch.allclose(start[name], tensor, atol=1e-6) for name, tensor in mean.items())


@pytest.mark.parametrize("given", [{"penalty": 0.0}, {"reference": "mixture"}])
def test_a_reference_is_sent_only_if_it_is_another_model(given: dict[str, Any]) -> None:
    made = after_rounds(server("pfedgraph", **given), 1)
    for start in made.plan(2, names(4)).values():
        assert not start.extras.tensors
        assert start.extras.facts == {"regularised": (int("reference" in given),)}


def test_absent_clients_are_mixed_and_those_that_never_trained_are_not() -> None:
    made = server("pfedgraph")
    made.merge(1, trained(planned(made.plan(1, ("0", "2"))), 1))
    made.merge(2, trained(planned(made.plan(2, ("2", "3"))), 2))
    weights = made.mixing_weights(3, names(4), {}).weights[:, 0]
    assert not weights[:, 1].any()
    assert bool((weights[[0, 2, 3], [0, 2, 3]] > 0).all())
    torch.testing.assert_close(weights[1], torch.tensor([10.0, 0.0, 12.0, 13.0]) / 35)  # nothing is known of it


def test_everything_that_is_learned_is_in_the_state() -> None:
    whole, again = after_rounds(server("pfedgraph"), 2), server("pfedgraph", 0)
    again.load_state_dict(state_of(whole))
    for made in (whole, again):
        made.merge(3, trained(planned(made.plan(3, ("1", "3"))), 3))
    other = state_of(again)
    assert all(torch.equal(tensor, other[name]) for name, tensor in state_of(whole).items())
    with pytest.raises(ValueError, match="samples"):
        again.load_state_dict({name: tensor for name, tensor in other.items() if name != "samples"})


def test_the_graph_is_recorded_once_there_is_one(federate: Callable[..., Any]) -> None:
    run = federate(strategy="pfedgraph", samples_per_client=64)
    sums = read_weights(run.path).to_pandas().groupby(["round", "client", "group"], observed=True)["weight"].sum()
    assert sorted({key[0] for key in sums.index}) == [2, 3]
    assert (sums - 1).abs().max() < 1e-6
