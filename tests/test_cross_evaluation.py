"""Cross-site evaluation: what it measures, to the bit; who takes part; and that nothing else of a run changes."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from safetensors import safe_open

from fedham_flwr import client_app as app_module
from fedham_flwr import load_model
from fedham_flwr.core.errors import UserError
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation import cross_client, cross_server, wire
from fedham_flwr.federation.messages import Download, Extras
from fedham_flwr.reporting import cross_sites
from fedham_flwr.reporting.cross_sites import lines, matrix, read_cross_sites, statistics
from fedham_flwr.runners.cohort import CohortGrid
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.settings import parse
from fedham_flwr.training.metrics import ACCURACY, known

Federate = Callable[..., Any]
SMALL: dict[str, Any] = {"samples_per_client": 60, "cross_evaluation": True, "partitioner": "dirichlet", "alpha": 0.5}


def closing(run: Any, client: str, metric: str) -> float:
    """A client's test score in the closing exchange, of the phase that its exported model says."""
    with safe_open(run.path / "model" / f"{client}.safetensors", "pt") as file:
        phase = file.metadata()["phase"]
    last = max(row.round for row in run.rows)
    wanted = (last, client, "test", phase, metric)
    (value,) = [r.value for r in run.rows if (r.round, r.client, r.split, r.phase, r.metric) == wanted]
    return value


