"""Cross-site evaluation as it is kept: `cross-sites.parquet`, a heat map, an entry of the summary and three lines."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.files import replacing
from fedham_flwr.federation.cross_exchange import CrossRow
from fedham_flwr.federation.cross_server import Crossed
from fedham_flwr.reporting import terminal as report
from fedham_flwr.reporting.console import number_text
from fedham_flwr.reporting.figures import new_figure, write_figure
from fedham_flwr.reporting.journal import Journal
from fedham_flwr.reporting.run_directory import unwritable
from fedham_flwr.training.metrics import Metric

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

TABLE, PICTURE = "cross-sites.parquet", "cross-sites.png"
Matrix = npt.NDArray[np.float64]
_NUMBERED, _LABELLED, _LONGEST = 16, 30, 14  # most clients with numbers in the cells, with a name each; characters


def keep(crossed: Crossed, journal: Journal) -> None:
    """Write the rows, draw them, and say and note in the summary what they come to.

    Args:
        crossed: what came of the evaluation.
        journal: the run's.

    Raises:
        UserError: the results cannot be written.
    """
    journal.record(crossed.record, (), None)
    folder, metric = journal.directory.path, crossed.headline
    values = matrix(crossed.rows, crossed.clients, metric.name)
    names = {str(client["client"]): report.client_name(client) for client in journal.directory.read_clients()}
    try:
        write_rows(folder / TABLE, crossed.rows)
        if np.isfinite(values).any():
            what = " on ".join((journal.settings.strategy, journal.settings.dataset))
            heat_map(values, [names.get(c, c) for c in crossed.clients], folder / PICTURE, metric, what)
    except OSError as error:
        raise unwritable(folder, error) from error
    told = statistics(values, crossed.clients, metric)
    journal.more["cross-sites"] = {
        "metric": metric.name,
        "clients": list(crossed.clients),
        "drawn": crossed.drawn,
        "left-out": dict(crossed.left_out),
        **told,
    }
    for line in lines(told, len(crossed.clients), metric):
        report.say(line)


def write_rows(file: Path, rows: Iterable[CrossRow]) -> None:
    """Write the rows as a Parquet file with the columns model-of, data-of, metric, value and n."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"model-of": pa.string(), "data-of": pa.string(), "metric": pa.string(), "value": pa.float64(),
             "n": pa.int64()}  # fmt: skip
    columns = list(zip(*rows, strict=True)) or [()] * len(kinds)
    table = pa.table({name: list(columns[at]) for at, name in enumerate(kinds)}, schema=pa.schema(list(kinds.items())))
    with replacing(file) as part:
        pq.write_table(table, part)


def read_cross_sites(run: str | Path) -> pandas.DataFrame:
    """The rows of a run: model-of, data-of, metric, value, n.

    Args:
        run: its directory.
    """
    import pandas as pd

    return pd.read_parquet(Path(run) / TABLE)


def matrix(rows: Iterable[CrossRow], clients: Sequence[str], metric: str) -> Matrix:
    """A metric as [models, data], NaN where there is no score."""
    place = {client: at for at, client in enumerate(clients)}
    values = np.full((len(clients), len(clients)), np.nan)
    for row in rows:
        if row.metric == metric:
            values[place[row.model_of], place[row.data_of]] = row.value
    return values


def statistics(values: Matrix, clients: Sequence[str], metric: Metric) -> dict[str, Any]:
    """What a matrix of scores comes to.

    Args:
        values: [models, data].
        clients: in order.
        metric: that was measured.

    Returns:
        `own`: the mean over clients of their own model on their own test data. `others`: the mean over clients of the
        mean of all others' models on their data. `best-foreign`: the mean over clients of the best of these, with
        `better-than-own`, who would do better with another's model, and whose.
    """
    own, foreign = np.diag(values), values.copy()
    np.fill_diagonal(foreign, np.nan)
    sign = 1 if metric.higher else -1
    best: dict[str, tuple[str, float]] = {}
    means = []
    for at, client in enumerate(clients):
        column = foreign[:, at]
        if np.isfinite(column).any():
            means.append(float(np.nanmean(column)))
            first = int(np.nanargmax(sign * column))
            best[client] = clients[first], float(column[first])
    better = {
        client: best[client][0]
        for at, client in enumerate(clients)
        if client in best and np.isfinite(own[at]) and sign * best[client][1] > sign * own[at]
    }
    return {
        "own": _mean(own[np.isfinite(own)].tolist()),
        "others": _mean(means),
        "best-foreign": _mean([value for _, value in best.values()]),
        "better-than-own": better,
    }


