"""The pictures of mixing weights: they are there, of a sane size, and show what they are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedham_flwr.mixing import MixingWeights, read_weights, write_weights
from fedham_flwr.mixing_plots import heat_maps, self_weight_curves


def pixels(path: Path) -> np.ndarray:
    """Of a picture: [height, width, 3]."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def make(clients: int, groups: int, seed: int = 0, names: str = "") -> MixingWeights:
    draw = torch.Generator().manual_seed(seed)
    weights = (torch.randn(clients, groups, clients, generator=draw) + 2 * torch.eye(clients)[:, None]).softmax(-1)
    ids = tuple(f"{names}{i}" for i in range(clients))
    return MixingWeights(ids, tuple(f"layer {g}" for g in range(groups)), ids, weights)


@pytest.mark.parametrize(
    ("clients", "groups", "names"),
    [(1, 1, ""), (2, 1, ""), (8, 12, ""), (10, 7, ""), (20, 5, "site $ of "), (100, 4, "")],
)
def test_heat_maps_of_any_federation_have_a_sane_size(tmp_path: Path, clients: int, groups: int, names: str) -> None:
    path = heat_maps(make(clients, groups, names=names), tmp_path / "maps.png", "pfedla", "digits")
    height, width, _ = pixels(path).shape
    assert 400 <= width <= 2500
    assert 250 <= height <= 2500


def test_a_part_of_the_clients_can_be_drawn(tmp_path: Path) -> None:
    whole = make(6, 2)
    part = MixingWeights(whole.clients[:2], whole.groups, whole.peers, whole.weights[:2])
    assert heat_maps(part, tmp_path / "maps.png").stat().st_size > 5_000


def test_heat_maps_show_the_weights(tmp_path: Path) -> None:
    one, again, other = (pixels(heat_maps(make(5, 2, seed), tmp_path / f"{i}.png")) for i, seed in enumerate((0, 0, 1)))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_the_largest_weight_has_the_brightest_colour(tmp_path: Path) -> None:
    weights = torch.zeros(2, 1, 2)
    weights[0, 0, 1] = weights[1, 0, 1] = 1.0
    drawn = pixels(heat_maps(MixingWeights(("a", "b"), ("fc",), ("a", "b"), weights), tmp_path / "maps.png"))
    yellow, purple = (np.abs(drawn - color).max(-1) < 3 for color in ([253, 231, 37], [68, 1, 84]))
    # peer a is the left column, purple throughout; peer b the right one, yellow
    assert np.nonzero(purple)[1].mean() < np.nonzero(yellow)[1].mean()


def test_curves_are_drawn_for_a_method_with_weights_and_not_for_another(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    assert self_weight_curves(read_weights(tmp_path), tmp_path / "curves.png") is None
    assert not (tmp_path / "curves.png").exists()
    for number in (1, 2, 3):
        write_weights(tmp_path, number, "train", make(4, 9, seed=number))
    path = self_weight_curves(read_weights(tmp_path), tmp_path / "curves.png", "pfedla", "digits")
    assert path == tmp_path / "curves.png"
    assert pixels(path).shape == (560, 1000, 3)
