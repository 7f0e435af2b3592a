"""Files of weights that another takes the place of, under the same path and in the same process."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_folders import write_vit
from safetensors.torch import load_file, save_file

from fedham_flwr import client_app
from fedham_flwr.models import NetworkSettings, build
from fedham_flwr.models.hub_folder import HubSettings, describe
from fedham_flwr.models.torchvision_models import TorchvisionSettings
from fedham_flwr.settings import Value, parse

SMALL = "torchvision:squeezenet1_1"
SHAPE = (1, 32, 32)


def of_torchvision(folder: Path) -> tuple[Path, dict[str, Value], tuple[int, ...]]:
    """A file of weights, the settings that name it, and the shape of the images."""
    file = folder / "w.safetensors"
    save_file(build(SMALL, SHAPE, 4, 7, NetworkSettings.of(torchvision=TorchvisionSettings())).state_dict(), file)
    return file, {"model": SMALL, "torchvision.weights": str(file)}, SHAPE


def of_the_hub(folder: Path) -> tuple[Path, dict[str, Value], tuple[int, ...]]:
    """As for torchvision."""
    written = write_vit(folder / "vit", outputs=4)
    return Path(written) / "model.safetensors", {"model": "hub", "hub.folder": written}, (3, 8, 8)


def of_adapters(folder: Path) -> tuple[Path, dict[str, Value], tuple[int, ...]]:
    """As for torchvision."""
    file = folder / "base.safetensors"
    save_file(build("digits-cnn", (1, 8, 8), 4, 7).state_dict(), file)
    return file, {"strategy": "lora", "model": "digits-cnn", "lora.base": str(file)}, (1, 8, 8)


def replace(file: Path) -> dict[str, torch.Tensor]:
    """Put other weights in the place of a file's: as many bytes, and with its times; the weights."""
    tensors = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in load_file(file).items()}
    other = file.with_name("other.part")
    save_file(tensors, other, {"format": "pt"})
    shutil.copystat(file, other)
    os.replace(other, file)
    return tensors


@pytest.mark.parametrize("made", [of_torchvision, of_the_hub, of_adapters])
def test_a_run_keeps_the_weights_that_it_began_with_and_the_next_has_those_that_are_there_now(
    made: Callable[[Path], tuple[Path, dict[str, Value], tuple[int, ...]]], tmp_path: Path
) -> None:
    file, given, shape = made(tmp_path)
    settings = parse({"strategy": "local", "device": "cpu", **given})

    def sum_of(run: int) -> float:
        parts = client_app._parts(settings, settings.model, (run, shape, 4))
        return sum(float(tensor.double().sum()) for tensor in parts.trainer.state_dict().values())

    first = sum_of(1)
    replace(file)
    assert sum_of(1) == first
    assert sum_of(2) > first + 1
    trainer = client_app._LAST[0].trainer
    sum_of(3)
    assert client_app._LAST[0].trainer is trainer, "what has not changed is not built anew"


def test_two_runs_of_a_process_leave_models_of_the_file_that_each_found(
    federate: Callable[..., Any], tmp_path: Path
) -> None:
    file, given, _ = of_the_hub(tmp_path)
    chosen = {"strategy": "local", "clients": 2, "num_server_rounds": 1, "samples_per_client": 20, **given}
    for _ in range(2):
        run = federate(learning_rate=1e-6, **chosen)
        found = load_file(run.path / "model" / "0.safetensors")["network.vit.layernorm.weight"]
        torch.testing.assert_close(found, load_file(file)["vit.layernorm.weight"], rtol=0, atol=1e-3)
        replace(file)


def test_a_config_that_takes_the_place_of_another_is_read_whatever_its_times(tmp_path: Path) -> None:
    file = Path(write_vit(tmp_path / "vit")) / "config.json"
    describe(HubSettings(str(file.parent)))
    other = file.with_name("other.part")
    other.write_text(file.read_text().replace('"image_size": 8', '"image_size": 4'))
    shutil.copystat(file, other)
    os.replace(other, file)
    assert json.loads(describe(HubSettings(str(file.parent))).config)["image_size"] == 4
