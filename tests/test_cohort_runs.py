"""Whole federations whose clients train as one program, against the same one client after the other."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome
from flwr.app import Message
from presets import network_settings, predicts, short_play

from fedham_flwr.client_app import make_client_app
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.runners import cohort as runner
from fedham_flwr.runners.cohort import CohortGrid
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.settings import Value, methods
from fedham_flwr.simulation import simulate
from fedham_flwr.state import files
from fedham_flwr.training.engine import cohort
from fedham_flwr.training.engine.model import StackedModel

Federate = Callable[..., Outcome]
FEW: dict[str, Value] = {"num_server_rounds": 1, "samples_per_client": 64, "batch_size": 10}
CASES: dict[str, dict[str, Value]] = {
    **{name: {"strategy": name} for name in methods()},
    "fedham-mediated": {"strategy": "fedham", "fedham.transport": "mediated", "num_server_rounds": 2},
    "fedham-candidates": {
        "strategy": "fedham", "fedham.transport": "mediated", "fedham.candidates": 2, "num_server_rounds": 2,
    },
    "amn-candidates": {"strategy": "amn", "amn.candidates": 2, "num_server_rounds": 2},
    "fedham-own": {"strategy": "fedham", "fedham.base-objective": "own", "weight_decay": 0.01},
    "fedtp-fedrod": {"strategy": "fedtp", "fedtp.head": "fedrod"},
    "fedtp-combined": {"strategy": "fedtp", "fedtp.head": "fedrod", "fedtp.knn": True},
    "fed_t_a": {"strategy": "fedtransfer", "fedtransfer.attention": "cbam"},
    "fed_t_a-plain": {"strategy": "fedtransfer", "fedtransfer.attention": "cbam", "fedtransfer.insertion": "plain"},
    "adam": {"strategy": "fedper", "optimizer": "adam", "learning_rate": 0.001},
    "augmented": {"strategy": "fedavg", "augment": True},
    "novel": {"strategy": "fedper", "novel_clients": 1},
    "f1": {"strategy": "fedper", "metrics": "accuracy f1"},
}  # fmt: skip


def together(federate: Federate, **given: Any) -> Outcome:
    return federate(grid=CohortGrid, **{**FEW, **given})


def model(run: Outcome) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in run.state.items() if tensor.is_floating_point()}


@pytest.mark.parametrize("given", CASES.values(), ids=CASES)
def test_a_round_is_that_of_one_client_after_the_other(federate: Federate, given: dict[str, Value]) -> None:
    given = {**FEW, **network_settings(str(given["strategy"])), **given}
    alone, cohort = federate(**given), together(federate, **given)
    keys = [row[:6] for row in alone.rows]
    assert keys == [row[:6] for row in cohort.rows]
    for mine, theirs in zip(cohort.rows, alone.rows, strict=True):
        assert mine.n == theirs.n
        assert mine.value == pytest.approx(theirs.value, rel=2e-4, abs=2e-4)
    theirs_model = model(alone)
    whole = max((tensor.norm().item() for tensor in theirs_model.values()), default=0.0)
    for name, tensor in model(cohort).items():
        assert (tensor - theirs_model[name]).norm() <= 1e-5 * max(whole, 1.0), name
    assert cohort.summary["bytes"] == alone.summary["bytes"]
    told = cohort.summary["engine"]
    assert told["network"] == "folded"
    assert told["together"] > 0
    if predicts(given):
        assert told["alone"].keys() == {"score"}
    else:
        assert told["alone"] == ({"score": 5, "fit": 1} if "novel_clients" in given else {})  # one client
    assert "engine" not in alone.summary


def test_texts_are_trained_together(federate: Federate, tmp_path: Path) -> None:
    given = {"strategy": "fedavg", "clients": 3, **short_play(tmp_path)}
    alone, cohort = federate(**FEW, **given), together(federate, **given)
    assert cohort.summary["engine"]["network"] == "folded"
    assert cohort.summary["engine"]["alone"] == {}
    assert cohort.summary["engine"]["together"] > 0
    assert [row[:6] for row in cohort.rows] == [row[:6] for row in alone.rows]
    for mine, theirs in zip(cohort.rows, alone.rows, strict=True):
        assert mine.value == pytest.approx(theirs.value, rel=2e-4, abs=2e-4)


def test_the_model_that_all_start_from_is_scored_as_one(federate: Federate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what clients have trained themselves is told apart."""
    stacked: list[int] = []
    honest = StackedModel.stack

    def stack(self: StackedModel, models: Sequence[Params]) -> Params:
        stacked.append(len(models))
        return honest(self, models)

    monkeypatch.setattr(StackedModel, "stack", stack)
    together(federate, strategy="fedavg", evaluate_every=1)
    # Validation and test of the common model, training, validation and test of their own; and so in the closing one,
    # in which the calibration of their own is measured for their cards.
    assert stacked == [*[1, 1, 4, 4, 4] * 2, 4]


def test_updates_are_clipped_and_noise_added_before_they_are_sent(federate: Federate) -> None:
    private: dict[str, Value] = {"strategy": "fedavg", "dp.epsilon": 50.0, "dp.clipping-norm": 0.01}
    honest, noisy = together(federate, strategy="fedavg"), together(federate, **private)
    assert noisy.summary["failures"] == 0
    assert noisy.summary["privacy"]
    far = {name: (tensor - model(honest)[name]).norm().item() for name, tensor in model(noisy).items()}
    assert min(far.values()) > 1e-4


def test_it_repeats_bit_for_bit(federate: Federate) -> None:
    runs = [together(federate, strategy="fedham", num_server_rounds=2) for _ in range(2)]
    assert runs[0].summary["digest"] == runs[1].summary["digest"]


