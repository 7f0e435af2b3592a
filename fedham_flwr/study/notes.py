"""What a person should know of a study that is right, before it is carried out."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain

from fedham_flwr import registry
from fedham_flwr.core.devices import slow_precision
from fedham_flwr.core.imports import is_path, load_object, section_of
from fedham_flwr.core.search_space import Space
from fedham_flwr.run_settings import Settings
from fedham_flwr.settings import Value
from fedham_flwr.study.document import Document
from fedham_flwr.study.planned import StudyMethod, StudyTask, merged
from fedham_flwr.study.search import Search
from fedham_flwr.study.spaces import why_unread

Pair = tuple[str, str]
"""The labels of a method and a task."""


def notes(
    document: Document, methods: Sequence[StudyMethod], tasks: Sequence[StudyTask],
    parsed: Mapping[Pair, Settings], searched: Mapping[Pair, Space],
) -> Iterator[str]:  # fmt: skip
    """Sentences about settings that nobody reads, splits that overlap, small spaces, and metrics of a user's own.

    Also about trials that are shorter than the runs, and a precision that this processor imitates.

    Args:
        document: the study's file.
        methods: of the study.
        tasks: of the study.
        parsed: the settings of each method on each task, by their labels.
        searched: what is searched, by the labels of method and task.
    """
    yield from _of_settings(document, methods, tasks)
    given = {(each.label, task.label): merged(document.settings, task, each) for task in tasks for each in methods}
    yield from _without_effect(document, given, parsed, searched)
    yield from _of_spaces(document, searched)
    yield from _of_rounds(document, parsed.values())
    yield from dict.fromkeys(filter(None, (slow_precision(each.device, each.precision) for each in parsed.values())))
    yield from _of_metrics(parsed.values())


def _of_settings(document: Document, methods: Sequence[StudyMethod], tasks: Sequence[StudyTask]) -> Iterator[str]:
    sections = {section_of(method.strategy) for method in methods}
    places = {"settings": document.settings, **{f"task.{task.label}": task.settings for task in tasks}}
    for place, said in places.items():
        idle = [key for key in said if (first := key.partition(".")[0]) in registry.METHODS and first not in sections]
        if idle:
            yield f"[{place}] {', '.join(idle)}: no method of this study reads {'it' if len(idle) == 1 else 'them'}"
        if said.get("data-seed") == -1:
            yield (
                f"[{place}] data-seed = -1 deals and splits the data anew for each seed, so that what tuning looked at "
                "can be among the test samples of other seeds"
            )


def _without_effect(
    document: Document, given: Mapping[Pair, Mapping[str, Value]],
    parsed: Mapping[Pair, Settings], searched: Mapping[Pair, Space],
) -> Iterator[str]:  # fmt: skip
    """Settings that no run they are for reads, as far as it can be told without the data."""
    places = {"settings": (document.settings, set(parsed))}
    places |= {f"task.{label}": (said, {p for p in parsed if p[1] == label}) for label, said in document.task.items()}
    places |= {
        f"method.{label}": (said, {p for p in parsed if p[0] == label}) for label, said in document.method.items()
    }
    for place, (said, pairs) in places.items():
        told = []
        for key, value in said.items():
            whys = {why for pair in pairs for why in why_unread(key, given[pair], parsed[pair], searched.get(pair, {}))}
            if pairs and "" not in whys:
                told.append(f"{key} = {json.dumps(value)} ({whys.pop() if len(whys) == 1 else 'no run reads it'})")
        if told:
            yield f"[{place}] settings that have no effect: {', '.join(told)}"


def _of_spaces(document: Document, searched: Mapping[Pair, Space]) -> Iterator[str]:
    """Methods that have fewer trials than others, since there is no more to try."""
    if tune := document.tune:
        said = {
            f"{label}: {note}": None for (label, _), space in searched.items() if (note := _small(space, tune.trials))
        }
        yield from said


def _small(space: Space, trials: int) -> str:
    return Search(space, trials, seed=0).note


def _of_rounds(document: Document, parsed: Collection[Settings]) -> Iterator[str]:
    """Trials that end before the runs would."""
    rounds, most = document.tune.rounds if document.tune else 0, max(each.num_server_rounds for each in parsed)
    if 0 < rounds < most:
        yield (
            f"[tune] rounds = {rounds} is fewer than the {most} of the runs, which favours values that learn fast at "
            "first; rounds = 0 has as many"
        )


def _of_metrics(parsed: Collection[Settings]) -> Iterator[str]:
    """Functions that do not say which end of them is the good one."""
    names = dict.fromkeys(chain.from_iterable(settings.metrics.split() for settings in parsed))
    for name in filter(is_path, names):
        found = load_object("metrics", name)
        if callable(found) and not isinstance(found, type) and getattr(found, "higher_is_better", None) is None:
            yield (
                f"metrics = {name} does not say which values are good, and larger ones are taken for better: where "
                f"smaller ones are, {name.rpartition(':')[2]}.higher_is_better = False in its module says so"
            )
