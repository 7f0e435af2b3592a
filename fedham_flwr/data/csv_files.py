"""Files of comma-separated values -> a data set whose columns are texts, as written; no type is guessed.

What a text means is decided where it is used: a client's id stays the text that it was, an age becomes a number.
pyarrow cuts the fields; what it refuses is looked for again, line by line, by `csv_faults`.
"""

from __future__ import annotations

import codecs
import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.csv_faults import fault, shown
from fedham_flwr.data.csv_places import Dialect, described, lines, opened
from fedham_flwr.data.kinds.table_settings import TableSettings

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("fedham_flwr")

ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
"""Of the files that are read here, in lower case."""
SEPARATORS = (",", ";", "\t", "|")
"""Those that are looked for, where the setting names none."""
_MARKS = ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_ROWS = 100  # looked at to find the separator
_BLOCK = 1 << 25  # bytes; no row may be longer


class _Head(NamedTuple):
    """The first lines of a file.

    Attributes:
        names: of the columns.
        lines: that the names take, with empty ones before them.
        trailing: each row ends in a separator, so that it has an empty field more than there are names.
    """

    names: list[str]
    lines: int
    trailing: bool


def is_csv(path: Path) -> bool:
    """Whether a file has one of the endings."""
    return path.name.lower().endswith(ENDINGS)


def read(files: Sequence[Path], root: Path, settings: TableSettings) -> datasets.Dataset:
    """The rows of all files, in this order; of each file in any order of columns.

    Args:
        files: at least one.
        root: the file or folder that was asked for, to name the files by.
        settings: how they are read.

    Raises:
        UserError: a file can't be read, or has other columns than the first.
    """
    import datasets
    import pyarrow as pa

    tables: list[Any] = []
    dialects = []
    for file in files:
        table, dialect = _read(file, settings)
        if tables and set(table.column_names) != set(tables[0].column_names):
            raise _other_columns(tables[0].column_names, table.column_names, files[0], file)
        tables.append(table.select(tables[0].column_names) if tables else table)
        dialects.append(dialect)
    whole = pa.concat_tables(tables)
    info = datasets.DatasetInfo(description=described(root, dialects, [len(table) for table in tables]))
    return datasets.Dataset(whole, info=info)


def _other_columns(first: Sequence[str], names: Sequence[str], example: Path, file: Path) -> UserError:
    lacking, strange = sorted(set(first) - set(names)), sorted(set(names) - set(first))
    return UserError(
        f"{file} has other columns than {example.name}: "
        + " and ".join(
            f"{what} {', '.join(map(repr, some))}" for what, some in (("it lacks", lacking), ("has", strange)) if some
        )
        + "; all files of a data set need the same columns, in any order."
    )


def _read(file: Path, settings: TableSettings) -> tuple[Any, Dialect]:
    """A table of texts, null where a field is empty, and how the file is written."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    encoding = _known(settings.encoding) or _encoding(file)
    dialect, head = Dialect(str(file), encoding, settings.separator or ","), _Head([], 0, False)
    try:
        if not settings.separator:
            dialect = dialect._replace(separator=_separator(dialect))
        head = _head(dialect)
        fields = [*map(str, range(len(head.names) + head.trailing))]
        table = arrow.read_csv(
            pa.input_stream(str(file), compression="gzip" if file.name.lower().endswith(".gz") else None),
            arrow.ReadOptions(
                column_names=fields, skip_rows=head.lines, block_size=_BLOCK,
                encoding="utf8" if encoding == "utf-8-sig" else encoding,
            ),
            arrow.ParseOptions(
                delimiter=dialect.separator, newlines_in_values=True,
                invalid_row_handler=lambda row: "error" if row.text.strip() else "skip",
            ),
            arrow.ConvertOptions(
                column_types=dict.fromkeys(fields, pa.string()), strings_can_be_null=True, null_values=[""]
            ),
        )  # fmt: skip
    except (pa.ArrowException, UnicodeError, csv.Error, OSError, EOFError) as error:
        raise fault(dialect, error, head.trailing) from error
    if head.trailing:
        table = _without_last(table, dialect)
    if not len(table):
        raise UserError(f"{file} has no rows below its header.")
    return table.rename_columns(head.names), dialect


def _without_last(table: Any, dialect: Dialect) -> Any:
    """The table without the column behind the last separator, which must be empty."""
    import pyarrow.compute as pc

    last = pc.utf8_trim_whitespace(table.column(table.num_columns - 1))
    if pc.any(pc.not_equal(last, "")).as_py():
        raise fault(dialect, None, trailing=True)
    return table.select(range(table.num_columns - 1))


# ---- how a file is written -------------------------------------------------------------------------------------------


def _known(encoding: str) -> str:
    """The encoding that the setting names; UTF-8 with or without a mark at its beginning."""
    try:
        utf8 = encoding and codecs.lookup(encoding).name == "utf-8"
    except LookupError as error:
        raise UserError(f'table.encoding="{encoding}" is no encoding that Python knows, such as "latin1".') from error
    return "utf-8-sig" if utf8 else encoding


def _encoding(file: Path) -> str:
    """By its byte-order mark."""
    with opened(str(file)) as binary:
        start = binary.read(4)
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8-sig")


def _separator(dialect: Dialect) -> str:
    """The one that cuts the first line into several names and the rows after it into as many fields."""

    def fit(separator: str) -> tuple[bool, int, int]:
        widths = []
        for _, row in zip(range(_ROWS), lines(dialect._replace(separator=separator)), strict=False):
            widths.append(len(row.fields))
        return widths[:1] > [1], sum(width == widths[0] for width in widths), widths[0] if widths else 0

    found: str = max(SEPARATORS, key=fit)
    return found


def _head(dialect: Dialect) -> _Head:
    """The names of the columns.

    Raises:
        UserError: there are none, or one is empty or there twice.
    """
    first = [row for _, row in zip(range(2), lines(dialect), strict=False)]
    if not first:
        raise UserError(f"{dialect.file} is empty: wanted a first line with the names of the columns.")
    names = [name.strip() for name in first[0].fields]
    if "\0" in "".join(names):
        name = "utf-16-be" if names[0].startswith("\0") else "utf-16-le"
        raise UserError(
            f'{dialect.file}, line 1, holds zero bytes, so that it is no UTF-8: set table.encoding="{name}".'
        )
    trailing = len(names) > 1 and not names[-1]
    names = names[:-1] if trailing else names
    if any(map(_is_number, names)) and all(_is_number(name) or not name for name in names):
        raise UserError(
            f"{dialect.file} begins with numbers ({shown(names)}): wanted a first line with the names of the columns."
        )
    if "" in names:
        raise UserError(
            f"{dialect.file}, line {first[0].line}: column {names.index('') + 1} of {len(names)} has no name ("
            f"{shown(names)}): give it one, or leave it out (a number of the row that a program wrote?)."
        )
    if twice := next((name for at, name in enumerate(names) if name in names[:at]), ""):
        raise UserError(f"{dialect.file}, line {first[0].line}: two columns are called '{twice}': wanted other names.")
    longer = len(first) > 1 and len(first[1].fields) == len(names) + 1 and not first[1].fields[-1].strip()
    return _Head(names, first[0].end, trailing or longer)


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True
