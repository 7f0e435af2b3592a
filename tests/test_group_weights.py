"""Whom clients of known groups listen to: means by hand and by loops, and the picture of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedham_flwr.core.records import MixingWeights
from fedham_flwr.reporting.group_weights import group_picture, group_weights
from fedham_flwr.reporting.mixing_weights import read_weights, write_weights


def run_of(path: Path, *rounds: MixingWeights) -> Path:
    (path / "metrics").mkdir(parents=True)
    for number, weights in enumerate(rounds, 1):
        write_weights(path, number, "train", weights)
    return path


def test_by_hand(tmp_path: Path) -> None:
    ids = ("0", "1", "2", "3")
    rows = torch.tensor([[0.5, 0.1, 0.3, 0.1], [0.0, 0.8, 0.2, 0.0], [0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]])
    run = run_of(tmp_path, MixingWeights(ids, ("layer",), ids, rows[:, None]))
    found = group_weights(read_weights(run), {"0": "even", "2": "even", "1": "odd", "3": "odd"})
    assert found.layers == ("layer",)
    assert found.means[:, 0, 0] == pytest.approx([1.55 / 4, (0.3 + 0 + 0.25 + 1) / 4, (0.2 + 0.2 + 0.5 + 0) / 4])
    assert found.equal == pytest.approx((1 / 4, 1 / 4, 1 / 2))


def test_means_are_those_of_loops_with_clients_that_are_away(tmp_path: Path) -> None:
    draw, ids = torch.Generator().manual_seed(3), tuple(str(k) for k in range(7))
    made = []
    for some in (ids, ("1", "4", "6")):
        weights = torch.randn(len(some), 2, 7, generator=draw).softmax(-1)
        weights[:, :, 2] = 0
        made.append(MixingWeights(some, ("a", "b"), ids, weights))
    found = group_weights(read_weights(run_of(tmp_path, *made)), {name: str(int(name) % 3) for name in ids})
    assert found.rounds.tolist() == [1, 2]
    for turn, given in enumerate(made):
        for layer in range(2):
            sums = np.zeros(3)
            for i, client in enumerate(given.clients):
                for j, peer in enumerate(ids):
                    kind = 0 if client == peer else 1 if int(client) % 3 == int(peer) % 3 else 2
                    sums[kind] += float(given.weights[i, layer, j])
            assert found.means[:, layer, turn] == pytest.approx(sums / len(given.clients), abs=1e-6)


@pytest.mark.parametrize(("names", "groups"), [(("0", "1"), 1), (("north", "south"), 2), ((), 2)])
def test_nothing_is_drawn_without_groups(tmp_path: Path, names: tuple[str, ...], groups: int) -> None:
    made = [MixingWeights(names, ("a",), names, torch.full((2, 1, 2), 0.5))] if names else []
    assert group_picture(run_of(tmp_path, *made), groups, "fedham", "digits") is None
    assert not (tmp_path / "group-weights.png").exists()


def test_a_run_with_groups_leaves_the_picture(federate: Callable[..., Any]) -> None:
    run = federate(strategy="fedham", partitioner="class-groups", groups=2, num_server_rounds=2, samples_per_client=40)
    path = group_picture(run.path, 2, "fedham", "digits")
    assert path == run.path / "group-weights.png"
    with Image.open(path) as picture:
        assert (picture.width, picture.height) == (1300, 480)
