"""What a run says to who does something for the first time: hints in errors, and what the result of a run offers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_objects import linear
from torch import Tensor

from fedham_flwr import Run, simulate
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import load_object
from fedham_flwr.task import named

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


def test_a_run_is_found_by_a_text_too() -> None:
    run = simulate("fedavg", clients=2, samples_per_client=40, **SHORT)
    assert Run(str(run.directory)).summary == run.summary  # type: ignore[arg-type]
    assert list(Run(str(run.directory)).clients["client"]) == ["0", "1"]  # type: ignore[arg-type]


# ---- objects of a script ---------------------------------------------------------------------------------------------


def test_an_object_of_a_script_is_called_by_its_name_in_errors() -> None:
    def loaded(client: int) -> None:
        return None

    with pytest.raises(UserError, match=r'^dataset="loaded": all is NoneType, and wanted is a pair'):
        simulate("fedavg", dataset=loaded, model=linear, clients=2, **SHORT)
    assert named("fedham_flwr.task:GIVEN.n12.net and fedham_flwr.task:Task") == "net and fedham_flwr.task:Task"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("clasify", "did you mean classify[?]$"), ("zzz", "it has classify, Another$")],
)
def test_a_misspelt_object_is_asked_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, sentence: str
) -> None:
    (tmp_path / "mine_misspelt.py").write_text("import re\n\ndef classify(): ...\n\nclass Another: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=rf"the module mine_misspelt has no {name}; {sentence}"):
        load_object("model", f"mine_misspelt:{name}")
