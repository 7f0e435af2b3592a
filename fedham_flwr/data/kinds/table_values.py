"""What texts of a table mean: numbers as people and programs write them, truth values, dates, and what is missing.

Arrays are Arrow's, of texts without blanks around them, null where a value is missing. What can't be read is named by
its place: nothing becomes a missing value in silence.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

MISSING = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None", "?", "-", ".")
"""Texts that stand for a value that is missing."""
WORDS: Mapping[str, float] = {
    "no": 0.0, "false": 0.0, "n": 0.0, "f": 0.0, "0": 0.0, "yes": 1.0, "true": 1.0, "y": 1.0, "t": 1.0, "1": 1.0,
}  # fmt: skip
"""Truth values, in lower case."""
EPOCH = datetime.datetime(2000, 1, 1)
"""Dates are days since then."""

Numbers = npt.NDArray[np.float64]
_PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf", re.ASCII)
_GROUPED = {
    ".": re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?", re.ASCII),
    ",": re.compile(r"[+-]?\d{1,3}([.' \xa0\u202f]\d{3})+(,\d*)?", re.ASCII),
}
"""Numbers with a sign between thousands, by the sign before their decimals."""
_COMMA = r"^[+-]?\d+(\.\d{3})*,\d+([eE][+-]?\d+)?$"  # may have a decimal comma
_THOUSANDS = r"^[+-]?[1-9]\d{0,2}(,\d{3})+$"  # or not
_POINT = r"^[+-]?(\d*\.(\d{1,2}|\d{4,})|\.\d+|\d{4,}\.\d+)$"  # a point that is not between thousands


class Parsed(NamedTuple):
    """Numbers that texts mean.

    Attributes:
        values: [n], NaN where one is missing.
        bad: the place of the first text that means none; -1: all do.
        notes: what had to be understood, a few words each.
    """

    values: Numbers
    bad: int = -1
    notes: tuple[str, ...] = ()


def texts(column: Any, missing: Sequence[str] = (), names: Sequence[str] = ()) -> Any:
    """An Arrow column of texts without blanks around them, null where a value is missing.

    Args:
        column: an Arrow array or chunked array of texts.
        missing: markers beside the usual ones.
        names: categories that are declared, so that they are no markers.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    trimmed = pc.utf8_trim_whitespace(pc.cast(column, pa.large_string()))
    markers = pa.array([sign for sign in (*MISSING, *missing) if sign not in names], pa.large_string())
    return pc.if_else(pc.is_in(trimmed, markers), pa.scalar(None, pa.large_string()), trimmed)


