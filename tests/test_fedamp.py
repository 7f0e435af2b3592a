"""FedAMP and HeurFedAMP: weights by hand and by loops, a pull that has a gradient, and local training at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixers import after_rounds, flat, models_of, names, scores, server, state_of, trained
from presets import planned

from fedham_flwr.algorithms.fedamp import FedAMPSettings, attention, heuristic, step_of
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.clients import open_partition
from fedham_flwr.models import build
from fedham_flwr.reporting.mixing_weights import read_weights
from fedham_flwr.settings import parse
from fedham_flwr.training.trainer import Trainer

ALL = torch.ones(1, 3, dtype=torch.bool)
FIRST = torch.tensor([0])


def test_the_known_answers() -> None:
    xi = attention(torch.tensor([[0.0, 1.0, 4.0]], dtype=torch.float64), FIRST, ALL, 0.1, 1.0)
    wanted = torch.tensor([[1 - 0.0367879 - 0.0018316, 0.0367879, 0.0018316]], dtype=torch.float64)
    torch.testing.assert_close(xi, wanted, atol=1e-7, rtol=0)
    cosines = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    xi = heuristic(cosines, FIRST, ALL, 0.4, math.log(3.0))  # 3 : 1 of what is left
    torch.testing.assert_close(xi, torch.tensor([[0.4, 0.45, 0.15]], dtype=torch.float64))


@given(st.integers(1, 6), st.integers(0, 2**31), st.floats(1e-3, 10), st.floats(0.1, 10), st.floats(0, 1))
def test_the_weights_are_those_of_a_loop(n: int, seed: int, alpha: float, sigma: float, self_weight: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    squares = 4 * torch.rand(n, n, generator=draw, dtype=torch.float64)
    cosines = 2 * torch.rand(n, n, generator=draw, dtype=torch.float64) - 1
    allowed, own = torch.rand(n, n, generator=draw) < 0.7, torch.arange(n)
    amp = attention(squares, own, allowed, alpha, sigma)
    heur = heuristic(cosines, own, allowed, self_weight, 3.0)
    for i in range(n):
        others = [j for j in range(n) if j != i and bool(allowed[i, j])]
        given_away = {j: alpha * math.exp(-float(squares[i, j]) / sigma) / sigma for j in others}
        scale = max(1.0, math.fsum(given_away.values()))
        total = math.fsum(math.exp(3.0 * float(cosines[i, j])) for j in others)
        for j in range(n):
            part = given_away[j] / scale if j in others else 0.0
            assert float(amp[i, j]) == pytest.approx(
                part if j != i else 1 - math.fsum(given_away.values()) / scale, abs=1e-12
            )
            share = (1 - self_weight) * math.exp(3.0 * float(cosines[i, j])) / total if j in others else 0.0
            mine = self_weight if others else 1.0
            assert float(heur[i, j]) == pytest.approx(share if j != i else mine, abs=1e-12)
    for xi in (amp, heur):
        assert bool((xi >= 0).all())
        torch.testing.assert_close(xi.sum(1), torch.ones(n, dtype=torch.float64))


def test_alpha_decays_and_is_never_zero() -> None:
    settings = FedAMPSettings(alpha=8.0, alpha_decay=0.5, alpha_every=2)
    assert [step_of(settings, number) for number in (1, 2, 3, 4, 5)] == [8.0, 8.0, 4.0, 4.0, 2.0]
    assert step_of(settings, 10**6) > 0


# ---- rounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"alpha": 2.0, "sigma": 100.0}, {"variant": "heuristic", "self_weight": 0.2}])
def test_a_cloud_model_is_the_weighted_sum_of_the_last_models(given: dict[str, Any]) -> None:
    made = after_rounds(server("fedamp", **given), 2)
    w, clouds = models_of(made), planned(made.plan(3, names(4)))
    recorded = made.mixing_weights(3, names(4), {}).weights
    for i, client in enumerate(names(4)):
        if "alpha" in given:
            xi = [0.02 * math.exp(-float((w[i] - other).square().sum()) / 100) for other in w]
        else:
            xi = [math.exp(10 * float(torch.cosine_similarity(w[i], other, dim=0))) for other in w]
            total = math.fsum(xi) - xi[i]
            xi = [0.8 * each / total for each in xi]
        xi[i] = 1 - (math.fsum(xi) - xi[i])
        cloud = sum(weight * model for weight, model in zip(xi, w, strict=True))
        assert torch.allclose(flat(clouds[client]), cloud, atol=1e-5)
        assert torch.allclose(recorded[i], torch.tensor(xi), atol=1e-5)


def test_with_a_vanishing_step_and_no_pull_it_is_local_training_bit_for_bit(federate: Callable[..., Any]) -> None:
    ends = {"fedamp.alpha": 1e-30, "fedamp.penalty": 0.0}
    amp, local = (
        federate(strategy="fedamp", samples_per_client=64, **ends),
        federate(strategy="local", samples_per_client=64),
    )
    closing = [row for row in scores(amp) if row[0] == 3]
    assert closing == [row for row in scores(local) if row[0] == 3]
    alone = {"fedamp.variant": "heuristic", "fedamp.self-weight": 1.0, "fedamp.penalty": 0.0}
    assert scores(federate(strategy="fedamp", samples_per_client=64, **alone)) == scores(amp)


def test_the_pull_has_a_gradient_and_a_round_is_the_training_written_out(
    federate: Callable[..., Any], settings: Callable[..., Any]
) -> None:
    """By autograd of L(w) + lambda / (2 alpha) |w - u|^2: in PFLlib the second part has none."""
    given = {"strategy": "fedamp", "num_server_rounds": 1, "samples_per_client": 64, "momentum": 0.0}
    run = federate(clients=1, partitioner="iid", min_clients=1, **given, **{"fedamp.alpha": 0.5, "fedamp.penalty": 2.0})
    chosen = parse(settings(partitioner="iid", min_clients=1, **given))
    data, model = open_partition(chosen.data(), 0, 1), build("digits-cnn", (1, 8, 8), 10, 0)
    trainer = Trainer(model, torch.device("cpu"), "fp32")
    cloud = {name: tensor.clone() for name, tensor in trainer.initial.items()}

    def pulled(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        far = sum((p - cloud[n]).square().sum() for n, p in network.named_parameters())
        return torch.nn.functional.cross_entropy(network(x), y) + 2.0 / (2 * 0.5) * far

    found = flat(the_model(run))
    for loss, same in ((pulled, True), (None, False)):
        trainer.load(cloud)
        trainer.fit(data, chosen.local_training(1), torch_stream(0, "batches", 1, "0"), loss=loss)
        wanted = flat(trainer.read(trainer.manifest.names()))
        assert torch.allclose(found, wanted, atol=1e-6) is same


def the_model(run: Any) -> dict[str, torch.Tensor]:
    """The only client's model, by layer group in order."""
    return {group: run.state[f"bank/{group}"][0] for group in ("conv1", "conv2", "fc1", "fc2")}


