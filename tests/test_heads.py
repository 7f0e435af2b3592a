"""The last linear layer: found in any network, looked at, replaced, and with parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cohorts import NETWORKS
from torch import Tensor, nn

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import LayerGroup
from fedham_flwr.core.shapes import of_series, of_tokens
from fedham_flwr.models import NetworkSettings, build, trial_batches
from fedham_flwr.models.export import label, load, write_model
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.models.heads import HEADS, HeadSettings, add_parts, features, head_name, head_of, through

SHAPES = {
    "digits-cnn": (1, 8, 8), "lenet-bn": (3, 16, 16), "mlp": (2, 13), "cnn1d": of_series(3, 20),
    "gru": of_series(3, 20),
    "vit": (3, 8, 8), "char-transformer": (9,), "fasttext": of_tokens(7, 50), "torchvision:resnet18": (3, 32, 32),
}  # fmt: skip


def made(name: str, **given: Any) -> Any:
    shape = SHAPES[name]
    batch = trial_batches(shape)[-1]
    return build(name, shape, 5, 0, NetworkSettings.of(**given)).eval(), batch


@pytest.mark.parametrize("name", SHAPES)
def test_outputs_are_those_of_the_head_on_the_features(name: str) -> None:
    model, batch = made(name)
    manifest = manifest_of(model, [batch])
    head, name_of_head = head_of(model, manifest, "a test"), head_name(manifest)
    seen, outputs = features(model, name_of_head, batch)
    assert seen.shape[-1] == head.in_features
    assert torch.equal(outputs, model(batch))
    scale = getattr(model, "scale", 1.0)
    assert torch.allclose(outputs, head(seen) * scale, atol=1e-6)
    twice = through(model, name_of_head, batch, lambda found, z: torch.cat([found(z), 2 * found(z)], -1))
    assert torch.allclose(twice, torch.cat([outputs, 2 * outputs], -1), atol=1e-6)
    assert not model.get_submodule(name_of_head)._forward_hooks
    assert not model.get_submodule(name_of_head)._forward_pre_hooks


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", SHAPES)
def test_parts_are_groups_of_their_own_and_change_no_other_tensor(name: str, kind: str, tmp_path: Path) -> None:
    plain, batch = made(name)
    model, _ = made(name, head=HeadSettings(kind))
    before, after = manifest_of(plain, [batch]), manifest_of(model, [batch])
    parts = HEADS[kind].parts
    assert after.group_names == (*before.group_names, *parts.values())
    assert head_name(after) == head_name(before)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in plain.state_dict().items())
    for part, group in parts.items():
        assert all(key.startswith(f"{head_name(after)}.{part}.") for key in after.names([group]))
    settings = NetworkSettings.of(HeadSettings(kind))
    for param in model.parameters():
        nn.init.normal_(param, std=0.1, generator=torch.Generator().manual_seed(2))  # finite behind any depth
    file = write_model(tmp_path, "0", model.state_dict(), label(name, SHAPES[name], 5, settings))
    with torch.no_grad():
        found = model(batch)
        assert torch.equal(load(file)(batch), found)
        assert bool(found.isfinite().all())


class Declared(nn.Module):
    """A network of somebody's own that says its groups, and knows nothing of parts."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.top = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.top(self.body(x).relu())
        return made

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        return LayerGroup("body", ("body.weight", "body.bias")), LayerGroup("top", ("top.weight", "top.bias"))


def test_groups_that_are_declared_stay_and_parts_follow() -> None:
    model = Declared()
    add_parts(model, manifest_of(model, []), HeadSettings("second"))
    manifest = manifest_of(model, [])
    assert manifest.group_names == ("body", "top", "personal-head")
    assert manifest.names(["personal-head"]) == ("top.personal.weight", "top.personal.bias")


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()),
            "my.setting=1 needs a network whose last layer is linear, and",
        ),
        (nn.Linear(3, 2), "my.setting=1 puts a part beside the last layer, and Linear is that layer"),
    ],
)
def test_a_network_without_a_linear_last_layer_is_a_sentence(model: nn.Module, sentence: str) -> None:
    manifest = manifest_of(model, [torch.zeros(2, 1, 3, 3), torch.zeros(2, 3)])
    with pytest.raises(UserError, match=sentence):
        add_parts(model, manifest, HeadSettings("second", "my.setting=1"))


class TwoTops(Declared):
    """The mean of two last layers."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.body(x).relu()
        made: Tensor = (self.top(seen) + self.second(seen)) / 2
        return made

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        return LayerGroup("second", ("second.weight", "second.bias")), *super().layer_groups()


class Behind(Declared):
    """Does something with the outputs of its last layer."""

    def __init__(self, what: nn.Module) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.what(super().forward(x))
        return made


def test_a_network_that_makes_its_outputs_of_more_than_its_last_layer_is_a_sentence() -> None:
    batches, settings = [torch.zeros(2, 4)], HeadSettings(asks='strategy="fedproto"')
    for bad in (TwoTops(), Behind(nn.Softmax(-1))):
        with pytest.raises(UserError, match=rf"and those of {type(bad).__name__} are not \(top is its last layer\)"):
            add_parts(bad, manifest_of(bad, []), settings, batches)
    for good in (Declared(), Behind(nn.LogSoftmax(-1)), Behind(nn.Tanh())):
        add_parts(good, manifest_of(good, []), settings, batches)


def test_what_a_method_needs_is_said_before_the_run(federate: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r'^strategy="fedrod" needs a network whose last layer is linear, and that of'):
        federate(strategy="fedrod", model="torchvision:squeezenet1_0", dataset="digits", image_size=32)


def test_every_network_of_the_engines_tests_has_a_head() -> None:
    for name, (make, shape) in NETWORKS.items():
        model = make()
        batch = torch.zeros(2, *shape, dtype=torch.int64 if shape == (6,) else torch.float32)
        assert isinstance(head_of(model, manifest_of(model, [batch]), name), nn.Linear)
