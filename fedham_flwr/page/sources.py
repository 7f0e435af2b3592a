"""What the figures of a page are drawn from: scores over the rounds, scores of clients, and places in the lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedham_flwr.analysis.collection import Collection
from fedham_flwr.analysis.facts import RunFacts


@dataclass(frozen=True)
class Places:
    """Where methods, tasks and seeds stand in the lists of a page.

    Attributes:
        methods: labels.
        tasks: labels.
        seeds: of any run, in order.
    """

    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, collection: Collection) -> Places:
        """Those of a comparison.

        Args:
            collection: the runs.
        """
        return cls(collection.methods, collection.tasks, tuple(sorted({run.seed for run in collection.runs})))

    def at(self, run: RunFacts) -> dict[str, int]:
        """The numbers of a run's method, task and seed.

        Args:
            run: one of the comparison.
        """
        return {
            "method": self.methods.index(run.method),
            "task": self.tasks.index(run.task),
            "seed": self.seeds.index(run.seed),
        }


def by_method(collection: Collection) -> Iterator[tuple[str, str, Sequence[RunFacts]]]:
    """Task, method and its runs, for all that have any, by task.

    Args:
        collection: the runs.
    """
    for task in collection.tasks:
        for method in collection.methods:
            if runs := tuple(collection.of(method, task).values()):
                yield task, method, runs


def named(collection: Collection, task: str, text: str) -> str:
    """A text about a task; which one is said only where there are several.

    Args:
        collection: the runs.
        task: its label.
        text: about it.
    """
    return f"{task}: {text}" if len(collection.tasks) > 1 else text
