"""A client's data as its method sees them: all but the test split, which is scored by the framework only.

How many test samples there are stays known. Features and labels are those of the whole data set; a method takes of them
rows of its client's training and validation split, by their numbers. Training and scoring take them by `rows_of`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NoReturn

import torch
from torch import Tensor

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.training.local import Samples

ONLY = (
    "the test split, which is scored by the framework only: a method learns from the training split, and may look at "
    "the validation split"
)
FACTS: tuple[Any, ...] = (
    Tensor.__len__, Tensor.dim, Tensor.size, Tensor.is_floating_point,
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "ndim", "device")),
)  # fmt: skip
"""Functions that say nothing of a row."""
TAKES: tuple[Any, ...] = (Tensor.__getitem__, Tensor.index_select, torch.index_select)
"""Functions that take rows."""
TEST = "test"


class Withheld:
    """The test split as a method sees it: how many samples it has.

    Args:
        reader: the method, as an error names it.
        count: the samples.
    """

    def __init__(self, reader: str, count: int) -> None:
        self._reader, self._count = reader, count

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"<{self._count} test samples>"

    def refuse(self, *_: object, **__: object) -> NoReturn:
        """Say who reads the split, and that it may not.

        Raises:
            UserError: always.
        """
        raise UserError(f"strategy={self._reader} reads {ONLY}")

    __getitem__ = __contains__ = __array__ = __index__ = refuse

    def __iter__(self) -> Iterator[int]:
        self.refuse()

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # Python itself looks for some of these
            raise AttributeError(name)
        self.refuse()

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> NoReturn:
        withheld: Withheld = _first(cls, args, kwargs)
        withheld.refuse()


class Own:
    """Which rows of a data set a method may read.

    Args:
        reader: the method, as an error names it.
        splits: int64, the sample numbers of each split that it may.
    """

    def __init__(self, reader: str, splits: Sequence[Tensor]) -> None:
        self._reader, self._splits, self._checked = reader, splits, list(splits)

    def check(self, index: Any, count: int) -> None:
        """Refuse rows that the method may not read; those that one object names are looked at once.

        Args:
            index: of the first dimension, whatever a tensor takes.
            count: rows of the data set.

        Raises:
            UserError: there is such a row.
        """
        if any(index is known for known in self._checked):
            return
        if index is None or index is Ellipsis:
            self.refuse()
        if not bool(torch.isin(torch.arange(count)[index], torch.cat(tuple(self._splits))).all()):
            raise UserError(
                f"strategy={self._reader} reads samples that are not of its client's training or validation split, and "
                f"may be of {ONLY}"
            )
        if isinstance(index, Tensor):
            self._checked.append(index)

    def refuse(self) -> NoReturn:
        """Say that a data set is not read as a whole.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"strategy={self._reader} reads features or labels as a whole, and with them {ONLY}; wanted the rows of a "
            'split, as in self.job.data.labels[self.job.data.splits["train"]]'
        )


class Guarded(Tensor):
    """Features or labels as a method sees them: their shape and type, and the rows that it may read."""

    _whole: Tensor
    _own: Own

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """What is asked of it: facts, and rows that a method may read; all else is refused."""
        guarded = _first(cls, args, kwargs)
        if not args or args[0] is not guarded or func not in (*FACTS, *TAKES):
            guarded._own.refuse()
        if func in TAKES:
            guarded._own.check(_rows_asked(func, *args[1:], **(kwargs or {})), len(guarded._whole))
        return func(guarded._whole, *args[1:], **(kwargs or {}))

    def __repr__(self) -> str:  # type: ignore[override]
        return f"<{self._whole.dtype} {list(self._whole.shape)}, of which a method may read the rows of its splits>"


def method_view(data: ClientData, reader: str) -> ClientData:
    """A client's data as its method sees them.

    Args:
        data: the client's.
        reader: the method, as an error names it.
    """
    splits = data.splits
    own = Own(reader, [index for which, index in splits.items() if which != TEST])
    hidden = {TEST: Withheld(reader, len(splits[TEST]))}
    features, labels = _guarded(data.features, own), _guarded(data.labels, own)
    return dataclasses.replace(data, features=features, labels=labels, splits={**splits, **hidden})  # type: ignore[dict-item]


def rows_of(samples: Samples, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features and labels as they are stored, and the sample numbers of a split: for training and scoring.

    Args:
        samples: a client's data, or what a method has made of them.
        split: its name.

    Raises:
        UserError: a method passes on what it may not read.
    """
    features, labels, index = samples.features, samples.labels, samples.splits[split]
    if isinstance(index, Withheld):
        index.refuse()
    for tensor in (features, labels):
        if type(tensor) is Guarded:
            tensor._own.check(index, len(tensor._whole))
    return whole(features), whole(labels), index


def whole(tensor: Tensor) -> Tensor:
    """Features or labels as they are stored, all of them."""
    return tensor._whole if type(tensor) is Guarded else tensor


def _guarded(tensor: Tensor, own: Own) -> Guarded:
    shell = _shell(tensor.shape, tensor.dtype).as_subclass(Guarded)
    shell._whole, shell._own = tensor, own
    return shell


@lru_cache(maxsize=64)
def _shell(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A tensor without storage, so that nothing can be read past `Guarded`."""
    return torch.empty(shape, dtype=dtype, device="meta")


def _rows_asked(func: object, *given: Any, **named: Any) -> Any:
    """What names the rows in the arguments of a function that takes rows; None if it takes something else."""
    if func is Tensor.__getitem__:
        return given[0][0] if isinstance(given[0], tuple) and given[0] else given[0]
    dim, index = (*given, *(named[name] for name in ("dim", "index") if name in named))
    return index if dim == 0 else None


def _first(kind: type[Any], args: tuple[Any, ...], kwargs: Any) -> Any:
    """The first of some arguments that is of a kind, of those in lists too."""
    given = [*args, *(kwargs or {}).values()]
    inside = [each for part in given if isinstance(part, list | tuple) for each in part]
    return next(each for each in (*given, *inside) if isinstance(each, kind))
