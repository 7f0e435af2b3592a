"""torchvision's transforms on training images, and images of any size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.clients import DataSettings, open_partition
from fedham_flwr.data.partitions import Partitioning
from fedham_flwr.training.augment import augmented

KINDS = ("crop-flip", "randaugment", "trivialaugment", "color")


@pytest.mark.parametrize("kind", KINDS)
def test_a_transform_keeps_shape_range_and_the_seed_decides_it(kind: str) -> None:
    batch = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = []
    for seed in (5, 5, 6):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            found.append(augmented(batch, torch.Generator(), kind))
    one, same, other = found
    assert one.shape == batch.shape
    assert float(one.min()) >= -1
    assert float(one.max()) <= 1
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0] - batch[0], one[1] - batch[1])  # each image by itself


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_run_with_a_transform_repeats_bit_for_bit(federate: Callable[..., Any], kind: str) -> None:
    first, again = (federate(strategy="fedavg", augment=True, augmentation=kind) for _ in range(2))
    plain = federate(strategy="fedavg")
    assert first.summary["digest"] == again.summary["digest"] != plain.summary["digest"]


def pictures(folder: Path, sizes: list[tuple[int, int]], bits: int = 8) -> Path:
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for place, size in enumerate(sizes):
            value = 40 * place + (100 if name == "dog" else 0)
            pixels = np.full(size, value * (257 if bits == 16 else 1), dtype=np.uint16 if bits == 16 else np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{place}.png")
    return folder


def opened(folder: Path, cache: Path, side: int = 0) -> Any:
    how = Partitioning("iid")
    return open_partition(DataSettings(str(folder), partitioning=how, cache_dir=str(cache), image_size=side), 0, 1)


def test_images_of_different_sizes_are_resized(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images", [(8, 8), (20, 12), (9, 30)])
    with pytest.raises(UserError, match=r"make all the same size, or set image-size, the pixels of a side"):
        opened(folder, tmp_path / "cache")
    data = opened(folder, tmp_path / "cache", 10)
    assert data.shape == (1, 10, 10)
    assert sorted(np.unique(data.features.numpy())) == [0, 40, 80, 100, 140, 180]  # flat pictures stay flat


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    data = opened(pictures(tmp_path / "images", [(8, 8)] * 3, bits=16), tmp_path / "cache")
    assert sorted(np.unique(data.features.numpy())) == [0, 40, 80, 100, 140, 180]
