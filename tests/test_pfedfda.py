"""pFedFDA: its layer by scikit-learn and by hand, what is mixed by loops, and rounds written out."""

from __future__ import annotations

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
from safetensors.torch import load_file
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedham_flwr.algorithms import fedavg
from fedham_flwr.algorithms.pfedfda import (
    Gaussian,
    PFedFDASettings,
    between,
    estimate,
    fitted,
    halves,
    layer,
    log_priors,
)
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.clients import open_partition
from fedham_flwr.models import build
from fedham_flwr.registry import half, method
from fedham_flwr.settings import parse
from fedham_flwr.training.trainer import Trainer

HEAD = ("fc2.weight", "fc2.bias")
FEW: dict[str, Any] = {"samples_per_client": 64, "batch_size": 32}
double = {"dtype": torch.float64}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, **double, generator=torch.Generator().manual_seed(seed))


def labelled(seed: int, s: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    """Features of k classes that lie apart, every class with as many samples or one more."""
    targets = torch.arange(s) % k
    return drawn(seed, s, d) + 1.5 * drawn(seed + 1, k, d)[targets], targets


def common(seed: int, k: int, d: int) -> Gaussian:
    return Gaussian(drawn(seed, k, d), torch.eye(d, **double))


# ---- the mathematics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "shrinkage"), [(3, 1e-4), (5, 0.3)])
def test_estimate_and_layer_are_those_of_scikit_learn(k: int, shrinkage: float) -> None:
    seen, targets = labelled(0, 60, 6, k)
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(seen.numpy(), targets.numpy())
    own = estimate(seen, targets, common(9, k, 6), 0.0)
    torch.testing.assert_close(own.means, torch.from_numpy(oracle.means_))
    # scikit-learn divides by s, and has shrunk the covariance that it keeps
    shared = own.covariance * (60 - 1) / 60
    shrunk = (1 - shrinkage) * shared + shrinkage * shared.trace() / 6 * torch.eye(6, **double)
    torch.testing.assert_close(shrunk, torch.from_numpy(oracle.covariance_))
    weight, bias = layer(Gaussian(own.means, shared), torch.from_numpy(oracle.priors_).log(), shrinkage)
    torch.testing.assert_close(weight, torch.from_numpy(oracle.coef_), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(bias, torch.from_numpy(oracle.intercept_), atol=1e-6, rtol=1e-6)


def test_a_layer_by_hand() -> None:
    """Of unit spread: W = mu, and the middle between two equally frequent classes is undecided."""
    of = Gaussian(torch.tensor([[0.0], [4.0]], **double), torch.ones(1, 1, **double))
    weight, bias = layer(of, log_priors(torch.tensor([5.0, 5.0], **double)), 1e-4)
    assert weight.flatten().tolist() == pytest.approx([0, 4])
    logits = weight @ torch.tensor([[2.0]], **double) + bias[:, None]
    assert float(logits[0]) == pytest.approx(float(logits[1]))
    # of features that are all 0 only the shares are left
    none, priors = (
        Gaussian(torch.zeros(2, 3, **double), torch.zeros(3, 3, **double)),
        torch.tensor([-1.0, -2.0], **double),
    )
    weight, bias = layer(none, priors, 1e-4)
    assert not bool(weight.any())
    assert torch.equal(bias, priors)


def test_no_class_is_impossible() -> None:
    found = log_priors(torch.tensor([3.0, 0.0, 1.0], **double)).exp()
    assert found.tolist() == pytest.approx([0.7501 / 1.0003, 0.0001 / 1.0003, 0.2501 / 1.0003])


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 5), st.floats(0, 2), st.integers(0, 2**31))
def test_an_estimate_is_the_loop_over_samples(s: int, d: int, k: int, ridge: float, seed: int) -> None:
    seen, targets = drawn(seed, s, d), torch.randint(k, (s,), generator=torch.Generator().manual_seed(seed))
    others = common(seed, k, d)
    found = estimate(seen, targets, others, ridge)
    scatter = torch.zeros(d, d, **double)
    for c in range(k):
        rows = [seen[i] for i in range(s) if int(targets[i]) == c]
        mean = sum(rows, torch.zeros(d, **double)) / len(rows) if len(rows) > 2 else others.means[c]
        torch.testing.assert_close(found.means[c], mean)
        for row in rows:
            scatter += torch.outer(row - mean, row - mean)
    torch.testing.assert_close(found.covariance, scatter / max(1, s - 1) + ridge * torch.eye(d, **double))


