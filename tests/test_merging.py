"""The settings under `server.` in the methods that take a mean: who reads them, what is kept, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from presets import network_settings, sends_more
from safetensors.torch import load_file

from fedham_flwr import models, registry
from fedham_flwr.core.aggregation import ServerSettings, robust
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params, read
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.clients import open_partition
from fedham_flwr.doctor.trial import tried
from fedham_flwr.federation.contract import Task
from fedham_flwr.federation.merging import Merging
from fedham_flwr.federation.messages import Upload
from fedham_flwr.federation.roster import Roster
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.resume.warm_start import read_start
from fedham_flwr.runners import Simulation
from fedham_flwr.server_app import build_strategy
from fedham_flwr.settings import Value, parse
from fedham_flwr.training.trainer import Trainer

Federate = Callable[..., Any]
FIVE = tuple("01234")
BN: dict[str, Value] = {"strategy": "fedavg", "model": "lenet-bn"}


def server(strategy: str, clients: int = 0, **given: Value) -> Any:
    """A server half for digits, or images of lenet-bn, with so many nodes."""
    keys = {key.replace("_", "-"): value for key, value in given.items()}
    chosen = parse({"strategy": strategy, **network_settings(strategy), **keys})
    shape = (3, 32, 32) if chosen.model == "lenet-bn" else (1, 8, 8)
    model = models.build(chosen.model, shape, 10, 0, chosen.networks())
    manifest = manifest_of(model, models.trial_batches(shape))
    roster = Roster()
    roster.nodes = {str(k): k for k in range(clients)}
    return build_strategy(chosen, manifest, read(model, manifest.names()), Task(shape, 10), roster)


def uploads(made: Any, number: int, sizes: tuple[int, ...] = (1, 2, 3, 4, 50)) -> dict[str, Upload]:
    """Replies with noise; running variances stay positive."""
    found = {}
    for client, size in zip(FIVE, sizes, strict=True):
        draw = torch_stream(1, "noise", number, client)
        start = made.plan(number, (client,))[client].params
        params = {
            name: (tensor + torch.randn(tensor.shape, generator=draw)).abs_()
            if name.endswith("running_var")
            else tensor + 0.1 * torch.randn(tensor.shape, generator=draw)
            for name, tensor in start.items()
        }
        found[client] = Upload(client, params, size, ())
    return found


def merged(strategy: str, rounds: int = 1, sizes: tuple[int, ...] = (1, 2, 3, 4, 50), **given: Value) -> Any:
    made = server(strategy, **given)
    made.add_clients(FIVE)
    for number in range(1, rounds + 1):
        made.merge(number, uploads(made, number, sizes))
    return made


def same(one: Params, other: Params) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


AGGREGATING = [name for name in registry.METHODS if registry.aggregates(name) and not sends_more(name)]


def common(made: Any) -> Params:
    """The tensors that are averaged."""
    return dict(getattr(made, "shared", None) or made._mean)


@pytest.mark.parametrize("strategy", AGGREGATING)
def test_every_method_that_says_so_merges_as_the_settings_say(strategy: str) -> None:
    given_to, before = server(strategy), common(server(strategy))
    given_to.add_clients(FIVE)
    sent = [{name: upload.params[name] for name in before} for upload in uploads(given_to, 1).values()]
    wanted = robust(sent, ServerSettings("median"))
    assert same(common(merged(strategy, **{"server.aggregation": "median"})), wanted)
    moved = common(merged(strategy, **{"server.optimizer": "momentum", "server.learning-rate": 0.5}))
    half = common(merged(strategy))
    buffers = set(given_to.manifest.buffers)
    for name in before:
        target = half[name] if name in buffers else before[name] + 0.5 * (half[name] - before[name])
        torch.testing.assert_close(moved[name], target, rtol=1e-5, atol=1e-6)


def test_methods_that_take_no_mean_say_so() -> None:
    assert {name for name in registry.BUILT_IN if not registry.aggregates(name)} >= {"local", "pfedla", "amn", "fedham"}
    assert {"fedavg", "fedper", "fedtp", "fedtransfer", "fedrod", "ditto"} <= set(AGGREGATING)
    assert registry.aggregates("own_methods:STOPS")  # a user's own, over AveragingStrategy
    assert not registry.aggregates("own_methods:UNFINISHED")
    assert merged("local", **{"server.aggregation": "krum", "server.bad-clients": 9}).state_dict() == {}


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "krum", "multi-krum"])
def test_robust_rules_count_no_samples_and_a_mean_does(rule: str) -> None:
    one, other = (
        merged("fedavg", sizes=sizes, **{"server.aggregation": rule}) for sizes in ((1,) * 5, (9, 1, 1, 1, 1))
    )
    assert same(one.state_dict(), other.state_dict())
    assert not same(merged("fedavg", sizes=(1,) * 5).state_dict(), merged("fedavg", sizes=(9, 1, 1, 1, 1)).state_dict())


def test_krum_takes_one_clients_model_whole() -> None:
    made = server("fedavg")
    sent = [upload.params for upload in uploads(made, 1).values()]
    assert any(same(merged("fedavg", **{"server.aggregation": "krum"}).shared, model) for model in sent)


# ---- the optimiser ---------------------------------------------------------------------------------------------------


def test_no_momentum_and_rate_1_is_fedavg_bit_for_bit_over_rounds() -> None:
    plain = merged("fedavg", rounds=3)
    moved = merged("fedavg", rounds=3, **{"server.optimizer": "momentum", "server.momentum": 0.0})
    assert same(plain.shared, moved.shared)
    assert same(plain.state_dict(), plain.shared)  # and nothing is kept where there is no optimiser


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_running_statistics_take_the_aggregate_and_variances_stay_variances(optimizer: str) -> None:
    given_to: dict[str, Value] = {**BN, "server.optimizer": optimizer, "server.learning-rate": 5.0}
    made, plain = merged(**given_to), merged(**BN)  # type: ignore[arg-type]
    buffers = made.manifest.buffers
    assert any(name.endswith("running_var") for name in buffers)
    for name, tensor in made.shared.items():
        assert torch.equal(tensor, plain.shared[name]) == (name in buffers), name
    assert not any(name.endswith(tuple(buffers)) for name in made._merging.state_dict())


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "krum", "multi-krum"])
def test_robust_running_variances_stay_variances(rule: str) -> None:
    made = merged(**BN, **{"server.aggregation": rule})  # type: ignore[arg-type]
    assert all(bool((t >= 0).all()) for name, t in made.shared.items() if name.endswith("running_var"))


@pytest.mark.parametrize("strategy", ["fedavg", "fedtp"])
def test_the_optimisers_memory_is_state_that_is_taken_up_again(strategy: str) -> None:
    given_to: dict[str, Value] = {"server.optimizer": "adam", "server.aggregation": "trimmed-mean"}
    made = merged(strategy, rounds=2, **given_to)
    state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    fresh = server(strategy, **given_to)
    fresh.load_state_dict({name: state[name] for name in sorted(state)})
    for one in (made, fresh):
        one.merge(3, uploads(one, 3))
    assert same(made.state_dict(), fresh.state_dict())
    assert {name for name in state if name.startswith("server/")} == {
        f"server/{what}/{name}" for what in ("momentum", "second") for name in common(made)
    }


def test_a_state_of_other_settings_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tensors are missing: .*server/momentum/"):
        server("fedavg", **{"server.optimizer": "adam"}).load_state_dict(merged("fedavg").state_dict())
    kept = merged("fedavg", **{"server.optimizer": "adam"}).state_dict()
    with pytest.raises(ValueError, match=r"tensors are not wanted: .*server/second/"):
        server("fedavg", **{"server.optimizer": "momentum"}).load_state_dict(kept)


def test_an_optimiser_that_diverges_is_a_sentence() -> None:
    chosen = parse({"strategy": "fedavg", "server.optimizer": "momentum", "server.learning-rate": 1e6})
    start, far = {"w": torch.zeros(2)}, {"w": torch.full((2,), 3e38)}
    with pytest.raises(UserError, match=r"^the server's optimiser diverged: lower server.learning-rate=1e\+06$"):
        Merging(chosen, start, (), 0).merge(1, start, [far], [1])


def test_with_momentum_a_bad_update_moves_the_model_by_its_share_times_the_rate_and_later_by_less() -> None:
    """p C eta in its round, p C eta (1 + beta) after the next, at most p C eta / (1 - beta) in all."""
    chosen = parse({"strategy": "fedavg", "server.optimizer": "momentum", "server.learning-rate": 0.5})
    start, sizes, length = {"w": torch.zeros(1)}, [1, 3], 8.0
    merging = [Merging(chosen, start, (), 0) for _ in range(2)]
    both, apart = [start, start], []
    for number in range(1, 5):
        updates = (length if number == 1 else 0.0, 0.0)
        for k, (one, update) in enumerate(zip(merging, updates, strict=True)):
            sent = [{"w": both[k]["w"] + update}, {"w": both[k]["w"] + 1.0}]
            both[k] = one.merge(number, both[k], sent, sizes)
        apart.append(float(both[0]["w"] - both[1]["w"]))
    assert apart == pytest.approx([1.0, 1.9, 2.71, 3.439])  # p C eta = 8 / 4 / 2
    assert apart[-1] < 1.0 / (1 - 0.9)


# ---- what is refused and said ----------------------------------------------------------------------------------------


def test_a_round_with_too_few_replies_is_a_sentence() -> None:
    made = server("fedper", **{"server.aggregation": "krum"})
    few = dict(list(uploads(made, 2).items())[:4])
    sentence = (
        '^round 2: there are 4 good replies, and server.aggregation="krum" with server.bad-clients=1 needs at least 5$'
    )
    with pytest.raises(UserError, match=sentence):
        made.merge(2, few)


def test_clients_that_can_never_be_enough_are_refused_before_the_first_round() -> None:
    given_to: dict[str, Value] = {"server.aggregation": "krum", "fraction-train": 0.5, "novel-clients": 1}
    sentence = (
        '^server.aggregation="krum" with server.bad-clients=1 needs at least 5, and a round asks 4 clients '
        r"\(fraction-train=0.5 of 8\)$"
    )
    for strategy in ("fedavg", "fedtp"):
        with pytest.raises(UserError, match=sentence):
            server(strategy, clients=9, **given_to)
        server(strategy, clients=10, **given_to)
    server("local", clients=2, **given_to)
    server("fedtransfer", clients=2, resume="somewhere", **{"server.aggregation": "krum"})  # which has no rounds


def test_a_run_says_what_it_does_with_the_models() -> None:
    assert server("fedavg").describe().endswith("personal: nothing")
    made = server("fedavg", **{"server.aggregation": "median", "server.optimizer": "adam"})
    assert made.describe().endswith("personal: nothing; server: median of the replies, adam, rate 0.01")


def test_the_noise_of_one_client_is_refused() -> None:
    noisy: dict[str, Value] = {"strategy": "fedavg", "dp.epsilon": 1.0, "dp.clipping-norm": 1.0}
    with pytest.raises(UserError, match=r'averages out over clients, and server\.aggregation="krum" takes'):
        parse({**noisy, "server.aggregation": "krum"})
    parse({**noisy, "server.aggregation": "multi-krum", "server.optimizer": "adam"})


# ---- whole runs ------------------------------------------------------------------------------------------------------


def test_rounds_are_a_median_and_adam_written_out(
    federate: Federate, settings: Callable[..., dict[str, Value]]
) -> None:
    own: dict[str, Value] = {"server.aggregation": "median", "server.optimizer": "adam", "samples_per_client": 64}
    run = federate(clients=3, strategy="fedavg", **own)
    chosen = parse(settings(strategy="fedavg", **own))
    trainer = Trainer(models.build("digits-cnn", (1, 8, 8), 10, chosen.seed), torch.device("cpu"), "fp32")
    w = dict(trainer.initial)
    m, v = ({name: torch.full_like(t, value).double() for name, t in w.items()} for value in (0.0, 1e-6))
    for number in (1, 2):
        trained = []
        for k in range(3):
            trainer.load(w)
            data, draw = open_partition(chosen.data(), k, 3), torch_stream(chosen.seed, "batches", number, str(k))
            trainer.fit(data, chosen.local_training(number), draw)
            trained.append(trainer.read(list(w)))
        for name, tensor in w.items():
            middle = torch.stack([one[name] for one in trained]).median(0).values  # of three: the middle one
            way = (middle - tensor).double()
            m[name], v[name] = 0.9 * m[name] + 0.1 * way, 0.99 * v[name] + 0.01 * way**2
            w[name] = tensor + (0.01 * m[name] / (v[name].sqrt() + 1e-3)).float()
    for name, tensor in w.items():
        torch.testing.assert_close(run.state[name], tensor, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(run.state[f"server/second/{name}"], v[name].float(), rtol=1e-3, atol=1e-8)


def test_a_personal_stage_starts_from_a_run_whose_server_had_an_optimiser(federate: Federate, tmp_path: Path) -> None:
    few: dict[str, Value] = {"num_server_rounds": 1, "samples_per_client": 40, "server.optimizer": "adam"}
    run = federate(clients=2, strategy="fedavg", **few)
    made = server("fedtransfer", **{"server.optimizer": "adam"})
    for place in (run.path, run.path / "server.safetensors"):
        start = read_start(str(place), made.manifest, made.split.shared, "digits-cnn", ("0", "1"))
        assert not start.own
        made.start_from(start.common, {})
        left = load_file(run.path / "server.safetensors")
        assert same(made.shared, {name: left[name] for name in made.split.shared})


def test_the_doctor_tries_fewer_clients_than_a_rule_wants(settings: Callable[..., dict[str, Value]]) -> None:
    given_to = settings(strategy="fedavg", samples_per_client=40, **{"server.aggregation": "krum"})
    assert tried(given_to, Simulation(5, "cohort"), 2, 1).clients == 2
