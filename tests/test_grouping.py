"""Layer groups of any network: by hand for each way in which a network can be put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import LayerGroup, Manifest, floating_tensors
from fedham_flwr.models.grouping import find_groups, manifest_of

PICTURES = [torch.zeros(2, 3, 8, 8)]


def names(groups: Sequence[LayerGroup]) -> list[str]:
    return [group.name for group in groups]


def low(groups: Sequence[LayerGroup]) -> list[str]:
    return [group.name for group in groups if group.low_level]


def test_a_sequence_has_a_group_for_each_module_with_parameters() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3, bias=False), nn.Flatten(), nn.Linear(32, 5)
    )
    groups = find_groups(model, PICTURES)
    assert groups == (
        LayerGroup("0", ("0.weight", "0.bias"), (), low_level=True),
        LayerGroup("1", ("1.weight", "1.bias"), ("1.running_mean", "1.running_var"), low_level=True),
        LayerGroup("3", ("3.weight",), (), low_level=True),
        LayerGroup("5", ("5.weight", "5.bias")),
    )


class Crossed(nn.Module):
    """Runs its layers in another order than it defines them, and one of them never."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.unused, self.first = nn.Linear(4, 2), nn.Linear(9, 9), nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4, affine=False)
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.norm(self.again(x)))
        return logits


def test_groups_come_in_the_order_of_execution_with_statistics_beside_the_layer_before() -> None:
    groups = find_groups(Crossed(), [torch.zeros(2, 3)])
    assert names(groups) == ["first", "last", "unused"]
    assert groups[0].buffers == ("norm.running_mean", "norm.running_var")
    assert Manifest.of(Crossed(), groups).group_names == ("first", "last", "unused")


def test_a_model_that_does_not_run_has_groups_in_the_order_of_definition() -> None:
    assert names(find_groups(Crossed(), [torch.zeros(2, 99)])) == ["last", "unused", "first"]


def test_the_first_batch_that_a_model_takes_is_the_one_that_counts() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.characters = nn.Linear(4, 2), nn.Embedding(9, 4)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.characters(x))
            return logits

    kinds = [torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.int64)]
    assert names(find_groups(Reader(), kinds)) == ["characters", "head"]


class Branches(nn.Module):
    """Two branches, of which the second to be defined runs first, with a parameter of its own and a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.right = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(128, 4))
        self.left = nn.Conv2d(3, 2, 8)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        left = self.left(x).flatten(1)
        logits: Tensor = self.head(self.right(x)) + self.scale * left
        return logits


def test_branches_come_as_they_run_behind_the_parameters_of_the_whole() -> None:
    groups = find_groups(Branches(), PICTURES)
    assert names(groups) == ["model", "left", "right.0", "right.2", "head"]
    assert low(groups) == ["model", "left", "right.0"]
    assert groups[0].parameters == ("scale",)


class Tied(nn.Module):
    """The output layer has the weights of the vectors, and is defined before them."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.vectors = nn.Linear(4, 9), nn.Embedding(9, 4)
        self.vectors.weight = self.out.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.vectors(x))
        return logits


def test_a_tensor_of_two_modules_belongs_to_the_one_that_runs_first() -> None:
    manifest = manifest_of(Tied(), [torch.zeros(2, 5, dtype=torch.int64)])
    assert manifest.groups == (LayerGroup("vectors", ("out.weight",)), LayerGroup("out", ("out.bias",)))
    # A model that does not run: the one that is defined first has it all, and the other none.
    assert manifest_of(Tied(), [torch.zeros(2, 3, 7)]).group_names == ("out",)


class Reading(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.head = nn.Linear(6, 2)
        self.start, self.layer = nn.Linear(3, 6), layer

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(self.start(x)))
        return logits


def test_what_an_attention_uses_without_running_it_stays_with_it() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.attention(x, x, x)[0]
            return out

    groups = find_groups(Reading(Own()), [torch.zeros(2, 4, 3)])
    assert names(groups) == ["start", "layer.attention", "layer.attention.out_proj", "head"]


def test_torchs_transformer_layers_stand_before_the_head_however_they_run() -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)  # in evaluation it may run as one kernel
    found = names(find_groups(Reading(nn.TransformerEncoder(layer, 2)), [torch.zeros(2, 4, 3)]))
    assert found[0] == "start"
    assert found[-1] == "head"
    assert [name.split(".")[2] for name in found[1:-1]] == sorted(name.split(".")[2] for name in found[1:-1])
    assert len(found) == 2 + 2 * 6


def test_statistics_before_any_parameter_go_with_the_first_group() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 2, 1))
    assert find_groups(model, PICTURES) == (
        LayerGroup("1", ("1.weight", "1.bias"), ("0.running_mean", "0.running_var"), low_level=True),
    )


def test_without_convolutions_nothing_is_low_level() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 2))
    assert not low(find_groups(model, PICTURES))


def test_looking_at_a_model_does_not_change_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 2))
    model[1].eval()  # as of a layer that is frozen
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    find_groups(model, PICTURES)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model] == [True, False, True, True, True]
    assert not any(module._forward_pre_hooks for module in model.modules())


class Declared(nn.Linear):
    """Says its groups itself."""

    said: Any = (LayerGroup("slope", ("weight",)), LayerGroup("offset", ("bias",), low_level=True))

    def layer_groups(self) -> Any:
        return self.said


def test_what_a_network_declares_holds() -> None:
    assert manifest_of(Declared(3, 2), []).groups == Declared.said


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ((LayerGroup("slope", ("weight",)),), r"must name every tensor of the model once: .* in none \['bias'\]"),
        (
            (LayerGroup("a", ("weight", "bias")), LayerGroup("b", ("bias", "x"))),
            r"in two groups \['bias'\], in none \[\], not in the model \['x'\]",
        ),
        (["weight", "bias"], r"are no partition of its tensors: AttributeError: 'str' object has no attribute 'names'"),
        (None, r"the layer groups of the model Declared are no partition of its tensors: TypeError: 'NoneType'"),
    ],
)
def test_groups_that_are_no_partition_are_a_sentence(monkeypatch: pytest.MonkeyPatch, said: Any, sentence: str) -> None:
    monkeypatch.setattr(Declared, "said", said)
    with pytest.raises(UserError, match=sentence):
        manifest_of(Declared(3, 2), [])


FAMILY = ["resnet18", "mobilenet_v3_small", "vgg11_bn", "efficientnet_b0", "vit_b_16", "convnext_tiny"]
HEADS = ["fc", "classifier.3", "classifier.6", "classifier.1", "heads.head", "classifier.2"]


@pytest.mark.parametrize(("name", "head"), [*zip(FAMILY, HEADS, strict=True)])
def test_the_groups_of_a_torchvision_network_are_a_partition_with_the_head_last(name: str, head: str) -> None:
    import torchvision

    side = {"image_size": 32} if name.startswith("vit") else {}
    with torch.device("meta"):
        model = torchvision.models.get_model(name, num_classes=7, **side)
        batch = torch.zeros(2, 3, 32, 32)
    manifest = manifest_of(model, [batch])
    assert set(manifest.names()) == floating_tensors(model).keys()
    assert len(manifest.group_names) == len(set(manifest.group_names)) > 10
    assert manifest.group_names[-1] == head
    assert all(group.low_level for group in manifest.groups[:2])
    assert not manifest.groups[-1].low_level
