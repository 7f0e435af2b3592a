"""FedAS: its alignment by loops, its weights by hand, rounds written out, and what a client may say of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from presets import short_play
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedham_flwr.algorithms.fedas import Alignment, FedASSettings, client_weights
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.core.trees import weighted_mean
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.record_values import tensors
from fedham_flwr.models import build
from fedham_flwr.models.heads import features
from fedham_flwr.registry import half, method
from fedham_flwr.settings import parse
from fedham_flwr.training.own_loss import Batch
from fedham_flwr.training.trainer import Trainer

HEAD = ("fc2.weight", "fc2.bias")
FEW: dict[str, Any] = {"samples_per_client": 64, "batch_size": 16}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numbers(*given: float) -> Tensor:
    return torch.tensor(given, dtype=torch.float64)


# ---- the mathematics -------------------------------------------------------------------------------------------------


def aligned(seen: Tensor, y: Tensor, means: Tensor, known: Tensor) -> Tensor:
    """The sum over classes of the mean squared distance to their past mean, class by class and sample by sample."""
    total = torch.zeros(())
    for c in range(len(known)):
        rows = [seen[i] for i in range(len(y)) if int(y[i]) == c]
        if rows and known[c]:
            total = total + sum((row - means[c]).square().mean() for row in rows) / len(rows)
    return total


def test_alignment_is_the_loop_over_classes_and_that_of_many_clients_is_that_of_each() -> None:
    model = build("digits-cnn", (1, 8, 8), 10, 0)
    x, y = drawn(1, 8, 1, 8, 8), torch.tensor([0, 3, 3, 9, 1, 0, 0, 5])
    means, known = (
        [drawn(5, 10, 64), drawn(6, 10, 64)],
        [torch.ones(10), torch.tensor([1.0, 0, 0, 0, 0, 1, 1, 1, 1, 1])],
    )
    each = [Alignment("fc2", *of) for of in zip(means, known, strict=True)]
    seen = features(model, "fc2", x)[0]
    for loss, mean, has in zip(each, means, known, strict=True):
        torch.testing.assert_close(loss(model, x, y), aligned(seen, y, mean, has))
    real = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
    both = each[0].stacked(each)(model, Batch(x, y, 2, real))
    torch.testing.assert_close(both, torch.stack([each[0](model, x[:4], y[:4]), each[1](model, x[4:7], y[4:7])]))
    nothing = Alignment("fc2", means[0], torch.zeros(10))(model, x, y)
    assert float(nothing.detach()) == 0


def test_weights_by_hand() -> None:
    samples = numbers(1, 2, 5)
    assert client_weights(numbers(2, 2, 2), samples, 1.0).tolist() == pytest.approx([1 / 3] * 3)
    assert client_weights(numbers(1, 3, 0), samples, 1.0).tolist() == pytest.approx([0.25, 0.75, 0.0])
    assert client_weights(numbers(0, 0, 0), samples, 1.0).tolist() == pytest.approx([0.125, 0.25, 0.625])
    # 0.4 of the mean for the one that says most, and what is left in proportion 1 : 3
    assert client_weights(numbers(1, 3, 1e12), samples, 0.4).tolist() == pytest.approx([0.2, 0.4, 0.4])
    assert client_weights(numbers(1, 2, 97), samples, 0.5).tolist() == pytest.approx([0.5 / 3, 1 / 3, 0.5])
    assert client_weights(numbers(1, 2, 97), samples, 0.1).tolist() == pytest.approx([1 / 3] * 3)


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=6), st.floats(0.01, 1))
def test_weights_sum_to_one_and_none_is_above_the_most(traces: list[float], most: float) -> None:
    weights = client_weights(numbers(*traces), torch.ones(len(traces), dtype=torch.float64), most)
    assert float(weights.sum()) == pytest.approx(1)
    assert bool((weights > 0).all())
    assert float(weights.max()) <= max(most, 1 / len(traces)) + 1e-9
    order = numbers(*traces).argsort(stable=True)
    assert bool((weights[order].diff() >= -1e-9).all())


# ---- rounds ----------------------------------------------------------------------------------------------------------


def kept(run: Any) -> list[dict[str, Tensor]]:
    return [tensors(context.state.array_records["personal"]) for context in run.grid.contexts.values()]


def test_without_alignment_and_traces_it_is_fedper_bit_for_bit(federate: Callable[..., Any]) -> None:
    plain: dict[str, Any] = {"fedas.align-epochs": 0, "fedas.weights": "samples"}
    fedas = federate(strategy="fedas", num_server_rounds=3, **FEW, **plain)
    fedper = federate(strategy="fedper", num_server_rounds=3, **FEW)
    assert {row[:7] for row in fedas.rows} == {row[:7] for row in fedper.rows}
    assert all(torch.equal(fedas.state[name], tensor) for name, tensor in fedper.state.items())
    assert [own.keys() for own in kept(fedas)] == [set(HEAD)] * 4


class ByHand:
    """A client's rounds, by one trainer and the equations."""

    def __init__(self, chosen: Any, client: int, clients: int) -> None:
        self.chosen, self.client = chosen, str(client)
        self.data = open_partition(chosen.data(), client, clients)
        self.model = build("digits-cnn", (1, 8, 8), 10, 0)
        self.trainer = Trainer(self.model, torch.device("cpu"), "fp32")
        self.names = self.trainer.manifest.names()
        index = self.data.splits["train"]
        self.x, self.y = inputs_and_targets(self.data.features[index], self.data.labels[index])

    def align(self, number: int, start: dict[str, Tensor], means: Tensor, known: Tensor) -> dict[str, Tensor]:
        """By autograd of the loops, with the optimiser of the run."""
        self.trainer.load(start)
        training = dataclasses.replace(self.chosen.local_training(number), learning_rate=0.05)
        stream, body = torch_stream(0, "alignment", number, self.client), [n for n in self.names if n not in HEAD]

        def loss(model: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return aligned(features(model, "fc2", x)[0], y, means, known)

        self.trainer.fit(self.data, training, stream, loss=loss, only=body)
        return self.trainer.read(self.names)

    def train(self, number: int, start: dict[str, Tensor]) -> dict[str, Tensor]:
        self.trainer.load(start)
        self.trainer.fit(self.data, self.chosen.local_training(number), torch_stream(0, "batches", number, self.client))
        return self.trainer.read(self.names)

    def means(self) -> tuple[Tensor, Tensor]:
        self.model.eval()
        with torch.no_grad():
            seen = features(self.model, "fc2", self.x)[0]
        means = torch.stack(
            [seen[self.y == c].mean(0) if bool((self.y == c).any()) else seen[0] * 0 for c in range(10)]
        )
        return means, torch.stack([(self.y == c).any() for c in range(10)])

    def trace(self) -> float:
        total = 0.0
        for x, y in zip(self.x.split(16), self.y.split(16), strict=True):
            slopes = torch.autograd.grad(cross_entropy(self.model(x), y), list(self.model.parameters()))
            total += sum(float(slope.square().sum()) for slope in slopes)
        return total


def test_two_rounds_are_the_equations_written_out(federate: Callable[..., Any], settings: Callable[..., Any]) -> None:
    given = {"strategy": "fedas", "min_clients": 2, "partitioner": "dirichlet", **FEW, "fedas.align-rate": 0.05}
    run = federate(clients=2, num_server_rounds=2, **given)
    chosen = parse(settings(**given))
    clients = [ByHand(chosen, number, 2) for number in range(2)]
    body = dict(clients[0].trainer.initial)
    after = [dict(body), dict(body)]
    past: list[Any] = [None, None]
    for number in (1, 2):
        traces = []
        for place, client in enumerate(clients):
            start = {**body, **{name: after[place][name] for name in HEAD}}
            if past[place]:
                start = client.align(number, start, *past[place])
            after[place] = client.train(number, start)
            past[place] = client.means()
            traces.append(client.trace())
        body = {**weighted_mean(after, traces)}
    samples = [len(client.y) for client in clients]
    assert abs(traces[0] / traces[1] * samples[1] / samples[0] - 1) > 0.05  # not FedPer's mean
    for name, tensor in run.state.items():
        torch.testing.assert_close(tensor, body[name], atol=1e-5, rtol=0)
    for own, trained, (means, known) in zip(kept(run), after, past, strict=True):
        assert own.keys() == {*HEAD, "past/means", "past/known"}
        assert all(torch.allclose(own[name], trained[name], atol=1e-5) for name in HEAD)
        assert torch.equal(own["past/known"], known.float())
        torch.testing.assert_close(own["past/means"], means, atol=1e-5, rtol=0)


def test_what_travels_is_the_body_and_a_number(federate: Callable[..., Any]) -> None:
    run = federate(strategy="fedas", evaluate_every=100, **FEW)
    scalars = sum(tensor.numel() for tensor in run.state.values())
    assert not set(run.state) & set(HEAD)
    assert run.summary["bytes"]["up"] == 4 * 4 * 2 * (scalars + 1)
    assert run.summary["bytes"]["down"] == 4 * 4 * 3 * scalars  # two rounds, and the end


# ---- what is refused -------------------------------------------------------------------------------------------------


def server(**own: Any) -> Any:
    made: Any = object.__new__(half(method("fedas").strategy))
    made.own = FedASSettings(**own)
    return made


def test_a_number_is_taken_after_training_alone_and_none_without_traces() -> None:
    server().check_extras("train", "0", {"trace": torch.tensor(0.0)})
    server().check_extras("evaluate", "0", {})
    server(weights="samples").check_extras("train", "0", {})
    for stage, made in (("evaluate", server()), ("train", server(weights="samples"))):
        with pytest.raises(ValueError, match=r"^tensors other than the model's are \['trace'\], wanted \[\]"):
            made.check_extras(stage, "0", {"trace": torch.tensor(1.0)})


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        ({}, r"^tensors other than the model's are \[\], wanted \['trace'\]"),
        ({"trace": torch.ones(1)}, r"^trace is torch.float32 \(1,\), wanted torch.float32 \(\)"),
        ({"trace": torch.tensor(1)}, r"^trace is torch.int64 \(\), wanted torch.float32 \(\)"),
        ({"trace": torch.tensor(float("inf"))}, r"^trace holds NaN or infinity"),
        ({"trace": torch.tensor(-1.0)}, r"^trace is negative"),
        ({"trace": torch.tensor(2e12)}, r"^trace has a norm above 1e\+12"),
    ],
)
def test_a_trace_that_cannot_be_is_refused(sent: dict[str, Tensor], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        server().check_extras("train", "0", sent)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"class_weights": "balanced"}, r'^strategy="fedas" has losses of its own: .* not class-weights="balanced"'),
        (
            {"model": "torchvision:squeezenet1_0", "dataset": "digits", "image_size": 32},
            r'^strategy="fedas" needs a network whose last layer is linear, and that of',
        ),
    ],
)
def test_what_it_cannot_do_with_is_refused(
    federate: Callable[..., Any], changed: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        federate(strategy="fedas", **changed)


@pytest.fixture
def measured(tmp_path: Path) -> str:
    """A table whose target is a number."""
    path = tmp_path / "rows.parquet"
    values = [float(i % 7) for i in range(60)]
    pq.write_table(pa.table({"a": values, "site": [i % 2 for i in range(60)], "target": values}), path)
    return str(path)


def test_values_are_no_classes_and_refused_before_the_first_round(federate: Callable[..., Any], measured: str) -> None:
    given = {"dataset": measured, "target": "value", "label_column": "target", "client_column": "site"}
    with pytest.raises(UserError, match=r'^strategy="fedas" is for classes, and the target is value'):
        federate(clients=2, strategy="fedas", feature_column="a", partitioner="natural", **given)


def test_of_texts_a_sample_is_a_token(federate: Callable[..., Any], tmp_path: Path) -> None:
    run = federate(clients=3, strategy="fedas", **short_play(tmp_path))
    assert run.summary["failures"] == 0
    known = [int(own["past/known"].sum()) for own in kept(run)]
    assert known == [len(set("to be or not that is the question\n"))] * 3