@pytest.fixture(autouse=True)
def _no_heat_map(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "capsys" not in request.fixturenames:  # else the picture is looked for
        monkeypatch.setattr(cross_sites, "heat_map", lambda *_, **__: None)


@pytest.mark.parametrize(
    ("method", "grid"),
    [
        ("fedper", InProcessGrid),
        ("fedper", CohortGrid),
        ("pfedla", CohortGrid),
        ("fedham", InProcessGrid),
        ("ditto", CohortGrid),
    ],
)
def test_a_clients_own_model_on_its_own_data_gives_its_closing_score_to_the_bit(
    federate: Federate, method: str, grid: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_server, "GROUP_BYTES", 120_000)  # two models in a message
    run = federate(clients=3, strategy=method, grid=grid, num_server_rounds=1, **SMALL)
    table = read_cross_sites(run.path)
    assert len(table) == 3 * 3 * 2  # accuracy and loss of each pair
    own = table[table["model-of"] == table["data-of"]]
    assert [row.value for row in own.itertuples()] == [
        closing(run, str(client), str(metric)) for client, metric in zip(own["data-of"], own["metric"], strict=True)
    ]
    foreign = table[(table["model-of"] != table["data-of"]) & (table["metric"] == "loss")]
    if method in ("fedper", "ditto"):  # mixing begins with equal weights, which makes one model of all
        assert foreign["value"].nunique() == 6


def test_the_numbers_are_those_of_the_exported_models_and_nothing_else_changes(
    federate: Federate, settings: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    crossed = federate(clients=3, strategy="fedper", num_server_rounds=1, pictures=True, **SMALL)
    table = read_cross_sites(crossed.path)
    assert list(table.columns) == ["model-of", "data-of", "metric", "value", "n"]
    model, data = load_model(crossed.path / "model" / "2.safetensors"), None
    data = open_partition(parse(settings(strategy="fedper", num_server_rounds=1, **SMALL)).data(), 0, 3)
    index = data.splits["test"]
    with torch.no_grad():
        x = data.features[index].permute(0, 3, 1, 2).float() / 127.5 - 1
        right = (model(x).argmax(1) == data.labels[index]).float().mean().item()
    (row,) = table[
        (table["model-of"] == "2") & (table["data-of"] == "0") & (table["metric"] == "accuracy")
    ].itertuples()
    assert (row.value, row.n) == (pytest.approx(right, abs=1e-7), len(index))
    assert (crossed.path / "cross-sites.png").stat().st_size > 5_000
    told = crossed.summary["cross-sites"]
    values = matrix([cross_sites.CrossRow(*r) for r in table.itertuples(index=False)], "012", "accuracy")
    assert told["own"] == np.diag(values).mean()
    assert told["others"] == pytest.approx((values.sum() - np.trace(values)) / 6)
    assert told["clients"] == ["0", "1", "2"]
    assert f"of 3 clients with their own models: {told['own']:.3f}" in capsys.readouterr().out
    without = federate(clients=3, strategy="fedper", num_server_rounds=1, **{**SMALL, "cross_evaluation": False})
    assert without.summary["digest"] == crossed.summary["digest"]
    assert without.summary["final"] == crossed.summary["final"]
    assert not (without.path / "cross-sites.parquet").exists()
    (record,) = [record for record in crossed.records if record["kind"] == "cross-sites"]
    sizes = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert record["bytes-down"] == 3 * 3 * sizes  # three models to each of three clients
    assert record["failures"] == []


def test_of_more_clients_a_sample_is_drawn_and_it_is_said(federate: Federate, caplog: pytest.LogCaptureFixture) -> None:
    run = federate(clients=4, strategy="local", num_server_rounds=1, **SMALL, cross_evaluation_clients=2)
    table = read_cross_sites(run.path)
    assert len(set(table["model-of"])) == len(set(table["data-of"])) == 2
    assert run.summary["cross-sites"]["drawn"] is True
    assert "cross-site evaluation is of 2 clients drawn from 4 (cross-evaluation-clients)" in caplog.text


# ---- on nodes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def nodes(tmp_path: Path) -> list[dict[str, Any]]:
    """Node configs of four sites: two take part, one does not say so, and one has no state-dir."""
    draw = np.random.default_rng(0)
    configs: list[dict[str, Any]] = []
    for name in ("north", "south", "west", "east"):
        rows = pd.DataFrame(draw.normal(size=(40, 3)), columns=["a", "b", "c"])
        rows["sick"] = (rows["a"] + 0.5 * draw.normal(size=40) > 0).astype(int)
        rows.to_parquet(tmp_path / f"{name}.parquet")
        config = {"client-id": name, "data-path": str(tmp_path / f"{name}.parquet")}
        configs.append(config | {"state-dir": str(tmp_path / name), "cross-evaluation": name != "west"})
    del configs[3]["state-dir"]
    return configs


def test_only_nodes_that_say_so_take_part(
    federate: Federate, nodes: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Message] = []

    class Watched(InProcessGrid):
        def __init__(self, app: Any, clients: int) -> None:
            super().__init__(app, clients, node_configs=nodes)
            for context in self.contexts.values():  # a node of its own has no partition
                del context.node_config["partition-id"], context.node_config["num-partitions"]

        def _answer(self, message: Message) -> Message:
            reply = super()._answer(message)
            sent.append(reply)
            return reply

    given: dict[str, Any] = {"model": "mlp", "feature_column": "a b c", "label_column": "sick", "min_clients": 4}
    run = federate(clients=4, strategy="local", grid=Watched, num_server_rounds=1, cross_evaluation=True, **given)
    table = read_cross_sites(run.path)
    assert set(table["model-of"]) == set(table["data-of"]) == {"north", "south"}
    assert set(table["metric"]) == {"accuracy", "loss"}
    assert run.summary["cross-sites"]["left-out"] == {
        "east": "it has kept no model of its own (has it a state-dir?)",
        "west": "its node config does not say cross-evaluation=true",
    }
    assert "client west takes no part in cross-site evaluation" in caplog.text
    gave = {
        str(reply.content.config_records[wire.SENDER]["client-id"])
        for reply in sent
        if reply.metadata.message_type == "query.model" and len(reply.content.array_records[wire.TENSORS])
    }
    assert gave == {"north", "south"}
    refused = ask_in_person(run, sent, nodes[2])
    assert "client west takes no part in cross-site evaluation" in refused
    assert "its node config would have to say cross-evaluation=true" in refused


def ask_in_person(run: Any, sent: list[Message], node: Mapping[str, Any]) -> str:
    """What a client without consent says to a server that asks for its model all the same."""
    settings = {key: value for key, value in app_module._LAST[0].settings if not key.startswith("_")}
    assert settings["cross_evaluation"]
    context = next(c for c in run.grid.contexts.values() if c.node_config["client-id"] == node["client-id"])
    download = Download(2, {}, (2, 3), 2, closing=True, training="some")
    message = Message(wire.write_download(download), 5, "query.model", group_id="2")
    reply = run.grid._client_app(message, Context(1, 5, context.node_config, RecordDict(), {}))
    return str(reply.content.config_records[wire.FAILURE]["error"])


def test_noise_and_whole_models_exclude_each_other() -> None:
    with pytest.raises(UserError, match="cross-evaluation=true sends whole models without noise"):
        parse({"strategy": "fedavg", "cross-evaluation": True, "dp.epsilon": 1.0, "dp.clipping-norm": 1.0})


def test_a_client_that_answers_nonsense_is_left_out_and_the_run_goes_on(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = cross_client.CrossClient.score_others

    def score(half: cross_client.CrossClient) -> Any:
        params, extras = good(half)
        if half._job.client == "1":
            extras["accuracy"] = extras["accuracy"] + 7.0
        return params, extras

    monkeypatch.setattr(cross_client.CrossClient, "score_others", score)
    run = federate(clients=3, strategy="local", num_server_rounds=1, **SMALL)
    (record,) = [record for record in run.records if record["kind"] == "cross-sites"]
    (failure,) = record["failures"]
    assert failure["client"] == "1"
    assert "the score accuracy on test is 7" in failure["error"]
    assert set(read_cross_sites(run.path)["data-of"]) == {"0", "2"}
    assert set(read_cross_sites(run.path)["model-of"]) == {"0", "1", "2"}


# ---- what it comes to ------------------------------------------------------------------------------------------------


def test_the_statistics_of_a_matrix() -> None:
    values = np.array([[0.9, 0.2, 0.4], [0.5, 0.6, 0.1], [0.1, 0.8, 0.7]])
    told = statistics(values, ("a", "b", "c"), ACCURACY)
    assert told["own"] == pytest.approx((0.9 + 0.6 + 0.7) / 3)
    assert told["others"] == pytest.approx((0.3 + 0.5 + 0.25) / 3)
    assert told["best-foreign"] == pytest.approx((0.5 + 0.8 + 0.4) / 3)
    assert told["better-than-own"] == {"b": "c"}
    assert lines(told, 3, ACCURACY) == [
        "cross-sites  test accuracy of 3 clients with their own models: 0.733",
        "cross-sites  with the others' models: 0.350",
        "cross-sites  with the best of the others': 0.567; better than with their own: 1 client (b with c's)",
    ]
    lower = statistics(values, ("a", "b", "c"), known("rmse"))  # where lower is better
    assert lower["better-than-own"] == {"a": "c", "b": "a", "c": "b"}
    assert lower["best-foreign"] == pytest.approx((0.1 + 0.2 + 0.1) / 3)


def test_of_one_client_there_are_no_others() -> None:
    told = statistics(np.array([[0.5]]), ("a",), ACCURACY)
    assert told == {"own": 0.5, "others": None, "best-foreign": None, "better-than-own": {}}
    assert lines(told, 1, ACCURACY)[1] == "cross-sites  with the others' models: -"
    assert json.dumps(told)


def test_models_are_joined_and_parted() -> None:
    models = [{"w": torch.ones(2), "b.x": torch.zeros(1)}, {"w": torch.full((2,), 3.0), "b.x": torch.ones(1)}]
    assert functools.reduce(
        lambda so_far, pair: so_far and all(torch.equal(pair[0][n], pair[1][n]) for n in pair[0]),
        zip(models, cross_client.parted(cross_client.joined(models)), strict=True),
        True,
    )
    with pytest.raises(UserError, match="'w' is no tensor of a numbered model"):
        cross_client.parted(Extras({"w": torch.ones(1)}).tensors)
