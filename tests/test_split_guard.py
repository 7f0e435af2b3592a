"""No method sees the test split: planted ones are refused, and other test labels change nothing but test scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import own_readers
import pytest
import torch
from conftest import Outcome
from presets import network_settings
from safetensors.torch import load_file

from fedham_flwr import client_app
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.records import Row
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.federation.numpy_client import FlowerClient
from fedham_flwr.runners.cohort import CohortGrid
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.settings import Value, methods
from fedham_flwr.training.guard import method_view, rows_of

Federate = Callable[..., Outcome]
SENTENCE = (
    r"strategy=own_readers:READER reads .*the test split, which is scored by the framework only: a method learns "
)
TINY: dict[str, Value] = {"dataset": "own_readers:images", "model": "digits-cnn", "batch_size": 8, "evaluate_every": 1}
"""Two rounds of three clients."""
OF_A_COHORT = [
    (way, "cohort") for way in ("labels", "scores", "evaluates", "descends", "passes it on", "trains on all")
]
GRIDS = {"in-process": InProcessGrid, "cohort": CohortGrid}


def tiny(federate: Federate, strategy: str, permuted: bool = False, **given: Any) -> Outcome:
    """Two rounds of three clients, of which two train in a round."""
    chosen = {**TINY, **(network_settings(strategy) if strategy == "fedtp" else {}), **given}
    return federate(clients=3, strategy=strategy, fraction_train=0.7, **{"images.permuted": permuted, **chosen})


def split_rows(run: Outcome, test: bool) -> list[Row]:
    return sorted(row for row in run.rows if (row.split == "test") is test)


def learned(run: Outcome) -> dict[str, torch.Tensor]:
    """All tensors that a run has left: the server's, the models, and what the clients keep."""
    files = [run.path / "server.safetensors", *run.path.glob("model/*.safetensors"), *run.path.glob("clients/*/*")]
    files = [file for file in files if file.suffix == ".safetensors"]
    return {f"{file.relative_to(run.path)} {k}": v for file in files for k, v in load_file(file).items()}


def same(one: Outcome, other: Outcome) -> bool:
    """Whether everything but test scores is equal, bit for bit."""
    mine, theirs = learned(one), learned(other)
    assert mine.keys() == theirs.keys()
    assert len(mine) > 3
    equal = all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    return equal and split_rows(one, test=False) == split_rows(other, test=False)


# ---- planted methods -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "grid"), [*((way, "in-process") for way in own_readers.READS), *OF_A_COHORT])
def test_a_method_that_reads_the_test_split_is_refused(
    federate: Federate, monkeypatch: pytest.MonkeyPatch, way: str, grid: str
) -> None:
    monkeypatch.setattr(own_readers.Reader, "way", way)
    with pytest.raises(UserError, match=SENTENCE):
        tiny(federate, "own_readers:READER", grid=GRIDS[grid], num_server_rounds=1)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_what_a_method_may_read_it_reads_and_it_is_told_of_no_test_score(federate: Federate, grid: Any) -> None:
    own_readers.Polite.found.clear()
    run = tiny(federate, "own_readers:POLITE", grid=grid)
    assert own_readers.Polite.found == []
    assert split_rows(run, test=True)


def test_the_guard_copies_nothing() -> None:
    splits = {"train": torch.arange(100), "validation": torch.arange(100, 120), "test": torch.arange(120, 150)}
    data = ClientData(torch.zeros(9000, 28, 28, 1, dtype=torch.uint8), torch.zeros(9000).long(), splits, ("a",), "0")
    features, _ = rows_of(method_view(data, "fedavg"), "train")[:2]
    assert features is data.features


