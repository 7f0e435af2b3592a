"""What the card on Fed_T and Fed_T_A says: the paper's tables beside ours, gains and their noise, and ablations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from common import spread, table
from runs import Case, Result
from tables import Interval, paired

Model = tuple[str, str]
"""Method and phase."""
Cells = npt.NDArray[np.float64]
"""[splits, clients A, B, C]"""

FEDAVG, TUNED, FED_T, FED_T_A = ("fedavg", "before"), ("fedavg", "after"), ("fed_t", "after"), ("fed_t_a", "after")
TITLES: Mapping[Model, str] = {FEDAVG: "FedAvg", FED_T: "Fed_T", FED_T_A: "Fed_T_A"}
STEPS = ((FED_T, FEDAVG), (FED_T_A, FED_T))
"""What the paper compares with what."""
PRINTED: Mapping[str, Mapping[Model, tuple[float, float, float]]] = {
    "stand-in-1": {FEDAVG: (50.1, 54.1, 54.8), FED_T: (53.2, 54.8, 55.6), FED_T_A: (54.2, 55.7, 55.8)},
    "stand-in-2": {FEDAVG: (55.8, 56.1, 57.2), FED_T: (56.2, 57.2, 57.9), FED_T_A: (56.6, 57.9, 58.4)},
    "stand-in-3": {FEDAVG: (56.3, 56.6, 55.9), FED_T: (56.1, 57.7, 56.9), FED_T_A: (56.7, 58.1, 57.4)},
}
"""Zhang and Liu (2022), the tables for CIFAR-10_1, _2 and _3: accuracies of A, B and C in percent."""
LETTERS = "ABC"


# ---- who has what ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def lettered(run: Path) -> Mapping[str, npt.NDArray[np.int64]]:
    """A, B and C by their ids, each with its training samples of every class: who owns the first classes is A."""
    clients = json.loads((run / "clients.json").read_text())
    labels = {client["client"]: np.array(client["train-labels"]) for client in clients}
    centres = {name: float(np.average(np.arange(len(held)), weights=held)) for name, held in labels.items()}
    return {name: labels[name] for name in sorted(labels, key=lambda name: centres[name])}


def holdings(results: Mapping[Case, Result], split: str) -> str:
    """Which classes each client owns, by what it trains on, over all seeds."""
    runs = [result.path for case, result in results.items() if (case.split, case.method) == (split, "fedavg")]
    held = np.sum([list(lettered(run).values()) for run in runs], axis=0)  # [clients, classes]
    tests = {client["test"] for run in runs for client in json.loads((run / "clients.json").read_text())}
    said = []
    for number, letter in enumerate(LETTERS):
        own = np.flatnonzero(held.argmax(axis=0) == number)
        share = held[number, own].sum() / held[number].sum()
        said.append(f"{letter} owns the classes {_ranges(own)}, {share:.0%} of what it trains on")
    trains = {int(labels.sum()) for run in runs for labels in lettered(run).values()}
    return f"{'; '.join(said)}. A client has {_span(trains)} images to train on and {_span(tests)} to test on."


def _ranges(numbers: npt.NDArray[np.int64]) -> str:
    """0, 1, 2, 5 as "0-2, 5"."""
    blocks = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(f"{b[0]}-{b[-1]}" if len(b) > 1 else f"{b[0]}" for b in blocks if len(b)) or "none"


def _span(counts: set[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


# ---- numbers ---------------------------------------------------------------------------------------------------------


def cells(results: Mapping[Case, Result], model: Model, splits: Sequence[str]) -> dict[int, Cells]:
    """By seed the accuracies in the closing round, in percent; without seeds that lack a run."""
    method, phase = model
    seeds = dict.fromkeys(case.seed for case in results)
    whole = [seed for seed in seeds if all(Case(split, method, seed) in results for split in splits)]
    return {seed: np.array([_clients(results[Case(split, method, seed)], phase) for split in splits]) for seed in whole}


def _clients(run: Result, phase: str) -> list[float]:
    return [100 * run.accuracy[run.closing, phase][client] for client in lettered(run.path)]


def means(results: Mapping[Case, Result], model: Model, splits: Sequence[str]) -> dict[int, float]:
    """The mean over splits and clients, by seed."""
    return {seed: float(found.mean()) for seed, found in cells(results, model, splits).items()}


def gain(results: Mapping[Case, Result], model: Model, base: Model, splits: Sequence[str]) -> Interval:
    """By how much a model is above another, seed by seed."""
    ours, theirs = means(results, model, splits), means(results, base, splits)
    seeds = [seed for seed in ours if seed in theirs]
    return paired([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])


def printed_gain(model: Model, base: Model, tasks: Sequence[str]) -> float:
    """The same of the paper's numbers."""
    return float(np.mean([np.subtract(PRINTED[task][model], PRINTED[task][base]) for task in tasks]))


# ---- tables ----------------------------------------------------------------------------------------------------------


def accuracies(results: Mapping[Case, Result], split: str, task: str) -> str:
    """FedAvg, Fed_T and Fed_T_A for A, B and C, beside the paper's if the task has printed numbers."""
    rows = []
    for model, title in TITLES.items():
        if not (found := cells(results, model, [split])):
            continue
        columns = np.concatenate(list(found.values())).T  # [clients, seeds]
        row = [title, *(spread(column.tolist()) for column in (*columns, columns.mean(axis=0)))]
        if task:
            theirs = PRINTED[task][model]
            row += [*(f"{value:.1f}" for value in theirs), f"{np.mean(theirs):.2f}"]
        rows.append(row)
    heads = [*LETTERS, "mean"]
    return table(("model", *heads, *(f"paper {head}" for head in heads if task)), rows)


