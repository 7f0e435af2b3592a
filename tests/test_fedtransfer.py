"""Fed_T and Fed_T_A: which layers are frozen, and the personal stage against FedAvg and against one another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from presets import planned
from safetensors.torch import load_file

from clients.fedtransfer import FedTransferClient
from fedham_flwr import models
from fedham_flwr.algorithms.fedtransfer import FedTransferSettings, frozen_groups
from fedham_flwr.client_app import make_client_app
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import LayerGroup, Manifest, Params, read
from fedham_flwr.federation.contract import Outcome, Task
from fedham_flwr.federation.record_values import tensors
from fedham_flwr.federation.stages import PERSONAL
from fedham_flwr.server_app import build_strategy
from fedham_flwr.settings import Value, parse
from strategies.fedtransfer import FedTransferStrategy

Federate = Callable[..., Any]
LOW, HIGH = ("conv1", "conv2"), ("fc1", "fc2")
CBAM: dict[str, Value] = {"fedtransfer.attention": "cbam"}


def built(name: str = "transfer-cnn", shape: tuple[int, ...] = (3, 32, 32), **given: Value) -> FedTransferStrategy:
    """The server half, with settings of the method as keywords."""
    chosen: dict[str, Value] = {f"fedtransfer.{key.replace('_', '-')}": value for key, value in given.items()}
    settings = parse({"strategy": "fedtransfer", "model": name, **chosen})
    model = models.build(name, shape, 10, 0, settings.networks())
    manifest = Manifest.of(model)
    return build_strategy(settings, manifest, read(model, manifest.names()), Task(shape, 10))


def frozen(strategy: FedTransferStrategy) -> tuple[str, ...]:
    return frozen_groups(strategy.manifest.groups, strategy.own)


def exported(run: Any, client: str) -> Params:
    return load_file(run.path / "model" / f"{client}.safetensors")


def equal(one: Params, other: Params, names: Any = None) -> bool:
    return all(torch.equal(one[name], other[name]) for name in (one.keys() if names is None else names))


def of(groups: tuple[str, ...], params: Params) -> list[str]:
    return [name for name in params if name.split(".")[0] in groups]


@pytest.fixture
def federate(federate: Federate) -> Federate:
    return partial(federate, samples_per_client=64)


@pytest.fixture
def federated(federated: Federate) -> Federate:
    return partial(federated, samples_per_client=64)


# ---- which layers ----------------------------------------------------------------------------------------------------


def test_the_papers_counts() -> None:
    fed_t = built()
    assert frozen(fed_t) == LOW
    assert fed_t.manifest.count(LOW) == 209_792
    assert fed_t.manifest.count() - fed_t.manifest.count(LOW) == 3_542_794
    assert "personal stage: fc1, fc2, fc3 (3,542,794 scalars), frozen: conv1, conv2" in fed_t.describe()


def test_with_cbam_its_parameters_and_running_statistics_are_added() -> None:
    fed_t_a = built(attention="cbam")
    assert frozen(fed_t_a) == LOW
    block = [g for g in fed_t_a.manifest.groups if g.name == "cbam"]
    assert sum(torch.Size(fed_t_a.manifest.shapes[n]).numel() for n in block[0].parameters) == 2_284
    assert "personal: cbam (2,286 scalars)" in fed_t_a.describe()
    assert "personal stage: cbam, fc1, fc2, fc3" in fed_t_a.describe()


def test_reading_f2_leaves_the_first_fully_connected_layer_frozen_and_not_the_block_before_it() -> None:
    assert frozen(built(attention="cbam", reading="F2")) == (*LOW, "fc1")
    assert frozen(built(reading="F2")) == (*LOW, "fc1")


def test_batch_normalisation_between_convolutions_is_low_level() -> None:
    assert frozen(built("lenet-bn")) == ("conv1", "bn1", "conv2", "bn2")


def test_frozen_layers_can_be_named_and_stand_in_the_models_order() -> None:
    assert frozen(built(frozen="fc1 conv1")) == ("conv1", "fc1")
    assert frozen(built(frozen="")) == ()
    assert frozen(built(attention="cbam", frozen="cbam conv2")) == ("conv2", "cbam")


def test_a_name_that_matches_nothing_is_refused_with_those_that_do() -> None:
    text = (
        r'^fedtransfer\.frozen="conv1 conv3": the model has no layer group conv3; wanted some of conv1, conv2, fc1, '
        r"fc2, fc3, with blanks between$"
    )
    with pytest.raises(UserError, match=text):
        built(frozen="conv1 conv3")


def test_to_freeze_everything_is_refused() -> None:
    with pytest.raises(UserError, match=r'^fedtransfer\.frozen="conv1 conv2 fc1 fc2 fc3" leaves nothing to train'):
        built(frozen="conv1 conv2 fc1 fc2 fc3")
    assert frozen(built(attention="se", frozen="conv1 conv2 fc1 fc2 fc3")) == (*LOW, "fc1", "fc2", "fc3")


def test_a_model_without_convolutions_must_say_what_is_frozen() -> None:
    groups = [LayerGroup(name, (name,)) for name in ("embedding", "attention", "head")]
    with pytest.raises(UserError, match="freezes convolutions, and this model has none: name some of its layer groups"):
        frozen_groups(groups, FedTransferSettings())
    assert frozen_groups(groups, FedTransferSettings(frozen="embedding")) == ("embedding",)


def test_two_settings_that_both_say_what_is_frozen_are_refused() -> None:
    with pytest.raises(UserError, match=r'reading="F2" says what is frozen, and so does fedtransfer\.frozen="conv1"'):
        parse({"strategy": "fedtransfer", "fedtransfer.reading": "F2", "fedtransfer.frozen": "conv1"})


def test_a_graft_point_that_is_not_there_is_refused_before_the_first_round(federate: Federate) -> None:
    with pytest.raises(UserError, match=r'fedtransfer\.graft-after="conv7".*wanted auto or one of conv1, conv2, fc1'):
        federate(strategy="fedtransfer", **CBAM, **{"fedtransfer.graft-after": "conv7"})


# ---- a federation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, CBAM], ids=["none", "cbam"])
def test_the_rounds_are_fedavgs_bit_for_bit(federated: Federate, given: dict[str, Value]) -> None:
    fedavg = federated(strategy="fedavg")
    run = federated(strategy="fedtransfer", **given)
    assert equal(fedavg.state, run.state)
    before = {row for row in fedavg.rows if row.round <= 2 or row.phase == "before"}
    assert before == {row for row in run.rows if row.round <= 2 or row.phase == "before"}


def test_the_personal_stage_is_one_exchange_and_sends_nothing_up(federated: Federate) -> None:
    run = federated(strategy="fedtransfer", **CBAM)
    assert [(r["round"], r["kind"], len(r["cohort"])) for r in run.records] == [
        (1, "train", 4), (2, "train", 4), (3, "personal", 4),
    ]  # fmt: skip
    assert run.records[-1]["bytes-up"] == 0
    assert run.records[-1]["bytes-down"] == 4 * 4 * 13_706


def test_everyone_takes_part_in_it_whoever_trained_before(federated: Federate) -> None:
    run = federated(strategy="fedtransfer", fraction_train=0.5)
    assert {row.client for row in run.rows if row.round == 3} == {"0", "1", "2", "3"}


@pytest.mark.parametrize(
    ("given", "trained"),
    [
        ({}, HIGH),
        (CBAM, ("cbam", *HIGH)),
        ({**CBAM, "fedtransfer.reading": "F2"}, ("cbam", "fc2")),
        ({**CBAM, "fedtransfer.graft-after": "conv1"}, ("cbam", *HIGH)),
        ({"fedtransfer.frozen": "fc1 fc2"}, LOW),
        ({"fedtransfer.frozen": ""}, LOW + HIGH),
        ({"fedtransfer.attention": "se"}, ("se", *HIGH)),
        ({"fedtransfer.attention": "adapter", "fedtransfer.graft-after": "fc1"}, ("adapter", *HIGH)),
    ],
)
def test_frozen_layers_are_the_global_ones_bit_for_bit_and_every_other_has_moved(
    federated: Federate, given: dict[str, Value], trained: tuple[str, ...]
) -> None:
    run = federated(strategy="fedtransfer", num_server_rounds=1, **given)
    shared = run.state
    for client in "0123":
        own = exported(run, client)
        for name in shared:
            assert torch.equal(own[name], shared[name]) != (name.split(".")[0] in trained), name
        assert {name.split(".")[0] for name in own} == {*LOW, *HIGH, *trained}


def test_without_epochs_the_personal_model_is_fedavgs(federated: Federate) -> None:
    for given in ({}, CBAM):
        run = federated(strategy="fedtransfer", **{"fedtransfer.personal-epochs": 0}, **given)
        assert all(equal(run.state, exported(run, client), run.state) for client in "0123")
        scores = {p: [r[6] for r in run.rows if r.round == 3 and r.phase == p] for p in ("before", "after")}
        assert scores["before"] == scores["after"]


def test_a_published_block_changes_what_the_model_says_when_it_is_inserted(federated: Federate) -> None:
    run = federated(
        strategy="fedtransfer", **CBAM, **{"fedtransfer.personal-epochs": 0, "fedtransfer.insertion": "plain"}
    )
    loss = {p: [r.value for r in run.rows if r.round == 3 and r[4:6] == (p, "loss")] for p in ("before", "after")}
    fedavg = federated(strategy="fedavg")
    assert loss["before"] == loss["after"]
    assert loss["before"] != [r.value for r in fedavg.rows if r.round == 3 and r[4:6] == ("before", "loss")]


@pytest.mark.parametrize("block", [CBAM, {"fedtransfer.attention": "adapter", "fedtransfer.graft-after": "fc1"}])
def test_a_published_block_changes_nothing_before_the_personal_stage(
    federated: Federate, block: dict[str, Value]
) -> None:
    run = federated(strategy="fedtransfer", evaluate_every=1, **block, **{"fedtransfer.insertion": "plain"})
    fedavg = federated(strategy="fedavg", evaluate_every=1)
    assert equal(run.state, fedavg.state)
    rounds = [[row for row in each.rows if row.round < 3] for each in (run, fedavg)]
    assert rounds[0] == rounds[1]
    assert {row.round for row in rounds[0]} == {1, 2}


def test_with_its_block_held_at_the_identity_fed_t_a_is_fed_t(federated: Federate) -> None:
    fed_t = federated(strategy="fedtransfer")
    held = federated(strategy="fedtransfer", **CBAM, **{"fedtransfer.frozen": "conv1 conv2 cbam"})
    for client in "0123":
        own, other = exported(fed_t, client), exported(held, client)
        assert equal(own, other)
        block = {name: tensor for name, tensor in other.items() if name.startswith("cbam")}
        assert float(block["cbam.norm.running_mean"]) == 0.0
        assert float(block["cbam.norm.running_var"]) == 1.0
    assert fed_t.rows == held.rows


def test_the_whole_personal_model_stays_with_the_client(federated: Federate) -> None:
    run = federated(strategy="fedtransfer", **CBAM)
    for context in run.grid.contexts.values():
        kept = tensors(context.state.array_records["personal"])
        own = exported(run, str(context.node_config["partition-id"]))
        assert kept.keys() == own.keys() - {"cbam.norm.num_batches_tracked"}
        assert equal(kept, own)


def test_the_personal_stage_has_a_learning_rate_of_its_own(federated: Federate) -> None:
    usual, same, other = (
        federated(strategy="fedtransfer", num_server_rounds=1, **{"fedtransfer.learning-rate": rate})
        for rate in (0.0, 0.02, 0.001)
    )
    assert usual.summary["digest"] == same.summary["digest"]
    assert usual.summary["final"] != other.summary["final"]
    assert equal(usual.state, other.state)


def test_a_client_that_fails_in_the_personal_stage_is_named_and_the_others_have_their_models(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = FedTransferClient.train

    def failing(self: FedTransferClient, start: Params) -> Outcome:
        if self.job.client == "2" and self.job.stage is PERSONAL:
            raise UserError("the battery is empty")
        return train(self, start)

    monkeypatch.setattr(FedTransferClient, "train", failing)
    run = federate(strategy="fedtransfer")
    assert run.records[-1]["failures"] == [
        {"round": 3, "stage": "personal", "client": "2", "error": "the battery is empty"}
    ]
    assert sorted(file.stem for file in (run.path / "model").glob("*.safetensors")) == ["0", "1", "3"]
    assert "error" not in run.summary


def test_if_all_fail_the_global_model_is_there_to_start_from_again(federate: Federate, tmp_path: Path) -> None:
    def lost(chosen: dict[str, Value]) -> Any:
        app = make_client_app(chosen)
        del app._registered_funcs["train.personal"]
        return app

    with pytest.raises(UserError, match="0 of 4 clients gave a good reply to personal, and at least 2 are wanted"):
        federate(strategy="fedtransfer", client_app=lost)
    (left,) = tmp_path.glob("results/fedtransfer/*")
    whole = federate(strategy="fedtransfer", results_dir=str(tmp_path / "other"))
    assert equal(load_file(left / "server.safetensors"), whole.state)
    again = federate(strategy="fedtransfer", resume=str(left))
    assert again.path == left
    assert again.summary["digest"] == whole.summary["digest"]


# ---- a personal stage that starts from another run -------------------------------------------------------------------


def test_a_stage_that_starts_from_fedavgs_results_is_the_one_after_the_same_rounds(
    federate: Federate, federated: Federate
) -> None:
    fedavg = federated(strategy="fedavg")
    whole = federated(strategy="fedtransfer", **CBAM)
    later = federate(strategy="fedtransfer", resume=str(fedavg.path), **CBAM)
    assert [(r["round"], r["kind"]) for r in later.records] == [(1, "personal")]
    assert later.summary["num-rounds"] == 0
    assert equal(whole.state, later.state)
    assert all(equal(exported(whole, client), exported(later, client)) for client in "0123")
    assert [row[1:] for row in later.rows] == [row[1:] for row in whole.rows if row.round == 3]


def test_after_a_personalised_run_each_client_starts_from_the_model_that_it_had(
    federate: Federate, federated: Federate
) -> None:
    fedper = federated(strategy="fedper")
    run = federate(strategy="fedtransfer", resume=str(fedper.path), **{"fedtransfer.personal-epochs": 0})
    assert all(equal(exported(fedper, client), exported(run, client)) for client in "0123")
    assert {row.model for row in run.rows} == {"personal"}
    assert run.state.keys() == {f"{client}/{name}" for client in "0123" for name in exported(fedper, "0")}


def test_one_clients_model_can_be_everybodys_start(federate: Federate, federated: Federate) -> None:
    fedper = federated(strategy="fedper")
    start = fedper.path / "model" / "1.safetensors"
    run = federate(strategy="fedtransfer", resume=str(start), **{"fedtransfer.personal-epochs": 0})
    assert all(equal(exported(run, client), exported(fedper, "1")) for client in "0123")
    assert {row.model for row in run.rows if row.phase == "before"} == {"global"}


def test_data_dealt_otherwise_than_for_the_start_are_warned_of(
    federate: Federate, caplog: pytest.LogCaptureFixture
) -> None:
    fedavg, idle = federate(strategy="fedavg", num_server_rounds=1), {"fedtransfer.personal-epochs": 0}
    for start in (fedavg.path, fedavg.path / "server.safetensors", fedavg.path / "model" / "0.safetensors"):
        federate(strategy="fedtransfer", resume=str(start), **idle)
        assert "dealt with" not in caplog.text
        federate(strategy="fedtransfer", resume=str(start), seed=1, test_fraction=0.5, **idle)
        assert "the start was trained on data dealt with test-fraction=0.25, seed=0, not as in this run" in caplog.text
        caplog.clear()


def test_the_state_of_a_stage_with_own_starts_is_loaded_again(federate: Federate) -> None:
    server = built()
    shared = server.state_dict()
    server.start_from({}, {"a": shared, "b": {name: tensor + 1 for name, tensor in shared.items()}})
    state = {name: tensor + 1 for name, tensor in server.state_dict().items()}
    server.load_state_dict(state)
    assert equal(planned(server.plan(1, ["b"]))["b"], {name: state[f"b/{name}"] for name in shared})
    with pytest.raises(ValueError, match="missing"):
        server.load_state_dict(shared)


def test_other_methods_start_from_nothing(federate: Federate, federated: Federate) -> None:
    other = federated(strategy="local")
    with pytest.raises(UserError, match=r'a run is continued with the settings .*: strategy="local" \(now "fedavg"\)'):
        federate(strategy="fedavg", resume=str(other.path))


# ---- novel clients ---------------------------------------------------------------------------------------------------


def test_a_novel_client_has_a_personal_stage_with_its_own_budget(federate: Federate) -> None:
    run = federate(strategy="fedtransfer", novel_clients=1, novel_steps=3, **CBAM)
    (novel,) = {row.client for row in run.rows if row.population == "novel"}
    own, shared = exported(run, novel), run.state
    assert equal(shared, own, of(LOW, shared))
    assert not any(torch.equal(own[name], shared[name]) for name in of(HIGH, shared))
    assert bool(own["cbam.norm.weight"].any())