def test_a_guarded_tensor_says_what_it_is() -> None:
    splits = {"train": torch.arange(2), "validation": torch.arange(2, 3), "test": torch.arange(3, 5)}
    seen = method_view(ClientData(torch.zeros(5, 3), torch.arange(5), splits, ("a",), "0"), "fedavg")
    assert repr(seen.splits["test"]) == "<2 test samples>"
    assert repr(seen.labels) == "<torch.int64 [5], of which a method may read the rows of its splits>"
    assert (seen.shape, seen.target, seen.outputs, seen.kind) == ((2, 3), "class", 1, "table")
    with pytest.raises(UserError, match="wanted the rows of a split, as in self"):
        seen.labels.tolist()
    with pytest.raises(UserError, match="reads samples that are not of its client's training or validation split"):
        seen.labels[[0, 3]]
    assert seen.labels[[0, 2]].tolist() == [0, 2]
    assert seen.features[torch.tensor([True, False, True, False, False]), 0].tolist() == [0.0, 0.0]


# ---- no method learns from it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", methods())
def test_other_test_labels_change_nothing_but_test_scores(federate: Federate, strategy: str) -> None:
    run, permuted = tiny(federate, strategy, score_test="never"), tiny(federate, strategy, permuted=True)
    assert same(run, permuted)
    assert split_rows(permuted, test=True)
    assert not split_rows(run, test=True)


@pytest.mark.parametrize("strategy", ["fedper", "own_readers:LEAKS"])
def test_a_method_that_learned_from_the_test_split_would_be_found(
    federate: Federate, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    monkeypatch.setattr(client_app, "method_view", lambda data, _: data)
    run, permuted = tiny(federate, strategy), tiny(federate, strategy, permuted=True)
    assert same(run, permuted) is (strategy == "fedper")
    assert split_rows(run, test=True) != split_rows(permuted, test=True)


def test_with_never_other_test_labels_change_nothing_at_all(federate: Federate) -> None:
    runs = [tiny(federate, "fedper", permuted=given, score_test="never") for given in (False, True)]
    assert runs[0].summary["digest"] == runs[1].summary["digest"]
    facts = [json.loads((run.path / "model" / "1.json").read_text()) for run in runs]
    for each in facts:
        each["method"]["settings"].pop("images.permuted", None)
        each["model"].pop("sha256")  # a model file says its network in no fixed order
    assert facts[0] == facts[1]
    assert {score["split"] for score in facts[0]["scores"]} == {"validation"}


# ---- score-test ------------------------------------------------------------------------------------------------------

AT_THE_END: dict[str, dict[str, Any]] = {
    "fedper": {"grid": InProcessGrid},
    "novel": {"novel_clients": 1, "novel_steps": 3, "grid": InProcessGrid},
    "fedtransfer": {"strategy": "fedtransfer", "grid": CohortGrid},
    "crossed": {"cross_evaluation": True, "grid": CohortGrid},
}


@pytest.mark.parametrize("given", AT_THE_END.values(), ids=AT_THE_END)
def test_with_closing_the_test_split_is_scored_once_the_rounds_are_over(
    federate: Federate, given: dict[str, Any]
) -> None:
    given = {"strategy": "fedper", **given}
    run, closing = tiny(federate, **given), tiny(federate, **given, score_test="closing")
    assert same(run, closing)
    assert {row.round for row in split_rows(run, test=True)} == {1, 2, 3}
    assert split_rows(closing, test=True) == [row for row in split_rows(run, test=True) if row.round == 3]
    assert (run.path / "cross-sites.parquet").exists() is bool(given.get("cross_evaluation"))


@pytest.mark.parametrize(
    ("given", "samples"), [({}, [8, 8]), ({"score_test": "never"}, [6, 6]), ({"score_test": "closing"}, [6, 8])]
)
def test_flowers_evaluate_gives_the_loss_on_the_split_that_is_scored(
    federate: Federate, monkeypatch: pytest.MonkeyPatch, given: dict[str, Value], samples: list[int]
) -> None:
    told: dict[int, tuple[float, int, Any]] = {}
    whole = FlowerClient.evaluate

    def evaluate(self: FlowerClient, parameters: Any, config: Any) -> Any:
        told[self.half.job.download.round] = found = whole(self, parameters, config)
        return found

    monkeypatch.setattr(FlowerClient, "evaluate", evaluate)
    tiny(federate, "fedper", **given)
    assert [told[number][1] for number in (2, 3)] == samples
    for loss, n, scores in told.values():
        assert loss == scores[f"{'test' if n == 8 else 'validation'}/personal/before/loss"]
