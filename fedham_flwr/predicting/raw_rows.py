"""Raw rows of a table -> what the network sees, in operations of torch alone, so that other programs can carry them.

A column is a number of the raw row: of a category its place among the names (any other: none of them), of a date the
days since 2000-01-01, of a list each of its numbers; NaN where a value is missing. Letters: b rows, r raw numbers of a
row, f numbers that the network sees, beside as many flags.

Source of the month of a day: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedham_flwr.data.batches import with_gaps
from fedham_flwr.data.kinds.table import FARTHEST

MARCH = 730_425.0
"""Days from 0000-03-01 to 2000-01-01."""
SPAN = 9000.0
"""Days that samples are drawn from."""


def kind_of(column: Mapping[str, Any]) -> str:
    """The kind of a column as a recipe describes it."""
    return str(column.get("kind") or ("class-label" if column["names"] else "number"))


def widths(column: Mapping[str, Any]) -> tuple[int, int]:
    """How many raw numbers a column is, and how many the network sees."""
    places, kind = len(column["names"]), kind_of(column)
    size = int(column.get("size", 1))
    seen = {"class-label": places, "category": places + 1, "ordered": 2, "date": 1 + 2 * len(column.get("parts", ()))}
    return (size, size) if kind == "list" else (1, seen.get(kind, 1))


def names(recipe: Mapping[str, Any]) -> list[str]:
    """Of the raw numbers, in their order."""
    found = []
    for column in recipe["columns"]:
        raw, _ = widths(column)
        found += [column["name"]] if raw == 1 else [f"{column['name']}[{place}]" for place in range(raw)]
    return found


class Scaled(nn.Module):
    """Raw rows as the network sees them: spread, standardised, with flags where a value is missing.

    Args:
        recipe: of the client.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        super().__init__()
        self.columns = tuple((kind_of(each), *widths(each), each) for each in recipe["columns"])
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(recipe["scaling"][name], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """float64 [b, r] -> float32 [b, 2, f]."""
        parts, at = [], 0
        for kind, raw, _, column in self.columns:
            some = x[:, at : at + raw]
            parts.append(_SPREAD[kind](some, column) if kind in _SPREAD else some)
            at += raw
        stored = torch.cat(parts, 1).float().double()  # as narrow as the data were before they were scaled
        return with_gaps(((stored - self.mean) / self.std).clamp(-FARTHEST, FARTHEST).float())


def _class(x: Tensor, column: Mapping[str, Any]) -> Tensor:
    code = torch.where(x == -1, torch.nan, x)
    return _hot(code, len(column["names"]))


def _category(x: Tensor, column: Mapping[str, Any]) -> Tensor:
    return _hot(_known(x, column), len(column["names"]) + 1)


def _ordered(x: Tensor, column: Mapping[str, Any]) -> Tensor:
    count = len(column["names"])
    code = _known(x, column)
    strange = code == count
    rank = torch.where(strange, torch.nan, code / max(1, count - 1))
    return torch.cat([rank, torch.where(code.isnan(), torch.nan, strange.double())], 1)


def _known(x: Tensor, column: Mapping[str, Any]) -> Tensor:
    """Places of the names, and the number behind them for all others; NaN stays."""
    count = len(column["names"])
    return torch.where((x >= 0) & (x < count) | x.isnan(), x, float(count))


def _hot(code: Tensor, count: int) -> Tensor:
    hit = (code == torch.arange(count, dtype=torch.float64)).double()
    return torch.where(code.isnan(), torch.nan, hit)


def _date(x: Tensor, column: Mapping[str, Any]) -> Tensor:
    days = x.nan_to_num(nan=0.0)
    waves = []
    for part in column.get("parts", ()):
        angle = 2 * math.pi * _TURNS[part](days)
        waves += [angle.sin(), (angle + math.pi / 2).sin()]  # not every program has a cosine of 64 bits
    return torch.cat([x, *(torch.where(x.isnan(), torch.nan, wave) for wave in waves)], 1)


def _month(days: Tensor) -> Tensor:
    """The turn of the year, in months."""
    since = days.floor() + MARCH
    day = since - (since / 146_097).floor() * 146_097
    leaps = (day / 1460).floor() - (day / 36_524).floor() + (day / 146_096).floor()
    year = ((day - leaps) / 365).floor()
    of_year = day - (365 * year + (year / 4).floor() - (year / 100).floor())
    march = ((5 * of_year + 2) / 153).floor()
    return torch.where(march < 10, march + 2, march - 10) / 12


def _weekday(days: Tensor) -> Tensor:
    since = days.floor() + 5  # it was a Saturday
    return (since - (since / 7).floor() * 7) / 7


_SPREAD: Mapping[str, Callable[[Tensor, Mapping[str, Any]], Tensor]] = {
    "class-label": _class,
    "category": _category,
    "ordered": _ordered,
    "date": _date,
}
_TURNS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "month": _month,
    "weekday": _weekday,
    "hour": lambda days: days - days.floor(),
}


def samples(recipe: Mapping[str, Any], count: int, draw: torch.Generator) -> Tensor:
    """Raw rows float64 [count, r] as those of the training could be, with a gap in every column.

    Args:
        recipe: of the client.
        count: how many.
        draw: draws them.
    """
    found, at = [], 0
    for number, column in enumerate(recipe["columns"]):
        raw, seen = widths(column)
        kind, places = kind_of(column), len(column["names"])
        size = (count, raw)
        if kind in ("class-label", "category", "ordered"):
            values = torch.randint(0, places + (kind != "class-label"), size, generator=draw).double()
        elif kind == "boolean":
            values = torch.randint(0, 2, size, generator=draw).double()
        elif kind == "date":
            values = SPAN * torch.rand(size, generator=draw, dtype=torch.float64)
        else:
            mean, std = (torch.tensor(recipe["scaling"][name][at : at + raw]).double() for name in ("mean", "std"))
            values = mean + 2 * std * torch.randn(size, generator=draw, dtype=torch.float64)
        values[number % count] = torch.nan
        found.append(values)
        at += seen
    return torch.cat(found, 1)
