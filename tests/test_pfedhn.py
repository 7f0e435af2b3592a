"""pFedHN: a cohort of one is the paper's step by torch's modules and optimiser; batches, ends, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from presets import network, planned, references, shorten
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedham_flwr.algorithms.pfedhn import PFedHNSettings, embedding_size, shortening, slopes, split
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import LayerGroup, Manifest, Params, load_, read
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.contract import Task
from fedham_flwr.federation.messages import Upload
from fedham_flwr.federation.record_values import tensors
from fedham_flwr.generating.generator import Generator
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.server_app import build_strategy
from fedham_flwr.settings import Value, parse
from strategies.pfedhn import PFedHNStrategy

Federate = Callable[..., Any]
GROUPS = (LayerGroup("conv", ("a", "b")), LayerGroup("fc", ("c",)))
MANIFEST = Manifest(GROUPS, {"a": (2, 3), "b": (2,), "c": (4,)}, dict.fromkeys("abc", torch.float32))
SMALL: dict[str, Value] = {"hidden-dim": 6, "hidden-layers": 2, "learning-rate": 0.1, "embedding-learning-rate": 0.3}
FEW: dict[str, Value] = {"samples_per_client": 64, "pfedhn.hidden-dim": 5}


def drawn(seed: int, scale: float = 1.0) -> Params:
    draw = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=draw) for name, shape in MANIFEST.shapes.items()}


def server(clients: tuple[str, ...], **given: Value) -> PFedHNStrategy:
    keys = {f"pfedhn.{name.replace('_', '-')}": value for name, value in {**SMALL, **given}.items()}
    made = build_strategy(
        parse({"strategy": "pfedhn", "device": "cpu", "seed": 3, **keys}), MANIFEST, drawn(0), Task((1, 8, 8), 10)
    )
    assert isinstance(made, PFedHNStrategy)
    made.add_clients(clients)
    return made


def sent(made: PFedHNStrategy, number: int, clients: tuple[str, ...], scale: float = 0.3) -> dict[str, Upload]:
    """What clients send that have trained a way of their own from where they started."""
    starts = planned(made.plan(number, clients))
    steps = {client: drawn(100 * number + int(client), scale) for client in clients}
    return {c: Upload(c, {n: t + steps[c][n] for n, t in starts[c].items()}, 10 + int(c), ()) for c in clients}


def copy(state: Params) -> Params:
    return {name: tensor.clone() for name, tensor in state.items()}


class Papers(nn.Module):
    """h and the embeddings of torch's modules."""

    def __init__(self, made: PFedHNStrategy) -> None:
        super().__init__()
        state, sizes = copy(made.state_dict()), [torch.Size(shape).numel() for shape in MANIFEST.shapes.values()]
        d, h = state["embeddings"].shape[1], 6
        self.embeddings = nn.Embedding.from_pretrained(state.pop("embeddings"), freeze=False)
        self.hidden = nn.ModuleList([nn.Linear(d, h), nn.Linear(h, h), nn.Linear(h, h)])
        self.heads = nn.ModuleList([nn.Linear(h, size) for size in sizes])
        own = {n.removeprefix("generator/"): t for n, t in state.items() if n.startswith("generator/")}
        self.load_state_dict({**own, "embeddings.weight": self.embeddings.weight})

    def forward(self, row: int) -> Params:
        x = self.embeddings(torch.tensor([row]))
        for k, layer in enumerate(self.hidden):
            x = layer(torch.relu(x) if k else x)
        return {n: head(x).view(s) for head, (n, s) in zip(self.heads, MANIFEST.shapes.items(), strict=True)}


