"""What one bad client can do to what the others start from: the bounds of `federation/bounds.py`, method by method."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from presets import network_settings, planned, references, shorten
from torch import Tensor

from clients.fedala import mixed
from fedham_flwr import models, registry
from fedham_flwr.algorithms.amn import AttentionSettings
from fedham_flwr.core.parameters import Params, read
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.federation import bounds
from fedham_flwr.federation.contract import Task
from fedham_flwr.federation.messages import Upload
from fedham_flwr.mixing.meta_models import MetaModels
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.server_app import build_strategy
from fedham_flwr.settings import Value, parse
from strategies.amn import AMNStrategy
from strategies.fedaghn import FedAGHNStrategy
from strategies.fedham import FedHAMStrategy
from strategies.fedtp import FedTPStrategy
from strategies.pfedla import PFedLAStrategy

Federate = Callable[..., Any]
CLIENTS, BAD = ("0", "1", "2", "3"), "2"
GOOD = tuple(client for client in CLIENTS if client != BAD)
EXAMPLES = {"0": 30, "1": 50, "2": 400, "3": 40}
CAP, C = 50, 0.5
SHARE = 50 / 170
"""Of the bad client, whose examples are capped."""
SMALL: dict[str, Value] = {
    "fedtp.embedding-dim": 4, "fedtp.hidden-dim": 6, "fedtp.hidden-layers": 1, "fedtp.rank": 2,
    "vit.width": 8, "vit.depth": 1, "vit.heads": 1, "vit.head-dim": 4, "vit.hidden-dim": 8,
}  # fmt: skip

Attack = Callable[[Params, torch.Generator], Params]


def filled(start: Params, value: Callable[[Tensor], Tensor]) -> Params:
    return {name: value(tensor).float() for name, tensor in start.items()}


def noise(start: Params, draw: torch.Generator, length: float) -> Params:
    """The start and a random update of a length."""
    update = {name: torch.randn(tensor.shape, generator=draw) for name, tensor in start.items()}
    whole = math.sqrt(sum(float(tensor.square().sum()) for tensor in update.values()))
    return {name: start[name] + tensor * (length / whole) for name, tensor in update.items()}


def one_layer(start: Params, draw: torch.Generator) -> Params:
    """All of the update in one number."""
    first = next(iter(start))
    after = {name: tensor.clone() for name, tensor in start.items()}
    after[first].view(-1)[0] += 1e6
    return after


ATTACKS: dict[str, Attack] = {
    "random": lambda start, draw: noise(start, draw, 30.0),
    "huge": lambda start, draw: noise(start, draw, 5e7),
    "sign-flipped": lambda start, _: filled(start, lambda tensor: -20.0 * tensor),
    "all alike": lambda start, _: filled(start, lambda tensor: torch.full_like(tensor, 7.0)),
    "one number": one_layer,
}
attacks = pytest.mark.parametrize("attack", ATTACKS)


def server(strategy: str, **given: Value) -> Any:
    """A server half with four clients."""
    keys = {key.replace("_", "-"): value for key, value in given.items()}
    chosen = parse(
        {"strategy": strategy, "max-examples-per-client": CAP, **network_settings(strategy), **SMALL, **keys}
    )
    model = models.build(chosen.model, (1, 8, 8), 10, 0, chosen.networks())
    manifest = manifest_of(model, [])
    made = build_strategy(chosen, manifest, read(model, manifest.names()), Task((1, 8, 8), 10))
    made.add_clients(CLIENTS)
    return made


class Looking:
    """The clients' meta-models, that choose rows of weights as FedHAM's clients do; they do not learn."""

    def __init__(self, made: AMNStrategy | FedHAMStrategy) -> None:
        self._models = MetaModels(AttentionSettings(unit="layer"), len(made._projections.units))  # type: ignore[call-arg]
        self._models.add([torch_stream(0, "meta-model", client=client) for client in CLIENTS], len(CLIENTS))
        for name in self._models.params:
            self._models.params[name] += torch.randn(self._models.params[name].shape, generator=torch_stream(1, name))

    def rows(self, made: AMNStrategy | FedHAMStrategy) -> Tensor:
        """[N, L, N]."""
        own, shares = torch.arange(len(CLIENTS)), made._projections.shares().expand(len(CLIENTS), -1)
        return self._models.attend(own, made._projections.seen(), own, shares).effective(own)


def ask(made: Any, number: int, looking: Looking | None) -> None:
    """The exchange before a round, in which FedHAM's clients send their rows."""
    if looking is not None and made.questions(number, CLIENTS):
        rows = dict(zip(CLIENTS, looking.rows(made), strict=True))
        made.answered(number, {c: Upload(c, {}, 1, (), extras={"row": row.float()}) for c, row in rows.items()})


