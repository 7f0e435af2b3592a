"""Trackers: TensorBoard's files read back, MLflow and W&B through stand-ins of their calls, and what goes wrong."""

from __future__ import annotations

import importlib.machinery
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message
from own_callbacks import Listener

from fedham_flwr import Run, simulate
from fedham_flwr.callbacks.protocol import RoundReport, Statistic
from fedham_flwr.callbacks.scalars import of_end, of_round
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.records import Failure, Row
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.settings import flatten, parse

SHORT: dict[str, Any] = {
    "clients": 3, "samples_per_client": 48, "batch_size": 24, "verbose": False, "device": "cpu", "model": "digits-cnn",
    "checkpoint_every": 2,
}  # fmt: skip
Go = Callable[..., Run]


@pytest.fixture
def go(workplace: None) -> Go:
    def run(rounds: int = 3, **given: Any) -> Run:
        return simulate("fedper", num_server_rounds=rounds, **{**SHORT, **given})

    return run


# ---- names -----------------------------------------------------------------------------------------------------------


def test_the_numbers_of_a_round_by_name() -> None:
    one = Statistic("test", "personal", "before", "accuracy", "member", 0.5, 0.625, 0.25, 0.125, 4)
    new = one._replace(population="novel", mean=0.75)
    rows = (Row(2, "ward 7", "test", "personal", "before", "accuracy", 0.5, 8),)
    failures = (Failure(2, "train", "3", "gone"),)
    report = RoundReport(2, ("train",), (one, new), rows, {"loss": 2.0}, 1.5, 10, 20, failures)
    found = of_round(report)
    assert found == {
        "test/personal/before/accuracy/mean": 0.5,
        "test/personal/before/accuracy/weighted-mean": 0.625,
        "test/personal/before/accuracy/std": 0.25,
        "test/personal/before/accuracy/worst-decile": 0.125,
        **{f"novel/test/personal/before/accuracy/{name}": value for name, value in zip(
            ("mean", "weighted-mean", "std", "worst-decile"), (0.75, 0.625, 0.25, 0.125), strict=True)},
        "selection/loss": 2.0,
        "round/seconds": 1.5, "round/bytes-up": 10, "round/bytes-down": 20, "round/failures": 1,
    }  # fmt: skip
    each = of_round(report, clients=True)
    assert each.items() - found.items() == {("clients/ward_207/test/personal/before/accuracy", 0.5)}


def test_the_numbers_of_a_whole_run() -> None:
    entry = {"model": "personal", "phase": "before", "split": "test", "population": "member", "metric": "accuracy"}
    numbers = {"mean": 0.5, "weighted-mean": 0.25, "std": 0.0, "worst-decile": 0.125}
    others = [{**entry, **numbers, key: "other"} for key in ("model", "phase", "split", "population")]
    summary: dict[str, Any] = {"final": [*others, {**entry, **numbers}]}
    assert of_end(summary) == {}  # it was ended before its time
    summary["exported"] = {"model": "personal", "phase": "before"}
    assert of_end(summary) == {f"final/accuracy/{name}": value for name, value in numbers.items()}


# ---- TensorBoard -----------------------------------------------------------------------------------------------------