def test_weights_are_recorded_and_a_client_that_comes_late_is_mixed_into_nobody_yet(
    federate: Callable[..., Any],
) -> None:
    run = federate(strategy="fedamp", samples_per_client=64, **{"fedamp.sigma": 100.0})
    sums = read_weights(run.path).to_pandas().groupby(["round", "client", "group"], observed=True)["weight"].sum()
    assert len(sums) == 3 * 4 * 4
    assert (sums - 1).abs().max() < 1e-6
    made = after_rounds(server("fedamp", sigma=100.0), 2)
    before = planned(made.plan(3, names(4)))
    made.add_clients((*names(4), "9"))
    after = planned(made.plan(3, (*names(4), "9")))
    assert all(torch.allclose(flat(before[client]), flat(after[client]), atol=1e-6) for client in names(4))
    weights = made.mixing_weights(3, (*names(4), "9"), {}).weights
    assert not weights[:4, :, 4].any()
    assert weights[4, 0, 4] > 0


@pytest.mark.parametrize("variant", ["amp", "heuristic"])
def test_everything_that_is_learned_is_in_the_state(variant: str) -> None:
    whole = after_rounds(server("fedamp", variant=variant, sigma=100.0), 2)
    again = server("fedamp", 0, variant=variant, sigma=100.0)
    again.load_state_dict(state_of(whole))
    for made in (whole, again):
        made.merge(3, trained(planned(made.plan(3, ("1", "3"))), 3))
    other = state_of(again)
    assert all(torch.equal(tensor, other[name]) for name, tensor in state_of(whole).items())
    with pytest.raises(ValueError, match=r"gram/products is torch.float32"):
        again.load_state_dict({**other, "gram/products": torch.zeros(2, 2)})
