"""FedBABU: a head that never changes while the rounds last, and the fine-tuning of all layers after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from presets import network
from safetensors.torch import load_file

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import check_resting
from fedham_flwr.core.parameters import LayerGroup, Params, read
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.core.trees import weighted_mean
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.contract import HasPersonalStage, Task
from fedham_flwr.federation.record_values import tensors
from fedham_flwr.models import build
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.resume.continuing import complete
from fedham_flwr.server_app import build_strategy
from fedham_flwr.settings import parse
from fedham_flwr.training.trainer import Trainer

Federate = Callable[..., Any]
HEAD = ("fc2.weight", "fc2.bias")
FEW = {"strategy": "fedbabu", "samples_per_client": 64}


def fine_tuned(epochs: int) -> dict[str, Any]:
    return {**FEW, "fedbabu.fine-tune-epochs": epochs}


def exported(run: Any) -> list[Params]:
    return [load_file(file) for file in sorted((run.path / "model").glob("*.safetensors"))]


def equal(one: Params, other: Params, names: Any) -> bool:
    return all(torch.equal(one[name], other[name]) for name in names)


def test_a_run_is_the_trainings_written_out(federate: Federate, settings: Callable[..., Any]) -> None:
    """Of two clients: two rounds of the body, and two epochs of everything from where they end."""
    run = federate(clients=2, **fine_tuned(2))
    chosen = parse(settings(**FEW))
    trainer = Trainer(build("digits-cnn", (1, 8, 8), 10, 0), torch.device("cpu"), "fp32")
    names = trainer.manifest.names()
    head = {name: trainer.initial[name] for name in HEAD}
    body = {name: trainer.initial[name] for name in names if name not in HEAD}
    data = [open_partition(chosen.data(), k, 2) for k in range(2)]
    for number in (1, 2):
        sent = []
        for k in range(2):
            trainer.load({**body, **head})
            stream = torch_stream(0, "batches", number, str(k))
            trainer.fit(data[k], chosen.local_training(number), stream, only=tuple(body))
            sent.append(trainer.read(list(body)))
        body = weighted_mean(sent, [len(each.splits["train"]) for each in data])
    assert run.state.keys() == body.keys()
    assert equal(run.state, body, body)
    for k, (context, file) in enumerate(zip(run.grid.contexts.values(), exported(run), strict=True)):
        trainer.load({**body, **head})
        before = trainer.evaluate(data[k], "test").loss
        training = chosen.local_training(3).changed(local_epochs=2, steps=0)
        trainer.fit(data[k], training, torch_stream(0, "personal-stage", 0, str(k)))
        after = trainer.read(names)
        kept = tensors(context.state.array_records["personal"])
        assert kept.keys() == file.keys() == set(names)
        assert equal(kept, after, names)
        assert equal(file, after, names)
        assert not any(torch.equal(after[name], {**body, **head}[name]) for name in names)
        rows = {
            r[3:5]: r.value for r in run.rows if (r.round, r.client, r.split, r.metric) == (3, str(k), "test", "loss")
        }
        assert rows == {("global", "before"): before, ("personal", "after"): trainer.evaluate(data[k], "test").loss}


def test_before_fine_tuning_the_head_never_changes(federate: Federate) -> None:
    """Neither by momentum nor by weight decay: without epochs every client is left with the first head."""
    run = federate(weight_decay=0.1, momentum=0.9, optimizer="adam", **fine_tuned(0))
    initial = build("digits-cnn", (1, 8, 8), 10, 0).state_dict()
    assert not set(HEAD) & set(run.state)
    for own in exported(run):
        assert equal(own, initial, HEAD)
        assert equal(own, run.state, run.state)
    assert not any(torch.equal(tensor, initial[name]) for name, tensor in run.state.items())
    scored = {phase: [r[6] for r in run.rows if r.round == 3 and r.phase == phase] for phase in ("before", "after")}
    assert scored["before"] == scored["after"]


def test_fine_tuning_is_one_exchange_after_the_rounds_and_sends_nothing_up(
    federate: Federate, capsys: pytest.CaptureFixture[str]
) -> None:
    run = federate(fraction_train=0.5, **fine_tuned(1))
    assert [(r["round"], r["kind"], len(r["cohort"])) for r in run.records] == [
        (1, "train", 2), (2, "train", 2), (3, "personal", 4),
    ]  # fmt: skip
    # 160 + 4,640 + 8,256 scalars of the body: see test_models
    assert run.records[-1]["bytes-up"] == 0
    assert run.records[-1]["bytes-down"] == 4 * 4 * 13_056
    said = "personal: fc2 (650 scalars), as it is at first; then all layers are fine-tuned for 1 epochs"
    assert said in " ".join(capsys.readouterr().out.split())


def test_fine_tuning_that_starts_from_an_earlier_run_is_the_one_after_the_same_rounds(federate: Federate) -> None:
    short, whole = federate(**fine_tuned(0)), federate(**fine_tuned(2))
    later = federate(resume=str(short.path), **fine_tuned(2))
    assert [(r["round"], r["kind"]) for r in later.records] == [(1, "personal")]
    assert equal(later.state, whole.state, whole.state)
    assert all(equal(mine, theirs, theirs) for mine, theirs in zip(exported(later), exported(whole), strict=True))


def test_a_run_that_has_had_its_fine_tuning_does_not_go_on(federate: Federate) -> None:
    ended = federate(**FEW, num_server_rounds=1)
    with pytest.raises(
        UserError, match=r"^resume=.* has come to its end, and fedbabu has no rounds after its personal"
    ):
        complete(str(ended.path), {"num-server-rounds": 3})


def test_a_whole_model_is_no_body_to_start_from(federate: Federate) -> None:
    """Nor is what each client has, of which there is no other use: the way out is a run of this method."""
    few: dict[str, Any] = {"samples_per_client": 64, "num_server_rounds": 1}
    ended = {name: federate(strategy=name, **few).path for name in ("fedavg", "local", "fedbabu")}
    body, head = "conv1.weight, conv1.bias, conv2.weight, conv2.bias, fc1.weight and 1 more", "fc2.bias, fc2.weight"
    for start, file, what in (
        (ended["fedavg"], ": server.safetensors", f"holds {head}"),
        (ended["local"], ": server.safetensors", f"lacks {body}"),
        (ended["fedbabu"] / "model" / "1.safetensors", "", f"holds {head}"),
    ):
        with pytest.raises(UserError) as refused:
            federate(resume=str(start), **FEW)
        assert str(refused.value) == (
            f"resume={start}{file} {what}, and fedbabu starts from the layers that it shares alone, under its first "
            "head: wanted the server.safetensors of a fedbabu run of the same network and settings"
        )
    with pytest.raises(UserError) as refused:
        federate(resume=str(ended["fedavg"].parent), **FEW)
    assert str(refused.value) == (
        f"resume={ended['fedavg'].parent} is not the directory of a run, and no fedbabu run below it has come to its "
        "end; wanted the directory of a fedbabu run, results/fedbabu/<time>-<seed>, or its server.safetensors"
    )


def test_a_body_that_was_trained_under_another_head_is_warned_of(
    federate: Federate, caplog: pytest.LogCaptureFixture
) -> None:
    few: dict[str, Any] = {"samples_per_client": 64, "num_server_rounds": 1, "data_seed": 0}
    said = "the start was trained with {}, and so under another head than the first one of this run: wanted a fedbabu "
    for given, differs in (
        ({"strategy": "fedbabu"}, ""),
        ({"strategy": "fedbabu", "seed": 1}, "seed=1"),
        ({"strategy": "fedper"}, 'strategy="fedper"'),
    ):
        body = federate(**few, **given).path
        caplog.clear()
        federate(resume=str(body), **few, strategy="fedbabu", **{"fedbabu.fine-tune-epochs": 0})
        assert caplog.messages == ([f"{said.format(differs)}run with seed=0"] if differs else [])


def test_bodies_of_each_clients_own_are_refused() -> None:
    net = network("fedbabu")
    manifest = manifest_of(net, [])
    server = build_strategy(
        parse({"strategy": "fedbabu", "resume": "x"}), manifest, read(net, manifest.names()), Task((1, 8, 8), 10)
    )
    assert isinstance(server, HasPersonalStage)
    body = server.state_dict()
    with pytest.raises(UserError, match=r'^resume="x": strategy="fedbabu" starts from one body for all clients$'):
        server.start_from({}, {"a": body})
    server.start_from({name: tensor + 1 for name, tensor in body.items()}, {})
    assert equal(server.state_dict(), {name: tensor + 1 for name, tensor in body.items()}, body)


def test_a_novel_client_fine_tunes_with_its_own_budget_and_begins_with_the_first_head(federate: Federate) -> None:
    run = federate(novel_clients=1, novel_steps=3, **fine_tuned(1))
    (novel,) = {row.client for row in run.rows if row.population == "novel"}
    own = load_file(run.path / "model" / f"{novel}.safetensors")
    assert not any(torch.equal(tensor, own[name]) for name, tensor in run.state.items())
    assert {(r.model, r.phase) for r in run.rows if r.client == novel} == {("global", "before"), ("personal", "after")}


def test_layers_of_zeros_are_refused() -> None:
    zero, some = torch.zeros(2, 3), torch.eye(3)
    initial = {"a.w": zero, "b.w": some, "b.bias": zero[0], "norm.w": zero[0]}
    groups = [
        LayerGroup("a", ("a.w",), ()),
        LayerGroup("b", ("b.w", "b.bias"), ()),
        LayerGroup("norm", ("norm.w",), ()),
    ]
    check_resting("it", initial, groups, ("b.w", "b.bias", "norm.w"))
    for names in (("a.w",), ("a.w", "b.w")):
        with pytest.raises(
            UserError, match=r"^strategy=\"fedbabu\" leaves a as it is at first, and in this network it"
        ):
            check_resting('strategy="fedbabu"', initial, groups, names)


def test_a_head_of_all_layers_is_refused(federate: Federate) -> None:
    with pytest.raises(UserError, match=r"^fedbabu.head-layers=4 leaves no body of the model's 4 layer groups: conv1"):
        federate(strategy="fedbabu", **{"fedbabu.head-layers": 4})