@pytest.mark.parametrize("most", [50.0, 0.5])
def test_a_cohort_of_one_client_is_the_papers_step_by_torch(most: float) -> None:
    """One client after the other, each only once: torch moves the embeddings of all others by decay and momentum."""
    made = server(("0", "1", "2"), max_norm=most)
    papers = Papers(made)
    rates = [{"params": [p for n, p in papers.named_parameters() if "embed" not in n]}]
    rates += [{"params": [papers.embeddings.weight], "lr": 0.3}]
    optimizer = torch.optim.SGD(rates, lr=0.1, momentum=0.9, weight_decay=1e-3)
    for number, row in enumerate((1, 0, 2), 1):
        embeddings = papers.embeddings.weight.detach().clone()
        uploads = sent(made, number, (str(row),))
        weights = papers(row)
        for name, tensor in planned(made.plan(number, (str(row),)))[str(row)].items():
            torch.testing.assert_close(tensor, weights[name].detach())
        away = [weights[name].detach() - uploads[str(row)].params[name] for name in weights]
        optimizer.zero_grad()
        torch.autograd.backward(list(weights.values()), away)
        norm = nn.utils.clip_grad_norm_(papers.parameters(), most)
        assert (norm > most) == (most < 1)
        optimizer.step()
        with torch.no_grad():
            for other in {0, 1, 2} - {row}:
                papers.embeddings.weight[other] = embeddings[other]
                optimizer.state[papers.embeddings.weight]["momentum_buffer"][other] = 0
        made.merge(number, uploads)
        state = made.state_dict()
        torch.testing.assert_close(state["embeddings"], papers.embeddings.weight.detach(), rtol=1e-4, atol=1e-6)
        for name, tensor in papers.state_dict().items():
            if not name.startswith("embeddings"):
                torch.testing.assert_close(state[f"generator/{name}"], tensor, rtol=1e-4, atol=1e-6)


@given(st.integers(1, 4), st.integers(0, 99))
def test_a_step_goes_along_the_mean_of_the_jacobians_by_finite_differences(n: int, seed: int) -> None:
    """phi along d/dphi of sum_i <h(v_i; phi), w_i - w~_i> / n, v_i along its own term, w_i - w~_i held constant."""
    clients = tuple("0123"[:n])
    rates: dict[str, Value] = {"momentum": 0.0, "weight_decay": 0.0, "max_norm": 0.0, "learning_rate": 1.0}
    made = server(clients, **rates, embedding_learning_rate=1.0)
    generator, embeddings = made._generator, made._embeddings
    assert generator is not None
    generator.params = {name: tensor.double() for name, tensor in generator.params.items()}
    embeddings.values = embeddings.values.double()
    uploads = {c: Upload(c, u.params, u.examples, ()) for c, u in sent(made, 1 + seed, clients).items()}
    starts = planned(made.plan(1, clients))
    away = [{name: starts[c][name] - uploads[c].params[name] for name in starts[c]} for c in clients]

    def inner(client: int) -> float:
        (own,) = generator.generate(embeddings.values[client : client + 1])
        return sum(float((own[name] * slope).sum()) for name, slope in away[client].items())

    def difference(tensor: Tensor, at: int, of: Callable[[], float]) -> float:
        flat, step = tensor.view(-1), 1e-6
        flat[at] += step
        up = of()
        flat[at] -= 2 * step
        down = of()
        flat[at] += step
        return (up - down) / (2 * step)

    draw = torch.Generator().manual_seed(seed)
    wanted = {}
    for name, tensor in generator.params.items():
        at = int(torch.randint(tensor.numel(), (), generator=draw))
        wanted[name] = at, difference(tensor, at, lambda: sum(inner(i) for i in range(n)) / n)
    own = [difference(embeddings.values[i], 0, lambda i=i: inner(i)) for i in range(n)]  # type: ignore[misc]
    phi, z = copy(generator.params), embeddings.values.clone()
    made.merge(1, uploads)
    for name, (at, slope) in wanted.items():
        moved = float((phi[name] - generator.params[name]).view(-1)[at])
        assert moved == pytest.approx(slope, rel=1e-3, abs=1e-5), name
    assert (z - embeddings.values)[:, 0].tolist() == pytest.approx(own, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("n", [1, 3])
def test_the_length_of_a_gradient_is_that_of_all_its_numbers(rank: int, n: int) -> None:
    rates = {"learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    settings = PFedHNSettings(embedding_dim=4, hidden_dim=6, rank=rank, **rates)
    h = Generator(settings, drawn(0), torch.Generator().manual_seed(1), torch.device("cpu"))
    z = torch.randn(n, 4, generator=torch.Generator().manual_seed(2))
    away = {name: torch.stack([drawn(i, 0.1)[name] for i in range(n)]) for name in MANIFEST.shapes}
    before, found = copy(h.params), h.length(z, away)
    assert all(torch.equal(tensor, h.params[name]) for name, tensor in before.items())
    gradient = h.step(z, away)
    squares = sum(float((before[name] - tensor).square().sum()) for name, tensor in h.params.items())
    assert found == pytest.approx((squares + float(gradient.square().sum())) ** 0.5, rel=1e-4)


def test_small_things_by_hand() -> None:
    assert [embedding_size(PFedHNSettings(), n) for n in (1, 3, 4, 10, 100)] == [1, 1, 2, 3, 26]
    assert embedding_size(PFedHNSettings(embedding_dim=7), 100) == 7
    assert shortening(100.0, 50.0) == pytest.approx(0.5)
    assert shortening(1.0, 50.0) == shortening(1e9, 0.0) == 1.0
    starts, trained = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 3.0]])
    assert slopes(starts, trained, 0.5).tolist() == [[0.25, -0.5]]


