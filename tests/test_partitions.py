"""Who holds which sample: each partitioner's promise, and the stratified split."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.clients import open_partition
from fedham_flwr.data.data_settings import Fractions, Partitioning
from fedham_flwr.data.partitioners import MAJORITY_SHARE
from fedham_flwr.data.partitions import partition
from fedham_flwr.data.splits import split
from fedham_flwr.settings import parse

BY_LABEL = ["iid", "dirichlet", "pathological", "noniid-1", "noniid-2", "class-owners"]


def make_labels(*counts: int) -> np.ndarray:
    """counts[c] samples of class c, dealt like cards so that classes are mixed but the order is known."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return labels[np.argsort((np.arange(len(labels)) * 7919) % 10007, kind="stable")]


def table(parts: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Samples of each class at each client, [N, K]."""
    return np.array([np.bincount(labels[part], minlength=labels.max() + 1) for part in parts])


def check_basics(parts: list[np.ndarray], n: int, clients: int) -> None:
    assert len(parts) == clients
    everyone = np.concatenate(parts)
    assert len(set(everyone.tolist())) == len(everyone)
    assert everyone.min() >= 0
    assert everyone.max() < n
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    sizes = [len(part) for part in parts]
    assert sizes == sorted(sizes, reverse=True)


# ---- what holds for all of them ------------------------------------------------------------------------------------


@pytest.mark.parametrize("partitioner", BY_LABEL)
def test_parts_are_disjoint_sorted_and_the_largest_comes_first(partitioner: str) -> None:
    labels = make_labels(60, 70, 80, 90, 100)
    parts = partition(Partitioning(partitioner, alpha=0.5, classes_per_client=2), labels, 5)
    check_basics(parts, len(labels), 5)


@pytest.mark.parametrize("partitioner", BY_LABEL)
def test_the_seed_decides(partitioner: str) -> None:
    labels = make_labels(60, 70, 80, 90, 100)
    chosen = Partitioning(partitioner, alpha=0.5, seed=3)
    first, again = partition(chosen, labels, 5), partition(chosen, labels, 5)
    other = partition(dataclasses.replace(chosen, seed=4), labels, 5)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


# ---- iid and dirichlet ---------------------------------------------------------------------------------------------


def test_iid_gives_away_everything_in_equal_parts_and_at_random() -> None:
    labels = make_labels(50, 50)
    parts = partition(Partitioning("iid"), labels, 3)
    assert [len(part) for part in parts] == [34, 33, 33]
    # IidPartitioner itself cuts the rows as they lie: 0..33, 34..66, 67..99.
    assert np.ptp(parts[1]) > 66


def test_dirichlet_gives_away_everything_and_alpha_is_the_skew() -> None:
    labels = make_labels(*[100] * 5)

    def largest_class_share(alpha: float) -> float:
        parts = partition(Partitioning("dirichlet", alpha=alpha), labels, 5)
        assert sum(map(len, parts)) == 500
        assert min(map(len, parts)) >= 10
        counts = table(parts, labels)
        return float((counts.max(axis=1) / counts.sum(axis=1)).mean())

    # Of 5 even classes the largest makes up 0.2; of one class alone, 1.
    assert largest_class_share(0.1) > 0.6
    assert largest_class_share(1000.0) < 0.3


def test_dirichlet_says_so_when_no_draw_suits() -> None:
    with pytest.raises(
        UserError, match=r"dirichlet with alpha 0\.001 found no way to give each of 20 clients at least 2 of"
    ):
        partition(Partitioning("dirichlet", alpha=0.001), make_labels(50, 50), 20)


def test_dirichlet_refuses_an_alpha_of_zero() -> None:
    with pytest.raises(UserError, match=r"alpha is 0\.0, but the dirichlet partitioner needs a number above 0"):
        partition(Partitioning("dirichlet", alpha=0.0), make_labels(50, 50), 2)


# ---- pathological --------------------------------------------------------------------------------------------------


@given(clients=st.integers(1, 12), classes=st.integers(1, 7), k=st.integers(1, 7), seed=st.integers(0, 1000))
def test_pathological_gives_k_classes_each_and_uses_all(clients: int, classes: int, k: int, seed: int) -> None:
    k = min(k, classes)
    labels = make_labels(*range(30, 30 + classes))
    parts = partition(Partitioning("pathological", classes_per_client=k, seed=seed), labels, clients)
    check_basics(parts, len(labels), clients)
    counts = table(parts, labels)
    assert ((counts > 0).sum(axis=1) == k).all()
    holders = (counts > 0).sum(axis=0)
    assert np.ptp(holders) <= 1
    if clients * k >= classes:
        assert counts.sum() == len(labels)
    for c in np.flatnonzero(holders):  # each class is cut evenly among its holders
        assert np.ptp(counts[counts[:, c] > 0, c]) <= 1


def test_pathological_mixes_the_pairs_of_classes() -> None:
    labels = make_labels(*[40] * 6)
    seen = set()
    for seed in range(10):
        counts = table(partition(Partitioning("pathological", seed=seed), labels, 6), labels)
        seen |= {tuple(np.flatnonzero(row)) for row in counts}
    # 15 pairs exist; the library's "deterministic" mode would show the 6 neighbouring ones only.
    assert len(seen) > 10


def test_pathological_says_which_class_is_too_small() -> None:
    with pytest.raises(UserError, match=r"class 1 has 2 samples for 3 clients; use fewer clients"):
        partition(Partitioning("pathological", classes_per_client=2), make_labels(30, 2), 3)


@pytest.mark.parametrize("partitioner", ["pathological", "noniid-1", "noniid-2"])
@pytest.mark.parametrize("k", [0, 3])
def test_no_client_has_more_classes_than_there_are(partitioner: str, k: int) -> None:
    with pytest.raises(
        UserError, match=rf"classes-per-client is {k}, but must be from 1 to 2, the classes of the data"
    ):
        partition(Partitioning(partitioner, classes_per_client=k), make_labels(30, 30), 3)


# ---- the two settings of pFedLA ------------------------------------------------------------------------------------


@given(clients=st.integers(1, 12), classes=st.integers(1, 7), k=st.integers(1, 7), seed=st.integers(0, 1000))
def test_noniid_1_gives_every_client_as_much_of_k_classes(clients: int, classes: int, k: int, seed: int) -> None:
    k = min(k, classes)
    labels = make_labels(*range(30, 30 + classes))
    counts = table(partition(Partitioning("noniid-1", classes_per_client=k, seed=seed), labels, clients), labels)
    each = counts.max()
    assert set(np.unique(counts)) <= {0, each}
    assert ((counts > 0).sum(axis=1) == k).all()
    # As much as the tightest class allows: one more each would overdraw some class.
    available = np.bincount(labels)
    holders = (counts > 0).sum(axis=0)
    assert (holders * each <= available).all()
    assert (holders * (each + 1) > available).any()


def test_noniid_1_by_hand() -> None:
    # 5 clients x 2 classes = 10 places over 5 classes: 2 holders each; the smallest class has 21, so 10 each.
    labels = make_labels(21, 30, 40, 50, 60)
    counts = table(partition(Partitioning("noniid-1"), labels, 5), labels)
    assert (np.sort(counts, axis=1) == [0, 0, 0, 10, 10]).all()
    assert (counts.sum(axis=0) == 20).all()


def test_noniid_2_by_hand() -> None:
    # 10 classes of 100, 5 clients, 2 majority classes each: one holder per class. With b of a minority class,
    # a = b * 8 / 2 * 0.5 / 0.5 = 4 b of a majority class. A class is asked for a + 4 b = 8 b <= 100: b = 12, a = 48.
    labels = make_labels(*[100] * 10)
    counts = table(partition(Partitioning("noniid-2"), labels, 5), labels)
    assert (np.sort(counts, axis=1) == [12] * 8 + [48] * 2).all()
    assert (counts.sum(axis=0) == 48 + 4 * 12).all()


@given(clients=st.integers(1, 8), classes=st.integers(3, 9), k=st.integers(1, 4), seed=st.integers(0, 1000))
def test_noniid_2_gives_all_classes_and_a_majority(clients: int, classes: int, k: int, seed: int) -> None:
    k = min(k, (classes - 1) // 2)
    labels = make_labels(*range(90, 90 + classes))
    counts = np.sort(
        table(partition(Partitioning("noniid-2", classes_per_client=k, seed=seed), labels, clients), labels)
    )
    assert (counts == counts[0]).all()  # the same size and shape for everyone
    few, many = counts[0, : classes - k], counts[0, classes - k :]
    assert few.min() == few.max() >= 1
    assert many.min() == many.max() > few[0]
    # Half, but for the rounding of `many`: by at most half a sample for each majority class.
    assert abs(many.sum() - MAJORITY_SHARE * counts[0].sum()) <= k / 2


def test_noniid_2_refuses_a_majority_of_half_the_classes() -> None:
    with pytest.raises(
        UserError, match=r"classes-per-client is 2, but for noniid-2 it must be less than half of the 4"
    ):
        partition(Partitioning("noniid-2", classes_per_client=2), make_labels(*[50] * 4), 3)


@pytest.mark.parametrize("partitioner", ["noniid-1", "noniid-2"])
def test_too_few_samples_of_a_class(partitioner: str) -> None:
    with pytest.raises(
        UserError, match=rf"{partitioner} has too few samples of some class for 5 clients; use fewer clients"
    ):
        partition(Partitioning(partitioner), make_labels(90, 90, 90, 90, 1), 5)


# ---- natural -------------------------------------------------------------------------------------------------------


def test_natural_takes_the_largest_owners_and_keeps_the_order_of_equals() -> None:
    owners = np.array(["b", "a", "c", "b", "a", "b", "c", "d", "b"])  # b: 4, a: 2, c: 2, d: 1
    labels = np.zeros(9, dtype=np.int64)
    parts = partition(Partitioning("natural"), labels, 3, owners)
    assert [part.tolist() for part in parts] == [[0, 3, 5, 8], [1, 4], [2, 6]]


def test_natural_needs_enough_owners() -> None:
    with pytest.raises(UserError, match=r"3 clients were asked for, but client-column names only 2 clients"):
        partition(Partitioning("natural"), make_labels(4, 4), 3, np.array([0, 0, 0, 0, 1, 1, 1, 1]))


def test_natural_needs_owners() -> None:
    with pytest.raises(UserError, match=r"the natural partitioner needs client-column"):
        partition(Partitioning("natural"), make_labels(4, 4), 2)


# ---- what cannot be ------------------------------------------------------------------------------------------------


def test_an_unknown_partitioner_is_named() -> None:
    with pytest.raises(
        UserError, match=r"partitioner is 'shards', but must be one of iid, .*, class-owners, class-table, natural"
    ):
        partition(Partitioning("shards"), make_labels(4, 4), 2)


@pytest.mark.parametrize("clients", [0, 5])
def test_clients_without_samples(clients: int) -> None:
    with pytest.raises(UserError, match=rf"8 samples cannot be dealt to {clients} clients, at least 2 each"):
        partition(Partitioning("iid"), make_labels(4, 4), clients)


# ---- split ---------------------------------------------------------------------------------------------------------


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_split_by_hand() -> None:
    # 40 + 20 samples: test 0.25 is 15 = 10 + 5, validation 0.1 is 6 = 4 + 2, the rest 39 = 26 + 13.
    labels = make_labels(40, 20)
    splits = split(np.arange(60), labels, Fractions(0.1, 0.25), rng())
    counts = {name: np.bincount(labels[indices]).tolist() for name, indices in splits.items()}
    assert counts == {"train": [26, 13], "validation": [4, 2], "test": [10, 5]}


@given(
    held=st.lists(st.integers(0, 25), min_size=1, max_size=6).filter(lambda held: sum(held) >= 2),
    validation=st.floats(0, 0.45),
    test=st.floats(0.01, 0.5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=200)
def test_split_keeps_sizes_and_class_distribution(held: list[int], validation: float, test: float, seed: int) -> None:
    labels = make_labels(*(count + 3 for count in held))  # 3 of each class are someone else's
    indices = np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c, count in enumerate(held)]))
    n = len(indices)
    splits = split(indices, labels, Fractions(validation, test), np.random.default_rng(seed))
    assert sorted(np.concatenate(list(splits.values())).tolist()) == indices.tolist()
    sizes = {name: len(part) for name, part in splits.items()}
    assert sizes["train"] >= 1
    assert sizes["test"] >= 1
    assert sizes["validation"] >= (validation > 0 and n >= 4)
    if n >= 20:
        assert sizes["test"] == max(1, int(test * n + 0.5))
        assert sizes["validation"] == max(int(validation > 0), int(validation * n + 0.5))
    for part in splits.values():
        assert (np.diff(part) > 0).all()
        expected = np.array(held) * (len(part) / n)
        # Test is off by less than 1 per class, validation by less than 1 from what test has left, train by both.
        assert (np.abs(np.bincount(labels[part], minlength=len(held)) - expected) < 2.01).all()


def test_classes_of_one_sample_are_asked_for_no_more() -> None:
    # 10 classes of 1: the 5 that test took can give validation nothing, and it has its 3 all the same.
    splits = split(np.arange(10), np.arange(10), Fractions(0.3, 0.5), rng())
    assert {name: len(part) for name, part in splits.items()} == {"test": 5, "validation": 3, "train": 2}


def test_split_is_decided_by_the_generator_alone() -> None:
    labels = make_labels(40, 20)
    one, two = (split(np.arange(60), labels, Fractions(), np.random.default_rng(5)) for _ in range(2))
    other = split(np.arange(60), labels, Fractions(), np.random.default_rng(6))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(one["test"], other["test"])


@pytest.mark.parametrize(("n", "sizes"), [(2, (1, 0, 1)), (3, (2, 0, 1)), (4, (2, 1, 1)), (5, (3, 1, 1))])
def test_small_clients(n: int, sizes: tuple[int, int, int]) -> None:
    # n = 4: test rounds to 1, validation 0.4 to 0 and is raised to 1; n = 5: 1.25 to 1 and 0.5 to 1.
    splits = split(np.arange(n), np.zeros(n, dtype=np.int64), Fractions(0.1, 0.25), rng())
    assert (len(splits["train"]), len(splits["validation"]), len(splits["test"])) == sizes


def test_a_client_of_one_sample_is_named() -> None:
    with pytest.raises(UserError, match=r"client 'HAMLET' has 1 samples, but needs at least 2"):
        split(np.array([0]), make_labels(4), Fractions(), rng(), client="HAMLET")


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (-0.1, 0.5), (0.1, 0.0)])
def test_fractions_that_leave_nothing(validation: float, test: float) -> None:
    with pytest.raises(UserError, match=rf"validation-fraction is {validation} and test-fraction {test}, but"):
        split(np.arange(8), make_labels(8), Fractions(validation, test), rng())


# ---- fewer samples for each client -----------------------------------------------------------------------------------


@given(
    most=st.integers(2, 60), seed=st.integers(0, 99), partitioner=st.sampled_from(["pathological", "noniid-1", "iid"])
)
def test_a_client_keeps_at_most_so_many_with_its_classes_in_proportion(most: int, seed: int, partitioner: str) -> None:
    labels = make_labels(60, 70, 80, 90, 100)
    chosen = Partitioning(partitioner, seed=seed)
    whole = partition(chosen, labels, 6)
    thinned = partition(dataclasses.replace(chosen, samples_per_client=most), labels, 6)
    check_basics(thinned, len(labels), 6)
    by_size = sorted(len(part) for part in whole)
    assert sorted(len(part) for part in thinned) == [min(size, most) for size in by_size]
    for part in thinned:
        (origin,) = [other for other in whole if set(part) <= set(other)]
        had, has = (np.bincount(labels[p], minlength=5) for p in (origin, part))
        assert (np.abs(has - had * len(part) / len(origin)) < 1).all()


def test_equal_classes_stay_equal_when_a_client_keeps_fewer() -> None:
    labels = make_labels(*[600] * 10)
    counts = table(partition(Partitioning("noniid-1", classes_per_client=4, samples_per_client=60), labels, 10), labels)
    assert sorted(map(sorted, counts.tolist())) == [[0] * 6 + [15] * 4] * 10


def test_owners_keep_fewer_too() -> None:
    owners = np.repeat([0, 1, 2], [50, 30, 10])
    parts = partition(Partitioning("natural", samples_per_client=20), make_labels(45, 45), 3, owners)
    assert [len(part) for part in parts] == [20, 20, 10]


@pytest.mark.parametrize("partitioner", [*BY_LABEL, "natural"])
def test_a_limit_that_nobody_reaches_changes_nothing(partitioner: str) -> None:
    labels, owners = make_labels(*[60] * 5), np.repeat([0, 1, 2, 3], [120, 90, 60, 30])
    chosen = Partitioning(partitioner, alpha=0.5, seed=3)
    dealt = {
        most: partition(dataclasses.replace(chosen, samples_per_client=most), labels, 4, owners) for most in (0, 300)
    }
    largest = max(len(part) for part in dealt[0])
    dealt[largest] = partition(dataclasses.replace(chosen, samples_per_client=largest), labels, 4, owners)
    for parts in (dealt[300], dealt[largest]):
        assert all(np.array_equal(one, other) for one, other in zip(dealt[0], parts, strict=True))


def test_what_a_client_keeps_is_drawn_with_the_seed() -> None:
    # One owner of everything: nothing but the choice of samples is left to chance.
    def kept(seed: int) -> list[int]:
        chosen = Partitioning("natural", seed=seed, samples_per_client=20)
        return partition(chosen, make_labels(60, 40), 1, np.zeros(100))[0].tolist()

    assert kept(0) == kept(0)
    assert kept(0) != kept(1)
    assert kept(0) != list(range(20))


@pytest.mark.parametrize("most", [-1, 1])
def test_a_limit_that_leaves_nothing_to_test_is_refused(most: int) -> None:
    with pytest.raises(UserError, match=rf"samples-per-client is {most}, but must be 0 for all samples, or at least 2"):
        partition(Partitioning("iid", samples_per_client=most), make_labels(50, 50), 2)


def test_the_limit_comes_from_the_settings_and_has_a_cache_of_its_own(tmp_path: Path) -> None:
    def samples(**given: int) -> int:
        settings = parse({"cache-dir": str(tmp_path), "partitioner": "iid", **given}).data()
        return sum(open_partition(settings, 0, 10).counts().values())

    # 1797 digits; the same cache folder serves all three.
    assert [samples(), samples(**{"samples-per-client": 40}), samples(**{"samples-per-client": 0})] == [180, 40, 180]
