"""From study.toml to the plan of a study: everything is checked before anything is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.files import SAFE_NAME
from fedham_flwr.core.imports import is_path, section_of
from fedham_flwr.core.search_space import Space
from fedham_flwr.idle import check_sections
from fedham_flwr.resume.continuing import clients_of
from fedham_flwr.run_settings import Settings
from fedham_flwr.settings import Value, defaults, parse
from fedham_flwr.study.document import Document, read
from fedham_flwr.study.labels import named
from fedham_flwr.study.notes import notes
from fedham_flwr.study.planned import Plan, StudyMethod, StudyTask, Tune, merged
from fedham_flwr.study.spaces import space_of
from fedham_flwr.study.wrong import Wrong

__all__ = ["Plan", "make", "read_plan"]

OWNED: Mapping[str, str] = {
    "seed": "the seeds of a study are seeds = [...]",
    "results-dir": "the runs of a study lie in its own folder, which is --output",
    "resume": "a study goes on when its command is given again",
    "strategy": "the methods of a study are methods = [...]",
}
"""Settings that a study decides, and why no table of it may."""
SCORED = ("closing", "always")
"""What `score-test` can be of the runs that tables are made of."""
SAME = ("metrics", "selection-metric", "novel-clients")
"""Settings, beside those of the data, that all methods of a task must share to be comparable."""


def read_plan(path: str | Path) -> Plan:
    """The study that a TOML file describes.

    Args:
        path: of the file. Paths in it start at the working directory, as in a file that is given with -c.

    Raises:
        UserError: it cannot be read, or is wrong: all faults at once, each with the nearest that would be right.
    """
    return make(read(Path(path)))


def make(document: Document) -> Plan:
    """The plan of a study.

    Args:
        document: its file.

    Raises:
        UserError: all that is wrong with it, at once.
    """
    faults = list(document.faults)
    methods, tasks = named(document, faults), _tasks(document, faults)
    faults += _owned(document)
    parsed, wrong = _parsed(document, methods, tasks)
    faults += wrong or _unlike(parsed, document, tasks)
    faults += _shared(document)
    searched, wrong = _searched(document, methods, tasks) if document.tune and not wrong else ({}, [])
    faults += wrong
    counted = tasks if faults else _counted(document, methods, tasks, faults)
    if faults:
        raise UserError(f"{document.path}: {'; '.join(dict.fromkeys(faults))}")
    plan = _plan(document, methods, counted, parsed, searched)
    if twins := list(_twins(plan)):
        raise UserError(f"{document.path}: {'; '.join(twins)}")
    return plan


def _plan(
    document: Document, methods: list[StudyMethod], tasks: list[StudyTask],
    parsed: Mapping[Any, Settings], searched: Mapping[Any, Space],
) -> Plan:  # fmt: skip
    tune = document.tune
    return Plan(
        name=document.name,
        methods=tuple(methods),
        tasks=tuple(tasks),
        seeds=document.seeds,
        reference=document.reference or methods[0].label,
        minutes=document.minutes,
        settings=document.settings,
        tune=Tune(tune.trials, tune.seeds, tune.sampler, tune.pruner, tune.together, tune.rounds) if tune else None,
        spaces=searched,
        warnings=tuple(notes(document, methods, tasks, parsed, searched)),
        text=document.text,
    )


def _tasks(document: Document, faults: list[str]) -> list[StudyTask]:
    """The tasks; those whose clients are not given have 0."""
    if not document.task:
        named = document.settings.get("task") or document.settings.get("dataset", defaults()["dataset"])
        return [StudyTask(_task_label(named), {}, document.clients)]
    found = []
    for label, said in document.task.items():
        own = dict(said)
        number = own.pop("clients", document.clients)
        if "clients" in said and (type(number) is not int or number < 1):
            faults.append(f"[task.{label}] clients = {number!r}: wanted a whole number of at least 1")
        found.append(StudyTask(label, own, number))
    return found


def _task_label(dataset: object) -> str:
    """A label out of the setting `dataset`: its last part, as far as it can be the name of a file."""
    text = str(dataset)
    name = section_of(text) if is_path(text) else Path(text).name.partition(".")[0]
    label = "".join(letter if SAFE_NAME.fullmatch(f"a{letter}") else "-" for letter in name)[:64]
    return label if SAFE_NAME.fullmatch(label) else "data"


def _owned(document: Document) -> Iterator[str]:
    """Settings that a study decides."""
    tables = {"settings": document.settings}
    tables |= {f"task.{label}": said for label, said in document.task.items()}
    tables |= {f"method.{label}": said for label, said in document.method.items()}
    for place, said in tables.items():
        for key, why in OWNED.items():
            if key in said and not (key == "strategy" and place.startswith("method.")):
                yield f"[{place}] {key} = {said[key]!r}: {why}"
        if said.get("score-test", SCORED[0]) not in SCORED:
            yield (
                f"[{place}] score-test = {said['score-test']!r}: runs that tune never score the test split, and those "
                f"that tables are made of must: wanted {' or '.join(SCORED)}"
            )
        if place == "settings" and "clients" in said:
            yield f"[settings] clients = {said['clients']!r} is no setting: wanted clients above all tables"


def _parsed(
    document: Document, methods: list[StudyMethod], tasks: list[StudyTask]
) -> tuple[dict[tuple[str, str], Settings], list[str]]:
    """The settings of each method on each task, and what is wrong; what is wrong with several is said once."""
    found: dict[tuple[str, str], Settings] = {}
    wrong = Wrong()
    for task in tasks:
        for method in methods:
            try:
                settings = parse(merged(document.settings, task, method))
                check_sections(method.settings, settings)
                found[method.label, task.label] = settings
            except UserError as error:
                wrong.add((method.label, task.label), str(error))
    return found, wrong.sentences("settings of", len(methods) * len(tasks))


def _unlike(pairs: Mapping[tuple[str, str], Settings], document: Document, tasks: list[StudyTask]) -> Iterator[str]:
    """Settings of a method by which it would be compared on other data, or by another measure."""
    for (label, task), settings in pairs.items():
        usual = {**document.settings, **next(each for each in tasks if each.label == task).settings}
        for key, value in document.method.get(label, {}).items():
            if key == "strategy":
                continue
            with_key = {**usual, "strategy": settings.strategy, key: value}
            without = {**with_key, key: usual.get(key, defaults().get(key, value))}
            if key in SAME or _data_differ(with_key, without):
                yield (
                    f"[method.{label}] {key} = {value!r}: methods are compared on the same data by the same measure; "
                    "wanted it in [settings] or in a [task]"
                )


def _data_differ(one: Mapping[str, Value], other: Mapping[str, Value]) -> bool:
    try:
        return parse(one).data() != parse(other).data()
    except UserError:  # of settings that are right only together
        return False


def _searched(
    document: Document, methods: list[StudyMethod], tasks: list[StudyTask]
) -> tuple[dict[tuple[str, str], Space], list[str]]:
    """What is searched for each method on each task, and what is wrong with it."""
    tune, found, wrong = document.tune, dict[tuple[str, str], Space](), Wrong()
    for task in tasks:
        for method in methods:
            given = merged(document.settings, task, method)
            try:
                if tune and (space := space_of(method.strategy, given, tune.space, tune.methods.get(method.label))):
                    found[method.label, task.label] = space
            except UserError as error:
                wrong.add((method.label, task.label), str(error))
    return found, wrong.sentences("what is searched of", len(methods) * len(tasks))


def _shared(document: Document) -> Iterator[str]:
    """Seeds by which tuning would look at what is reported."""
    tune = document.tune
    if tune and (shared := sorted(set(tune.seeds) & set(document.seeds))):
        yield (
            f"[tune] seeds = {list(tune.seeds)} and seeds = {list(document.seeds)} share {_list(shared)}: what chooses "
            "must not be what is reported; wanted other seeds for tuning"
        )


def _counted(
    document: Document, methods: list[StudyMethod], tasks: list[StudyTask], faults: list[str]
) -> list[StudyTask]:  # fmt: skip
    """The tasks with their clients: those given, else those that the data have, or 10."""
    found = []
    for task in tasks:
        try:
            number = task.clients or clients_of(merged(document.settings, task, methods[0]))
            found.append(StudyTask(task.label, task.settings, number))
        except UserError as error:
            faults.append(f"task {task.label}: {error}")
    return found


def _twins(plan: Plan) -> Iterator[str]:
    """Labels that stand for the same runs."""
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for task in plan.tasks:
        for method in plan.methods:
            space = repr(plan.space(method.label, task.label)) if plan.tune else ""
            key = plan.report_spec(method.label, task.label, plan.seeds[0], {}).key, space
            other, where = seen.setdefault(key, (method.label, task.label))
            if (other, where) != (method.label, task.label):
                yield (
                    f"{method.label} on {task.label} is the same as {other} on {where}: wanted one of them, or other "
                    "settings"
                )


def _list(words: Any) -> str:
    return ", ".join(map(str, words))
