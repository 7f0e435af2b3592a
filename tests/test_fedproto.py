"""FedProto: its loss and layer by loops, its means by hand, rounds written out, and what a client may send."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from presets import TWO_NETWORKS, kept, short_play
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedham_flwr import load_model
from fedham_flwr.algorithms.fedproto import NEVER, FedProtoSettings, TowardsPrototypes, merged, nearest_layer, to_send
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.clients import open_partition
from fedham_flwr.models import build
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.models.heads import features, head_name
from fedham_flwr.registry import half, method
from fedham_flwr.runners.cohort import CohortGrid
from fedham_flwr.settings import parse
from fedham_flwr.training.own_loss import Batch
from fedham_flwr.training.trainer import Trainer

FEW: dict[str, Any] = {"samples_per_client": 64, "batch_size": 16, "strategy": "fedproto"}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- the mathematics -------------------------------------------------------------------------------------------------


def towards(seen: Tensor, logits: Tensor, y: Tensor, prototypes: Tensor, known: Tensor, penalty: float) -> Tensor:
    """Sample by sample."""
    total = torch.zeros(())
    for i in range(len(y)):
        c = int(y[i])
        total = total + cross_entropy(logits[i : i + 1], y[i : i + 1])
        if known[c]:
            total = total + penalty * sum((seen[i, f] - prototypes[c, f]) ** 2 for f in range(8)) / 8
    return total / len(y)


def test_the_loss_is_the_loop_over_samples_and_that_of_many_clients_is_that_of_each() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    x, y = drawn(1, 8, 6), torch.tensor([0, 3, 3, 2, 1, 0, 0, 2])
    prototypes, known = [drawn(2, 4, 8), drawn(3, 4, 8)], [torch.ones(4), torch.tensor([1.0, 0.0, 0.0, 1.0])]
    each = [TowardsPrototypes("3", *of, 0.7) for of in zip(prototypes, known, strict=True)]
    seen, logits = features(model, "3", x)
    for loss, *of in zip(each, prototypes, known, strict=True):
        torch.testing.assert_close(loss(model, x, y), towards(seen, logits, y, *of, 0.7))
    real = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
    both = each[0].stacked(each)(model, Batch(x, y, 2, real))
    torch.testing.assert_close(both, torch.stack([each[0](model, x[:4], y[:4]), each[1](model, x[4:7], y[4:7])]))
    nothing = TowardsPrototypes("3", prototypes[0], torch.zeros(4), 0.7)(model, x, y)
    torch.testing.assert_close(nothing, cross_entropy(logits, y))


def test_global_prototypes_by_hand() -> None:
    means = torch.tensor([[[1.0, 0.0], [9.0, 9.0], [0.0, 0.0]], [[4.0, 6.0], [0.0, 0.0], [0.0, 0.0]]]).double()
    counts = torch.tensor([[1.0, 2.0, 0.0], [2.0, 0.0, 0.0]]).double()
    found, known = merged(means, counts, "samples")
    assert found.tolist() == [[3.0, 4.0], [9.0, 9.0], [0.0, 0.0]]
    assert known.tolist() == [True, True, False]
    found, known = merged(means, counts, "clients")
    assert found.tolist() == [[2.5, 3.0], [9.0, 9.0], [0.0, 0.0]]
    sent, shares = to_send(means[0], counts[0], 2)
    assert sent.tolist() == [[0.0, 0.0], [9.0, 9.0], [0.0, 0.0]]
    assert shares.tolist() == pytest.approx([0.0, 2 / 3, 0.0])
    assert to_send(means[0], counts[0], 1)[1].tolist() == pytest.approx([1 / 3, 2 / 3, 0.0])


def test_the_layer_predicts_the_nearest_prototype_and_never_a_class_without_one() -> None:
    prototypes, seen = drawn(4, 6, 5), 3 * drawn(5, 200, 5)
    known = torch.tensor([False, True, True, False, True, True])
    weight, bias = nearest_layer(prototypes, known)
    logits = seen @ weight.T + bias
    for z, row in zip(seen, logits, strict=True):
        distance = {c: float((z - prototypes[c]).square().sum()) for c in range(6) if known[c]}
        assert int(row.argmax()) == min(distance, key=distance.__getitem__)
        for c, apart in distance.items():
            assert float(row[c]) == pytest.approx(float(z.square().sum()) / 2 - apart / 2, abs=1e-4)
    torch.testing.assert_close(logits[:, 0], logits[:, 1] - NEVER)
    assert bool(torch.isfinite(logits).all())


# ---- rounds ----------------------------------------------------------------------------------------------------------


def test_without_a_pull_it_is_local_bit_for_bit(federate: Callable[..., Any]) -> None:
    local = federate(**{**FEW, "strategy": "local"}, num_server_rounds=3)
    for predict in ("head", "prototypes"):
        run = federate(**FEW, num_server_rounds=3, **{"fedproto.penalty": 0.0, "fedproto.predict": predict})
        for own, alone in zip(kept(run), kept(local), strict=True):
            assert own.keys() == alone.keys()
            assert all(torch.equal(own[name], alone[name]) for name in alone)
        same = {row[:7] for row in run.rows} == {row[:7] for row in local.rows}
        assert same == (predict == "head")


class ByHand:
    """A client's rounds, by one trainer and the equations."""

    def __init__(self, chosen: Any, client: int, clients: int, network: str = "") -> None:
        network = network or ("digits-cnn", "vit")[client % 2]
        self.chosen, self.client = chosen, str(client)
        self.data = open_partition(chosen.data(), client, clients)
        self.model = build(network, (1, 8, 8), 10, 0, chosen.networks())
        manifest = manifest_of(self.model, [])
        self.trainer, self.head = Trainer(self.model, torch.device("cpu"), "fp32", manifest), head_name(manifest)
        index = self.data.splits["train"]
        self.x, self.y = inputs_and_targets(self.data.features[index], self.data.labels[index])
        self.own = self.trainer.initial

    def train(self, number: int, prototypes: Tensor, known: Tensor) -> None:
        """E epochs with the pull written as a sum over samples."""
        self.trainer.load(self.own)

        def loss(model: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
            seen, logits = features(model, self.head, x)
            pull = [(z - prototypes[c]).square().mean() for z, c in zip(seen, y, strict=True) if known[c]]
            return cross_entropy(logits, y) + 2.0 * sum(pull, torch.zeros(())) / len(y)

        stream = torch_stream(0, "batches", number, self.client)
        self.trainer.fit(self.data, self.chosen.local_training(number), stream, loss=loss)
        self.own = self.trainer.read(self.trainer.manifest.names())

    def sums(self) -> tuple[Tensor, Tensor]:
        """Of each class the sum of its features, and how many samples it has."""
        self.model.eval()
        with torch.no_grad():
            seen = features(self.model, self.head, self.x)[0].double()
        rows = [(seen[self.y == c].sum(0), int((self.y == c).sum())) for c in range(10)]
        return torch.stack([row for row, _ in rows]), torch.tensor([count for _, count in rows])


def test_two_rounds_of_two_networks_written_out(federate: Callable[..., Any], settings: Callable[..., Any]) -> None:
    given = {**FEW, **TWO_NETWORKS, "fedproto.penalty": 2.0}
    run, chosen = federate(clients=4, **given), parse(settings(**given))
    clients = [ByHand(chosen, k, 4) for k in range(4)]
    prototypes, known = torch.zeros(10, 64), torch.zeros(10, dtype=torch.bool)
    for number in (1, 2):
        for client in clients:
            client.train(number, prototypes, known)
        sums, counts = map(torch.stack, zip(*(client.sums() for client in clients), strict=True))
        prototypes = (sums.sum(0) / counts.sum(0).clamp(min=1)[:, None]).float()
        known = counts.sum(0) > 0
    torch.testing.assert_close(run.state["means"], prototypes, rtol=1e-4, atol=1e-4)
    assert run.state["known"].tolist() == known.tolist()
    for client, own in zip(clients, kept(run), strict=True):
        assert own.keys() == client.own.keys()
        for name, tensor in client.own.items():
            torch.testing.assert_close(own[name], tensor, rtol=1e-4, atol=1e-4)
        # The file has the body that was kept, and predicts the nearest of the last round's prototypes.
        model = load_model(run.path / "model" / f"{client.client}.safetensors")
        body = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(client.head)}
        assert all(torch.equal(tensor, own[name]) for name, tensor in body.items())
        with torch.no_grad():
            seen, logits = features(model, client.head, client.x)
        distances = torch.cdist(seen, run.state["means"][known])
        assert known.nonzero().flatten()[distances.argmin(1)].tolist() == logits.argmax(1).tolist()
    assert run.summary["bytes"]["train"]["up"] == 2 * 4 * (10 * 64 + 10) * 4  # no tensor of a network


