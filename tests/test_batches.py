"""Each kind of data: how stored samples become inputs and targets; scaling images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedham_flwr.data.batches import inputs_and_targets, kind_of, sample_shape, to_float


def test_images_and_their_labels() -> None:
    features = torch.arange(2 * 3 * 4 * 1, dtype=torch.uint8).view(2, 3, 4, 1)
    labels = torch.tensor([7, 5])
    assert (kind_of(features), sample_shape(features)) == ("image", (1, 3, 4))
    x, y = inputs_and_targets(features, labels)
    assert torch.equal(x, to_float(features))
    assert y is labels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_the_targets_of_a_text_are_its_next_characters(dtype: torch.dtype) -> None:
    features = torch.tensor([[1, 2, 3, 4], [4, 255 if dtype == torch.uint8 else 300, 0, 9]], dtype=dtype)
    assert (kind_of(features), sample_shape(features)) == ("text", (3,))
    x, y = inputs_and_targets(features, torch.zeros(2, dtype=torch.int64))
    assert x.tolist() == [[1, 2, 3], features[1, :3].tolist()]
    assert y.tolist() == [[2, 3, 4], features[1, 1:].tolist()]
    assert x.dtype == y.dtype == torch.int64


def test_a_row_of_a_table_is_its_values_and_its_gaps() -> None:
    features = torch.tensor([[0.5, float("nan"), 0.0], [float("nan"), -2.0, 3.0]])
    labels = torch.tensor([1, 0])
    assert (kind_of(features), sample_shape(features)) == ("table", (2, 3))
    x, y = inputs_and_targets(features, labels)
    assert x.tolist() == [[[0.5, 0, 0], [0, 1, 0]], [[0, -2, 3], [1, 0, 0]]]
    assert x.dtype == torch.float32
    assert y is labels
    assert features.isnan().sum() == 2  # what is stored stays as it is


@pytest.mark.parametrize("features", [torch.zeros(2), torch.zeros(2, 3, 4, 1), torch.zeros(2, dtype=torch.uint8)])
def test_features_of_no_kind(features: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=rf"features of {features.dim()} dimensions and type torch\..* no known kind"):
        kind_of(features)


@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (2, 4, 6, 3)])
def test_to_float(shape: tuple[int, ...]) -> None:
    batch = (torch.arange(int(np.prod(shape))) * 5 % 256).to(torch.uint8).reshape(shape)
    x = to_float(batch)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    expected = batch.numpy().transpose(0, 3, 1, 2) / 127.5 - 1
    assert np.abs(x.numpy() - expected).max() < 1e-7
    assert to_float(torch.tensor([[[[0]], [[255]]]], dtype=torch.uint8)).flatten().tolist() == [-1.0, 1.0]
