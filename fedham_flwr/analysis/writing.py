"""Tables as files: Markdown to read, LaTeX to print, CSV to compute with."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from fedham_flwr.analysis.cells import Cell, Column, Table
from fedham_flwr.analysis.collection import Collection
from fedham_flwr.analysis.tables import MAKERS
from fedham_flwr.core.files import replacing
from fedham_flwr.reporting.console import clean

LABELS = ("method", "task")
"""Columns that say what a row is of."""
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "²": r"\textsuperscript{2}",
    "<": r"$<$", ">": r"$>$", "|": r"\textbar{}",
}  # fmt: skip


def write_tables(collection: Collection, folder: Path) -> list[Path]:
    """Write every table as `<name>.md`, `.tex` and `.csv`, each whole or not at all; their paths.

    Those without a row are left out, and what an earlier state of the comparison left of them is removed.

    Args:
        collection: the runs.
        folder: where to; it is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for table in (make(collection) for make in MAKERS):
        for ending, write in (("md", to_markdown), ("tex", to_latex), ("csv", to_csv)):
            path = folder / f"{table.name}.{ending}"
            if not table.rows:
                path.unlink(missing_ok=True)
                continue
            with replacing(path) as part:
                part.write_text(write(table), encoding="utf-8", newline="")
            written.append(path)
    return written


def to_markdown(table: Table) -> str:
    """A table of GitHub's Markdown under its title, its notes as a list below; numbers to the right.

    Args:
        table: any.
    """
    head = [_markdown(_heading(column)) for column in table.columns]
    rule = ["---:" if column.kind == "number" else "---" for column in table.columns]
    lines = [head, rule, *([_markdown_cell(cell) for cell in row] for row in table.rows)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "".join(f"- {_markdown(note)}\n" for note in _notes(table))
    return f"**{_markdown(table.title)}**\n\n{body}\n" + (f"\n{notes}" if notes else "")


def to_latex(table: Table) -> str:
    """A `table` environment for the package booktabs, everything escaped; notes stand below in small type.

    Args:
        table: any.
    """
    spec = "".join("r" if column.kind == "number" else "l" for column in table.columns)
    lines = [
        "% needs \\usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{_latex(table.title)}}}",
        rf"\label{{tab:{table.name}}}", rf"\begin{{tabular}}{{{spec}}}", r"\toprule",
        " & ".join(_latex(_heading(column)) for column in table.columns) + r" \\", r"\midrule",
        *(" & ".join(_latex_cell(cell) for cell in row) + r" \\" for row in table.rows),
        r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip
    if notes := _notes(table):
        lines += [r"\par\smallskip\footnotesize", *(f"{_latex(note)}\\\\" for note in notes)]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def to_csv(table: Table) -> str:
    """Comma-separated values with a heading, numbers at full precision and without units; RFC 4180.

    A column of numbers any of which has an interval is three columns: the number, its `low` and its `high`. What was
    not measured is empty.

    Args:
        table: any.
    """
    wide = [any(row[at].low is not None for row in table.rows) for at in range(len(table.columns))]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([
        name
        for column, has_ends in zip(table.columns, wide, strict=True)
        for name in (column.name, *([f"{column.name} low", f"{column.name} high"] if has_ends else []))
    ])  # fmt: skip
    for row in table.rows:
        cells = zip(table.columns, row, wide, strict=True)
        writer.writerow([entry for column, cell, has_ends in cells for entry in _csv_cell(column, cell, has_ends)])
    return out.getvalue()


def _notes(table: Table) -> list[str]:
    """The notes of a table, and those of its numbers, such as that one is of fewer seeds than the others."""
    alike: dict[tuple[str, str], list[str]] = {}
    for row in table.rows:
        found: dict[str, list[str]] = {}
        for column, cell in zip(table.columns, row, strict=True):
            if cell.value is not None and cell.note and cell.note not in cell.text:
                found.setdefault(cell.note, []).append(column.name)
        for note, columns in found.items():
            labels = [cell.text for column, cell in zip(table.columns, row, strict=True) if column.name in LABELS]
            alike.setdefault((", ".join(columns), note), []).append(", ".join(labels))
    return [
        *table.notes,
        *(
            f"{columns} of {'all rows' if len(rows) == len(table.rows) > 1 else '; '.join(rows)}: {note}."
            for (columns, note), rows in alike.items()
        ),
    ]


def _csv_cell(column: Column, cell: Cell, has_ends: bool) -> list[str]:
    if column.kind == "text":
        return [cell.text]
    return [
        "" if value is None else repr(value) for value in (cell.value, *([cell.low, cell.high] if has_ends else []))
    ]


def _heading(column: Column) -> str:
    return f"{column.name} ({column.unit})" if column.unit else column.name


def _words(cell: Cell) -> str:
    """A cell's text with what its marks say in words."""
    text = clean(cell.text)
    text += " (floor)" if "floor" in cell.marks else ""
    return f"{text} *" if "used" in cell.marks else text


def _markdown(text: str) -> str:
    """Text that Markdown and HTML leave as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", clean(text))


def _markdown_cell(cell: Cell) -> str:
    text = _markdown(_words(cell))
    return f"**{text}**" if "best" in cell.marks else text


def _latex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in clean(text))


def _latex_cell(cell: Cell) -> str:
    text = _latex(_words(cell))
    return rf"\textbf{{{text}}}" if "best" in cell.marks else text
