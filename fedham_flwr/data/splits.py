"""Splits of one client's samples: train, validation and test, by class, by order or by content.

Letter: n samples of the data set.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.class_tables import Indices
from fedham_flwr.data.data_settings import Fractions


def split(
    indices: Indices, labels: Indices, fractions: Fractions, rng: np.random.Generator, client: str = ""
) -> dict[str, Indices]:
    """Cut one client's samples into train, validation and test, with the same class distribution in each.

    The sizes are the fractions of the client's samples, rounded; within each, classes go by largest remainder.
    A client gets at least 1 train and 1 test sample, and 1 for validation if it has 4 and the fraction is above 0.

    Args:
        indices: int64, the client's sample numbers.
        labels: int64 [n], the class of every sample of the data set.
        fractions: of validation and test.
        rng: decides which samples go where.
        client: the client's name, for error texts.

    Returns:
        Sorted sample numbers under "train", "validation" and "test": disjoint, and together `indices`.

    Raises:
        UserError: the fractions leave nothing to train on, or the client has fewer than 2 samples.
    """
    validation, test = split_sizes(len(indices), fractions, client)
    shuffled = rng.permutation(indices)
    held = [shuffled[labels[shuffled] == c] for c in np.unique(labels[indices])]
    sizes = np.array([len(samples) for samples in held])
    # Validation is taken from what test has left, so that a class of one sample is never asked for two.
    tests = apportion(sizes, test, rng)
    validations = apportion(sizes - tests, validation, rng)
    pieces = [np.split(samples, [t, t + v]) for samples, t, v in zip(held, tests, validations, strict=True)]
    names = ("test", "validation", "train")
    splits = {name: np.sort(np.concatenate([piece[i] for piece in pieces])) for i, name in enumerate(names)}
    assert np.array_equal(np.sort(np.concatenate(list(splits.values()))), np.sort(indices)), "splits overlap"
    return splits


def split_in_order(indices: Indices, fractions: Fractions, client: str = "") -> dict[str, Indices]:
    """Cut one client's samples, which follow on one another: first those to train on, then validation, then test.

    Sizes, arguments, result and errors are those of `split`.
    """
    validation, test = split_sizes(len(indices), fractions, client)
    ordered, train = np.sort(indices), len(indices) - validation - test
    return {"train": ordered[:train], "validation": ordered[train:-test], "test": ordered[-test:]}


def split_by_rows(indices: Indices, shares: npt.NDArray[np.float64], fractions: Fractions) -> dict[str, Indices]:
    """Cut one client's samples by what is in them: where a sample goes does not depend on which others there are.

    So a file that grows moves no sample from one split to another, and equal samples are in the same one. The sizes are
    the fractions on average only, and a split may be empty.

    Args:
        indices: int64, the client's sample numbers.
        shares: float64 [n], of every sample of the data set, in [0, 1): `row_hashes.shares`.
        fractions: of validation and test.

    Returns:
        Sorted sample numbers under "train", "validation" and "test": disjoint, and together `indices`.

    Raises:
        UserError: the fractions leave nothing to train on.
    """
    _check_fractions(fractions)
    ordered = np.sort(indices)
    place = shares[ordered]
    test, held = place < fractions.test, place < fractions.test + fractions.validation
    return {"train": ordered[~held], "validation": ordered[held & ~test], "test": ordered[test]}


def _check_fractions(fractions: Fractions) -> None:
    if fractions.validation < 0 or fractions.test <= 0 or fractions.validation + fractions.test >= 1:
        raise UserError(
            f"validation-fraction is {fractions.validation} and test-fraction {fractions.test}, but they must be at "
            "least 0 and above 0, and together below 1, so that something is left to train on."
        )


def split_sizes(n: int, fractions: Fractions, client: str) -> tuple[int, int]:
    """How many of n samples are for validation and for test, within the promises of `split`.

    Args:
        n: samples of a client.
        fractions: of validation and test.
        client: its name, for errors.

    Raises:
        UserError: as `split`.
    """
    _check_fractions(fractions)
    if n < 2:
        raise UserError(
            f"client '{client}' has {n} samples, but needs at least 2, one to train and one to test; "
            "use fewer clients or leave this one out."
        )
    least = int(fractions.validation > 0 and n >= 4)
    test = min(max(1, int(fractions.test * n + 0.5)), n - 1 - least)
    validation = min(max(least, int(fractions.validation * n + 0.5)), n - 1 - test)
    return validation, test


def apportion(sizes: Indices, total: int, rng: np.random.Generator) -> Indices:
    """Take `total` from classes of these sizes in proportion (largest remainder, ties by lot), none above its size."""
    quotas = sizes * (total / max(1, int(sizes.sum())))
    shares: Indices = np.floor(quotas + 1e-9).astype(np.int64)  # 1e-9: a quota of 3 computed as 2.9999999999999996 is 3
    lot = rng.permutation(len(sizes))
    order = lot[np.argsort((shares - quotas)[lot], kind="stable")]
    shares[order[: total - shares.sum()]] += 1
    assert shares.sum() == total
    assert (shares <= sizes).all()
    return shares
