"""FedTP's mathematics: the heads' losses, the neighbours' vote, and which layers are personal."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedham_flwr.algorithms.fedtp import (
    MOST,
    FedTPSettings,
    check_model,
    nearest_vote,
    personal_groups,
)
from fedham_flwr.core.errors import UserError
from fedham_flwr.settings import parse

GROUPS = ("embedding", "attention", "block1", "norm", "head")


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (FedTPSettings(), ()),
        (FedTPSettings(personal="vanilla"), ("attention",)),
        (FedTPSettings(head="fedper"), ("head",)),
        (FedTPSettings(personal="vanilla", head="fedper"), ("attention", "head")),
    ],
)
def test_which_layer_groups_stay_with_the_client(settings: FedTPSettings, kept: tuple[str, ...]) -> None:
    assert personal_groups(GROUPS, settings) == kept


def test_fedrods_second_head_is_the_last_group_and_personal_while_the_first_is_shared() -> None:
    groups = (*GROUPS, "personal-head")
    assert personal_groups(groups, FedTPSettings(head="fedrod")) == ("personal-head",)
    assert personal_groups(groups, FedTPSettings(head="fedrod", personal="vanilla")) == ("attention", "personal-head")


def test_a_model_without_self_attention_is_refused() -> None:
    check_model(GROUPS, "vit")
    message = 'strategy="fedtp" personalises self-attention, and model="cnn" has none: try model="vit" for images, '
    with pytest.raises(UserError, match=message):
        check_model(("conv1", "fc1"), "cnn")


# ---- settings --------------------------------------------------------------------------------------------------------


def test_a_rank_of_one_which_has_nothing_to_learn_is_refused_with_other_faults() -> None:
    wanted = r"wanted 0 \(dense heads\) or at least 2, since one coefficient of fixed length can't learn"
    with pytest.raises(UserError, match=rf"^settings: fedtp\.rank=1: {wanted}$"):
        parse({"fedtp.rank": 1})
    with pytest.raises(UserError, match=rf"^settings: alpha=0\.0: wanted .*; fedtp\.rank=1: {wanted}$"):
        parse({"fedtp.rank": 1, "alpha": 0.0})
    assert [parse({"fedtp.rank": rank}).fedtp.rank for rank in (0, 2)] == [0, 2]


@pytest.mark.parametrize("key", ["learning-rate", "embedding-learning-rate", "weight-decay"])
def test_what_is_too_large_a_factor_is_refused(key: str) -> None:
    for value, said in ((1e38, r"1e\+38"), (1.5e6, r"1500000\.0")):
        message = rf"^settings: fedtp\.{key}={said}: wanted less than or equal to 1000000$"
        with pytest.raises(UserError, match=message):
            parse({f"fedtp.{key}": value})
    assert parse({f"fedtp.{key}": MOST}).fedtp == FedTPSettings(**{key.replace("-", "_"): MOST})


# ---- nearest neighbours ----------------------------------------------------------------------------------------------


def naive_vote(
    queries: torch.Tensor, keys: torch.Tensor, targets: torch.Tensor, classes: int, neighbours: int
) -> torch.Tensor:
    votes = torch.zeros(len(queries), classes, dtype=queries.dtype)
    for at, query in enumerate(queries):
        squared = [float(((query - key) ** 2).sum()) for key in keys]
        for sample in sorted(range(len(keys)), key=lambda i: squared[i])[:neighbours]:
            votes[at, targets[sample]] += math.exp(-squared[sample] / len(query))
    return votes / votes.sum(1, keepdim=True)


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 5), st.integers(1, 12), st.integers(0, 2**31))
def test_the_vote_is_the_loops_over_queries_and_keys(q: int, s: int, d: int, neighbours: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    queries, keys = (torch.randn(n, d, generator=draw, dtype=torch.float64) for n in (q, s))
    targets = torch.randint(3, (s,), generator=draw)
    vote = nearest_vote(queries, keys, targets, 3, neighbours)
    torch.testing.assert_close(vote, naive_vote(queries, keys, targets, 3, neighbours), rtol=1e-6, atol=1e-8)


def test_neighbours_that_are_all_very_far_still_vote() -> None:
    vote = nearest_vote(torch.zeros(1, 1), torch.tensor([[100.0], [101.0]]), torch.tensor([1, 0]), 2, 2)
    assert bool(torch.isfinite(vote).all())
    assert vote[0, 1] > 0.999


def test_a_samples_own_features_decide_with_one_neighbour() -> None:
    keys, targets = torch.eye(3), torch.tensor([2, 0, 1])
    assert nearest_vote(keys, keys, targets, 3, 1).argmax(1).tolist() == [2, 0, 1]
