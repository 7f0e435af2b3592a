"""FedTP with personal heads, with nearest neighbours and on text, each in whole federations."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st
from presets import LENGTH, TEXT, TINY_VIT, short_play, write_texts
from test_fedtp_rounds import FEW, SMALL, W, Watching
from torch.nn.functional import cross_entropy

from clients.fedtp import FedTPClient
from fedham_flwr import models, registry
from fedham_flwr.algorithms.fedrod import BothHeads, balanced_cross_entropy
from fedham_flwr.core.parameters import Params
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.job import Job
from fedham_flwr.federation.messages import Download
from fedham_flwr.models import export
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.settings import Value, parse
from fedham_flwr.state.store import ClientState
from fedham_flwr.training import trainer as training
from fedham_flwr.training.engine.rows import pad, real_samples
from fedham_flwr.training.optim import SGD
from fedham_flwr.training.own_loss import Batch
from fedham_flwr.training.trainer import Trainer

Federate = Callable[..., Any]
Combined = Callable[..., Any]
Make = Callable[..., dict[str, Value]]
HEAD, SECOND = ("head.weight", "head.bias"), ("head.personal.weight", "head.personal.bias")
every_way = pytest.mark.parametrize("personal", ["generated", "vanilla"])
CPU = torch.device("cpu")


def options(personal: str, head: str = "shared", knn: bool = False) -> dict[str, Value]:
    chosen = {"fedtp.personal": personal, "fedtp.head": head, "fedtp.knn": knn}
    return {"strategy": "fedtp", **FEW, **SMALL, **chosen, "fedtp.knn-neighbours": 4}


def client_of(given: dict[str, Value], number: int = 0, clients: int = 4, params: Params | None = None) -> FedTPClient:
    """A client half on its own, with the network's first parameters or others."""
    chosen = parse(given)
    data = open_partition(chosen.data(), number, clients)
    classes = len(data.classes)
    model = models.build(chosen.model, data.shape, classes, 0, chosen.networks())
    trainer = Trainer(model, CPU, "fp32", manifest_of(model, []))
    trainer.load(params or trainer.initial)
    state = ClientState(RecordDict(), str(number), trainer.manifest.fingerprint())
    return FedTPClient(
        Job(str(number), chosen, registry.method("fedtp"), data, trainer, state, Download(1, {}, data.shape, classes))
    )


@pytest.fixture(scope="module")
def done() -> dict[tuple[str, str, bool], Any]:
    """Runs of `combined`, which several tests look at and none changes."""
    return {}


@pytest.fixture
def combined(federate: Federate, done: dict[tuple[str, str, bool], Any]) -> Combined:
    """A run as `options` says, watched, of two rounds: combined("vanilla", "fedper", knn=True)."""

    def run(personal: str, head: str = "shared", knn: bool = False) -> Any:
        key = personal, head, knn
        if key not in done:
            done[key] = federate(grid=Watching, **options(*key))
        return done[key]

    return run


def last_kept(run: Any) -> dict[str, Params]:
    return {client: kept for kind, _, client, _, _, kept in run.grid.seen if kind == "train"}


# ---- personal heads --------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize(("head", "names"), [("fedper", HEAD), ("fedrod", SECOND)])
def test_a_personal_head_is_in_no_message_and_differs_between_clients(
    combined: Combined, personal: str, head: str, names: tuple[str, ...]
) -> None:
    run = combined(personal, head)
    stays = {*names, *(W if personal == "vanilla" else ())}
    for _, _, _, down, up, kept in run.grid.seen:
        assert not stays & {*down, *up}
        assert kept.keys() == stays
    assert {kind for kind, *_ in run.grid.seen} == {"train", "evaluate"}
    heads = last_kept(run).values()
    for name in names:
        assert len({tuple(kept[name].flatten().tolist()) for kept in heads}) == 4
    first, second, *_ = [kept for _, _, client, _, _, kept in run.grid.seen if client == "1"]
    assert all(not torch.equal(first[name], second[name]) for name in stays)
    assert not [name for name in run.state if any(part in name for part in stays)]


def test_fedrods_personal_head_starts_at_zero_and_leaves_the_shared_start_as_it_is(settings: Make) -> None:
    with_it, without = (
        client_of(settings(**options("generated", head))).job.trainer.initial for head in ("fedrod", "shared")
    )
    assert not any(with_it[name].any() for name in SECOND)
    assert with_it.keys() - without.keys() == set(SECOND)
    assert all(torch.equal(tensor, with_it[name]) for name, tensor in without.items())


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_fedrods_loss_of_many_clients_is_that_of_each(sizes: list[int]) -> None:
    """Of a folded batch, in which each client's samples are filled up with its first one."""
    draw = torch.Generator().manual_seed(sum(sizes))
    chosen = parse({"strategy": "fedtp", "fedtp.head": "fedrod", **TINY_VIT})
    model = models.build("vit", (1, 8, 8), 10, 0, chosen.networks())
    x = torch.rand(sum(sizes), 1, 8, 8, generator=draw)
    y = torch.randint(0, 10, (sum(sizes),), generator=draw)
    counts = [torch.bincount(part, minlength=10).add(k).tolist() for k, part in enumerate(y.split(sizes))]
    losses = [BothHeads("head", each, CPU) for each in counts]
    more = [*losses, BothHeads("head", [1] * 10, CPU)]  # of a client that has no step any more
    places = pad(torch.arange(len(y)).split(sizes), max(sizes)).flatten()
    model.eval()
    found = losses[0].stacked(more)(model, Batch(x[places], y[places], len(sizes), real_samples(sizes, CPU)))
    wanted = [loss(model, a, b) for loss, a, b in zip(losses, x.split(sizes), y.split(sizes), strict=True)]
    assert torch.allclose(found, torch.stack(wanted), rtol=1e-5)


