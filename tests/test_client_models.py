"""A network for each client: who has which, that each trains as if all had its own, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome
from nodes import three_nodes
from PIL import Image
from safetensors.torch import load_file

from fedham_flwr import load_model
from fedham_flwr.alike import Has, unlike
from fedham_flwr.analysis.labels import of_method
from fedham_flwr.client_app import make_client_app
from fedham_flwr.core.errors import UserError
from fedham_flwr.federation.messages import Profile
from fedham_flwr.models import client_models
from fedham_flwr.models.export import read_header
from fedham_flwr.networks import build, largest
from fedham_flwr.runners.cohort import CohortGrid
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.runners.told import summed
from fedham_flwr.settings import Value, parse

Federate = Callable[..., Outcome]
TWO: dict[str, Value] = {
    "vit.width": 64, "vit.depth": 1, "vit.heads": 2, "vit.head-dim": 8, "vit.hidden-dim": 32, "vit.dropout": 0.0,
    "samples_per_client": 64, "num_server_rounds": 2,
}  # fmt: skip
"""A small Transformer, whose features are as many as those of digits-cnn."""
DEALT = "digits-cnn, vit"


def files(run: Outcome) -> dict[str, Path]:
    return {file.stem: file for file in sorted((run.path / "model").glob("*.safetensors"))}


# ---- who has which ---------------------------------------------------------------------------------------------------


def test_names_are_dealt_in_turn_and_a_table_names_clients(tmp_path: Path) -> None:
    of = client_models.network_of
    assert [of("", "cnn", "a", None), of(" lenet", "cnn", "a", 7)] == ["cnn", "lenet"]
    assert [of("lenet, cnn,vit", "auto", str(k), k) for k in range(5)] == ["lenet", "cnn", "vit", "lenet", "cnn"]
    table = tmp_path / "who.toml"
    table.write_text('north = "vit"\n"a.b" = "torchvision:resnet18"\n')
    assert [of(str(table), "cnn", who, None) for who in ("north", "a.b", "x")] == ["vit", "torchvision:resnet18", "cnn"]
    assert client_models.names_of(str(table)) == ()
    assert client_models.named_in(str(table)) == {"north": "vit", "a.b": "torchvision:resnet18"}
    with pytest.raises(UserError, match=r'client north has data of its own: give its SuperNode model="..." in its'):
        of("lenet, cnn", "cnn", "north", None)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("x = ", "is not TOML"),
        ("", "names no client: wanted lines client"),
        ("[north]\nmodel = 'vit'", r"has north = \{'model': 'vit'\}: wanted lines client = \"network\""),
        ("north = 'vitt'", "'vitt' is no network: wanted auto, digits-cnn"),
        (None, r"can't be read \(No such file"),
    ],
)
def test_a_table_that_is_none_is_one_sentence(tmp_path: Path, text: str | None, match: str) -> None:
    table = tmp_path / "who.toml"
    if text is not None:
        table.write_text(text)
    with pytest.raises(UserError, match=match):
        client_models.network_of(str(table), "cnn", "north", None)


def test_a_method_that_sends_its_network_takes_none_and_neither_do_names_that_are_none() -> None:
    with pytest.raises(
        UserError, match="client-models='cnn, vit' gives clients networks of their own, and strategy=fed"
    ):
        parse({"strategy": "fedavg", "client-models": "cnn, vit"})
    with pytest.raises(UserError, match="client-models='cnn,,vit': '' is no network"):
        parse({"strategy": "local", "client-models": "cnn,,vit"})
    chosen = parse({"strategy": "local", "client-models": "own_objects:Wide, cnn", "wide.width": 3})
    assert chosen.section("wide").width == 3


# ---- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(federate: Federate) -> dict[str, Outcome]:
    """The same with two networks, one client after the other and at once, and with each of both for all."""
    return {
        "two": federate(strategy="local", client_models=DEALT, **TWO),
        "cohort": federate(strategy="local", client_models=DEALT, grid=CohortGrid, **TWO),
        "digits-cnn": federate(strategy="local", model="digits-cnn", **TWO),
        "vit": federate(strategy="local", model="vit", **TWO),
    }


def test_each_client_trains_as_if_all_had_its_network(runs: dict[str, Outcome]) -> None:
    for client, file in files(runs["two"]).items():
        network = ("digits-cnn", "vit")[int(client) % 2]
        assert read_header(file)["model"] == network
        alone, at_once = load_file(files(runs[network])[client]), load_file(files(runs["cohort"])[client])
        both = load_file(file)
        assert both.keys() == alone.keys() == at_once.keys()
        assert all(torch.equal(both[name], alone[name]) for name in alone)
        assert all(torch.allclose(both[name], at_once[name], atol=1e-4) for name in alone)
        assert type(load_model(file)).__name__ == {"digits-cnn": "DigitsCNN", "vit": "ViT"}[network]
        card = json.loads(file.with_suffix(".json").read_text())
        assert card["model"]["network"] == network
        assert card["model"]["parameters"] == sum(p.numel() for p in load_model(file).parameters())
    rows = {row[:7] for row in runs["two"].rows}
    assert rows == {
        row[:7] for name in ("digits-cnn", "vit") for row in runs[name].rows if int(row.client) % 2 == (name == "vit")
    }
    assert runs["two"].summary["model"] == runs["cohort"].summary["model"] == "digits-cnn, vit"
    told = runs["cohort"].summary["engine"]
    assert told["together"] > 0
    assert sum(told["alone"].values()) == 0
    clients = json.loads((runs["two"].path / "clients.json").read_text())
    assert [client["model"] for client in clients] == ["digits-cnn", "vit"] * 2


def test_reports_know_the_settings_of_all_networks() -> None:
    found = of_method({"strategy": "local", "vit.depth": 1, "cnn1d.width": 3}, "digits-cnn, vit")
    assert found["vit.depth"] == 1
    assert "cnn1d.width" not in found


def test_engines_are_summed_up() -> None:
    one = {"network": "stacked", "together": 3, "alone": {"fit": 1}}
    assert summed([one]) == one
    assert summed([]) == summed([{}]) == {}
    other = {"network": "none", "together": 1, "alone": {"fit": 2, "score": 1}, "why-alone": "it is large"}
    whole = {"network": "stacked, none", "together": 4, "alone": {"fit": 3, "score": 1}, "why-alone": "it is large"}
    assert summed([one, other]) == whole


def test_a_node_config_goes_before_the_run_and_a_table_is_of_ids(federate: Federate, tmp_path: Path) -> None:
    table = tmp_path / "who.toml"
    table.write_text('south = "vit"\nwest = "vit"\n')
    nodes = [{"client-id": "north"}, {"client-id": "south"}, {"client-id": "west", "model": "digits-cnn"}]

    def grid(app: Any, clients: int) -> InProcessGrid:
        return InProcessGrid(app, clients, node_configs=nodes)

    run = federate(3, strategy="local", grid=grid, client_models=str(table), **TWO, min_clients=3)
    clients = json.loads((run.path / "clients.json").read_text())
    assert {client["client"]: client["model"] for client in clients} == {
        "north": "digits-cnn", "south": "vit", "west": "digits-cnn",
    }  # fmt: skip
    table.write_text('south = "vit"\neast = "vit"\n')
    with pytest.raises(UserError, match="names client east, which there is not: the clients are north, south, west"):
        federate(3, strategy="local", grid=grid, client_models=str(table), **TWO, min_clients=3)
    nodes[2]["model"] = "vit"
    with pytest.raises(UserError, match='model="vit" in the node config of client west gives clients networks of'):
        federate(3, strategy="fedavg", grid=grid, **TWO, min_clients=3)


def test_a_run_goes_on_only_with_the_networks_that_it_has_trained(
    federate: Federate, settings: Callable[..., Any], tmp_path: Path
) -> None:
    table = tmp_path / "who.toml"
    table.write_text('0 = "vit"\n')
    given = {**TWO, "strategy": "local", "client_models": str(table), "checkpoint_every": 1}
    whole = federate(2, **{**given, "num_server_rounds": 3})
    half = federate(2, **given)
    table.write_text('1 = "vit"\n')
    again = {**given, "num_server_rounds": 3, "resume": str(half.path)}
    with pytest.raises(UserError, match="the network of client 0 was vit, and is digits-cnn now"):
        federate(2, **again)
    table.write_text('0 = "vit"\n')
    ended = federate(2, **again)
    assert ended.summary["digest"] == whole.summary["digest"]


# ---- a node that names none ------------------------------------------------------------------------------------------


def sites(folder: Path, west: dict[str, str]) -> Callable[[Any, int], InProcessGrid]:
    """Three nodes with a table."""
    rows = "\n".join(f"{k % 7},{k % 5},{int(k % 7 > 3)}" for k in range(40))
    (folder / "rows.csv").write_text(f"age,dose,ill\n{rows}\n")
    return three_nodes(folder / "rows.csv", west)


ILL: dict[str, Value] = {
    "strategy": "local", "model": "mlp", "feature_column": "age dose", "label_column": "ill", "num_server_rounds": 1,
    "client_timeout": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("vitt", "model=\"vitt\" in the node config of client west: 'vitt' is no network: wanted auto, digits-cnn"),
        ("vit", 'the network of client west cannot be built: model="vit" is for images, and the data set is a table'),
        (
            "torchvision:nonsense",
            'the network of client west cannot be built: model="torchvision:nonsense": torchvision has no',
        ),
        ("hub", 'the network of client west cannot be built: model="hub" needs hub.folder'),
        ("os:system", "client west says that its network is os:system, which is code that the server would run"),
    ],
)
def test_a_node_whose_network_there_is_not_is_left_out_and_the_run_goes_on(
    federate: Federate, tmp_path: Path, caplog: pytest.LogCaptureFixture, named: str, why: str
) -> None:
    grid = sites(tmp_path, {"model": named})
    run = federate(3, grid=grid, min_clients=2, **ILL)
    (told,) = [message for message in caplog.messages if "cannot take part" in message]
    assert told.startswith(f"a node cannot take part: {why}")
    assert {record["kind"]: record["cohort"] for record in run.records} == {
        "train": ["north", "south"], "evaluate": ["north", "south"],
    }  # fmt: skip
    with pytest.raises(UserError, match=r"^3 clients are wanted and 2 answered .* the first failure is: ") as refused:
        federate(3, grid=grid, min_clients=3, **ILL)
    assert f"the first failure is: {why}" in str(refused.value)


def pictures(folder: Path, west: dict[str, str]) -> Callable[[Any, int], InProcessGrid]:
    """Three nodes with 8 x 8 pictures of two classes."""
    draw = np.random.default_rng(0)
    for kind in ("a", "b"):
        (folder / kind).mkdir(parents=True)
        for k in range(12):
            Image.fromarray(draw.integers(0, 255, (8, 8), np.uint8)).save(folder / kind / f"{k}.png")
    return three_nodes(folder, west)


@pytest.mark.parametrize(
    ("strategy", "why"),
    [
        ("fedproto", "the last layer of vit sees 32 features; wanted 64 features, as in digits-cnn of client north"),
        ("local", ""),
    ],
)
def test_a_node_whose_network_does_not_go_with_the_others_is_left_out_and_the_run_goes_on(
    federate: Federate, tmp_path: Path, caplog: pytest.LogCaptureFixture, strategy: str, why: str
) -> None:
    given = {**TWO, "vit.width": 32, "num_server_rounds": 1, "min_clients": 2, "client_timeout": 1.0}
    run = federate(
        3, grid=pictures(tmp_path / "data", {"model": "vit"}), strategy=strategy, model="digits-cnn", **given
    )
    told = [message for message in caplog.messages if "cannot take part" in message]
    start = "a node cannot take part: the network of client west does not go with those of the others: "
    assert [bool(re.fullmatch(start + why, line)) for line in told] == [True] * bool(why)
    assert run.records[0]["cohort"] == ["north", "south", "west"][: 2 if why else 3]


def test_what_most_have_counts_and_what_the_run_names_counts_more() -> None:
    chosen = parse({"strategy": "fedproto", **{k.replace("_", "-"): v for k, v in TWO.items()}, "vit.width": 32})
    wide, narrow = (build(chosen, profiles(name), (1, 8, 8), 10)[0].manifest for name in ("digits-cnn", "vit"))
    has = [Has("a", "digits-cnn", wide), Has("b", "vit", narrow), Has("c", "vit", narrow)]
    assert list(unlike(chosen, has, {"a", "b", "c"})) == ["a"]
    assert list(unlike(chosen, has[:2], {"a", "b"})) == ["b"]  # as many: the first one's
    assert list(unlike(chosen, has, {"b", "c"})) == ["b", "c"]
    assert unlike(chosen, has, {"c"}) == {}  # the run names both, which check_together refuses
    assert unlike(chosen, has[1:], {"b", "c"}) == {}
    assert unlike(parse({"strategy": "local"}), has, {"a", "b", "c"}) == {}
    crossed = unlike(parse({"strategy": "local", "cross-evaluation": True}), has, {"a"})
    start = "the network of client a does not go with those of the others: it is digits-cnn, and "
    assert crossed == {"a": f"{start}cross-evaluation=true runs models at other clients; wanted vit"}
    (whole,) = unlike(parse({"strategy": "fedavg"}), has, {"a"}).values()
    assert re.fullmatch(rf"{start}strategy=fedavg sends [\w.]+; wanted vit", whole)


NONE = r'^model="torchvision:nonsense": torchvision has no classification network'


def test_a_table_of_the_run_that_names_none_is_an_error_whatever_clients_are_left(
    federate: Federate, tmp_path: Path
) -> None:
    table = tmp_path / "who.toml"
    table.write_text('west = "torchvision:nonsense"\n')
    with pytest.raises(UserError, match=NONE):
        federate(3, grid=sites(tmp_path, {}), min_clients=2, client_models=str(table), **ILL)
    with pytest.raises(UserError, match=NONE):
        federate(3, grid=sites(tmp_path, {}), min_clients=2, **{**ILL, "model": "torchvision:nonsense"})


# ---- what is refused before the first round --------------------------------------------------------------------------


def profiles(*networks: str, partitions: int = 2) -> list[Profile]:
    return [
        Profile(str(k), partitions, (1, 8, 8), 10, {"train": 5}, (5,), network=network)
        for k, network in enumerate(networks)
    ]


def test_networks_are_built_once_each_and_the_largest_stands_for_all() -> None:
    chosen = parse({"strategy": "local", **{k.replace("_", "-"): v for k, v in TWO.items()}})
    built = build(chosen, profiles("vit", "", "vit", ""), (1, 8, 8), 10)
    assert [(one.name, one.clients) for one in built] == [("vit", ("0", "2")), ("digits-cnn", ("1", "3"))]
    assert largest(built).name == "digits-cnn"
    assert [len(one.manifest.group_names) > 0 for one in built] == [True, True]
    assert len(build(chosen, profiles("digits-cnn", ""), (1, 8, 8), 10)) == 1


def test_models_do_not_go_to_clients_that_have_not_their_network(federate: Federate) -> None:
    with pytest.raises(UserError, match=r"their networks differ \(digits-cnn of client 0 and vit of client 1\)"):
        federate(strategy="local", client_models=DEALT, cross_evaluation=True, **TWO)


def test_a_client_names_no_code_for_the_server_to_run() -> None:
    chosen = parse({"strategy": "local"})
    with pytest.raises(UserError, match=r"os:system, which is code that the server would run: wanted it in client-mod"):
        build(chosen, profiles("os:system"), (1, 8, 8), 10)
    with pytest.raises(UserError, match="client 0 says which network it has: 'nonsense' is no network"):
        build(chosen, profiles("nonsense"), (1, 8, 8), 10)


def test_an_app_keeps_what_it_has_built_for_each_network(federate: Federate, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedham_flwr import client_app
    from fedham_flwr.federation import trainers

    made: list[str] = []
    built = client_app.models.build

    def counted(name: str, *given: Any) -> Any:
        made.append(name)
        return built(name, *given)

    client_app._LAST.clear()
    trainers._made.cache_clear()
    monkeypatch.setattr(client_app.models, "build", counted)
    federate(strategy="local", client_models=DEALT, **TWO, client_app=make_client_app)
    assert made.count("digits-cnn") == made.count("vit") == 2  # on the server, and where clients are
    made.clear()
    federate(strategy="local", client_models="digits-cnn, auto", **TWO, client_app=make_client_app)
    assert made.count("digits-cnn") == len(made) == 2  # auto is the same one