def sent(start: Params, number: int, client: str, bad: Attack | None) -> Params:
    """What a client has made of its start; the bad one with an attack, or nothing."""
    draw = torch_stream(3, "attack", number, client)
    if client != BAD:
        return noise(start, draw, 0.3)
    return bad(start, draw) if bad else dict(start)


def step(made: Any, number: int, bad: Attack | None, clip: bool, looking: Looking | None) -> Any:
    """A copy of the server after a round in which the bad client sends this, or back what it started from."""
    after = copy.deepcopy(made)
    after.settings = after.settings.model_copy(update={"clip_norm": C if clip else 0.0})
    starts = references(after, number, CLIENTS)
    uploads = {}
    for client in CLIENTS:
        params = sent(starts[client], number, client, bad)
        extras = {} if looking is None else {"row": looking.rows(after)[CLIENTS.index(client)].float()}
        uploads[client] = bounds.capped(Upload(client, params, EXAMPLES[client], (), extras=extras), CAP)
        bounds.check_size(params)
    clipped = shorten(after, number, uploads) if clip else ()
    assert clipped == ((BAD,) if clip and bad else ())
    after.merge(number, uploads)
    after.progress.trained |= uploads.keys()
    ask(after, number + 1, looking)
    return after


def rounds(
    strategy: str, attack: str, clip: bool = True, **given: Value
) -> list[tuple[int, Any, Any, Any, Looking | None]]:
    """Three rounds with a bad client: number, the server before it, after it, and after it without the bad update."""
    made = server(strategy, **given)
    looking = Looking(made) if strategy == "fedham" else None
    ask(made, 1, looking)
    found = []
    for number in (1, 2, 3):
        after, without = (step(made, number, bad, clip, looking) for bad in (ATTACKS[attack], None))
        found.append((number, made, after, without, looking))
        made = after
    return found


def starts_of(made: Any, number: int, looking: Looking | None = None) -> Mapping[str, Params]:
    """What the clients start from; FedHAM's with `peers` mix it themselves."""
    if looking is None or made.questions(number, CLIENTS):
        ask(made, number, looking)
        return planned(made.plan(number, CLIENTS))
    return made._pool.mixtures(CLIENTS, looking.rows(made).float())


