"""The cards of exported models: their facts, how they read, and what stays on a node."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from markdown_it import MarkdownIt
from nodes import on_nodes
from torchmetrics.functional.classification import multiclass_calibration_error

import fedham_flwr
from fedham_flwr import registry, simulate
from fedham_flwr.core.files import digest
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.contract import ChecksExtras
from fedham_flwr.models import cards
from fedham_flwr.reporting.run_directory import read_rows, to_rows
from fedham_flwr.resume.runs import read_settings
from fedham_flwr.settings import parse
from fedham_flwr.simulation import Run

pytestmark = pytest.mark.usefixtures("no_pictures")
RNG = np.random.default_rng(0)


def html_of(file: Path) -> str:
    return str(MarkdownIt("commonmark").enable("table").render(file.read_text()))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """pFedLA on a table of three sites, one of which has a name that Markdown would take for its own."""
    folder = tmp_path_factory.mktemp("cards")
    age = RNG.integers(20, 90, 120)
    rows = pd.DataFrame({"site": np.resize(["a|b*", "west", "east"], 120), "age": age, "ill": (age > 55) * 1})
    rows.to_parquet(folder / "rows.parquet")
    return simulate(
        "pfedla", dataset=folder / "rows.parquet", feature_column="age", label_column="ill", client_column="site",
        partitioner="natural", clients=3, results_dir=folder / "results", cache_dir=folder / "cache", verbose=False,
        num_server_rounds=2, device="cpu", batch_size=8,
    )  # fmt: skip


def card(run: Run, client: str) -> dict[str, Any]:
    return dict(json.loads((run.directory / "model" / f"{client}.json").read_text()))


def test_a_run_of_more_clients_than_model_cards_has_models_alone(tmp_path: Path, cache_dir: Path) -> None:
    left = simulate(
        "local", clients=3, model_cards=2, samples_per_client=20, num_server_rounds=1, results_dir=tmp_path,
        cache_dir=cache_dir, verbose=False, device="cpu",
    )  # fmt: skip
    assert sorted(file.name for file in (left.directory / "model").iterdir()) == [f"{n}.safetensors" for n in range(3)]


def test_a_card_says_what_the_results_say(run: Run) -> None:
    for number, client in enumerate(run.clients["client"]):
        facts, file = card(run, client), run.directory / "model" / f"{client}.safetensors"
        assert facts["name"] == run.clients["name"][number]
        assert facts["model"]["sha256"] == digest(file)
        assert facts["model"]["network"] == "mlp"
        of_all = sum(p.numel() for p in run.models[client].parameters())
        assert facts["model"]["parameters"] == facts["model"]["trained-parameters"] == of_all
        assert facts["data"]["samples"] == {
            split: run.clients[split][number] for split in ("train", "validation", "test")
        }
        classes = facts["data"]["classes"]
        assert [classes[name]["train"] for name in ("0", "1")] == run.clients["train-labels"][number]
        assert sum(each["test"] for each in classes.values()) == facts["data"]["samples"]["test"]
        assert facts["data"]["columns"] == ["age"]
        assert (facts["method"]["strategy"], facts["method"]["rounds"]) == ("pfedla", 2)
        assert facts["method"]["rounds-taken-part"] == 2
        assert facts["method"]["settings"]["batch-size"] == 8
        assert facts["method"]["settings"]["pfedla.normaliser"] == "softmax"
        told = {
            (each["model"], each["phase"], each["split"], metric): value
            for each in facts["scores"]
            for metric, value in each["values"].items()
        }
        last = [row for row in to_rows(read_rows(run.directory)) if (row.round, row.client) == (3, client)]
        assert told == {(row.model, row.phase, row.split, row.metric): row.value for row in last}
        assert {each["phase"] for each in facts["scores"] if each.get("exported")} == {facts["model"]["phase"]}
        past = [entry["round"] for entry in facts["history"]["rounds"]]
        assert past == [1, 2, 3]


def test_a_card_says_how_sure_the_model_is(run: Run) -> None:
    rows = pd.read_parquet(run.summary["dataset"])
    client = str(run.clients["client"][0])
    data = open_partition(parse(read_settings(run.directory)).data(), 0, 3)
    mine = rows.iloc[data.splits["test"].tolist()]
    likely = fedham_flwr.predict(run.directory, mine, client=client, probabilities=True)[["p(0)", "p(1)"]].to_numpy()
    wanted = multiclass_calibration_error(
        torch.from_numpy(likely.copy()), torch.tensor(mine["ill"].tolist()), 2, 15, "l1"
    )
    assert card(run, client)["calibration-error"] == pytest.approx(float(wanted), abs=1e-6)


def test_a_card_says_whom_the_client_listened_to(run: Run) -> None:
    mixing = run.mixing[run.mixing["round"] == run.mixing["round"].max()]
    for client in run.clients["client"]:
        facts = card(run, client)["mixing"]
        mine = mixing[(mixing["client"] == client) & (mixing["weight"] > 0)]
        assert facts["round"] == 3
        told = [(group, *pair) for group, pairs in facts["weights"].items() for pair in pairs]
        assert sorted(told) == sorted(mine[["group", "peer", "weight"]].itertuples(index=False, name=None))
        for pairs in facts["weights"].values():
            weights = [weight for _, weight in pairs]
            assert weights == sorted(weights, reverse=True)


def test_a_card_reads_as_markdown(run: Run) -> None:
    client = str(run.clients.set_index("name")["client"]["a|b*"])
    html = html_of(run.directory / "model" / f"{client}.md")
    assert f"<h1>The model of client {client} (a|b*)</h1>" in html
    sections = re.findall("<h2>(.*)</h2>", html)
    wanted = ["Data", "Method", "Scores", "Calibration", "Round by round", "Whom it listened to", "Versions"]
    assert sections == wanted
    assert html.count("<table>") == 7  # one in each but for the calibration, and one at the top
    for found in re.findall(r"<table>(.*?)</table>", html, re.DOTALL):
        rows = [len(re.findall("<t[hd]", row)) for row in re.findall(r"<tr>(.*?)</tr>", found, re.DOTALL)]
        assert len(set(rows)) == 1
        assert len(rows) >= 2
    assert "not measured, since strategy=pfedla has none" in html
    assert re.search(r"<td>mlp, [\d,]+ parameters</td>", html)


def test_odd_names_and_numbers_stay_what_they_are(tmp_path: Path, run: Run) -> None:
    facts = card(run, str(run.clients["client"][0]))
    odd = "<b>*x*|`y`\n# z"
    facts["data"]["classes"] = {odd: {"train": 1, "validation": 0, "test": 2}} | {
        str(i): {"train": 1} for i in range(60)
    }
    facts["data"]["columns"] = [odd, *map(str, range(60))]
    facts["scores"][0]["values"]["loss"] = float("nan")
    cards.write(tmp_path, "0", facts)
    assert json.loads((tmp_path / "0.json").read_text())["scores"][0]["values"]["loss"] is None
    html = html_of(tmp_path / "0.md")
    assert "<td>&lt;b&gt;*x*|`y` # z</td>" in html
    assert "21 more classes are in the JSON file." in html
    assert "and 21 more." in html
    assert "<b>" not in html


def test_everybodys_model_is_compared_with_and_local_training_is_itself(
    federate: Callable[..., Any], tmp_path: Path
) -> None:
    shared = federate(strategy="fedavg", clients=2, num_server_rounds=1)
    facts = json.loads((shared.path / "model" / "0.json").read_text())
    (before,) = [each for each in facts["scores"] if (each["phase"], each["split"]) == ("before", "test")]
    assert before["model"] == "global"
    assert facts["compared"]["global"] == (
        f"Against everybody's model: accuracy {before['values']['accuracy']:.4g}, loss {before['values']['loss']:.4g} "
        "on the test split."
    )
    assert "strategy=local" in facts["compared"]["local"]
    assert facts["listened"] == "This method mixes no models for each client alone."
    alone = federate(strategy="local", clients=2, num_server_rounds=1)
    assert json.loads((alone.path / "model" / "1.json").read_text())["compared"]["local"] == (
        "Against training alone: this is it."
    )


def test_on_a_node_the_card_stays_with_the_model(federate: Callable[..., Any], tmp_path: Path) -> None:
    made = on_nodes(federate, tmp_path)("nodes", strategy="fedper", clients=2, num_server_rounds=1)
    assert list((made.path / "model").iterdir()) == []
    (folder,) = (tmp_path / "nodes").glob("node-1/*/model")
    assert sorted(file.name for file in folder.iterdir()) == ["site-1.json", "site-1.md", "site-1.safetensors"]
    facts = json.loads((folder / "site-1.json").read_text())
    assert facts["model"]["sha256"] == digest(folder / "site-1.safetensors")
    assert facts["listened"] == "What the server mixed for this client it does not tell the client."
    assert "history" not in facts
    assert sum(each["train"] for each in facts["data"]["classes"].values()) == facts["data"]["samples"]["train"]


def seen(method: str) -> str:
    """What the identity card of a method says that the server sees, in one line."""
    text = importlib.import_module(f"fedham_flwr.algorithms.{method}").__doc__ or ""
    (found,) = re.findall(r"\n    server sees (.*?)\n    (?=\S)", text, re.DOTALL)
    return " ".join(found.split())


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_a_method_whose_clients_send_more_than_shared_tensors_declares_what(name: str) -> None:
    method = registry.method(name)
    assert bool(method.extras) == issubclass(registry.half(method.strategy), ChecksExtras)
    assert method.extras in seen(name)


@pytest.mark.parametrize(
    ("strategy", "sent"),
    [
        ("fedproto", "the mean of a client's features in each class, and the shares of its classes"),
        ("fedgh", "the mean of a client's features in each class, and which classes it has"),
        ("fedpac", "the shares of its classes, the mean of its features in each of them before and after training"),
        ("pfedfda", "the means of its features in each class and their covariance, mixed with the common ones"),
        ("feddbe", "once the mean of its features"),
        ("fedas", "how large the gradients of its model are on its data, where `fedas.weights` is fisher"),
    ],
)
def test_a_card_says_that_statistics_of_features_leave_the_client(
    federate: Callable[..., Any], strategy: str, sent: str
) -> None:
    left = federate(strategy=strategy, clients=2, num_server_rounds=1, samples_per_client=40).path / "model"
    assert json.loads((left / "0.json").read_text())["method"]["extras"].startswith(sent)
    assert f"Sent to the server, beside shared tensors: {sent}" in (left / "0.md").read_text()


def test_a_card_of_a_method_without_extras_speaks_of_none(run: Run) -> None:
    client = str(run.clients["client"][0])
    assert "extras" not in card(run, client)["method"]
    assert "beside shared tensors" not in (run.directory / "model" / f"{client}.md").read_text()


def test_the_card_of_a_novel_client_says_of_nothing_that_it_was_sent(federate: Callable[..., Any]) -> None:
    run = federate(strategy="fedproto", clients=3, novel_clients=1, num_server_rounds=1, samples_per_client=40)
    (novel,) = {row.client for row in run.rows if row.population == "novel"}
    for client in map(str, range(3)):
        facts = json.loads((run.path / "model" / f"{client}.json").read_text())
        assert ("extras" in facts["method"]) == (client != novel)


def test_a_card_calls_no_tensor_secret_that_the_cross_evaluation_may_have_sent(federate: Callable[..., Any]) -> None:
    left = federate(strategy="fedper", clients=2, num_server_rounds=1, cross_evaluation=True).path / "model"
    text = (left / "0.md").read_text()
    assert "Personal, and sent to nobody unless this client took part in the cross-evaluation: `" in text
