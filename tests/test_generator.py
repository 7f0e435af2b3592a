"""FedTP's hypernetwork: against torch's own layers, gradients and optimiser, and what must not change by it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.sgd import sgd

from fedham_flwr.algorithms.fedtp import MOST, FedTPSettings
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.generating import generator as module
from fedham_flwr.generating.generator import Generator
from fedham_flwr.generating.phi import shapes

CPU = torch.device("cpu")
SHAPES = {"first": (6, 4), "second": (3, 5), "bias": (7,)}
SMALL = {"embedding_dim": 5, "hidden_dim": 6, "hidden_layers": 2, "learning_rate": 0.1, "weight_decay": 0.03}
DIVERGED = r"^the hypernetwork diverged: lower fedtp\.learning-rate=0\.1$"
ranks = pytest.mark.parametrize("rank", [0, 2])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def base() -> Params:
    return {name: drawn(*shape, seed=len(name)).float() for name, shape in SHAPES.items()}


def made(rank: int = 0, double: bool = True, seed: int = 0, **given: Any) -> Generator:
    """A small generator, whose biases of heads are not 0; in float64 unless told."""
    settings = FedTPSettings(**(SMALL | {"rank": rank} | given))
    h = Generator(settings, base(), torch.Generator().manual_seed(seed), CPU)
    if double:
        h.params = {name: tensor.double() for name, tensor in h.params.items()}
        h.velocity = {name: tensor.double() for name, tensor in h.velocity.items()}
    return h


def slopes_of(n: int, seed: int = 0) -> Params:
    return {name: drawn(n, *shape, seed=100 * seed + len(name)) for name, shape in SHAPES.items()}


def copy(state: Params) -> Params:
    return {name: tensor.clone() for name, tensor in state.items()}


def same(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Plain(nn.Module):
    """The same network of torch's modules, which share no memory with the generator's."""

    def __init__(self, h: Generator) -> None:
        super().__init__()
        self.rank = h.settings.rank
        self.hidden, self.heads, self.mixers = nn.ModuleList(), nn.ModuleList(), nn.ParameterList()
        for name, tensor in h.params.items():
            kind = name.partition(".")[0]
            if kind == "mixers":
                self.mixers.append(nn.Parameter(tensor.clone()))
            elif name.endswith("weight"):
                layer = nn.Linear(tensor.shape[1], tensor.shape[0], dtype=tensor.dtype)
                getattr(self, kind).append(layer)
        self.load_state_dict(copy(h.params))

    def forward(self, z: Tensor) -> Params:
        x = nn.Sequential(*[m for layer in self.hidden for m in (layer, nn.ReLU())][:-1])(z)
        mixed = [x @ mixer.T for mixer in self.mixers]
        codes = [2 * code / code.norm(dim=1, keepdim=True) for code in mixed] if self.rank else [x] * len(SHAPES)
        outs = [head(code) for head, code in zip(self.heads, codes, strict=True)]
        return {name: out.view(-1, *shape) for out, (name, shape) in zip(outs, SHAPES.items(), strict=True)}


def surrogate(plain: Plain, z: Tensor, slopes: Params) -> Tensor:
    """<h(z; phi), slopes>."""
    out = plain(z)
    return torch.stack([(out[name] * slope).sum() for name, slope in slopes.items()]).sum()


# ---- the network -----------------------------------------------------------------------------------------------------


@ranks
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_what_it_generates_is_what_torchs_layers_give(rank: int, layers: int) -> None:
    h, z = made(rank, hidden_layers=layers), drawn(4, 5)
    clients, plain = h.generate(z), Plain(h)(z)
    assert [list(client) for client in clients] == [list(SHAPES)] * 4
    for i, client in enumerate(clients):
        for name, shape in SHAPES.items():
            assert client[name].shape == shape
            torch.testing.assert_close(client[name], plain[name][i])


@pytest.mark.parametrize(
    ("rank", "clients", "scalars"),
    [(0, 10, 178_215_428), (0, 100, 178_226_948), (8, 0, 87_300 + 6 * (8 * 150 + 1536 * 128 * (8 + 1)))],
)
def test_the_papers_sizes(rank: int, clients: int, scalars: int) -> None:
    settings = FedTPSettings(rank=rank)
    phi = sum(math.prod(shape) for shape in shapes(settings, [1536 * 128] * 6).values())
    assert phi + clients * settings.embedding_dim == scalars


@ranks
def test_all_tensors_have_the_names_and_shapes_promised(rank: int) -> None:
    h = made(rank)
    promised = shapes(h.settings, [math.prod(shape) for shape in SHAPES.values()])
    assert {name: tuple(tensor.shape) for name, tensor in h.params.items()} == promised
    assert {name: tuple(tensor.shape) for name, tensor in h.velocity.items()} == promised
    assert not any(bool(tensor.any()) for tensor in h.velocity.values())
    assert made(rank, momentum=0.0).velocity == {}


def test_first_weights_of_a_dense_head_are_spread_as_the_papers() -> None:
    h = Generator(FedTPSettings(rank=0), {"qkv": torch.empty(96, 128)}, torch.Generator().manual_seed(0), CPU)
    n = 12
    weights = torch.stack([client["qkv"] for client in h.generate(drawn(n, 128))]).flatten(1)
    assert float(weights.std()) == pytest.approx(0.061, abs=0.003)
    cosines = torch.nn.functional.normalize(weights) @ torch.nn.functional.normalize(weights).T
    assert float((cosines.sum() - n) / (n * (n - 1))) == pytest.approx(0.95, abs=0.02)


@ranks
def test_first_values_lie_as_torchs_linear_has_them(rank: int) -> None:
    h = made(rank, double=False, hidden_dim=400)
    for name, tensor in h.params.items():
        bound = 1 / math.sqrt(5 if name.startswith("hidden.0") else 400)
        bound = bound / 2 if rank and name.startswith("heads") else bound
        if rank and name.startswith("heads") and name.endswith("bias"):
            continue
        assert float(tensor.abs().max()) <= bound, name
        if tensor.numel() > 300:
            assert float(tensor.abs().max()) > 0.9 * bound, name
            assert float(tensor.std()) == pytest.approx(bound / math.sqrt(3), rel=0.15), name


def test_with_a_rank_all_clients_start_around_the_models_own_tensors() -> None:
    h, own = made(2, double=False), base()
    for number, name in enumerate(SHAPES):
        assert torch.equal(h.params[f"heads.{number}.bias"], own[name].flatten())
        h.params[f"mixers.{number}"].zero_()
    assert all(same(client, own) for client in h.generate(drawn(3, 5)))  # float32 too, as the model


def test_what_goes_into_a_factorised_head_has_one_length_however_far_embeddings_and_trunk_have_gone() -> None:
    h = made(4, hidden_dim=20)
    near, far = drawn(3, 5), 1e3 * drawn(3, 5)
    bias = {name: h.params[f"heads.{number}.bias"] for number, name in enumerate(SHAPES)}
    for z in (near, far):
        for client in h.generate(z):
            for number, name in enumerate(SHAPES):
                weight = h.params[f"heads.{number}.weight"]
                code = torch.linalg.lstsq(weight, (client[name].flatten() - bias[name])[:, None]).solution
                assert float(code.norm()) == pytest.approx(2, rel=1e-6)


def test_it_starts_from_its_stream_alone() -> None:
    assert same(made(2).params, made(2).params)
    assert not torch.equal(made(2).params["mixers.0"], made(2, seed=1).params["mixers.0"])


# ---- the gradient ----------------------------------------------------------------------------------------------------


@ranks
@given(n=st.integers(1, 6), layers=st.integers(0, 3), seed=st.integers(0, 1000))
def test_the_gradient_is_autograds(rank: int, n: int, layers: int, seed: int) -> None:
    # With learning rate 1 and nothing else a step changes phi by its gradient.
    settings = {"hidden_layers": layers, "learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    h, z, slopes = made(rank, **settings), drawn(n, 5, seed=seed), slopes_of(n, seed)
    before, plain, leaf = copy(h.params), Plain(h), z.clone().requires_grad_()
    surrogate(plain, leaf, slopes).backward()
    torch.testing.assert_close(h.slope(z, slopes), leaf.grad)
    torch.testing.assert_close(h.step(z, slopes), leaf.grad)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(before[name] - h.params[name], parameter.grad)


@ranks
def test_the_gradient_is_that_of_finite_differences(rank: int) -> None:
    h, z, slopes, small = made(rank, learning_rate=1.0, momentum=0.0, weight_decay=0.0), drawn(3, 5), slopes_of(3), 1e-6
    start = copy(h.params)

    def inner(params: Params, z: Tensor) -> float:
        h.params = params
        return sum(float((one[name] * slopes[name][i]).sum()) for i, one in enumerate(h.generate(z)) for name in SHAPES)

    def difference(name: str, at: int) -> float:
        ends = []
        for sign in (1, -1):
            moved = copy(start) | {"z": z.clone()}
            moved[name].view(-1)[at] += sign * small
            ends.append(inner(moved, moved.pop("z")))
        return (ends[0] - ends[1]) / (2 * small)

    found = {name: [difference(name, at) for at in range(0, t.numel(), 5)] for name, t in {**start, "z": z}.items()}
    h.params = copy(start)
    gradient = {"z": h.step(z, slopes)} | {name: start[name] - h.params[name] for name in start}
    for name, differences in found.items():
        wanted = torch.tensor(differences, dtype=torch.float64)
        torch.testing.assert_close(gradient[name].reshape(-1)[::5], wanted, rtol=1e-6, atol=1e-7)


@ranks
def test_heads_of_many_slabs_have_the_gradient_of_one(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    z, slopes, whole, cut = drawn(3, 5), slopes_of(3), made(rank), made(rank)
    wanted = whole.generate(z), whole.step(z, slopes)
    monkeypatch.setattr(module, "ROWS", 4)
    monkeypatch.setattr(module, "LANES", 3)
    for a, b in zip(wanted[0], cut.generate(z), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(wanted[1], cut.step(z, slopes))
    torch.testing.assert_close(whole.params, cut.params)


def test_one_client_of_weight_one_with_plain_sgd_moves_its_tensors_towards_what_it_trained() -> None:
    # Item 2 of the known answers, for biases: h(z) = bias is a lookup, and with learning rate 1 it stores Wt.
    h, z, trained = made(2, learning_rate=1.0, momentum=0.0, weight_decay=0.0), drawn(1, 5), slopes_of(1, 3)
    for number in range(len(SHAPES)):
        h.params[f"mixers.{number}"].zero_()
    (before,) = h.generate(z)
    h.step(z, {name: before[name][None] - trained[name] for name in SHAPES})
    for number, name in enumerate(SHAPES):
        torch.testing.assert_close(h.params[f"heads.{number}.bias"].view(SHAPES[name]), trained[name][0])


# ---- the optimiser ---------------------------------------------------------------------------------------------------


@ranks
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.03])
def test_steps_are_those_of_torchs_sgd(rank: int, momentum: float, decay: float) -> None:
    h, z = made(rank, momentum=momentum, weight_decay=decay), drawn(4, 5)
    plain = Plain(h)
    parameters = list(plain.parameters())
    momenta: list[Tensor | None] = [None] * len(parameters)
    settings = {"lr": 0.1, "momentum": momentum, "weight_decay": decay, "dampening": 0.0}
    for turn in range(3):
        slopes = slopes_of(4, turn)
        gradient = list(torch.autograd.grad(surrogate(plain, z, slopes), parameters))
        with torch.no_grad():
            sgd(parameters, gradient, momenta, foreach=False, **settings, nesterov=False, maximize=False)
        h.step(z, slopes)
    for (name, parameter), velocity in zip(plain.named_parameters(), momenta, strict=True):
        torch.testing.assert_close(h.params[name], parameter.detach())
        if momentum:
            torch.testing.assert_close(h.velocity[name], velocity)


@ranks
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_without_learning_rate_nothing_changes(rank: int, momentum: float) -> None:
    h, z = made(rank, double=False, learning_rate=0.0, weight_decay=0.0, momentum=momentum), drawn(3, 5)
    before, first = copy(h.params), h.generate(z)
    for turn in range(3):
        h.step(z, slopes_of(3, turn))
    assert same(h.params, before)
    assert all(same(a, b) for a, b in zip(first, h.generate(z), strict=True))


@ranks
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_largest_rate_and_decay_are_factors_that_float32_can_hold(rank: int, momentum: float) -> None:
    h = made(rank, double=False, learning_rate=MOST, weight_decay=MOST, momentum=momentum)
    start = copy(h.params)
    h.step(drawn(3, 5), {name: 0 * slope for name, slope in slopes_of(3).items()})
    for name, tensor in h.params.items():
        torch.testing.assert_close(tensor, -1e12 * start[name])


@ranks
def test_asking_for_the_slope_changes_nothing(rank: int) -> None:
    h, z, slopes = made(rank, double=False), drawn(3, 5), slopes_of(3)
    given, before, velocity = (z.clone(), copy(slopes)), copy(h.params), copy(h.velocity)
    found = h.slope(z, slopes)
    assert found.dtype == torch.float32
    assert same(h.params, before)
    assert same(h.velocity, velocity)
    assert torch.equal(z, given[0])
    assert same(slopes, given[1])
    assert torch.equal(h.step(z, slopes), found)  # at phi before the step
    assert not same(h.params, before)


@ranks
def test_any_number_of_threads_gives_the_same_bits(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 64)
    own, n, threads = {"a": torch.ones(300, 20), "b": torch.ones(1001)}, 10, torch.get_num_threads()
    slopes = {name: drawn(n, *tensor.shape, seed=2).float() for name, tensor in own.items()}
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            h = Generator(FedTPSettings(rank=rank), own, torch.Generator().manual_seed(0), CPU)
            gradients = [h.step(drawn(n, 128, seed=turn), slopes) for turn in range(2)]
            found.append({**h.params, "z": torch.stack(gradients), **h.generate(drawn(n, 128))[3]})
    finally:
        torch.set_num_threads(threads)
    assert same(found[0], found[1])
    assert same(found[0], found[2])


# ---- divergence ------------------------------------------------------------------------------------------------------


@ranks
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_along_what_is_not_finite_is_refused_and_not_taken(rank: int, bad: float) -> None:
    h, slopes = made(rank, double=False), slopes_of(3)
    slopes["second"][1, 2, 3] = bad
    before, velocity = copy(h.params), copy(h.velocity)
    for way in (h.step, h.slope):
        with pytest.raises(UserError, match=DIVERGED):
            way(drawn(3, 5), slopes)
    assert same(h.params, before)
    assert same(h.velocity, velocity)


@ranks
@pytest.mark.parametrize("name", ["hidden.2.bias", "hidden.0.weight", "heads.1.weight"])
def test_a_network_that_is_not_finite_is_refused(rank: int, name: str) -> None:
    h = made(rank, double=False)
    h.params[name].fill_(float("inf"))
    before = copy(h.params)
    with pytest.raises(UserError, match=DIVERGED):
        h.generate(drawn(3, 5))
    with pytest.raises(UserError, match=DIVERGED):
        h.step(drawn(3, 5), slopes_of(3))
    assert same(h.params, before)


def test_a_step_to_a_trunk_that_is_not_finite_is_not_taken() -> None:
    h = made(double=False, learning_rate=1e37)
    before, velocity = copy(h.params), copy(h.velocity)
    with pytest.raises(UserError, match=r"^the hypernetwork diverged: lower fedtp\.learning-rate=1e\+37$"):
        h.step(drawn(3, 5), {name: 1e3 * slope for name, slope in slopes_of(3).items()})
    assert same(h.params, before)
    assert same(h.velocity, velocity)
