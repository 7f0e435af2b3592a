"""Columns of a table, as stored or as a user's rows have them -> the numbers that a network is fed, before scaling.

A column is what its `Column` says, whether it comes as texts of a .csv file or as numbers, dates or lists of a typed
one. Shape letters: n rows, w numbers of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.kinds import table_values as meaning
from fedham_flwr.data.kinds.table_column import Column, Numbers, spread
from fedham_flwr.data.kinds.table_numbers import Signs, Where, no_value, numbers_of_texts
from fedham_flwr.data.kinds.table_values import Parsed


class Encoded(NamedTuple):
    """The numbers of a column.

    Attributes:
        numbers: [n, w], NaN where a value is missing.
        notes: what had to be understood.
        unknown: words that are none of its categories, and in how many rows each is.
    """

    numbers: Numbers
    notes: tuple[str, ...] = ()
    unknown: Mapping[str, int] = {}


def encode(column: Column, values: Any, where: Where, missing: Sequence[str] = ()) -> Encoded:
    """The numbers of a column.

    Args:
        column: what it is.
        values: an Arrow chunked array: texts, or of a type that says what it holds.
        where: where a row stands.
        missing: markers of what is missing, beside the usual ones.

    Raises:
        UserError: a value isn't what the column holds, or is out of its range.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    given = meaning.texts(values, missing, column.names) if is_text else values
    encoded = _ENCODERS[column.kind](column, given, is_text, where)
    _check_range(column, encoded.numbers, where)
    return encoded


def kind_of_texts(column: Any, decimal: str) -> str:
    """What a column of texts holds, as far as that is plain: number, boolean, date, or "" for words.

    Args:
        column: as `table_values.texts` gives it.
        decimal: the sign before decimals.
    """
    readers: dict[str, Callable[[Any], Parsed]] = {
        "number": lambda given: meaning.numbers(given, decimal), "boolean": meaning.booleans, "date": meaning.dates,
    }  # fmt: skip
    return next((kind for kind, read in readers.items() if read(column).bad < 0), "")


def _check_range(column: Column, numbers: Numbers, where: Where) -> None:
    if column.low is None and column.high is None:
        return
    low, high = -np.inf if column.low is None else column.low, np.inf if column.high is None else column.high
    outside = (numbers[:, 0] < low) | (numbers[:, 0] > high)
    if outside.any():
        row = int(outside.argmax())
        raise UserError(
            f"column '{column.name}' has {numbers[row, 0]:g} in {where(row)}; wanted, as the schema says, a number "
            f"from {low:g} to {high:g}."
        )


# ---- one function for each kind --------------------------------------------------------------------------------------


def _encode_number(column: Column, values: Any, is_text: bool, where: Where) -> Encoded:
    if not is_text:
        return Encoded(_floats(column, values)[:, None])
    return Encoded(*numbers_of_texts(column, values, where, ((0, len(values), column.decimal or "."),)))


def encode_numbers(column: Column, values: Any, where: Where, missing: Sequence[str], signs: Signs) -> Encoded:
    """As `encode`, of a column of texts that are numbers, out of files that are written differently.

    Args:
        column: what it is.
        values: an Arrow chunked array of texts.
        where: where a row stands.
        missing: markers of what is missing, beside the usual ones.
        signs: of each file its first row, the one after its last, and the sign before decimals: . or , or ? where
            that isn't plain.

    Raises:
        UserError: a value is no number, is out of range, or it isn't plain which number it is.
    """
    encoded = Encoded(*numbers_of_texts(column, meaning.texts(values, missing), where, signs))
    _check_range(column, encoded.numbers, where)
    return encoded


