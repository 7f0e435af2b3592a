"""Adapters beside linear layers: against dense matrices, for many clients at once, and what is fixed."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fedham_flwr import models
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import LayerGroup, module_group
from fedham_flwr.models.adapted_weights import A, B, merged
from fedham_flwr.models.adapters import AdapterSettings
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.models.text_transformer import TextTransformerSettings
from fedham_flwr.training.engine.network import StackedNetwork

SHAPE = (1, 8, 8)
SMALL = TextTransformerSettings(width=8, depth=1, heads=2, head_dim=4, hidden_dim=8)
TEXT = ("text-transformer", SMALL)
NETWORKS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "digits-cnn": ("fc1", SHAPE),
    "lenet-bn": ("fc1 fc2", (1, 16, 16)),
    "text-transformer": ("blocks.0.attention.to_qkv", (6, 30, 2, 0)),
    "series-transformer": ("blocks.0.attention.to_qkv blocks.1.attention.to_qkv", (4, 12, 1, 0)),
}
"""Which layers get an adapter unless others are asked for, and the shape of a sample."""


def built(name: str = "digits-cnn", shape: tuple[int, ...] = SHAPE, adapters: AdapterSettings | None = None) -> Any:
    return models.build(name, shape, 3, 0, models.NetworkSettings((TEXT,), adapters=adapters))


def stir(model: nn.Module, only: str = "") -> None:
    """Have adapters that do something."""
    draw = torch.Generator().manual_seed(1)
    for name, param in model.named_parameters():
        if name.endswith(only or (A, B)):
            param.data.normal_(generator=draw)


def batch(shape: tuple[int, ...], samples: int = 4) -> Tensor:
    draw = torch.Generator().manual_seed(2)
    if shape[-1] == 0 and shape[-2] == 2:
        return torch.randint(0, shape[1], (samples, shape[0]), generator=draw)
    return torch.randn(samples, *(shape[:2] if shape[-1] == 0 else shape), generator=draw)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_begins_as_its_base_bit_for_bit_and_its_adapters_are_where_they_belong(name: str) -> None:
    layers, shape = NETWORKS[name]
    plain, model, x = built(name, shape).eval(), built(name, shape, AdapterSettings()).eval(), batch(shape)
    exact = "transformer" not in name  # where queries, keys and values were three products, and now are one
    torch.testing.assert_close(model(x), plain(x), **({"rtol": 0, "atol": 0} if exact else {}))
    for layer in map(model.get_submodule, layers.split()):
        given = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(3))
        assert torch.equal(layer(given), layer.base_layer(given))
    assert model.adapted_layers == tuple(layers.split())
    stir(model)
    assert not torch.allclose(model(x), plain(x))


@torch.no_grad()
def test_an_adapted_layer_is_the_dense_one_written_out() -> None:
    """W x + b + (alpha / r) B A x, number by number, for all targets of a network with more than one linear layer."""
    model = built("lenet-bn", (1, 16, 16), AdapterSettings(rank=3, alpha=6.0)).eval()
    stir(model)
    layer = model.fc2
    x = torch.randn(2, layer.in_features, generator=torch.Generator().manual_seed(3))
    first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    for row, found in zip(x, layer(x), strict=True):
        for o in range(4):
            product = sum(float(second[o, r]) * float(first[r] @ row) for r in range(3))
            wanted = float(layer.base_layer.weight[o] @ row + layer.base_layer.bias[o]) + 6.0 / 3 * product
            assert found[o].item() == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_without_adapters_predicts_the_same_with_the_merged_weights(name: str) -> None:
    settings = AdapterSettings(rank=4, alpha=2.0)
    model = built(name, NETWORKS[name][1], settings).eval()
    stir(model)
    plain = built(name, NETWORKS[name][1])
    plain.load_state_dict(merged(model.state_dict(), settings.scale))
    x = batch(NETWORKS[name][1])
    torch.testing.assert_close(plain.eval()(x), model(x), rtol=1e-4, atol=1e-4)
    for layer in model.adapted_layers:  # as `peft` merges
        wanted = model.get_submodule(layer).get_delta_weight("default")
        before = built(name, NETWORKS[name][1]).get_submodule(layer).weight
        torch.testing.assert_close(plain.get_submodule(layer).weight, before + wanted)


@pytest.mark.parametrize("name", NETWORKS)
def test_many_clients_with_one_fixed_base_run_as_one_program(name: str) -> None:
    shape = NETWORKS[name][1]
    model = built(name, shape, AdapterSettings())
    network = StackedNetwork(model, models.trial_batches(shape))  # which compares with one at a time
    assert (network.way, network.why, network.drops) == ("folded", "", True)
    own = [{n: p + 0.1 * k for n, p in model.named_parameters() if p.requires_grad} for k in range(3)]
    together = {name: torch.stack([each[name].detach() for each in own]) for name in own[0]}
    model.eval()
    x = batch(shape, 6)
    alone = [torch.func.functional_call(model, each, (part,)) for each, part in zip(own, x.chunk(3), strict=True)]
    torch.testing.assert_close(network(together, x), torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_all_but_adapters_and_classifier_is_fixed_also_running_statistics() -> None:
    model = built("lenet-bn", (1, 16, 16), AdapterSettings())
    manifest = manifest_of(model, models.trial_batches((1, 16, 16)))
    ends = [f"fc{number}.{part}" for number in (1, 2) for part in (A[1:], B[1:])]
    assert manifest.names() == (*ends, "fc3.weight", "fc3.bias")
    model.train()
    assert (model.bn1.training, model.training) == (False, True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(batch((1, 16, 16))).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(manifest.names())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_rank_targets_and_classifier_are_as_asked_for() -> None:
    asked = AdapterSettings(rank=2, targets="up *.down", classifier="head embedding.tokens")
    model = built("text-transformer", NETWORKS["text-transformer"][1], asked)
    manifest = manifest_of(model, models.trial_batches(NETWORKS["text-transformer"][1]))
    assert model.adapted_layers == ("blocks.0.up", "blocks.0.down")
    assert manifest.shapes["blocks.0.up.lora_A.default.weight"] == (2, 8)
    assert manifest.shapes["blocks.0.down.lora_B.default.weight"] == (8, 2)
    assert {"head.weight", "head.bias", "embedding.tokens.weight"} < set(manifest.names())
    assert len(manifest.names()) == 7


class WithAttention(nn.Module):
    """A network that uses the weights of a layer which it never calls."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, 2)
        out: Tensor = self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))
        return out


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("lenet-bn", {"targets": "query fc1"}, r'lora.targets="query fc1": query fits no layer; the .* are fc1, fc2'),
        ("lenet-bn", {"targets": "fc3"}, "fc3 is the classifier, which is trained as a whole"),
        (
            "lenet-bn",
            {"classifier": "top"},
            r'lora.classifier="top": no module with parameters is top; there are conv1',
        ),
        (
            f"{__name__}:WithAttention",
            {"targets": "out_proj"},
            r"an adapter of attention.out_proj would have no effect",
        ),
        (
            f"{__name__}:WithAttention",
            {},
            r'lora.targets="auto" finds no layer .* WithAttention has no linear layer but',
        ),
        ("lenet-bn", {"base": "nowhere.safetensors"}, r'lora.base="nowhere.safetensors": there is no such file'),
    ],
)
def test_adapters_that_cannot_be_are_refused_in_one_sentence(name: str, given: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refused:
        built(name, (1, 16, 16) if name == "lenet-bn" else (1, 4, 8), AdapterSettings(**given))  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_without_peft_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def lacks(name: str, *given: Any, **more: Any) -> Any:
        if name == "peft":
            raise ModuleNotFoundError(name=name)
        return real(name, *given, **more)

    monkeypatch.setattr(builtins, "__import__", lacks)
    with pytest.raises(UserError, match=r"needs the package peft.*pip install 'fedham-flwr\[lora\]'"):
        built(adapters=AdapterSettings())


class HalfFixed(nn.Module):
    """A network of a user's, whose first layer every copy has the same."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(torch.Size(shape).numel(), 16), nn.Linear(16, outputs)
        self.body.requires_grad_(False)
        self.fixed_tensors = frozenset({"body.weight", "body.bias"})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.body(x.flatten(1))))
        return out

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        return module_group(self, "body"), module_group(self, "head")


def test_a_users_network_may_fix_tensors_with_any_method(federate: Callable[..., Any]) -> None:
    given: dict[str, Any] = {
        "partitioner": "iid",
        "samples_per_client": 64,
        "strategy": "fedavg",
        "model": f"{__name__}:HalfFixed",
    }
    run = federate(clients=2, **given)
    assert set(run.state) == {"head.weight", "head.bias"}
    first = models.build(f"{__name__}:HalfFixed", SHAPE, 10, 0)
    for file in sorted((run.path / "model").glob("*.safetensors")):
        written = load_file(file)
        assert torch.equal(written["body.weight"], first.get_parameter("body.weight"))
        assert not torch.equal(written["head.weight"], first.get_parameter("head.weight"))
    network = StackedNetwork(first, models.trial_batches(SHAPE))
    assert (network.way, network.why) == ("folded", "")


class HalfNormed(nn.Module):
    """The same with running statistics among what is fixed."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(torch.Size(shape).numel()), nn.Linear(torch.Size(shape).numel(), outputs)
        self.norm.requires_grad_(False)
        self.fixed_tensors = frozenset(f"norm.{part}" for part in ("weight", "bias", "running_mean", "running_var"))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(x.flatten(1)))
        return out


def test_running_statistics_that_a_user_fixes_stay(federate: Callable[..., Any]) -> None:
    given: dict[str, Any] = {"partitioner": "iid", "samples_per_client": 64, "model": f"{__name__}:HalfNormed"}
    run = federate(clients=2, strategy="fedavg", **given)
    assert set(run.state) == {"head.weight", "head.bias"}
    for file in sorted((run.path / "model").glob("*.safetensors")):
        written = load_file(file)
        assert float(written["norm.running_mean"].abs().sum()) == 0
        assert bool((written["norm.running_var"] == 1).all())
