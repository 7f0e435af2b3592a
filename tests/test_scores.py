"""Statistics over clients, the round chosen on validation, and the digest."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedham_flwr.core.records import Row, check_rows
from fedham_flwr.reporting.summary import digest, final, score, selected


def row(client: str, value: float, **changes) -> Row:
    return Row(1, client, "test", "personal", "after", "accuracy", value, 10)._replace(**changes)


def test_final_is_the_last_round():
    # mean (0.2 + 0.8) / 2; weighted (0.2 * 30 + 0.8 * 10) / 40; std |0.8 - 0.2| / 2; worst: 1 of 2 clients
    rows = [row("a", 0.9), row("a", 0.2, round=2, n=30), row("b", 0.8, round=2, n=10)]
    (entry,) = final(rows)
    assert entry == {
        "round": 2,
        "population": "member",
        "model": "personal",
        "phase": "after",
        "split": "test",
        "metric": "accuracy",
        "mean": pytest.approx(0.5),
        "weighted-mean": pytest.approx(0.35),
        "std": pytest.approx(0.3),
        "worst-decile": pytest.approx(0.2),
        "clients": 2,
    }


def test_novel_clients_have_statistics_of_their_own():
    novel = {"population": "novel", "phase": "before"}
    rows = [row("a", 0.2), row("b", 0.4), row("c", 0.9, **novel), row("d", 0.7, **novel), row("c", 1.0, round=0)]
    found = [(e["population"], e["phase"], e["clients"], e["mean"]) for e in final(rows)]
    assert found == [("member", "after", 2, pytest.approx(0.3)), ("novel", "before", 2, pytest.approx(0.8))]
    same = [row("a", 0.5), row("b", 0.75, population="novel")]  # but for the population
    assert [(e["population"], e["mean"], e["clients"]) for e in score(same)] == [("member", 0.5, 1), ("novel", 0.75, 1)]


def test_a_client_cannot_be_a_member_and_novel_in_one_round():
    with pytest.raises(ValueError, match="client 'a' has two values"):
        check_rows([row("a", 0.5), row("a", 0.6, population="novel")], 1)


def test_novel_clients_do_not_enter_the_choice_of_a_round():
    rows = history({1: (0.6, 0.6), 2: (0.5, 0.5)})
    novel = [r._replace(client=f"n{r.client}", population="novel") for r in history({2: (1.0, 1.0), 3: (1.0, 1.0)})]
    assert selected([*rows, *novel], {"a", "b"}) == selected(rows, {"a", "b"})
    assert chosen([*rows, *novel], "") == {("personal", "after"): (2, "last round")}
    assert selected(novel, {"na", "nb"}) == []


def test_without_rows_there_are_no_statistics():
    assert final([]) == []
    assert selected([], {"a"}) == []


@pytest.mark.parametrize(("clients", "worst"), [(1, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_the_worst_decile_is_low_accuracy_and_high_loss(clients, worst):
    values = list(range(clients))
    random.Random(0).shuffle(values)
    rows = [row(str(k), float(k)) for k in values] + [row(str(k), float(k), metric="loss") for k in values]
    accuracy, loss = final(rows)
    assert accuracy["worst-decile"] == pytest.approx((worst - 1) / 2)  # the mean of 0 .. worst - 1
    assert loss["worst-decile"] == pytest.approx(clients - 1 - (worst - 1) / 2)


def test_a_loss_that_is_not_a_number_is_the_worst():
    rows = [row(str(k), math.nan if k == 3 else 1.0, metric="loss") for k in range(20)]
    assert math.isnan(float(final(rows)[0]["worst-decile"]))


def test_values_without_samples_have_no_weighted_mean():
    (entry,) = final([row("a", 0.5, n=0)])
    assert entry["mean"] == 0.5
    assert math.isnan(float(entry["weighted-mean"]))


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(["test", "train"]), st.floats(0, 1), st.integers(1, 99)),
        min_size=1,
        unique_by=lambda item: item[:2],
    ),
    st.randoms(use_true_random=False),
)
def test_statistics_are_those_of_a_naive_loop_in_any_order(items, shuffler):
    rows = [row(client, value, split=split, n=n) for client, split, value, n in items]
    entries = score(shuffler.sample(rows, len(rows)))
    assert [entry["split"] for entry in entries] == sorted({r.split for r in rows})
    for entry in entries:
        group = [r for r in rows if r.split == entry["split"]]
        total = weight = square = 0.0
        for r in group:
            total += r.value * r.n
            weight += r.n
        mean = sum(r.value for r in group) / len(group)
        for r in group:
            square += (r.value - mean) ** 2
        assert entry["mean"] == pytest.approx(mean)
        assert entry["weighted-mean"] == pytest.approx(total / weight)
        assert entry["std"] == pytest.approx(math.sqrt(square / len(group)), abs=1e-9)
        assert entry["worst-decile"] == min(r.value for r in group)  # at most 4 clients
        assert entry["clients"] == len(group)


def test_entries_are_sorted_by_model_phase_split_metric():
    rows = [
        row("a", 0.5, model=model, phase=phase, split=split, metric=metric)
        for model in ("personal", "global")
        for phase in ("before", "after")
        for split in ("validation", "test")
        for metric in ("loss", "accuracy")
    ]
    found = [tuple(entry[name] for name in ("model", "phase", "split", "metric")) for entry in final(rows)]
    assert found == sorted(found)
    assert len(found) == 16


def history(values: Mapping[int, tuple[float, ...]], **changes) -> list[Row]:
    """Validation accuracies of clients a, b, ... by round, and test accuracies that rank the rounds otherwise."""
    rows = []
    for number, accuracies in values.items():
        for client, value in zip("abc", accuracies, strict=False):
            rows.append(row(client, value, round=number, split="validation", **changes))
            rows.append(row(client, 1 - value, round=number, **changes))
    return rows


def chosen(rows: list[Row], clients: str = "ab") -> dict[tuple[str, str], tuple[int, str]]:
    return {
        (str(e["model"]), str(e["phase"])): (int(e["round"]), str(e["chosen-on"])) for e in selected(rows, set(clients))
    }


def test_the_round_is_chosen_on_validation_not_on_test():
    rows = history({1: (0.2, 0.2), 2: (0.6, 0.8), 3: (0.5, 0.5)})
    assert chosen(rows) == {("personal", "after"): (2, "validation")}
    validation, test = selected(rows, {"a", "b"})[1], selected(rows, {"a", "b"})[0]
    assert (validation["split"], validation["mean"]) == ("validation", pytest.approx(0.7))
    assert (test["split"], test["mean"]) == ("test", pytest.approx(0.3))


def test_each_model_and_phase_chooses_on_its_own():
    rows = history({1: (0.9, 0.9), 2: (0.1, 0.1)}, model="global", phase="before") + history({1: (0, 0), 2: (1, 1)})
    assert chosen(rows) == {("global", "before"): (1, "validation"), ("personal", "after"): (2, "validation")}


def test_a_round_that_misses_a_client_cannot_be_chosen():
    assert chosen(history({1: (0.5, 0.5), 2: (1.0,)})) == {("personal", "after"): (1, "validation")}


def test_the_mean_is_weighted_by_samples():
    rows = [
        row("a", 1.0, round=1, split="validation", n=1),
        row("b", 0.0, round=1, split="validation", n=9),
        row("a", 0.0, round=2, split="validation", n=1),
        row("b", 0.5, round=2, split="validation", n=9),
    ]
    assert chosen(rows) == {("personal", "after"): (2, "validation")}  # 0.1 against 0.45; plainly 0.5 against 0.25


def test_the_earliest_of_equal_rounds_is_chosen():
    assert chosen(history({3: (0.5, 0.7), 2: (0.7, 0.5), 1: (0.1, 0.1)})) == {("personal", "after"): (2, "validation")}


def test_other_clients_do_not_enter_the_choice():
    rows = history({1: (0.5, 0.5, 0.0), 2: (0.4, 0.4, 1.0)})
    assert chosen(rows) == {("personal", "after"): (1, "validation")}
    assert {entry["clients"] for entry in selected(rows, {"a", "b"})} == {3}  # but they are reported


@pytest.mark.parametrize("clients", ["", "abcd"])
def test_without_a_complete_round_the_last_one_is_reported_as_such(clients):
    rows = history({1: (0.9, 0.9), 2: (0.5,)}) + history({1: (0.5,)}, phase="before")
    assert chosen(rows, clients) == {
        ("personal", "after"): (2, "last round"),
        ("personal", "before"): (1, "last round"),
    }


# ---- digest ---------------------------------------------------------------------------------------------------------


def tensors() -> dict[str, torch.Tensor]:
    return {"w": torch.arange(24.0).reshape(1, 2, 3, 4), "b": torch.tensor([1, 2]), "s": torch.tensor(True)}


def test_the_digest_ignores_order_and_layout():
    rows = [row("a", 0.5), row("b", math.nan, metric="loss"), row("a", 0.25, round=2)]
    turned = dict(reversed(tensors().items()))
    turned["w"] = turned["w"].to(memory_format=torch.channels_last).requires_grad_()
    assert turned["w"].stride() != tensors()["w"].stride()
    assert digest(turned, rows[::-1]) == digest(tensors(), rows)
    assert re.fullmatch("[0-9a-f]{64}", digest(tensors(), rows))


def test_the_digest_sees_every_bit():
    one_bit = torch.tensor([1.0]).view(torch.int32).add(1).view(torch.float32)
    variants = [
        ({"w": torch.tensor([1.0])}, [row("a", 0.5)]),
        ({"w": one_bit}, [row("a", 0.5)]),
        ({"v": torch.tensor([1.0])}, [row("a", 0.5)]),
        ({"w": torch.tensor([[1.0]])}, [row("a", 0.5)]),
        ({"w": torch.tensor(1.0)}, [row("a", 0.5)]),
        ({"w": torch.tensor([1.0]).view(torch.int32)}, [row("a", 0.5)]),
        ({"w": torch.tensor([1.0], dtype=torch.bfloat16)}, [row("a", 0.5)]),
        ({"w": torch.tensor([1.0]), "e": torch.zeros(0)}, [row("a", 0.5)]),
        ({}, [row("a", 0.5)]),
        ({"w": torch.tensor([1.0])}, []),
        ({"w": torch.tensor([1.0])}, [row("a", 0.5), row("a", 0.5)]),
        ({"w": torch.tensor([1.0])}, [row("a", math.nextafter(0.5, 1))]),
        ({"w": torch.tensor([1.0])}, [row("a", 0.5, n=11)]),
        *(({"w": torch.tensor([1.0])}, [row("a", 0.5)._replace(**{name: "x"})]) for name in Row._fields[1:6]),
        ({"w": torch.tensor([1.0])}, [row("a", 0.5, round=2)]),
        ({"w": torch.tensor([1.0])}, [row("a", 0.5, population="novel")]),
    ]
    assert len({digest(*variant) for variant in variants}) == len(variants)


def test_the_digest_of_nothing_is_fixed():
    # printf '[0, 0]' | sha256sum
    assert digest({}, []) == "ab395cb4c41927dc03d8d0b9e1de32ba2761d97d7d85b9c89fc54ae3591dc0e1"
