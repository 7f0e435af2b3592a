"""FedPAC: its statistics by loops, its weights of heads by SciPy, its loss by autograd, and rounds written out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from presets import short_play
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedham_flwr.algorithms import fedavg
from fedham_flwr.algorithms.fedpac import TowardsMeans, class_means, common_means, head_weights, statistics
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.core.trees import read_clients
from fedham_flwr.data.clients import open_partition
from fedham_flwr.models import build
from fedham_flwr.models.heads import features
from fedham_flwr.registry import half, method
from fedham_flwr.runners.cohort import CohortGrid
from fedham_flwr.settings import parse
from fedham_flwr.training.own_loss import Batch
from fedham_flwr.training.trainer import Trainer

HEAD = ("fc2.weight", "fc2.bias")
FEW: dict[str, Any] = {"samples_per_client": 64, "batch_size": 32}
double = {"dtype": torch.float64}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- the mathematics -------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31))
def test_statistics_are_the_loops_over_classes(s: int, d: int, k: int, seed: int) -> None:
    seen, targets = drawn(seed, s, d), torch.randint(k, (s,), generator=torch.Generator().manual_seed(seed))
    means, shares, variance = statistics(seen, targets, k)
    wanted = 0.0
    for c in range(k):
        rows = [seen[i].double() for i in range(s) if int(targets[i]) == c]
        assert float(shares[c]) == pytest.approx(len(rows) / s)
        if not rows:
            assert not bool(means[c].any())
            continue
        mean = sum(rows, torch.zeros(d, **double)) / len(rows)
        torch.testing.assert_close(means[c], mean)
        second = sum((torch.outer(z, z) for z in rows), torch.zeros(d, d, **double)) / len(rows)
        share = len(rows) / s
        wanted += share * float(second.trace()) - share**2 * float(mean.square().sum())
    assert float(variance) == pytest.approx(wanted, abs=1e-9)


def test_common_means_are_weighted_by_the_samples_of_a_class_and_one_that_nobody_has_is_none() -> None:
    means = torch.tensor([[[1.0], [2.0], [0.0]], [[4.0], [9.0], [0.0]]], **double)
    counts = torch.tensor([[1.0, 3.0, 0.0], [2.0, 0.0, 0.0]], **double)
    found, known = common_means(means, counts)
    assert found.flatten().tolist() == pytest.approx([3.0, 2.0, 0.0])
    assert known.tolist() == [True, True, False]


def test_weights_of_clients_with_the_same_class_means_are_those_of_fedavg() -> None:
    """V_j is the same number divided by n_j, and sum_j V_j a_j^2 is smallest at a_j ~ n_j."""
    samples = torch.tensor([10.0, 30.0, 60.0], **double)
    q = torch.tensor([[1.0, -2.0]], **double).expand(3, -1)
    torch.testing.assert_close(head_weights(q, 5 / samples), (samples / 100).expand(3, -1), atol=1e-4, rtol=0)


def test_without_variance_clients_that_differ_have_their_own_head() -> None:
    torch.testing.assert_close(head_weights(drawn(0, 4, 6).double(), torch.zeros(4, **double)), torch.eye(4, **double))
    assert torch.equal(head_weights(drawn(0, 1, 6).double(), torch.ones(1, **double)), torch.ones(1, 1, **double))


def test_weights_are_those_of_scipy_for_the_programme_of_the_paper() -> None:
    """a^T (diag(V) + D_i) a with D_i[j, k] = sum_c <q_ic - q_jc, q_ic - q_kc>, entry by entry."""
    m, k, d = 5, 3, 4
    q, variance = 0.3 * drawn(3, m, k, d).double(), drawn(4, m).double().abs()
    found = head_weights(q.flatten(1), variance)
    for i in range(m):
        p = torch.diag(variance)
        for j in range(m):
            for l in range(m):  # noqa: E741
                p[j, l] += sum(float((q[i, c] - q[j, c]) @ (q[i, c] - q[l, c])) for c in range(k))
        objective = p.numpy()
        solved = minimize(
            lambda a, p=objective: a @ p @ a, np.full(m, 1 / m), bounds=[(0, 1)] * m, method="SLSQP",
            constraints={"type": "eq", "fun": lambda a: a.sum() - 1}, options={"ftol": 1e-14},
        )  # fmt: skip
        wanted = np.where(solved.x < 1e-3, 0, solved.x)
        assert np.abs(found[i].numpy() - wanted / wanted.sum()).max() < 1e-4
    assert bool(((found == 0) | (found >= 1e-3)).all())


def test_the_loss_is_the_sum_over_samples_and_features_and_that_of_many_clients_is_that_of_each() -> None:
    model, k, d, penalty = build("digits-cnn", (1, 8, 8), 10, 0), 10, 64, 0.7
    x, y = drawn(1, 6, 1, 8, 8), torch.tensor([0, 3, 3, 9, 1, 0])
    seen, logits = (found.detach() for found in features(model, "fc2", x))
    assert seen.shape[1] == d
    means = [drawn(5, k, d), drawn(6, k, d)]
    each = [TowardsMeans("fc2", mean, penalty) for mean in means]
    pull = sum(float((seen[i, j] - means[0][int(y[i]), j]) ** 2) for i in range(6) for j in range(d)) / (6 * d)
    loss = each[0](model, x, y).detach()
    assert float(loss) == pytest.approx(float(cross_entropy(logits, y)) + penalty * pull, abs=1e-4)
    real = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    both = each[0].stacked(each)(model, Batch(x, y, 2, real))
    torch.testing.assert_close(both, torch.stack([each[0](model, x[:3], y[:3]), each[1](model, x[3:5], y[3:5])]))


# ---- rounds ----------------------------------------------------------------------------------------------------------


def body(run: Any) -> dict[str, Tensor]:
    return {name.removeprefix("body/"): tensor for name, tensor in run.state.items() if name.startswith("body/")}


def head(run: Any, place: int) -> Tensor:
    """A client's weight and bias, in one row as the server has them."""
    return run.state["bank/fc2"][place]