def by_word(column: Any, meaning: Callable[[str], float | None]) -> Parsed:
    """What each text means, asked once for each different one.

    Args:
        column: as `texts` gives it.
        meaning: of a text; None: it has none.
    """
    import pyarrow as pa

    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    coded = whole.dictionary_encode()
    words = coded.dictionary.to_pylist()
    meanings = [meaning(word) for word in words]
    known = np.array([*(np.nan if value is None else value for value in meanings), np.nan], dtype=np.float64)
    codes = coded.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
    bad = np.isin(codes, [place for place, value in enumerate(meanings) if value is None])
    return Parsed(known[codes], int(bad.argmax()) if bad.any() else -1)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def numbers(column: Any, decimal: str = ".") -> Parsed:
    """Numbers: plain ones, with a sign between thousands, or with a percent sign, which is dropped.

    Args:
        column: as `texts` gives it.
        decimal: the sign before decimals, . or ,.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        if decimal == ".":
            plain = pc.cast(column, pa.float64()).fill_null(float("nan")).to_numpy()
            return Parsed(plain, notes=_of_size(plain))
    except pa.ArrowInvalid:
        pass
    parsed = by_word(column, lambda text: number(text, decimal))
    percent = pc.ends_with(column, "%")
    if pc.any(percent).as_py() and not pc.all(percent).as_py():  # 50% beside 0.5: nobody knows
        lacking = np.flatnonzero(~percent.fill_null(True).to_numpy(zero_copy_only=False))
        parsed = parsed._replace(bad=int(lacking[0]) if parsed.bad < 0 else parsed.bad)
    notes = ["percent signs are dropped"] if pc.any(percent).as_py() else []
    if (
        pc.any(pc.match_substring_regex(column, r"\d[,.' \x{a0}\x{202f}]\d{3}")).as_py()
        and (example := next((text for text in column.to_pylist() if text and _grouped(text, decimal)), ""))
    ) or (decimal == "," and (example := next((text for text in column.to_pylist() if text and "," in text), ""))):
        notes.append(f"{example} is {number(example, decimal):g}")
    return parsed._replace(notes=(*notes, *_of_size(parsed.values)))


def _of_size(values: Numbers) -> tuple[str, ...]:
    finite = values[np.isfinite(values)]
    large = finite.size and float(np.abs(finite).max()) >= 2.0**63
    return ("integers beyond 64 bits are read as floats",) if large and (finite == np.floor(finite)).all() else ()


def _grouped(text: str, decimal: str) -> bool:
    return bool(_GROUPED[decimal].fullmatch(text.rstrip("% ")))


def number(text: str, decimal: str = ".") -> float | None:
    """The number that a text means; None if it means none.

    Args:
        text: without blanks around it.
        decimal: the sign before decimals, . or ,.
    """
    body = text[:-1].rstrip() if text.endswith("%") else text
    body = body.replace("\u2212", "-")
    if _GROUPED[decimal].fullmatch(body):
        body = re.sub(r"[,]" if decimal == "." else r"[.' \xa0\u202f]", "", body)
    elif decimal == "," and "." in body:
        return None
    body = body.replace(",", ".") if decimal == "," else body
    return float(body) if _PLAIN.fullmatch(body.lower()) else None


def commas(column: Any) -> str:
    """What commas in the numbers of a column are: "decimal", "thousands", "either", or "" where it has none.

    Args:
        column: as `texts` gives it.
    """
    import pyarrow.compute as pc

    with_comma = column.filter(pc.match_substring(column, ",").fill_null(False))
    if not len(with_comma):
        return ""
    if not pc.all(pc.match_substring_regex(with_comma, _COMMA)).as_py():
        return "thousands" if pc.all(pc.match_substring_regex(with_comma, _THOUSANDS)).as_py() else ""
    if not pc.all(pc.match_substring_regex(with_comma, _THOUSANDS)).as_py():
        return "decimal"
    return "thousands" if pc.any(pc.match_substring_regex(column, _POINT)).as_py() else "either"


# ---- truth values and dates ------------------------------------------------------------------------------------------


def booleans(column: Any) -> Parsed:
    """Yes and no, true and false, and their first letters, in any case, as 1 and 0."""
    return by_word(column, lambda text: WORDS.get(text.lower()))


_ISO = re.compile(
    r"\d{4}([-/])\d{1,2}\1\d{1,2}([T ]\d{1,2}:\d{2}(:\d{2}([.,]\d{1,9})?)?\s*(Z|[+-]\d{2}:?\d{2})?)?", re.ASCII
)
_NAMED = ("%d %B %Y", "%d %b %Y", "%d. %B %Y", "%B %d, %Y", "%b %d, %Y", "%B %d %Y", "%b %d %Y", "%d-%b-%Y", "%d-%B-%Y")


def dates(column: Any, form: str = "") -> Parsed:
    """Days since 2000-01-01, with a fraction where there is a time of day; a time with a zone is taken to UTC.

    Args:
        column: as `texts` gives it.
        form: of a date, as Python's `strptime` has it; empty: ISO 8601, or with the month's name.
    """
    return by_word(column, lambda text: date(text, form))


def date(text: str, form: str = "") -> float | None:
    """The days since 2000-01-01 that a text means; None if it is no date, or it isn't plain which."""
    moment = _moment(text, form)
    if moment is None:
        return None
    if moment.tzinfo is not None:
        moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    return (moment - EPOCH).total_seconds() / 86400


def _moment(text: str, form: str) -> datetime.datetime | None:
    if form:
        return _tried(text, (form,))
    if not _ISO.fullmatch(text):
        return _tried(text, _NAMED) if re.search(r"[A-Za-z]{3}", text) else None
    day, _, rest = text.replace("/", "-").replace(" ", "T", 1).partition("T")
    parts = [part.zfill(2) for part in day.split("-")]
    rest = re.sub(r"\s", "", rest).replace(",", ".")
    hours = rest if rest[1:2] != ":" else f"0{rest}"
    try:
        return datetime.datetime.fromisoformat("-".join(parts) + (f"T{hours}" if hours else ""))
    except ValueError:
        return None


def _tried(text: str, forms: Sequence[str]) -> datetime.datetime | None:
    for form in forms:
        try:
            return datetime.datetime.strptime(text, form)
        except ValueError:
            continue
    return None
