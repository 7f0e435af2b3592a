"""What is searched for each method on each task: the common space, and what the method or the study's file adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedham_flwr import registry
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.search_space import Dimension, Space
from fedham_flwr.idle import check_sections
from fedham_flwr.settings import flatten, parse
from fedham_flwr.study.dimensions import COMMON, dimension, ends, said
from fedham_flwr.study.document import Document, Tuning, nearest
from fedham_flwr.study.planned import StudyMethod, StudyTask, merged
from fedham_flwr.study.wrong import Wrong

NEVER = ("seed", "data-seed", "score-test", "device", "strategy", "task", "results-dir", "resume", "cache-dir")
"""Settings whose values mean nothing to compare by validation."""


def spaces(
    document: Document, methods: list[StudyMethod], tasks: list[StudyTask]
) -> tuple[dict[tuple[str, str], Space], list[str]]:
    """What is searched for each method on each task, and what is wrong.

    A setting that [method.<label>] gives is not searched, and neither is one that the method declares and the file sets
    anywhere, unless [tune.space] or [tune.methods.<label>] asks for it.

    Args:
        document: the study's file; it has a table [tune].
        methods: of the study.
        tasks: of the study.
    """
    tune, found = document.tune, dict[tuple[str, str], Space]()
    assert tune is not None
    faults, wrong = dict[str, None](), Wrong()
    for method in methods:
        for task in tasks:
            made = _Space(document, tune, method, task)
            if space := made.read(faults):
                found[method.label, task.label] = space
                made.check(space, wrong)
    return found, [*faults, *wrong.sentences("[tune]: what is tried of", len(methods) * len(tasks))]


class _Space:
    """The space of one method on one task, while it is made."""

    def __init__(self, document: Document, tune: Tuning, method: StudyMethod, task: StudyTask) -> None:
        self._document, self._tune, self._method, self._task = document, tune, method, task
        self._given = merged(document.settings, task, method)
        self._usual = flatten(parse(self._given))

    def read(self, faults: dict[str, None]) -> Space:
        """The space as it is written; faults are added, each once for all methods and tasks."""
        tune, label, fixed = self._tune, self._method.label, self._method.settings
        place = "[tune.space]" if tune.space is not None else "the common space"
        found = self._read(place, COMMON if tune.space is None else tune.space, faults)
        found = {key: each for key, each in found.items() if key not in fixed}
        if label not in tune.methods:
            return {**found, **self._declared()}
        own = self._read(f"[tune.methods.{label}]", tune.methods[label], faults)
        for key in own.keys() & fixed.keys():
            said_twice = f"[tune.methods.{label}] {key} is searched, and [method.{label}] sets it: wanted one of both"
            faults[said_twice] = None
        return {**found, **own}

    def _declared(self) -> dict[str, Dimension]:
        file_sets = {*self._document.settings, *self._task.settings, *self._method.settings}
        searched = registry.method(self._method.strategy).search
        return {key: each for key, each in searched.items() if key not in file_sets}

    def _read(self, place: str, table: Mapping[str, Any], faults: dict[str, None]) -> dict[str, Dimension]:
        found: dict[str, Dimension] = {}
        for key, given in said(table, self._usual).items():
            if fault := self._refusal(place, key):
                faults[fault] = None
                continue
            try:
                found[key] = dimension(given, self._usual[key])
            except ValueError as error:
                faults[f"{place} {key}: {error}"] = None
        return found

    def _refusal(self, place: str, key: str) -> str:
        """Why a setting cannot be searched; empty if it can."""
        if key not in self._usual:
            return f"{place} {key}: there is no such setting{nearest(key, self._usual)}"
        if key in NEVER:
            return f"{place} {key}: it is not for validation to choose"
        if key == "num-server-rounds" and self._tune.rounds:
            return f"{place} {key}: [tune] rounds = {self._tune.rounds} sets it"
        section = key.rpartition(".")[0]
        if place == "[tune.space]" and section in registry.METHODS:
            return f"{place} {key} is of one method: wanted it in [tune.methods.{section}]"
        try:
            check_sections([key], parse(self._given))
        except UserError as error:
            return f"{place} {key}: {error}"
        return ""

    def check(self, space: Space, wrong: Wrong) -> None:
        """Note where settings with one of these values are wrong, or change the data."""
        whose, data = (self._method.label, self._task.label), parse(self._given).data()
        for key, each in space.items():
            for value in ends(each):
                try:
                    settings = parse({**self._given, key: value})
                except UserError as error:
                    wrong.add(whose, str(error))
                    continue
                if settings.data() != data:
                    wrong.add(whose, f"{key} decides the data, which tuning leaves as they are")
