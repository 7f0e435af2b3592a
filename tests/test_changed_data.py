"""Data that change: under a run that is continued, in the middle of one, and between the messages of one client."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedham_flwr.core.errors import UserError
from fedham_flwr.resume.checkpoints import newest
from fedham_flwr.simulation import Run, simulate

pytestmark = [
    pytest.mark.usefixtures("workplace"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # `datasets` leaves a CSV open
]

NATURAL: dict[str, Any] = {"feature_column": "age chol", "label_column": "label", "client_column": "hospital"}
SHORT: dict[str, Any] = {"evaluate_every": 99, "checkpoint_every": 1, "verbose": False}


def rows_of(hospital: str, count: int, seed: int) -> list[str]:
    """Lines of a hospital's patients, which no other has."""
    rng = np.random.default_rng([seed, *hospital.encode()])
    ages, chols = rng.normal(60, 10, count).round(3), rng.normal(200, 40, count).round(3)
    return [f"{hospital},{a},{c},{int(a + c / 4 > 110)}" for a, c in zip(ages, chols, strict=True)]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(["hospital,age,chol,label", *lines]) + "\n")
    return path


FIRST = [*rows_of("north", 40, 0), *rows_of("south", 30, 0), *rows_of("west", 20, 0)]
GROWN = [*FIRST, *rows_of("west", 60, 1)]  # west was the smallest and is the largest now


@pytest.fixture
def began(tmp_path: Path) -> Run:
    """A run of one round."""
    write(tmp_path / "sites.csv", FIRST)
    return simulate("fedper", dataset=tmp_path / "sites.csv", num_server_rounds=1, **NATURAL, **SHORT)


def states(run: Run) -> dict[str, dict[str, torch.Tensor]]:
    folder = newest(run.directory)[1] / "clients"
    return {file.stem: load_file(file) for file in folder.iterdir()}


def test_who_is_who_goes_by_name(began: Run) -> None:
    assert list(began.clients["client"]) == ["north", "south", "west"]
    assert set(began.rows["client"]) == set(began.models) == {"north", "south", "west"}
    assert set(states(began)) == {"north", "south", "west"}


def test_other_data_are_refused_in_one_sentence_that_says_what_changed(began: Run, tmp_path: Path) -> None:
    write(tmp_path / "sites.csv", GROWN)
    with pytest.raises(UserError) as told:
        simulate(resume=began.directory, num_server_rounds=2, verbose=False)
    assert str(told.value) == (
        f"resume={began.directory}: the data have changed since the run began: west has 80 samples and had 20. A run "
        "is continued with the data that it began with: put them back, start anew, or continue with "
        'changed-data="accept"'
    )
    changed = [line.replace("north,", "north,1") for line in FIRST]
    write(tmp_path / "sites.csv", changed)
    with pytest.raises(UserError, match="since the run began: values, in as many rows as before"):
        simulate(resume=began.directory, num_server_rounds=2, verbose=False)
    write(tmp_path / "sites.csv", FIRST)
    assert len(simulate(resume=began.directory, num_server_rounds=2, verbose=False).rounds) == 3


def test_accepted_data_leave_everybody_their_own_state(
    began: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, met = states(began), {}
    honest = Path.open

    from fedham_flwr.federation.client import RoundClient

    recall: Callable[..., Any] = RoundClient.recall

    def looked_at(self: RoundClient, names: Any) -> Any:
        found = recall(self, names)
        if self.job.download.round == 2:
            met.setdefault(self.job.client, (dict(found), self.job.data.counts()["train"]))
        return found

    monkeypatch.setattr(RoundClient, "recall", looked_at)
    assert honest
    write(tmp_path / "sites.csv", [*GROWN, *rows_of("east", 25, 0)])
    with caplog.at_level(logging.WARNING, "fedham_flwr"):
        run = simulate(resume=began.directory, num_server_rounds=2, changed_data="accept", verbose=False)
    assert 'new is east; west has 80 samples and had 20 (changed-data="accept")' in caplog.text
    assert set(met) == {"north", "south", "west", "east"}
    for client in ("north", "south", "west"):
        found, _ = met[client]
        assert found
        for name, tensor in found.items():
            assert torch.equal(tensor, kept[client][name]), f"{client} began with another's {name}"
    for name, tensor in met["east"][0].items():  # from the first tensors, and not from a state
        assert not any(torch.equal(tensor, kept[client][name]) for client in kept)
    assert met["west"][1] > met["north"][1]
    assert json.loads((run.directory / "data.json").read_text())["clients"] == 4