def test_no_more_than_so_many_are_under_way_and_nothing_changes(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = together(federate, strategy="local", clients=5)
    monkeypatch.setattr(cohort, "AT_ONCE", 2)
    parts = together(federate, strategy="local", clients=5)
    for mine, theirs in zip(parts.rows, whole.rows, strict=True):
        assert mine.value == pytest.approx(theirs.value, abs=1e-4)


def test_a_client_that_fails_fails_alone(federate: Federate) -> None:
    def app(given: dict[str, Value]) -> Any:
        honest = make_client_app(given)

        def sometimes(message: Message, context: Any) -> Message:
            if message.metadata.message_type == "train" and context.node_config["partition-id"] == 2:
                raise RuntimeError("the disk is full")
            return honest(message, context)

        return sometimes

    run = together(federate, strategy="fedavg", client_app=app)
    (failure,) = run.records[0]["failures"]
    assert failure["client"] == "2"
    assert "the disk is full" in failure["error"]
    assert run.records[0]["replies"] == 3


def test_what_diverges_is_refused_as_ever(federate: Federate) -> None:
    with pytest.raises(UserError, match=r"0 of 4 clients gave a good reply to train") as error:
        together(federate, strategy="fedavg", learning_rate=1e30)
    with pytest.raises(UserError) as alone:
        federate(**FEW, strategy="fedavg", learning_rate=1e30)
    assert str(error.value) == str(alone.value)


def test_what_clients_keep_is_written_at_a_checkpoint_and_at_the_end(federate: Federate) -> None:
    run = together(federate, strategy="fedper", num_server_rounds=3, checkpoint_every=2)
    folders = sorted(folder.name for folder in (run.path / "checkpoints").iterdir())
    assert folders == ["round-00002", "round-00003"]
    kept = {file.name for file in (run.path / "clients").glob("*.safetensors")}
    assert kept == {f"{client}.safetensors" for client in range(4)}


def test_a_full_disk_leaves_a_checkpoint_out_and_the_run_goes_on(
    federate: Federate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    honest, written = files.write, []

    def write(file: Path, *given: Any, **named: Any) -> Any:
        written.append(file)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return honest(file, *given, **named)

    monkeypatch.setattr(files, "write", write)
    run = together(federate, strategy="fedper", num_server_rounds=2, checkpoint_every=1)
    assert [folder.name for folder in (run.path / "checkpoints").iterdir()] == ["round-00002"]
    assert "the checkpoint of round 1 is left out: the personal state of client" in caplog.text
    assert "cannot be written: No space left on device" in caplog.text
    assert "error" not in run.summary


@pytest.mark.parametrize("strategy", ["fedper", "fedham", "fedrep"])
def test_what_is_written_is_let_go_of_and_read_again(
    federate: Federate, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    given: dict[str, Value] = {"strategy": strategy, "num_server_rounds": 3, "checkpoint_every": 1}
    held = together(federate, **given)
    monkeypatch.setattr(runner, "MOST_HELD", 0)
    released = together(federate, **given)
    assert released.summary["digest"] == held.summary["digest"]
    assert held.grid._shared["held-bytes"] > 0  # type: ignore[attr-defined]
    assert released.grid._shared["held-bytes"] == 0  # type: ignore[attr-defined]


def test_a_state_that_was_let_go_of_and_is_damaged_is_a_sentence(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MOST_HELD", 0)
    honest = CohortGrid.write_states

    def damaged(self: CohortGrid) -> None:
        honest(self)
        file = self.contexts[next(iter(self.contexts))].state._home  # type: ignore[attr-defined]
        file.write_bytes(file.read_bytes()[:-1] + b"x")

    monkeypatch.setattr(CohortGrid, "write_states", damaged)
    run = together(federate, strategy="fedper", num_server_rounds=2, checkpoint_every=1)
    errors = [failure["error"] for record in run.records for failure in record["failures"]]
    assert len(errors) == 2
    assert all(error.startswith("the personal state of client 0 in ") for error in errors)


def test_without_checkpoints_nothing_is_written_for_clients(federate: Federate) -> None:
    run = together(federate, strategy="fedper", checkpoint_every=0)
    assert not (run.path / "clients").exists()


def test_simulate_takes_it_and_says_how_it_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = simulate(
        strategy="fedavg", clients=4, backend="cohort", results_dir=tmp_path, cache_dir=tmp_path / "cache",
        device="cpu", num_server_rounds=1, samples_per_client=64,
    )  # fmt: skip
    assert run.summary["engine"]["alone"] == {}
    said = capsys.readouterr().out
    assert f"cohort  {run.summary['engine']['together']:,} requests carried out together, 0 one at a time" in said
    assert json.loads((run.directory / "summary.json").read_text())["num-clients"] == 4


def test_a_network_that_cannot_be_stacked_runs_one_at_a_time_and_says_why(
    federate: Federate, capsys: pytest.CaptureFixture[str]
) -> None:
    run = together(federate, strategy="fedavg", model="own_objects:Deciding")
    alone = federate(**FEW, strategy="fedavg", model="own_objects:Deciding")
    assert run.summary["digest"] == alone.summary["digest"]
    assert run.summary["engine"]["together"] == 0
    assert "one at a time (it decides by a value of its input or weights" in capsys.readouterr().out


def test_the_two_grids_have_the_same_nodes() -> None:
    app = make_client_app({"strategy": "local"})
    one, other = InProcessGrid(app, 3, [5, 6, 7]), CohortGrid(app, 3, [5, 6, 7])
    assert {node: c.node_config for node, c in one.contexts.items()} == {
        node: c.node_config for node, c in other.contexts.items()
    }
