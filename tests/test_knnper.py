"""kNN-Per: the vote by loops, FedAvg's model beside it, and which of the client's samples vote."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from presets import half_of, network
from safetensors.torch import load_file
from torch import Tensor, nn

from fedham_flwr.algorithms import knnper
from fedham_flwr.algorithms.knnper import SHARES, nearest_vote, voting
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.clients import open_partition
from fedham_flwr.models import build, export
from fedham_flwr.settings import parse
from fedham_flwr.training.guard import method_view
from fedham_flwr.training.trainer import Trainer

Federate = Callable[..., Any]
CPU = torch.device("cpu")
FEW = {"strategy": "knnper", "samples_per_client": 64}


# ---- the vote --------------------------------------------------------------------------------------------------------


def naive_vote(queries: Tensor, keys: Tensor, targets: Tensor, classes: int, neighbours: int, scale: float) -> Tensor:
    votes = torch.zeros(len(queries), classes, dtype=queries.dtype)
    for at, query in enumerate(queries):
        squared = [float(((query - key) ** 2).sum()) for key in keys]
        for sample in sorted(range(len(keys)), key=lambda i: squared[i])[:neighbours]:
            votes[at, targets[sample]] += math.exp(-squared[sample] / (len(query) * scale))
    return votes / votes.sum(1, keepdim=True)


sizes = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 5))


@given(sizes, st.integers(1, 12), st.sampled_from([0.25, 1.0, 3.0]), st.integers(0, 2**31))
def test_the_vote_is_the_loops_over_queries_and_keys(
    qsd: tuple[int, int, int], neighbours: int, scale: float, seed: int
) -> None:
    (q, s, d), draw = qsd, torch.Generator().manual_seed(seed)
    queries, keys = (torch.randn(n, d, generator=draw, dtype=torch.float64) for n in (q, s))
    targets = torch.randint(3, (s,), generator=draw)
    vote = nearest_vote(queries, keys, targets, 3, neighbours, scale)
    torch.testing.assert_close(vote, naive_vote(queries, keys, targets, 3, neighbours, scale), rtol=1e-6, atol=1e-8)


def test_the_vote_by_hand() -> None:
    """Squared distances 1, 4 and 9 in two dimensions, of which the third doesn't vote."""
    keys, targets = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]), torch.tensor([0, 1, 1])
    near, far = math.exp(-1 / 2), math.exp(-4 / 2)
    vote = nearest_vote(torch.zeros(1, 2), keys, targets, 3, 2)
    torch.testing.assert_close(vote, torch.tensor([[near, far, 0.0]]) / (near + far))


def test_neighbours_that_are_all_very_far_still_vote() -> None:
    vote = nearest_vote(torch.zeros(1, 1), torch.tensor([[100.0], [101.0]]), torch.tensor([1, 0]), 2, 2)
    assert bool(torch.isfinite(vote).all())
    assert vote[0, 1] > 0.999


