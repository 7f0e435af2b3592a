"""The kinds of exchange between the server and its clients: one table for both halves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from flwr.app import MessageType

from fedham_flwr.core.records import MEMBER, NOVEL


class Stage(NamedTuple):
    """One kind of exchange.

    Attributes:
        name: in the results.
        message: type of Flower's messages.
        work: name of the function of `numpy_client.FlowerClient` that answers.
        sends: which tensors of the model come back: shared, adapted or none.
        planned: the message has a model to start from; else a question of the method's own.
        population: of the scores: member, or novel for clients that never train.
    """

    name: str
    message: str
    work: str
    sends: Literal["shared", "adapted", "none"] = "none"
    planned: bool = True
    population: str = MEMBER

    def __reduce__(self) -> tuple[Callable[[str], Stage], tuple[str]]:
        """The table's own object in each of Ray's processes too: stages are told apart by identity."""
        return named, (self.name,)


QUERY = Stage("query", f"{MessageType.QUERY}.before", "reply", planned=False)
"""What a method asks its clients before a round can be planned."""
TRAIN = Stage("train", MessageType.TRAIN, "fit", "shared")
EVALUATE = Stage("evaluate", MessageType.EVALUATE, "evaluate")
PERSONAL = Stage("personal", f"{MessageType.TRAIN}.personal", "personalise")
"""The exchange that ends the rounds, if clients then have a stage of their own."""
MEET = Stage("novel", f"{MessageType.EVALUATE}.novel", "meet", population=NOVEL)
"""Novel clients: scored, and adapted if they adapt alone."""
ADAPT = Stage("adapt", f"{MessageType.TRAIN}.novel", "adapt", "adapted")
"""Novel clients: a turn of training what the server learns from."""
ADAPTED = Stage("adapted", f"{MessageType.EVALUATE}.adapted", "assess_adapted", population=NOVEL)
"""Novel clients: scored after the turns."""

STAGES = (QUERY, TRAIN, EVALUATE, PERSONAL, MEET, ADAPT, ADAPTED)

CONSENT = Stage("consent", f"{MessageType.QUERY}.consent", "consent", planned=False)
"""Cross-site evaluation: whether a client takes part, and has a model and test samples."""
GIVE = Stage("give", f"{MessageType.QUERY}.model", "give", planned=False)
"""Cross-site evaluation: the client's exported model."""
CROSS = Stage("cross-sites", f"{MessageType.EVALUATE}.cross", "score_others", planned=False)
"""Cross-site evaluation: the scores of others' models on the client's test split."""
ACROSS = (CONSENT, GIVE, CROSS)
"""Answered by `cross_client.CrossClient`, after the closing exchange of all others."""


def named(name: str) -> Stage:
    """The stage of this name."""
    (stage,) = (stage for stage in (*STAGES, *ACROSS) if stage.name == name)
    return stage