def test_without_pull_and_mixing_it_is_fedrep_with_one_head_epoch_bit_for_bit(federate: Callable[..., Any]) -> None:
    plain: dict[str, Any] = {"fedpac.penalty": 0.0, "fedpac.mix-heads": False, "fedpac.head-rate": 1.0}
    pac = federate(strategy="fedpac", num_server_rounds=3, **FEW, **plain)
    rep = federate(strategy="fedrep", num_server_rounds=3, **FEW, **{"fedrep.head-epochs": 1})
    assert {row[:7] for row in pac.rows} == {row[:7] for row in rep.rows}
    assert all(torch.equal(body(pac)[name], tensor) for name, tensor in rep.state.items())


class ByHand:
    """A client's training, by one trainer and the equations."""

    def __init__(self, chosen: Any, client: int, clients: int) -> None:
        self.chosen, self.client = chosen, str(client)
        self.data = open_partition(chosen.data(), client, clients)
        self.trainer = Trainer(build("digits-cnn", (1, 8, 8), 10, 0), torch.device("cpu"), "fp32")
        self.body = tuple(name for name in self.trainer.manifest.names() if name not in HEAD)

    def round(self, number: int, start: dict[str, Tensor], loss: Any = None, rate: float = 1.0) -> dict[str, Tensor]:
        training = self.chosen.local_training(number)
        self.trainer.load(start)
        self.q, self.shares, self.variance = self.statistics()
        for names, purpose, own in ((HEAD, "head", None), (self.body, "batches", loss)):
            settings = dataclasses.replace(training, learning_rate=training.learning_rate * rate)
            stream = torch_stream(0, purpose, number, self.client)
            self.trainer.fit(self.data, settings if names is HEAD else training, stream, loss=own, only=names)
        after = self.trainer.read(self.trainer.manifest.names())
        self.trained, self.counts = class_means(*self.trainer.encode(self.data, "train"), 10)
        return after

    def statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        seen, targets = self.trainer.encode(self.data, "train")
        means, shares, variance = statistics(seen, targets, 10)
        return shares[:, None] * means, shares, variance / len(targets)


def test_a_round_is_the_equations_written_out(federate: Callable[..., Any], settings: Callable[..., Any]) -> None:
    given = {"strategy": "fedpac", "num_server_rounds": 1, "min_clients": 3, **FEW, "fedpac.head-rate": 2.0}
    run = federate(clients=3, **given)
    chosen = parse(settings(**given))
    clients = [ByHand(chosen, client, 3) for client in range(3)]
    after = [client.round(1, dict(client.trainer.initial), rate=2.0) for client in clients]
    samples = [len(client.data.splits["train"]) for client in clients]
    for name, tensor in fedavg.aggregate(after, samples).items():
        assert name in HEAD or torch.equal(body(run)[name], tensor), name
    q, variance = torch.stack([c.q.flatten() for c in clients]), torch.stack([c.variance for c in clients])
    weights = head_weights(q, variance)
    assert not torch.equal(weights, torch.eye(3, **double))
    for i, row in enumerate(weights):
        mixed = [sum(float(a) * model[name].double() for a, model in zip(row, after, strict=True)) for name in HEAD]
        wanted = torch.cat([torch.as_tensor(t).flatten() for t in mixed]).float()
        torch.testing.assert_close(head(run, i), wanted, atol=1e-5, rtol=0)
    counts = torch.stack([client.counts for client in clients])
    common, known = common_means(torch.stack([client.trained for client in clients]), counts)
    torch.testing.assert_close(run.state["means"], common.float(), atol=1e-5, rtol=0)
    assert torch.equal(run.state["known"], known)
    assert read_clients(run.state) == ("0", "1", "2")


