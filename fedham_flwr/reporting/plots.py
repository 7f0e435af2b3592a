"""Two pictures of a run: how a metric changed from round to round, and what each client ended with.

Both read rows (`records.Row`) only, so that they can be drawn again from a run directory. A series is a
(model, phase); it has the same colour in both pictures. Novel clients, which are scored once, are in neither.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedham_flwr.core.records import MEMBER, Row
from fedham_flwr.reporting.figures import finish_figure, new_figure
from fedham_flwr.reporting.shown import split_shown
from fedham_flwr.training.metrics import ACCURACY, Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Series = tuple[str, str]
"""Model and phase."""
Table = dict[Series, dict[int, dict[str, float]]]
"""Scores: series -> round -> client -> value."""


class Shown(NamedTuple):
    """What is drawn: a metric on a split, of which run, to which PNG."""

    path: Path
    name: str
    metric: Metric
    split: str

    @property
    def axis(self) -> str:
        """The title of the axis of scores."""
        return f"{self.split} {self.metric.name}"


Picture = Callable[[Table, Shown], Path]
"""Draws scores to a PNG, and returns its path."""
# Okabe and Ito's colours, told apart with every kind of colour vision; lines differ in dashes and markers as well.
_STYLES = {
    ("personal", "after"): ("#0072B2", "-", "o"),
    ("personal", "before"): ("#E69F00", "--", "s"),
    ("global", "after"): ("#009E73", "-.", "^"),
    ("global", "before"): ("#6B6B6B", ":", "D"),
}
_OTHER = ("#CC79A7", "-", "x")
_VERTICAL, _LABELLED = 30, 60  # most clients as upright bars; most as bars with names at all
_SPACE = 0.8  # of the distance between two clients, taken by their bars


def draw(
    picture: Picture,
    rows: Iterable[Row],
    path: Path,
    strategy: str = "",
    dataset: str = "",
    metric: Metric = ACCURACY,
) -> Path | None:
    """Draw a picture of a run's scores on the test split as a PNG; where that was not scored, on the validation split.

    Args:
        picture: Which.
        rows: The rows of a run, in any order.
        path: The PNG to write.
        strategy: For the title.
        dataset: For the title.
        metric: That is drawn; accuracy by default.

    Returns:
        `path`, or None when `rows` hold no such score of it and nothing was written.
    """
    rows = list(rows)
    split = split_shown(rows, metric, over_rounds=picture is _curves)
    table = _scores(rows, metric, split)
    name = " on ".join(part for part in (strategy, dataset) if part)
    return picture(table, Shown(path, name, metric, split)) if table else None


def _curves(table: Table, shown: Shown) -> Path:
    from matplotlib.ticker import MaxNLocator

    metric = shown.metric
    figure, axes = new_figure((10.0, 5.6))
    for series in _ordered(table):
        _draw_curve(axes, series, table[series])
    axes.set_xlabel("round")
    axes.set_ylabel(shown.axis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len({number for rounds in table.values() for number in rounds}) == 1:
        axes.set_xlim(axes.get_xlim()[0] - 0.5, axes.get_xlim()[1] + 0.5)
    low, high = axes.get_ylim()
    margin = 0.02 if metric.bounded else 0.02 * (high - low)
    axes.set_ylim(max(low, metric.least - margin), min(high, metric.most + margin))
    note = "line: mean over clients; band: 10th to 90th percentile"
    return finish_figure(figure, axes, shown.path, _title(table, shown.name), note)


def _bars(measured: Table, shown: Shown) -> Path:
    last = max(number for rounds in measured.values() for number in rounds)
    table = {series: rounds[last] for series, rounds in measured.items() if last in rounds}
    clients = _sorted_clients(table, shown.metric)
    lying = _VERTICAL < len(clients) <= _LABELLED
    figure, axes = new_figure((10.0, 2.2 + 0.22 * len(clients)) if lying else (10.0, 5.6))
    if len(clients) > _LABELLED:
        _draw_sorted(axes, table, clients, shown)
        note = "each series sorted by itself; level line and number: mean over clients"
    else:
        _draw_bars(axes, table, clients, lying, shown)
        note = "dashed line and number: mean over clients"
    title = _title({key: {last: values} for key, values in table.items()}, shown.name)
    return finish_figure(figure, axes, shown.path, f"{title}, round {last}", note)


learning_curves = partial(draw, _curves)
"""A metric over rounds: mean over clients, and the band of the middle 80 % of them.

A round in which only some clients were evaluated shows these. Where the test split was scored at the end only, the
curves are those of the validation split.
"""
client_bars = partial(draw, _bars)
"""Each client's score in the last measured round, from the personal model's best to its worst.