def test_between_is_the_common_at_zero_and_the_own_at_one() -> None:
    own, others = estimate(*labelled(2, 20, 3, 4), common(1, 4, 3), 0.0), common(1, 4, 3)
    for b, wanted in (((0, 0), others), ((1, 1), own), ((1, 0), Gaussian(own.means, others.covariance))):
        found = between(own, others, torch.tensor(b, **double))
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, wanted, strict=True))
    middle = between(own, others, torch.tensor([0.25, 0.5], **double))
    torch.testing.assert_close(middle.means, 0.25 * own.means + 0.75 * others.means)
    torch.testing.assert_close(middle.covariance, 0.5 * own.covariance + 0.5 * others.covariance)


def test_halves_share_each_class_and_leave_single_samples_out() -> None:
    targets = torch.tensor([2, 0, 0, 0, 1, 0, 2, 0])
    half_of = halves(targets, torch.Generator().manual_seed(0))
    assert half_of[targets == 1].tolist() == [-1]
    for value, counts in ((0, [3, 2]), (2, [1, 1])):
        assert [int((half_of[targets == value] == at).sum()) for at in (0, 1)] == counts


@pytest.mark.parametrize("seed", range(3))
def test_what_is_fitted_is_no_worse_than_any_point_of_a_grid(seed: int) -> None:
    seen, targets = labelled(seed, 40, 4, 3)
    others, own = common(seed + 5, 3, 4), PFedFDASettings(ridge=0.0)
    half_of = halves(targets, torch.Generator().manual_seed(seed))
    priors = log_priors(torch.bincount(targets, minlength=3).double())

    def loss(b: Tensor) -> float:
        total = 0.0
        for at in (0, 1):
            train, held_out = half_of == 1 - at, half_of == at
            mixed = between(estimate(seen[train], targets[train], others, 0.0), others, b)
            weight, bias = layer(mixed, priors, own.shrinkage)
            total += float(cross_entropy(seen[held_out] @ weight.T + bias, targets[held_out]))
        return total

    found = fitted(seen, targets, half_of, others, own)
    assert bool(((found >= 0) & (found <= 1)).all())
    grid = torch.linspace(0, 1, 11, **double)
    assert loss(found) <= min(loss(torch.stack([x, y])) for x in grid for y in grid) + 1e-3


def test_without_two_samples_of_a_class_nothing_is_the_clients_own() -> None:
    targets = torch.tensor([0, 1])
    half_of = halves(targets, torch.Generator())
    assert fitted(drawn(0, 2, 3), targets, half_of, common(1, 2, 3), PFedFDASettings()).tolist() == [0, 0]


# ---- rounds ----------------------------------------------------------------------------------------------------------


def gaussian(run: Any) -> Gaussian:
    return Gaussian(run.state["gaussian/means"].double(), run.state["gaussian/covariance"].double())


def start(chosen: Any) -> Gaussian:
    del chosen
    return Gaussian(torch.rand(10, 64, generator=torch_stream(0, "gaussian")).double(), torch.eye(64, **double))


