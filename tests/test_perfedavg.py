"""Per-FedAvg: its step is the gradient of the loss after an inner step, and a round is what is written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from cohorts import NETWORKS, TIGHT, dealt, far, models, one_at_a_time, together, trainer
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedham_flwr.algorithms.perfedavg import FirstOrder, HessianFree, hessian_product, outer_slope
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.clients import open_partition
from fedham_flwr.models import build
from fedham_flwr.settings import parse
from fedham_flwr.training.local import LocalTraining

ALPHA, BETA = 0.3, 0.1
ONE = {"w": torch.tensor([[2.0, -1.0]], dtype=torch.float64)}


def curved(at: Tensor) -> Tensor:
    """A loss of one client's parameters [2] with a Hessian that is not constant."""
    return (at[0] * at[1]).exp() + 0.5 * at[0].square() + at[1].pow(4)


def slope(at: Params, _part: int = 0) -> Params:
    leaf = at["w"].clone().requires_grad_()
    (found,) = torch.autograd.grad(sum(curved(row) for row in leaf), leaf)  # type: ignore[arg-type]
    return {"w": found}


def meta(at: Tensor) -> Tensor:
    """The loss after an inner step, of which the whole step descends the gradient."""
    return curved(at - ALPHA * slope({"w": at[None]})["w"][0])


def parabola(at: Params, part: int) -> Params:
    """Gradients of a (w - c)^2 / 2 with another a and c in each part: 1 and 0; 3 and 1; 2 and 5."""
    a, c = ((1.0, 0.0), (3.0, 1.0), (2.0, 5.0))[part]
    return {"w": a * (at["w"] - c)}


def test_both_steps_by_hand() -> None:
    # w = 2: w - 0.3 * 2 = 1.4; v = 3 (1.4 - 1) = 1.2; H v on the third batch is 2 * 1.2 = 2.4
    w = {"w": torch.tensor([[2.0]], dtype=torch.float64)}
    assert FirstOrder(ALPHA, BETA).step(w, {}, parabola)["w"].item() == pytest.approx(2 - 0.1 * 1.2)
    after = HessianFree(ALPHA, BETA, 0.5).step(w, {}, parabola)["w"].item()
    assert after == pytest.approx(2 - 0.1 * (1.2 - 0.3 * 2.4))