def lines(told: Mapping[str, Any], count: int, metric: Metric) -> list[str]:
    """What is said of it.

    Args:
        told: as `statistics` gives it.
        count: of clients.
        metric: that was measured.
    """
    own, others, best = (number_text(told[name], metric) for name in ("own", "others", "best-foreign"))
    better = told["better-than-own"]
    who = ", ".join(f"{client} with {other}'s" for client, other in list(better.items())[:3])
    more = f" ({who}{', ...' if len(better) > 3 else ''})" if better else ""
    better_off = f"{len(better)} client{'s' * (len(better) != 1)}{more}"
    return [
        f"cross-sites  test {metric.name} of {count} clients with their own models: {own}",
        f"cross-sites  with the others' models: {others}",
        f"cross-sites  with the best of the others': {best}; better than with their own: {better_off}",
    ]


def heat_map(values: Matrix, names: Sequence[str], path: Path, metric: Metric, what: str = "") -> Path:
    """Draw the scores as a PNG: a row for each model, a column for each client's data, own cells with a frame.

    Args:
        values: [models, data]; NaN is left white.
        names: of the clients.
        path: the PNG to write.
        metric: that was measured; of one that is better when lower the colours are turned round: light is good.
        what: was run, for the title.
    """
    from matplotlib.patches import Rectangle

    count = len(names)
    side = max(4.2, min(0.42 * count + 2.0, 12.0))
    figure, axes = new_figure((side + 1.6, side + 0.6))
    lowest, highest = float(np.nanmin(values)), float(np.nanmax(values))
    image = axes.imshow(values, cmap="cividis" if metric.higher else "cividis_r", interpolation="nearest")
    _label(axes, names)
    if count <= _NUMBERED:
        _number(axes, values, metric, (lowest, highest))
    if count <= _LABELLED:
        for at in range(count):
            axes.add_patch(Rectangle((at - 0.5, at - 0.5), 1, 1, fill=False, edgecolor="#D55E00", linewidth=1.8))
    bar = figure.colorbar(image, ax=axes, shrink=0.85, aspect=25)
    bar.set_label(f"test {metric.name}", fontsize=11)
    title = ", ".join(
        part for part in (what, f"each client's model on each client's test data ({count} clients)") if part
    )
    return write_figure(figure, path, textwrap.fill(title, int(figure.get_figwidth() / 0.115)))


def _label(axes: Axes, names: Sequence[str]) -> None:
    step = -(-len(names) // _LABELLED)
    shown = [n if len(n) <= _LONGEST else f"{n[:6]}…{n[7 - _LONGEST :]}" for n in names[::step]]
    turn = 90 if sum(map(len, shown)) > 3 * _LABELLED else 0
    axes.set_xticks(range(0, len(names), step), shown, rotation=turn, parse_math=False)
    axes.set_yticks(range(0, len(names), step), shown, parse_math=False)
    axes.tick_params(length=0, labelsize=9)
    axes.set_xlabel("test data of", fontsize=11)
    axes.set_ylabel("model of", fontsize=11)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _number(axes: Axes, values: Matrix, metric: Metric, limits: tuple[float, float]) -> None:
    lowest, highest = limits
    for row, column in np.ndindex(values.shape):
        value = float(values[row, column])
        if not np.isfinite(value):
            continue
        share = (value - lowest) / (highest - lowest) if highest > lowest else 0.0
        light = share if metric.higher else 1 - share
        text = f"{value:.2f}".replace("0.", ".", 1) if metric.bounded and value < 1 else f"{value:.3g}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="black" if light > 0.55 else "white")


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
