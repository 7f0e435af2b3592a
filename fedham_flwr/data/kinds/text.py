"""Text: each client's, joined, and the windows of it whose next tokens are to be predicted; or texts with labels.

Two steps, each kept in the cache. `join` depends on the source and its columns alone, `cut` on `sequence-length` and
what makes tokens: with other ones, the source is not read again. Tokens are characters, words or subwords. A client's
texts, in the order of the rows, are joined by line breaks. A window is T + 1 tokens, inputs and then targets, and the
next one starts T further on: each token is predicted once, but for the client's first and for the rest that fills no
window. A text with labels is a sample by itself: its first T tokens.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.columns import named, values_of
from fedham_flwr.data.kinds import characters as alphabet
from fedham_flwr.data.kinds import words
from fedham_flwr.data.kinds.words import TextSettings

if TYPE_CHECKING:
    import datasets

_ROWS = 1000  # handled at a time

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


def recipe_of(length: int, vocabulary: str, settings: TextSettings, labelled: bool) -> dict[str, Any]:
    """How texts become samples, for `cut` and `encode`; but for the names of the columns, which depend on the data.

    Args:
        length: T, tokens of one sample.
        vocabulary: the characters, as in the settings.
        settings: those of texts.
        labelled: whether texts have labels, or the next token is predicted.

    Raises:
        UserError: the vocabulary is none, or the settings name no tokeniser.
    """
    found = words.recipe_of(settings, alphabet.parse_vocabulary(vocabulary), labelled)
    return {"kind": "text", "labelled": labelled, "length": length} | found


def cut(joined: Path, recipe: Mapping[str, Any], folder: Path) -> None:
    """Write the samples of joined texts: `features.npy`, `labels.npy` (zeros), `owners.npy` and `meta.json`.

    Texts with labels keep theirs: a sample is a text, [N, T]; else it is T tokens and the one after them, [N, T + 1].

    Args:
        joined: the folder that `join` wrote to, with its `meta.json`.
        recipe: of `recipe_of`.
        folder: exists and is empty.

    Raises:
        UserError: a text has a character outside of the vocabulary.
    """
    meta = json.loads((joined / "meta.json").read_text())
    recipe = {**recipe, "column": meta.get("column", "text")}
    meta["recipe"] = recipe
    if recipe["labelled"]:
        np.save(folder / "features.npy", words.padded(_texts(joined), recipe, recipe["length"]))
        for name in ("labels.npy", "owners.npy", "row-hashes.npy"):
            if (joined / name).exists():
                shutil.copyfile(joined / name, folder / name)
        meta |= {"kind": "tokens", "vocabulary": words.tokeniser_of(recipe).size}
    else:
        meta |= _cut_windows(joined, meta, recipe, folder)
    (folder / "meta.json").write_text(json.dumps(meta))


def _cut_windows(joined: Path, meta: Mapping[str, Any], recipe: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Samples of T + 1 tokens, of which the last is the next one's first; what the meta data say of them."""
    sizes, length = np.array(meta["characters"]), recipe["length"]
    if recipe["unit"] == "character":
        codes = alphabet.encode(joined, np.cumsum(sizes + 1) - 1, recipe["vocabulary"])
        classes = list(recipe["vocabulary"])
    else:
        codes, sizes, classes = _tokens(joined, np.cumsum(sizes + 1), recipe)
    features, owners = windows(codes, sizes, length)
    np.save(folder / "features.npy", features)
    np.save(folder / "labels.npy", np.zeros(len(owners), dtype=np.int64))
    if "owners" in meta:
        np.save(folder / "owners.npy", owners)
    return {"classes": classes, "characters": sizes.tolist()}


def windows(codes: npt.NDArray[Any], sizes: Indices, length: int) -> tuple[npt.NDArray[Any], Indices]:
    """Windows [N, T + 1] that follow on one another by T, and whose each is, int64 [N].

    Args:
        codes: of all owners' tokens, each owner's followed by one that belongs to nobody.
        sizes: how many tokens each owner has.
        length: T.
    """
    ends = np.cumsum(sizes + 1) - 1
    counts = np.maximum(sizes - 1, 0) // length
    owners = np.repeat(np.arange(len(sizes)), counts)
    within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    features = np.empty((0, length + 1), dtype=codes.dtype)
    if len(owners):
        starts = (ends - sizes)[owners] + within * length
        features = np.lib.stride_tricks.sliding_window_view(codes, length + 1)[starts]
    return features, owners


def encode(rows: datasets.Dataset, recipe: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Texts as `ClientData.features` has them.

    Args:
        rows: with the column that the recipe names.
        recipe: as `meta.json` has it.

    Returns:
        [N, T] of texts with labels, a row for each; else [N, T + 1] of all rows joined by line breaks.

    Raises:
        UserError: there is no such column, a row has no text, or a character is not in the vocabulary.
    """
    said = values_of(rows, named(rows, "feature-column", recipe["column"]), "feature-column")
    if recipe["labelled"]:
        return words.padded(list(said), recipe, recipe["length"])
    with tempfile.TemporaryDirectory() as folder:
        sizes = join(said, None, Path(folder))
        _cut_windows(Path(folder), {"characters": sizes}, recipe, Path(folder))
        found: npt.NDArray[Any] = np.load(Path(folder) / "features.npy")
    return found


def _texts(joined: Path) -> list[str]:
    """The texts of all rows, in the order in which they were joined."""
    points, starts = np.load(joined / "characters.npy", mmap_mode="r"), np.load(joined / "rows.npy")[0]
    ends = np.append(starts[1:], len(points)) - 1
    return [points[a:b].astype("<u4").tobytes().decode("utf-32-le") for a, b in zip(starts, ends, strict=True)]


def _tokens(joined: Path, ends: Indices, recipe: Mapping[str, Any]) -> tuple[npt.NDArray[Any], Indices, list[str]]:
    """Codes of all rows' tokens, a line break behind each row; how many each owner has; what the codes stand for."""
    tokeniser = words.tokeniser_of(recipe)
    codes = [[*tokeniser.codes(text), 1] for text in _texts(joined)]
    owners = np.searchsorted(ends, np.load(joined / "rows.npy")[0], side="right")
    sizes = np.bincount(owners, [len(each) for each in codes], minlength=len(ends)).astype(np.int64) - 1
    kind = words.narrowest(tokeniser.size)
    return np.concatenate([np.array(each, dtype=kind) for each in codes]), sizes, list(tokeniser.names)


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