def read_back(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value), as TensorBoard reads the files; those that were taken back are left out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    log.Reload()
    return {name: [(event.step, event.value) for event in log.Scalars(name)] for name in log.Tags()["scalars"]}


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Have the server interrupted in a round's training."""
    through = InProcessGrid.send_and_receive

    def send(self: InProcessGrid, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        messages = list(messages)
        if any((m.metadata.group_id, m.metadata.message_type) == (str(at), "train") for m in messages):
            raise KeyboardInterrupt
        return through(self, messages, timeout=timeout)

    monkeypatch.setattr(InProcessGrid, "send_and_receive", send)


def test_tensorboard_holds_the_numbers_of_the_run(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Listener()
    whole = go(5, tracker="tensorboard", callbacks=[heard], tracking={"log_clients": True})
    found = read_back(whole.directory / "tensorboard")
    final = {name for name in found if name.startswith("final/")}
    assert {name: found[name] for name in final} == {
        name: [(6, pytest.approx(value, rel=1e-6))] for name, value in of_end(whole.summary).items()
    }
    wanted: dict[str, list[tuple[int, float]]] = {}
    for report in heard.reports:
        for name, value in of_round(report, clients=True).items():
            wanted.setdefault(name, []).append((report.round, pytest.approx(value, rel=1e-6)))
    assert {name: points for name, points in found.items() if name not in final} == wanted
    assert [step for step, _ in found["test/personal/before/accuracy/mean"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in found["clients/2/validation/personal/after/loss"]] == [1, 2, 3, 4, 5, 6]
    # one that is interrupted in round 4 goes on after round 2, and has each step once
    with monkeypatch.context() as patch:
        interrupt(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            go(5, tracker="tensorboard", tracking={"log_clients": True})
    left = max(whole.directory.parent.iterdir())
    assert [step for step, _ in read_back(left / "tensorboard")["round/seconds"]] == [1, 2, 3]
    simulate(resume=left, verbose=False)
    resumed = read_back(left / "tensorboard")
    assert without_time(resumed) == without_time(found)
    assert [step for step, _ in resumed["round/seconds"]] == [1, 2, 3, 4, 5, 6]
    assert len(list((left / "tensorboard").iterdir())) == 2


def test_a_round_in_which_another_callback_is_interrupted_is_in_the_log(go: Go) -> None:
    class Interrupted(Listener):
        def on_round(self, report: RoundReport) -> str | None:
            if report.round == 2 and not report.again:
                raise KeyboardInterrupt
            return None

    with pytest.raises(KeyboardInterrupt):
        go(3, tracker="tensorboard", callbacks=[Interrupted()], results_dir="interrupted")
    (left,) = Path("interrupted/fedper").iterdir()
    simulate(resume=left, verbose=False)
    assert [step for step, _ in read_back(left / "tensorboard")["round/seconds"]] == [1, 2, 3, 4]


def without_time(found: dict[str, Any]) -> dict[str, Any]:
    return {name: points for name, points in found.items() if name != "round/seconds"}


def test_tensorboard_has_the_settings_and_a_run_that_gets_it_late_all_rounds(go: Go) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    run = go(2)
    assert not (run.directory / "tensorboard").exists()
    simulate(resume=run.directory, num_server_rounds=3, tracker="tensorboard", verbose=False)
    log = EventAccumulator(str(run.directory / "tensorboard"))
    log.Reload()
    assert [event.step for event in log.Scalars("selection/accuracy")] == [1, 2, 3, 4]
    said = log.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(said).session_start_info.hparams
    assert settings["samples-per-client"].number_value == 48
    assert settings["strategy"].string_value == "fedper"
    assert set(settings) == set(flatten(parse({})))


# ---- the other two ---------------------------------------------------------------------------------------------------


def module(name: str, monkeypatch: pytest.MonkeyPatch, **content: Any) -> ModuleType:
    """A stand-in for a package."""
    made = ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(made).update(content)
    monkeypatch.setitem(sys.modules, name, made)
    return made


class Server:
    """What MLflow's calls have come to; with their parameters as MLflow 2.10 to 3.17 has them."""

    def __init__(self) -> None:
        self.uri: str | None = ""
        self.calls: list[tuple[str, Any]] = []
        self.experiments: dict[str, str] = {}
        self.batches: list[dict[str, Any]] = []
        self.broken_at = 0

    def client(self, tracking_uri: str | None = None, registry_uri: str | None = None) -> Server:
        self.uri = tracking_uri
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        found = self.experiments.get(name)
        return SimpleNamespace(experiment_id=found) if found else None

    def create_experiment(self, name: str, artifact_location: str | None = None, tags: Any = None) -> str:
        return self.experiments.setdefault(name, f"e{len(self.experiments)}")

    def create_run(
        self, experiment_id: str, start_time: int | None = None, tags: Any = None, run_name: str | None = None
    ) -> Any:
        self.calls.append(("create", (experiment_id, run_name)))
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def update_run(self, run_id: str, status: str | None = None, name: str | None = None) -> None:
        self.calls.append(("update", (run_id, status)))

    def log_batch(
        self, run_id: str, metrics: Sequence[Any] = (), params: Sequence[Any] = (), tags: Sequence[Any] = (),
        synchronous: bool | None = None,
    ) -> None:  # fmt: skip
        assert run_id == "r1"
        assert len(params) <= 100
        assert len(metrics) <= 1000
        if self.broken_at and any(metric.step == self.broken_at for metric in metrics):
            raise ConnectionError("the server is away\nfor tea")
        self.batches.append({"metrics": metrics, "params": params})

    def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
        self.calls.append(("end", status))

    def points(self, name: str) -> list[tuple[int, float]]:
        return [(m.step, m.value) for batch in self.batches for m in batch["metrics"] if m.key == name]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    its = Server()

    def metric(key: str, value: float, timestamp: int, step: int) -> Any:
        assert isinstance(value, float)
        assert timestamp > 1_700_000_000_000
        return SimpleNamespace(key=key, value=value, timestamp=timestamp, step=step)

    def param(key: str, value: str) -> Any:
        assert isinstance(value, str)
        return SimpleNamespace(key=key, value=value)

    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    module("mlflow", monkeypatch, MlflowClient=its.client, entities=SimpleNamespace(Metric=metric, Param=param))
    return its


def test_mlflow_gets_settings_rounds_and_the_end(go: Go, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Listener()
    given = {"tracker": "mlflow", "tracking": {"project": "wards", "mlflow_uri": "http://there"}}
    run = go(3, callbacks=[heard], **given)
    assert server.uri == "http://there"
    assert server.calls == [("create", ("e0", f"fedper {run.directory.name}")), ("end", "FINISHED")]
    params = {one.key: one.value for batch in server.batches for one in batch["params"]}
    assert params == {key: str(value) for key, value in heard.runs[0].settings.items()}
    assert server.points("selection/accuracy") == [(report.round, report.value) for report in heard.reports]
    (final,) = server.points("final/accuracy/mean")
    assert final == (4, of_end(run.summary)["final/accuracy/mean"])
    assert json.loads((run.directory / "tracking.json").read_text()) == {"mlflow": "r1"}
    # continued, it goes on with what comes after
    server.calls.clear(), server.batches.clear()
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            simulate(resume=run.directory, num_server_rounds=6, verbose=False)
    assert server.calls == [("update", ("r1", "RUNNING")), ("end", "KILLED")]
    assert [step for step, _ in server.points("round/seconds")] == [4]
    assert not any(batch["params"] for batch in server.batches)
    monkeypatch.setattr(Listener, "on_round", lambda *_: (_ for _ in ()).throw(ValueError("mine")))
    with pytest.raises(UserError, match="mine"):
        simulate(resume=run.directory, num_server_rounds=6, verbose=False, callbacks=[Listener()])
    assert server.calls[-1] == ("end", "FAILED")


class Room:
    """A run of W&B's, with the parameters of wandb 0.31."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.history, self.metrics = given, list[dict[str, Any]](), list[Any]()
        self.summary: dict[str, Any] = {}
        self.ended: int | None = None

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        self.history.append(data)

    def finish(self, exit_code: int | None = None) -> None:
        self.ended = exit_code


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> list[Room]:
    found: list[Room] = []

    def init(
        *, project: str, name: str, config: dict[str, Any], mode: str, resume: str | None, reinit: str, **paths: str
    ) -> Room:  # fmt: skip
        assert paths.keys() == {"id", "dir"}
        given = {"project": project, "name": name, "config": config, "mode": mode, "resume": resume, "reinit": reinit}
        found.append(Room(given | paths))
        return found[-1]

    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    module("wandb", monkeypatch, init=init)
    return found


def test_wandb_is_offline_unless_it_is_told_otherwise(go: Go, rooms: list[Room]) -> None:
    heard = Listener()
    run = go(2, tracker="wandb tensorboard", callbacks=[heard], tracking={"run_name": "first"})
    (room,) = rooms
    assert room.given["mode"] == "offline"
    assert (room.given["project"], room.given["name"], room.given["resume"]) == ("fedham", "first", None)
    assert (room.given["dir"], room.given["reinit"]) == (str(run.directory), "create_new")
    assert room.given["config"] == dict(heard.runs[0].settings)
    assert room.metrics == [("round", None), ("*", "round")]
    assert room.history == [{**of_round(report), "round": report.round} for report in heard.reports]
    assert (room.summary, room.ended) == (of_end(run.summary), 0)
    assert (run.directory / "tensorboard").is_dir()
    simulate(resume=run.directory, num_server_rounds=3, verbose=False, tracking={"wandb_mode": "online"})
    again = rooms[1]
    assert again.given["mode"] == "online"
    assert (again.given["id"], again.given["resume"]) == (room.given["id"], "allow")
    assert [entry["round"] for entry in again.history] == [3, 4]


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_one_that_fails_is_warned_of_once_and_the_run_goes_on(
    go: Go, server: Server, rooms: list[Room], caplog: pytest.LogCaptureFixture
) -> None:
    server.broken_at = 2
    plain = go(4)
    run = go(4, tracker="mlflow wandb")
    warned = [record.getMessage() for record in caplog.records if "tracker" in record.getMessage()]
    assert len(warned) == 1
    assert warned[0].startswith(
        "the tracker mlflow failed in round 2 and is told nothing more of this run, which goes on: ConnectionError: "
        "the server is away (test_trackers.py, line "
    )
    assert run.summary["digest"] == plain.summary["digest"]
    assert [step for step, _ in server.points("round/seconds")] == [1]
    assert server.calls[-1] == ("end", "FAILED")
    assert [entry["round"] for entry in rooms[0].history] == [1, 2, 3, 4, 5]


def test_one_that_fails_at_the_end_is_warned_of(go: Go, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.set_terminated = lambda *_, **__: (_ for _ in ()).throw(TimeoutError("too late"))  # type: ignore[method-assign]
    assert go(1, tracker="mlflow").summary["num-rounds"] == 1
    assert "the tracker mlflow failed at the end of the run: TimeoutError: too late" in caplog.text


def test_one_that_cannot_begin_is_a_sentence(
    go: Go, server: Server, rooms: list[Room], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server, "create_run", lambda *_, **__: (_ for _ in ()).throw(OSError("no route")))
    with pytest.raises(UserError, match=r'^tracker="mlflow" cannot begin: OSError: no route \(test_trackers.py, line'):
        go(1, tracker="wandb mlflow")
    assert rooms[0].ended == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow", "wandb"])
def test_a_package_that_is_not_there_is_refused_before_anything_starts(
    go: Go, tracker: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == tracker else object())
    with pytest.raises(
        UserError,
        match=rf'^tracker="{tracker}" needs the package {tracker}: pip install \'fedham-flwr\[{tracker}\]\'$',
    ):
        go(1, tracker=tracker, backend="ray")
    assert not (tmp_path / "results").exists()


def test_a_name_that_does_not_exist_is_refused() -> None:
    for given, said in (("tensorbord", "wanted some of 'tensorboard', 'mlflow', 'wandb'"), ("wandb wandb", "twice")):
        with pytest.raises(UserError, match=rf"^settings: tracker='{given}'.*{said}"):
            parse({"tracker": given})
    with pytest.raises(UserError, match=r"tracking.wandb-mode='on': wanted 'offline' or 'online'"):
        parse({"tracking.wandb-mode": "on"})
