"""How much clients listen to their own group and to others, where groups are known: numbers and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedham_flwr.reporting.figures import new_figure, write_figure
from fedham_flwr.reporting.mixing_plots import COLORS, DASHES, MARKERS
from fedham_flwr.reporting.mixing_weights import clients_of, read_weights

if TYPE_CHECKING:
    import pyarrow

Array = np.ndarray[Any, Any]
MOST = 200
"""Clients of a run whose weights are all read at once."""
TITLES = ("to itself", "to the rest of its group", "to other groups")


class GroupWeights(NamedTuple):
    """Where the weights of clients go, on average over the clients."""

    layers: tuple[str, ...]  # L layer groups
    rounds: Array  # int64 [R]
    means: Array  # float64 [3, L, R]: to itself, to the rest of its group, to other groups; NaN where a round has none
    equal: tuple[float, ...]  # what these three are with equal weights


def group_weights(table: pyarrow.Table, group_of: Mapping[str, str]) -> GroupWeights:
    """The means of the clients' weights.

    Args:
        table: as `mixing_weights.read_weights` gives it; not empty.
        group_of: client -> its group.
    """
    codes = {name: table[name].combine_chunks() for name in ("client", "peer", "group")}
    words = {name: column.dictionary.to_pylist() for name, column in codes.items()}
    at = {name: column.indices.to_numpy(zero_copy_only=False) for name, column in codes.items()}
    same_name = np.array([[client == peer for peer in words["peer"]] for client in words["client"]])
    groups = [[group_of[name] for name in words[key]] for key in ("client", "peer")]
    same_group = np.array(groups[0])[:, None] == np.array(groups[1])[None, :]
    kinds = np.where(same_name, 0, np.where(same_group, 1, 2))
    rounds, turn = np.unique(table["round"].to_numpy(), return_inverse=True)
    shape = (3, len(words["group"]), len(rounds))
    sums, kind = np.zeros(shape), kinds[at["client"], at["peer"]]
    np.add.at(sums, (kind, at["group"], turn), table["weight"].to_numpy().astype(np.float64))
    clients = np.zeros(shape[1:])  # each has a row for itself, whatever its weight
    np.add.at(clients, (at["group"][kind == 0], turn[kind == 0]), 1.0)
    there = np.array([[np.mean(row == which) for row in kinds] for which in range(3)]).mean(1)
    means = np.divide(sums, clients, out=np.full(shape, np.nan), where=clients > 0)
    return GroupWeights(tuple(words["group"]), rounds, means, tuple(there.tolist()))


def group_picture(run: Path, groups: int, strategy: str, dataset: str) -> Path | None:
    """Draw `group-weights.png` of a run whose clients are of groups by their numbers, in its directory.

    Args:
        run: the directory.
        groups: G; client k is of group k mod G.
        strategy: for the title.
        dataset: for the title.

    Returns:
        The PNG; None where there are no groups or no weights, clients have names, or there are more than `MOST`.
    """
    names = clients_of(run) if groups > 1 else ()
    if not names or len(names) > MOST or not all(name.isdecimal() for name in names):
        return None
    table = read_weights(run)
    known = {*names, *table["peer"].unique().to_pylist()}
    weights = group_weights(table, {name: str(int(name) % groups) for name in known})
    return group_weight_curves(weights, run / "group-weights.png", strategy, dataset)


def group_weight_curves(weights: GroupWeights, path: Path, strategy: str = "", dataset: str = "") -> Path:
    """Draw the means as a PNG: three panels, a line for each layer group over the rounds.

    Args:
        weights: the means.
        path: the PNG to write.
        strategy: for the title.
        dataset: for the title.
    """
    from matplotlib.ticker import MaxNLocator

    figure, first = new_figure((13.0, 4.8))
    first.remove()
    panels = figure.subplots(1, 3, sharey=True)
    for axes, title, means, equal in zip(panels, TITLES, weights.means, weights.equal, strict=True):
        for place, layer in enumerate(weights.layers):
            color, dashes, marker = (style[place % len(style)] for style in (COLORS, DASHES, MARKERS))
            axes.plot(
                weights.rounds, means[place], color=color, ls=dashes, marker=marker, lw=2,
                ms=5 if len(weights.rounds) <= 40 else 0, label=layer.replace("$", r"\$"),
            )  # fmt: skip
        axes.axhline(equal, color="#6B6B6B", lw=1.0, label="equal weights")
        axes.set(xlabel="round", ylim=(0, 1.02))
        axes.set_title(title, fontsize=11)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panels[0].set_ylabel("weight, mean over clients")
    panels[-1].legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    name = " on ".join(part for part in (strategy, dataset) if part)
    return write_figure(figure, path, ", ".join(part for part in (name, "whom clients listen to") if part))