def test_two_networks_train_at_once_as_one_after_the_other(federate: Callable[..., Any]) -> None:
    alone, cohort = federate(**FEW, **TWO_NETWORKS), federate(**FEW, **TWO_NETWORKS, grid=CohortGrid)
    torch.testing.assert_close(cohort.state["means"], alone.state["means"], rtol=1e-3, atol=1e-4)
    assert cohort.summary["engine"]["together"] > 0
    assert cohort.summary["engine"]["alone"] == {}


def test_novel_clients_get_the_prototypes_and_a_class_that_nobody_sends_stays(
    federate: Callable[..., Any], settings: Callable[..., Any]
) -> None:
    run = federate(clients=5, **FEW, **TWO_NETWORKS, novel_clients=1, novel_steps=30, fraction_train=0.5)
    novel = [row for row in run.rows if row.population == "novel" and row.metric == "accuracy"]
    assert {row.phase for row in novel} == {"before", "after"}
    server = server_of(parse(settings(**FEW)))
    first, later = drawn(7, 10, 64), drawn(8, 10, 64)
    share = torch.tensor([0.5, 0.5, *[0.0] * 8])
    server.merge(1, {"0": upload(first, share)})
    server.merge(2, {"0": upload(later, share.flip(0))})
    means = server.plan(3, ["0"])["0"].extras.tensors["means"]
    assert torch.equal(means[:2], first[:2])
    assert torch.equal(means[8:], later[8:])
    assert server.plan(3, ["0"])["0"].extras.facts["known"] == (1, 1, 0, 0, 0, 0, 0, 0, 1, 1)