# ---- who is there, and what is kept ----------------------------------------------------------------------------------


def test_absent_clients_keep_their_embeddings_and_late_ones_change_nobody() -> None:
    made = server(("0", "1", "2"))
    before = copy(made.state_dict())
    assert before["embeddings"].shape == (3, embedding_size(PFedHNSettings(), 3))
    made.merge(1, sent(made, 1, ("0", "2")))
    after = copy(made.state_dict())
    assert torch.equal(after["embeddings"][1], before["embeddings"][1])
    assert not any(torch.equal(after["embeddings"][row], before["embeddings"][row]) for row in (0, 2))
    starts = planned(made.plan(2, ("0", "1", "2")))
    made.add_clients(tuple(map(str, range(9))))
    assert made.state_dict()["embeddings"].shape == (9, before["embeddings"].shape[1])  # as large as at the start
    again = planned(made.plan(2, ("0", "1", "2")))
    assert all(torch.equal(tensor, again[c][name]) for c in starts for name, tensor in starts[c].items())


def test_with_rates_of_0_nothing_ever_changes_and_planning_changes_nothing() -> None:
    made = server(("0", "1"), learning_rate=0.0, embedding_learning_rate=0.0)
    first = planned(made.plan(1, ("0", "1")))
    made.merge(1, sent(made, 1, ("0", "1")))
    again = planned(made.plan(2, ("0", "1")))
    assert all(torch.equal(tensor, again[c][name]) for c in first for name, tensor in first[c].items())
    assert not torch.equal(first["0"]["a"], first["1"]["a"])


def test_adapting_moves_the_embedding_alone_and_without_decay() -> None:
    made = server(("0", "1"), momentum=0.0, weight_decay=0.5)
    made.add_clients(("0", "1", "2"))
    before, uploads = copy(made.state_dict()), sent(made, 3, ("2",))
    assert made._generator is not None
    starts = planned(made.plan(3, ("2",)))["2"]
    away = {name: (starts[name] - uploads["2"].params[name])[None] for name in starts}
    slope = made._generator.slope(made._embeddings.of(["2"]), away)
    made.adapt(3, uploads)
    after = made.state_dict()
    assert [name for name in after if not torch.equal(after[name], before[name])] == ["embeddings"]
    assert torch.equal(after["embeddings"][:2], before["embeddings"][:2])
    assert torch.allclose(after["embeddings"][2], before["embeddings"][2] - 0.3 * slope[0])


def test_the_bound_of_one_client_on_the_hypernetwork() -> None:
    """eta |J_b^T d| / n: a clipped update against none, of the same client."""
    made, other = server(("0", "1"), momentum=0.0), server(("0", "1"), momentum=0.0)
    starts, uploads = references(made, 1, ("0", "1")), sent(made, 1, ("0", "1"), scale=100.0)
    made.settings = made.settings.model_copy(update={"clip_norm": 0.5})
    assert shorten(made, 1, uploads) == ("0", "1")
    away = {name: (starts["1"][name] - uploads["1"].params[name])[None] / 2 for name in starts["1"]}
    assert made._generator is not None
    most = 0.1 * made._generator.length(made._embeddings.of(["1"]), away)
    honest = {**uploads, "1": Upload("1", starts["1"], 11, ())}
    made.merge(1, uploads)
    other.merge(1, honest)
    mine, theirs = ({n: t for n, t in s.state_dict().items() if n.startswith("generator/")} for s in (made, other))
    moved = sum(float((mine[name] - theirs[name]).square().sum()) for name in mine) ** 0.5
    assert 0 < moved <= most * (1 + 1e-5)


