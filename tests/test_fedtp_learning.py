"""What FedTP's server learns: the gradient of the true loss, each client's share, and the embeddings of new clients.

The numbers in names are those of the invariants that the method was specified with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from presets import network, planned
from test_fedtp_rounds import ALONE, FEW, SMALL, W, close, state_of
from test_rounds import server_half
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy, linear, relu

from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.messages import Upload
from fedham_flwr.reporting.summary import digest
from fedham_flwr.settings import Value, parse
from strategies.fedtp import FedTPStrategy

Federate = Callable[..., Any]

# ---- the gradient ----------------------------------------------------------------------------------------------------


def generated(phi: Params, z: Tensor, rank: int) -> Params:
    """h(z; phi) for one client, written out with the network's own shapes."""
    hidden = linear(z, phi["hidden.0.weight"], phi["hidden.0.bias"])
    hidden = linear(relu(hidden), phi["hidden.1.weight"], phi["hidden.1.bias"])
    mixed = [linear(hidden, phi[f"mixers.{t}"]) if rank else hidden for t in range(len(W))]
    codes = [2 * code / code.norm() if rank else code for code in mixed]
    heads = [linear(codes[t], phi[f"heads.{t}.weight"], phi[f"heads.{t}.bias"]) for t in range(len(W))]
    return {name: head.view(48, 16) for name, head in zip(W, heads, strict=True)}


@pytest.mark.parametrize("rank", [0, 2])
def test_5_after_one_full_batch_the_step_is_along_the_gradient_of_the_true_loss(
    federate: Federate, settings: Callable[..., dict[str, Value]], rank: int
) -> None:
    """eta dL(h(z; phi), xi) / d(phi, z), which the first step leaves in the server's velocities."""
    eta = 0.5
    chosen = {**SMALL, "fedtp.rank": rank, "fedtp.weight-decay": 0.0, "fedtp.momentum": 0.9}
    batch = {"batch_size": 1000, "momentum": 0.0, "learning_rate": eta, "num_server_rounds": 1}
    given = settings(strategy="fedtp", **ALONE, **batch, **chosen)
    run = federate(clients=1, strategy="fedtp", **ALONE, **batch, **chosen)
    start = server_half(given)
    start.add_clients(("0",))
    doubles = {name: t.double() for name, t in state_of(start).items() if not name.startswith("clients")}
    phi = {n.removeprefix("generator/"): t for n, t in doubles.items() if n.startswith("generator/")}
    leaves = {**phi, "z": doubles["embeddings"][0]}
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in leaves.items()}
    mean = {n.removeprefix("mean/"): t for n, t in doubles.items() if n.startswith("mean/")}
    data = open_partition(parse(given).data(), 0, 1)
    x, y = inputs_and_targets(data.features[data.splits["train"]], data.labels[data.splits["train"]])
    model = network("fedtp").double()
    logits = functional_call(model, {**mean, **generated(leaves, leaves["z"], rank)}, (x.double(),))
    slopes = dict(zip(leaves, torch.autograd.grad(cross_entropy(logits, y), list(leaves.values())), strict=True))
    found = {n.removeprefix("velocity/"): t for n, t in run.state.items() if n.startswith("velocity/")}
    found["z"] = run.state["embeddings-velocity"][0]
    assert found.keys() == slopes.keys()
    for name, slope in slopes.items():
        assert slope.abs().max() > 0
        assert (found[name].double() - eta * slope).norm() <= 1e-4 * eta * slope.norm(), name


def uploads_of(starts: dict[str, Params], seed: int) -> dict[str, Upload]:
    """Models that lie a random step from where training started, of clients with more and more samples."""
    found = {}
    for client, start in starts.items():
        draw = torch.Generator().manual_seed(100 * seed + int(client))
        moved = {name: t + 0.1 * torch.randn(t.shape, generator=draw) for name, t in start.items()}
        found[client] = Upload(client, moved, 10 + int(client), ())
    return found


def server(clients: str = "0123", **given: Value) -> Any:
    """The method's server half with its clients added."""
    made = server_half({"strategy": "fedtp", "device": "cpu", **SMALL, **given})
    made.add_clients(tuple(clients))
    return made