Up to 60 clients are bars with their names (lying when more than 30), more are sorted curves.
"""


def _scores(rows: Iterable[Row], metric: Metric, split: str) -> Table:
    """Scores of the members on a split as series -> round -> client -> value."""
    table: Table = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if (row.population, row.split, row.metric) == (MEMBER, split, metric.name):
            table[row.model, row.phase][row.round][row.client] = row.value
    return table


def _ordered(table: Iterable[Series]) -> list[Series]:
    """The series in the order of the legend: the best-known first, any other behind."""
    known = list(_STYLES)
    return sorted(table, key=lambda series: (known.index(series) if series in known else len(known), series))


def _style(series: Series) -> tuple[str, str, str]:
    return _STYLES.get(series, _OTHER)


def _title(table: Mapping[Series, Mapping[int, Mapping[str, float]]], name: str) -> str:
    clients = {client for rounds in table.values() for values in rounds.values() for client in values}
    count = f"{len(clients)} client{'s' if len(clients) != 1 else ''}"
    return ", ".join(part for part in (name, count) if part)


def _draw_curve(axes: "Axes", series: Series, rounds: Mapping[int, Mapping[str, float]]) -> None:
    color, dashes, marker = _style(series)
    numbers = sorted(rounds)
    values = [np.array(list(rounds[number].values())) for number in numbers]
    means = [group.mean() for group in values]
    bands = np.array([np.percentile(group, (10, 90)) for group in values])
    axes.fill_between(numbers, bands[:, 0], bands[:, 1], color=color, alpha=0.13, linewidth=0)
    size = 5 if len(numbers) <= 40 else 0
    axes.plot(numbers, means, color=color, ls=dashes, marker=marker, ms=size, lw=2, label=" ".join(series))


def _sorted_clients(table: Mapping[Series, Mapping[str, float]], metric: Metric = ACCURACY) -> list[str]:
    """Clients from the best to the worst in the first series of the legend; without a value there, at the end."""
    first = table[_ordered(table)[0]]
    clients = {client for values in table.values() for client in values}
    sign, none = -1 if metric.higher else 1, -np.inf if metric.higher else np.inf
    return sorted(clients, key=lambda client: (sign * first.get(client, none), len(client), client))


def _limits(table: Mapping[Series, Mapping[str, float]], metric: Metric) -> tuple[float, float]:
    """Of the axis of scores: the whole range of a fraction, else from 0, where bars begin, to the farthest value."""
    if metric.bounded:
        return 0.0, 1.0
    values = [value for scores in table.values() for value in scores.values()]
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.05 * (high - low) or 1.0
    return low - (room if low < 0 else 0.0), high + (room if high > 0 or low == 0 else 0.0)


def _mean_label(series: Series, mean: float, metric: Metric) -> str:
    return f"{' '.join(series)}  {f'{mean:.3f}' if metric.bounded else f'{mean:.4g}'}"


def _draw_bars(
    axes: "Axes",
    table: Mapping[Series, Mapping[str, float]],
    clients: Sequence[str],
    lying: bool,
    shown: Shown,
) -> None:
    """A group of bars per client, with the mean of each series as a dashed line across."""
    from matplotlib.patheffects import withStroke

    width = _SPACE / len(table)
    places = np.arange(len(clients))
    for index, series in enumerate(_ordered(table)):
        color = _style(series)[0]
        values = [table[series].get(client, np.nan) for client in clients]
        mean = float(np.nanmean(values))
        at = places + (index - (len(table) - 1) / 2) * width
        bars: Any = axes.barh if lying else axes.bar
        bars(at, values, width, color=color, label=_mean_label(series, mean, shown.metric))
        line = (axes.axvline if lying else axes.axhline)(mean, color=color, ls="--", lw=1.6)
        line.set_path_effects([withStroke(linewidth=3.4, foreground="white")])  # else lost on bars of its own colour
    names = [client if len(client) <= 16 else client[:15] + "…" for client in clients]
    crowded = not lying and sum(map(len, names)) > 90
    limits = _limits(table, shown.metric)
    if lying:
        axes.set_yticks(places, names, parse_math=False)
        axes.set(xlim=limits, ylim=(len(clients) - 0.4, -0.6), xlabel=shown.axis, ylabel="client")
    else:
        axes.set_xticks(
            places, names, parse_math=False, rotation=60 if crowded else 0, ha="right" if crowded else "center"
        )
        axes.set(ylim=limits, xlim=(-0.6, len(clients) - 0.4), xlabel="client", ylabel=shown.axis)
    axes.grid(visible=False, axis="y" if lying else "x")


def _draw_sorted(
    axes: "Axes", table: Mapping[Series, Mapping[str, float]], clients: Sequence[str], shown: Shown
) -> None:
    """One curve per series, from the best client to the worst: how many clients reach which score."""
    metric = shown.metric
    for series in _ordered(table):
        color, dashes, _ = _style(series)
        values = np.sort(list(table[series].values()))[:: -1 if metric.higher else 1]
        mean = float(values.mean())
        label = _mean_label(series, mean, metric)
        axes.plot(np.arange(1, len(values) + 1), values, color=color, ls=dashes, lw=2, label=label)
        axes.axhline(mean, color=color, ls="--", lw=1.0)
    low, high = (0, 1.02) if metric.bounded else _limits(table, metric)
    what = "clients, from the best to the worst"
    axes.set(xlim=(1, len(clients)), ylim=(low, high), xlabel=what, ylabel=shown.axis)
