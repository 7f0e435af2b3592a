"""Text: each client's texts, joined, and the windows of them whose next characters are to be predicted.

Two steps, each kept in the cache. `join` depends on the source and its columns alone, `cut` on `sequence-length` and
`vocabulary`: with other ones, the source is not read again. A client's texts, in the order of the rows, are joined by
line breaks. A window is T + 1 characters, inputs and then targets, and the next one starts T further on: each character
is predicted once, but for the client's first and for the rest that fills no window.
"""

from __future__ import annotations

import json
import string
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError

PRINTABLE = string.printable
"""The vocabulary unless another is given: 100 characters, declared before data are seen, so that all sites agree."""
MOST_CHARACTERS = 256
"""In a vocabulary: a code is one byte."""
_ROWS, _CHARACTERS = 1000, 1 << 20  # handled at a time
_SHOWN = 40  # of the characters that a vocabulary lacks

Indices = npt.NDArray[np.int64]


def join(texts: npt.NDArray[Any], owners: Indices | None, folder: Path) -> list[int]:
    """Write the code points of all texts, owner by owner, a line break after each, and where each row has gone.

    These are `characters.npy`, [L] of the narrowest type that holds them, and `rows.npy`, int64 [2, R]: where the text
    starts, and the number of its row.

    Args:
        texts: [R], str.
        owners: [R] in 0..K-1, whose each text is, each owner having one; None: all are of one owner.
        folder: exists.

    Returns:
        The characters of each of the K joined texts.
    """
    owners = np.zeros(len(texts), dtype=np.int64) if owners is None else owners
    order = np.argsort(owners, kind="stable")
    lengths = np.array([len(text) + 1 for text in texts], dtype=np.int64)[order]
    blocks = [_code_points(texts[order[i : i + _ROWS]]) for i in range(0, len(order), _ROWS)]
    np.save(folder / "characters.npy", np.concatenate(blocks))
    np.save(folder / "rows.npy", np.stack([np.cumsum(lengths) - lengths, order]))
    ends = np.cumsum(np.bincount(owners))  # in rows
    characters: list[int] = (np.diff(np.cumsum(lengths)[ends - 1], prepend=0) - 1).tolist()  # less the last line break
    return characters


def _code_points(texts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    points = np.frombuffer("\n".join([*texts, ""]).encode("utf-32-le"), dtype="<u4")
    return points.astype(np.min_scalar_type(points.max()))


def cut(joined: Path, length: int, vocabulary: str, folder: Path) -> None:
    """Write the samples of joined texts: `features.npy`, `labels.npy` (zeros), `owners.npy` and `meta.json`.

    Args:
        joined: the folder that `join` wrote to, with its `meta.json`.
        length: T, characters of one sample.
        vocabulary: its characters, as in the settings.
        folder: exists and is empty.

    Raises:
        UserError: the vocabulary is none, or a text has a character outside of it.
    """
    meta = json.loads((joined / "meta.json").read_text())
    sizes = np.array(meta["characters"])
    ends = np.cumsum(sizes + 1) - 1
    codes = _encode(joined, ends, parse_vocabulary(vocabulary))
    windows = np.maximum(sizes - 1, 0) // length
    owners = np.repeat(np.arange(len(sizes)), windows)
    within = np.arange(len(owners)) - np.repeat(np.cumsum(windows) - windows, windows)
    features = np.empty((0, length + 1), dtype=np.uint8)
    if len(owners):
        starts = (ends - sizes)[owners] + within * length
        features = np.lib.stride_tricks.sliding_window_view(codes, length + 1)[starts]
    np.save(folder / "features.npy", features)
    np.save(folder / "labels.npy", np.zeros(len(owners), dtype=np.int64))
    if "owners" in meta:
        np.save(folder / "owners.npy", owners)
    (folder / "meta.json").write_text(json.dumps(meta | {"classes": list(parse_vocabulary(vocabulary))}))


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


def _encode(joined: Path, ends: Indices, vocabulary: str) -> npt.NDArray[np.uint8]:
    """The codes of all characters, uint8 [L]. `ends`: where the line breaks are that end an owner's text."""
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


def check_length(whose: str, characters: int, length: int, clients: int = 1) -> None:
    """A text must have two samples for each client it is dealt to, one to train on and one to test.

    Args:
        whose: the setting or path that names it.
        characters: of the text.
        length: T, characters of one sample.
        clients: how many it is dealt to.

    Raises:
        UserError: it is too short.
    """
    least = 2 * length * clients + 1
    if characters < least:
        many = f" for each of {clients} clients" if clients > 1 else ""
        raise UserError(
            f"the text of {whose} has {characters} characters, but with sequence-length={length} at least {least} are "
            f"needed, for one sample to train on and one to test{many}."
        )


def samples_of_long_texts(
    characters: Sequence[int], owners: Indices, length: int, min_characters: int, clients: int
) -> Indices:
    """The numbers of the samples whose owners have enough text: two samples, and `min_characters`.

    Args:
        characters: of each owner's text, [K].
        owners: of each sample, [N] in 0..K-1.
        length: T, characters of one sample.
        min_characters: the setting.
        clients: how many owners are needed.

    Raises:
        UserError: too few owners have enough.
    """
    least = max(2 * length + 1, min_characters)
    enough = np.array(characters) >= least
    if enough.sum() < clients:
        setting, why = "min-characters", f"min-characters={min_characters}"
        if least > min_characters:
            setting, why = "sequence-length", f"with sequence-length={length}, one sample to train on and one to test"
        raise UserError(
            f"{clients} clients were asked for, but of the {len(enough)} that client-column names only {enough.sum()} "
            f"have at least {least} characters ({why}); use fewer clients or a smaller {setting}."
        )
    return np.flatnonzero(enough[owners])
