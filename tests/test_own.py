"""Models, data, partitioners and tasks of a user's: they run as the built-in ones do; faults are sentences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import own_objects
import pandas
import pytest
from own_objects import Wide, linear, slopes, tags, waves
from torch import nn

import fedham_flwr
from fedham_flwr import Run, Task, load_model, simulate
from fedham_flwr.core.errors import UserError
from fedham_flwr.reporting import journal
from fedham_flwr.settings import parse

Federate = Callable[..., Any]
SHORT: dict[str, Any] = {"num_server_rounds": 2, "verbose": False, "device": "cpu"}


pytestmark = pytest.mark.usefixtures("workplace")


def last(run: fedham_flwr.Run, metric: str) -> float:
    """The mean over clients of a metric on the test split after training, in the closing round."""
    rows = run.rows
    chosen = rows[(rows["split"] == "test") & (rows["metric"] == metric) & (rows["phase"] == "after")]
    return float(chosen[chosen["round"] == chosen["round"].max()]["value"].mean())


# ---- models ----------------------------------------------------------------------------------------------------------


def test_an_own_model_has_its_settings_and_layer_groups(federate: Federate) -> None:
    run = federate(strategy="fedper", model="own_objects:Wide", **{"wide.width": 5})
    assert run.state.keys() == {"body.1.weight", "body.1.bias"}
    assert tuple(run.state["body.1.weight"].shape) == (5, 64)
    model = load_model(run.path / "model" / "0.safetensors", trust_imports=True)
    assert isinstance(model, Wide)
    assert model.top.in_features == 5


def test_keyword_parameters_are_settings(federate: Federate) -> None:
    run = federate(strategy="fedavg", model="own_objects:plain", **{"plain.depth": 2})
    assert {name.partition(".")[0] for name in run.state} == {"1", "2", "3"}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"model": "nowhere:Net"}, r'model="nowhere:Net": there is no module nowhere \(looked for'),
        ({"model": "own_objects:Net"}, r'model="own_objects:Net": the module own_objects has no Net; it has '),
        ({"model": "own_objects:no_module"}, r"gives str, and wanted is a torch.nn.Module"),
        ({"model": "own_objects:wants_more"}, r"model: wants_more wants colour, which it is not called with"),
        (
            {"model": "own_objects:wrong_outputs"},
            r"gives \(2, 3\) for a batch of shape \(2, 1, 8, 8\), and wanted",
        ),
        (
            {"model": "torchvision:resnet19"},
            r"no classification network resnet19: did you mean torchvision:res",
        ),
        ({"model": "own_objects:MADE"}, r"own_objects:MADE\" is a Wide that is made already, and wanted is its class"),
        (
            {"model": "own_objects:boom"},
            r"made with shape=\(1, 8, 8\) and outputs=10: ValueError: a fault of mine \(own_objects.py, line \d",
        ),
        ({"model": "own_objects:Wide", "wide.depth": 3}, r"there is no key wide.depth"),
        ({"model": "own_objects:Wide", "wide.width": "3"}, r"wide.width='3': wanted a valid integer"),
        ({"strategy": "own_objects:NUMBER"}, r"is int, and wanted is a fedham_flwr.Method"),
        ({"partitioner": "own_objects:all_to_all"}, r"wanted numbers from 0 to 1796, each of them at most once"),
        (
            {"task": "own_objects:NUMBER"},
            r'task="own_objects:NUMBER" is int, and wanted is a module',
        ),
        ({"task": "own_objects:NOTHING"}, r'task="own_objects:NOTHING" brings nothing'),
        ({"task": "own_task", "model": "mlp"}, r'brings build_model, and model="mlp" says otherwise'),
    ],
)
def test_a_mistake_is_a_sentence_before_the_first_round(
    federate: Federate, tmp_path: Path, given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        federate(**{"strategy": "fedavg", **given})
    assert not list((tmp_path / "results").glob("*/*/rounds.jsonl"))


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("NO_SPLIT", r"no_split, the split of the method method, gives list, and wanted is a Split: split_groups"),
        (
            "NO_GROUP",
            r"no_such_group, .*: the model has no layer groups \['bn1'\]; it has .* \(own_objects.py, line",
        ),
        ("CARELESS", r"client 0's: train of Careless gives dict, and wanted is an Outcome: self.outcome\("),
        ("MISNAMED", r"client 0's: fit was to train 'head' only, which is no tensor of the model: wanted some of self"),
        ("BROKEN", r"client 0's: AttributeError: 'Broken' object has no attribute 'fitt' \(own_objects.py, line \d"),
    ],
)
def test_a_mistake_in_an_own_method_is_a_sentence(federate: Federate, method: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        federate(strategy=f"own_objects:{method}")


def test_a_mistake_has_no_stack_of_this_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no file or folder /nowhere/at-all") as raised:
        simulate("fedavg", dataset="/nowhere/at-all", clients=2)
    assert raised.value.__cause__ is None
    assert len(raised.traceback) == 2  # this line, and the last of simulate()
    assert raised.value._render_traceback_() == [f"UserError: {raised.value}"]
    assert "was measured" not in capsys.readouterr().out


# ---- data ------------------------------------------------------------------------------------------------------------


def test_sensor_windows_are_classified() -> None:
    run = simulate("fedavg", Task(own_objects.plain, waves), clients=3, num_server_rounds=5, verbose=False)
    assert last(run, "accuracy") > 0.9
    assert run.summary["num-clients"] == 3


def test_one_pair_is_split_and_classes_have_names() -> None:
    run = simulate(
        "fedper",
        dataset="own_objects:words",
        model=linear,
        clients=2,
        **{**SHORT, "num_server_rounds": 20, "learning_rate": 0.1},
    )
    assert last(run, "accuracy") > 0.9
    assert set(run.rows["split"]) == {"validation", "test"}


def test_values_are_regressed() -> None:
    run = simulate("fedavg", Task(linear, slopes), clients=3, num_server_rounds=15, verbose=False)
    assert last(run, "rmse") < 0.2
    assert "accuracy" not in set(run.rows["metric"])


def test_several_labels_are_learned() -> None:
    settings: dict[str, Any] = {"learning_rate": 0.2, "num_server_rounds": 10, "metrics": "f1 auroc"}
    run = simulate("fedper", Task(linear, tags), clients=2, verbose=False, **settings)
    assert last(run, "f1") > 0.9
    assert last(run, "auroc") > 0.95


FAULTS = {
    "lengths": "train has 4 inputs and 3 targets, wanted as many of both",
    "nan": "the inputs of train hold NaN or infinity, wanted numbers",
    "no test": r"client \d has the splits train, and lacks test",
    "split": "'dev' is no split; wanted train, validation, test",
    "shapes": r"samples differ in shape: train \(3,\), test \(2,\)",
    "empty": "train has no samples",
    "ints": r"the inputs of train are torch.int64 \[4, 3\], and wanted are floats of any shape",
    "": "all is NoneType, and wanted is a pair",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_data_that_are_none_are_a_sentence(fault: str) -> None:
    with pytest.raises(UserError, match=FAULTS[fault]):
        simulate("fedavg", dataset="own_objects:broken", model="own_objects:linear", broken={"fault": fault}, **SHORT)


def test_a_loader_that_fails_is_named_with_its_client() -> None:
    with pytest.raises(UserError, match=r'dataset="own_objects:failing" failed for client \d: OSError: no disk \d'):
        simulate("fedavg", dataset="own_objects:failing", **SHORT)


def test_an_own_partitioner_deals(federate: Federate) -> None:
    run = federate(strategy="local", partitioner="own_objects:by_turns", num_server_rounds=1)
    counts = [client["train"] for client in json.loads((run.path / "clients.json").read_text())]
    assert len(counts) == 4
    assert max(counts) - min(counts) <= 2  # 1797 digits by turns


# ---- tasks and the library -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["own_task", "own_objects:TASK"])
def test_a_module_or_an_object_is_a_task(name: str) -> None:
    run = simulate("fedavg", name, clients=2, **SHORT)
    assert run.summary["num-rounds"] == 2
    assert parse({"task": name}).dataset in ("own_task:load_data", "own_objects:TASK.load_data")


def test_closures_of_a_notebook_work_in_this_process_and_not_under_ray() -> None:
    width = 7

    def build(shape: tuple[int, ...], outputs: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, outputs))

    run = simulate("fedavg", clients=2, model=build, **SHORT)
    assert [model.get_submodule("1").out_features for model in run.models.values()] == [7, 7]
    with pytest.raises(UserError, match=r'the import path "fedham_flwr.task:GIVEN.n\d+.build", .* trust_imports=True'):
        _ = Run(run.directory).models["0"]
    with pytest.raises(UserError, match=r"model=build is defined in this script or notebook, where .* wanted"):
        simulate("fedavg", clients=2, model=build, backend="ray", **SHORT)


def test_a_run_is_an_object_with_frames_and_models(capsys: pytest.CaptureFixture[str]) -> None:
    run = simulate("pfedla", clients=3, samples_per_client=40, pfedla={"hidden_dim": 10}, **SHORT)
    assert capsys.readouterr().out == ""
    assert list(run.models) == ["0", "1", "2"]
    assert list(run.rounds["kind"]) == ["train", "train", "evaluate"]
    weights = run.mixing.groupby(["round", "client", "group"], observed=True)["weight"].sum()
    assert weights.round(5).eq(1).all()
    assert run.directory.is_relative_to(Path.cwd())
    again = simulate("pfedla", clients=3, samples_per_client=40, pfedla={"hidden_dim": 10}, **SHORT)
    assert again.summary["digest"] == run.summary["digest"]
    assert again.directory != run.directory


def test_clients_are_found_and_shown_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = np.arange(60)
    table = {"a": places % 7, "label": places % 3, "ward": np.where(places % 2, "north", "south")}
    pandas.DataFrame(table).to_parquet(tmp_path / "table.parquet")
    given = {"dataset": str(tmp_path / "table.parquet"), "feature_column": "a", "partitioner": "natural", **SHORT}
    drawn: list[set[str]] = []
    monkeypatch.setattr(journal, "client_bars", lambda rows, *_: drawn.append({row.client for row in rows}))
    run = simulate("fedper", clients=2, client_column="ward", **given)
    assert drawn == [{"north", "south"}]
    assert list(run.models) == ["north", "south"]
    with pytest.raises(KeyError, match="there is no model of client 'east': wanted one of north, south"):
        run.models["east"]


def test_no_clients_and_wrong_tasks_are_refused() -> None:
    with pytest.raises(UserError, match="clients=0 must be a whole number of at least 1"):
        simulate(clients=0)
    with pytest.raises(UserError, match="task is int, and wanted is a Task"):
        simulate(task=3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="there is no key momentun"):
        simulate(momentun=0.1)


def test_an_unknown_public_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = fedham_flwr.nothing
    assert all(hasattr(fedham_flwr, name) for name in fedham_flwr.__all__)
