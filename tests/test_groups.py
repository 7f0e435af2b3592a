"""Groups of clients: classes of their own, images changed and classes renamed, from the settings to predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedham_flwr.core.errors import UserError
from fedham_flwr.data import groups, recipes
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.data.clients import open_partition
from fedham_flwr.data.data_settings import CLASS_GROUPS, DataSettings, Partitioning
from fedham_flwr.data.partitions import partition
from fedham_flwr.settings import parse

Federate = Callable[..., Any]


# ---- classes of their own --------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(30, 90), min_size=3, max_size=12), st.integers(2, 4), st.integers(0, 5), st.integers(0, 999)
)
def test_a_groups_classes_are_its_own_and_all_its_clients_have_them(
    counts: list[int], count: int, more: int, seed: int
) -> None:
    count, clients = min(count, len(counts)), count + more
    labels = np.repeat(np.arange(len(counts)), counts)
    parts = partition(Partitioning(CLASS_GROUPS, groups=count, seed=seed), labels, clients)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))  # all of them, each once
    held = [set(labels[part].tolist()) for part in parts]
    for k in range(clients):
        for other in range(k):
            assert held[k] == held[other] if k % count == other % count else not held[k] & held[other]
    sizes = [len(of_group) for of_group in held[:count]]
    assert max(sizes) - min(sizes) <= 1
    for k in range(count, clients):  # of one group, no two differ by more than a sample of each class
        mine, first = (np.bincount(labels[parts[at]], minlength=len(counts)) for at in (k, k % count))
        assert np.abs(mine - first).max() <= 1


@pytest.mark.parametrize(("count", "clients"), [(1, 4), (5, 4), (4, 9)])
def test_groups_that_cannot_be_are_refused(count: int, clients: int) -> None:
    labels = np.repeat(np.arange(3), 50)
    with pytest.raises(UserError, match=f"groups is {count}, but for class-groups it must be from 2 to 3"):
        partition(Partitioning(CLASS_GROUPS, groups=count), labels, clients)


# ---- images and classes as a group has them -------------------------------------------------------------------------


def naive_blur(plane: np.ndarray, deviation: float) -> np.ndarray:
    """A Gaussian's weighted mean, pixel by pixel; what lies beyond the edge is mirrored, the edge itself once."""
    radius = int(np.ceil(3 * deviation))
    height, width = plane.shape
    found = np.zeros(plane.shape)
    for y in range(height):
        for x in range(width):
            total = weight = 0.0
            for dy in range(-radius, radius + 1):
                for dx in range(-radius, radius + 1):
                    at = [abs(y + dy), abs(x + dx)]
                    at = [2 * (n - 1) - i if i >= n else i for i, n in zip(at, (height, width), strict=True)]
                    w = np.exp(-(dy**2 + dx**2) / (2 * deviation**2))
                    total, weight = total + w * plane[at[0], at[1]], weight + w
            found[y, x] = total / weight
    return found


def test_images_by_hand() -> None:
    image = np.array([[1, 2], [3, 4]], dtype=np.uint8)[None, :, :, None]
    turned = {"none": [1, 2, 3, 4], "rotated": [2, 4, 1, 3], "rotated-180": [4, 3, 2, 1], "rotated-270": [3, 1, 4, 2]}
    for word, wanted in turned.items():
        assert groups.images(image, word).ravel().tolist() == wanted
    assert groups.images(image, "inverted").ravel().tolist() == [254, 253, 252, 251]
    assert groups.classes(np.arange(4), "permuted-labels", 3, 4).tolist() == [3, 0, 1, 2]
    assert groups.classes(np.arange(4), "rotated", 3, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("side", "deviation"), [(32, 2.0), (8, 0.5)])
def test_blurred_images_are_those_of_a_gaussian(side: int, deviation: float) -> None:
    image = np.random.default_rng(1).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    found = groups.images(image, "blurred")
    assert found.dtype == np.uint8
    assert found.std() < image.std()
    for channel in range(3):
        wanted = naive_blur(image[1, :, :, channel].astype(float), deviation)
        assert np.abs(found[1, :, :, channel] - wanted).max() <= 0.51  # rounded


def opened(cache: Path, number: int, shift: tuple[str, ...], clients: int = 4, **given: Any) -> ClientData:
    partitioning = Partitioning(**{"partitioner": "dirichlet", "alpha": 1.0, **given})
    return open_partition(DataSettings(cache_dir=str(cache), partitioning=partitioning, shift=shift), number, clients)


WORDS = ("none", "inverted", "rotated", "permuted-labels")


def test_each_client_has_its_own_samples_as_its_group_has_them(tmp_path: Path) -> None:
    for number in range(6):
        plain, found = opened(tmp_path, number, (), 6), opened(tmp_path, number, WORDS, 6)
        word, group = WORDS[number % 4], number % 4
        for split, index in plain.splits.items():
            assert torch.equal(found.splits[split], index)
            wanted = groups.images(plain.features[index].numpy(), word)
            assert np.array_equal(found.features[index].numpy(), wanted)
            renamed = (plain.labels[index] + group) % 10 if word == "permuted-labels" else plain.labels[index]
            assert torch.equal(found.labels[index], renamed)
        assert (found.recipe or {}).get("shift", "none") == word