@pytest.mark.parametrize("rank", [0, 2])
def test_6_the_step_is_along_the_sum_of_what_each_client_asks_for_by_its_share_of_samples(rank: int) -> None:
    made = server(**{"fedtp.rank": rank, "fedtp.weight-decay": 0.0})
    before = state_of(made)
    sent = uploads_of(planned(made.plan(1, ("0", "2", "3"))), 1)
    starts = planned(made.plan(1, ("0", "2", "3")))
    made.merge(1, sent)
    phi = {n.removeprefix("generator/"): t.double() for n, t in before.items() if n.startswith("generator/")}
    leaves = {name: tensor.requires_grad_() for name, tensor in phi.items()}
    rows = {client: before["embeddings"][int(client)].double().requires_grad_() for client in sent}
    total, samples = torch.zeros((), dtype=torch.float64), sum(upload.examples for upload in sent.values())
    for client, upload in sent.items():
        away = {name: (starts[client][name] - upload.params[name]).double() * upload.examples / samples for name in W}
        made_now = generated(leaves, rows[client], rank)
        total = total + sum((made_now[name] * away[name]).sum() for name in W)
    slopes = torch.autograd.grad(total, [*leaves.values(), *rows.values()])
    after = made.state_dict()
    for name, slope in zip(leaves, slopes, strict=False):
        assert torch.allclose(after[f"velocity/{name}"].double(), slope, rtol=1e-4, atol=1e-6), name
        moved = before[f"generator/{name}"] - 0.1 * after[f"velocity/{name}"]
        assert torch.allclose(after[f"generator/{name}"], moved, rtol=1e-5, atol=1e-6)
    for client, slope in zip(rows, slopes[len(leaves) :], strict=True):
        assert torch.allclose(after["embeddings-velocity"][int(client)].double(), slope, rtol=1e-4, atol=1e-6)
    for name, mean in made._mean.items():
        wanted = sum(upload.params[name] * upload.examples / samples for upload in sent.values())
        assert torch.allclose(mean, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("personal", "rank"), [("generated", 0), ("generated", 2), ("vanilla", 0)])
def test_the_order_of_clients_and_of_replies_changes_nothing(personal: str, rank: int) -> None:
    given: dict[str, Value] = {"fedtp.personal": personal, "fedtp.rank": rank}
    forwards, backwards = server("0123", **given), server("3210", **given)
    starts, others = planned(forwards.plan(1, tuple("0123"))), planned(backwards.plan(1, tuple("3210")))
    assert all(close(params, others[client]) for client, params in starts.items())
    sent = uploads_of(starts, 1)
    forwards.merge(1, sent)
    backwards.merge(1, dict(reversed(sent.items())))
    for name, tensor in forwards.state_dict().items():
        other = backwards.state_dict()[name]
        if name != "clients":
            turned = other.flip(0) if name.startswith("embeddings") else other
            assert torch.allclose(tensor, turned, rtol=1e-4, atol=1e-4), name


# ---- new clients -----------------------------------------------------------------------------------------------------


def test_8_adapting_changes_the_embeddings_of_novel_clients_and_nothing_else(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, adapt = [], FedTPStrategy._adapt

    def watched(self: FedTPStrategy, *given: Any) -> None:
        states.append((state_of(self), self.progress.novel))
        adapt(self, *given)
        states.append((state_of(self), self.progress.novel))

    monkeypatch.setattr(FedTPStrategy, "_adapt", watched)
    federate(clients=6, strategy="fedtp", novel_clients=2, novel_steps=2, novel_turns=2, **FEW, **SMALL)
    (before, novel), (after, _) = states
    rows = {"embeddings", "embeddings-velocity"}
    fixed = before.keys() - rows - {"clients"}
    assert len(fixed) > 20
    assert before.keys() == after.keys()
    assert all(digest({"": before[name]}, []) == digest({"": after[name]}, []) for name in fixed)
    for name in rows:
        assert len(after[name]) == len(before[name]) + 2 == 6
        assert digest({"": before[name]}, []) == digest({"": after[name][:4]}, [])
    for row, client in zip((4, 5), novel, strict=True):
        draw = torch.randn(1, 6, generator=torch_stream(0, "embedding", client=client))[0]
        assert not torch.equal(after["embeddings"][row], draw)
        assert after["embeddings-velocity"][row].any()


def test_novel_clients_learn_each_as_if_alone_by_the_whole_way_that_they_went_and_without_decay() -> None:
    decay = {"fedtp.weight-decay": 0.5, "fedtp.momentum": 0.0, "fedtp.embedding-learning-rate": 3.0}
    both, one = server("012345", **decay), server("012345", **decay)
    start = both._embeddings.of(("4", "5"))
    sent = uploads_of(planned(both.plan(3, ("4", "5"))), 3)
    both.adapt(3, sent)
    one.adapt(3, {"5": sent["5"]})
    apart = torch.cat([both._embeddings.of("01234"), one._embeddings.of("5")])
    assert torch.allclose(both._embeddings.values, apart, atol=1e-4)  # the sums of two and of one, in float32
    assert torch.equal(one._embeddings.of("01234"), server("012345", **decay)._embeddings.of("01234"))
    phi = {n.removeprefix("generator/"): t.double() for n, t in both.state_dict().items() if n.startswith("generator/")}
    z = start[1].double().requires_grad_()
    made = generated(phi, z, 2)
    fresh = planned(server("012345", **decay).plan(3, ("4", "5")))["5"]
    total = sum((made[name] * (fresh[name] - sent["5"].params[name]).double()).sum() for name in W)
    (slope,) = torch.autograd.grad(total, [z])
    assert torch.allclose(one._embeddings.of("5")[0].double(), z.detach() - 3.0 * slope, rtol=1e-4, atol=1e-6)
    still = server("012345", **decay)
    stays = {c: Upload(c, params, 10, ()) for c, params in planned(still.plan(3, ("4", "5"))).items()}
    still.adapt(3, stays)
    assert torch.equal(still._embeddings.of(("4", "5")), start)  # who did not move is not pulled to zero
