"""pFedMe: its copy descends the Moreau envelope of the loss, its server goes to the mean, and a round written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from cohorts import NETWORKS, TIGHT, dealt, far, models, one_at_a_time, together, trainer
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedham_flwr.algorithms.fedavg import aggregate
from fedham_flwr.algorithms.pfedme import Envelope, PFedMeSettings, inner_step, outer_step, server_step
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params, read
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.contract import Task
from fedham_flwr.federation.messages import Upload
from fedham_flwr.models import build
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.server_app import build_strategy
from fedham_flwr.settings import Value, parse
from fedham_flwr.training.local import LocalTraining


def of(**given: Any) -> PFedMeSettings:
    return PFedMeSettings(**given)


def number(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def parabola(at: Params, _part: int) -> Params:
    """The gradient of 3 (theta - 1)^2 / 2."""
    return {"w": 3.0 * (at["w"] - 1.0)}


def test_both_steps_by_hand() -> None:
    assert inner_step(number(2.0), number(3.0), number(1.5), 4.0, 0.1).item() == pytest.approx(2 - 0.1 * (3 + 4 * 0.5))
    assert outer_step(number(1.5), number(2.0), 4.0, 0.1).item() == pytest.approx(1.5 - 0.1 * 4 * (1.5 - 2.0))
    rule = Envelope({"w": number(2.0)}, of(penalty=4.0, inner_steps=2, inner_rate=0.1), 0.05)
    own = dict(rule.own)
    after = rule.step({"w": number(2.0)}, own, parabola)
    # 2 - 0.1 * 3 = 1.7; 1.7 - 0.1 * (3 * 0.7 + 4 * -0.3) = 1.61; 2 - 0.05 * 4 * (2 - 1.61) = 1.922
    assert own["w"].item() == pytest.approx(1.61)
    assert after["w"].item() == pytest.approx(1.922)


def test_enough_inner_steps_come_to_the_minimum_and_the_step_is_the_envelopes_gradient() -> None:
    """Of a (theta - c)^2 / 2 the minimum is at (a c + lambda w) / (a + lambda); the envelope by finite differences."""
    w, penalty = 2.0, 4.0
    own = {"w": number(w)}
    after = Envelope(own, of(penalty=penalty, inner_steps=200, inner_rate=0.1), 0.05).step(
        {"w": number(w)}, own, parabola
    )
    assert own["w"].item() == pytest.approx((3 * 1 + penalty * w) / (3 + penalty), abs=1e-12)

    def envelope(at: float) -> float:
        theta = (3 * 1 + penalty * at) / (3 + penalty)
        return 1.5 * (theta - 1) ** 2 + penalty / 2 * (theta - at) ** 2

    slope = (envelope(w + 1e-6) - envelope(w - 1e-6)) / 2e-6
    assert (w - after["w"].item()) / 0.05 == pytest.approx(slope, rel=1e-6)


def test_without_a_penalty_the_copy_stays_and_the_personal_model_is_descent_on_each_batch() -> None:
    draw = torch.Generator().manual_seed(0)
    start = {"w": torch.randn(3, 2, generator=draw)}
    own = {"w": start["w"].clone()}
    after = Envelope(own, of(penalty=0.0, inner_steps=3, inner_rate=0.1), 0.5).step(dict(start), own, parabola)
    assert torch.equal(after["w"], start["w"])
    wanted = start["w"].clone()
    for _ in range(3):
        wanted -= 0.1 * 3 * (wanted - 1)
    assert torch.allclose(own["w"], wanted)


def test_the_server_by_hand_and_with_one_it_takes_the_mean_bit_for_bit() -> None:
    before, mean = {"w": torch.tensor([1.0, 0.1])}, {"w": torch.tensor([3.0, 0.3])}
    assert server_step(before, mean, 2.0)["w"].tolist() == pytest.approx([5.0, 0.5])
    assert server_step(before, mean, 0.25)["w"].tolist() == pytest.approx([1.5, 0.15])
    assert torch.equal(server_step(before, mean, 1.0)["w"], mean["w"])


def server(mixing: float) -> Any:
    settings = parse({"strategy": "pfedme", "model": "lenet-bn", "pfedme.mixing": mixing, "device": "cpu"})
    model = build("lenet-bn", (1, 16, 16), 4, 0)
    manifest = manifest_of(model, [])
    return build_strategy(settings, manifest, read(model, manifest.names()), Task((1, 16, 16), 4))


def test_the_server_goes_beyond_the_mean_with_parameters_and_never_with_running_statistics() -> None:
    made = server(2.0)
    before = dict(made.shared)
    draw = torch.Generator().manual_seed(1)
    sent = [{n: t + torch.rand(t.shape, generator=draw) for n, t in before.items()} for _ in range(2)]
    uploads = {str(k): Upload(str(k), params, 10 + 20 * k, ()) for k, params in enumerate(sent)}
    made.merge(1, uploads)
    mean = aggregate(sent, [10, 30])
    for name, tensor in made.state_dict().items():
        wanted = mean[name] if name in made.manifest.buffers else 2 * mean[name] - before[name]
        assert torch.allclose(tensor, wanted, atol=1e-6), name
    assert any(name in made.manifest.buffers for name in mean)


@pytest.mark.parametrize("name", ["digits-cnn", "lenet-bn", "vit"])
def test_a_rule_is_the_same_for_many_clients_as_one_at_a_time(name: str) -> None:
    network, shape = NETWORKS[name]
    alone, engine = trainer(network, shape, torch.float64)
    sizes = [24, 16, 8] if name == "lenet-bn" else [30, 17, 5, 1]
    data, starts = dealt(shape, sizes), models(alone, len(sizes))
    training = LocalTraining(2, 8, 0.05, 0.9, 0.01, augment=False)

    def rules() -> list[Envelope]:
        return [Envelope({n: s[n].clone() for n in alone.parameter_names}, of(inner_rate=0.05), 0.05) for s in starts]

    here, there = rules(), rules()
    wanted = one_at_a_time(alone, starts, data, training, rule=there)
    found = together(engine, starts, data, training, rule=here)
    for (mine, _), (theirs, _), one, other in zip(found, wanted, here, there, strict=True):
        assert far(mine, theirs) < TIGHT
        assert far(one.own, other.own) < TIGHT
    assert engine.alone == {}


def gradient(model: torch.nn.Module, at: Mapping[str, Tensor], data: Any, chosen: Tensor) -> Params:
    model.load_state_dict(dict(at))
    leaves = dict(model.named_parameters())
    x, y = inputs_and_targets(data.features[chosen], data.labels[chosen])
    return dict(zip(leaves, torch.autograd.grad(cross_entropy(model(x), y), list(leaves.values())), strict=True))


def test_a_round_is_the_training_written_out(federate: Callable[..., Any], settings: Callable[..., Any]) -> None:
    """Two passes, so that the personal model is seen to go on from batch to batch; then the closing one's is used."""
    given: dict[str, Any] = {
        "strategy": "pfedme", "num_server_rounds": 1, "samples_per_client": 64, "batch_size": 16, "local_epochs": 2,
        "learning_rate": 0.05, "pfedme.penalty": 10.0, "pfedme.inner-steps": 2, "pfedme.mixing": 2.0,
    }  # fmt: skip
    run = federate(clients=1, partitioner="iid", min_clients=1, **given)
    data = open_partition(parse(settings(partitioner="iid", min_clients=1, **given)).data(), 0, 1)
    model, index = build("digits-cnn", (1, 8, 8), 10, 0), data.splits["train"]
    first = {name: param.detach().clone() for name, param in model.named_parameters()}

    def trained(w: Params, draw: torch.Generator) -> tuple[Params, Params]:
        theta = dict(w)
        for _ in range(2):
            for chosen in index[torch.randperm(len(index), generator=draw)].split(16):
                for _ in range(2):
                    slope = gradient(model, theta, data, chosen)
                    theta = {n: theta[n] - 0.09 * (slope[n] + 10 * (theta[n] - w[n])) for n in w}
                w = {n: w[n] - 0.05 * 10 * (w[n] - theta[n]) for n in w}
        return w, theta

    copy, _ = trained(dict(first), torch_stream(0, "batches", 1, "0"))
    assert all(torch.allclose(run.state[n], 2 * copy[n] - first[n], atol=2e-6) for n in first)
    common = {name: run.state[name] for name in first}
    _, theta = trained(common, torch_stream(0, "batches", 2, "0"))
    personal = load_file(run.path / "model" / "0.safetensors")
    assert all(torch.allclose(personal[n], theta[n], atol=2e-6) for n in theta)
    assert not torch.allclose(personal["fc2.weight"], common["fc2.weight"], atol=1e-3)
    assert not any("personal" in c.state.array_records for c in run.grid.contexts.values())  # nothing is kept


