"""Photographs: the network that they get, what is said of its size, and what cannot fit into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from fedham_flwr import models, simulate
from fedham_flwr.core.errors import UserError
from fedham_flwr.data.kinds import image as images
from fedham_flwr.federation.messages import Profile
from fedham_flwr.models import sizes
from fedham_flwr.settings import parse
from fedham_flwr.trials import check_size


def profile(*shape: int, partitions: int = 2) -> Profile:
    return Profile("0", partitions, shape, 2, {"train": 9, "validation": 0, "test": 3}, (5, 4), "0")


def test_photographs_get_a_network_of_torchvision() -> None:
    assert models.resolve("auto", (3, 224, 224)) == "torchvision:resnet18"
    assert models.resolve("auto", (3, 64, 64)) == "cnn"


@pytest.mark.slow  # shapes without numbers take seconds to import
def test_a_step_takes_what_its_layers_give() -> None:
    one, two = (sizes.step_bytes("lenet", (3, 32, 32), 10, batch, models.NetworkSettings()) for batch in (1, 2))
    params = sum(p.numel() for p in models.build("lenet", (3, 32, 32), 10, 0).parameters())
    assert two - one == one - 4 * sizes.COPIES * params  # activations grow with the batch, copies do not
    photos = sizes.step_bytes("auto", (3, 224, 224), 2, 10, models.NetworkSettings())
    assert 0.3e9 < photos < 0.6e9
    assert sizes.step_bytes("cnn", (3, 600, 800), 2, 10, models.NetworkSettings()) == pytest.approx(16.1e9, rel=0.01)


@pytest.mark.slow  # as above
def test_a_step_is_measured_with_the_parts_that_a_method_adds_to_the_last_layer() -> None:
    plain, second, neither = (
        sizes.step_bytes("cnn", (3, 600, 800), 2, 10, parse({"strategy": strategy}).networks())
        for strategy in ("fedavg", "fedrod", "fedproto")
    )
    assert neither == plain < second


def test_what_cannot_fit_is_refused_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sizes, "memory", lambda: 8_000_000_000)
    monkeypatch.setattr(sizes, "step_bytes", lambda *_: 16_087_553_136)
    settings = parse({"model": "cnn", "device": "cpu"})
    with pytest.raises(
        UserError,
        match=r"the images have 800 x 600 pixels, and a step of 10 of them takes about 16\.1 GB of memory with cnn, of "
        r"which this machine has 8\.0: set image-size, for example 224, or a smaller batch-size",
    ):
        check_size(settings, profile(3, 600, 800), 2)
    assert not caplog.records
    check_size(settings, profile(3, 600, 800, partitions=0), 2)  # a client elsewhere may have more
    assert "takes about 16.1 GB of memory with cnn; image-size=224 would resize them" in caplog.text
    caplog.clear()
    check_size(settings, profile(3, 224, 224), 2)
    assert not caplog.records


def test_the_line_of_a_model_says_its_size_and_its_images() -> None:
    network = nn.Linear(1000, 1000)
    assert sizes.model_line("x", network, (3, 20, 30)) == (
        "model  x: 1,001,000 parameters (4.0 MB), images of 30 x 20 pixels, in colour"
    )
    assert sizes.model_line("x", network, (1, 8, 8)).endswith("images of 8 x 8 pixels, grey")
    assert sizes.model_line("x", network, (80,)) == "model  x: 1,001,000 parameters (4.0 MB)"


def test_a_container_has_less_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sizes, "CGROUP", tmp_path / "memory.max")
    whole = sizes.memory()
    assert whole > 1e8
    (tmp_path / "memory.max").write_text("max\n")
    assert sizes.memory() == whole
    (tmp_path / "memory.max").write_text("50000000\n")
    assert sizes.memory() == 50_000_000


def test_what_the_disk_has_no_room_for_is_refused_at_the_first_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(files[-1])
    rows = images.from_files(files)
    usage = type("Usage", (), {"free": 5399})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    (tmp_path / "cache" / "data").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"3 images of 30x20 pixels take 0\.0 GB when they are decoded, and .*cache has"
    ):
        images.decode(rows, "image", tmp_path / "cache" / "data" / "features.npy")
    monkeypatch.setattr(usage, "free", 5400)
    images.decode(rows, "image", tmp_path / "cache" / "data" / "features.npy")
    assert np.load(tmp_path / "cache" / "data" / "features.npy").shape == (3, 20, 30, 3)


@pytest.mark.slow
def test_a_folder_of_photographs_is_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    for number in range(8):
        file = tmp_path / "photos" / ("sea", "wood")[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(file)
    given: dict[str, Any] = {"partitioner": "iid", "num_server_rounds": 1, "device": "cpu", "local_steps": 1}
    folders = {
        "dataset": str(tmp_path / "photos"),
        "results_dir": str(tmp_path / "r"),
        "cache_dir": str(tmp_path / "c"),
    }
    simulate("fedavg", clients=2, **folders, **given)
    assert "torchvision:resnet18: 11,177,538 parameters (44.7 MB), images of 224 x 224" in capsys.readouterr().out