def test_a_state_of_another_size_is_refused_and_one_without_clients_is_taken() -> None:
    made, other = server(("0", "1", "2", "3")), server(("0",), embedding_dim=5)
    with pytest.raises(ValueError, match="wanted"):
        other.load_state_dict(made.state_dict())
    fresh = server(())
    fresh.load_state_dict({"clients": torch.empty(0, dtype=torch.uint8)})
    assert fresh.plan(1, ()) == {}
    fresh.load_state_dict(made.state_dict())
    assert all(torch.equal(tensor, fresh.state_dict()[name]) for name, tensor in made.state_dict().items())


def test_too_large_steps_end_in_a_sentence() -> None:
    made = server(("0",), learning_rate=1e6, embedding_learning_rate=1e6, max_norm=0.0)

    def go() -> None:
        for number in range(1, 40):
            made.merge(number, sent(made, number, ("0",), scale=1e6))

    with pytest.raises(UserError, match=r"lower pfedhn\.(embedding-)?learning-rate="):
        go()


# ---- the split, and a federation -------------------------------------------------------------------------------------


def test_the_split() -> None:
    manifest = manifest_of(network("pfedhn"), [])
    whole, own_head = (split(manifest, PFedHNSettings(personal_layers=count)) for count in (0, 1))
    assert whole.personal == ()
    assert whole.shared == whole.adapted == manifest.names()
    assert own_head.personal == ("fc2.weight", "fc2.bias")
    assert own_head.adapted == own_head.shared == manifest.names()[:-2]
    with pytest.raises(UserError, match=r"pfedhn.personal-layers=9 leaves nothing to generate of the model's 4 layer"):
        split(manifest, PFedHNSettings(personal_layers=9))


def kept(run: Any) -> list[Params]:
    return [
        tensors(c.state.array_records["personal"])
        for c in run.grid.contexts.values()
        if "personal" in c.state.array_records
    ]


def test_a_round_written_out(federate: Federate, settings: Callable[..., Any]) -> None:
    """By torch's optimiser on the generated models, and the server half, which is tested above."""
    given: dict[str, Value] = {"strategy": "pfedhn", "num_server_rounds": 1, **FEW}
    run, chosen = federate(clients=2, **given), parse(settings(**given))
    net = network("pfedhn")
    manifest, training = manifest_of(net, []), chosen.local_training(1)
    made = build_strategy(chosen, manifest, read(net, manifest.names()), Task((1, 8, 8), 10))
    made.add_clients(("0", "1"))
    uploads = {}
    for client, start in planned(made.plan(1, ("0", "1"))).items():
        data = open_partition(chosen.data(), int(client), 2)
        load_(net, start)
        optimizer, index = torch.optim.SGD(net.parameters(), training.learning_rate, training.momentum), data.splits
        order = torch.randperm(len(index["train"]), generator=torch_stream(0, "batches", 1, client))
        net.train()
        for batch in index["train"][order].split(training.batch_size):
            x, y = inputs_and_targets(data.features[batch], data.labels[batch])
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()
        uploads[client] = Upload(client, read(net, manifest.names()), len(index["train"]), ())
    made.merge(1, uploads)
    for name, tensor in made.state_dict().items():
        assert torch.allclose(run.state[name], tensor, atol=1e-5), name
    draws = [torch_stream(0, "embedding", client=client) for client in "01"]
    assert not torch.equal(run.state["embeddings"], torch.cat([torch.randn(1, 8, generator=draw) for draw in draws]))
    assert kept(run) == []


def test_personal_layers_stay_with_the_client(federate: Federate) -> None:
    run = federate(strategy="pfedhn", clients=2, num_server_rounds=1, **FEW, **{"pfedhn.personal-layers": 1})
    heads = kept(run)
    assert [own.keys() for own in heads] == [{"fc2.weight", "fc2.bias"}] * 2
    assert not torch.equal(heads[0]["fc2.weight"], heads[1]["fc2.weight"])
    sizes = [tensor.shape[0] for name, tensor in run.state.items() if name.startswith("generator/heads")]
    assert 10 not in sizes  # the biases of the last layer
