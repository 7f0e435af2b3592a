"""Layers that stay with each client, of methods that share or mix the rest: a matrix on digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import Message
from presets import TINY_VIT, kept

from fedham_flwr import models, registry
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import narrowed, split_groups
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.models import export
from fedham_flwr.reporting.mixing_weights import latest, read_weights
from fedham_flwr.runners.cohort import CohortGrid
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.settings import Value
from fedham_flwr.training.trainer import Trainer

Federate = Callable[..., Any]
FEW: dict[str, Value] = {"num_server_rounds": 2, "samples_per_client": 64, "batch_size": 10}
MANIFEST = Manifest.of(models.build("digits-cnn", (1, 8, 8), 10, 0))
HEAD = {"fc2.weight", "fc2.bias"}
MORE: dict[str, dict[str, Value]] = {
    **{name: {"strategy": name} for name in registry.composing()},
    "mediated": {"strategy": "fedham", "fedham.transport": "mediated"},
    "own": {"strategy": "fedham", "fedham.base-objective": "own"},
    "units": {"strategy": "fedham", "fedham.unit": "body", "fedham.features-of": "head"},
    "amn-layers": {"strategy": "amn", "amn.unit": "layer"},
    "candidates": {"strategy": "amn", "amn.candidates": 2},
    "retained": {"strategy": "pfedla", "pfedla.retained-layers": 2},
    "mixture": {"strategy": "pfedgraph", "pfedgraph.reference": "mixture"},
    "graph-first": {"strategy": "pfedgraph", "personal-epochs": 2},
    "fomo-first": {"strategy": "fedfomo", "personal-epochs": 2},
    "aghn": {"strategy": "fedham", "fedham.meta": "aghn"},
    "held-out": {"strategy": "fedham", "fedham.meta-data": "held-out"},
    "first": {"strategy": "fedham", "personal-epochs": 2},
    "first-own": {"strategy": "fedham", "personal-epochs": 2, "fedham.base-objective": "own"},
}


def test_those_that_compose_are_known() -> None:
    average, mix = (
        {"fedavg", "fedprox", "fedper", "fedbn", "clustered"},
        {"fedamp", "fedaghn", "pfedla", "amn", "fedham"},
    )
    assert set(registry.composing()) == average | mix | {"fedfomo", "pfedgraph", "fedcac"}


FAST = ("fedavg", "pfedla", "amn", "fedham", "first")
each = [pytest.param(given, id=key, marks=[] if key in FAST else [pytest.mark.slow]) for key, given in MORE.items()]


@pytest.mark.parametrize("given", each)
def test_the_head_stays_with_each_client_and_the_rest_is_shared_as_it_was(
    federate: Federate, given: dict[str, Value]
) -> None:
    sent: list[set[str]] = []

    class Watching(InProcessGrid):
        def _carry(self, message: Message) -> Message:
            if message.has_content():
                sent.extend(set(record) for record in message.content.array_records.values())
            return super()._carry(message)

    run = federate(grid=Watching, personal="head", **{**FEW, **given})
    assert run.summary["failures"] == 0
    names = {name.rpartition("/")[2] for tensors in sent for name in tensors}
    assert not HEAD & names
    assert {"conv1.weight", "fc1.weight"} <= names
    exported = [export.load(run.path / "model" / f"{client}.safetensors") for client in range(4)]
    heads = [dict(model.named_parameters())["fc2.weight"] for model in exported]
    assert all(not torch.equal(heads[0], other) for other in heads[1:])
    assert all({name.rpartition("/")[2] for name in tensors} >= HEAD for tensors in kept(run))
    if run.path.joinpath("mixing").exists():
        assert latest(read_weights(run.path)).groups == ("conv1", "conv2", "fc1")


def test_fedavg_with_a_personal_head_is_fedper_bit_for_bit(federate: Federate) -> None:
    one, other = federate(strategy="fedavg", personal="head", **FEW), federate(strategy="fedper", **FEW)
    assert one.state.keys() == other.state.keys()
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
    for mine, theirs in zip(kept(one), kept(other), strict=True):
        assert mine.keys() == theirs.keys() == HEAD
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_fedavg_with_a_personal_self_attention_is_fedtps_vanilla_bit_for_bit(federate: Federate) -> None:
    one = federate(strategy="fedavg", personal="attention", **TINY_VIT, **FEW)
    other = federate(strategy="fedtp", **TINY_VIT, **FEW, **{"fedtp.personal": "vanilla"})
    assert all(torch.equal(one.state[name], other.state[f"mean/{name}"]) for name in one.state)
    for mine, theirs in zip(kept(one), kept(other), strict=True):
        assert mine.keys() == theirs.keys() == {f"blocks.{at}.attention.to_qkv.weight" for at in range(2)}
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fedham", "amn", "pfedla", "pfedgraph", "fedfomo", "fedcac", "fedamp", "fedaghn"])
def test_self_attention_stays_with_each_client_and_the_rest_is_mixed(federate: Federate, strategy: str) -> None:
    run = federate(strategy=strategy, personal="attention head", **TINY_VIT, **FEW)
    assert run.summary["failures"] == 0
    assert latest(read_weights(run.path)).groups == ("embedding", "block1", "block2", "norm")
    exported = [export.load(run.path / "model" / f"{client}.safetensors").state_dict() for client in range(2)]
    own = [name for name in exported[0] if "to_qkv" in name]
    assert own
    assert all(not torch.equal(exported[0][name], exported[1][name]) for name in own)


def test_fedavg_with_a_personal_head_that_is_trained_first_is_fedrep_bit_for_bit(federate: Federate) -> None:
    one = federate(strategy="fedavg", personal="head", personal_epochs=3, **FEW)
    other = federate(strategy="fedrep", **FEW, **{"fedrep.head-epochs": 3})
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
    for mine, theirs in zip(kept(one), kept(other), strict=True):
        assert mine.keys() == theirs.keys() == HEAD
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


AFTER: dict[str, Value] = {"personal": "head", "personal-epochs": 3, "personal-training": "after-rounds"}


@pytest.mark.parametrize("grid", [InProcessGrid, CohortGrid])
def test_fedavg_with_a_head_that_rests_until_the_end_is_fedbabu_bit_for_bit(
    federate: Federate, grid: type[InProcessGrid]
) -> None:
    one = federate(strategy="fedavg", grid=grid, **AFTER, **FEW)
    other = federate(strategy="fedbabu", grid=grid, **FEW, **{"fedbabu.fine-tune-epochs": 3})
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
    last = [{(*row[1:3], *row[4:6]): row.value for row in run.rows if row.round == 3} for run in (one, other)]
    # In a cohort a common model is scored for all clients at once, and one with a head of the client's own is not.
    assert last[0] == (last[1] if grid is InProcessGrid else pytest.approx(last[1], rel=1e-6))
    assert [run.summary["exported"] for run in (one, other)] == [{"model": "personal", "phase": "after"}] * 2
    for client in range(4):
        mine, theirs = (export.load(run.path / "model" / f"{client}.safetensors") for run in (one, other))
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("given", [pytest.param(each, id=key, marks=[] if key == "fedham" else [pytest.mark.slow])
    for key, each in MORE.items() if "personal-epochs" not in each])  # fmt: skip
def test_a_head_rests_in_the_rounds_and_all_layers_are_fine_tuned_at_the_end(
    federate: Federate, given: dict[str, Value]
) -> None:
    fits: list[tuple[int, bool]] = []
    last: list[tuple[bool, int]] = []
    fit = Trainer.fit

    def watched(self: Trainer, samples: Any, training: Any, generator: Any, *others: Any) -> float:
        term, _, only, _ = others
        fits.append((training.local_epochs, only is None or set(only) >= HEAD))
        if len(fits) > 8:
            last.append((term is None, len(samples.splits["train"])))
        return fit(self, samples, training, generator, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "fit", watched)
        run = federate(**{**FEW, **AFTER, **given})
    assert run.summary["failures"] == 0
    # Four clients in two rounds; and in the closing evaluation each once more, from what it starts from.
    assert fits == [(1, False)] * 8 + [(3, True)] * 4
    assert last == [(True, 42)] * 4  # no term of the method's, and all samples
    first = models.build("digits-cnn", (1, 8, 8), 10, 0).state_dict()
    for tensors in kept(run):
        assert all(torch.equal(tensors[name], first[name]) for name in HEAD & tensors.keys())
    exported = [export.load(run.path / "model" / f"{client}.safetensors").state_dict() for client in range(4)]
    assert all(not torch.equal(model["fc2.weight"], first["fc2.weight"]) for model in exported)
    scored = {row.phase: row.value for row in run.rows if (row.round, row.metric, row.client) == (3, "loss", "0")}
    assert scored["after"] < scored["before"]


@pytest.mark.parametrize("strategy", [pytest.param("fedavg", marks=pytest.mark.slow), "fedham"])
def test_fine_tuning_at_the_end_leaves_nothing_for_more_rounds(federate: Federate, strategy: str) -> None:
    """A run of two rounds that is continued to a third is a run of three, to the bit."""
    given = {**FEW, **AFTER, "strategy": strategy, "checkpoint_every": 1}
    short, whole = (federate(**{**given, "num_server_rounds": rounds}) for rounds in (2, 3))
    longer = federate(**{**given, "num_server_rounds": 3, "resume": str(short.path)})
    assert longer.summary["digest"] == whole.summary["digest"]
    for mine, theirs in zip(kept(longer), kept(whole), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("grid", [InProcessGrid, CohortGrid])
def test_where_clients_keep_no_layer_nothing_is_trained_first(federate: Federate, grid: type[InProcessGrid]) -> None:
    runs = [federate(strategy="fedavg", grid=grid, personal_epochs=epochs, **FEW) for epochs in (0, 2)]
    assert all(torch.equal(runs[0].state[name], runs[1].state[name]) for name in runs[0].state)


@pytest.mark.parametrize("strategy", ["fedham", "pfedla"])
def test_a_novel_client_trains_all_of_its_layers_at_once(federate: Federate, strategy: str) -> None:
    fits: list[tuple[str, bool, int]] = []
    fit = Trainer.fit

    def watched(self: Trainer, samples: Any, training: Any, generator: Any, *given: Any) -> float:
        fits.append((str(len(samples.splits["train"])), given[2] is None, training.steps))
        return fit(self, samples, training, generator, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "fit", watched)
        run = federate(
            strategy=strategy, personal="head", personal_epochs=2, novel_clients=1, novel_steps=7, **FEW
        )  # fmt: skip
    assert run.summary["failures"] == 0
    assert {(whole, steps) for _, whole, steps in fits if steps == 7} == {(True, 7)}
    assert {whole for _, whole, steps in fits if steps != 7} == {False}  # the head, then the rest


@pytest.mark.parametrize("strategy", ["fedham", "amn", "pfedla"])
def test_mixing_by_equal_weights_under_a_personal_head_is_fedper(federate: Federate, strategy: str) -> None:
    """Weights that never learn are 1 / N: the body of every client is the mean, as with FedPer of equal shares."""
    key = "pfedla.hypernetwork-learning-rate" if strategy == "pfedla" else f"{strategy}.learning-rate"
    shares = {"partitioner": "iid", "samples_per_client": 40, "num_server_rounds": 2}
    mixed = federate(strategy=strategy, personal="head", **{**shares, key: 0.0 if strategy != "pfedla" else 1e-30})
    average = federate(strategy="fedper", **shares)
    scores = [[r.value for r in run.rows if (r.metric, r.phase) == ("loss", "before")] for run in (mixed, average)]
    assert scores[0] == pytest.approx(scores[1], rel=2e-3)


@pytest.mark.parametrize(
    "given",
    [
        {"strategy": "pfedgraph", "pfedgraph.alpha": 1e12, "pfedgraph.penalty": 0.0},
        {"strategy": "fedcac", "fedcac.share": 0.0},
    ],
    ids=lambda given: str(given["strategy"]),
)
def test_a_graph_of_shares_and_nothing_critical_are_fedper_under_a_personal_head(
    federate: Federate, given: dict[str, Value]
) -> None:
    mixed, average = federate(personal="head", **{**FEW, **given}), federate(strategy="fedper", **FEW)
    for mine, theirs in zip(kept(mixed), kept(average), strict=True):
        assert mine.keys() == theirs.keys() == HEAD
        assert all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in mine)


def test_a_proximal_term_pulls_at_what_is_shared_alone(federate: Federate) -> None:
    """With a weight that holds everything where it was, only the head can move."""
    run = federate(
        strategy="fedprox", personal="head", **FEW, **{"fedprox.mu": 45.0, "momentum": 0.0, "local_epochs": 3}
    )
    first = models.build("digits-cnn", (1, 8, 8), 10, 0).state_dict()
    moved = {name: (tensor - first[name]).abs().max().item() for name, tensor in run.state.items()}
    heads = [(tensors["fc2.weight"] - first["fc2.weight"]).abs().max().item() for tensors in kept(run)]
    assert max(moved.values()) < 0.2 * min(heads)


# ---- what may be said ------------------------------------------------------------------------------------------------

LENET = Manifest.of(models.build("lenet-bn", (3, 32, 32), 10, 0))


@pytest.mark.parametrize(
    ("personal", "wanted"),
    [
        ("head", {"fc3"}),
        ("norms", {"bn1", "bn2"}),
        ("head norms", {"fc3", "bn1", "bn2"}),
        ("conv1 fc2", {"conv1", "fc2"}),
    ],
)
def test_words_are_layers(personal: str, wanted: set[str]) -> None:
    found = narrowed(split_groups(LENET, ()), LENET, personal)
    assert found.personal == tuple(name for name in LENET.names() if name.partition(".")[0] in wanted)
    assert found.shared == tuple(name for name in LENET.names() if name not in found.personal)


def test_what_a_method_keeps_stays_kept() -> None:
    found = narrowed(split_groups(LENET, ("fc2",)), LENET, "head")
    assert {name.partition(".")[0] for name in found.personal} == {"fc2", "fc3"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strategy": "fedrep", "personal": "head"}, 'personal="head" is not for strategy=fedrep, which says itself'),
        ({"strategy": "ditto", "personal-epochs": 1}, "personal-epochs=1 is not for strategy=ditto, which says itself"),
        ({**AFTER, "strategy": "fedavg", "personal-epochs": 0}, "trains for personal-epochs=0 epochs"),
        ({**AFTER, "strategy": "fedrep"}, 'personal-training="after-rounds" is not for strategy=fedrep'),
        ({"strategy": "amn", "personal": "fc9"}, "personal='fc9': fc9 is no layer group: wanted none, head, norms, or"),
        ({"strategy": "amn", "personal": "norms"}, "personal='norms': the model has no normalisation layers"),
        ({"strategy": "amn", "personal": "conv1 conv2 fc1 head"}, "leaves nothing to share: wanted less, or"),
        (
            {"strategy": "pfedla", "personal": "head", "pfedla.retained-layers": 4},
            "pfedla.retained-layers=4 is more than the model's 3 layer groups",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(federate: Federate, given: dict[str, Value], message: str) -> None:
    with pytest.raises(UserError, match=message):
        federate(**{**FEW, **given})
