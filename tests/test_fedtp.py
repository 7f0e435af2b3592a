"""FedTP's mathematics: the heads' losses, the neighbours' vote, and which layers are personal."""

from __future__ import annotations

import pytest

from fedham_flwr.algorithms.fedtp import (
    MOST,
    FedTPSettings,
    check_model,
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
