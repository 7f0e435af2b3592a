"""Characters as codes: the vocabulary, and what is said of characters that are not in it."""

from __future__ import annotations

import string
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError

PRINTABLE = string.printable
"""The vocabulary unless another is given: 100 characters, declared before data are seen, so that all sites agree."""
MOST_CHARACTERS = 256
"""In a vocabulary: a code is one byte."""
_CHARACTERS = 1 << 20  # handled at a time
_SHOWN = 40  # of the characters that a vocabulary lacks

Indices = npt.NDArray[np.int64]


def parse_vocabulary(vocabulary: str) -> str:
    """The characters in the order of their codes.

    Args:
        vocabulary: the setting; empty: `PRINTABLE`.

    Raises:
        UserError: there are fewer than 2 or more than 256, or one comes twice.
    """
    if not vocabulary:
        return PRINTABLE
    if not 2 <= len(vocabulary) <= MOST_CHARACTERS:
        raise UserError(f"vocabulary has {len(vocabulary)} characters, but must have from 2 to {MOST_CHARACTERS}.")
    twice = [character for at, character in enumerate(vocabulary) if character in vocabulary[:at]]
    if twice:
        raise UserError(f"vocabulary has the character {_named(twice[0])} twice, but must have each one once.")
    return vocabulary


def _named(character: str) -> str:
    return f"{character!r} (U+{ord(character):04X})"


def encode(joined: Path, ends: Indices, vocabulary: str) -> npt.NDArray[np.uint8]:
    """The codes of all characters of joined texts, uint8 [L].

    Args:
        joined: the folder that `text.join` wrote to.
        ends: where the line breaks are that end an owner's text.
        vocabulary: the characters.

    Raises:
        UserError: a text has a character outside of it.
    """
    points, rows = np.load(joined / "characters.npy", mmap_mode="r"), np.load(joined / "rows.npy")
    if "\n" not in vocabulary and rows.shape[1] > len(ends):
        raise UserError(f"vocabulary lacks {_named(chr(10))}, by which the texts of a client are joined; add it.")
    table = np.full(sys.maxunicode + 1, -1, dtype=np.int16)
    table[[ord(character) for character in vocabulary]] = np.arange(len(vocabulary))
    codes, strange = np.empty(len(points), dtype=np.uint8), [np.empty(0, dtype=np.int64)]
    for start in range(0, len(points), _CHARACTERS):
        found = table[points[start : start + _CHARACTERS]]
        codes[start : start + len(found)] = found  # -1 wraps to 255, and is refused below, or ends a text
        strange.append(np.flatnonzero(found < 0) + start)
    outside = np.setdiff1d(np.concatenate(strange), ends, assume_unique=True)
    if len(outside):
        raise _outside(points, rows, outside)
    return codes


def _outside(points: npt.NDArray[Any], rows: Indices, outside: Indices) -> UserError:
    """What to say of the characters at these places, which are in ascending order."""
    numbers = rows[1][np.searchsorted(rows[0], outside, side="right") - 1]
    first = int(np.argmin(numbers))
    kinds = "".join(map(chr, np.unique(points[outside])))
    shown = repr(kinds) if len(kinds) <= _SHOWN else f"{kinds[:_SHOWN]!r} and more"
    return UserError(
        f"the text of row {numbers[first]} has the character {_named(chr(points[outside[first]]))}, which is not in "
        f"vocabulary ({len(outside)} such characters in all, {len(kinds)} different: {shown}); set vocabulary to all "
        "characters that the texts have."
    )
