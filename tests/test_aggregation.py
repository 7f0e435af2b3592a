"""The rules that a few bad clients cannot lead away: by hand, against naive loops, and against what is planted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedham_flwr.core import aggregation
from fedham_flwr.core.aggregation import ServerSettings, cut, krum, robust, shortage, squared_distances
from fedham_flwr.core.parameters import Params

RULES = ("median", "trimmed-mean", "krum", "multi-krum")
HUGE = (1e7, -1e7, 3e6, 1.0)
"""What bad clients send at a place; the last is not even conspicuous."""


def models(rows: Sequence[Sequence[float]]) -> list[Params]:
    """A model of two tensors for each row of at least two numbers."""
    return [{"a": torch.tensor([row[0]]), "b": torch.tensor(row[1:]).view(-1, 1)} for row in rows]


def flat(model: Params) -> list[float]:
    return torch.cat([tensor.flatten() for tensor in model.values()]).tolist()


def drawn(count: int, size: int = 6, seed: int = 0) -> list[Params]:
    draw = torch.Generator().manual_seed(seed)
    return models(torch.randn(count, size, generator=draw).tolist())


# ---- by hand ---------------------------------------------------------------------------------------------------------

ONE = [[1.0, 10.0], [2.0, 40.0], [3.0, 20.0], [100.0, 30.0]]


@pytest.mark.parametrize(
    ("settings", "rows", "wanted"),
    [
        (ServerSettings("median"), ONE, [2.5, 25.0]),
        (ServerSettings("median"), ONE[:3], [2.0, 20.0]),
        (ServerSettings("median"), ONE[:1], [1.0, 10.0]),
        (ServerSettings("trimmed-mean", trim=0.25), ONE, [2.5, 25.0]),
        (ServerSettings("trimmed-mean", trim=0.0), ONE, [26.5, 25.0]),
        (ServerSettings("trimmed-mean", trim=0.1), [[-9.0, 0.0], [1.0, 0.0], [2.0, 3.0], [3.0, 6.0], [9.0, 9.0]],
         [2.0, 3.0]),  # a tenth of five is cut as one
        # Of 5 with f = 1 each is scored by its 2 nearest others: 0, 1 and 2 by 1 + 4, 1 + 1 and 1 + 4.
        (ServerSettings("krum", bad_clients=1), [[0.0, 7.0], [1.0, 7.0], [2.0, 7.0], [9.0, 7.0], [30.0, 7.0]],
         [1.0, 7.0]),
        (ServerSettings("multi-krum", bad_clients=1, selected=3),
         [[0.0, 7.0], [1.0, 7.0], [2.0, 7.0], [9.0, 7.0], [30.0, 7.0]], [1.0, 7.0]),
        (ServerSettings("multi-krum", bad_clients=1),  # of 4 of 5
         [[0.0, 7.0], [1.0, 7.0], [2.0, 7.0], [9.0, 7.0], [30.0, 7.0]], [3.0, 7.0]),
    ],
)  # fmt: skip
def test_known_answers(settings: ServerSettings, rows: list[list[float]], wanted: list[float]) -> None:
    assert flat(robust(models(rows), settings)) == wanted


def test_of_equal_scores_the_first_clients_count() -> None:
    assert krum(models([[1.0, 1.0]] * 5), 1, 1) == [0]
    assert krum(models([[1.0, 1.0]] * 5), 1, 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("trim", "count", "each"),
    [(0.1, 10, 1), (0.1, 30, 3), (0.07, 100, 7), (0.3, 10, 3), (0.1, 11, 2), (0.0, 9, 0), (0.49, 3, 2), (0.01, 1, 1)],
)
def test_the_share_that_is_cut_is_at_least_what_is_said(trim: float, count: int, each: int) -> None:
    assert cut(trim, count) == each


# ---- against loops -----------------------------------------------------------------------------------------------


def naive(rows: list[list[float]], settings: ServerSettings) -> list[float]:
    """The rule in Python's floats, number by number."""
    n, f = len(rows), settings.bad_clients
    if settings.aggregation in ("krum", "multi-krum"):
        scores = []
        for i in range(n):
            others = [row for j, row in enumerate(rows) if j != i]
            apart = [sum((a - b) ** 2 for a, b in zip(rows[i], other, strict=True)) for other in others]
            scores.append((sum(sorted(apart)[: n - f - 2]), i))
        m = 1 if settings.aggregation == "krum" else settings.selected or n - f
        rows = [rows[i] for _, i in sorted(scores)[:m]]
        return [sum(column) / m for column in zip(*rows, strict=True)]
    found = []
    for column in zip(*rows, strict=True):
        ordered = sorted(column)
        if settings.aggregation == "median":
            found.append((ordered[(n - 1) // 2] + ordered[n // 2]) / 2)
        else:
            c = math.ceil(round(settings.trim * n, 6))
            found.append(sum(ordered[c : n - c]) / (n - 2 * c))
    return found


rows_of = st.integers(5, 9).flatmap(
    lambda n: st.lists(st.lists(st.integers(-40, 40).map(float), min_size=3, max_size=3), min_size=n, max_size=n)
)


@pytest.mark.parametrize("rule", RULES)
@given(rows=rows_of, trim=st.sampled_from((0.0, 0.1, 0.25, 0.3)), bad=st.integers(0, 1), selected=st.integers(0, 4))
def test_each_rule_against_a_naive_loop(
    rule: Any, rows: list[list[float]], trim: float, bad: int, selected: int
) -> None:
    settings = ServerSettings(rule, trim, bad, selected)
    assert flat(robust(models(rows), settings)) == pytest.approx(naive(rows, settings), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_parts_and_threads_change_no_bit(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given_models, settings = drawn(7, 50), ServerSettings(rule, trim=0.2, bad_clients=2)
    whole = robust(given_models, settings)
    torch.set_num_threads(2)
    threaded = robust(given_models, settings)
    torch.set_num_threads(1)
    monkeypatch.setattr(aggregation, "CHUNK", 21)  # three numbers of seven models
    parts = robust(given_models, settings)
    assert all(torch.equal(whole[name], parts[name]) and torch.equal(whole[name], threaded[name]) for name in whole)


class Largest(TorchDispatchMode):
    """Notes the most numbers that one tensor has of those that are made."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple) else (made,):
            if isinstance(one, Tensor):
                self.most = max(self.most, one.numel())
        return made


@pytest.mark.parametrize("rule", RULES)
def test_the_models_are_never_all_side_by_side(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregation, "CHUNK", 700)
    given_models = [{"w": torch.full((2000,), float(k))} for k in range(7)]
    with Largest() as largest:
        robust(given_models, ServerSettings(rule, bad_clients=1))
    assert largest.most == 2000  # a model, and not seven


def test_a_huge_model_leaves_the_digits_of_the_others_distances() -> None:
    """Inner products of 1e16 would leave nothing of distances of 1e-6."""
    near = drawn(4, 6)
    base = near[0]
    close = [{name: base[name] + 1e-4 * one[name] for name in base} for one in near]
    bad = {name: torch.full_like(tensor, 4e7) for name, tensor in base.items()}
    apart = squared_distances([*close, bad])
    for i, j in itertools.product(range(4), repeat=2):
        wanted = math.fsum((a - b) ** 2 for a, b in zip(flat(close[i]), flat(close[j]), strict=True))
        assert apart[i, j].item() == pytest.approx(wanted, rel=1e-9, abs=0)
    assert torch.equal(apart, apart.T)
    assert krum([bad, *close], 1, 1) != [0]


# ---- what each withstands ----------------------------------------------------------------------------------------


def planted(honest: list[Params], bad: Sequence[float]) -> list[Params]:
    """The models with bad ones among them, first and last."""
    sent = [{name: torch.full_like(tensor, value) for name, tensor in honest[0].items()} for value in bad]
    return [*sent[::2], *honest, *sent[1::2]]


def between(found: Params, honest: list[Params]) -> bool:
    lowest, highest = ([pick(column) for column in zip(*map(flat, honest), strict=True)] for pick in (min, max))
    return all(a <= x <= b for a, x, b in zip(lowest, flat(found), highest, strict=True))


@pytest.mark.parametrize("bad", [*itertools.combinations_with_replacement(HUGE, 3)])
def test_coordinate_wise_rules_stay_between_honest_numbers(bad: tuple[float, ...]) -> None:
    """With three bad ones of seven, in any combination: the median's most, and what a trim of 3/7 is for."""
    sent = planted(honest := drawn(4), bad)
    assert between(robust(sent, ServerSettings("median")), honest)
    assert between(robust(sent, ServerSettings("trimmed-mean", trim=3 / 7)), honest)


def test_one_more_bad_client_leads_them_away() -> None:
    sent = planted(honest := drawn(4), (1e7,) * 4)
    assert not between(robust(sent, ServerSettings("median")), honest)
    three = planted(honest, (1e7,) * 3)
    assert not between(robust(three, ServerSettings("trimmed-mean", trim=2 / 7)), honest)


def apart(one: Params, other: Params) -> float:
    return math.dist(flat(one), flat(other))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scale", [1e7, 30.0, 3.0, 1.0, 0.1])
def test_krum_stays_near_an_honest_model(seed: int, scale: float) -> None:
    """Whoever is chosen has an honest one among its n - f - 2 nearest, and a score not above an honest one's."""
    n, f, draw = 9, 3, torch.Generator().manual_seed(100 + seed)
    honest = drawn(n - f, seed=seed)
    middle = robust(honest, ServerSettings("median"))
    away = {name: scale * torch.randn(t.shape, generator=draw) for name, t in middle.items()}
    bad = [{name: middle[name] + (1 + 0.01 * k) * away[name] for name in away} for k in range(f)]  # who agree
    widest = max(apart(one, other) for one, other in itertools.combinations(honest, 2))
    bound = widest * math.sqrt((n - f - 2) / (n - 2 * f - 2)) + 1e-5
    sent = [*bad, *honest]
    for k in krum(sent, f, n - f):
        assert min(apart(sent[k], one) for one in honest) <= bound
    if scale >= 30:
        assert krum(sent, f, n - f) == list(range(f, n))  # nobody bad


def test_a_mean_follows_one_bad_client_anywhere() -> None:
    sent = planted(honest := drawn(6), (1e7,))
    assert not between(aggregation.weighted_mean(sent, [1.0] * 7), honest)
    assert between(robust(sent, ServerSettings("multi-krum")), honest)


@pytest.mark.parametrize("rule", RULES)
@given(rows=rows_of)
def test_no_rule_makes_a_number_that_lies_outside_of_those_sent(rule: Any, rows: list[list[float]]) -> None:
    """So that a variance is never negative."""
    sent = models(rows)
    assert between(robust(sent, ServerSettings(rule)), sent)


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_who_sends_what_does_not_matter(rule: Any) -> None:
    sent, settings = drawn(6), ServerSettings(rule)
    assert flat(robust(sent[::-1], settings)) == flat(robust(sent, settings))


# ---- too few -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "count", "sentence"),
    [
        (
            ServerSettings("krum", bad_clients=2), 6,
            'server.aggregation="krum" with server.bad-clients=2 needs at least 7',
        ),
        (ServerSettings("multi-krum"), 4, 'server.aggregation="multi-krum" with server.bad-clients=1 needs at least 5'),
        (
            ServerSettings("multi-krum", bad_clients=1, selected=5), 5,
            'server.aggregation="multi-krum" with server.selected=5 and server.bad-clients=1 needs at least 6, or it '
            "would have to take bad ones",
        ),
        (
            ServerSettings("trimmed-mean", trim=0.1), 2,
            'server.aggregation="trimmed-mean" with server.trim=0.1 cuts 1 of 2 at each end, which leaves none',
        ),
    ],
)  # fmt: skip
def test_too_few_models_are_a_sentence_and_one_more_is_enough(
    settings: ServerSettings, count: int, sentence: str
) -> None:
    assert shortage(settings, count) == sentence
    with pytest.raises(ValueError, match=f"^{count} models: "):
        robust(drawn(count), settings)
    assert shortage(settings, count + 1) == ""
    robust(drawn(count + 1), settings)
