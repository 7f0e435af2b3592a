"""FedCAC: masks, overlaps and thresholds by hand and by loops, its ends, and rounds against sets of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixers import after_rounds, flat, models_of, names, server, state_of, trained
from presets import planned

from fedham_flwr.algorithms import fedcac
from fedham_flwr.algorithms.fedcac import critical, overlaps, similar, threshold, together
from fedham_flwr.core.threads import threads
from fedham_flwr.federation.record_values import tensors
from fedham_flwr.mixing import masks as module
from fedham_flwr.mixing.masks import Masks
from fedham_flwr.reporting.mixing_weights import read_weights


def test_what_is_critical_by_hand() -> None:
    before = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    after = torch.tensor([[1.5, 2.1], [3.0, -2.0]])  # |dw w| = 0.75, 0.21, 0, 2
    assert critical(before, after, 0.5).tolist() == [[True, False], [False, True]]
    assert critical(before, after, 0.99).tolist() == [[True, True], [False, True]]
    assert not critical(before, after, 0.0).any()
    assert critical(before, after, 1.0).all()
    assert critical(before, before, 0.5).tolist() == [[True, True], [False, False]]  # of equal ones the first


@given(st.integers(2, 9), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**31))
def test_overlaps_are_those_of_the_formula(n: int, size: int, share: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    found = [critical(torch.zeros(size), torch.randn(size, generator=draw), share) for _ in range(n)]
    masks = Masks({"a": (size,)})
    masks.add(n)
    masks.put(torch.arange(n), [masks.pack({"a": mask}) for mask in found])
    count = fedcac.many(size, share)
    assert all(int(mask.sum()) == count for mask in found)
    overlap = overlaps(masks.shared, count)
    for i in range(n):
        assert torch.equal(masks.of(i)["a"], found[i])
        for j in range(n):
            differ = int((found[i] ^ found[j]).sum())
            assert float(overlap[i, j]) == pytest.approx(1 - differ / (2 * count) if count else 0.0)


def test_masks_are_counted_the_same_in_other_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, draw = {"a": (3, 7), "b": (50,)}, torch.Generator().manual_seed(0)
    drawn = [{n: torch.rand(s, generator=draw) < 0.4 for n, s in shapes.items()} for _ in range(5)]
    whole, parts = Masks(shapes), Masks(shapes)
    whole.add(5)
    whole.put(torch.arange(5), [whole.pack(mask) for mask in drawn])
    monkeypatch.setattr(module, "ROWS", 2)
    monkeypatch.setattr(module, "COLUMNS", 16)
    with threads(2):
        for count, rows in ((3, (2, 0, 1)), (2, (4, 3))):
            parts.add(count)
            parts.put(torch.tensor(rows), [parts.pack(drawn[row]) for row in rows])
    assert torch.equal(whole.bits, parts.bits)
    assert torch.equal(whole.shared, parts.shared)
    assert int(whole.shared[1, 3]) == sum(int((drawn[1][n] & drawn[3][n]).sum()) for n in shapes)


def test_the_threshold_rises_from_the_mean_to_the_largest_and_beyond() -> None:
    assert [threshold(0.5, 0.9, t, 10) for t in (0, 5, 10, 20)] == pytest.approx([0.5, 0.7, 0.9, 1.3])
    overlap = torch.tensor([[1.0, 0.6, 0.9], [0.6, 1.0, 0.2]], dtype=torch.float64)
    own, known = torch.tensor([0, 1]), torch.tensor([True, True, True])
    third = 1 / 3
    assert torch.allclose(
        similar(overlap, own, known, 0.5),
        torch.tensor([[third, third, third], [0.5, 0.5, 0.0]], dtype=torch.float64),
    )
    assert similar(overlap, own, torch.tensor([True, True, False]), 0.7).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert similar(overlap, own, known, 2.0).tolist() == [[1, 0, 0], [0, 1, 0]]  # itself alone


def test_a_start_takes_each_parameter_from_one_of_two() -> None:
    mask, few = {"a": torch.tensor([True, False])}, {"a": torch.tensor([1.0, 2.0]), "mean": torch.tensor([9.0])}
    start = together(mask, few, {"a": torch.tensor([5.0, 6.0]), "mean": torch.tensor([7.0])})
    assert {name: tensor.tolist() for name, tensor in start.items()} == {"a": [1.0, 6.0], "mean": [7.0]}


# ---- rounds ----------------------------------------------------------------------------------------------------------


def test_a_start_is_that_of_loops_over_sets_of_parameters() -> None:
    """Three rounds of models in which pairs of clients move the same parameters; masks as sets of their numbers."""
    made, sizes = server("fedcac", share=0.3, rounds=20), [t.numel() for t in server("fedcac").first.values()]
    starts = {client: flat(start) for client, start in planned(made.plan(1, names(4))).items()}
    for number in (1, 2, 3):
        uploads = trained(planned(made.plan(number, names(4))), number)
        for client, upload in uploads.items():
            for tensor in upload.params.values():
                draw = torch.Generator().manual_seed(int(client) // 2)
                tensor.add_(torch.rand(tensor.shape, generator=draw) < 0.2)
        made.merge(number, uploads)
        after = {client: flat(upload.params) for client, upload in uploads.items()}
        critical_of = {client: chosen(starts[client], after[client], sizes, 0.3) for client in names(4)}
        count = len(critical_of["0"])
        overlap = {(i, j): len(critical_of[i] & critical_of[j]) / count for i in names(4) for j in names(4) if i != j}
        mean, most = sum(overlap.values()) / 12, max(overlap.values())
        least = mean + (number + 1) / 20 * (most - mean)
        total = sum(upload.examples for upload in uploads.values())
        common = sum(after[client] * (upload.examples / total) for client, upload in uploads.items())
        plan, recorded = planned(made.plan(number + 1, names(4))), made.mixing_weights(number + 1, names(4), {})
        for i in names(4):
            members = [i, *(j for j in names(4) if j != i and overlap[i, j] >= least)]
            assert 1 < len(members) < 4
            few = sum(after[j] for j in members) / len(members)
            at = torch.zeros(len(few), dtype=torch.bool)
            at[list(critical_of[i])] = True
            wanted = torch.where(at, few, common)
            assert torch.allclose(flat(plan[i]), wanted, atol=1e-5)
            row = recorded.weights[int(i), 0]
            assert {str(j) for j in row.nonzero().flatten().tolist()} == set(members)
            starts[i] = flat(plan[i])


def chosen(before: torch.Tensor, after: torch.Tensor, sizes: list[int], share: float) -> set[int]:
    """The numbers of a model's critical parameters, tensor by tensor."""
    found, first = set(), 0
    sensitivity = (((after - before).float() * after.float()).abs()).tolist()
    for size in sizes:
        order = sorted(range(first, first + size), key=lambda at: -sensitivity[at])
        found |= set(order[: int(share * size)])
        first += size
    return found


