"""APFL: what its step descends, its two ends as FedAvg and local training, and a round written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from cohorts import NETWORKS, TIGHT, dealt, far, models, one_at_a_time, together, trainer
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedham_flwr.algorithms.apfl import ALPHA, Mixing, alpha_step, mixed, mixture
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.record_values import tensors
from fedham_flwr.models import build
from fedham_flwr.settings import Value, parse
from fedham_flwr.training.local import LocalTraining

PLAIN: dict[str, Value] = {"momentum": 0.0, "learning_rate": 0.1, "samples_per_client": 64}


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def parabola(at: Params, _part: int) -> Params:
    """The gradient of 3 (w - 1)^2 / 2."""
    return {"w": 3.0 * (at["w"] - 1.0)}


def taken(rule: Mixing, w: Tensor, steps: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """The copy, the own model and alpha of one client after steps."""
    own = {name: value[None].clone() for name, value in rule.own.items()}
    params = {"w": w[None]}
    for _ in range(steps):
        params = rule.step(params, own, parabola)
    return params["w"][0], own["w"][0], own[ALPHA][0]


def test_a_step_by_hand() -> None:
    # v = 3, w = 2, alpha = 0.25: u = 2.25, of which the gradient is 3.75; that of w is 3
    w, v, alpha = taken(Mixing({"w": numbers(3.0)}, numbers(0.25)[0], "step", 0.1), numbers(2.0))
    assert w.item() == pytest.approx(2 - 0.1 * 3)
    assert v.item() == pytest.approx(3 - 0.1 * 0.25 * 3.75)
    assert alpha.item() == 0  # 0.25 - 0.1 * (3 - 2) * 3.75 is below
    _, _, alpha = taken(Mixing({"w": numbers(1.9)}, numbers(0.25)[0], "step", 0.1), numbers(2.0))
    assert alpha.item() == pytest.approx(0.25 + 0.1 * 0.1 * 3 * (0.25 * 1.9 + 0.75 * 2 - 1))


def test_own_model_and_alpha_descend_the_loss_of_the_mixture() -> None:
    """By finite differences of that loss in each number of v and in alpha, for a curved loss and several tensors."""
    draw = torch.Generator().manual_seed(0)
    v, w = ({n: torch.randn(1, 3, generator=draw, dtype=torch.float64) for n in "ab"} for _ in range(2))
    alpha, rate = torch.tensor([0.4], dtype=torch.float64), 1e-4

    def loss(own: Params, share: Tensor) -> Tensor:
        u = {n: mixture(own[n], w[n], share) for n in w}
        return (u["a"] * u["b"]).sum().exp() + u["a"].pow(4).sum()

    def slopes(at: Params, _part: int) -> Params:
        leaves = {n: t.clone().requires_grad_() for n, t in at.items()}
        whole = (leaves["a"] * leaves["b"]).sum().exp() + leaves["a"].pow(4).sum()
        return dict(zip(leaves, torch.autograd.grad(whole, list(leaves.values())), strict=True))

    rule = Mixing({n: t[0] for n, t in v.items()}, alpha[0], "step", rate)
    own = {name: value[None].clone() for name, value in rule.own.items()}
    rule.step(dict(w), own, slopes)
    for name in "ab":
        for i in range(3):
            ahead, behind = ({n: t.clone() for n, t in v.items()} for _ in range(2))
            ahead[name][0, i] += 1e-6
            behind[name][0, i] -= 1e-6
            slope = (loss(ahead, alpha) - loss(behind, alpha)) / 2e-6
            assert (v[name] - own[name])[0, i].item() / rate == pytest.approx(slope.item(), rel=1e-5, abs=1e-7)
    slope = (loss(v, alpha + 1e-6) - loss(v, alpha - 1e-6)) / 2e-6
    assert (alpha - own[ALPHA]).item() / rate == pytest.approx(slope.item(), rel=1e-5)


def test_many_alphas_are_a_loop_over_clients_and_scalars() -> None:
    draw = torch.Generator().manual_seed(1)
    own, common, slopes = (
        {n: torch.randn(5, *shape, generator=draw) for n, shape in (("a", (2, 3)), ("b", (4,)))} for _ in range(3)
    )
    alpha = torch.rand(5, generator=draw)
    found = alpha_step(alpha, own, common, slopes, 0.05)
    for k in range(5):
        product = 0.0
        for n, slope in slopes.items():
            for v, w, g in zip(own[n][k].flatten(), common[n][k].flatten(), slope[k].flatten(), strict=True):
                product += (v.item() - w.item()) * g.item()
        assert found[k].item() == pytest.approx(min(1.0, max(0.0, alpha[k].item() - 0.05 * product)), abs=1e-5)


def test_when_alpha_moves() -> None:
    alphas = {}
    for adapt in ("step", "round", "no"):
        rule = Mixing({"w": numbers(1.9)}, numbers(0.25)[0], adapt, 0.1)
        alphas[adapt] = [taken(rule, numbers(2.0), steps)[2].item() for steps in (1, 2)]
    assert alphas["no"] == [0.25, 0.25]
    assert alphas["round"][0] == alphas["round"][1] == alphas["step"][0] > 0.25
    assert alphas["step"][1] != alphas["step"][0]


def test_the_ends_are_the_common_and_the_own_model_and_running_statistics_are_its_own() -> None:
    own, common = ({"w": torch.randn(3), "mean": torch.randn(3)} for _ in range(2))
    assert torch.equal(mixed(own, common, torch.tensor(0.0), {"w"})["w"], common["w"])
    for alpha in (0.0, 0.5, 1.0):
        assert torch.equal(mixed(own, common, torch.tensor(alpha), {"w"})["mean"], own["mean"])
    assert torch.equal(mixed(own, common, torch.tensor(1.0), {"w"})["w"], own["w"])


@pytest.mark.parametrize("name", ["digits-cnn", "lenet-bn", "vit"])
@pytest.mark.parametrize("adapt", ["step", "round"])
def test_a_rule_is_the_same_for_many_clients_as_one_at_a_time(name: str, adapt: str) -> None:
    network, shape = NETWORKS[name]
    alone, engine = trainer(network, shape, torch.float64)
    sizes = [24, 16, 8] if name == "lenet-bn" else [30, 17, 5, 1]
    data, starts = dealt(shape, sizes), models(alone, len(sizes))
    training = LocalTraining(2, 8, 0.05, 0.9, 0.01, augment=False)

    def rules() -> list[Mixing]:
        shares = torch.linspace(0.3, 0.7, len(sizes), dtype=torch.float64)
        return [
            Mixing({n: s[n] + 0.01 for n in alone.parameter_names}, share.clone(), adapt, 0.05)
            for s, share in zip(starts, shares, strict=True)
        ]

    here, there = rules(), rules()
    wanted = one_at_a_time(alone, starts, data, training, rule=there)
    found = together(engine, starts, data, training, rule=here)
    for (mine, _), (theirs, _), one, other in zip(found, wanted, here, there, strict=True):
        assert far(mine, theirs) < TIGHT
        assert far(one.own, other.own) < TIGHT
    assert len({float(rule.own[ALPHA]) for rule in here} | {0.3, 0.7}) == len(sizes) + 2
    assert engine.alone == {}


def kept(run: Any) -> list[dict[str, Tensor]]:
    return [tensors(context.state.array_records["personal"]) for context in run.grid.contexts.values()]


def test_nothing_of_its_own_is_fedavg(federate: Callable[..., Any]) -> None:
    run = federate(strategy="apfl", **PLAIN, **{"apfl.alpha": 0.0, "apfl.adapt": "no"})
    average = federate(strategy="fedavg", **PLAIN)
    assert all(torch.allclose(run.state[name], tensor, atol=1e-5) for name, tensor in average.state.items())
    for file in (run.path / "model").glob("*.safetensors"):
        mine = load_file(file)
        assert all(torch.equal(mine[name], tensor) for name, tensor in run.state.items())  # used as it is
    first = build("digits-cnn", (1, 8, 8), 10, 0).state_dict()
    assert all(torch.equal(own["private/" + name], first[name]) for own in kept(run) for name in run.state)


def test_nothing_of_the_common_model_is_local_training(federate: Callable[..., Any]) -> None:
    run = federate(strategy="apfl", **PLAIN, **{"apfl.alpha": 1.0, "apfl.adapt": "no"})
    local = federate(strategy="local", **PLAIN)
    for file in (local.path / "model").glob("*.safetensors"):
        mine, theirs = load_file(run.path / "model" / file.name), load_file(file)
        assert all(torch.allclose(mine[name], tensor, atol=1e-5) for name, tensor in theirs.items())


def gradient(model: torch.nn.Module, at: Mapping[str, Tensor], data: Any, chosen: Tensor) -> Params:
    model.load_state_dict(dict(at))
    leaves = dict(model.named_parameters())
    x, y = inputs_and_targets(data.features[chosen], data.labels[chosen])
    return dict(zip(leaves, torch.autograd.grad(cross_entropy(model(x), y), list(leaves.values())), strict=True))


@pytest.mark.parametrize("adapt", ["step", "round"])
def test_two_rounds_are_the_training_written_out(
    federate: Callable[..., Any], settings: Callable[..., Any], adapt: str
) -> None:
    given: dict[str, Any] = {
        "strategy": "apfl", "num_server_rounds": 2, **PLAIN, "batch_size": 16, "learning_rate": 0.1,
        "apfl.alpha": 0.75, "apfl.adapt": adapt,
    }  # fmt: skip
    run = federate(clients=2, partitioner="iid", **given)
    chosen = parse(settings(partitioner="iid", **given))
    data = [open_partition(chosen.data(), k, 2) for k in range(2)]
    model = build("digits-cnn", (1, 8, 8), 10, 0)
    common = {name: param.detach().clone() for name, param in model.named_parameters()}
    own, alphas = [dict(common) for _ in data], [torch.tensor(0.75) for _ in data]
    for number in (1, 2):
        copies = []
        for k, samples in enumerate(data):
            w, index = dict(common), samples.splits["train"]
            order = index[torch.randperm(len(index), generator=torch_stream(0, "batches", number, str(k)))]
            for step, batch in enumerate(order.split(16)):
                v, alpha = own[k], alphas[k]
                u = {n: alpha * v[n] + (1 - alpha) * w[n] for n in w}
                there, here = gradient(model, u, samples, batch), gradient(model, w, samples, batch)
                if adapt == "step" or step == 0:
                    moved = sum(((v[n] - w[n]) * there[n]).sum() for n in w)
                    alphas[k] = (alpha - 0.1 * moved).clamp(0, 1)
                own[k] = {n: v[n] - 0.1 * alpha * there[n] for n in v}
                w = {n: w[n] - 0.1 * here[n] for n in w}
            copies.append(w)
        sizes = [len(samples.splits["train"]) for samples in data]
        common = {n: sum(s * w[n] for s, w in zip(sizes, copies, strict=True)) / sum(sizes) for n in common}
    assert all(torch.allclose(run.state[n], common[n], atol=5e-6) for n in common)
    for k, found in enumerate(kept(run)):
        assert found.keys() == {ALPHA, *("private/" + name for name in common)}
        assert found[ALPHA].item() == pytest.approx(alphas[k].item(), abs=1e-5)
        assert found[ALPHA].item() != 0.75
        assert all(torch.allclose(found["private/" + n], own[k][n], atol=5e-6) for n in common)
        used = load_file(run.path / "model" / f"{k}.safetensors")  # of the common model that came last
        share = alphas[k]
        assert all(torch.allclose(used[n], share * own[k][n] + (1 - share) * common[n], atol=1e-5) for n in common)


def test_a_client_that_comes_late_begins_at_the_common_model_that_it_is_sent(federate: Callable[..., Any]) -> None:
    run = federate(strategy="apfl", novel_clients=1, novel_steps=1, clients=3, **PLAIN)
    (novel,) = {row.client for row in run.rows if row.population == "novel"}
    rows = {row.phase: row.value for row in run.rows if (row.client, row.split, row.metric) == (novel, "test", "loss")}
    average = federate(strategy="fedavg", novel_clients=1, novel_steps=1, clients=3, **PLAIN)
    theirs = {r.phase: r.value for r in average.rows if (r.client, r.split, r.metric) == (novel, "test", "loss")}
    assert rows["before"] == pytest.approx(theirs["before"], rel=1e-4)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"optimizer": "adam"}, r'strategy="apfl" takes steps of its own, .* not optimizer="adam"'),
        ({"apfl.alpha": 1.5}, r"apfl.alpha=1.5"),
        ({"apfl.adapt": "often"}, r"apfl.adapt"),
    ],
)
def test_what_it_cannot_do_is_refused(federate: Callable[..., Any], changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        federate(strategy="apfl", **changed)
