"""`simulate()` as it is called in notebooks and scripts: cells that run again, event loops, threads, and mistakes."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedham_flwr
from fedham_flwr import Task, simulate, task
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import load_object
from fedham_flwr.task import given_path, is_of_this_process

SHORT: dict[str, Any] = {
    "clients": 2, "num_server_rounds": 1, "samples_per_client": 40, "verbose": False, "device": "cpu",
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("workplace")


def cell(width: int) -> Any:
    """What a notebook's cell defines each time that it runs."""

    def build(shape: tuple[int, ...], outputs: int, width: int = width) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), width), nn.Linear(width, outputs))

    return build


def constant(value: float) -> Any:
    def load(client: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(20, 3), torch.full((20,), value)

    return load


def linear(shape: tuple[int, ...], outputs: int) -> nn.Module:
    return nn.Linear(shape[0], outputs)


# ---- objects without an import path ----------------------------------------------------------------------------------


def test_what_a_cell_defines_anew_is_another_object() -> None:
    first, second = cell(7), cell(9)
    paths = [given_path(each) for each in (first, second, first)]
    assert paths[0] == paths[2] != paths[1]
    assert [load_object("model", path) for path in paths] == [first, second, first]
    assert all(is_of_this_process(path) for path in paths)
    assert given_path(Task) == "fedham_flwr.task:Task"
    assert not is_of_this_process(given_path(nn.Linear))


def test_a_path_of_another_process_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"^an object was defined in a script or notebook, in another process: wanted"):
        load_object("model", "fedham_flwr.task:GIVEN.n999.build")
    assert not hasattr(task.GIVEN, "__wrapped__")


def test_a_cell_that_runs_again_with_another_network_and_data_trains_those() -> None:
    widths = [simulate("fedavg", model=cell(width), **SHORT).models["0"].get_submodule("1") for width in (7, 9)]
    assert [width.out_features for width in widths] == [7, 9]
    errors = []
    for value in (1.0, 5.0):
        rows = simulate("fedavg", dataset=constant(value), model=linear, learning_rate=1e-6, **SHORT).rows
        errors.append(rows[rows["metric"] == "rmse"]["value"].mean())
    assert abs(errors[1] - errors[0] - 4) < 0.01  # all inputs are zero: nothing but the targets differs


def test_lambdas_given_side_by_side_are_not_confused() -> None:
    run = simulate(
        "fedavg",
        dataset=lambda client: (torch.zeros(20, 3), torch.ones(20)),
        model=lambda shape, outputs: nn.Linear(shape[0], outputs),
        loss=lambda outputs, targets: (outputs - targets).abs().mean(),
        metrics=["mae", lambda outputs, targets: (outputs - targets).mean()],
        **SHORT,
    )
    assert {"mae", "metrics"} <= set(run.rows["metric"])


# ---- where it is called from -----------------------------------------------------------------------------------------


def test_it_gives_the_same_in_an_event_loop_in_a_thread_and_with_numbers_of_numpy() -> None:
    async def in_a_loop() -> str:
        return str(simulate("fedavg", **SHORT).summary["digest"])

    found = [asyncio.run(in_a_loop())]
    thread = threading.Thread(target=lambda: found.append(simulate("fedavg", **SHORT).summary["digest"]))
    thread.start()
    thread.join()
    run = simulate("fedavg", learning_rate=np.float64(0.02), batch_size=np.int64(10), **SHORT)
    assert found == [run.summary["digest"]] * 2
    assert run.directory.parent == Path.cwd() / "results" / "fedavg"


def test_an_own_method_has_a_folder_by_its_name() -> None:
    from fedham_flwr.algorithms.fedper import FedPerSettings, split
    from fedham_flwr.registry import half, method

    built = method("fedper")
    mine = fedham_flwr.Method(half(built.strategy), half(built.client), split, FedPerSettings, name="mine")
    run = simulate(mine, mine={"personal_layers": 2}, **SHORT)
    assert run.directory.parent.name == "mine"
    assert run.summary["strategy"].endswith(".mine")


def test_a_run_goes_on_with_its_own_settings() -> None:
    first = simulate("fedavg", batch_size=8, **SHORT)
    more = simulate("fedavg", clients=2, resume=first.directory, num_server_rounds=2, verbose=False)
    assert more.directory == first.directory
    assert list(more.rounds["kind"]) == ["train", "train", "evaluate"]
    whole = simulate("fedavg", batch_size=8, **{**SHORT, "num_server_rounds": 2})
    assert whole.summary["digest"] == more.summary["digest"]


def test_settings_of_another_method_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"than the run's: fedham\.meta-steps=3 \(strategy is fedavg"):
        simulate("fedavg", fedham={"meta_steps": 3}, **SHORT)
    simulate("fedper", fedper={"personal_layers": 2}, **SHORT)
    assert caplog.messages == []


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"backend": "rya"}, "backend='rya': wanted one of 'ray', 'cohort', 'in-process'"),
        ({"clients": "3"}, "clients='3' must be a whole number of at least 1"),
        ({"clients": 0}, "clients=0 must be a whole number of at least 1"),
        ({"clients": True}, "clients=True must be a whole number of at least 1"),
        ({"seed": [1]}, "settings: seed=[1]: wanted a truth value, a number or a text"),
        ({"model": nn.Linear(2, 3)}, "model is a Linear that is made already, and wanted is its class or a function"),
        ({"loss": 3}, "loss is int, and wanted is a name, an import path or an object"),
        ({"metrics": ["accuracy", 3]}, "metrics is int, and wanted is a name, an import path or an object"),
        ({"task": Task(), "momentun": 0.1}, "settings: there is no key momentun (given 0.1): did you mean momentum?"),
        (
            {"task": Task(build_model=linear), "model": "mlp"},
            "model is given, and the task brings it too: wanted one of them",
        ),
        (
            {"backend": "ray", "metrics": ["accuracy", lambda outputs, targets: 0.0]},
            "metrics=metrics is defined in this script or notebook, where the workers of backend=",
        ),
        ({"num_clients": 3}, "settings: there is no key num-clients (given 3): the number of clients is --num-superno"),
    ],
)
def test_a_mistake_is_a_sentence_and_leaves_no_run(tmp_path: Path, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        simulate(**{**SHORT, **given})
    assert str(raised.value).startswith(sentence)
    assert not (tmp_path / "results").exists()