def test_fedrod_trains_as_two_losses_and_two_optimisers_do(settings: Make) -> None:
    """Several steps, with momentum and decay, that a balanced softmax and an own cross-entropy take side by side."""
    client = client_of(settings(**options("generated", "fedrod"), learning_rate=0.1, weight_decay=0.01))
    trainer, data, index = client.job.trainer, client.job.data, client.job.data.splits["train"]
    training = client.settings.local_training(1)
    counts = torch.bincount(data.labels[index], minlength=10).float()
    assert (counts > 0).sum() == 2
    model = models.build("vit", (1, 8, 8), 10, 0, client.settings.networks())
    body = SGD([p for name, p in model.named_parameters() if name not in SECOND], training)
    head = SGD([p for name, p in model.named_parameters() if name in SECOND], training)
    order = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(5))]
    for batch in order.split(32):
        x, y = inputs_and_targets(data.features[batch], data.labels[batch])
        features = model.features(x)
        model.zero_grad()
        logits = model.head.own(features)
        cross_entropy(logits + counts.log(), y).backward()
        personal = model.head.personal(features.detach())
        cross_entropy(logits.detach() + personal, y).backward()
        body.step()
        head.step()
    trainer.fit(data, training, torch.Generator().manual_seed(5), loss=client.loss())
    wanted = dict(model.named_parameters())
    trained = trainer.read(trainer.parameter_names)
    assert wanted.keys() == trained.keys()
    for name, tensor in trained.items():
        assert torch.allclose(tensor, wanted[name], rtol=0, atol=1e-6), name
        assert not torch.equal(tensor, trainer.initial[name]), name


def test_the_personal_heads_loss_sends_no_gradient_into_the_rest(settings: Make) -> None:
    client = client_of(settings(**options("generated", "fedrod")))
    model, data = client.job.trainer._model, client.job.data
    x, y = inputs_and_targets(data.features[data.splits["train"]], data.labels[data.splits["train"]])
    model.head.personal.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    loss = client.loss()
    assert loss is not None
    rest = {name: param for name, param in model.named_parameters() if name not in SECOND}
    slopes = torch.autograd.grad(loss(model, x, y), list(rest.values()))
    counts = torch.bincount(y, minlength=10).float()
    alone = torch.autograd.grad(
        balanced_cross_entropy(model.head.own(model.features(x)), y, counts).mean(), [*rest.values()]
    )
    assert all(torch.equal(one, other) for one, other in zip(slopes, alone, strict=True))
    assert client_of(settings(**options("generated"))).loss() is None


def test_fedrod_predicts_by_both_heads(settings: Make) -> None:
    client = client_of(settings(**options("generated", "fedrod")))
    model, data = client.job.trainer._model.eval(), client.job.data
    model.head.personal.bias.data[3] = 50.0
    x, _ = inputs_and_targets(data.features[:5], data.labels[:5])
    assert model(x).argmax(1).tolist() == [3] * 5
    model.head.personal.bias.data[3] = 0.0
    assert torch.equal(model(x), model.head.own(model.features(x)))