def test_only_what_changes_is_written_anew(tmp_path: Path) -> None:
    def files(shift: tuple[str, ...]) -> set[str]:
        data = opened(tmp_path, 0, shift)
        return {file.name for file in (tmp_path / data.pin.rpartition(" ")[2]).glob("*.npy")}

    assert files(()) == {"indices.npy"}
    assert files(("none", "inverted")) == {"indices.npy", "features.npy"}
    assert files(("none", "permuted-labels")) == {"indices.npy", "labels.npy"}
    assert len({opened(tmp_path, 0, shift).pin for shift in ((), ("none", "inverted"), ("inverted", "none"))}) == 3


def test_new_rows_become_inputs_as_the_client_had_them_and_outputs_have_the_names_of_the_source(tmp_path: Path) -> None:
    data = opened(tmp_path, 3, WORDS)
    label = recipes.label(data)["recipe"]
    assert '"shift": "permuted-labels"' in label
    found = recipes.read("x", {"recipe": label})
    # Class 0 of the source is called 3 here, so that output 3 means class 0.
    assert found["outputs"][3] == data.classes[0]
    assert found["outputs"][0] == data.classes[7]
    assert [*data.classes] == recipes.read("x", recipes.label(opened(tmp_path, 1, WORDS)))["outputs"]
    assert groups.shifted(np.full((1, 2, 2, 1), 9, dtype=np.uint8), {"shift": "inverted"}).ravel().tolist() == [246] * 4
    assert groups.shifted(np.arange(3), found).tolist() == [0, 1, 2]


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"shift": "none upside-down"}, "'upside-down' is no shift: wanted a word for each group, of none, rotated"),
        ({"shift": " "}, "wanted a word for each group, of none"),
        ({"shift": "none inverted", "groups": 3},
         "shift='none inverted' has a word for each of 2 groups, and groups=3: wanted as many words as groups"),
        ({"partitioner": "class-groups"}, 'partitioner="class-groups" needs groups, 2 or more'),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        parse(given)
    assert sentence in str(raised.value)


def test_words_make_the_groups_of_classes_too() -> None:
    chosen = parse({"partitioner": "class-groups", "shift": "none inverted"})
    assert chosen.groups_used == 2
    assert chosen.data().partitioning.groups == 2
    assert parse({"shift": "none none"}).data().shift == ()


@pytest.mark.parametrize(
    ("words", "kind", "target", "sentence"),
    [
        (("none", "rotated"), "table", "", "shift has \"rotated\", which changes images, and the data are of the kind"),
        (("none", "permuted-labels"), "image", "value", "the data have no classes: target is value"),
        (("none", "permuted-labels"), "text", "", "the data have no classes: target is next-token"),
        (("permuted-labels",) * 4, "image", "", "has \"permuted-labels\" and 4 groups, and the data have 3 classes"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_shifted(words: tuple[str, ...], kind: str, target: str, sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        groups.check(words, kind, target, 3)
    assert sentence in str(raised.value)


def test_only_squares_are_turned_by_90_degrees() -> None:
    wide = np.zeros((1, 4, 6, 1), dtype=np.uint8)
    assert groups.images(wide, "rotated-180").shape == wide.shape
    with pytest.raises(UserError, match=r"these are 6x4 pixels: wanted squares, which image-size makes"):
        groups.images(wide, "rotated")


# ---- whole runs -----------------------------------------------------------------------------------------------------


def test_the_words_none_change_nothing(federate: Federate) -> None:
    few = {"strategy": "fedper", "num_server_rounds": 1, "samples_per_client": 40}
    runs = [federate(**few, shift=shift) for shift in ("none", "none none")]
    assert all(torch.equal(runs[0].state[name], runs[1].state[name]) for name in runs[0].state)
    other = federate(**few, shift="none inverted")
    assert not all(torch.equal(runs[0].state[name], other.state[name]) for name in other.state)


def test_one_model_cannot_serve_groups_that_disagree_and_one_for_each_can(federate: Federate) -> None:
    """Two groups that call every class otherwise: one common model errs in at least one of them; groups are apart."""
    given = {"partitioner": "iid", "shift": "none permuted-labels", "num_server_rounds": 8, "learning_rate": 0.1}
    scores = {}
    for strategy in ("fedavg", "clustered"):
        rows = federate(strategy=strategy, **given).rows
        last = max(row.round for row in rows)
        scores[strategy] = [
            row.value
            for row in rows
            if (row.round, row.split, row.metric, row.phase) == (last, "test", "accuracy", "before")
        ]
    assert np.mean(scores["clustered"]) > 0.7
    assert np.mean(scores["fedavg"]) < 0.6


def test_the_cache_key_of_other_partitions_is_as_it_was() -> None:
    """A cache that an earlier version has left is found again: what came later counts only where it is used."""
    from dataclasses import asdict

    from fedham_flwr.data.cache import key_of
    from fedham_flwr.data.dealing import key_of_dealing

    settings = DataSettings(partitioning=Partitioning("iid"))
    before = {key: value for key, value in asdict(settings.partitioning).items() if key not in ("own", "groups")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedham_flwr.data.dealing.meta_of", lambda _: {"kind": "image"})
        assert key_of_dealing(settings, Path(), 3, None) == key_of(before, asdict(settings.fractions), 3)
        shifted = replace(settings, shift=("none", "inverted"))
        assert key_of_dealing(shifted, Path(), 3, None) != key_of_dealing(settings, Path(), 3, None)
