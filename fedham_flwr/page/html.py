"""Pieces of HTML made of text that comes from anywhere: everything is escaped here, and nowhere else."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping

from fedham_flwr.analysis.cells import Cell, Column, Table
from fedham_flwr.analysis.numbers import EMPTY
from fedham_flwr.reporting.console import clean
from fedham_flwr.training.metrics import Metric

LONG = 30
"""Characters of a cell that stay on one line."""


def escaped(text: object) -> str:
    """Text as it is, without characters that cannot be seen, for an element or an attribute in double quotes.

    Args:
        text: of any origin.
    """
    return html.escape(clean(str(text)), quote=True)


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; nothing of no text.

    Args:
        text: of it.
        kind: a class.
    """
    return f"<p{_class(kind)}>{escaped(text)}</p>\n" if text else ""


def items(texts: Iterable[str], kind: str = "") -> str:
    """A list, an item for each text; nothing of no texts.

    Args:
        texts: of the items.
        kind: a class.
    """
    inner = "".join(f"<li>{escaped(text)}</li>" for text in texts)
    return f"<ul{_class(kind)}>{inner}</ul>\n" if inner else ""


def section(anchor: str, title: str, *parts: str) -> str:
    """A section with its heading; nothing if it has no parts.

    Args:
        anchor: by which it is linked.
        title: its heading.
        parts: HTML.
    """
    inner = "".join(parts)
    if not inner:
        return ""
    heading = f'<h2 id="{anchor}-title">{escaped(title)}</h2>\n'
    return f'<section id="{anchor}" aria-labelledby="{anchor}-title">\n{heading}{inner}</section>\n'


def folded(summary: str, *parts: str) -> str:
    """Parts that are shown when their summary is opened, without scripts too; nothing of no parts.

    Args:
        summary: one line.
        parts: HTML.
    """
    inner = "".join(parts)
    return f"<details><summary>{escaped(summary)}</summary>\n{inner}</details>\n" if inner else ""


def figure(anchor: str, label: str, finding: str) -> str:
    """A place where a figure is drawn, with its controls above and what it shows in words below.

    Args:
        anchor: by which the script finds it.
        label: what it is, in a few words.
        finding: what is seen in it, for those who do not see it too.
    """
    return (
        f'<figure id="{anchor}" aria-label="{escaped(label)}"><div class="controls"></div>\n'
        f'<div class="plot" role="img" aria-label="{escaped(f"{label}. {finding}")}"></div>\n'
        f'<p class="said" aria-live="polite"></p><figcaption>{escaped(finding)}</figcaption></figure>\n'
    )


def shown(table: Table) -> str:
    """A table that can be sorted by every column, whose first column stays in sight; its notes stand below.

    Args:
        table: of a comparison. A row is marked as a floor if a cell of it is.
    """
    title = escaped(table.title)
    head = "".join(map(_heading, table.columns))
    body = "".join(_row(table, row) for row in table.rows)
    return (
        f'<p class="caption" aria-hidden="true">{title}</p>\n'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{title}">\n'
        f'<table class="sortable" id="table-{escaped(table.name)}"><caption class="hidden">{title}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n{items(table.notes, 'note')}"
    )


def score(value: float | None, metric: Metric, note: str = "") -> Cell:
    """A cell of a score, which it holds in full; a fraction is shown in percent, without the sign.

    Args:
        value: the score; None or not finite: there is none.
        metric: what it is.
        note: of the cell.
    """
    if value is None or not math.isfinite(value):
        return Cell(EMPTY, note=note)
    return Cell(f"{100 * value:.2f}" if metric.bounded else f"{value:.4g}", value, note=note)


def score_text(value: float | None, metric: Metric) -> str:
    """A score in a sentence: a fraction in percent.

    Args:
        value: the score, if there is one.
        metric: what it is.
    """
    cell = score(value, metric)
    return f"{cell.text} %" if metric.bounded and cell.value is not None else cell.text


def embedded(value: Mapping[str, object]) -> str:
    """Data as JSON that can stand in a script element: nothing in it ends the element.

    Args:
        value: of texts, finite numbers, None, lists and mappings.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _heading(column: Column) -> str:
    kind, hint = _class("number" if column.kind == "number" else ""), f' title="{escaped(column.help)}"'
    unit = f" ({column.unit})" if column.unit else ""
    return f'<th scope="col"{kind}{hint if column.help else ""}>{escaped(column.name + unit)}</th>'


def _row(table: Table, row: tuple[Cell, ...]) -> str:
    floor = any("floor" in cell.marks for cell in row)
    cells = []
    for at, (column, cell) in enumerate(zip(table.columns, row, strict=True)):
        tag, scope = ("th", ' scope="row"') if at == 0 else ("td", "")
        value = f' data-value="{float(cell.value)!r}"' if cell.value is not None and math.isfinite(cell.value) else ""
        said = [
            "" if cell.note in cell.text else cell.note,
            *(["best"] if "best" in cell.marks else []),
            *(["floor"] if at == 0 and floor else []),
        ]
        small = "".join(f"<small>{escaped(text)}</small>" for text in said if text)
        kinds = ["number"] if column.kind == "number" else []
        kinds += ["words"] if len(cell.text) > LONG else []
        kinds += sorted(cell.marks - {"floor"})
        star = ' <abbr title="the model that the method stands for">*</abbr>' if "used" in cell.marks else ""
        text = (escaped(cell.text) or EMPTY) + star
        cells.append(f"<{tag}{scope}{_class(' '.join(kinds))}{value}>{text}{small}</{tag}>")
    return f"<tr{_class('floor' if floor else '')}>{''.join(cells)}</tr>\n"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
