"""A few candidate peers for each client: the choice, attention and mixing over lists, and what never grows with N."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from presets import planned
from test_amn import DISCOUNT, MOMENTUM, Naive, drawn, meta_models, moved, server
from test_fedham import case, feature_slowly, loss, noise, rows_slowly, slope_at
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedham_flwr.algorithms import amn
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.neighbours import nearest_and_drawn
from fedham_flwr.core.parameters import LayerGroup, Manifest, Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.federation.contract import Task
from fedham_flwr.mixing import rows as few
from fedham_flwr.mixing.pool import Pool
from fedham_flwr.mixing.rows import Row
from fedham_flwr.server_app import build_strategy
from fedham_flwr.settings import Value, parse

SEED = 11
kinds = pytest.mark.parametrize(("meta", "bias"), [("attention", False), ("aghn", False)])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- the choice ------------------------------------------------------------------------------------------------------


def choose_slowly(near: list[float], others: list[int], count: int, drawn: float, draws: torch.Generator) -> list[int]:
    """By a list from which the best is taken again and again."""
    if len(others) <= count:
        return others
    left = [others[i] for i in torch.randperm(len(others), generator=draws).tolist()]
    chosen = []
    for _ in range(count - round(drawn * count)):
        best = left[0]
        for other in left:
            if near[other] > near[best]:
                best = other
        left.remove(best)
        chosen.append(best)
    return sorted(chosen + left[: count - len(chosen)])


@given(
    near=st.lists(st.integers(-3, 3), min_size=1, max_size=30),
    count=st.integers(1, 12),
    drawn=st.floats(0, 1),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_the_choice_is_that_of_the_naive_loop(
    near: list[int], count: int, drawn: float, seed: int, data: st.DataObject
) -> None:
    others = sorted(data.draw(st.sets(st.sampled_from(range(len(near))))))
    values = [float(x) for x in near]  # many are equal
    found = nearest_and_drawn(
        torch.tensor(values), torch.tensor(others, dtype=torch.int64), count, drawn, generator(seed)
    )
    assert found.tolist() == choose_slowly(values, others, count, drawn, generator(seed))
    assert len(found) == min(count, len(others))


def test_of_equal_ones_another_few_are_chosen_by_another_generator() -> None:
    chosen = {
        tuple(nearest_and_drawn(torch.zeros(20), torch.arange(20), 3, 0.0, generator(seed)).tolist())
        for seed in range(30)
    }
    assert len(chosen) > 20


def lists_slowly(made: Any, number: int, who: tuple[str, ...], count: int, share: float) -> dict[str, list[int]]:
    """The candidates by features of single models and inner products of single numbers."""
    everyone, learned = made._pool.bank.clients, made._pool.learned.tolist()
    if len(everyone) <= count + 1:
        return {client: list(range(len(everyone))) for client in who}
    p = made._projections.seen()
    f = [[feature_slowly(unit.double(), made.own.meta).tolist() for unit in model] for model in p]
    found = {}
    for client in who:
        own = everyone.index(client)
        near = [
            sum(x * y for mine, theirs in zip(f[own], f[j], strict=True) for x, y in zip(mine, theirs, strict=True))
            for j in range(len(everyone))
        ]
        others = [j for j in range(len(everyone)) if learned[j] and j != own]
        draws = torch_stream(SEED, "candidates", number, client)
        found[client] = sorted([*choose_slowly(near, others, count, share, draws), own])
    return found


@pytest.mark.parametrize("meta", ["attention", "aghn"])
@hypothesis_settings(max_examples=20)
@given(
    clients=st.integers(2, 9), late=st.integers(0, 3), count=st.integers(1, 10),
    share=st.sampled_from([0.0, 0.25, 1.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_candidates_are_those_of_the_naive_loops_and_the_same_whoever_else_is_asked(
    meta: str, clients: int, late: int, count: int, share: float, seed: int
) -> None:
    ids = tuple(map(str, range(clients)))
    made: Any = server(ids, meta=meta, candidates=count, candidates_drawn=share)
    trained = ids[: 1 + seed % clients]
    made.merge(1, moved(planned(made.plan(1, trained)), seed))
    everyone = (*ids, *(str(100 + i) for i in range(late)))
    made.add_clients(everyone)
    found = made._projections.candidates(2, everyone)
    assert {client: places.tolist() for client, places in found.items()} == lists_slowly(
        made, 2, everyone, count, share
    )
    assert max(map(len, found.values())) <= made._projections.width == min(len(everyone), count + 1)
    for client, places in found.items():
        assert torch.equal(made._projections.candidates(2, (client,))[client], places)
        own = made._pool.bank.clients.index(client)
        assert own in places
        if count + 1 < len(everyone):  # those that have never trained are nobody else's candidates
            assert bool(made._pool.learned[places[places != own]].all())


def test_in_another_round_others_are_drawn_and_the_nearest_stay() -> None:
    ids = tuple(map(str, range(30)))
    made: Any = server(ids, candidates=8, candidates_drawn=0.5)
    made.merge(1, moved(planned(made.plan(1, ids)), 3))
    rounds = [set(made._projections.candidates(number, ("7",))["7"].tolist()) for number in range(2, 40)]
    always = set.intersection(*rounds)
    assert len(always) == 1 + 4  # itself and the nearest
    assert len(set.union(*rounds)) == 30


# ---- attention over lists --------------------------------------------------------------------------------------------


def listed(made: Any, most: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lists of places for each client of a case, its own among them, shorter ones filled up: places, own, allowed."""
    draw, places, own, allowed = generator(seed), [], [], []
    for i, mine in enumerate(made.own.tolist()):
        peers = [j for j in torch.randperm(len(made.p), generator=draw).tolist() if j != mine]
        size = int(torch.randint(0, most, (1,), generator=draw))
        some = sorted([*peers[:size], mine])
        own.append(some.index(mine))
        spare = most - len(some)
        places.append([*some, *[mine] * spare])
        allowed.append([*made.allowed[i, some].tolist(), *[False] * spare])
    return torch.tensor(places), torch.tensor(own), torch.tensor(allowed)


