"""The space that a study searches for a method: the common one, the method's own, and what `study.toml` says."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from fedham_flwr import registry
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path, section_of
from fedham_flwr.core.search_space import Choice, Dimension, Range, Space
from fedham_flwr.idle import unread
from fedham_flwr.models import NETWORKS, client_models
from fedham_flwr.run_settings import Settings
from fedham_flwr.settings import Value, flatten, parse
from fedham_flwr.study.reading import read

CORE = (
    "local-epochs", "local-steps", "batch-size", "loss", "label-smoothing", "class-weights", "optimizer",
    "learning-rate", "momentum", "nesterov", "beta1", "beta2", "weight-decay", "max-grad-norm", "schedule",
    "warmup-rounds", "schedule-every", "schedule-factor", "min-learning-rate", "augment", "augmentation", "model",
    "max-examples-per-client", "clip-norm", "dp.clipping-norm",
)  # fmt: skip
"""The settings without a method's or a network's section that may be searched: of two values of them the validation
metric says which is better. It does not of those that decide the data, how they are scored, or what is given up for
them (rounds, privacy, clients that take part)."""
OBJECTS = ("model", "loss", "optimizer", "augmentation")
"""Settings that may name an object whose own settings may be searched; `client-models` names some, with commas."""
BELOW, ABOVE = 20, 10
"""The common space goes from the run's own learning rate divided by the first to that times the second."""


def space_of(
    strategy: str, settings: Mapping[str, Value], asked: Mapping[str, object] | None = None,
    asked_of_method: Mapping[str, object] | None = None,
) -> Space:  # fmt: skip
    """What is searched for a method: settings of all methods first, then its own.

    Args:
        strategy: the method, as the setting has it.
        settings: of a run that is not tuned, as they are written and without those that nobody wrote: what the method
            declares of one of them is left out, since the study has set it, and so is what no trial would read.
        asked: `[tune.space]`, in place of the common space; None without.
        asked_of_method: `[tune.methods.LABEL]`, in place of what the method declares; None without.

    Raises:
        UserError: every fault of it at once.
    """
    plain = {**settings, "strategy": strategy}
    own = flatten(parse(plain))
    faults: list[str] = []
    found = dict(common(own)) if asked is None else _read("[tune.space]", asked, plain, own, faults)
    if asked_of_method is None:
        found |= _declared(plain, own, found, faults)
    else:
        found |= _read("[tune.methods]", asked_of_method, plain, own, faults)
    if faults:
        raise UserError("; ".join(faults))
    return found


def common(own: Mapping[str, Value]) -> Space:
    """What is searched for every method unless a study says otherwise: the learning rate, around the run's own.

    Args:
        own: the settings of a run that is not tuned, by key.
    """
    rate = own["learning-rate"]
    assert isinstance(rate, float)
    low, high = (float(f"{number:.6g}") for number in (rate / BELOW, rate * ABOVE))
    return {"learning-rate": Range(low, high, rate, log=True)}


def described(dimension: Dimension) -> str:
    """The values of a dimension in words."""
    if isinstance(dimension, Choice):
        return ", ".join(map(str, dimension.values))
    kinds = ["whole numbers"] * dimension.whole + ["logarithmic"] * dimension.log
    return f"{dimension.low:g} to {dimension.high:g}" + (f" ({', '.join(kinds)})" if kinds else "")


def ends(dimension: Dimension) -> Iterator[Value]:
    """All values of a choice; the ends of a range, and where it starts."""
    if isinstance(dimension, Choice):
        yield from dimension.values
    else:
        kind = int if dimension.whole else float
        yield from map(kind, (dimension.low, dimension.high, dimension.start))


