"""Grafts: places, insertion that changes nothing, files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.models import MODELS, NetworkSettings, build
from fedham_flwr.models.cbam import CBAM
from fedham_flwr.models.cnn import TransferCNNSettings
from fedham_flwr.models.export import label, load
from fedham_flwr.models.grafts import BLOCKS, GAINS, NEEDS_MAP, Graftable, GraftSettings, Place

CONVOLUTIONAL = [name for name, model in MODELS.items() if issubclass(model, Graftable)]
KINDS = ("cbam", "se", "adapter")
CLASSES = 5
PLACES = {
    "cnn": ("conv1", "conv2", "fc1"),
    "digits-cnn": ("conv1", "conv2", "fc1"),
    "lenet": ("conv1", "conv2", "fc1", "fc2"),
    "lenet-bn": ("bn1", "bn2", "fc1", "fc2"),
    "transfer-cnn": ("conv1", "conv2", "fc1", "fc2"),
}


def shape_of(name: str) -> tuple[int, int, int]:
    return (1, 8, 8) if name == "digits-cnn" else (3, 20, 18)


def grafted(name: str, seed: int = 0, **settings: Any) -> Graftable:
    """A network with such a graft, in the memory format that training uses."""
    model = build(name, shape_of(name), CLASSES, seed, NetworkSettings.of(graft=GraftSettings(**settings)))
    assert isinstance(model, Graftable)
    return model.to(memory_format=torch.channels_last)


def images(name: str, count: int = 6) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(count, *shape_of(name), generator=draw).to(memory_format=torch.channels_last)


LEGAL = [
    (name, kind, place)
    for name, places in PLACES.items()
    for kind in KINDS
    for place in places
    if kind == "adapter" or not place.startswith("fc")
]
"""Every network with every kind at every place that may have it."""


def spied(model: Graftable, x: Tensor) -> dict[str, Tensor]:
    """What passes the places of a network without a graft."""
    seen: dict[str, Tensor] = {}

    def after(place: str, x: Tensor) -> Tensor:
        assert place not in seen
        seen[place] = x
        return x

    model.after = after  # type: ignore[method-assign]
    model(x)
    return seen


# ---- places ----------------------------------------------------------------------------------------------------------


def test_every_convolutional_network_declares_places() -> None:
    assert {name: tuple(grafted(name).places()) for name in CONVOLUTIONAL} == PLACES


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_places_have_the_channels_that_pass_there(name: str) -> None:
    model = grafted(name)
    seen = spied(model, images(name))
    assert {place: Place(x.shape[1], x.dim() == 4) for place, x in seen.items()} == dict(model.places())
    assert set(seen) <= set(Manifest.of(model).group_names)
    assert Manifest.of(model).group_names[-1] not in seen


def test_a_place_is_behind_the_pooling() -> None:
    seen = spied(grafted("transfer-cnn"), torch.zeros(1, 3, 20, 18))
    assert {place: tuple(x.shape[1:]) for place, x in seen.items()} == {
        "conv1": (64, 8, 7),
        "conv2": (128, 2, 1),
        "fc1": (1024,),
        "fc2": (256,),
    }


@pytest.mark.parametrize(("name", "place"), [("cnn", "conv2"), ("lenet-bn", "bn2"), ("transfer-cnn", "conv2")])
def test_auto_is_the_last_place_with_a_feature_map(name: str, place: str) -> None:
    for kind in ("none", *KINDS):
        assert grafted(name).place_of(GraftSettings(kind)) == place
    auto, named = grafted(name, kind="cbam"), grafted(name, kind="cbam", after=place)
    assert torch.equal(auto(images(name)), named(images(name)))
    assert Manifest.of(auto) == Manifest.of(named)


@pytest.mark.parametrize("kind", ["none", *KINDS])
@pytest.mark.parametrize("place", ["first", "auto"])
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_low_level_are_the_convolutions_and_what_normalises_them_but_no_graft(name: str, place: str, kind: str) -> None:
    model = grafted(name, kind=kind, after=PLACES[name][0] if place == "first" else place)
    low = [group.name for group in model.layer_groups() if group.low_level]
    assert low == (["conv1", "bn1", "conv2", "bn2"] if name == "lenet-bn" else ["conv1", "conv2"])


# ---- insertion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("name", "kind", "place"), LEGAL)
def test_insertion_leaves_the_logits_what_they_were_bit_for_bit(
    name: str, kind: str, place: str, training: bool
) -> None:
    plain = grafted(name).train(training)
    model = grafted(name, kind=kind, after=place).train(training)
    assert torch.equal(model(images(name)), plain(images(name)))


@pytest.mark.parametrize(("name", "kind", "place"), [("lenet-bn", kind, "bn2") for kind in KINDS])
def test_insertion_leaves_the_logits_what_they_were_in_bfloat16_too(name: str, kind: str, place: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(grafted(name, kind=kind, after=place)(images(name)), grafted(name)(images(name)))


@pytest.mark.parametrize("insertion", ["identity", "plain"])
@pytest.mark.parametrize(("name", "kind", "place"), LEGAL)
def test_a_graft_moves_no_other_number_and_follows_its_place(name: str, kind: str, place: str, insertion: str) -> None:
    before, model = grafted(name).state_dict(), grafted(name, kind=kind, after=place, insertion=insertion)
    after = model.state_dict()
    assert all(torch.equal(after[tensor], before[tensor]) for tensor in before)
    assert {tensor.split(".")[0] for tensor in after.keys() - before.keys()} == {kind}
    names = list(Manifest.of(model).group_names)
    assert names[names.index(place) + 1] == kind
    names.remove(kind)
    assert names == list(Manifest.of(grafted(name)).group_names)


@pytest.mark.parametrize(("name", "kind", "place"), LEGAL)
def test_a_graft_learns_from_the_first_step(name: str, kind: str, place: str) -> None:
    model = grafted(name, kind=kind, after=place).train()
    cross_entropy(model(images(name)), torch.arange(6) % CLASSES).backward()
    last = [f"{kind}.mlp.2.bias"] + ([f"{kind}.norm.weight", f"{kind}.norm.bias"] if kind == "cbam" else [])
    for tensor in last:
        slope = model.get_parameter(tensor).grad
        assert slope is not None
        assert bool(slope.abs().max() > 0), tensor


@pytest.mark.parametrize("kind", KINDS)
def test_some_steps_on_the_graft_alone_lower_the_loss(kind: str) -> None:
    model, x, y = grafted("cnn", kind=kind, reduction=4).train(), images("cnn"), torch.arange(6) % CLASSES
    block = list(model.get_submodule(kind).parameters())
    losses = []
    for _ in range(40):
        loss = cross_entropy(model(x), y)
        losses.append(loss.item())
        for parameter, slope in zip(block, torch.autograd.grad(loss, block), strict=True):
            parameter.data -= 0.5 * slope
    assert losses[-1] < losses[0] - 0.001


def test_the_first_numbers_of_a_graft_are_a_function_of_the_seed() -> None:
    first, again, other = (grafted("cnn", seed, kind="adapter").state_dict() for seed in (3, 3, 4))
    assert torch.equal(first["adapter.mlp.0.weight"], again["adapter.mlp.0.weight"])
    assert not torch.equal(first["adapter.mlp.0.weight"], other["adapter.mlp.0.weight"])
    assert bool(first["adapter.mlp.0.weight"].abs().max() > 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_graft_is_the_published_block_without_a_factor(kind: str) -> None:
    model = grafted("cnn", kind=kind, insertion="plain")
    x = torch.randn(2, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    block = model.get_submodule(kind)
    assert bool(block.get_parameter("mlp.2.weight").abs().max() > 0)
    if isinstance(block, CBAM):
        assert block.norm is not None
        assert (block.norm.weight.item(), block.norm.bias.item()) == (1.0, 0.0)
    assert torch.equal(model.eval().after("conv2", x), block(x))


@pytest.mark.parametrize(("kind", "gain"), [("cbam", 4.0), ("se", 2.0), ("adapter", 1.0)])
def test_the_factor_stays_when_the_block_has_learned(kind: str, gain: float) -> None:
    model = grafted("cnn", kind=kind)
    x = torch.randn(2, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    block = model.get_submodule(kind).eval()
    for parameter in block.parameters():
        parameter.data += 0.1
    assert torch.equal(model.after("conv2", x), gain * block(x))
    assert not torch.equal(model.after("conv2", x), x)


def test_without_a_graft_a_place_is_nothing() -> None:
    model, x = grafted("cnn"), torch.ones(1, 32, 2, 2)
    assert model.after("conv1", x) is x
    assert grafted("cnn", kind="cbam", after="conv2").after("conv1", x) is x


@pytest.mark.parametrize(("kind", "size"), [("cbam", 2_284), ("se", 2_184), ("adapter", 2_184)])
def test_grafts_of_the_transfer_network_have_the_published_size(kind: str, size: int) -> None:
    block = grafted("transfer-cnn", kind=kind).get_submodule(kind)
    assert sum(parameter.numel() for parameter in block.parameters()) == size


def test_the_reduction_reaches_the_block() -> None:
    assert Manifest.of(grafted("transfer-cnn", kind="se", reduction=4)).count(["se"]) == 128 * 32 * 2 + 32 + 128


def test_the_tables_name_the_same_kinds() -> None:
    assert tuple(BLOCKS) == tuple(GAINS) == KINDS
    assert set(NEEDS_MAP) < set(KINDS)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "place"), [("cbam", "conv1"), ("se", "auto"), ("adapter", "fc2")])
@pytest.mark.parametrize("insertion", ["identity", "plain"])
def test_a_file_gives_the_network_back_with_its_graft(tmp_path: Path, kind: str, place: str, insertion: str) -> None:
    graft = GraftSettings(kind, place, 4, insertion)  # type: ignore[arg-type]
    settings = NetworkSettings.of(transfer_cnn=TransferCNNSettings(padding=1), graft=graft)
    model = build("transfer-cnn", (3, 10, 12), CLASSES, 7, settings)
    for parameter in model.parameters():
        parameter.data += 0.01
    model(torch.randn(4, 3, 10, 12, generator=torch.Generator().manual_seed(0)))  # moves the running statistics
    file = tmp_path / "0.safetensors"
    save_file(model.state_dict(), file, label("transfer-cnn", (3, 10, 12), CLASSES, settings))
    x = torch.randn(3, 3, 10, 12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(load(file)(x), model.eval()(x))


def test_a_network_without_graft_is_labelled_as_it_was_before_there_were_grafts(tmp_path: Path) -> None:
    written = label("cnn", (3, 16, 16), CLASSES, NetworkSettings())
    assert written == {"model": "cnn", "shape": "3,16,16", "classes": "5", "network": "{}"}
    model = build("cnn", (3, 16, 16), CLASSES, 7)
    save_file(model.state_dict(), tmp_path / "0.safetensors", written)
    assert Manifest.of(load(tmp_path / "0.safetensors")) == Manifest.of(model)


def test_a_transfer_network_without_its_settings_has_the_defaults(tmp_path: Path) -> None:
    written = label("transfer-cnn", (3, 16, 16), CLASSES, NetworkSettings()) | {"network": "{}"}
    model = build("transfer-cnn", (3, 16, 16), CLASSES, 7)
    save_file(model.state_dict(), tmp_path / "0.safetensors", written)
    assert Manifest.of(load(tmp_path / "0.safetensors")) == Manifest.of(model)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "place", "places"),
    [("cnn", "fc2", "conv1, conv2, fc1"), ("lenet-bn", "conv1", "bn1, bn2, fc1, fc2"), ("lenet", "", "conv1, conv2, ")],
)
def test_a_place_that_there_is_not_is_refused_with_those_there_are(
    kind: str, name: str, place: str, places: str
) -> None:
    with pytest.raises(
        UserError,
        match=rf'fedtransfer.graft-after="{place}" names no layer group .* behind: wanted auto or one of {places}',
    ):
        grafted(name, kind=kind, after=place)


@pytest.mark.parametrize("kind", NEEDS_MAP)
@pytest.mark.parametrize(("name", "maps"), [("cnn", "conv1, conv2$"), ("lenet-bn", "bn1, bn2$")])
def test_attention_needs_a_feature_map(kind: str, name: str, maps: str) -> None:
    with pytest.raises(
        UserError,
        match=rf'graft-after="fc1" is a place without a feature map, which fedtransfer.attention="{kind}" needs: '
        rf"wanted auto or one of {maps}",
    ):
        grafted(name, kind=kind, after="fc1")


@pytest.mark.parametrize(("name", "shape"), [("vit", (3, 8, 8)), ("char-transformer", (9,)), ("auto", (9,))])
def test_transformers_have_no_places(name: str, shape: tuple[int, ...]) -> None:
    real = "char-transformer" if name == "auto" else name
    with pytest.raises(
        UserError,
        match=rf'fedtransfer.attention="cbam" .* model="{real}" has no place for it: wanted fedtransfer.attention='
        '"none" or a convolutional network',
    ):
        build(name, shape, CLASSES, 0, NetworkSettings.of(graft=GraftSettings("cbam")))
