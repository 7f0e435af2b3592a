"""Two pictures of who learned from whom: a heat map per layer group, and how much clients keep to themselves."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedham_flwr.core.records import MixingWeights
from fedham_flwr.reporting.figures import finish_figure, new_figure, write_figure
from fedham_flwr.reporting.mixing_weights import self_weights

if TYPE_CHECKING:
    import pyarrow
    from matplotlib.axes import Axes

_PER_ROW = 4  # heat maps beside each other
_NUMBERED, _LABELLED = 10, 20  # most clients with numbers in the cells; most names beside a map
_LONGEST = 12  # characters of a name that are shown
_FLAT = 30  # most characters of all names below a map that fit side by side
# Okabe and Ito's colours, told apart with every kind of colour vision; dashes and markers differ as well.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#6B6B6B")
DASHES, MARKERS = ("-", "--", "-.", ":"), "os^Dv<>PX"


def heat_maps(weights: MixingWeights, path: Path, strategy: str = "", dataset: str = "", note: str = "") -> Path:
    """Draw the mixing weights as a PNG: one square map per layer group, a row per client and a column per peer.

    All maps have one scale, from 0 to the largest weight; of a sample to the largest that a client gives another, which
    its weight of itself would hide. Each of up to 500 clients has a pixel at least.

    Args:
        weights: to draw, usually the last of every client.
        path: the PNG to write.
        strategy: For the title.
        dataset: For the title.
        note: whose weights these are, if they are a sample; for the title.
    """
    values = weights.dense().detach().cpu().numpy()
    down = -(-len(weights.groups) // _PER_ROW)
    across = -(-len(weights.groups) // down)
    names = max(len(_short(name)) for name in (*weights.clients, *weights.peers))
    most = max(len(weights.clients), len(weights.peers))
    side = 0.07 * names + (2.4 if most <= 2 else max(3.6, min(most, 500) / 100 + 0.65))
    name = " on ".join(part for part in (strategy, dataset) if part)
    title = ", ".join(part for part in (name, "mixing weights" + (f" of {note}" if note else "")) if part)
    width = max(5.0, side * across + 1.2)
    figure, first = new_figure((width, (side + 0.2) * down + 0.7), gap=0.08)
    first.remove()
    grid = figure.subplots(down, across, squeeze=False)
    highest = max(float(values.max()), 1e-9)
    if note:
        own = np.array(weights.clients)[:, None, None] == np.array(weights.peers)
        highest = float(np.where(own, 0.0, values).max()) or highest
    for at, axes in enumerate(grid.flat):
        if at >= len(weights.groups):
            axes.set_axis_off()
            continue
        # Square with few clients of many as well, or else their rows were too thin to be named.
        axes.set_box_aspect(1)
        image = axes.imshow(
            values[:, at], vmin=0.0, vmax=highest, cmap="viridis", interpolation="nearest", aspect="auto"
        )
        axes.set_title(weights.groups[at], fontsize=11, parse_math=False)
        _label(axes, weights, outer=at % across == 0, lowest=at + across >= len(weights.groups))
        if most <= _NUMBERED:
            _number(axes, values[:, at], highest)
    above = "max" if values.max() > highest else "neither"
    bar = figure.colorbar(image, ax=grid.ravel().tolist(), shrink=0.9 / down**0.5, aspect=25, extend=above)
    bar.set_label("weight" if above == "neither" else "weight of another client", fontsize=11)
    return write_figure(figure, path, textwrap.fill(title, int(width / 0.11)))  # the name of a data set may be a path


def self_weight_curves(source: pyarrow.Table | Path, path: Path, strategy: str = "", dataset: str = "") -> Path | None:
    """Draw as a PNG the weight that clients give themselves, on average, per layer group over the rounds.

    Args:
        source: as `read_weights` gives it, or the directory of a run.
        path: the PNG to write.
        strategy: For the title.
        dataset: For the title.

    Returns:
        `path`, or None when there are no weights and nothing was written.
    """
    from matplotlib.ticker import MaxNLocator

    groups, rounds, means, peers = self_weights(source)
    if not len(rounds):
        return None
    figure, axes = new_figure((10.0, 5.6))
    for at, group in enumerate(groups):
        color, dashes, marker = (style[at % len(style)] for style in (COLORS, DASHES, MARKERS))
        axes.plot(
            rounds, means[at], color=color, ls=dashes, marker=marker, ms=5 if len(rounds) <= 40 else 0, lw=2,
            label=group.replace("$", r"\$"),
        )  # fmt: skip
    axes.axhline(1 / peers, color="#6B6B6B", lw=1.0, label="1/N, equal weights")
    highest = max(1.02 * float(np.nan_to_num(means).max()), 1.3 / peers)
    axes.set(xlabel="round", ylabel="mean self weight", ylim=(0, min(highest, 1.02)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    name = " on ".join(part for part in (strategy, dataset) if part)
    title = ", ".join(part for part in (name, f"{peers} client{'s' if peers != 1 else ''}") if part)
    return finish_figure(figure, axes, path, title, "weight that a client gives itself, mean over clients")


def _short(name: str) -> str:
    """A name without its middle when it is long: ids of one hospital differ at the end."""
    return name if len(name) <= _LONGEST else f"{name[:4]}…{name[5 - _LONGEST :]}"


def _step(count: int) -> int:
    """Which of `count` clients are named: every first, second, fifth, tenth and so on, at most `_LABELLED` of them."""
    step = 1
    while count > step * _LABELLED:
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return step


def _label(axes: Axes, weights: MixingWeights, outer: bool, lowest: bool) -> None:
    """Names of clients and peers, at most so many that they can be read."""
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9 if len(weights.peers) <= _LABELLED else 8)
    for names, axis, label in ((weights.clients, axes.yaxis, "client"), (weights.peers, axes.xaxis, "peer")):
        step = _step(len(names))
        shown = [_short(name) for name in names[::step]]
        turn = 90 if label == "peer" and len(shown) * max(map(len, shown)) > _FLAT else 0
        axis.set_ticks(range(0, len(names), step), shown, rotation=turn, parse_math=False)
        if outer if label == "client" else lowest:
            axis.set_label_text(label, fontsize=11)


def _number(axes: Axes, values: np.ndarray[tuple[int, int], np.dtype[np.float32]], highest: float) -> None:
    for row, column in np.ndindex(values.shape):
        value = float(values[row, column])
        ink = "black" if value > 0.6 * highest else "white"
        axes.text(
            column,
            row,
            f"{value:.2f}".lstrip("0") if value < 1 else "1",
            ha="center",
            va="center",
            color=ink,
            fontsize=7,
        )
