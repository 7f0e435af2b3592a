"""Pieces of HTML made of text that comes from anywhere: everything is escaped here, and nowhere else."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from fedham_flwr.reporting.console import clean
from fedham_flwr.reporting.formats import json_text


class Column(NamedTuple):
    """A column of a table on the page.

    Attributes:
        name: its heading.
        number: whether it holds numbers, which are to the right and sorted as numbers.
        help: what it holds, in a sentence; empty: the heading says it.
    """

    name: str
    number: bool = False
    help: str = ""


class Entry(NamedTuple):
    """A cell of a table on the page.

    Attributes:
        text: that is read.
        value: by which it is sorted, in full; None of words, and of a number that is not there.
        note: in small letters below: an interval, or a mark.
    """

    text: str
    value: float | None = None
    note: str = ""


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
    """Parts that are shown when their summary is opened, without scripts too.

    Args:
        summary: one line.
        parts: HTML.
    """
    return f"<details><summary>{escaped(summary)}</summary>\n{''.join(parts)}</details>\n"


def figure(anchor: str, label: str, finding: str) -> str:
    """A place where a figure is drawn, with its controls above and what it shows in words below.

    Args:
        anchor: by which the script finds it.
        label: what it is, in a few words.
        finding: what is seen in it, for those who do not see it too.
    """
    return (
        f'<figure id="{anchor}" aria-label="{escaped(label)}"><div class="controls"></div>'
        f'<div class="plot" role="img" aria-label="{escaped(f"{label}. {finding}")}"></div>'
        f"<figcaption>{escaped(finding)}</figcaption></figure>\n"
    )


def table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[Entry]], kind: str = "sortable") -> str:
    """A table whose first column stays in sight; one that can be sorted says so by its class.

    Args:
        caption: what it holds.
        columns: of it.
        rows: a cell for each column.
        kind: a class; `sortable` has a script make a button of each heading.
    """
    head = "".join(
        f'<th scope="col"{_class("number" if c.number else "")}{_title(c.help)}>{escaped(c.name)}</th>' for c in columns
    )
    body = "".join(f"<tr>{_row(columns, row)}</tr>\n" for row in rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escaped(caption)}"><table{_class(kind)}>'
        f"<caption>{escaped(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def number(value: float | None, bounded: bool = False) -> Entry:
    """A cell of a number, which it holds in full: three decimals of a fraction, four digits of any other are shown.

    Args:
        value: the number; None or not finite: there is none.
        bounded: whether it is a fraction.
    """
    if value is None or not math.isfinite(value):
        return Entry("–")
    if bounded:
        return Entry(f"{value:.3f}", value)
    whole = float(value).is_integer() and abs(value) < 1e7
    return Entry(f"{value:,.0f}" if whole else f"{value:.4g}", value)


def embedded(value: Mapping[str, object]) -> str:
    """Data as JSON that can stand in a script element: nothing in it ends the element.

    Args:
        value: of texts, numbers, lists and mappings; a number that is not finite becomes null.
    """
    text = json_text(value).encode("utf-8", "replace").decode()  # a lone surrogate of a name has no bytes
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _row(columns: Sequence[Column], row: Sequence[Entry]) -> str:
    cells = []
    for at, (column, entry) in enumerate(zip(columns, row, strict=True)):
        tag = 'th scope="row"' if at == 0 else "td"
        value = f' data-value="{float(entry.value)!r}"' if entry.value is not None else ""
        note = f"<small>{escaped(entry.note)}</small>" if entry.note else ""
        kind = _class("number" if column.number else "")
        cells.append(f"<{tag}{kind}{value}>{escaped(entry.text)}{note}</{tag.split()[0]}>")
    return "".join(cells)


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _title(text: str) -> str:
    return f' title="{escaped(text)}"' if text else ""
