"""One column of a table: what it holds, and the numbers that its values become.

Shape letter: b rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: its name.
        names: of a class label or of categories, in the order of their places.
        kind: number, class-label (one input for each name), boolean, category (one more, for any other word), ordered
            (a rank, and whether it is another word), date (days, and sine and cosine of each of `parts`) or list.
        decimal: of numbers that are written with a comma: a comma.
        parts: of a date: month, weekday, hour.
        size: of a list: its numbers.
        low: no number of it is below, if there is such a limit.
        high: nor above.
        format: of a date that is written in another way than by ISO 8601, as Python's `strptime` has it.
    """

    name: str
    names: tuple[str, ...] = ()
    kind: str = ""
    decimal: str = ""
    parts: tuple[str, ...] = ()
    size: int = 1
    low: float | None = None
    high: float | None = None
    format: str = ""

    def __post_init__(self) -> None:
        if not self.kind:
            object.__setattr__(self, "kind", "class-label" if self.names else "number")

    @property
    def width(self) -> int:
        """Into how many numbers it goes."""
        return {
            "class-label": len(self.names), "category": len(self.names) + 1, "ordered": 2, "list": self.size,
            "date": 1 + 2 * len(self.parts),
        }.get(self.kind, 1)  # fmt: skip

    @property
    def meaning(self) -> str:
        """What must be the same at all clients: its name, and what its numbers mean."""
        plain = "=".join((self.name, *self.names))
        more = {"date": " ".join(self.parts), "list": str(self.size)}.get(self.kind, "")
        return plain if self.kind in ("number", "class-label") else f"{plain} ({f'{self.kind} {more}'.strip()})"

    def described(self) -> dict[str, Any]:
        """As JSON has it: what is not the default, and always the name and the names."""
        usual = Column(self.name, self.names)
        return {
            key: value
            for key, value in asdict(self).items()
            if key in ("name", "names") or value != getattr(usual, key)
        }


def columns_of(described: Iterable[Mapping[str, Any]]) -> tuple[Column, ...]:
    """Columns as JSON has them."""
    found = []
    for column in described:
        given: dict[str, Any] = {key: tuple(said) if isinstance(said, list) else said for key, said in column.items()}
        found.append(Column(**given))
    return tuple(found)


def spread(numbers: Numbers, column: Column) -> Numbers:
    """[b] -> [b, width]: numbers as they are, class labels (-1: missing) as a 1 in the place of their name.

    Raises:
        UserError: a class label that has no name.
    """
    if not column.names:
        return numbers[:, None]
    known = np.where(numbers == -1, np.nan, numbers)
    if wrong := sorted(set(known[~np.isnan(known)].tolist()) - set(range(len(column.names)))):
        raise UserError(f"column '{column.name}' has the value {wrong[0]:g}, but {len(column.names)} class labels.")
    return np.where(np.isnan(known)[:, None], np.nan, known[:, None] == np.arange(len(column.names)))


def narrow(numbers: Numbers, column: Column, where: Callable[[int], str] = "row {}".format) -> npt.NDArray[np.float32]:
    """The numbers of a column as 32-bit floats.

    Args:
        numbers: [b, width].
        column: theirs.
        where: where a row stands, in words.

    Raises:
        UserError: one is infinite, or is as such a float.
    """
    with np.errstate(over="ignore"):
        narrowed = numbers.astype(np.float32)
    if (infinite := np.isinf(narrowed)).any():
        row = int(infinite.any(axis=1).argmax())
        raise UserError(
            f"column '{column.name}' is infinite in {where(row)} (or beyond 3.4e38): give it a number, or leave it "
            "empty."
        )
    return narrowed
