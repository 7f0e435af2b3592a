"""Tokens of texts: by a tokeniser's or a vocabulary's file, by hashed words, or characters.

Which words there are differs from site to site, so nothing is found from data: without a file, a word's code is a hash
of it, the same everywhere, and reveals nothing. Code 0 is the mask, which fills up a text that is too short; 1 is a
line break between the texts of an owner.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from annotated_types import Ge

from fedham_flwr.core.errors import UserError, first_line

MASK, BREAK, UNKNOWN = "<mask>", "<line>", "<unknown>"
"""The names of the codes 0 and 1, and of 2 where there is a list of words."""
_WORD = re.compile(r"\w+|[^\w\s]")
_DESCRIBED = 16  # hexadecimal digits of a tokeniser's digest

Codes = npt.NDArray[Any]


@dataclass(frozen=True)
class TextSettings:
    """Settings under `text.`.

    Attributes:
        unit: character, word or subword; auto: by tokenizer, if any, else character to predict the next one, and word
            for labels.
        tokenizer: a file with one word a line, or a JSON of Hugging Face's tokenizers; empty: words are hashed.
        buckets: how many codes hashed words have.
    """

    unit: Literal["auto", "character", "word", "subword"] = "auto"
    tokenizer: str = ""
    buckets: Annotated[int, Ge(2)] = 10_000


class Tokeniser(Protocol):
    """What makes codes of texts.

    Attributes:
        size: V, how many codes there are, with the mask.
        names: what each code stands for; none where words are hashed.
    """

    size: int
    names: tuple[str, ...]

    def codes(self, text: str) -> list[int]:
        """The codes of a text, from 1 to V - 1."""
        ...


def split_words(text: str) -> list[str]:
    """Words in small letters; signs are words of their own."""
    return _WORD.findall(text.lower())


class _Hashed:
    names: tuple[str, ...] = ()

    def __init__(self, buckets: int) -> None:
        self.size, self._first = buckets + 2, 2
        self._code = lru_cache(maxsize=1 << 16)(lambda word: 2 + zlib.crc32(word.encode()) % buckets)

    def codes(self, text: str) -> list[int]:
        return [self._code(word) for word in split_words(text)]


class _Listed:
    """Words, or characters, of a list; others are unknown."""

    def __init__(self, words: Sequence[str], split: Any) -> None:
        self.names = (MASK, BREAK, UNKNOWN, *words)
        self.size, self._split = len(self.names), split
        self._places = {word: place for place, word in enumerate(words, 3)}

    def codes(self, text: str) -> list[int]:
        return [self._places.get(word, 2) for word in self._split(text)]


class _Subwords:
    def __init__(self, written: str, path: str) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise UserError(
                f"text.tokenizer={path!r} is read by the package tokenizers, which is not installed: pip install "
                "'fedham-flwr[text]'"
            ) from error
        try:
            self._tokenizer = Tokenizer.from_str(written)
        except Exception as error:  # the library raises Exception itself
            raise UserError(f"text.tokenizer={path!r} is no tokeniser's file: {first_line(error)}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.size = 2 + max(vocabulary.values(), default=0) + 1
        by_code = {code: word for word, code in vocabulary.items()}
        self.names = (MASK, BREAK, *(by_code.get(code, f"<{code}>") for code in range(self.size - 2)))

    def codes(self, text: str) -> list[int]:
        return [2 + code for code in self._tokenizer.encode(text, add_special_tokens=False).ids]


def recipe_of(settings: TextSettings, vocabulary: str, labelled: bool) -> dict[str, Any]:
    """What of the settings, and of the file that they name, makes tokens; for `tokeniser_of`.

    Args:
        settings: those of texts.
        vocabulary: the characters, where they are the units.
        labelled: whether texts have labels, or the next token is predicted.

    Raises:
        UserError: there is no such file, or the settings do not fit together.
    """
    unit, path = settings.unit, settings.tokenizer
    if not path:
        unit = ("word" if labelled else "character") if unit == "auto" else unit
        if unit == "character":
            return {"unit": unit, "vocabulary": vocabulary}
        if unit == "subword":
            raise UserError('text.unit="subword" needs text.tokenizer, the file of a tokeniser.')
        if not labelled:
            raise UserError(
                'text.unit="word" predicts the next word, which needs a list of words: set text.tokenizer to a file '
                "with one word a line, the same at all clients."
            )
        return {"unit": unit, "buckets": settings.buckets}
    written = _read(path)
    json_file = written.lstrip().startswith("{")
    found = "subword" if json_file else "word"
    if unit not in ("auto", found):
        kind = "a tokeniser's JSON" if json_file else "a list of words"
        raise UserError(f'text.tokenizer={path!r} is {kind}, but text.unit is "{unit}"; wanted "{found}".')
    if json_file:
        return {"unit": "subword", "tokenizer": written}
    return {"unit": "word", "words": _words(path, written)}


def _read(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise UserError(f"text.tokenizer={path!r} can't be read: {why}.") from error


def _words(path: str, written: str) -> list[str]:
    words = [line.strip() for line in written.splitlines() if line.strip()]
    first: dict[str, int] = {}
    for place, word in enumerate(words):
        if first.setdefault(word, place) != place:
            raise UserError(f"text.tokenizer={path!r} has the word {word!r} twice, but must have each one once.")
    if not words:
        raise UserError(f"text.tokenizer={path!r} has no words: wanted one a line.")
    return words


def tokeniser_of(recipe: Mapping[str, Any]) -> Tokeniser:
    """What makes tokens as a recipe says."""
    if "tokenizer" in recipe:
        return _Subwords(recipe["tokenizer"], "of the recipe")
    if "words" in recipe:
        return _Listed(recipe["words"], split_words)
    if "buckets" in recipe:
        return _Hashed(recipe["buckets"])
    return _Listed(recipe["vocabulary"], list)


def digest(recipe: Mapping[str, Any]) -> str:
    """What all clients must have the same of: a few digits that stand for the units and their codes."""
    content = repr(
        sorted((key, recipe[key]) for key in ("unit", "vocabulary", "buckets", "words", "tokenizer") if key in recipe)
    )
    return hashlib.sha256(content.encode()).hexdigest()[:_DESCRIBED]


def narrowest(size: int) -> type[np.generic]:
    """The narrowest type that holds so many codes and that torch can index."""
    return np.uint8 if size <= 256 else np.int16 if size <= 1 << 15 else np.int32


def padded(texts: Sequence[str], recipe: Mapping[str, Any], length: int) -> Codes:
    """[N, T]: the first T codes of each text, and 0 behind those of a shorter one.

    Args:
        texts: N of them.
        recipe: see `recipe_of`.
        length: T.
    """
    tokeniser = tokeniser_of(recipe)
    found = np.zeros((len(texts), length), dtype=narrowest(tokeniser.size))
    for row, text in enumerate(texts):
        codes = tokeniser.codes(text)[:length]
        found[row, : len(codes)] = codes
    return found
