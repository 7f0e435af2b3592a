"""Shapes of a sample, which say what it is by how many numbers they have.

One number: the length of a text; two: a row of a table, (2, columns); three: an image, (channels, height, width). A
series and a text with labels would look like others, so theirs end in 0, which is no dimension, behind a number for the
kind: (2 C, T, 1, 0) of T steps of C channels and their gaps, (T, V, 2, 0) of T tokens of which there are V.
"""

from __future__ import annotations

from typing import Literal

SERIES, TOKENS = 1, 2
"""The numbers for the kinds whose shapes end in 0."""
SampleKind = Literal["text", "table", "image", "series", "tokens", "array"]

Shape = tuple[int, ...]


def of_series(channels: int, steps: int) -> Shape:
    """The shape of a series.

    Args:
        channels: C; the network sees 2 C, with the gaps.
        steps: T.
    """
    return 2 * channels, steps, SERIES, 0


def of_tokens(length: int, vocabulary: int) -> Shape:
    """The shape of a text with labels.

    Args:
        length: T.
        vocabulary: V.
    """
    return length, vocabulary, TOKENS, 0


def sample_kind(shape: Shape) -> SampleKind:
    """What a sample of this shape is; arrays of a user's may have the shape of another kind."""
    if shape and shape[-1] == 0:
        return "series" if shape[-2] == SERIES else "tokens"
    named: dict[int, SampleKind] = {1: "text", 2: "table", 3: "image"}
    return named.get(len(shape), "array")


def dimensions(shape: Shape) -> Shape:
    """Those of a sample as a network is given it: (2 C, T) of a series, (T,) of a text."""
    kind = sample_kind(shape)
    return shape[:2] if kind == "series" else shape[:1] if kind == "tokens" else shape


def vocabulary(shape: Shape) -> int:
    """V of a text with labels; 0 of all else, where it is not the shape that says it."""
    return shape[1] if sample_kind(shape) == "tokens" else 0
