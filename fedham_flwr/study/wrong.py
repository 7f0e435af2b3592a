"""What is wrong with the settings of several methods or tasks at once."""

from __future__ import annotations

from collections.abc import Sequence


class Wrong:
    """What is wrong with several methods or tasks is said once, with whose it is."""

    def __init__(self) -> None:
        self._whose: dict[str, dict[tuple[str, str], None]] = {}

    def add(self, whose: tuple[str, str], said: str) -> None:
        """Note the faults that an error of `settings.parse` names.

        Args:
            whose: the method and the task.
            said: the error's text.
        """
        for part in said.removeprefix("settings: ").split("; "):
            self._whose.setdefault(part, {})[whose] = None

    def sentences(self, what: str, everyone: int) -> list[str]:
        """The faults; parts of a sentence that were taken apart belong to the same and are together again.

        Args:
            what: stands before whose a fault is.
            everyone: how many pairs of a method and a task there are.
        """
        found: dict[tuple[tuple[str, str], ...], list[str]] = {}
        for part, whose in self._whose.items():
            found.setdefault(tuple(whose), []).append(part)
        return [f"{what} {_named(whose, everyone)}: {'; '.join(parts)}" for whose, parts in found.items()]


def _named(whose: Sequence[tuple[str, str]], everyone: int) -> str:
    if len(whose) == everyone > 1:
        return "every method on every task"
    tasks = list(dict.fromkeys(task for _, task in whose))
    each = [(task, [method for method, other in whose if other == task]) for task in tasks]
    return " and ".join(f"{', '.join(methods)} on {task}" for task, methods in each)