def why_unread(key: str, given: Mapping[str, Value], settings: Settings, space: Space) -> Iterator[str]:
    """Why a run and those of the trials with one other value do not read a setting; empty of one that does.

    Args:
        key: the setting.
        given: of the run, as they are written.
        settings: of the run.
        space: what is searched.
    """
    if why := unread([key], settings).get(key, ""):
        for searched, dimension in space.items():
            # Of the settings as they are written: with all of them spelled out, another network is given this one's.
            yield from (unread([key], parse({**given, searched: value})).get(key, "") for value in ends(dimension))
    yield why


def _declared(plain: Mapping[str, Value], own: Mapping[str, Value], beside: Space, faults: list[str]) -> Space:
    """What a method declares, without what the study has set, and without what no trial would read."""
    strategy, found = str(plain["strategy"]), {}
    for key, dimension in registry.method(strategy).search.items():
        where = f"search of the method {strategy}: {key}"
        if key in plain:
            continue
        if not isinstance(dimension, Range | Choice):
            faults.append(f"{where} is {type(dimension).__name__}, and wanted is a Range or a Choice")
        elif fault := _refusal(key, own) or _rejected(key, dimension, plain):
            faults.append(f"{where} {fault}")
        else:
            found[key] = dimension
    settings = parse(dict(plain))
    return {key: each for key, each in found.items() if "" in why_unread(key, plain, settings, {**beside, **found})}


def _read(
    table: str, asked: Mapping[str, object], plain: Mapping[str, Value], own: Mapping[str, Value], faults: list[str]
) -> dict[str, Dimension]:
    """Dimensions as a table of `study.toml` has them, by key."""
    found: dict[str, Dimension] = {}
    for key, given in sorted(_by_key(asked, own).items()):
        try:
            fault = _refusal(key, own)
            dimension = None if fault else read(given, own[key])
            fault = fault or (_rejected(key, dimension, plain) if dimension else "")
        except ValueError as error:
            fault = f"= {given!r}: {error}"
        if fault:
            faults.append(f"{table} {key} {fault}")
        elif dimension:
            found[key] = dimension
    return found


def _by_key(asked: Mapping[str, object], own: Mapping[str, Value]) -> dict[str, object]:
    """A table with the keys of settings: TOML takes `fedprox.mu` for a table fedprox with a key mu."""
    flat: dict[str, object] = {}
    for key, given in asked.items():
        inner = {f"{key}.{name}": value for name, value in given.items()} if isinstance(given, Mapping) else {}
        section = key not in own and isinstance(given, Mapping) and not {"low", "high"} & given.keys()
        flat |= inner if section or inner.keys() & own.keys() else {key: given}
    return flat


def _refusal(key: str, own: Mapping[str, Value]) -> str:
    """Why a setting is not searched; empty if it may be."""
    strategy, section = str(own["strategy"]), key.rpartition(".")[0]
    sections = {section_of(strategy), *NETWORKS}
    named = [*(str(own[name]) for name in OBJECTS), *client_models.names_of(str(own["client-models"]))]
    sections |= {section_of(name) for name in named if is_path(name)}
    if key in CORE or (key in own and section in sections):
        return ""
    if section in registry.METHODS and section != section_of(strategy):
        return f"is a setting of the method {section}, and this is for {strategy}: wanted [tune.methods.{section}]"
    if key not in own:
        near = difflib.get_close_matches(key.replace("_", "-"), [one for one in own if not _refusal(one, own)], n=1)
        return f"is no setting: did you mean {near[0]}?" if near else "is no setting: `fedham settings` prints them"
    return (
        "is not searched, since runs that differ in it are not compared by validation: wanted a setting of the method, "
        "of the network or of local training, such as learning-rate, batch-size or local-epochs"
    )


def _rejected(key: str, dimension: Dimension, plain: Mapping[str, Value]) -> str:
    """What a run would say of one of the values; empty if it takes them all."""
    for value in ends(dimension):
        try:
            parse({**plain, key: value})
        except UserError as error:
            return f"has a value that no run takes: {str(error).removeprefix('settings: ')}"
    return ""