def test_a_round_is_the_equations_written_out(federate: Callable[..., Any], settings: Callable[..., Any]) -> None:
    given = {"strategy": "pfedfda", "num_server_rounds": 1, "min_clients": 2, **FEW}
    run = federate(clients=2, **given)
    chosen = parse(settings(**given))
    models, sent, samples = [], [], []
    for number in range(2):
        data = open_partition(chosen.data(), number, 2)
        trainer = Trainer(build("digits-cnn", (1, 8, 8), 10, 0), torch.device("cpu"), "fp32")
        body = tuple(name for name in trainer.manifest.names() if name not in HEAD)
        others, samples = start(chosen), [*samples, len(data.splits["train"])]
        priors = log_priors(torch.tensor(data.label_counts("train"), **double))
        frozen = dict(zip(HEAD, (part.float() for part in layer(others, priors, 1e-4)), strict=True))
        trainer.load({**trainer.initial, **frozen})
        trainer.fit(data, chosen.local_training(1), torch_stream(0, "batches", 1, str(number)), only=body)
        seen, targets = trainer.encode(data, "train")
        half_of = halves(targets, torch_stream(0, "halves", 1, str(number)))
        b = fitted(seen.double(), targets, half_of, others, chosen.own)
        sent.append(between(estimate(seen.double(), targets, others, 1.0), others, b)._asdict())
        models.append(trainer.read(body))
    assert all(torch.equal(run.state[name], tensor) for name, tensor in fedavg.aggregate(models, samples).items())
    for mine, theirs in zip(gaussian(run), fedavg.aggregate(sent, samples).values(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_the_exported_models_layer_is_made_from_the_clients_own_data(
    federate: Callable[..., Any], settings: Callable[..., Any]
) -> None:
    given = {"strategy": "pfedfda", "num_server_rounds": 1, **FEW, "pfedfda.interpolation": "own"}
    run = federate(clients=2, **given, min_clients=2)
    data = open_partition(parse(settings(**given)).data(), 0, 2)
    model = load_file(sorted((run.path / "model").glob("*.safetensors"))[0])
    trainer = Trainer(build("digits-cnn", (1, 8, 8), 10, 0), torch.device("cpu"), "fp32")
    trainer.load(model)
    seen, targets = trainer.encode(data, "train")
    own = estimate(seen.double(), targets, gaussian(run), 1.0)
    wanted = layer(own, log_priors(torch.tensor(data.label_counts("train"), **double)), 1e-4)
    for name, part in zip(HEAD, wanted, strict=True):
        torch.testing.assert_close(model[name], part.float(), atol=1e-3, rtol=1e-3)


def test_with_the_common_gaussian_alone_it_never_changes(federate: Callable[..., Any]) -> None:
    run = federate(strategy="pfedfda", **FEW, **{"pfedfda.interpolation": "global"})
    for mine, theirs in zip(gaussian(run), start(None), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_what_travels_is_the_body_and_the_gaussian(federate: Callable[..., Any]) -> None:
    run = federate(strategy="pfedfda", evaluate_every=100, **FEW)
    scalars = sum(tensor.numel() for tensor in run.state.values())
    assert not set(run.state) & set(HEAD)
    assert run.summary["bytes"]["up"] == 4 * 4 * 2 * scalars
    assert run.summary["bytes"]["down"] == 4 * 4 * 3 * scalars  # two rounds, and the end


# ---- what is refused -------------------------------------------------------------------------------------------------


def server() -> Any:
    made: Any = object.__new__(half(method("pfedfda").strategy))
    made._size = (3, 2)
    return made


def test_a_gaussian_is_taken_after_training_alone() -> None:
    good = {"means": torch.zeros(3, 2), "covariance": torch.eye(2)}
    server().check_extras("train", "0", good)
    server().check_extras("evaluate", "0", {})
    with pytest.raises(ValueError, match=r"^tensors other than the model's are .*, wanted \[\]"):
        server().check_extras("evaluate", "0", good)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"means": torch.zeros(2, 3)}, r"^means is torch.float32 \(2, 3\), wanted torch.float32 \(3, 2\)"),
        ({"means": torch.full((3, 2), float("nan"))}, r"^means holds NaN or infinity"),
        ({"covariance": 1e7 * torch.eye(2)}, r"^covariance has a norm above 1e\+06"),
        ({"covariance": torch.tensor([[1.0, 0.5], [0.0, 1.0]])}, r"^covariance is not symmetric"),
        ({"covariance": torch.tensor([[1.0, 2.0], [2.0, 1.0]])}, r"^covariance has a negative eigenvalue"),
    ],
)
def test_a_gaussian_that_cannot_be_is_refused(changed: dict[str, Tensor], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        server().check_extras("train", "0", {"means": torch.zeros(3, 2), "covariance": torch.eye(2), **changed})


def test_values_and_texts_are_refused_before_the_first_round(federate: Callable[..., Any], tmp_path: Path) -> None:
    values = [float(i % 7) for i in range(60)]
    table = pa.table({"a": values, "site": [i % 2 for i in range(60)], "target": values})
    pq.write_table(table, tmp_path / "rows.parquet")
    given = {"target": "value", "label_column": "target", "client_column": "site", "partitioner": "natural"}
    with pytest.raises(
        UserError, match=r'^strategy="pfedfda" is for one class of each sample, and the target is value'
    ):
        federate(clients=2, strategy="pfedfda", dataset=str(tmp_path / "rows.parquet"), feature_column="a", **given)
    with pytest.raises(UserError, match=r'^strategy="pfedfda" needs a last layer with a bias, and head has none'):
        federate(clients=3, strategy="pfedfda", **short_play(tmp_path))