def gains(results: Mapping[Case, Result], splits: Mapping[str, str], printed: bool) -> str:
    """Fed_T above FedAvg and Fed_T_A above Fed_T, by split and over all, and what the intervals hold.

    Args:
        results: all runs.
        splits: as the runs call it -> as the paper's numbers are found.
        printed: whether there are such.
    """
    head = [text for a, b in STEPS for text in (f"{TITLES[a]} - {TITLES[b]}", *(["paper"] if printed else []))]
    rows, said = [], []
    groups = {f"stand-in {task[-1]}": [split] for split, task in splits.items()}
    for name, group in (groups | {"all": list(splits)}).items():
        row = [name]
        for model, base in STEPS:
            row.append(str(gain(results, model, base, group)))
            row += [f"{printed_gain(model, base, [splits[s] for s in group]):+.2f}"] if printed else []
        rows.append(row)
    for model, base in STEPS:
        ours = gain(results, model, base, list(splits))
        theirs = printed_gain(model, base, list(splits.values())) if printed else None
        said.append(f"{TITLES[model]} - {TITLES[base]} over all splits: {_verdict(ours, theirs)}")
    return table(("mean over clients", *head), rows) + "\n\n" + " ".join(said)


def _verdict(ours: Interval, theirs: float | None) -> str:
    if np.isinf(ours.high):
        return f"{ours} points; one seed gives no interval."
    said = f"the interval {'contains' if ours.holds(0) else 'does not contain'} 0"
    if theirs is not None:
        said += f" and {'contains' if ours.holds(theirs) else 'does not contain'} the paper's {theirs:.2f}"
    return f"{ours} points; {said}."


def noise(results: Mapping[Case, Result], splits: Sequence[str], printed: bool) -> str:
    """How much a single cell, a difference of two, and one run's mean difference move from seed to seed."""
    found = {model: np.stack(list(cells(results, model, splits).values())) for model in TITLES}  # [seeds, splits, 3]
    if len(found[FED_T]) < 2:
        return "One seed says nothing of the noise between seeds."
    single = np.std(list(found.values()), axis=1, ddof=1)
    steps = found[FED_T_A] - found[FED_T]
    of_a_step, whole = np.std(steps, axis=0, ddof=1), np.std(steps.mean(axis=(1, 2)), ddof=1)
    what = f" (the paper's {printed_gain(FED_T_A, FED_T, list(PRINTED)):.2f} is one such mean)" if printed else ""
    return (
        f"Noise, as standard deviations over seeds: {single.mean():.2f} points on average ({single.min():.2f} to "
        f"{single.max():.2f}) for a single cell, one model of one client; {of_a_step.mean():.2f} for the difference "
        f"Fed_T_A - Fed_T of one client; {whole:.2f} for the mean of these over the {of_a_step.size} cells of one "
        f"seed{what}."
    )


def ablation(
    results: Mapping[Case, Result],
    models: Sequence[Model],
    splits: Sequence[str],
    sizes: Mapping[str, tuple[int, int]],
) -> str:
    """Every model against Fed_T and Fed_T_A, over all splits.

    Args:
        results: all runs.
        models: in the order of the table.
        splits: to average over.
        sizes: method -> parameters of its block, and those that its last stage trains.
    """
    bases = [base for base in (FED_T, FED_T_A) if base in models]
    rows = []
    for method, phase in models:
        started, ended = (list(means(results, (method, when), splits).values()) for when in ("before", phase))
        name = f"{method}, {phase}" if method == "fedavg" else method
        row = [name, *(f"{size:,}" for size in sizes[method]), spread(started), spread(ended)]
        for base in bases:
            row += ["", ""] if base == (method, phase) else _against(results, (method, phase), base, splits)
        rows.append(row)
    head = ("model", "extra parameters", "trained", "before the stage", "accuracy")
    return table((*head, *(text for method, _ in bases for text in (f"minus {method}", "wins"))), rows)


def _against(results: Mapping[Case, Result], model: Model, base: Model, splits: Sequence[str]) -> list[str]:
    pairs = []
    for split in splits:
        ours, theirs = means(results, model, [split]), means(results, base, [split])
        pairs += [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    return [str(gain(results, model, base, splits)), f"{sum(one > other for one, other in pairs)} of {len(pairs)}"]


def likes(results: Mapping[Case, Result], pairs: Sequence[tuple[Model, Model]], splits: Sequence[str]) -> str:
    """Models beside those that differ from them in their block alone."""
    said = [f"`{one[0]}` - `{other[0]}`: {gain(results, one, other, splits)}" for one, other in pairs]
    return f"CBAM against no block, otherwise alike: {'; '.join(said)}."


def same_start(results: Mapping[Case, Result], methods: Sequence[str], splits: Sequence[str]) -> str:
    """Which variants do not score as FedAvg's model before they are trained."""
    first = cells(results, FEDAVG, splits)
    starts = {method: cells(results, (method, "before"), splits) for method in methods}
    other = [f"`{m}`" for m, start in starts.items() if any((of != first[seed]).any() for seed, of in start.items())]
    which = f", but for {', '.join(other)}" if other else ""
    return (
        f"Before the personal stage each client has exactly the accuracy of FedAvg's model, whatever the block{which}."
    )