def test_the_second_round_pulls_to_the_class_means_of_the_first(
    federate: Callable[..., Any], settings: Callable[..., Any]
) -> None:
    given = {"strategy": "fedpac", "num_server_rounds": 2, "partitioner": "iid", "min_clients": 1, **FEW}
    run = federate(clients=1, **given, **{"fedpac.penalty": 3.0})
    client = ByHand(parse(settings(**given)), 0, 1)
    first = client.round(1, dict(client.trainer.initial), rate=10.0)
    means = client.trained.float()

    def pulled(model: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen, logits = features(model, "fc2", x)
        return cross_entropy(logits, y) + 3.0 * sum((seen - means[y]).square().mean(1)) / len(y)  # type: ignore[arg-type]

    second = client.round(2, first, loss=pulled, rate=10.0)
    for name, tensor in body(run).items():
        torch.testing.assert_close(tensor, second[name], atol=1e-5, rtol=0)
    torch.testing.assert_close(head(run, 0), torch.cat([second[name].flatten() for name in HEAD]), atol=1e-5, rtol=0)


# ---- what travels ----------------------------------------------------------------------------------------------------


def test_what_travels_is_the_model_and_statistics_and_nothing_is_kept(federate: Callable[..., Any]) -> None:
    run = federate(strategy="fedpac", evaluate_every=100, **FEW)
    scalars = sum(tensor.numel() for tensor in build("digits-cnn", (1, 8, 8), 10, 0).parameters())
    table = 10 * 64
    assert run.summary["bytes"]["up"] == 4 * 4 * 2 * (scalars + 2 * table + 10 + 1)
    assert run.summary["bytes"]["down"] == 4 * 4 * (2 * scalars + table + scalars + table)  # two rounds, and the end
    assert all("personal" not in context.state.array_records for context in run.grid.contexts.values())


def server() -> Any:
    made: Any = object.__new__(half(method("fedpac").strategy))
    made._size = (2, 3)
    return made


GOOD = {
    "means": torch.zeros(2, 3), "shares": torch.tensor([0.25, 0.75]), "variance": torch.tensor(0.5),
    "trained": torch.zeros(2, 3),
}  # fmt: skip


def test_statistics_that_can_be_are_taken_and_none_are_sent_after_an_evaluation() -> None:
    server().check_extras("train", "0", dict(GOOD))
    server().check_extras("evaluate", "0", {})
    with pytest.raises(ValueError, match=r"^tensors other than the model's are .*'variance'\], wanted \[\]"):
        server().check_extras("evaluate", "0", dict(GOOD))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"more": torch.zeros(1)},
            r"^tensors other than the model's are .* wanted \['means', 'shares', 'trained', 'var",
        ),
        ({"means": torch.zeros(3, 2)}, r"^means is torch.float32 \(3, 2\), wanted torch.float32 \(2, 3\)"),
        ({"trained": torch.zeros(2, 3, **double)}, r"^trained is torch.float64 \(2, 3\), wanted torch.float32"),
        ({"means": torch.full((2, 3), float("nan"))}, r"^means holds NaN or infinity"),
        ({"trained": torch.full((2, 3), 1e7)}, r"^trained has a norm above 1e\+06"),
        ({"shares": torch.tensor([-0.5, 1.5])}, r"^shares has a negative share of a class, or does not sum to 1"),
        ({"shares": torch.tensor([0.5, 0.6])}, r"^shares has a negative share of a class, or does not sum to 1"),
        ({"variance": torch.tensor(-1.0)}, r"^variance is negative"),
    ],
)
def test_statistics_that_cannot_be_are_refused(changed: dict[str, Tensor], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        server().check_extras("train", "0", {**GOOD, **changed})


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"label_smoothing": 0.1}, r'^strategy="fedpac" has losses of its own: wanted .* not label-smoothing=0.1'),
        (
            {"model": "torchvision:squeezenet1_0", "dataset": "digits", "image_size": 32},
            r'^strategy="fedpac" needs a network whose last layer is linear, and that of',
        ),
    ],
)
def test_what_it_cannot_do_with_is_refused(
    federate: Callable[..., Any], changed: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        federate(strategy="fedpac", **changed)


@pytest.fixture
def measured(tmp_path: Path) -> str:
    """A table whose target is a number."""
    path = tmp_path / "rows.parquet"
    values = [float(i % 7) for i in range(60)]
    pq.write_table(pa.table({"a": values, "site": [i % 2 for i in range(60)], "target": values}), path)
    return str(path)


def test_values_are_no_classes_and_refused_before_the_first_round(federate: Callable[..., Any], measured: str) -> None:
    given = {"dataset": measured, "target": "value", "label_column": "target", "client_column": "site"}
    with pytest.raises(UserError, match=r'^strategy="fedpac" is for classes, and the target is value'):
        federate(clients=2, strategy="fedpac", feature_column="a", partitioner="natural", **given)


def test_of_texts_a_sample_is_a_token(federate: Callable[..., Any], tmp_path: Path) -> None:
    given = {"clients": 3, "strategy": "fedpac", **short_play(tmp_path)}
    alone, run = federate(**given), federate(grid=CohortGrid, **given)
    assert run.summary["failures"] == 0
    torch.testing.assert_close(run.state["means"], alone.state["means"], atol=1e-4, rtol=0)
    assert run.state["known"].sum() == len(set("to be or not that is the question\n"))