def test_a_samples_own_features_decide_with_one_neighbour() -> None:
    keys, targets = torch.eye(3), torch.tensor([2, 0, 1])
    assert nearest_vote(keys, keys, targets, 3, 1).argmax(1).tolist() == [2, 0, 1]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_probabilities_are_mixed_and_not_logits(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of queries that do not matter; a class that nobody votes for and nothing else speaks for is finite."""
    draw = torch.Generator().manual_seed(0)
    model: Any = network("knnper").eval()
    x, keys, targets = torch.rand(7, 1, 8, 8, generator=draw), torch.rand(5, 64, generator=draw), torch.arange(5)
    seen: list[Tensor] = []
    hook = model.fc2.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        probabilities = model(x).softmax(-1)
    hook.remove()
    wanted = share * naive_vote(seen[0], keys, targets, 10, 3, 2.0) + (1 - share) * probabilities
    monkeypatch.setattr(knnper, "QUERIES", 3)
    with torch.no_grad():
        found = voting("fc2", keys, targets, 3, share, 2.0)(model, x)
    torch.testing.assert_close(found.exp(), wanted, rtol=1e-4, atol=1e-6)
    assert bool(torch.isfinite(found).all())


# ---- which samples vote, and how much --------------------------------------------------------------------------------


def client_of(settings: Callable[..., Any], number: int = 0, **given: Any) -> Any:
    """A client half with the network's first parameters."""
    chosen = parse(settings(**FEW, **given))
    data = method_view(open_partition(chosen.data(), number, 4), "knnper")
    trainer = Trainer(build("digits-cnn", (1, 8, 8), 10, 0), CPU, "fp32")
    return half_of(chosen, str(number), trainer, data)


def said(client: Any, predict: Any) -> Tensor:
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: Tensor = predict(client.job.trainer._model, x)
    return found


def test_no_more_samples_vote_than_a_client_has_room_for(settings: Callable[..., Any]) -> None:
    """Drawn for each client, and always the same ones."""
    chosen = []
    for number in (0, 1):
        client = client_of(settings, number, **{"knnper.capacity": 3, "knnper.neighbours": 9})
        keys, targets = client.job.trainer.encode(client.job.data, "train")
        draw = torch.randperm(len(keys), generator=torch_stream(0, "memory", client=str(number)))[:3]
        chosen.append(draw.tolist())
        wanted = said(client, voting("fc2", keys[draw], targets[draw], 9, 0.5))
        assert torch.equal(said(client, client.predictor()), wanted)
        assert not torch.equal(said(client, voting("fc2", keys, targets, 9, 0.5)), wanted)
    assert chosen[0] != chosen[1]
    whole, enough = (client_of(settings, **{"knnper.capacity": capacity}) for capacity in (0, 42))
    assert torch.equal(said(whole, whole.predictor()), said(enough, enough.predictor()))


def test_a_client_chooses_its_share_on_its_validation_split(settings: Callable[..., Any]) -> None:
    client = client_of(settings, validation_fraction=0.4, **{"knnper.tune-share": True, "knnper.share": 0.1})
    keys, targets = client.job.trainer.encode(client.job.data, "train")
    best, found = (-1.0, 0.0), -1.0
    for share in SHARES:
        scores = client.job.trainer.evaluate(client.job.data, "validation", voting("fc2", keys, targets, 5, share))
        if (scores.values["accuracy"], -scores.loss) > best:
            best, found = (scores.values["accuracy"], -scores.loss), share
    assert found > 0.1  # an untrained network, and neighbours that know
    assert torch.equal(said(client, client.predictor()), said(client, voting("fc2", keys, targets, 5, found)))


def test_a_client_without_validation_samples_takes_the_common_share(settings: Callable[..., Any]) -> None:
    one, other = (
        client_of(settings, validation_fraction=0.0, **{"knnper.tune-share": tune, "knnper.share": 0.9})
        for tune in (True, False)
    )
    assert torch.equal(said(one, one.predictor()), said(other, other.predictor()))


# ---- whole federations -----------------------------------------------------------------------------------------------


def test_its_model_is_fedavgs_bit_for_bit_and_without_a_share_so_are_its_scores(federate: Federate) -> None:
    average, idle, asked = (
        federate(**{**FEW, "strategy": name}, evaluate_every=1, **more)
        for name, more in (("fedavg", {}), ("knnper", {"knnper.share": 0.0}), ("knnper", {"knnper.share": 0.5}))
    )
    for run in (idle, asked):
        assert run.state.keys() == average.state.keys()
        assert all(torch.equal(tensor, average.state[name]) for name, tensor in run.state.items())
    before, mine = ([row for row in run.rows if row.phase == "before"] for run in (average, idle))
    for one, other in zip(mine, before, strict=True):
        assert (one[:6], one.n) == (other[:6], other.n)
        assert one.value == (other.value if one.metric == "accuracy" else pytest.approx(other.value, rel=1e-4))
    hits = [
        sum(r.value for r in run.rows if r[:1] + r[2:6] == (3, "test", whose, "before", "accuracy"))
        for run, whose in ((idle, "global"), (asked, "personal"))  # what votes is no model of all
    ]
    assert hits[1] > hits[0] + 0.5  # of 4: with two classes to a client, neighbours help at once


def test_what_is_used_scored_and_exported_is_the_global_model_with_the_vote(
    federate: Federate, settings: Callable[..., Any]
) -> None:
    run, chosen = federate(**FEW), parse(settings(**FEW))
    rows = {phase: [(*r[:3], *r[5:]) for r in run.rows if r.phase == phase] for phase in ("before", "after")}
    assert rows["before"] == rows["after"]
    for number in range(4):
        file = run.path / "model" / f"{number}.safetensors"
        assert all(torch.equal(tensor, run.state[name]) for name, tensor in load_file(file).items())
        data = open_partition(chosen.data(), number, 4)
        trainer = Trainer(export.load(file), CPU, "fp32")
        (mine, targets), (theirs, wanted) = (trainer.encode(data, split) for split in ("train", "test"))
        logits = theirs @ run.state["fc2.weight"].T + run.state["fc2.bias"]
        mixed = 0.5 * naive_vote(theirs, mine, targets, 10, 5, 1.0) + 0.5 * logits.softmax(-1)
        (row,) = [r for r in run.rows if r[:6] == (3, str(number), "test", "personal", "after", "loss")]
        assert -mixed[torch.arange(len(wanted)), wanted].log().mean().item() == pytest.approx(row.value, rel=1e-4)
    assert not any(context.state.array_records.get("personal") for context in run.grid.contexts.values())


def test_between_the_rounds_and_after_them_nobody_trains(federate: Federate, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, fit = [], Trainer.fit

    def counted(self: Trainer, *given: Any) -> float:
        trained.append(1)
        return fit(self, *given)

    monkeypatch.setattr(Trainer, "fit", counted)
    federate(fraction_train=0.5, evaluate_every=1, **FEW)
    assert len(trained) == 2 * 2  # rounds, clients


def crooked(shape: tuple[int, ...], outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), outputs), nn.LayerNorm(outputs))


def test_a_network_without_a_linear_last_layer_is_refused(federate: Federate) -> None:
    text = r'^strategy="knnper" needs a network whose last layer is linear, and that of Sequential is LayerNorm$'
    with pytest.raises(UserError, match=text):
        federate(model="test_knnper:crooked", **FEW)


def test_a_share_that_nobody_can_choose_is_refused(federate: Federate) -> None:
    text = (
        r"^knnper.tune-share=true chooses a share on validation samples, .* with validation-fraction=0: wanted more, or"
    )
    with pytest.raises(UserError, match=text):
        federate(validation_fraction=0.0, **FEW, **{"knnper.tune-share": True})


def test_where_there_are_no_classes_it_is_refused(federate: Federate) -> None:
    with pytest.raises(UserError, match=r'^strategy="knnper" is for classes, and the target is value: wanted another'):
        federate(strategy="knnper", dataset="own_objects:slopes", model="own_objects:linear", clients=2)