# ---- what may come ---------------------------------------------------------------------------------------------------


def server_of(chosen: Any) -> Any:
    from fedham_flwr.core import parameters
    from fedham_flwr.federation.contract import Setup, Task

    model = build(chosen.model, (1, 8, 8), 10, 0, chosen.networks())
    manifest = manifest_of(model, [])
    initial = parameters.read(model, manifest.names())
    declared = method(chosen.strategy)
    return half(declared.strategy)(Setup(chosen, declared, manifest, initial, Task((1, 8, 8), 10)))


def upload(means: Tensor, shares: Tensor) -> Any:
    from fedham_flwr.federation.contract import Upload

    return Upload("0", {}, 10, (), extras={"means": means, "shares": shares})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"means": torch.zeros(10, 63)}, r"means is torch.float32 \(10, 63\), wanted torch.float32 \(10, 64\)"),
        ({"means": torch.full((10, 64), torch.nan)}, "means holds NaN or infinity"),
        ({"means": torch.full((10, 64), 1e6)}, r"means has a norm above 1e\+06"),
        ({"means": torch.zeros(10, 64).double()}, "means is torch.float64"),
        ({"shares": torch.full((10,), -0.1)}, "shares has a negative share"),
        ({"shares": torch.full((10,), 0.2)}, "or sums to more than 1"),
        ({"more": torch.zeros(1)}, "tensors other than the model's are"),
    ],
)
def test_prototypes_that_cannot_be_are_refused(settings: Callable[..., Any], change: dict, match: str) -> None:
    server = server_of(parse(settings(**FEW)))
    good = {"means": drawn(1, 10, 64), "shares": torch.full((10,), 0.1)}
    server.check_extras("train", "0", good)
    server.check_extras("evaluate", "0", {})
    with pytest.raises(ValueError, match=match):
        server.check_extras("train", "0", good | change)
    with pytest.raises(ValueError, match="tensors other than the model's are"):
        server.check_extras("evaluate", "0", good)