def test_without_a_penalty_a_run_leaves_the_common_model_as_it_was_and_clients_learn(
    federate: Callable[..., Any],
) -> None:
    run = federate(strategy="pfedme", clients=2, samples_per_client=64, **{"pfedme.penalty": 0.0})
    first = build("digits-cnn", (1, 8, 8), 10, 0).state_dict()
    assert all(torch.equal(tensor, first[name]) for name, tensor in run.state.items())
    losses = {
        phase: sum(r.value for r in run.rows if (r.round, r.split, r.phase, r.metric) == (3, "test", phase, "loss"))
        for phase in ("before", "after")
    }
    assert losses["after"] < losses["before"]


BAD: list[tuple[dict[str, Value], str]] = [
    ({"optimizer": "adam"}, r'strategy="pfedme" takes steps of its own, .* not optimizer="adam"'),
    ({"pfedme.mixing": 0.0}, r"pfedme.mixing=0.0"),  # the server would never learn
    ({"pfedme.inner-steps": 0}, r"pfedme.inner-steps=0"),
    ({"pfedme.penalty": -1.0}, r"pfedme.penalty=-1.0"),
    ({"pfedme.penalty": 30.0}, r"inner-rate=0.09 times pfedme.penalty=30 is 2.7, .* wanted at most 2"),
]


@pytest.mark.parametrize(("changed", "sentence"), BAD)
def test_what_it_cannot_do_is_refused(federate: Callable[..., Any], changed: dict[str, Value], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        federate(strategy="pfedme", **changed)