@pytest.mark.parametrize("head", ["shared", "fedper", "fedrod"])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_what_is_mixed_with_the_vote_is_what_the_network_says_bit_for_bit(
    settings: Make, play: dict[str, Value], head: str, text: bool, bf16: bool
) -> None:
    given = settings(**(play if text else {}), **options("generated", head, knn=True)) | {"fedtp.knn-share": 0.0}
    client = client_of(given, clients=3)
    trainer, data = client.job.trainer, client.job.data
    model, predictor = trainer._model.eval(), client.predictor()
    assert predictor is not None
    if head == "fedrod":
        model.head.personal.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    x, _ = inputs_and_targets(data.features[data.splits["test"]], data.labels[data.splits["test"]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        predicted, logits = predictor(model, x), model(x)
    assert logits.dtype == (torch.bfloat16 if bf16 else torch.float32)
    assert torch.equal(predicted, logits.float().softmax(-1).log())


@pytest.mark.parametrize("head", ["shared", "fedrod"])
def test_evaluation_with_neighbours_runs_the_network_once_a_batch(
    settings: Make, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    client = client_of(settings(**options("generated", head, knn=True)))
    trainer, data = client.job.trainer, client.job.data
    predictor, seen, features = client.predictor(), [], type(trainer._model).features

    def counted(model: Any, x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return features(model, x)

    monkeypatch.setattr(type(trainer._model), "features", counted)
    monkeypatch.setattr(training, "EVALUATION_BATCH", 6)
    scores = trainer.evaluate(data, "test", predictor)
    assert seen == [6, 6, 4]
    assert scores.n == 16


@every_way
def test_neighbours_without_a_share_change_nothing_but_the_last_digits_of_the_loss(
    federate: Federate, combined: Combined, personal: str
) -> None:
    plain, idle = combined(personal), federate(**options(personal, knn=True) | {"fedtp.knn-share": 0.0})
    for one, other in zip(plain.rows, idle.rows, strict=True):
        assert (one[:6], one.n) == (other[:6], other.n)
        assert (
            one.value == other.value if one.metric == "accuracy" else one.value == pytest.approx(other.value, rel=1e-4)
        )
    asked = combined(personal, knn=True)
    assert all(torch.equal(tensor, plain.state[name]) for name, tensor in asked.state.items())  # training is the same
    assert [row[:6] for row in asked.rows] == [row[:6] for row in plain.rows]
    mean = [
        sum(r.value for r in run.rows if r[:1] + r[2:6] == (3, "test", "personal", "before", "accuracy"))
        for run in (plain, asked)
    ]
    assert mean[1] > mean[0] + 0.5  # of 4: with two classes to a client, neighbours help at once


def test_an_exported_model_scores_what_the_rows_say_with_the_clients_own_neighbours(
    combined: Combined, settings: Make
) -> None:
    """The file holds the network; the neighbours are the client's training samples, and no part of it."""
    run = combined("generated", knn=True)
    exported = export.load(run.path / "model" / "2.safetensors").state_dict()
    client = client_of(settings(**options("generated", knn=True)), 2, params=exported)
    found = client.job.trainer.evaluate(client.job.data, "test", client.predictor())
    (row,) = [r for r in run.rows if r[:6] == (3, "2", "test", "personal", "before", "loss")]
    assert found.loss == row.value
    assert client.job.trainer.evaluate(client.job.data, "test").loss != row.value


# ---- text ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def play(tmp_path: Path) -> dict[str, Value]:
    return short_play(tmp_path)


@pytest.mark.parametrize("method", ["fedtp", "vanilla", "fedavg"])
@pytest.mark.parametrize("knn", [False, True])
def test_on_text_all_positions_count_and_perplexity_is_that_of_the_loss(
    federate: Federate, settings: Make, play: dict[str, Value], method: str, knn: bool
) -> None:
    given = {"strategy": "fedtp" if method != "fedavg" else "fedavg", **play, **SMALL, "fedtp.knn": knn}
    given |= {"fedtp.personal": "vanilla"} if method == "vanilla" else {}
    training = {"num_server_rounds": 3, "learning_rate": 0.3, "batch_size": 8}
    run = federate(clients=3, **given, **training)
    opened = [open_partition(parse(settings(**given)).data(), number, 3) for number in range(3)]
    counts = {data.name: data.counts() for data in opened}
    rows = {row[:6]: row for row in run.rows}
    assert len(rows) == 4 * 3 * 2 * 2 * 3  # rounds, clients, splits, phases, metrics
    for row in rows.values():
        assert row.n == counts[row.client][row.split] * LENGTH
        if row.metric == "perplexity":
            assert row.value == pytest.approx(math.exp(rows[*row[:5], "loss"].value), rel=1e-12)
    first, last = (
        np.mean([r.value for r in run.rows if (r.round, *r[2:6]) == (n, "test", r.model, "before", "accuracy")])
        for n in (1, 4)
    )
    assert knn or last > first + 0.1  # neighbours know these few words at once


@pytest.mark.parametrize("head", ["fedper", "fedrod"])
def test_on_text_personal_heads_work_too(federate: Federate, play: dict[str, Value], head: str) -> None:
    run = federate(clients=3, grid=Watching, **play, **options("generated", head, knn=True))
    assert run.summary["failures"] == 0
    assert last_kept(run)["0"].keys() == ({"head.weight"} if head == "fedper" else set(SECOND))


@pytest.mark.parametrize("personal", ["generated", "vanilla"])
def test_9_of_random_characters_nothing_can_be_predicted(federate: Federate, tmp_path: Path, personal: str) -> None:
    """A network that sees the character it should predict, as the authors' does, scores 0.8 and more here."""
    draw, letters = np.random.default_rng(0), "abcdefghij"
    roles = {f"r{k}": ["".join(draw.choice(list(letters), 6000))] for k in range(3)}
    given = {**TEXT, "dataset": write_texts(tmp_path / "noise.parquet", roles), "vocabulary": letters, **SMALL}
    training = {"num_server_rounds": 3, "learning_rate": 0.3, "batch_size": 16}
    run = federate(clients=3, strategy="fedtp", **given, **training, **{"fedtp.personal": personal})
    test = [row for row in run.rows if row[:1] + row[2:6] == (4, "test", "personal", "before", "accuracy")]
    n = sum(row.n for row in test)
    assert n > 4000
    accuracy = sum(row.value * row.n for row in test) / n
    assert abs(accuracy - 0.1) < 3 * math.sqrt(0.1 * 0.9 / n)