def test_state_is_whole_and_of_this_network(settings: Callable[..., Any]) -> None:
    server, other = (server_of(parse(settings(**FEW))) for _ in range(2))
    server.merge(1, {"0": upload(drawn(1, 10, 64), torch.full((10,), 0.1))})
    other.load_state_dict(server.state_dict())
    assert torch.equal(other.plan(2, ["0"])["0"].extras.tensors["means"], drawn(1, 10, 64))
    with pytest.raises(ValueError, match="means is"):
        other.load_state_dict({**server.state_dict(), "means": torch.zeros(10, 3)})


def test_a_run_that_is_continued_is_the_same_run(federate: Callable[..., Any]) -> None:
    given = {**FEW, **TWO_NETWORKS, "checkpoint_every": 1}
    whole, part = federate(**given, num_server_rounds=3), federate(**given, num_server_rounds=2)
    again = federate(**given, num_server_rounds=3, resume=str(part.path))
    assert again.summary["digest"] == whole.summary["digest"]


def test_classes_with_few_samples_are_withheld(federate: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    run = federate(**FEW, num_server_rounds=1, **{"fedproto.min-samples": 1000})
    assert any("fedproto.min-samples=1000: the most that a client has of a class" in line for line in caplog.messages)
    assert not bool(run.state["known"].any())
    assert float(run.state["means"].abs().sum()) == 0


def test_a_class_that_nobody_sends_is_predicted_by_who_has_it_alone(
    federate: Callable[..., Any], settings: Callable[..., Any]
) -> None:
    """All have too few samples of a class; a model of who has some knows it by their mean, another's never says it."""
    given = {**FEW, "partitioner": "dirichlet", "alpha": 0.3, "samples_per_client": 100, "num_server_rounds": 2}
    chosen = parse(settings(**given))
    clients = [ByHand(chosen, k, 4, "digits-cnn") for k in range(4)]
    counts = torch.stack([torch.tensor(client.data.label_counts("train")) for client in clients])
    most = counts.amax(0)
    rare = int(torch.where(most > 0, most, 1000).argmin())
    run = federate(**given, **{"fedproto.min-samples": int(most[rare]) + 1})
    assert run.state["known"].tolist() == [c != rare and int(n) > int(most[rare]) for c, n in enumerate(most)]
    assert bool((counts[:, rare] > 0).any())
    assert bool((counts[:, rare] == 0).any())
    for client, has in zip(clients, counts[:, rare] > 0, strict=True):
        model = load_model(run.path / "model" / f"{client.client}.safetensors")
        with torch.no_grad():
            seen, logits = features(model, "fc2", client.x)
        if has:
            mean = seen[client.y == rare].mean(0)
            torch.testing.assert_close(model.get_submodule("fc2").weight[rare], mean, rtol=1e-4, atol=1e-4)
        else:
            assert rare not in logits.argmax(1).tolist()


def test_what_does_not_fit_is_one_sentence(federate: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"digits-cnn \(client 0\) sees 64 features, that of vit \(client 1\) 32 features"
    ):
        federate(**FEW, **{**TWO_NETWORKS, "vit.width": 32})
    with pytest.raises(
        UserError, match="last layer, which has no bias in this network: wanted another network, or fed"
    ):
        federate(clients=3, strategy="fedproto", **short_play(tmp_path))
    run = federate(clients=3, strategy="fedproto", **short_play(tmp_path), **{"fedproto.predict": "head"})
    assert bool(run.state["known"].any())
    with pytest.raises(UserError, match=r"label-smoothing.*strategy=|strategy=.*label-smoothing"):
        federate(**FEW, label_smoothing=0.1)


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FedProtoSettings().penalty = 2.0  # type: ignore[misc]
