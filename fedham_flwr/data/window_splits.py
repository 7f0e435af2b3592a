"""Splits of windows cut from recordings: of windows that overlap, none is for training and another for testing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.class_tables import Indices
from fedham_flwr.data.data_settings import Fractions
from fedham_flwr.data.splits import apportion, split_by_rows, split_sizes

NAMES = ("train", "validation", "test")


def split_windows(
    part: Indices, spans: Indices, fractions: Fractions, rng: np.random.Generator, client: str
) -> dict[str, Indices]:
    """Cut one client's windows into train, validation and test by time.

    The last windows of each recording are for testing and those before them for validation, of each recording in
    proportion to its windows; a window that overlaps one of a later split is left out.

    Args:
        part: int64, the client's window numbers.
        spans: int64 [N, 3] of all windows: recording, where it begins, and its rows.
        fractions: of validation and test.
        rng: decides which of equal recordings has one more.
        client: its name, for errors.

    Returns:
        Sorted window numbers of each split, disjoint.

    Raises:
        UserError: nothing is left to train on or to test on.
    """
    recordings = [part[spans[part, 0] == number] for number in np.unique(spans[part, 0])]
    recordings = [each[np.argsort(spans[each, 1], kind="stable")] for each in recordings]
    validation, test = split_sizes(len(part), fractions, client)
    pieces = _by_time(recordings, spans, validation, test, rng)
    splits = {name: np.sort(np.concatenate(piece)).astype(np.int64) for name, piece in zip(NAMES, pieces, strict=True)}
    for name in ("train", "test"):
        if not len(splits[name]):
            raise UserError(
                f"client '{client}' has {len(part)} windows, of which none is left for {name}, since those "
                "that overlap another split are left out: set a larger series.stride, a smaller series.length or other "
                "fractions."
            )
    return splits


def split_recordings(
    part: Indices, spans: Indices, shares: npt.NDArray[np.float64], fractions: Fractions, client: str
) -> dict[str, Indices]:
    """Cut one client's windows into train, validation and test by whole recordings.

    Where a recording goes is decided by its name and the seed, so that one that is added moves no other into or out of
    testing. The sizes are the fractions on average only, and validation and test may be empty. One recording is always
    for training: of a client that has none there, the one whose share is largest.

    Args:
        part: int64, the client's window numbers.
        spans: int64 [N, 3] of all windows, as for `split_windows`.
        shares: float64 [N] in [0, 1), the same for all windows of a recording.
        fractions: of validation and test.
        client: its name, for errors.

    Returns:
        Sorted window numbers of each split, disjoint and together `part`.

    Raises:
        UserError: the client has one recording alone.
    """
    if len(np.unique(spans[part, 0])) < 2:
        raise UserError(
            'series.split="recording" needs at least 2 recordings of each client, one to train on and one to test, but '
            f"client '{client}' has 1."
        )
    splits = split_by_rows(part, shares, fractions)
    if not len(splits["train"]):
        largest = np.sort(part)[shares[np.sort(part)] == shares[part].max()]
        splits = {name: np.setdiff1d(windows, largest) for name, windows in splits.items()} | {"train": largest}
    return splits


def _by_time(
    recordings: list[Indices], spans: Indices, validation: int, test: int, rng: np.random.Generator
) -> tuple[list[Indices], ...]:
    """Windows of train, validation and test, without those that overlap a later split."""
    sizes = np.array([len(each) for each in recordings])
    tests = apportion(sizes, test, rng)
    validations = apportion(sizes - tests, validation, rng)
    pieces: tuple[list[Indices], ...] = ([], [], [])
    for windows, tested, validated in zip(recordings, tests.tolist(), validations.tolist(), strict=True):
        left = windows
        for which, count in ((2, tested), (1, validated), (0, len(windows))):
            taken = left[max(0, len(left) - count) :]
            pieces[which].append(taken)
            if len(taken):
                left = left[spans[left, 1] + spans[left, 2] <= spans[taken[0], 1]]
    return _filled(pieces)


def _filled(pieces: tuple[list[Indices], ...]) -> tuple[list[Indices], ...]:
    """None without an array, so that they can be joined."""
    return tuple(piece or [np.empty(0, dtype=np.int64)] for piece in pieces)