def test_the_difference_of_gradients_is_the_hessians_product_to_second_order() -> None:
    v = torch.tensor([[0.7, 0.4]], dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(curved, ONE["w"][0])
    errors = []
    for delta in (1e-1, 1e-2, 1e-3):
        found = hessian_product(ONE, {"w": v}, slope, delta)["w"]
        errors.append(float((found[0] - hessian @ v[0]).norm()))
    assert errors[0] > 1e-4
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(100, rel=0.05)


def test_the_whole_step_is_the_gradient_of_the_loss_after_an_inner_step() -> None:
    """By finite differences of that loss; without the Hessian it is not."""
    steps = []
    for rule in (HessianFree(ALPHA, BETA, 1e-4), FirstOrder(ALPHA, BETA)):
        after = rule.step({"w": ONE["w"].clone()}, {}, slope)["w"]
        steps.append((ONE["w"] - after)[0] / BETA)
    for i in range(2):
        shift = torch.zeros(2, dtype=torch.float64)
        shift[i] = 1e-6
        wanted = (meta(ONE["w"][0] + shift) - meta(ONE["w"][0] - shift)) / 2e-6
        assert steps[0][i].item() == pytest.approx(wanted.item(), rel=1e-4)
        assert steps[1][i].item() != pytest.approx(wanted.item(), rel=1e-1)


def test_without_an_inner_step_both_are_a_plain_step_on_the_second_batch() -> None:
    for rule in (FirstOrder(0.0, BETA), HessianFree(0.0, BETA, 1e-3)):
        seen: list[int] = []

        def slopes(at: Params, part: int, seen: list[int] = seen) -> Params:
            seen.append(part)
            return parabola(at, part)

        after = rule.step({"w": ONE["w"].clone()}, {}, slopes)["w"]
        assert torch.allclose(after, ONE["w"] - BETA * 3 * (ONE["w"] - 1), atol=1e-12)
        assert set(seen) == set(range(rule.parts))


def test_many_clients_are_a_loop_over_them() -> None:
    draw = torch.Generator().manual_seed(0)
    w = {"w": torch.randn(5, 2, generator=draw, dtype=torch.float64)}
    for rule in (FirstOrder(ALPHA, BETA), HessianFree(ALPHA, BETA, 1e-2)):
        whole = rule.step(dict(w), {}, slope)["w"]
        for k in range(5):
            assert torch.allclose(whole[k], rule.step({"w": w["w"][k : k + 1]}, {}, slope)["w"][0], atol=1e-12)
    assert torch.equal(outer_slope(w, slope, 0.0)["w"], slope(w)["w"])


@pytest.mark.parametrize("name", ["mlp", "vit"])  # the second drops values
@pytest.mark.parametrize("make", [lambda: FirstOrder(0.1, 0.05), lambda: HessianFree(0.1, 0.05, 1e-3)])
def test_a_rule_is_the_same_for_many_clients_as_one_at_a_time(name: str, make: Callable[[], Any]) -> None:
    network, shape = NETWORKS[name]
    alone, engine = trainer(network, shape, torch.float64)
    sizes = [30, 17, 5, 2]
    data, starts = dealt(shape, sizes), models(alone, len(sizes))
    training = LocalTraining(2, 9, 0.05, 0.9, 0.01, augment=False)
    wanted = one_at_a_time(alone, starts, data, training, rule=[make() for _ in sizes])
    found = together(engine, starts, data, training, rule=[make() for _ in sizes])
    for (mine, _), (theirs, _) in zip(found, wanted, strict=True):
        assert far(mine, theirs) < 1e3 * TIGHT  # 1 / (2 delta) magnifies what rounding does
    assert engine.alone == {}


def gradient(model: torch.nn.Module, at: Mapping[str, Tensor], data: Any, chosen: Tensor) -> Params:
    model.load_state_dict(dict(at))
    x, y = inputs_and_targets(data.features[chosen], data.labels[chosen])
    leaves = dict(model.named_parameters())
    return dict(zip(leaves, torch.autograd.grad(cross_entropy(model(x), y), list(leaves.values())), strict=True))


@pytest.mark.parametrize("variant", ["fo", "hf"])
def test_a_round_is_the_training_written_out(
    federate: Callable[..., Any], settings: Callable[..., Any], variant: str
) -> None:
    given = {
        "strategy": "perfedavg", "num_server_rounds": 1, "samples_per_client": 64, "batch_size": 8,
        "learning_rate": 0.2, "perfedavg.variant": variant, "perfedavg.inner-rate": 0.1, "perfedavg.delta": 0.1,
    }  # fmt: skip
    run = federate(clients=1, partitioner="iid", min_clients=1, **given)
    data = open_partition(parse(settings(partitioner="iid", min_clients=1, **given)).data(), 0, 1)
    model, parts = build("digits-cnn", (1, 8, 8), 10, 0), 2 if variant == "fo" else 3
    w = {name: param.detach().clone() for name, param in model.named_parameters()}
    index = data.splits["train"]
    order = index[torch.randperm(len(index), generator=torch_stream(0, "batches", 1, "0"))]
    for chosen in order.split(8 * parts):
        first = gradient(model, w, data, chosen[0::parts])
        v = gradient(model, {n: w[n] - 0.1 * first[n] for n in w}, data, chosen[1::parts])
        step = v
        if variant == "hf":
            ahead, behind = (gradient(model, {n: w[n] + d * v[n] for n in w}, data, chosen[2::3]) for d in (0.1, -0.1))
            step = {n: v[n] - 0.1 * (ahead[n] - behind[n]) / 0.2 for n in w}
        w = {n: w[n] - 0.2 * step[n] for n in w}
    assert all(torch.allclose(run.state[name], w[name], atol=2e-6) for name in w)
    # The personal model: one step from the common one, on a batch of its own draw.
    order = index[torch.randperm(len(index), generator=torch_stream(0, "adaptation", 2, "0"))]
    step = gradient(model, run.state, data, order[:8])
    personal = load_file(run.path / "model" / "0.safetensors")
    assert all(torch.allclose(personal[n], run.state[n] - 0.1 * step[n], atol=1e-6) for n in w)
    assert not any("personal" in c.state.array_records for c in run.grid.contexts.values())  # nothing is kept


def test_adaptation_takes_as_many_steps_as_it_is_told(federate: Callable[..., Any]) -> None:
    given = {"strategy": "perfedavg", "num_server_rounds": 1, "samples_per_client": 64, "perfedavg.inner-rate": 0.1}
    losses = []
    for steps in (1, 5, 0):  # 0: an epoch, which is 2 steps of 32 of 42 samples
        run = federate(clients=2, **given, **{"perfedavg.adaptation-steps": steps})
        losses.append(sum(r.value for r in run.rows if (r.split, r.phase, r.metric) == ("test", "after", "loss")))
    assert losses[1] < losses[2] < losses[0]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"optimizer": "adam"}, r'strategy="perfedavg" takes steps of its own, .* not optimizer="adam"'),
        ({"max_grad_norm": 1.0}, r'strategy="perfedavg" takes steps of its own, .* not max-grad-norm=1'),
        ({"perfedavg.variant": "hf", "precision": "bf16"}, r'perfedavg.variant="hf" .* wanted precision="fp32"'),
        ({"perfedavg.delta": 0.0}, r"perfedavg.delta=0.0"),
    ],
)
def test_what_its_steps_cannot_do_is_refused(
    federate: Callable[..., Any], changed: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        federate(strategy="perfedavg", **changed)


def test_momentum_changes_nothing(federate: Callable[..., Any]) -> None:
    given = {"strategy": "perfedavg", "num_server_rounds": 1, "samples_per_client": 64, "clients": 2}
    digests = {federate(momentum=momentum, **given).summary["digest"] for momentum in (0.0, 0.9)}
    assert len(digests) == 1
