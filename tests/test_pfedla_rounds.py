"""pFedLA and HeurpFedLA as federations: their two ends, what is sent, who is absent, late, or without its state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from faults import break_app, tampered, with_tensors
from flwr.app import ArrayRecord, ConfigRecord
from presets import planned
from torch import Tensor

from fedham_flwr import models
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import LayerGroup, Manifest, Params, read
from fedham_flwr.core.trees import num_bytes
from fedham_flwr.federation import wire
from fedham_flwr.federation.contract import Task
from fedham_flwr.federation.messages import Upload
from fedham_flwr.reporting.mixing_weights import read_weights
from fedham_flwr.server_app import build_strategy
from fedham_flwr.settings import Value, parse

Federate = Callable[..., Any]
DIGITS = ("digits-cnn", (1, 8, 8))
LENET, LENET_BN = ("lenet", (1, 28, 28)), ("lenet-bn", (3, 32, 32))


def server(
    model: tuple[str, tuple[int, ...]] = DIGITS, clients: int = 4, strategy: str = "pfedla", **given: Value
) -> Any:
    """A method's server half with its clients added; keys without the method's name: retained_layers=1."""
    keys = {f"pfedla.{name.replace('_', '-')}": value for name, value in given.items()}
    settings = parse({"strategy": strategy, "device": "cpu", **keys})
    network = models.build(model[0], model[1], 10, 0)
    manifest = Manifest.of(network)
    made = build_strategy(settings, manifest, read(network, manifest.names()), Task(model[1], 10))
    made.add_clients(names(clients))
    return made


def names(clients: int) -> tuple[str, ...]:
    return tuple(map(str, range(clients)))


def trained(starts: Mapping[str, Params], before: Params, seed: int) -> dict[str, Upload]:
    """Uploads that lie a random step from the start; layers that were not sent start from `before`."""
    uploads = {}
    for client, params in starts.items():
        draw = torch.Generator().manual_seed(1000 * seed + int(client))
        start = {**before, **params}
        moved = {name: t + 0.1 * torch.randn(t.shape, generator=draw) for name, t in start.items()}
        uploads[client] = Upload(client, moved, 10, ())
    return uploads


def after_rounds(made: Any, rounds: int, clients: int = 4) -> Any:
    for number in range(1, rounds + 1):
        starts = planned(made.plan(number, names(clients)))
        made.merge(number, trained(starts, made.first, number))
        made.progress.trained |= starts.keys()
    return made


def state_of(made: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in made.state_dict().items()}


def scores(run: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in run.rows]


# ---- the ends: local training and FedAvg -----------------------------------------------------------------------------


def test_2_a_client_that_mixes_itself_alone_is_local_training_bit_for_bit(federate: Federate) -> None:
    alone, local = federate(strategy="pfedla", **{"pfedla.self-bias": 1e4}), federate(strategy="local")
    assert scores(alone) == scores(local)
    assert len(scores(local)) == (2 + 1) * 4 * 2 * 2 * 2  # rounds, clients, splits, phases, metrics


def test_13_with_all_layers_retained_it_is_local_training_and_nothing_is_sent_down(federate: Federate) -> None:
    own, local = federate(strategy="pfedla", **{"pfedla.retained-layers": 4}), federate(strategy="local")
    assert scores(own) == scores(local)
    assert own.summary["bytes"]["down"] == 0
    assert own.summary["bytes"]["up"] == 2 * 4 * 13_706 * 4


def test_keeping_one_of_equal_weights_is_local_training(federate: Federate) -> None:
    one, local = federate(strategy="pfedla", **{"pfedla.top-k-peers": 1}), federate(strategy="local")
    assert scores(one) == scores(local)


def test_a_cohort_of_one_is_local_training(federate: Federate) -> None:
    alone = federate(clients=1, strategy="pfedla", min_clients=1, partitioner="iid")
    local = federate(clients=1, strategy="local", min_clients=1, partitioner="iid")
    assert scores(alone) == scores(local)


def test_3_equal_weights_and_equal_shares_are_fedavg() -> None:
    mixed, average = server(hypernetwork_learning_rate=0), server(strategy="fedavg")
    for number in (1, 2, 3):
        starts, wanted = planned(mixed.plan(number, names(4))), planned(average.plan(number, names(4)))
        for client, params in starts.items():
            assert params.keys() == wanted[client].keys()
            assert all(torch.allclose(t, wanted[client][n], atol=1e-6) for n, t in params.items())
        uploads = trained(wanted, mixed.first, number)
        mixed.merge(number, uploads)
        average.merge(number, uploads)


def test_4_the_first_step_from_a_common_model_is_none() -> None:
    made = server()
    made.merge(1, trained(planned(made.plan(1, names(4))), made.first, 1))
    assert made._networks.params["heads.bias"].abs().max() < 1e-9
    assert torch.allclose(made.mixing_weights(2, names(4), {}).weights, torch.tensor(0.25))
    made.merge(2, trained(planned(made.plan(2, names(4))), made.first, 2))
    assert made._networks.params["heads.bias"].abs().max() > 1e-6


@pytest.mark.parametrize("k", [0, 2])
def test_14_the_order_of_the_clients_changes_nothing(k: int) -> None:
    forwards, backwards = (server(retained_layers=k, hypernetwork_learning_rate=1.0) for _ in range(2))
    for number in (1, 2, 3):
        uploads = trained(planned(forwards.plan(number, names(4))), forwards.first, number)
        turned = planned(backwards.plan(number, names(4)[::-1]))
        for client, params in planned(forwards.plan(number, names(4))).items():
            assert all(torch.allclose(t, turned[client][n], atol=1e-6) for n, t in params.items())
        forwards.merge(number, uploads)
        backwards.merge(number, dict(reversed(uploads.items())))
    other = state_of(backwards)
    for name, tensor in state_of(forwards).items():
        assert torch.allclose(tensor, other[name], atol=1e-6), name


# ---- what is sent ----------------------------------------------------------------------------------------------------


class Standing:
    """A grid that only says which nodes are there."""

    def __init__(self, nodes: Iterable[int]) -> None:
        self.nodes = list(nodes)

    def get_node_ids(self) -> list[int]:
        return self.nodes


@pytest.mark.parametrize(
    ("model", "retained", "exact", "printed"),
    [
        (LENET, (), 491.08, 491.08),
        (LENET, ("fc3",), 488.65, 488.65),
        (LENET, ("fc3", "fc1"), 312.52, 312.52),
        (LENET_BN, (), 693.96, 693.98),
        (LENET_BN, ("fc1",), 418.96, 418.97),
        (LENET_BN, ("fc1", "conv2"), 382.24, 382.25),
        (LENET_BN, ("fc1", "conv2", "fc3"), 379.81, 379.82),
    ],
)
def test_13_the_payloads_are_those_of_table_3(
    model: tuple[str, tuple[int, ...]], retained: tuple[str, ...], exact: float, printed: float
) -> None:
    """75 rounds of 10 clients, up and down, in MiB; the layers that are retained follow from the printed figures."""
    made = server(model, 10, retained_layers=len(retained))
    groups = list(made.manifest.group_names)
    for group in retained:  # these have the largest self weights
        made._networks.params["heads.bias"][:, groups.index(group)].fill_diagonal_(1.0)

    made.setup.roster.nodes = {client: int(client) + 1 for client in names(10)}
    messages = made.configure_train(1, ArrayRecord(), ConfigRecord(), Standing(range(1, 11)))
    downloads = [wire.read_download(message.content).params for message in messages]
    for params in downloads:
        assert {name.split(".")[0] for name in params} == set(groups) - set(retained)
    up = 10 * num_bytes({name: made.first[name] for name in made.split.shared})
    total = 75 * (up + sum(map(num_bytes, downloads))) / 2**20
    assert round(total, 2) == exact
    assert abs(exact - printed) < 0.021


def test_13_the_bytes_of_the_results_fall_by_the_layers_that_are_retained(federate: Federate) -> None:
    whole = federate(strategy="pfedla").summary["bytes"]
    part = federate(strategy="pfedla", **{"pfedla.retained-layers": 1}).summary["bytes"]
    # in the first round all self weights are equal, so that conv1 with its 160 scalars is retained
    assert whole["down"] - part["down"] >= 3 * 4 * 160 * 4
    assert part["up"] == whole["up"]


def test_13_retained_layers_teach_the_hypernetwork_nothing() -> None:
    made = after_rounds(server(retained_layers=1, hypernetwork_learning_rate=1.0), 1)
    made._networks.params["heads.bias"][2, 3, 2] = 5.0  # client 2 retains its last layer
    before = made._networks.params["heads.bias"].clone()
    starts = planned(made.plan(2, names(4)))
    assert {name.split(".")[0] for name in starts["2"]} == {"conv1", "conv2", "fc1"}
    made.merge(2, trained(starts, made.first, 2))
    moved = made._networks.params["heads.bias"] != before
    assert not moved[2, 3].any()
    assert moved[2, 1].all()


def test_after_a_restart_of_the_server_everyone_is_sent_everything_once() -> None:
    before = after_rounds(server(retained_layers=2), 2)
    assert all(len(params) == 4 for params in planned(before.plan(3, names(4))).values())
    again = server(retained_layers=2)
    assert all(len(params) == 4 for params in planned(again.plan(1, names(4))).values())  # all have the common model
    again.load_state_dict(state_of(before))
    assert all(set(params) == set(again.split.shared) for params in planned(again.plan(3, names(4))).values())
    again.progress.trained.add("1")
    assert [len(params) for params in planned(again.plan(4, names(4))).values()] == [8, 4, 8, 8]


@pytest.mark.parametrize("normaliser", ["softmax", "relu-sum"])
def test_everything_that_is_learned_is_in_the_state(normaliser: str) -> None:
    """Retained layers, momentum and the largest weights: three rounds and two are five, bit for bit."""
    given = {"retained_layers": 1, "hypernetwork_momentum": 0.9, "top_k_peers": 2, "normaliser": normaliser}
    whole, again = server(hypernetwork_learning_rate=1.0, **given), server(hypernetwork_learning_rate=1.0, **given)
    state: dict[str, Tensor] = {}
    for number in range(1, 6):
        if number == 4:
            again = server(hypernetwork_learning_rate=1.0, **given)
            again.load_state_dict(state)
            again.progress.trained |= whole.progress.trained
        for made in (whole, again):
            starts = planned(made.plan(number, names(4)))
            made.merge(number, trained(starts, made.first, number))
            made.progress.trained |= starts.keys()
        state = state_of(again)
    assert any(tensor.any() for name, tensor in state.items() if name.startswith("velocity/"))
    assert state.keys() == state_of(whole).keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in state_of(whole).items())


def test_more_retained_layers_than_the_model_has_are_refused(federate: Federate) -> None:
    with pytest.raises(
        UserError, match=r"pfedla.retained-layers=5 is more than the model's 4 layer groups: conv1, conv2"
    ):
        federate(strategy="pfedla", **{"pfedla.retained-layers": 5})


@pytest.mark.parametrize("k", [0, 1])
def test_a_model_with_one_layer_group_works(k: int) -> None:
    manifest = Manifest((LayerGroup("all", ("w",)),), {"w": (3,)}, {"w": torch.float32})
    settings = parse({"strategy": "pfedla", "device": "cpu", "pfedla.retained-layers": k})
    made = build_strategy(settings, manifest, {"w": torch.ones(3)}, Task((1, 8, 8), 10))
    made.add_clients(("0", "1"))
    starts = planned(made.plan(1, ("0", "1")))
    assert [sorted(params) for params in starts.values()] == [[] if k else ["w"]] * 2
    made.merge(1, {c: Upload(c, {"w": torch.full((3,), float(c) + 2)}, 1, ()) for c in ("0", "1")})
    assert made._pool.bank.model("1")["w"].tolist() == [3.0, 3.0, 3.0]


# ---- who is absent, late, or broken ----------------------------------------------------------------------------------


def test_absent_clients_stay_in_the_bank_and_are_mixed() -> None:
    made = server(hypernetwork_learning_rate=0)
    made.merge(1, trained(planned(made.plan(1, ("0", "2"))), made.first, 1))
    for client in ("1", "3"):
        assert all(torch.equal(t, made.first[n]) for n, t in made._pool.bank.model(client).items())
    start = planned(made.plan(2, ("1",)))["1"]
    wanted = sum(made._pool.bank.model(client)["fc2.bias"] for client in names(4)) / 4
    assert torch.allclose(start["fc2.bias"], wanted, atol=1e-6)


def test_absent_clients_learn_nothing() -> None:
    made = after_rounds(server(hypernetwork_learning_rate=1.0, hypernetwork_momentum=0.9), 2)
    before = state_of(made)
    made.merge(3, trained(planned(made.plan(3, ("0", "2"))), made.first, 3))
    for name, tensor in state_of(made).items():
        if name.startswith(("hypernetworks/", "velocity/", "bank/")):
            assert torch.equal(tensor[[1, 3]], before[name][[1, 3]]), name
            assert not name.startswith("bank/") or not torch.equal(tensor[[0, 2]], before[name][[0, 2]])


def test_a_client_that_comes_late_moves_nobody_until_it_has_trained() -> None:
    made = after_rounds(server(hypernetwork_learning_rate=1.0, retained_layers=1), 3)
    before = planned(made.plan(4, names(4)))
    made.add_clients((*names(4), "late"))
    after = planned(made.plan(4, names(4)))
    for client, params in before.items():
        assert params.keys() == after[client].keys()
        assert all(torch.allclose(t, after[client][n], rtol=0, atol=1e-7) for n, t in params.items())
    weights = made.mixing_weights(4, (*names(4), "late"), {}).weights
    assert not weights[..., 4].any()
    assert torch.allclose(weights[4, :, :4], torch.tensor(0.25))  # it starts from all others alike
    start = planned(made.plan(4, ("late",)))["late"]
    assert set(start) == set(made.split.shared)  # and retains nothing, having nothing of its own
    made.merge(4, {"late": Upload("late", {n: t + 1 for n, t in start.items()}, 10, ())})
    assert bool((made.mixing_weights(5, names(4), {}).weights[..., 4] > 0).all())


@pytest.mark.parametrize("normaliser", ["softmax", "relu-sum"])
def test_the_largest_weights_are_kept_and_sum_to_one(normaliser: str) -> None:
    made = after_rounds(server(clients=8, normaliser=normaliser, top_k_peers=3, hypernetwork_learning_rate=1.0), 3, 8)
    weights = made.mixing_weights(4, names(8), {}).weights
    assert ((weights > 0).sum(-1) <= 3).all()
    assert ((weights > 0).sum(-1) == 3).any()
    assert torch.allclose(weights.sum(-1), torch.ones(8, 4), atol=1e-6)
    whole = server(clients=8, normaliser=normaliser)
    whole._networks = made._networks
    every = whole.mixing_weights(4, names(8), {}).weights
    kept = torch.where(weights > 0, every, 0.0)
    assert torch.allclose(weights, kept / kept.sum(-1, keepdim=True), atol=1e-6)


def test_which_of_equal_weights_are_kept_differs_between_rounds_and_is_always_ones_own() -> None:
    made = server(clients=8, top_k_peers=2)
    kept = torch.stack([made.mixing_weights(number, names(8), {}).weights for number in (1, 2, 3)])
    assert torch.equal(kept[:, torch.arange(8), :, torch.arange(8)], torch.full((8, 3, 4), 0.5))
    assert not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_peer_that_is_not_finite_does_not_get_into_the_bank(federate: Federate, value: float) -> None:
    break_bias = with_tensors(lambda tensors: tensors["fc2.bias"].fill_(value))
    bad = federate(strategy="pfedla", client_app=tampered(break_bias, client=2))
    assert [f["error"] for r in bad.records for f in r["failures"]] == ["fc2.bias holds NaN or infinity"] * 2
    absent = federate(strategy="pfedla", client_app=tampered(break_app, client=2))
    assert all(torch.equal(tensor, absent.state[name]) for name, tensor in bad.state.items())


def test_a_checkpoint_with_a_peer_that_is_not_finite_is_refused_by_name() -> None:
    state = state_of(after_rounds(server(), 1))
    state["bank/fc1"][3, 17] = float("nan")
    with pytest.raises(ValueError, match="the model of client 3 in the bank holds NaN or infinity in fc1"):
        server().load_state_dict(state)


def test_running_statistics_are_mixed_with_their_layers_weights_and_move_no_hypernetwork() -> None:
    made = server(LENET_BN, bn_buffers="mix", hypernetwork_learning_rate=1.0)
    far = {n: t + (1e3 if "running" in n else 0.0) for n, t in made.first.items()}
    made.merge(1, {"1": Upload("1", far, 1, ())})
    made.merge(2, {"0": Upload("0", planned(made.plan(2, ("0",)))["0"], 1, ())})
    assert made._networks.params["heads.bias"].abs().max() < 1e-6
    assert torch.allclose(
        planned(made.plan(3, ("2",)))["2"]["bn1.running_mean"], torch.tensor(312.5)
    )  # (0 + 250 + 1000 + 0) / 4


# ---- results ---------------------------------------------------------------------------------------------------------


def test_the_mixing_weights_of_every_exchange_are_stored(federate: Federate) -> None:
    run = federate(strategy="pfedla", fraction_train=0.5, evaluate_every=1)
    table = read_weights(run.path).to_pandas()
    asked = {(r["round"], client) for r in run.records for client in r["cohort"]}
    assert set(zip(table["round"], table["client"], strict=True)) == asked
    assert len(table) == len(asked) * 4 * 4
    sums = table.groupby(["round", "client", "group"], observed=True)["weight"].sum()
    assert (sums - 1).abs().max() < 1e-6


def test_other_methods_have_none(federate: Federate) -> None:
    run = federate(strategy="fedavg")
    assert not (run.path / "mixing").exists()
    assert len(read_weights(run.path)) == 0