def test_without_critical_parameters_it_is_fedavg_to_the_bit() -> None:
    mixed, average = server("fedcac", share=0.0), server("fedavg")
    for number in (1, 2, 3):
        starts, wanted = (planned(made.plan(number, names(4))) for made in (mixed, average))
        for client, params in starts.items():
            assert all(torch.equal(tensor, wanted[client][name]) for name, tensor in params.items())
        uploads = trained(starts, number)
        mixed.merge(number, uploads)
        average.merge(number, uploads)


def test_where_all_is_critical_and_nobody_similar_it_is_local_training_bit_for_bit(
    federate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"samples_per_client": 64}
    local = federate(strategy="local", **few)
    together_ = federate(strategy="fedcac", **few, **{"fedcac.share": 1.0})
    monkeypatch.setattr(fedcac, "threshold", lambda *_: 2.0)
    alone = federate(strategy="fedcac", **few, **{"fedcac.share": 1.0})
    assert sorted(alone.rows) == sorted(local.rows)
    assert sorted(together_.rows) != sorted(local.rows)  # with tau = 1 all are alike, so that all are similar


def test_after_so_many_rounds_critical_parameters_are_ones_own() -> None:
    made = after_rounds(server("fedcac", rounds=2), 2)
    w = models_of(made)
    for i, start in enumerate(planned(made.plan(3, names(4))).values()):
        mask = flat(made._masks.of(i)).bool()
        assert torch.equal(flat(start)[mask], w[i][mask])
        assert torch.equal(flat(start)[~mask], flat(made._mean)[~mask])
        assert 0.45 < float(mask.double().mean()) <= 0.5


def test_who_never_trained_has_the_mean_and_is_in_nobodys_group() -> None:
    made = server("fedcac", rounds=1000)
    made.merge(1, trained(planned(made.plan(1, ("0", "2"))), 1))
    plan = planned(made.plan(2, names(4)))
    assert all(torch.equal(tensor, made._mean[name]) for name, tensor in plan["1"].items())
    weights = made.mixing_weights(2, names(4), {})
    assert weights.clients == ("0", "2")
    assert weights.weights[:, 0].tolist() == [[0.5, 0.0, 0.5, 0.0]] * 2  # two overlap as on average
    made.add_clients((*names(4), "late"))
    again = planned(made.plan(2, ("0", "late")))
    assert torch.equal(flat(again["0"]), flat(plan["0"]))
    assert torch.equal(flat(again["late"]), flat(made._mean))


def test_everything_that_is_learned_is_in_the_state() -> None:
    whole, again = after_rounds(server("fedcac"), 2), server("fedcac", 0)
    again.load_state_dict(state_of(whole))
    for made in (whole, again):
        made.merge(3, trained(planned(made.plan(3, ("1", "3"))), 3))
    other = state_of(again)
    assert all(torch.equal(tensor, other[name]) for name, tensor in state_of(whole).items())
    with pytest.raises(ValueError, match=r"^fc2\.bias holds NaN"):
        again.load_state_dict({**other, "mean/fc2.bias": torch.full((10,), torch.nan)})


def test_clients_keep_nothing_and_weights_are_recorded_once_there_are_masks(federate: Callable[..., Any]) -> None:
    run = federate(strategy="fedcac", samples_per_client=64)
    kept = [c.state.array_records.get("personal") for c in run.grid.contexts.values()]
    assert not any(tensors(record) for record in kept if record is not None)
    sums = read_weights(run.path).to_pandas().groupby(["round", "client", "group"], observed=True)["weight"].sum()
    assert sorted({key[0] for key in sums.index}) == [2, 3]
    assert (sums - 1).abs().max() < 1e-6