def norm(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def rounding(start: Params) -> float:
    """Of a mixture in float32: the models' own rounding, and that of a few sums."""
    return 2.0**-21 * norm(start) + 1e-7


@pytest.mark.parametrize(
    ("strategy", "given"),
    [("fedavg", {}), ("fedper", {}), ("fedtp", {}), ("amn", {}), ("pfedla", {}),
     ("pfedla", {"pfedla.retained-layers": 1}), ("fedham", {"fedham.transport": "peers"}),
     ("fedham", {"fedham.transport": "mediated"})],
)  # fmt: skip
def test_an_update_is_measured_from_what_was_sent_and_of_the_rest_from_the_last_model(
    strategy: str, given: dict[str, Value]
) -> None:
    for number, _, made, _, _ in rounds(strategy, "random", **given):
        plan, starts = planned(made.plan(number + 1, CLIENTS)), references(made, number + 1, CLIENTS)
        for client in CLIENTS:
            assert starts[client].keys() == set(made.split.shared)
            for name, tensor in starts[client].items():
                from_where = plan[client] if name in plan[client] else made._pool.bank.model(client)
                assert torch.equal(tensor, from_where[name])
    left_out = {"pfedla.retained-layers", "fedham.transport"} & given.keys() and given.get(
        "fedham.transport"
    ) != "mediated"
    assert bool(left_out) == any(plan[client].keys() != starts[client].keys() for client in CLIENTS)


# ---- a mean ------------------------------------------------------------------------------------------------------


@attacks
@pytest.mark.parametrize("strategy", [name for name in registry.BUILT_IN if registry.method(name).averages])
def test_a_mean_moves_by_no_more_than_the_capped_share_of_the_bound(strategy: str, attack: str) -> None:
    reached = 0.0
    for number, _, after, without, _ in rounds(strategy, attack):
        new, old = (starts_of(made, number + 1)["0"] for made in (after, without))
        moved = bounds.length(new, old)
        assert moved <= SHARE * C + rounding(old)
        reached = max(reached, moved)
    assert reached > 0.9 * SHARE * C  # and no less: the bound is sharp


@attacks
def test_without_the_bound_a_mean_moves_further(attack: str) -> None:
    for number, _, after, without, _ in rounds("fedavg", attack, clip=False)[:1]:
        new, old = (starts_of(made, number + 1)["0"] for made in (after, without))
        assert bounds.length(new, old) > 5 * SHARE * C


@attacks
def test_a_start_of_fedala_moves_by_the_bound_and_how_far_its_last_layers_are_from_the_clients_own(attack: str) -> None:
    for number, _, after, without, _ in rounds("fedala", attack):
        new, old = (starts_of(made, number + 1)["0"] for made in (after, without))
        last = after.manifest.groups[-1].parameters
        draw = torch_stream(4, "weights", number)
        own = noise({name: old[name] for name in last}, draw, 2.0)
        bound = SHARE * C + bounds.length(own, old)
        nothing, everything = ({name: torch.full_like(own[name], value) for name in last} for value in (0.0, 1.0))
        drawn = [{name: torch.rand(own[name].shape, generator=draw) for name in last} for _ in range(2)]
        for turned, weights in ((everything, nothing), (nothing, everything), drawn):
            moved = bounds.length({**new, **mixed(new, own, turned)}, {**old, **mixed(old, own, weights)})
            assert moved <= bound + rounding(old)


# ---- pFedLA ------------------------------------------------------------------------------------------------------


@attacks
@pytest.mark.parametrize("given", [{}, {"pfedla.retained-layers": 1}, {"pfedla.top-k-peers": 2, "seed": 1}])
def test_a_mixture_moves_by_no_more_than_its_weight_of_the_bound(attack: str, given: dict[str, Value]) -> None:
    moved_at_all = False
    for number, _, after, without, _ in rounds("pfedla", attack, **given):
        weights = without.mixing_weights(number + 1, CLIENTS, {}).weights
        # The others' hypernetworks have learned from the models that were mixed, and not yet from the bad one.
        good, own = without._pool.bank.rows(GOOD), without._pool.bank.rows([BAD])
        for name, tensor in without._networks.params.items():
            assert torch.equal(tensor[good], after._networks.params[name][good])
        new, old = (starts_of(made, number + 1) for made in (after, without))
        for client in GOOD:
            share = float(weights[CLIENTS.index(client), :, own].max())
            moved = bounds.length(new[client], old[client])
            assert moved <= share * C + rounding(old[client])
            moved_at_all |= moved > 0.1 * share * C
    assert moved_at_all


@attacks
def test_without_the_bound_a_mixture_moves_further(attack: str) -> None:
    number, _, after, without, _ = rounds("pfedla", attack, clip=False)[0]
    weights = without.mixing_weights(number + 1, CLIENTS, {}).weights
    new, old = (starts_of(made, number + 1) for made in (after, without))
    share = float(weights[0, :, CLIENTS.index(BAD)].max())
    assert bounds.length(new["0"], old["0"]) > 5 * share * C


# ---- FedHAM and AMN, and pFedLA with factorised heads ------------------------------------------------------------


def rows_of(made: Any, number: int, looking: Looking | None) -> Tensor:
    """[N, groups, N]: the weights that the clients' next starts are mixed with."""
    if looking is not None:
        return looking.rows(made)
    rows: Tensor = made.mixing_weights(number, CLIENTS, {}).weights
    return rows


def diameter(made: Any, group: str) -> float:
    return float(torch.cdist(made._pool.bank.arrays[group].double(), made._pool.bank.arrays[group].double()).max())


ATTENTION: list[tuple[str, dict[str, Value]]] = [
    ("fedham", {"fedham.transport": "peers"}),
    ("fedham", {"fedham.transport": "mediated"}),
    ("amn", {"amn.unit": "layer"}),
    ("fedaghn", {}),
    ("pfedla", {"pfedla.head": "factorised", "pfedla.head-rank": 2}),
    ("fedamp", {"fedamp.sigma": 10.0}),
    ("fedamp", {"fedamp.variant": "heuristic"}),
    ("pfedgraph", {"pfedgraph.alpha": 0.3}),
]


@attacks
@pytest.mark.parametrize(("strategy", "given"), ATTENTION)
def test_a_hybrid_moves_by_its_weight_of_the_bound_and_by_the_change_of_attention(
    strategy: str, given: dict[str, Value], attack: str
) -> None:
    for number, before, after, without, looking in rounds(strategy, attack, **given):
        own, groups = CLIENTS.index(BAD), after._pool.bank.groups
        # Of all models in the pool one has moved, and by no more than the bound from what it started from.
        start = references(before, number, (BAD,))[BAD]
        assert bounds.length(after._pool.bank.model(BAD), start) <= C + rounding(start)
        for group in groups:
            good = after._pool.bank.rows(GOOD)
            assert torch.equal(after._pool.bank.arrays[group][good], without._pool.bank.arrays[group][good])
        new_rows, rows = (rows_of(made, number + 1, looking).double() for made in (after, without))
        if strategy == "amn":  # the server's meta-models of the others have not seen the update
            for name, tensor in after._meta.state_dict().items():
                assert torch.equal(tensor[list(map(int, GOOD))], without._meta.state_dict()[name][list(map(int, GOOD))])
        turned = 0.5 * (new_rows - rows).abs().sum(-1)  # [N, groups]
        spread = torch.tensor([diameter(after, group) for group in groups], dtype=torch.float64)
        new, old = (starts_of(made, number + 1, looking) for made in (after, without))
        for client in GOOD:
            at = CLIENTS.index(client)
            bound = float((turned[at] * spread).norm()) + float(rows[at, :, own].max()) * C
            assert bounds.length(new[client], old[client]) <= bound + 4 * rounding(old[client])
            farthest = float(spread.norm())  # of two points in the convex hulls of the pools
            for other in CLIENTS:
                assert bounds.length(new[client], after._pool.bank.model(other)) <= farthest + rounding(old[client])


@pytest.mark.parametrize(("strategy", "given"), ATTENTION)
def test_without_the_bound_a_model_of_the_pool_moves_further(strategy: str, given: dict[str, Value]) -> None:
    number, before, after, _, _ = rounds(strategy, "huge", clip=False, **given)[0]
    start = references(before, number, (BAD,))[BAD]
    assert bounds.length(after._pool.bank.model(BAD), start) > 1e7 * C


# ---- FedTP -------------------------------------------------------------------------------------------------------


def jacobian(made: FedTPStrategy, client: str, phi: Params) -> Tensor:
    """Of the tensors that are generated for a client in phi: float64 [P, |phi|], row by row of torch's autograd."""
    from torch.func import jacrev

    z, generator = made._embeddings.of([client]).double(), made._generator
    names = list(phi)

    def generate(flat: Tensor) -> Tensor:
        sizes = [phi[name].numel() for name in names]
        parts = dict(zip(names, flat.split(sizes), strict=True))
        params = {name: parts[name].view(phi[name].shape) for name in names}
        codes = generator._codes(z, params)
        heads = ((params[f"heads.{t}.weight"], params[f"heads.{t}.bias"]) for t in range(len(codes)))
        return torch.cat([code[0] @ weight.T + bias for code, (weight, bias) in zip(codes, heads, strict=True)])

    flat = torch.cat([phi[name].double().flatten() for name in names])
    found: Tensor = jacrev(generate)(flat)
    return found


@attacks
def test_the_hypernetwork_moves_by_no_more_than_its_jacobian_allows(attack: str) -> None:
    rate = 0.1
    for number, before, after, without, _ in rounds("fedtp", attack, **{"fedtp.learning-rate": rate}):
        phi = {name: tensor.double() for name, tensor in before._generator.params.items()}
        new, old = after._generator.params, without._generator.params
        moved = bounds.length(new, old)
        bad = jacobian(before, BAD, phi)
        assert moved <= rate * SHARE * float(torch.linalg.matrix_norm(bad, 2)) * C + 2.0**-21 * norm(old)
        start = references(before, number, (BAD,))[BAD]
        clipped = bounds.clip(sent(start, number, BAD, ATTACKS[attack]), start, C)
        d = torch.cat([(clipped[name].double() - start[name].double()).flatten() for name in after._made])
        assert moved == pytest.approx(rate * SHARE * float((bad.T @ d).norm()), rel=1e-3, abs=1e-6)
        mean = {name: after._mean[name] for name in after._mean}
        assert bounds.length(mean, without._mean) <= SHARE * C + rounding(without._mean)
        good = after._embeddings.rows(GOOD)
        assert torch.equal(after._embeddings.values[good], without._embeddings.values[good])
        made, were = (planned(each.plan(number + 1, CLIENTS)) for each in (after, without))
        for client in GOOD:
            between = [{n: (1 - s) * old[n].double() + s * new[n].double() for n in old} for s in (0.0, 0.5, 1.0)]
            reach = max(float(torch.linalg.matrix_norm(jacobian(after, client, one) @ bad.T, 2)) for one in between)
            generated = {name: made[client][name] for name in after._made}
            change = bounds.length(generated, were[client])
            # Three points stand for all between them.
            assert change <= 1.05 * reach * rate * SHARE * C + 2.0**-19 * norm(generated)


def test_without_the_bound_the_hypernetwork_moves_further() -> None:
    number, before, after, without, _ = rounds("fedtp", "sign-flipped", clip=False)[0]
    assert number == 1
    phi = {name: tensor.double() for name, tensor in before._generator.params.items()}
    strength = float(torch.linalg.matrix_norm(jacobian(before, BAD, phi), 2))
    assert bounds.length(after._generator.params, without._generator.params) > 0.1 * SHARE * strength * C


# ---- the longest models ------------------------------------------------------------------------------------------


def longest(start: Params, draw: torch.Generator) -> Params:
    return noise(filled(start, torch.zeros_like), draw, 9e7)


@pytest.mark.parametrize("strategy", ["pfedla", "amn", "fedham", "fedaghn"])
def test_the_longest_models_that_are_taken_leave_a_finite_server(strategy: str) -> None:
    """Ten rounds of them, each in another direction, stop no merge: what diverges is the bad client's alone."""
    made = server(strategy)
    looking = Looking(made) if isinstance(made, FedHAMStrategy) else None
    ask(made, 1, looking)
    for number in range(1, 11):
        made = step(made, number, longest, False, looking)
        assert all(bool(torch.isfinite(t).all()) for t in made.state_dict().values() if t.is_floating_point())
    assert float(norm(made._pool.bank.model(BAD))) == pytest.approx(9e7, rel=1e-3)
    assert isinstance(made, PFedLAStrategy | AMNStrategy | FedHAMStrategy | FedAGHNStrategy)
