"""torchvision's networks: stem, normalisation, channels, weights from a file, and a federation of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedham_flwr import load_model
from fedham_flwr.core.errors import UserError
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.models import NetworkSettings, build, resolve, trial_batches
from fedham_flwr.models.export import label, write_model
from fedham_flwr.models.grafts import GraftSettings
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.models.torchvision_models import TorchvisionSettings
from fedham_flwr.training.local import LocalTraining
from fedham_flwr.training.trainer import Trainer

RESNET = "torchvision:resnet18"
SMALL = "torchvision:mobilenet_v3_small"
Federate = Callable[..., Any]


def made(name: str, shape: tuple[int, ...], outputs: int = 4, seed: int = 0, **settings: Any) -> nn.Module:
    return build(name, shape, outputs, seed, NetworkSettings.of(torchvision=TorchvisionSettings(**settings)))


def kinds(model: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kind)]


@pytest.mark.parametrize(
    ("side", "stem", "kernel"), [(32, "auto", 3), (64, "auto", 7), (32, "original", 7), (64, "small", 3)]
)
def test_a_resnet_of_small_images_has_a_small_stem(side: int, stem: str, kernel: int) -> None:
    model: Any = made(RESNET, (3, side, side), stem=stem)
    assert model.conv1.kernel_size == (kernel, kernel)
    assert model.conv1.stride == ((1, 1) if kernel == 3 else (2, 2))
    assert isinstance(model.maxpool, nn.Identity) == (kernel == 3)
    assert model.eval()(torch.zeros(1, 3, side, side)).shape == (1, 4)


def test_other_networks_keep_their_stem() -> None:
    assert kinds(made(SMALL, (3, 32, 32), stem="small"), nn.Conv2d)[0].stride == (2, 2)


def test_group_normalisation_has_32_groups_or_the_largest_divisor_below() -> None:
    plain, changed = made(SMALL, (3, 32, 32)), made(SMALL, (3, 32, 32), norm="group")
    before, after = kinds(plain, nn.BatchNorm2d), kinds(changed, nn.GroupNorm)
    assert not kinds(changed, nn.BatchNorm2d)
    assert [norm.num_channels for norm in after] == [norm.num_features for norm in before]
    for norm in after:
        assert norm.num_groups == max(g for g in range(1, 33) if norm.num_channels % g == 0)
    assert {(norm.num_channels, norm.num_groups) for norm in after} >= {(16, 16), (72, 24), (88, 22), (576, 32)}
    assert not list(changed.buffers())


def test_a_first_convolution_takes_the_channels_of_the_data() -> None:
    colour, grey = made(RESNET, (3, 16, 16)), made(RESNET, (1, 16, 16))
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert grey.get_parameter("conv1.weight").shape == (64, 1, 3, 3)
    with torch.no_grad():  # a grey image is what it would be in colours
        torch.testing.assert_close(grey.eval()(x), colour.eval()(x.expand(-1, 3, -1, -1)))
    assert made(RESNET, (5, 16, 16)).get_parameter("conv1.weight").shape == (64, 5, 3, 3)


def test_first_parameters_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = made(SMALL, (3, 32, 32)).state_dict()
    state = torch.get_rng_state()
    second, other = made(SMALL, (3, 32, 32)).state_dict(), made(SMALL, (3, 32, 32), seed=1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["features.0.0.weight"], other["features.0.0.weight"])
    assert torch.equal(torch.get_rng_state(), state)


def test_large_images_get_a_network_of_torchvisions_by_themselves() -> None:
    assert resolve("auto", (3, 65, 40)) == RESNET
    assert resolve("auto", (3, 64, 64)) == "cnn"
    assert sum(p.numel() for p in build("auto", (3, 224, 224), 10, 0).parameters()) < 12e6


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> Callable[..., str]:
    """A file of weights."""

    def write(model: nn.Module | dict[str, Tensor], name: str = "w.safetensors") -> str:
        tensors = model.state_dict() if isinstance(model, nn.Module) else model
        save_file(tensors, tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("name", ["w.safetensors", "v.safetensors"])
def test_weights_come_from_a_file(weights: Callable[..., str], name: str) -> None:
    given = made(SMALL, (3, 32, 32), seed=7).state_dict()
    found = made(SMALL, (3, 32, 32), weights=weights(given, name)).state_dict()
    assert all(torch.equal(tensor, found[key]) for key, tensor in given.items())


def test_a_head_for_other_outputs_starts_at_random_and_that_is_said(
    weights: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    given = made(SMALL, (3, 32, 32), outputs=9, seed=7).state_dict()
    with caplog.at_level(logging.WARNING):
        found = made(SMALL, (3, 32, 32), outputs=4, weights=weights(given)).state_dict()
    assert "the weights of classifier.3 in" in caplog.text
    own = made(SMALL, (3, 32, 32), outputs=4).state_dict()
    for key, tensor in found.items():
        assert torch.equal(tensor, (own if key.startswith("classifier.3.") else given)[key])


def test_weights_of_colours_are_taken_for_grey_images_and_those_of_grey_images_as_they_are(
    weights: Callable[..., str],
) -> None:
    colour = made(RESNET, (3, 16, 16), seed=7)
    grey = made(RESNET, (1, 16, 16), weights=weights(colour, "c.safetensors"))
    torch.testing.assert_close(
        grey.get_parameter("conv1.weight"), colour.get_parameter("conv1.weight").sum(1, keepdim=True)
    )
    again = made(RESNET, (1, 16, 16), weights=weights(grey, "g.safetensors"))
    assert torch.equal(again.get_parameter("conv1.weight"), grey.get_parameter("conv1.weight"))


def test_a_model_that_a_run_exported_is_a_file_of_weights(tmp_path: Path) -> None:
    model = made(SMALL, (1, 32, 32), seed=7)
    shape, settings = (1, 32, 32), NetworkSettings.of(torchvision=TorchvisionSettings())
    path = write_model(tmp_path, "0", model.state_dict(), label(SMALL, shape, 4, settings))
    found = made(SMALL, shape, weights=str(path)).state_dict()
    assert all(torch.equal(tensor, found[key]) for key, tensor in model.state_dict().items())


def test_counters_of_batches_may_be_absent(weights: Callable[..., str]) -> None:
    whole = made(SMALL, (3, 32, 32)).state_dict()
    given = {k: v for k, v in whole.items() if not k.endswith("num_batches_tracked")}
    found = made(SMALL, (3, 32, 32), weights=weights(given)).state_dict()
    assert len(given) < len(whole)
    assert all(torch.equal(found[k], v) for k, v in given.items())


def test_files_that_do_not_fit_are_a_sentence(weights: Callable[..., str], tmp_path: Path) -> None:
    def refused(path: object, sentence: str, **settings: Any) -> None:
        with pytest.raises(UserError, match=sentence):
            made(SMALL, (3, 32, 32), weights=str(path), **settings)

    refused("nowhere.pt", r'torchvision.weights="nowhere.pt": there is no such file \(/')
    refused(tmp_path, r"there is no such file")
    refused(weights(made(RESNET, (3, 32, 32))), r"does not fit torchvision:mobilenet_v3_small: .* in one of them only")
    given = made(SMALL, (3, 32, 32)).state_dict()
    refused(weights(given), r"running_mean.* is in one of them only", norm="group")
    cut = given | {"features.1.block.0.0.weight": torch.zeros(16, 1, 5, 5)}
    refused(weights(cut), r"features.1.block.0.0.weight has shape \(16, 1, 5, 5\), wanted \(16, 1, 3, 3\)")
    (tmp_path / "text.safetensors").write_text("no tensors")
    refused(tmp_path / "text.safetensors", r'text.safetensors" cannot be read: ')
    (tmp_path / "model.pt").write_bytes(b"code")
    refused(tmp_path / "model.pt", r'model.pt" is no .safetensors file: write one of a state dict with')


# ---- what does not go ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("torchvision:qqqq", (3, 32, 32), r"no classification network qqqq: wanted one of torchvision"),
        (RESNET, (2, 13), r"is for images, and a sample has the shape \(2, 13\): try model=\"auto\""),
        ("torchvision:vit_b_16", (3, 30, 30), r'model="torchvision:vit_b_16" does not fit images of 30 x 30: '),
        (
            "torchvision:alexnet",
            (3, 8, 8),
            r'model="torchvision:alexnet" does not take a batch of shape \(2, 3, 8, 8\): R',
        ),
    ],
)
def test_a_network_that_does_not_fit_is_a_sentence(name: str, shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build(name, shape, 4, 0)


def test_there_is_no_place_for_grafts() -> None:
    graft = NetworkSettings.of(graft=GraftSettings("cbam", section="mine"))
    with pytest.raises(UserError, match=r'has no place for a block, which mine.attention="cbam" asks for'):
        build(SMALL, (3, 32, 32), 4, 0, graft)


def test_a_batch_of_one_is_too_small_for_batch_normalisation_of_one_pixel() -> None:
    model = made(SMALL, (3, 32, 32))
    trainer = Trainer(model, torch.device("cpu"), "fp32", manifest_of(model, trial_batches((3, 32, 32))))
    features = torch.zeros(3, 32, 32, 3, dtype=torch.uint8)
    data = ClientData(features, torch.arange(3), {"train": torch.arange(3)}, ("a", "b", "c", "d"), "0")
    training = LocalTraining(1, 2, 0.01, 0.0, 0.0, augment=False)
    with pytest.raises(UserError, match=r"batch normalisation needs two values per channel .* change batch-size, or"):
        trainer.fit(data, training, torch.Generator().manual_seed(0))


def test_a_resnet_with_group_normalisation_is_personalised(
    federate: Federate, capsys: pytest.CaptureFixture[str]
) -> None:
    run = federate(
        strategy="fedper", model=RESNET, num_server_rounds=1, samples_per_client=8, clients=2,
        **{"torchvision.norm": "group"},
    )  # fmt: skip
    assert not {name for name in run.state if name.startswith("fc") or "running" in name}
    assert tuple(run.state["conv1.weight"].shape) == (64, 1, 3, 3)
    model = load_model(run.path / "model" / "0.safetensors")
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    size = sum(param.numel() for param in model.parameters())
    assert f"model  {RESNET}: {size:,} parameters" in capsys.readouterr().out
