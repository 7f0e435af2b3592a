"""The table of differences: by how much each method is above the reference, and what may be said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from fedham_flwr.analysis.cells import Cell, Column, Mark, Table
from fedham_flwr.analysis.collection import Collection
from fedham_flwr.analysis.numbers import EMPTY, count, difference, probability, short_of
from fedham_flwr.analysis.ranks import EXACT, signed_rank
from fedham_flwr.analysis.rows import method_cell, task_cells, task_columns, unit_of, with_unit
from fedham_flwr.analysis.statistics import Difference, Verdict, holm, paired, verdict
from fedham_flwr.training.metrics import Metric


@dataclass(frozen=True)
class Compared:
    """A method compared with the reference on a task.

    Attributes:
        method: its label.
        task: its label.
        difference: over the seeds that both have; None of none.
        seeds: how many these are.
        adjusted: p after Holm's method, over all of the table.
        word: the verdict; empty where nothing could be compared.
        signs: p of the signed-rank test; None of fewer seeds than it needs.
    """

    method: str
    task: str
    difference: Difference | None
    seeds: int
    adjusted: float | None = None
    word: Verdict | None = None
    signs: float | None = None


def compared(collection: Collection) -> list[Compared]:
    """Every other method against the reference on every task, seed by seed: one family for Holm's method.

    Args:
        collection: the runs.
    """
    found = []
    for task in collection.tasks:
        for method in collection.methods:
            if method != collection.reference:
                pairs = together(collection, method, collection.reference, task)
                signs = signed_rank(*_apart(pairs)) if len(pairs) >= EXACT else None
                found.append(Compared(method, task, paired_over(pairs), len(pairs), signs=signs))
    adjusted = holm([each.difference.p if each.difference else None for each in found])
    return [
        Compared(
            each.method, each.task, each.difference, each.seeds, p,
            verdict(each.difference.interval, p) if each.difference else None, each.signs,
        )
        for each, p in zip(found, adjusted, strict=True)
    ]  # fmt: skip


def differences(collection: Collection) -> Table:
    """By how much each method is above the reference, with interval, p and verdict.

    Args:
        collection: the runs.
    """
    found = compared(collection) if collection.reference else []
    signs = any(each.signs is not None for each in found)
    unit = "points" if unit_of(collection) else ""
    columns = [
        Column("method", "text"),
        *task_columns(collection),
        Column(f"minus {collection.reference}", help="mean difference of the seeds, and its 95 % interval", unit=unit),
        Column("p", help="two-sided, of Student's paired test"),
        Column("p, Holm", help="adjusted for the number of comparisons in this table"),
        *([Column("p, signs", help="exact, of Wilcoxon's signed-rank test; not adjusted")] if signs else []),
        Column("verdict", "text", help="above or below only where the interval and the adjusted p say so"),
        Column("seeds", help="that both have"),
    ]  # fmt: skip
    rows = [_row(collection, each, signs) for each in found if collection.of(each.method, each.task)]
    title = f"Differences to {collection.reference} in {collection.split} scores, seed by seed"
    return Table("differences", title, tuple(columns), tuple(rows), tuple(_family(found, signs)))


def _row(collection: Collection, each: Compared, signs: bool) -> tuple[Cell, ...]:
    metric = collection.metrics[each.task]
    expected = len(collection.seeds(each.task))
    first = [method_cell(collection, each.method), *task_cells(collection, each.task)]
    if each.difference is None:
        gain, p = Cell(EMPTY, note="no seed that both have"), None
    else:
        gain = difference(each.difference.interval, metric, short_of(each.seeds, expected))
        gain = with_unit(collection, each.task, gain, "points")
        p = each.difference.p
    middle = [gain, probability(p), probability(each.adjusted), *([probability(each.signs)] if signs else [])]
    return (*first, *middle, _word(each.word, metric), count(each.seeds))


def _word(word: Verdict | None, metric: Metric) -> Cell:
    """A verdict in words, with whether it is good."""
    if word not in ("above", "below"):
        return Cell(word or EMPTY)
    good: Mark = "better" if (word == "above") == metric.higher else "worse"
    return Cell(word if metric.higher else f"{word} ({good})", marks=frozenset({good}))


def together(collection: Collection, method: str, other: str, task: str) -> dict[int, tuple[float, float]]:
    """Seed -> the scores of two methods as means over the clients that both have scored, of the seeds that both have.

    Where a client is missing in one of the runs, the difference of the two means would be one of other clients as well.

    Args:
        collection: the runs.
        method: a label.
        other: another.
        task: its label.
    """
    ours, theirs = (collection.of(label, task) for label in (method, other))
    found = {}
    for seed in sorted(ours.keys() & theirs.keys()):
        mine, its = (runs[seed].per_client(split=collection.split) for runs in (ours, theirs))
        whole = ours[seed].value(split=collection.split), theirs[seed].value(split=collection.split)
        both = [client for client in mine if client in its]
        if mine.keys() == its.keys() and whole[0] is not None and whole[1] is not None:
            found[seed] = whole[0], whole[1]
        elif both:
            found[seed] = fmean(mine[client] for client in both), fmean(its[client] for client in both)
    return found


def paired_over(pairs: Mapping[int, tuple[float, float]]) -> Difference | None:
    """One method against another over the seeds that both have; None of none.

    Args:
        pairs: as of `together`.
    """
    return paired(*_apart(pairs)) if pairs else None


def _apart(pairs: Mapping[int, tuple[float, float]]) -> tuple[list[float], list[float]]:
    """The scores of one method, and those of the other."""
    return [ours for ours, _ in pairs.values()], [theirs for _, theirs in pairs.values()]


def _family(found: Sequence[Compared], signs: bool) -> list[str]:
    """How to read the differences."""
    tested = sum(each.adjusted is not None for each in found)
    notes = []
    if tested:
        notes.append(
            f"Holm's method adjusts for the {tested} comparisons of this table, so that the probability of any false "
            "finding among them is at most 5 %."
            if tested > 1
            else "With one comparison in this table there is nothing to adjust for: Holm's p is p."
        )
        notes.append("Not distinguishable does not mean equal: these seeds do not tell the two apart.")
    if signs:
        notes.append("Wilcoxon's signed-rank test is not adjusted for the number of comparisons.")
    return notes
