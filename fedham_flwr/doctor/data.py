"""The data as a run would open them: what they are, who has how much of what, and what is odd about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from fedham_flwr.core.methods import describe_split
from fedham_flwr.data.client_data import SPLITS
from fedham_flwr.doctor.findings import Finding, note, ok
from fedham_flwr.doctor.rehearsal import Rehearsal
from fedham_flwr.federation.messages import Profile

LISTED, FIRST = 20, 10
"""Most clients that are listed one by one; how many of more."""
NAMED = 12
"""Most classes or columns that are named."""


def describe(rehearsal: Rehearsal) -> dict[str, Any]:
    """What the data are, as JSON: kind, shape, target, classes, columns, counts."""
    data, profiles = rehearsal.data(), rehearsal.profiles
    recipe: Mapping[str, Any] = getattr(data, "recipe", None) or {}
    found: dict[str, Any] = {
        "kind": recipe.get("kind", data.kind),
        "shape": list(data.shape),
        "target": data.target,
        "outputs": data.outputs,
        "classes": list(data.classes),
        "columns": _columns(data, recipe),
        "clients": [
            {"client": p.client, "name": p.name, **p.counts, **({"labels": list(p.labels)} if p.labels else {})}
            for p in profiles
        ],
    }
    return {key: value for key, value in found.items() if value not in ([], "")}


def _columns(data: Any, recipe: Mapping[str, Any]) -> list[str]:
    """Names of a table's columns, with their kinds where the recipe says them."""
    columns = recipe.get("columns", [])
    if isinstance(columns, Mapping):
        columns = [
            {"name": name, **(kind if isinstance(kind, Mapping) else {"kind": kind})} for name, kind in columns.items()
        ]
    if columns and all(isinstance(column, Mapping) for column in columns):
        return [f"{column.get('name', '?')} ({column.get('kind', 'number')})" for column in columns]
    return [str(name) for name in (data.scaling.names if data.scaling else columns)]


def findings(rehearsal: Rehearsal, told: Mapping[str, Any]) -> Iterator[Finding]:
    """What is worth a line.

    Args:
        rehearsal: of the run.
        told: what `describe` gave.
    """
    settings, strategy = rehearsal.settings, rehearsal.strategy
    profiles = rehearsal.profiles
    yield ok("data", "data set", f"{settings.dataset}: {told['kind']}, a sample is {tuple(told['shape'])}, "
             f"target {told['target']}")  # fmt: skip
    for what in ("classes", "columns"):
        if names := told.get(what):
            more = f", ... ({len(names)} in all)" if len(names) > NAMED else ""
            yield ok("data", f"{len(names)} {what}", ", ".join(map(str, names[:NAMED])) + more)
    yield ok("data", "clients", f"{len(profiles)}, opened in {rehearsal.seconds:.1f} s")
    yield from _balance(profiles, told.get("classes", []))
    yield from _odd(profiles)
    yield ok("run", "model", f"{rehearsal.journal._model}: {strategy.manifest.count():,} scalars")
    yield ok("run", settings.strategy, describe_split(strategy.manifest, strategy.split))
    for said in dict.fromkeys(rehearsal.warnings):
        yield note("run", "said at the start", said)


def _balance(profiles: Sequence[Profile], names: Sequence[str]) -> Iterator[Finding]:
    """How often each class is in training, over all clients."""
    if not profiles[0].labels:
        return
    width = max(len(profile.labels) for profile in profiles)
    counts = [sum(profile.labels[k] for profile in profiles if k < len(profile.labels)) for k in range(width)]
    total = max(1, sum(counts))
    named = [names[k] if k < len(names) else str(k) for k in range(width)]
    if width <= NAMED:
        shares = [f"{name} {count:,} ({count / total:.0%})" for name, count in zip(named, counts, strict=True)]
    else:
        shares = [f"min {min(counts):,}, median {median(counts):,.0f}, max {max(counts):,} of {width} classes"]
    missing = [name for name, count in zip(named, counts, strict=True) if not count]
    if missing and profiles[0].target == "class":
        yield note("data", "class balance", ", ".join(shares), "", f"nobody trains with {', '.join(missing[:NAMED])}")
    else:
        yield ok("data", "class balance", ", ".join(shares))


def _odd(profiles: Sequence[Profile]) -> Iterator[Finding]:
    """Clients with one class, or with nothing to be scored on."""
    odd = {
        "one class in training": [
            p.client for p in profiles if p.target == "class" and sum(n > 0 for n in p.labels) == 1
        ],
        "no training samples": [p.client for p in profiles if not p.counts.get("train")],
        "no test samples": [p.client for p in profiles if not p.counts.get("test")],
        "no validation samples": [p.client for p in profiles if not p.counts.get("validation")],
    }
    for what, clients in odd.items():
        if clients:
            some = ", ".join(clients[:FIRST]) + (", ..." if len(clients) > FIRST else "")
            every = " (all)" if len(clients) == len(profiles) else ""
            yield note("data", what, f"{len(clients)} clients{every}: {some}")


def table(profiles: Sequence[Profile]) -> Iterator[str]:
    """The counts per client and split, as lines; of many clients also a summary, and the first ten."""
    splits = [which for which in SPLITS if any(which in profile.counts for profile in profiles)]
    classes = any(profile.labels for profile in profiles)
    names = [*splits, *(["classes"] if classes else [])]
    rows = [(_name(p), [*(p.counts.get(w, 0) for w in splits), *([sum(n > 0 for n in p.labels)] if classes else [])])
            for p in profiles]  # fmt: skip
    shown = [(name, [str(number) for number in numbers]) for name, numbers in rows]
    if len(rows) > LISTED:
        columns = list(zip(*(numbers for _, numbers in rows), strict=True))
        summed = [("total", [f"{sum(c)}" if n != "classes" else "-" for n, c in zip(names, columns, strict=True)])]
        for title, statistic in (("min", min), ("median", median), ("max", max)):
            summed.append((title, [f"{statistic(column):.12g}" for column in columns]))
        shown = [*summed, *shown[:FIRST], (f"... {len(rows) - FIRST} more", [""] * len(names))]
    width = max(len(name) for name, _ in [("client", []), *shown])
    yield "  ".join([f"{'client':<{width}}", *(f"{name:>10}" for name in names)])
    for name, numbers in shown:
        yield "  ".join([f"{name:<{width}}", *(f"{number:>10}" for number in numbers)]).rstrip()


def _name(profile: Profile) -> str:
    return profile.client if profile.name in ("", profile.client) else f"{profile.client} ({profile.name})"
