"""What a run says to who does something for the first time: hints in errors, and what the result of a run offers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from own_objects import linear
from torch import Tensor

from fedham_flwr import simulate
from fedham_flwr.core.errors import UserError

pytestmark = pytest.mark.usefixtures("workplace")
SHORT: dict[str, Any] = {"num_server_rounds": 1, "verbose": False, "device": "cpu"}


# ---- training that diverges ------------------------------------------------------------------------------------------


def prices(client: int) -> tuple[Tensor, Tensor]:
    """Values of about 300,000, as houses have."""
    draw = torch.from_numpy(np.random.default_rng(client).normal(size=(60, 3)).astype("float32"))
    return 40 * draw, 3e5 + 1e5 * draw.sum(1)


@pytest.mark.parametrize("epochs", [1, 20])  # a model that is too long, and one that is not finite
@pytest.mark.parametrize("backend", ["in-process", "cohort"])
def test_values_that_are_not_scaled_are_named_where_training_diverges(backend: Any, epochs: int) -> None:
    with pytest.raises(UserError, match=r"training diverge.*lower learning-rate.*, or scale (the )?values that are "):
        simulate("fedavg", dataset=prices, model=linear, clients=2, backend=backend, local_epochs=epochs, **SHORT)


def test_classes_are_not_told_to_be_scaled() -> None:
    with pytest.raises(UserError, match=r"training diverged: .*lower learning-rate[^,]*$"):
        simulate("fedavg", clients=2, learning_rate=1e30, **SHORT)


# ---- the result ------------------------------------------------------------------------------------------------------


def test_the_clients_of_a_run_are_a_frame() -> None:
    run = simulate("fedavg", clients=3, samples_per_client=40, novel_clients=1, **SHORT)
    found = run.clients
    assert list(found["client"]) == ["0", "1", "2"]
    assert list(found["train"] + found["validation"] + found["test"]) == [40, 40, 40]
    assert [sum(counts) for counts in found["train-labels"]] == list(found["train"])
    assert list(found["shape"]) == [[1, 8, 8]] * 3
    assert found["novel"].sum() == 1
    assert set(found["classes"]) == {2}
