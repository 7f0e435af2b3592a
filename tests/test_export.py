"""Exported models: files of the first version, of torchvision's networks, of a user's, and files that do not fit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import own_objects
import pytest
import torch

from fedham_flwr import load_model
from fedham_flwr.core.errors import UserError
from fedham_flwr.models import NetworkSettings, build
from fedham_flwr.models.export import label, write_model
from fedham_flwr.models.torchvision_models import TorchvisionSettings
from fedham_flwr.simulation import Models

VIT = {"depth": 1, "dropout": 0.1, "head_dim": 4, "heads": 2, "hidden_dim": 8, "positions": "learned", "width": 16}
CHAR = VIT | {"positions": "sinusoidal", "width": 8}
GRAFT = {"after": "conv1", "insertion": "identity", "kind": "cbam", "reduction": 8}
# What version 0.1 wrote: model, shape, classes, network; and of its network the number of scalars and a digest of the
# names and shapes of all tensors in order.
FIRST = [
    ("digits-cnn", "1,8,8", "10", {}, 13_706, "98130af0c88f"),
    ("vit", "3,8,8", "5", {"personal_head": True, "vit": VIT | {"patch_size": 4}}, 1_954, "7865b28b31e3"),
    ("char-transformer", "9", "7", {"char_transformer": CHAR, "personal_head": True}, 623, "8d9d9ae82669"),
    ("mlp", "2,4", "3", {"mlp": {"depth": 2, "width": 64}}, 4_931, "25f3a5872b11"),
    ("transfer-cnn", "1,16,16", "3", {"graft": GRAFT, "transfer_cnn": {"padding": 0}}, 603_055, "0cde68dacf54"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "shape", "classes", "network", "scalars", "digest"), FIRST)
def test_a_file_of_the_first_version_opens(
    tmp_path: Path, model: str, shape: str, classes: str, network: dict[str, Any], scalars: int, digest: str
) -> None:
    written = {"model": model, "shape": shape, "classes": classes, "network": json.dumps(network, sort_keys=True)}
    empty = write_model(tmp_path, "empty", {}, written)
    with pytest.raises(UserError, match=rf'empty.safetensors does not fit model="{model}" as it is now: .*Missing key'):
        load_model(empty)
    from fedham_flwr.models import export

    numbers = tuple(map(int, shape.split(",")))
    made = build(model, numbers, int(classes), 3, export._settings(model, network))
    tensors = {name.replace("head.personal.", "personal_head."): tensor for name, tensor in made.state_dict().items()}
    assert hashlib.sha256(repr([(k, tuple(v.shape)) for k, v in tensors.items()]).encode()).hexdigest()[:12] == digest
    found = load_model(write_model(tmp_path, "full", tensors, written))
    assert sum(param.numel() for param in found.parameters()) == scalars
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in made.state_dict().items())


def test_a_network_of_a_users_has_its_path_and_settings_in_the_file(tmp_path: Path) -> None:
    settings = NetworkSettings.of(wide=own_objects.WideSettings(5))
    model = build("own_objects:Wide", (1, 4, 4), 3, 0, settings)
    written = label("own_objects:Wide", (1, 4, 4), 3, settings)
    assert written["model"] == "own_objects:Wide"
    assert json.loads(written["network"]) == {"wide": {"width": 5}}
    path = write_model(tmp_path, "0", model.state_dict(), written)
    found = load_model(path, trust_imports=True)
    assert isinstance(found, own_objects.Wide)
    assert torch.equal(found.top.weight, model.get_parameter("top.weight"))
    gone = write_model(tmp_path, "1", model.state_dict(), written | {"model": "nowhere:Wide"})
    with pytest.raises(UserError, match=r'model="nowhere:Wide": there is no module nowhere'):
        load_model(gone, trust_imports=True)


def test_a_file_is_data_and_runs_no_code_unless_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sent_along.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    written = {"model": "sent_along:Net", "shape": "1,4,4", "classes": "3", "network": "{}"}
    path = write_model(tmp_path, "0", {}, written)
    sentence = (
        f'{path} names its network by the import path "sent_along:Net", which is code that would be run: wanted '
        "trust_imports=True, if it is yours (on the command line --trust-imports)"
    )
    for opened in (lambda: load_model(path), lambda: Models(tmp_path)["0"]):
        with pytest.raises(UserError) as raised:
            opened()
        assert str(raised.value) == sentence
    with pytest.raises(UserError, match="sent_along cannot be imported: AssertionError: imported"):
        load_model(path, trust_imports=True)
    # What is no import path names no module either, whatever it looks like.
    for name in ("sent-along:Net", "sent_along:Net ", "os", "torchvision:sent_along"):
        with pytest.raises(UserError, match=r"which there is not|no classification network"):
            load_model(write_model(tmp_path, "1", {}, written | {"model": name}), trust_imports=True)


def test_a_network_of_torchvisions_is_built_anew_without_its_first_weights(tmp_path: Path) -> None:
    settings = NetworkSettings.of(torchvision=TorchvisionSettings(norm="group"))
    model = build("torchvision:resnet18", (1, 8, 8), 3, 0, settings)
    files = NetworkSettings.of(torchvision=TorchvisionSettings(norm="group", weights="/home/a/secret.pt"))
    written = label("torchvision:resnet18", (1, 8, 8), 3, files)
    assert "secret" not in str(written)
    found = load_model(write_model(tmp_path, "0", model.state_dict(), written))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(found(x), model.eval()(x))
