"""Data that change: under a run that is continued, in the middle of one, and between the messages of one client."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.clients import open_partitions
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.messages import Profile
from fedham_flwr.reporting.journal import Journal
from fedham_flwr.resume import changed_data
from fedham_flwr.resume.changed_data import pin_of_all
from fedham_flwr.resume.checkpoints import newest
from fedham_flwr.settings import parse
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
    kept = states(began)
    met: dict[str, tuple[dict[str, torch.Tensor], int]] = {}
    recall: Callable[..., Any] = RoundClient.recall

    def looked_at(self: RoundClient, names: Any) -> Any:
        found = recall(self, names)
        if self.job.download.round == 2:
            met.setdefault(self.job.client, (dict(found), self.job.data.counts()["train"]))
        return found

    monkeypatch.setattr(RoundClient, "recall", looked_at)
    write(tmp_path / "sites.csv", [*GROWN, *rows_of("east", 25, 0)])
    run = simulate(resume=began.directory, num_server_rounds=2, changed_data="accept", verbose=False)
    assert 'new is east; west has 80 samples and had 20 (changed-data="accept")' in caplog.text
    assert set(met) == {"north", "south", "west", "east"}
    for client in ("north", "south", "west"):
        assert met[client][0]
        for name, tensor in met[client][0].items():
            assert torch.equal(tensor, kept[client][name]), f"{client} began with another's {name}"
    for name, tensor in met["east"][0].items():  # from the first tensors, and not from a state
        assert not any(torch.equal(tensor, kept[client][name]) for client in kept)
    assert met["west"][1] > met["north"][1]  # the order of sizes is another
    told = json.loads((run.directory / "data.json").read_text())
    assert (told["clients"], told["clients-there"]) == (4, 4)


def test_rows_dealt_by_draw_are_refused_even_where_changes_are_accepted(tmp_path: Path) -> None:
    write(tmp_path / "sites.csv", FIRST)
    given = {"feature_column": "age chol", "label_column": "label", "partitioner": "iid"}
    run = simulate("local", dataset=tmp_path / "sites.csv", num_server_rounds=1, clients=2, **given, **SHORT)
    write(tmp_path / "sites.csv", FIRST[1:])
    with pytest.raises(
        UserError, match=r'changed-data="accept" is for clients that have names, and partitioner="iid" d'
    ):
        simulate(resume=run.directory, num_server_rounds=2, changed_data="accept", verbose=False)


@pytest.mark.parametrize("backend", ["in-process", "cohort"])
def test_a_run_keeps_the_data_that_it_began_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, backend: Any
) -> None:
    given = {"dataset": write(tmp_path / "sites.csv", FIRST), "backend": backend, **NATURAL, **SHORT}
    calm, record = simulate("fedper", num_server_rounds=1, **given), Journal.record

    def grow(self: Journal, *given: Any) -> None:
        record(self, *given)
        write(tmp_path / "sites.csv", [*GROWN, *rows_of("west", 10 * given[0].round, 2)])

    monkeypatch.setattr(Journal, "record", grow)
    monkeypatch.setattr(changed_data, "LEAST", 0.0)
    monkeypatch.setattr(changed_data, "SHARE", 0.0)
    run = simulate("fedper", num_server_rounds=1, **given)
    assert run.summary["digest"] == calm.summary["digest"]
    assert [message for message in caplog.messages if "have changed" in message] == [
        f"the data at {given['dataset']} have changed since the run began, which goes on with what it began with; to "
        "learn from what is there now, start a new run"
    ]


def test_what_the_run_began_with_is_opened_whatever_there_is_now(tmp_path: Path) -> None:
    file = write(tmp_path / "sites.csv", FIRST)
    cache = tmp_path / "cache"
    settings = parse(
        {"dataset": str(file), "cache-dir": str(cache), **{key.replace("_", "-"): NATURAL[key] for key in NATURAL}}
    ).data()
    before = open_partitions(settings, 3)(1)
    write(file, GROWN)
    after, pinned = open_partitions(settings, 3)(1), open_partitions(settings, 3, before.pin)(1)
    assert (before.name, after.name, pinned.name) == ("south", "north", "south")
    assert after.pin != before.pin == pinned.pin
    assert pinned.counts() == before.counts()
    file.unlink()  # it is not looked at
    assert open_partitions(settings, 3, before.pin)(1).counts() == before.counts()
    shutil.rmtree(cache / before.pin.rpartition(" ")[2])
    write(file, GROWN)
    with pytest.raises(
        UserError, match=r"began with are no longer in the cache .*cache, and what lies at '.*sites\.csv' "
    ):
        open_partitions(settings, 3, before.pin)
    write(file, FIRST)
    assert open_partitions(settings, 3, before.pin)(1).counts() == before.counts()


def test_clients_that_have_opened_different_data_are_refused() -> None:
    profiles = [Profile(name, 2, (1,), 2, {}, (0, 0), data=data) for name, data in (("a", "x 1"), ("b", "y 2"))]
    assert pin_of_all(profiles[:1]) == "x 1"
    with pytest.raises(UserError, match="client a and client b have opened data of different content"):
        pin_of_all(profiles)