def _floats(column: Column, values: Any) -> Numbers:
    """[n]: of a column whose type is a number, NaN for null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        whole = pc.cast(values.combine_chunks(), pa.float64(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"column '{column.name}' holds {values.type}; wanted {column.kind or 'numbers'}.") from error
    numbers: Numbers = pc.fill_null(whole, float("nan")).to_numpy(zero_copy_only=False)
    return numbers


def _encode_class(column: Column, values: Any, is_text: bool, where: Where) -> Encoded:
    """A class label: by its number, or its name; one that has no name is refused."""
    if not is_text:
        return Encoded(spread(_floats(column, values), column))
    codes = {name: float(place) for place, name in enumerate(column.names)}
    parsed = meaning.by_word(values, lambda text: codes.get(text, _code(text, column)))
    if parsed.bad >= 0:
        raise no_value(column, values, parsed.bad, where, f"one of {', '.join(column.names)}")
    return Encoded(spread(parsed.values, column))


def _code(text: str, column: Column) -> float | None:
    value = meaning.number(text)
    return value if value is not None and value in range(-1, len(column.names)) else None


def _encode_boolean(column: Column, values: Any, is_text: bool, where: Where) -> Encoded:
    if is_text:
        parsed = meaning.booleans(values)
    else:
        numbers = _floats(column, values)
        wrong = ~np.isin(numbers, (0, 1)) & ~np.isnan(numbers)
        parsed = Parsed(numbers, int(wrong.argmax()) if wrong.any() else -1)
    if parsed.bad >= 0:
        raise no_value(column, values, parsed.bad, where, "yes or no, true or false, 1 or 0")
    return Encoded(parsed.values[:, None])


def _encode_category(column: Column, values: Any, is_text: bool, _: Where) -> Encoded:
    """[n, K + 1]: a 1 in the place of its name, or in the last one if it has none; NaN where it is missing."""
    codes, unknown = _codes(column, values, is_text)
    spreaded = np.where(np.isnan(codes)[:, None], np.nan, codes[:, None] == np.arange(len(column.names) + 1))
    return Encoded(spreaded, unknown=unknown)


def _encode_ordered(column: Column, values: Any, is_text: bool, _: Where) -> Encoded:
    """[n, 2]: its rank from 0 to 1, missing where it has none, and whether it is none of the categories."""
    codes, unknown = _codes(column, values, is_text)
    strange = codes == len(column.names)
    ranks = np.where(strange, np.nan, codes / max(1, len(column.names) - 1))
    return Encoded(np.stack([ranks, np.where(np.isnan(codes), np.nan, strange)], axis=1), unknown=unknown)


def _codes(column: Column, values: Any, is_text: bool) -> tuple[Numbers, Mapping[str, int]]:
    """[n]: the place of each row's category, K for another one, NaN where it is missing; what is unknown, counted."""
    import pyarrow.compute as pc

    words = values if is_text else meaning.texts(as_words(values))
    places = {name: float(place) for place, name in enumerate(column.names)}
    codes = meaning.by_word(words, lambda text: places.get(text, float(len(places)))).values
    strange = words.filter(codes == len(places)) if (codes == len(places)).any() else None
    counts = (
        {} if strange is None else {each["values"]: each["counts"] for each in pc.value_counts(strange).to_pylist()}
    )
    return codes, counts


def as_words(values: Any) -> Any:
    """Numbers and truth values of a typed column as texts: 3.0 is 3, True is true."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(values.type):
        whole = pc.fill_null(pc.equal(values, pc.floor(values)), True)
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
        if pc.all(whole.filter(pc.is_valid(values))).as_py() is not False:
            values = pc.cast(values, pa.int64())
    return pc.cast(values, pa.large_string())


def _encode_date(column: Column, values: Any, is_text: bool, where: Where) -> Encoded:
    """[n, 1 + 2 parts]: days since 2000-01-01, and sine and cosine of each part."""
    parsed = meaning.dates(values, column.format) if is_text else _typed_dates(column, values)
    if parsed.bad >= 0:
        wanted = f"a date as {column.format}" if column.format else "a date as 2024-03-31 or 31 March 2024"
        raise no_value(column, values, parsed.bad, where, f"{wanted} (a schema can name another format)")
    moments = parsed.values
    days = np.nan_to_num(moments)
    month = (np.datetime64("2000-01-01") + np.floor(days).astype("timedelta64[D]")).astype("datetime64[M]").astype(
        int
    ) % 12
    turns = {"month": month / 12, "weekday": (np.floor(days) + 5) % 7 / 7, "hour": days % 1}  # it was a Saturday
    angles = [2 * np.pi * turns[part] for part in column.parts]
    waves = [wave for angle in angles for wave in (np.sin(angle), np.cos(angle))]
    found = np.stack([moments, *waves], axis=1)
    return Encoded(np.where(np.isnan(moments)[:, None], np.nan, found))


def _typed_dates(column: Column, values: Any) -> Parsed:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_timestamp(values.type) or pa.types.is_date(values.type)):
        raise UserError(f"column '{column.name}' holds {values.type}; wanted dates.")
    moments = pc.cast(values, pa.timestamp("us"), safe=False)
    since = pc.cast(moments, pa.int64()).combine_chunks()
    micro = pc.fill_null(pc.cast(since, pa.float64(), safe=False), float("nan")).to_numpy(zero_copy_only=False)
    return Parsed(micro / 86400e6 - (meaning.EPOCH.toordinal() - 719163))


def _encode_list(column: Column, values: Any, _: bool, where: Where) -> Encoded:
    """[n, size]: the numbers of each row's list; all missing where there is no list."""
    import pyarrow.compute as pc

    whole = values.combine_chunks()
    lengths = pc.list_value_length(whole)
    wrong = pc.fill_null(pc.not_equal(lengths, column.size), False).to_numpy(zero_copy_only=False)
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"column '{column.name}' has a list of {lengths[row].as_py()} numbers in {where(row)}; wanted are "
            f"{column.size}."
        )
    there = pc.is_valid(whole).to_numpy(zero_copy_only=False)
    found = np.full((len(whole), column.size), np.nan)
    found[there] = _floats(column, pc.list_flatten(values)).reshape(-1, column.size)
    return Encoded(found)


_ENCODERS: Mapping[str, Callable[[Column, Any, bool, Where], Encoded]] = {
    "number": _encode_number, "class-label": _encode_class, "boolean": _encode_boolean, "category": _encode_category,
    "ordered": _encode_ordered, "date": _encode_date, "list": _encode_list,
}  # fmt: skip
"""What makes numbers of each kind of column."""
