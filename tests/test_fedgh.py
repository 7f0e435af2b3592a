"""FedGH: the server's steps against autograd and by hand, rounds written out, and what a client may send."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from presets import TWO_NETWORKS, kept, short_play
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedham_flwr import load_model
from fedham_flwr.algorithms.fedgh import header_names, slopes, train_header
from fedham_flwr.core import parameters
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.contract import Setup, Task, Upload
from fedham_flwr.models import build
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.models.heads import features, head_name
from fedham_flwr.registry import half, method
from fedham_flwr.runners.cohort import CohortGrid
from fedham_flwr.settings import parse
from fedham_flwr.training.trainer import Trainer

FEW: dict[str, Any] = {"samples_per_client": 64, "batch_size": 16, "strategy": "fedgh"}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- the mathematics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_slopes_are_those_of_autograd(bias: bool) -> None:
    header = {"weight": drawn(1, 4, 6).double().requires_grad_()}
    header |= {"bias": drawn(2, 4).double().requires_grad_()} if bias else {}
    means, classes = drawn(3, 5, 6).double(), torch.tensor([0, 3, 1, 1, 2])
    logits = means @ header["weight"].T + (header["bias"] if bias else 0)
    cross_entropy(logits, classes).backward()
    found = slopes({name: tensor.detach() for name, tensor in header.items()}, means, classes)
    for (_, tensor), slope in zip(header.items(), found, strict=False):
        torch.testing.assert_close(slope, tensor.grad)


def test_a_step_by_hand() -> None:
    """From zero the probabilities of two classes are a half: the step is half the rate times each mean."""
    zero = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}
    means, classes = torch.tensor([[2.0, 0.0], [0.0, 4.0]]).double(), torch.tensor([0, 1])
    found = train_header(zero, means, classes, 0.5, 1, 2, torch.Generator())
    assert found["weight"].tolist() == [[0.25, -0.5], [-0.25, 0.5]]
    assert found["bias"].tolist() == [0.0, 0.0]
    assert all(float(tensor.abs().sum()) == 0 for tensor in zero.values())


def by_loops(header: dict[str, Tensor], means: Tensor, classes: Tensor, seed: int, number: int, batch: int) -> Any:
    """Torch's optimiser and autograd, batch by batch."""
    layer = torch.nn.Linear(means.shape[1], len(header["bias"])).double()
    layer.load_state_dict(header)
    optimizer, draw = torch.optim.SGD(layer.parameters(), lr=0.05), torch_stream(seed, "header", number)
    for _ in range(3):
        order = torch.randperm(len(means), generator=draw).tolist()
        for at in range(0, len(order), batch):
            some = order[at : at + batch]
            optimizer.zero_grad()
            cross_entropy(layer(means[some]), classes[some]).backward()
            optimizer.step()
    return {name: tensor.detach().float() for name, tensor in layer.state_dict().items()}


def test_the_header_is_trained_as_by_torch() -> None:
    header, means, classes = {"weight": drawn(1, 4, 6), "bias": drawn(2, 4)}, drawn(3, 11, 6).double(), torch.arange(11)
    found = train_header(header, means, classes % 4, 0.05, 3, 4, torch_stream(0, "header", 7))
    wanted = by_loops(header, means, classes % 4, 0, 7, 4)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor)


# ---- rounds ----------------------------------------------------------------------------------------------------------


class ByHand:
    """A client's rounds, by one trainer and the equations."""

    def __init__(self, chosen: Any, client: int, clients: int) -> None:
        network = ("digits-cnn", "vit")[client % 2]
        self.chosen, self.client = chosen, str(client)
        self.data = open_partition(chosen.data(), client, clients)
        self.model = build(network, (1, 8, 8), 10, 0, chosen.networks())
        manifest = manifest_of(self.model, [])
        self.trainer, self.head = Trainer(self.model, torch.device("cpu"), "fp32", manifest), head_name(manifest)
        index = self.data.splits["train"]
        self.x, self.y = inputs_and_targets(self.data.features[index], self.data.labels[index])
        self.own = self.trainer.initial

    def train(self, number: int, header: dict[str, Tensor]) -> None:
        self.trainer.load({**self.own, **{f"{self.head}.{part}": tensor for part, tensor in header.items()}})
        stream = torch_stream(0, "batches", number, self.client)
        self.trainer.fit(self.data, self.chosen.local_training(number), stream)
        self.own = self.trainer.read(self.trainer.manifest.names())

    def means(self) -> list[tuple[Tensor, int]]:
        """The means of its classes, in their order."""
        self.model.eval()
        with torch.no_grad():
            seen = features(self.model, self.head, self.x)[0].double()
        return [(seen[self.y == c].mean(0), c) for c in range(10) if bool((self.y == c).any())]


def test_two_rounds_of_two_networks_written_out(federate: Callable[..., Any], settings: Callable[..., Any]) -> None:
    given = {**FEW, **TWO_NETWORKS, "fedgh.server-rate": 0.05, "fedgh.server-epochs": 3}
    run, chosen = federate(clients=4, **given), parse(settings(**given))
    clients = [ByHand(chosen, k, 4) for k in range(4)]
    largest = clients[0]
    header = {part: largest.own[name] for part, name in header_names(largest.trainer.manifest).items()}
    for number in (1, 2):
        for client in clients:
            client.train(number, header)
        pairs = [pair for client in clients for pair in client.means()]
        means, classes = torch.stack([mean for mean, _ in pairs]), torch.tensor([c for _, c in pairs])
        header = by_loops(header, means, classes, 0, number, 16)
    assert run.state.keys() == header.keys()
    for name, tensor in header.items():
        torch.testing.assert_close(run.state[name], tensor, rtol=1e-4, atol=1e-4)
    for client, own in zip(clients, kept(run), strict=True):
        assert own.keys() == client.own.keys()
        for name, tensor in own.items():
            torch.testing.assert_close(client.own[name], tensor, rtol=1e-4, atol=1e-4)
        client.train(3, header)  # the model that is used is the one after training
        model = load_model(run.path / "model" / f"{client.client}.safetensors")
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, client.own[name], rtol=1e-3, atol=1e-3)
    assert run.summary["bytes"]["train"] == {"up": 2 * 4 * (10 * 64 + 10) * 4, "down": 2 * 4 * (10 * 64 + 10) * 4}


