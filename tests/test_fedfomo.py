"""FedFomo: weights and mixtures by hand, whom a client gets, rounds written out, and what is refused."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixers import flat, models_of, names, server, state_of, trained
from presets import planned
from test_novel import Watching, tensors
from torch import Tensor

from fedham_flwr.algorithms.fedfomo import MOST, FedFomoSettings, distance, explored, mixed, shares, weight
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.messages import Upload
from fedham_flwr.federation.record_values import tensors as read_tensors
from fedham_flwr.mixing.affinity import Affinity
from fedham_flwr.models import build
from fedham_flwr.reporting.mixing_weights import read_weights
from fedham_flwr.settings import parse
from fedham_flwr.training.trainer import Trainer


def test_weights_by_hand() -> None:
    one, other = ({"a": torch.tensor([x, 0.0]), "b": torch.tensor([y])} for x, y in ((0.0, 0.0), (3.0, 4.0)))
    assert distance(one, other, ["a", "b"]) == 5.0
    assert distance(one, other, ["a"]) == 3.0
    assert weight(2.0, 1.0, 5.0) == pytest.approx(0.2)
    assert weight(1.0, 2.0, 5.0) == pytest.approx(-0.2)
    assert weight(1.0, 2.0, 0.0) == 0.0
    assert weight(1.0, math.inf, 1.0) == -MOST
    assert weight(math.inf, math.inf, 1.0) == 0.0
    assert weight(2.0, 1.0, 1e-20) == MOST
    assert shares([0.2, -5.0, 0.6]) == pytest.approx([0.25, 0.0, 0.75])


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=4), st.integers(0, 2**31))
def test_a_mixture_is_a_loops_and_stays_between_the_models(omega: list[float], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    before, *models = ({"a": torch.randn(3, generator=draw)} for _ in range(1 + len(omega)))
    found, a = mixed(before, models, shares(omega)), shares(omega)
    if not any(each > 0 for each in omega):
        assert found is before  # what was there is kept
        return
    for at in range(3):
        v = float(before["a"][at])
        wanted = v + math.fsum(s * (float(m["a"][at]) - v) for s, m in zip(a, models, strict=True))
        assert float(found["a"][at]) == pytest.approx(wanted, abs=1e-6)
        chosen = [float(m["a"][at]) for s, m in zip(a, models, strict=True) if s > 0]
        assert min(chosen) - 1e-6 <= wanted <= max(chosen) + 1e-6


def test_what_is_drawn_decays_to_nothing() -> None:
    assert [explored(FedFomoSettings(), t) for t in (1, 2, 7, 50)] == pytest.approx([0.3, 0.25, 0.0, 0.0])


def test_affinities_add_up_and_are_kept_of_pairs_that_met() -> None:
    affinity, again = Affinity(), Affinity()
    affinity.update(2, torch.tensor([0, 4]), torch.tensor([0.5, -1.0]))
    affinity.update(2, torch.tensor([4, 1]), torch.tensor([3.0, 0.25]))
    assert affinity.row(2, 5).tolist() == [0.5, 0.25, 0.0, 0.0, 2.0]
    assert not affinity.row(0, 5).any()
    again.load(affinity.state_dict(), 5)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in affinity.state_dict().items())
    with pytest.raises(ValueError, match="an affinity is of a client that is none of 4"):
        again.load(affinity.state_dict(), 4)


# ---- the server ------------------------------------------------------------------------------------------------------


def uploads_of(made: Any, number: int, clients: tuple[str, ...], omega: Callable[[str, int], float]) -> dict[str, Any]:
    """Trained models, and weights of the models that were sent."""
    plan, found = made.plan(number, clients), {}
    for client, upload in trained(planned(plan), number).items():
        places = sorted((*plan[client].extras.facts["peers"], plan[client].extras.facts["place"][0]))
        extras = {"places": torch.tensor(places), "omega": torch.tensor([omega(client, p) for p in places])}
        made.check_extras("train", client, extras)
        found[client] = Upload(client, upload.params, 10, (), extras=extras)
    return found


def test_a_client_gets_its_own_model_and_after_a_while_those_that_helped_most() -> None:
    made = server("fedfomo", 8, models=3, epsilon=0.0)
    assert all(start.extras.facts["peers"] == () for start in made.plan(1, names(8)).values())
    help_of = lambda client, place: float(-abs(place - int(client)))  # noqa: E731  # neighbours help most
    for number in range(1, 12):
        made.merge(number, uploads_of(made, number, names(8), help_of))
    plan, w = made.plan(12, names(8)), models_of(made, 8)
    for client, start in plan.items():
        place, peers = int(client), start.extras.facts["peers"]
        assert torch.equal(flat(start.params), w[place])
        assert len(peers) == 2
        assert place not in peers
        for peer in peers:
            sent = [start.extras.tensors[f"{peer}/{name}"] for name in made.split.shared]
            assert torch.equal(flat(dict(enumerate(sent))), w[peer])  # type: ignore[arg-type]
    good = server("fedfomo", 8, models=3, epsilon=0.0)
    for number in range(1, 5):
        good.merge(number, uploads_of(good, number, names(8), lambda client, place: 1.0 if place == 6 else -1.0))
    chosen = [start.extras.facts["peers"] for client, start in good.plan(5, names(8)).items() if client != "6"]
    assert sum(6 in peers for peers in chosen) >= 6  # who has met it once gets it again


def test_what_is_drawn_differs_between_rounds_and_not_if_it_is_asked_again() -> None:
    made = server("fedfomo", 8, models=3, epsilon=1.0, epsilon_decay=0.0)
    made.merge(1, uploads_of(made, 1, names(8), lambda *_: 0.0))
    made._affinity.update(0, torch.tensor([1, 2]), torch.tensor([9.0, 9.0]))
    seen = [made.plan(number, ("0",))["0"].extras.facts["peers"] for number in range(2, 30)]
    assert seen == [made.plan(number, names(8))["0"].extras.facts["peers"] for number in range(2, 30)]
    met = Counter(peer for peers in seen for peer in peers)
    assert met.keys() == {1, 2, 3, 4, 5, 6, 7}
    assert met[1] < 28  # nothing is chosen for its affinity


def test_the_shares_are_reported_and_ones_own_model_where_nothing_was_mixed() -> None:
    made = server("fedfomo", 3, models=3)
    made.merge(1, uploads_of(made, 1, names(3), lambda *_: 0.0))
    uploads = uploads_of(made, 2, ("0", "2"), lambda client, place: [1.0, 3.0, -2.0][place] if client == "0" else -1.0)
    weights = made.mixing_weights(2, ("0", "2"), uploads).dense()
    assert torch.allclose(weights[:, 0], torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]))
    assert made.mixing_weights(2, names(3), {}) is None


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"places": None}, "tensors other than the model's are .'omega'.?, wanted"),
        ({"places": torch.tensor([0.0, 1.0])}, "wanted int64 places and float32 weights"),
        ({"omega": torch.ones(3)}, "wanted int64 places and float32 weights, one of each for a model"),
        ({"places": torch.tensor([0, 9])}, "of models that were not sent"),
        ({"places": torch.tensor([-1, 0])}, "of models that were not sent"),
        ({"places": torch.tensor([0, 3])}, "of models that were not sent"),  # 3 has never trained
        ({"places": torch.tensor([1, 0])}, "not in order, each once"),
        ({"places": torch.tensor([1, 1])}, "not in order, each once"),
        ({"omega": torch.tensor([math.nan, 1.0])}, "a weight is no number"),
        ({"omega": torch.tensor([1.0, -2e12])}, "a weight is no number"),
        ({"places": torch.tensor([0, 1, 2]), "omega": torch.ones(3)}, "of models that were not sent"),
    ],
)
def test_weights_that_cannot_be_are_refused(changed: dict[str, Tensor | None], sentence: str) -> None:
    made = server("fedfomo", 4, models=2)
    made.merge(1, uploads_of(made, 1, ("0", "1", "2"), lambda *_: 0.0))
    good: dict[str, Tensor | None] = {"places": torch.tensor([0, 1]), "omega": torch.tensor([0.5, -0.5])}
    made.check_extras("train", "0", good)
    with pytest.raises(ValueError, match=sentence):
        made.check_extras("train", "0", {n: t for n, t in {**good, **changed}.items() if t is not None})


def test_everything_that_is_learned_is_in_the_state() -> None:
    whole, again = server("fedfomo", models=3), server("fedfomo", 0, models=3)
    for number in (1, 2):
        whole.merge(number, uploads_of(whole, number, names(4), lambda client, place: place - 1.5))
    again.load_state_dict(state_of(whole))
    for made in (whole, again):
        made.merge(3, uploads_of(made, 3, ("1", "3"), lambda client, place: 1.0 - place))
    other = state_of(again)
    assert all(torch.equal(tensor, other[name]) for name, tensor in state_of(whole).items())
    with pytest.raises(ValueError, match=r"tensors are missing: \['affinity/clients'"):
        again.load_state_dict({n: t for n, t in other.items() if n != "affinity/clients"})


# ---- rounds ----------------------------------------------------------------------------------------------------------


def test_without_validation_samples_it_is_refused_before_the_first_round(federate: Callable[..., Any]) -> None:
    sentence = r'^strategy="fedfomo" weighs models by their loss .* with validation-fraction=0: wanted more$'
    with pytest.raises(UserError, match=sentence):
        federate(strategy="fedfomo", validation_fraction=0.0)


def test_two_rounds_are_the_training_written_out(federate: Callable[..., Any], settings: Callable[..., Any]) -> None:
    """Client 0 of two: trained from the common model, then from what its validation samples make of both models."""
    few = {"strategy": "fedfomo", "samples_per_client": 64, "clients": 2, "validation_fraction": 0.3}
    run = federate(grid=Watching, min_clients=2, **few)
    chosen = parse(settings(**{k: v for k, v in few.items() if k != "clients"}))
    trainer = Trainer(build("digits-cnn", (1, 8, 8), 10, 0), torch.device("cpu"), "fp32")
    data = [open_partition(chosen.data(), number, 2) for number in (0, 1)]
    every, first = trainer.manifest.names(), {n: t.clone() for n, t in trainer.initial.items()}

    def fitted(start: dict[str, Tensor], number: int, client: int) -> dict[str, Tensor]:
        trainer.load(start)
        trainer.fit(data[client], chosen.local_training(number), torch_stream(0, "batches", number, str(client)))
        return trainer.read(every)

    def loss(model: dict[str, Tensor]) -> float:
        trainer.load(model)
        return trainer.evaluate(data[0], "validation").values["loss"]

    trained_once = [fitted(first, 1, client) for client in (0, 1)]
    omega = [
        (loss(first) - loss(model)) / float((flat(model) - flat(first)).norm()) for model in trained_once
    ]  # both against the model that the first training began with
    a = [max(each, 0.0) / math.fsum(max(o, 0.0) for o in omega) for each in omega]
    start = {n: sum(s * m[n] for s, m in zip(a, trained_once, strict=True)) for n in first}
    of_client = [(message.metadata.group_id, reply) for kind, client, message, reply in run.grid.seen if client == "0"]
    (told,) = [tensors(reply) for number, reply in of_client if number == "2"]
    assert told["places"].tolist() == [0, 1]
    assert told["omega"].tolist() == pytest.approx(omega, rel=1e-4)
    kept = read_tensors(next(iter(run.grid.contexts.values())).state.array_records["personal"])
    assert kept.keys() == {f"previous/{name}" for name in every}
    assert all(torch.allclose(kept[f"previous/{name}"], tensor, atol=1e-6) for name, tensor in start.items())
    wanted = flat(fitted(start, 2, 0))  # type: ignore[arg-type]
    found = torch.cat([run.state[f"bank/{group}"][0] for group in ("conv1", "conv2", "fc1", "fc2")])
    assert torch.allclose(found.double(), wanted, atol=1e-5)
    weights = read_weights(run.path).to_pandas()
    row = weights[(weights["round"] == 2) & (weights["client"] == "0") & (weights["group"] == "fc1")]
    assert dict(zip(row["peer"], row["weight"], strict=True)).get("0", 0.0) == pytest.approx(a[0], abs=1e-4)


def some_without_validation(client: int, clients: int, seed: int) -> dict[str, Any]:
    """Slopes that are told from their sign; client 0 has no validation split, and the others have."""
    draw = np.random.default_rng([seed, client])
    x = draw.normal(size=(48, 1, 8)).astype("float32")
    y = (x.mean(axis=(1, 2)) > 0).astype(int)
    parts = {"train": slice(0, 24), "test": slice(24, 36)}
    return {
        name: (x[part], y[part]) for name, part in (parts | ({"validation": slice(36, 48)} if client else {})).items()
    }


def none_with_validation(client: int, clients: int, seed: int) -> dict[str, Any]:
    """The same without any."""
    return {n: part for n, part in some_without_validation(client, clients, seed).items() if n != "validation"}


def test_a_client_without_validation_samples_goes_on_from_its_own_model(federate: Callable[..., Any]) -> None:
    own = {"strategy": "fedfomo", "model": "mlp", "validation_fraction": 0.0, "batch_size": 8}
    run = federate(clients=3, grid=Watching, dataset="test_fedfomo:some_without_validation", **own)
    assert run.summary["failures"] == 0
    told = {client: tensors(reply) for _, client, message, reply in run.grid.seen if message.metadata.group_id == "2"}
    assert {client: len(said["places"]) for client, said in told.items()} == {"0": 0, "1": 3, "2": 3}
    weights = read_weights(run.path).to_pandas()
    row = weights[(weights["round"] == 2) & (weights["client"] == "0")]
    assert set(row["peer"]) == {"0"}
    assert set(row["weight"]) == {1.0}
    with pytest.raises(UserError, match="no client has any with validation-fraction=0: wanted more"):
        federate(clients=3, dataset="test_fedfomo:none_with_validation", **own)
