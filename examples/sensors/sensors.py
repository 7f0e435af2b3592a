"""Windows of a sensor [n, channels, time]: a task, used as `task="sensors"`."""

from __future__ import annotations

from typing import Any

import numpy as np


def load_data(client: int, clients: int, seed: int, windows: int = 120) -> dict[str, Any]:
    """What a client's sensor has recorded; here it is made: three kinds of movement, at a pace of the client's own.

    Args:
        client: its number.
        clients: how many there are.
        seed: the run's.
        windows: how many; a setting, `-c 'load-data.windows=200'`.
    """
    draw = np.random.default_rng([seed, client])
    kinds = draw.integers(0, 3, windows)
    time = np.linspace(0, 2 * np.pi, 32)
    pace = 1 + 0.3 * client / clients
    waves = np.sin(pace * (1 + kinds[:, None]) * time + draw.uniform(0, 1, (windows, 1)))
    inputs = np.stack([waves, np.gradient(waves, axis=1)], axis=1) + draw.normal(0, 0.2, (windows, 2, 32))
    cut = windows * 2 // 3
    inputs = inputs.astype("float32")
    return {"train": (inputs[:cut], kinds[:cut]), "test": (inputs[cut:], kinds[cut:])}