@kinds
@given(
    peers=st.integers(1, 7), units=st.integers(1, 3), most=st.integers(1, 6), masked=st.booleans(),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_attention_over_lists_and_its_gradient_are_those_of_the_naive_loops_over_each_list(
    meta: str, bias: bool, peers: int, units: int, most: int, masked: bool, seed: int
) -> None:
    made = case(meta, bias, peers, units, seed, masked)
    most = min(most, peers)
    places, own, allowed = listed(made, most, seed)
    rows = amn.attend(made.psi, made.p[places], own, allowed, meta)
    weights = rows.effective(own)
    models = made.models[places]  # [n, M, L, P]
    slopes = torch.stack([slope_at(h) for h in torch.einsum("nlm,nmlp->nlp", weights, models)])
    scores = torch.einsum("nlp,nmlp->nlm", slopes, models)
    found = amn.gradient(made.psi, rows, own, scores, meta)
    for i in range(peers):
        at, psi = places[i], {name: tensor.clone().requires_grad_() for name, tensor in made.of(i).items()}
        row = rows_slowly(psi, made.p[at], int(own[i]), allowed[i].tolist(), meta, made.of(i))
        assert torch.allclose(weights[i], row.detach(), rtol=0, atol=1e-12)
        if not bool((made.p[at] != 0).any()):
            continue  # of equal models nothing is learned
        total = loss(torch.einsum("lm,mlp->lp", row, made.models[at])) + 0 * sum(t.sum() for t in psi.values())
        for name, wanted in zip(psi, torch.autograd.grad(total, list(psi.values())), strict=True):
            assert (found[name][i] - wanted).abs().max() < 1e-9, name


@kinds
def test_lists_of_everybody_are_attention_over_everybody(meta: str, bias: bool) -> None:
    made = case(meta, bias, peers=5, seed=4, masked=True)
    whole = made.look(meta)
    rows = amn.attend(made.psi, made.p.expand(5, -1, -1, -1), made.own, made.allowed, meta)
    scores = noise(5, 2, 5, seed=8)
    for mine, theirs in zip(rows, whole, strict=True):
        assert torch.allclose(mine, theirs.expand_as(mine), rtol=0, atol=1e-13)
    one, other = (amn.gradient(made.psi, each, made.own, scores, meta) for each in (rows, whole))
    assert all(torch.allclose(one[name], other[name], rtol=0, atol=1e-13) for name in other)


# ---- mixing with rows ------------------------------------------------------------------------------------------------

GROUPS = (LayerGroup("conv", ("a", "b")), LayerGroup("fc", ("c",)))
MANIFEST = Manifest(GROUPS, {"a": (700, 9), "b": (3,), "c": (4,)}, dict.fromkeys("abc", torch.float32))


def pool(clients: int, seed: int) -> Pool:
    draw = generator(seed)

    def model() -> Params:
        return {name: torch.randn(shape, generator=draw) for name, shape in MANIFEST.shapes.items()}

    made = Pool(MANIFEST, model(), torch.device("cpu"))
    made.add([str(i) for i in range(clients)])
    made.put({str(i): model() for i in range(clients)})
    return made


def drawn_rows(clients: int, who: int, units: int, most: int, seed: int) -> dict[str, Row]:
    draw, rows = generator(seed), {}
    for i in range(who):
        size = 1 + int(torch.randint(0, most, (1,), generator=draw))
        places = torch.randperm(clients, generator=draw)[:size].sort().values
        rows[str(i)] = Row(places, torch.randn(units, len(places), generator=draw).softmax(-1))
    return rows


@pytest.mark.parametrize("units", [1, 2])
@hypothesis_settings(max_examples=15)
@given(clients=st.integers(1, 9), most=st.integers(1, 9), seed=st.integers(0, 99), data=st.data())
def test_mixtures_scores_and_the_new_pool_are_those_of_the_naive_loops_and_of_dense_rows(
    units: int, clients: int, most: int, seed: int, data: st.DataObject
) -> None:
    who = data.draw(st.integers(1, clients))
    made, other, rows = pool(clients, seed), pool(clients, seed), drawn_rows(clients, who, units, most, seed)
    before = {j: {n: t.double().clone() for n, t in made.model(j).items()} for j in made.bank.clients}
    mixed, dense = few.hybrids(made, rows), few.dense(made, rows)
    wide = other.mixtures(list(rows), dense)
    trained = {client: {n: t + 0.1 * torch.sin(t) for n, t in start.items()} for client, start in mixed.items()}
    scores = few.learn(made, trained, rows)
    wide_scores = other.absorb(trained, dense)
    for i, (client, row) in enumerate(rows.items()):
        assert dense[i].sum(-1).tolist() == pytest.approx([1, 1], abs=1e-6)
        for at, group in enumerate(GROUPS):
            weights = row.weights[at if units == 2 else 0].tolist()
            pairs = list(zip(weights, row.places.tolist(), strict=True))
            assert torch.equal(dense[i, at, row.places], row.weights[at if units == 2 else 0])
            for name in group.names:
                wanted = sum(w * before[str(j)][name] for w, j in pairs)
                assert torch.allclose(mixed[client][name].double(), wanted, atol=1e-5)  # type: ignore[arg-type]
                assert torch.allclose(mixed[client][name], wide[client][name], atol=1e-5)
            for m, (_, j) in enumerate(pairs):
                inner = sum(
                    float(((mixed[client][n] - trained[client][n]).double() * before[str(j)][n]).sum())
                    for n in group.names
                )
                assert float(scores[client][at, m]) == pytest.approx(inner, rel=1e-4, abs=1e-3)
                assert float(wide_scores[i, at, j]) == pytest.approx(inner, rel=1e-3, abs=1e-2)
    for j in made.bank.clients:
        for name, tensor in made.model(j).items():
            assert torch.equal(tensor, trained[j][name] if j in trained else before[j][name].float())
    assert torch.equal(made.ready, other.ready)


def test_mixing_again_for_some_of_the_clients_gives_the_same_bits() -> None:
    made, rows = pool(8, 1), drawn_rows(8, 6, 2, 4, 1)
    whole = few.hybrids(made, rows)
    for client, row in rows.items():
        again = few.hybrids(made, {client: row})[client]
        assert all(torch.equal(again[name], tensor) for name, tensor in whole[client].items())


# ---- AMN with candidates ---------------------------------------------------------------------------------------------


class NaiveFew(Naive):
    """The naive server, in which a client may mix its candidates only."""

    lists: Mapping[str, list[int]]

    def rows(self, client: str, psi: Params) -> Tensor:
        p, own = self.features(), list(self.models).index(client)
        p = torch.where(p.abs() < 1e-12, 0.0, p)
        allowed = [share if j in self.lists[client] else 0.0 for j, share in enumerate(self.shares())]
        rows = rows_slowly(psi, p, own, allowed, self.meta, self.psi[client])
        return rows + 0 * sum(tensor.sum() for tensor in psi.values())  # a client alone has a gradient too, of 0


@pytest.mark.parametrize("meta", ["attention", "aghn"])
@pytest.mark.parametrize("unit", ["model", "layer"])
@hypothesis_settings(max_examples=6)
@given(clients=st.integers(4, 6), count=st.integers(1, 2), seed=st.integers(0, 99))
def test_amns_server_is_the_naive_one_that_may_mix_the_candidates(
    unit: str, meta: str, clients: int, count: int, seed: int
) -> None:
    ids = tuple(map(str, range(clients)))
    looked: dict[str, Value] = {"update_momentum": MOMENTUM, "staleness_discount": DISCOUNT}
    made: Any = server(ids, unit=unit, meta=meta, candidates=count, **looked)
    naive, first = NaiveFew(ids, unit, meta, meta_models(made), "own", "update"), meta_models(made)
    for number, who in enumerate((ids, ids[1:], ids), start=1):
        naive.lists = lists_slowly(made, number, ids, count, 0.25)
        starts, weights = planned(made.plan(number, who)), made.mixing_weights(number, who, {}).dense()
        assert weights.shape == (len(who), 2, clients)
        for i, client in enumerate(who):
            row = naive.rows(client, naive.psi[client])
            assert torch.allclose(weights[i].double(), row.expand(2, -1), rtol=0, atol=1e-5)
            wanted = naive.mix(row)
            assert all(torch.allclose(t.double(), wanted[n], rtol=0, atol=1e-4) for n, t in starts[client].items())
        uploads = moved(starts, seed + number)
        made.merge(number, uploads)
        naive.merge(uploads)
        for client, psi in meta_models(made).items():
            for name, tensor in psi.items():
                assert torch.allclose(tensor, naive.psi[client][name], rtol=1e-4, atol=1e-5), (number, name)
    assert any(not torch.equal(psi["gate"], first[client]["gate"]) for client, psi in meta_models(made).items())


def test_a_meta_model_starts_with_the_mean_of_what_it_looks_at() -> None:
    ids = tuple(map(str, range(9)))
    made: Any = server(ids, candidates=3, initial_temperature=0.0, sample_power=0.0, staleness_discount=1.0)
    alone = made.mixing_weights(1, ids, {}).dense()  # nobody has trained
    assert torch.equal(alone, torch.eye(9)[:, None].expand(-1, 2, -1))
    made.merge(1, moved(planned(made.plan(1, ids[:4])), 1))
    weights = made.mixing_weights(2, ids, {}).dense()
    assert ((weights > 0).sum(-1) == 4).all()
    assert torch.allclose(weights[weights > 0], torch.tensor(0.25))


class Largest(TorchDispatchMode):
    """The most numbers that any tensor has that torch makes."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else (found,):
            if isinstance(each, Tensor):
                self.most = max(self.most, each.numel())
        return found


def most_numbers(clients: int, candidates: int) -> int:
    """Of the tensors of two rounds with three clients, and of the starts of everybody."""
    ids, watch = tuple(map(str, range(clients))), Largest()
    with watch:
        made = server(ids, candidates=candidates)
        for number in (1, 2):
            made.merge(number, moved(planned(made.plan(number, ids[:3])), number))
        made.plan(3, ids)
    return watch.most


def test_no_tensor_has_a_number_for_each_pair_of_clients() -> None:
    few_, many = most_numbers(150, 4), most_numbers(600, 4)
    assert many <= 4 * few_  # and not 16 times
    assert many < 600 * 600 / 4
    assert most_numbers(600, 0) >= 600 * 600


@pytest.mark.parametrize("method", ["amn", "fedham"])
def test_a_number_for_each_pair_of_clients_is_refused(method: str) -> None:
    given_ = {"strategy": method, "device": "cpu", f"{method}.peer-bias": True, f"{method}.candidates": 8}
    error = r"^peer-bias=true keeps a number for every pair of clients, and candidates=8 looks at a few of them: wanted"
    with pytest.raises(UserError, match=error):
        build_strategy(parse(given_), MANIFEST, drawn(0), Task((1, 8, 8), 10))
