"""Networks: sizes, groups, first parameters, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import conv2d, linear, max_pool2d, relu

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.models import MODELS, NetworkSettings, build, resolve, trial_batches
from fedham_flwr.models.cnn import TransferCNNSettings
from fedham_flwr.models.export import label, load
from fedham_flwr.models.grafts import GraftSettings
from fedham_flwr.models.mlp import MLPSettings

# 28 x 28 and 32 x 32 from the sources named in the modules; the digits network counted by hand:
# 9*16+16 + 16*9*32+32 + 32*2*2*64+64 + 64*10+10
SIZES = [
    ("cnn", (3, 32, 32), 878_538),
    ("cnn", (1, 28, 28), 582_026),
    ("lenet", (3, 32, 32), 121_182),
    ("lenet", (1, 28, 28), 85_822),
    ("lenet-bn", (3, 32, 32), 121_278),
    ("digits-cnn", (1, 8, 8), 160 + 4_640 + 8_256 + 650),
    ("transfer-cnn", (3, 32, 32), 3_752_586),
    ("mlp", (2, 13), 26 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10),
]


@pytest.mark.parametrize(("name", "shape", "size"), SIZES)
def test_parameter_counts(name: str, shape: tuple[int, ...], size: int) -> None:
    assert sum(p.numel() for p in build(name, shape, 10, 0).parameters()) == size


@pytest.mark.parametrize(("padding", "fc1", "total"), [(0, 3_277_824, 3_752_586), (2, 8_389_632, 8_864_394)])
def test_the_transfer_network_has_the_published_layers(padding: int, fc1: int, total: int) -> None:
    settings = NetworkSettings.of(transfer_cnn=TransferCNNSettings(padding))
    manifest = Manifest.of(build("transfer-cnn", (3, 32, 32), 10, 0, settings))
    assert {name: manifest.count([name]) for name in manifest.group_names} == {
        "conv1": 4_864,
        "conv2": 204_928,
        "fc1": fc1,
        "fc2": 262_400,
        "fc3": 2_570,
    }
    assert manifest.count() == total


@pytest.mark.parametrize(("padding", "smallest"), [(0, 16), (1, 10), (2, 4)])
def test_the_transfer_network_takes_images_down_to_one_pixel_of_features(padding: int, smallest: int) -> None:
    settings = NetworkSettings.of(transfer_cnn=TransferCNNSettings(padding))
    model = build("transfer-cnn", (1, smallest, smallest + 1), 3, 0, settings)
    assert model(torch.zeros(2, 1, smallest, smallest + 1)).shape == (2, 3)
    assert model.get_submodule("fc1").in_features == 128
    with pytest.raises(
        UserError, match=rf'model="transfer-cnn" needs images of at least {smallest} x {smallest} pixels'
    ):
        build("transfer-cnn", (1, smallest, smallest - 1), 3, 0, settings)


def test_the_transfer_network_rectifies_all_but_its_logits() -> None:
    model = build("transfer-cnn", (3, 16, 16), 4, 0)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    p = dict(model.named_parameters())
    for number in (1, 2):
        x = max_pool2d(relu(conv2d(x, p[f"conv{number}.weight"], p[f"conv{number}.bias"])), 2)
    x = x.flatten(1)
    for number in (1, 2):
        x = relu(linear(x, p[f"fc{number}.weight"], p[f"fc{number}.bias"]))
    x = linear(x, p["fc3.weight"], p["fc3.bias"])
    assert bool((x < 0).any())
    torch.testing.assert_close(model(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))), x)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_groups_partition_the_model_and_logits_have_one_column_per_class(name: str, channels: int) -> None:
    side = 8 if name == "digits-cnn" else 28
    series, tokens = (2 * channels, 11, 1, 0), (9, 30, 2, 0)
    shapes = {"char-transformer": (9,), "mlp": (2, 5), "cnn1d": series, "gru": series, "series-transformer": series}
    shapes |= {"fasttext": tokens, "text-transformer": tokens}
    shape = shapes.get(name, (channels, side, side))
    model = build(name, shape, 7, 0)
    assert Manifest.of(model).group_names
    x = trial_batches(shape)[-1]
    assert model(x).shape == ((2, 9, 7) if len(shape) == 1 else (2, 7))


def test_groups_are_layers_with_normalisation_on_its_own() -> None:
    names = Manifest.of(build("lenet-bn", (3, 32, 32), 10, 0)).group_names
    assert names == ("conv1", "bn1", "conv2", "bn2", "fc1", "fc2", "fc3")
    assert Manifest.of(build("lenet", (3, 32, 32), 10, 0)).group_names == ("conv1", "conv2", "fc1", "fc2", "fc3")


def test_first_parameters_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build("lenet", (1, 28, 28), 10, 3).state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = build("lenet", (1, 28, 28), 10, 3).state_dict()
    other = build("lenet", (1, 28, 28), 10, 4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("shape", "name"),
    [((1, 8, 8), "digits-cnn"), ((3, 15, 40), "digits-cnn"), ((3, 16, 16), "cnn"), ((2, 16), "mlp")],
)
def test_auto_is_the_network_that_fits(shape: tuple[int, ...], name: str) -> None:
    assert resolve("auto", shape) == name
    assert build("auto", shape, 2, 0)(torch.zeros(1, *shape)).shape == (1, 2)


def test_images_too_small_for_the_network_are_refused_by_name() -> None:
    with pytest.raises(
        UserError, match=r'model="cnn" needs images of at least 16 x 16 pixels.*has 8 x 8: try model="auto"'
    ):
        build("cnn", (1, 8, 8), 10, 0)


@pytest.mark.parametrize(
    ("depth", "groups"), [(0, ("head",)), (1, ("fc1", "head")), (3, ("fc1", "fc2", "fc3", "head"))]
)
def test_the_network_of_tables_is_hidden_layers_with_rectifiers_and_a_head(depth: int, groups: tuple[str, ...]) -> None:
    model = build("mlp", (2, 3), 4, 0, NetworkSettings.of(mlp=MLPSettings(5, depth)))
    assert Manifest.of(model).group_names == groups
    p = dict(model.named_parameters())
    data = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0))
    x = data.reshape(6, 6)  # the three values, then the three marks of gaps
    for name in groups[:-1]:
        x = relu(linear(x, p[f"{name}.weight"], p[f"{name}.bias"]))
        assert x.shape == (6, 5)
    torch.testing.assert_close(model(data), linear(x, p["head.weight"], p["head.bias"]))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "mlp",
            (3, 8, 9),
            r'model="mlp" is for tables and series, and the data set is images of 8 x 9 pixels: try model="auto"',
        ),
        (
            "mlp",
            (80,),
            r'model="mlp" is for tables and series, and the data set is text, 80 .*: try model="char-transformer"',
        ),
        ("vit", (2, 13), r'model="vit" is for images, and the data set is a table of 13 columns: try model="mlp"'),
        ("cnn", (2, 13), r'model="cnn" is for images, and the data set is a table of 13 columns: try model="mlp"'),
        ("char-transformer", (2, 13), r'is for text, and the data set is a table of 13 columns: try model="mlp"'),
    ],
)
def test_a_network_of_another_kind_of_data_is_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(name, shape, 2, 0)


def test_the_network_of_tables_has_no_place_for_a_graft() -> None:
    with pytest.raises(UserError, match=r'fedtransfer.attention="adapter" is grafted .* model="mlp" has no place for'):
        build("mlp", (2, 13), 2, 0, NetworkSettings.of(graft=GraftSettings("adapter")))


def test_an_exported_network_of_tables_has_its_sizes(tmp_path: Path) -> None:
    settings = NetworkSettings.of(mlp=MLPSettings(7, 3))
    model = build("auto", (2, 4), 3, 5, settings)
    save_file(model.state_dict(), tmp_path / "a.safetensors", label("auto", (2, 4), 3, settings))
    again = load(tmp_path / "a.safetensors")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_rectifying_after_pooling_is_rectifying_before_it_bit_for_bit() -> None:
    def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = []
        for f in (lambda v: relu(max_pool2d(v, 2)), lambda v: max_pool2d(relu(v), 2)):
            leaf = x.clone().requires_grad_()
            y = f(leaf)
            (y * torch.arange(y.numel()).reshape(y.shape)).sum().backward()
            assert leaf.grad is not None
            outputs.append(torch.cat([y.detach().flatten(), leaf.grad.flatten()]))
        return outputs[0], outputs[1]

    values = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).mul(2).round()  # with many ties
    first, second = both(values)
    assert torch.equal(first, second)
