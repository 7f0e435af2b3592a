"""How many samples of each class each client gets: with owners of classes, or by a table that the user wrote.

Letters: n samples, N clients, K classes; amounts are int64 [N, K], a row per client.

`class-owners` with owner-share 0.9, 0.5 and 0.2 is our stand-in for the splits CIFAR-10_1, _2 and _3 of Zhang and Liu,
"Personalized Federated Learning with Attention Mechanisms" (2022): the figure that defines the originals is lost.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import stream

Indices = npt.NDArray[np.int64]

_NAMED = 20  # classes that an error text names at most


def hand_out(labels: Indices, classes: Indices, amounts: Indices, rng: np.random.Generator) -> list[Indices]:
    """Give each client its amount of each class, at random, and no sample to two of them.

    Args:
        labels: int64 [n], the class of each sample.
        classes: int64 [K], the classes of the columns.
        amounts: int64 [N, K], column sums within the class sizes.
        rng: decides which samples go where.

    Returns:
        N arrays of sample numbers, class by class.
    """
    pieces = []
    for c, ends in zip(classes, np.cumsum(amounts, axis=0).T, strict=True):
        pieces.append(np.split(rng.permutation(np.flatnonzero(labels == c)), ends)[:-1])
    return [np.concatenate(per_client) for per_client in zip(*pieces, strict=True)]


def owner_amounts(counts: Indices, clients: int, share: float) -> Indices:
    """The amounts of `class-owners`: a share of each class is its owner's alone, the rest is dealt to all clients.

    The classes, in the order of their numbers, are cut into N contiguous blocks as even as possible, the larger ones
    last, and block i is client i's (10 classes, 3 clients: 0-2, 3-5, 6-9). The share is rounded to whole samples. What
    is left of the classes is dealt like cards, one class after the other, to all clients in turn, the owner too: so
    much of a class, and of all of them together, differs by at most 1 between any two clients.

    Args:
        counts: int64 [K], samples of each class.
        clients: N, from 1 to K.
        share: of each class for its owner alone, in [0, 1].

    Returns:
        int64 [N, K], whose column sums are `counts`.

    Raises:
        UserError: there are more clients than classes, or the share is none.
    """
    if not 0 <= share <= 1:
        raise UserError(f"owner-share is {share}, but must be from 0 to 1, the part of a class for its owner alone.")
    if clients > len(counts):
        raise UserError(
            f"class-owners cannot serve {clients} clients, since each must own a class and there are only "
            f"{len(counts)}; use fewer clients."
        )
    sizes = np.full(clients, len(counts) // clients)
    sizes[clients - len(counts) % clients :] += 1
    own = np.floor(counts * share + 0.5).astype(np.int64)
    ends = np.cumsum(counts - own)
    # Of the cards before `end`, client i has those numbered i, i + N, i + 2 N, ...
    dealt = (ends - np.arange(clients)[:, None] + clients - 1) // clients
    amounts: Indices = np.diff(dealt, axis=1, prepend=0)
    amounts[np.repeat(np.arange(clients), sizes), np.arange(len(counts))] += own
    return amounts


@dataclass(frozen=True)
class ClassTable:
    """A table as the user wrote it, its values checked, but not yet held against a data set.

    Attributes:
        path: of the file, for error texts.
        clients: name -> class -> samples of it (int, at least 0) or the fraction of it (float, in (0, 1]); the clients
            in the order of the file.
    """

    path: Path
    clients: Mapping[str, Mapping[str, int | float]]


def read_table(path: str) -> ClassTable:
    """The table in a TOML file, with `[clients.NAME]` for each client and `class = amount` in it.

    Args:
        path: the setting class-table.

    Raises:
        UserError: the file is not there, is not TOML, or holds something else.
    """
    if not path:
        raise UserError("class-table is empty, but partitioner is 'class-table', which needs the path of a TOML file.")
    file = Path(os.path.abspath(Path(path).expanduser()))
    try:
        document = tomllib.loads(file.read_bytes().decode())
    except OSError as error:
        raise UserError(
            f"class-table is '{path}', but {file} can't be read ({error.strerror}); give the path of a TOML file."
        ) from error
    except ValueError as error:
        raise UserError(f"class-table {file} is not TOML: {error}.") from error
    strange = sorted(document.keys() - {"clients"})
    if strange:
        raise UserError(f"class-table {file} has '{strange[0]}', but wanted a table [clients.NAME] for each client.")
    clients = document.get("clients")
    if not clients or not isinstance(clients, dict):
        raise UserError(f"class-table {file} has no client, but wanted a table [clients.NAME] for each one.")
    for name, amounts in clients.items():
        _check_client(file, name, amounts)
    return ClassTable(file, clients)


def _check_client(file: Path, name: str, amounts: object) -> None:
    if not isinstance(amounts, dict):
        raise UserError(f"class-table {file} has clients.{name} = {amounts!r}, but wanted a table [clients.{name}].")
    for key, amount in amounts.items():
        if type(amount) not in (int, float) or not (amount >= 0 if isinstance(amount, int) else 0 < amount <= 1):
            dots = "; a name with a dot in it stands in quotes" if isinstance(amount, dict) else ""
            raise UserError(
                f"class-table {file} gives client '{name}' {key} = {amount!r}, but wanted a whole number of samples, "
                f"or a fraction of the class above 0.0 and up to 1.0, which is all of it{dots}."
            )


def table_owners(table: ClassTable, classes: Sequence[str], labels: Indices, clients: int, seed: int) -> Indices:
    """Deal the samples as a table says, at random.

    Args:
        table: what each client gets.
        classes: K names.
        labels: int64 [n], the class of each sample, in 0..K-1.
        clients: N, of the simulation.
        seed: of the data.

    Returns:
        int64 [n], the place in the table of the client whose each sample is; -1: nobody's.

    Raises:
        UserError: the table is not for so many clients, or the data set has no such classes or not enough of one, or a
            client gets fewer than 2 samples.
    """
    if len(table.clients) != clients:
        raise UserError(
            f"class-table {table.path} has {len(table.clients)} clients, but the simulation has {clients}; the two "
            "must be equal."
        )
    amounts = table_amounts(table, classes, np.bincount(labels, minlength=len(classes)))
    parts = hand_out(labels, np.arange(len(classes)), amounts, stream(seed, "partition"))
    owners = np.full(len(labels), -1, dtype=np.int64)
    for client, part in enumerate(parts):
        owners[part] = client
    return owners


def table_amounts(table: ClassTable, classes: Sequence[str], counts: Indices) -> Indices:
    """What a table asks for, in samples; a fraction of a class is rounded down.

    Args:
        table: what each client gets.
        classes: K names; a class may also be called by its number, if no class has that name.
        counts: int64 [K], samples of each class.

    Returns:
        int64 [N, K], no column sum above its class's size.

    Raises:
        UserError: as for `table_owners`.
    """
    amounts = np.zeros((len(table.clients), len(classes)), dtype=object)  # whole numbers of any size, until checked
    for row, (name, wanted) in zip(amounts, table.clients.items(), strict=True):
        for key, c in _find(table.path, name, wanted, classes).items():
            amount = wanted[key]
            # 1e-9: 0.29 of 100 samples, computed as 28.999999999999996, is 29
            row[c] = amount if isinstance(amount, int) else int(amount * int(counts[c]) + 1e-9)
        if row.sum() < 2:
            raise UserError(
                f"class-table {table.path} gives client '{name}' {row.sum()} samples, but it needs at least 2, one to "
                "train and one to test."
            )
    for c, wanted_in_all in enumerate(amounts.sum(axis=0)):
        if wanted_in_all > counts[c]:
            raise UserError(
                f"class-table {table.path} wants {wanted_in_all} samples of class '{classes[c]}' in all, but there are "
                f"{counts[c]}; ask for fewer."
            )
    return amounts.astype(np.int64)


def _find(path: Path, name: str, wanted: Iterable[str], classes: Sequence[str]) -> dict[str, int]:
    """The number of each class that a client wants."""
    numbers = {str(number): number for number in range(len(classes))}
    numbers |= {name: number for number, name in enumerate(classes)}
    found: dict[str, int] = {}
    for key in wanted:
        if key not in numbers:
            raise UserError(f"class-table {path} gives client '{name}' the class '{key}', but {_advice(key, classes)}")
        same = [other for other, number in found.items() if number == numbers[key]]
        if same:
            raise UserError(
                f"class-table {path} gives client '{name}' the class '{same[0]}' again as '{key}'; name it once."
            )
        found[key] = numbers[key]
    return found


def _advice(key: str, classes: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, classes, n=1, cutoff=0.5)
    if near:
        return f"the data set has none of that name: did you mean '{near[0]}'?"
    return f"the classes are {', '.join(classes[:_NAMED])}{' and more' if len(classes) > _NAMED else ''}."