def test_two_networks_train_at_once_as_one_after_the_other(federate: Callable[..., Any]) -> None:
    alone, cohort = federate(**FEW, **TWO_NETWORKS), federate(**FEW, **TWO_NETWORKS, grid=CohortGrid)
    for name, tensor in alone.state.items():
        torch.testing.assert_close(cohort.state[name], tensor, rtol=1e-3, atol=1e-4)
    assert cohort.summary["engine"]["together"] > 0
    assert cohort.summary["engine"]["alone"] == {}


def test_novel_clients_and_partial_rounds(federate: Callable[..., Any]) -> None:
    run = federate(clients=5, **FEW, **TWO_NETWORKS, novel_clients=1, novel_steps=30, fraction_train=0.5)
    novel = {row.phase for row in run.rows if row.population == "novel" and row.metric == "accuracy"}
    assert novel == {"before", "after"}


def test_a_run_that_is_continued_is_the_same_run(federate: Callable[..., Any]) -> None:
    given = {**FEW, **TWO_NETWORKS, "checkpoint_every": 1, "fedgh.server-epochs": 2}
    whole, part = federate(**given, num_server_rounds=3), federate(**given, num_server_rounds=2)
    again = federate(**given, num_server_rounds=3, resume=str(part.path))
    assert again.summary["digest"] == whole.summary["digest"]


def test_classes_with_few_samples_are_withheld_and_without_means_the_header_stays(federate: Callable[..., Any]) -> None:
    run = federate(**FEW, num_server_rounds=1, **{"fedgh.min-samples": 1000})
    first = build("digits-cnn", (1, 8, 8), 10, 0)
    assert torch.equal(run.state["weight"], first.fc2.weight)


def test_a_last_layer_without_a_bias_does(federate: Callable[..., Any], tmp_path: Path) -> None:
    run = federate(clients=3, strategy="fedgh", **short_play(tmp_path), **{"fedgh.server-epochs": 2})
    assert run.state.keys() == {"weight"}


# ---- what may come ---------------------------------------------------------------------------------------------------


def server_of(chosen: Any) -> Any:
    model = build(chosen.model, (1, 8, 8), 10, 0, chosen.networks())
    manifest = manifest_of(model, [])
    initial = parameters.read(model, manifest.names())
    declared = method(chosen.strategy)
    return half(declared.strategy)(Setup(chosen, declared, manifest, initial, Task((1, 8, 8), 10)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"means": torch.zeros(10, 63)}, r"means is torch.float32 \(10, 63\), wanted torch.float32 \(10, 64\)"),
        ({"means": torch.full((10, 64), torch.inf)}, "means holds NaN or infinity"),
        ({"means": torch.full((10, 64), 1e6)}, r"means has a norm above 1e\+06"),
        ({"has": torch.full((10,), 0.5)}, "has is neither 0 nor 1 for a class"),
        ({"has": torch.ones(9)}, r"has is torch.float32 \(9,\)"),
        ({"more": torch.zeros(1)}, "tensors other than the model's are"),
    ],
)
def test_means_that_cannot_be_are_refused(settings: Callable[..., Any], change: dict[str, Any], match: str) -> None:
    server = server_of(parse(settings(**FEW)))
    good = {"means": drawn(1, 10, 64), "has": torch.ones(10)}
    server.check_extras("train", "0", good)
    server.check_extras("evaluate", "0", {})
    with pytest.raises(ValueError, match=match):
        server.check_extras("train", "0", good | change)
    with pytest.raises(ValueError, match="tensors other than the model's are"):
        server.check_extras("evaluate", "0", good)


def test_state_is_whole_and_of_this_layer_and_a_header_that_diverges_ends_the_run(settings: Callable[..., Any]) -> None:
    chosen = parse(settings(**FEW, **{"fedgh.server-rate": 1e38}))
    server, other = server_of(chosen), server_of(parse(settings(**FEW)))
    reply = Upload("0", {}, 10, (), extras={"means": drawn(1, 10, 64), "has": torch.ones(10)})
    other.merge(1, {"0": reply})
    again = server_of(parse(settings(**FEW)))
    again.load_state_dict(other.state_dict())
    sent = [one.plan(2, ["0"])["0"].extras.tensors["weight"] for one in (other, again, server)]
    assert torch.equal(sent[0], sent[1])
    assert not torch.equal(sent[0], sent[2])
    with pytest.raises(ValueError, match="weight is"):
        again.load_state_dict({**other.state_dict(), "weight": torch.zeros(10, 3)})
    with pytest.raises(UserError, match=r"last layer diverged in round 1: lower fedgh\.server-rate"):
        server.merge(1, {"0": Upload("0", {}, 10, (), extras={**reply.extras, "means": 1000 * drawn(1, 10, 64)})})


def test_networks_that_do_not_fit_together_are_one_sentence(federate: Callable[..., Any]) -> None:
    with pytest.raises(
        UserError, match=r"digits-cnn \(client 0\) sees 64 features, that of vit \(client 1\) 32 features"
    ):
        federate(**FEW, **{**TWO_NETWORKS, "vit.width": 32})
