"""Draw docs/images/who-listens.png: `python docs/images/make.py`.

Six clients in two groups, whose members have the same five digits, train by pFedLA. Drawn is how much each client's
model takes of each other's, layer by layer, after the last round. A client's weight of itself is on the diagonal.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fedham_flwr import simulate

GROUPS, CLIENTS, ROUNDS = 2, 6, 30
SLOWLY: dict[str, Any] = {"pfedla.hypernetwork-learning-rate": 1.0}
"""At the default rate, 6, each weight is 0 or 1 by then: see Results in docs/methods/pfedla.md."""
LAYERS = {"conv1": "first convolution", "fc1": "hidden layer", "fc2": "output layer"}


def deal(labels: Any, clients: int, seed: int) -> list[Any]:
    """Digits 0 to 4 to the first half of the clients, 5 to 9 to the second."""
    draw, parts = np.random.default_rng(seed), []
    for group in range(GROUPS):
        mine = draw.permutation(np.flatnonzero(labels // 5 == group))
        parts += [part[:120] for part in np.array_split(mine, clients // GROUPS)]
    return parts


def draw(file: Path) -> None:
    """Train, and draw the weights of the last round."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with tempfile.TemporaryDirectory() as folder:
        run = simulate(
            "pfedla", clients=CLIENTS, partitioner=deal, num_server_rounds=ROUNDS, results_dir=folder, verbose=False,
            learning_rate=0.05, **SLOWLY,
        )  # fmt: skip
        mixing, labels = run.mixing, [str(i) for i in range(CLIENTS)]
        clients = {str(c["client"]): c for c in json.loads((run.directory / "clients.json").read_text())}
    order = sorted(labels, key=lambda client: (sum(clients[client]["train-labels"][5:]) > 0, int(client)))
    last = mixing[mixing["round"] == ROUNDS]
    figure, all_axes = plt.subplots(1, len(LAYERS), figsize=(10, 3.6), sharey=True, layout="constrained")
    for axes, (group, title) in zip(all_axes, LAYERS.items(), strict=True):
        part = last[last["group"] == group].pivot_table(
            index="client", columns="peer", values="weight", observed=True, fill_value=0.0
        )
        values = part.loc[order, order].to_numpy()
        image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1)
        axes.set(title=title, xlabel="of whom", xticks=range(CLIENTS), yticks=range(CLIENTS))
        names = ["A1", "A2", "A3", "B1", "B2", "B3"]
        axes.set_xticklabels(names)
        axes.set_yticklabels(names)
        for row in range(CLIENTS):
            for column in range(CLIENTS):
                dark = values[row, column] > 0.55
                text = f"{values[row, column]:.2f}".lstrip("0")
                axes.text(column, row, text, ha="center", va="center", color="white" if dark else "#333", fontsize=8)
    all_axes[0].set_ylabel("who listens")
    figure.colorbar(image, ax=all_axes, label="weight in the client's model")
    figure.suptitle("Group A has the digits 0 to 4, group B has 5 to 9")
    figure.savefig(file, dpi=130)


if __name__ == "__main__":
    draw(Path(__file__).with_name("who-listens.png"))
