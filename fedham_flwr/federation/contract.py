"""The contract of a method: the values that pass between its halves and the rounds, and what it may answer.

`rounds.RoundStrategy` and `client.RoundClient` say what each half is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from fedham_flwr.core.arrays import Storage
from fedham_flwr.core.methods import Method
from fedham_flwr.core.parameters import Manifest, Params
from fedham_flwr.core.records import MixingWeights
from fedham_flwr.federation.messages import Extras, Start, Upload
from fedham_flwr.federation.progress import Recorder, RunProgress, Task
from fedham_flwr.federation.roster import Roster
from fedham_flwr.run_settings import Settings

__all__ = ["Extras", "Outcome", "RunProgress", "Setup", "Start", "Task", "Upload"]


@dataclass(frozen=True)
class Outcome:
    """What became of one client's training.

    Attributes:
        send: the shared tensors for the server; others in it are not sent.
        use: the whole model that the client uses, which is scored and exported.
        keep: what the client remembers, under any names; nothing of it is sent.
        extras: tensors of the method's own that are sent along.
    """

    send: Params
    use: Params
    keep: Params = field(default_factory=dict)
    extras: Params = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """What a method's server half is made of.

    Attributes:
        settings: the run's.
        method: the method's declaration.
        manifest: the model's.
        initial: the first tensors of every layer group.
        task: what the clients are told.
        roster: the clients; found by a query when it is empty.
        recorder: what is told of each exchange; nobody by default.
        progress: how far the run is.
        storage: where the clients' models may lie on the server; in memory by default.
    """

    settings: Settings
    method: Method
    manifest: Manifest
    initial: Params
    task: Task
    roster: Roster = field(default_factory=Roster)
    recorder: Recorder | None = None
    progress: RunProgress = field(default_factory=RunProgress)
    storage: Storage = field(default_factory=Storage)


# ---- what a server half may answer beyond `plan`, `merge` and its state -------------------------------------------


@runtime_checkable
class Asks(Protocol):
    """A method that must ask its clients before it can plan a round."""

    def questions(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Extras]:
        """What each client is asked; without any there is no exchange. Who gives no good answer is left out.

        Args:
            round_number: the round.
            clients: ids, in order.
        """

    def answered(self, round_number: int, replies: Mapping[str, Upload]) -> None:
        """Take the answers.

        Args:
            round_number: the round.
            replies: client id -> its reply, in the order of ids.
        """


@runtime_checkable
class ChecksExtras(Protocol):
    """A method whose clients send tensors along; those of other methods may send none."""

    def check_extras(self, stage: str, client: str, tensors: Params) -> None:
        """Refuse what a client sent along.

        Args:
            stage: name of the exchange: query, train or evaluate.
            client: the sender.
            tensors: by the method's names.

        Raises:
            ValueError: it is not what the method wants.
        """


@runtime_checkable
class ReportsMixing(Protocol):
    """A method that mixes the clients' models."""

    def mixing_weights(
        self, round_number: int, clients: Sequence[str], uploads: Mapping[str, Upload]
    ) -> MixingWeights | None:
        """The weights with which the clients' models of a round were mixed from those of all clients.

        Args:
            round_number: the round.
            clients: those that were asked.
            uploads: the good replies, not merged yet.
        """


@runtime_checkable
class AdaptsNovel(Protocol):
    """A method whose server learns for novel clients, from the tensors that `Split.adapted` names."""

    def adapt(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """Learn from the replies of a turn; nothing that a member has may change.

        Args:
            round_number: of the turn.
            uploads: client id -> the adapted tensors, checked.
        """


@runtime_checkable
class HasPersonalStage(Protocol):
    """A method whose clients have a stage of their own after the rounds, which another run's models may begin."""

    def start_from(self, common: Params, own: Mapping[str, Params]) -> None:
        """Start from models that another run has trained.

        Args:
            common: the shared tensors for every client; empty if each has its own.
            own: client id -> its shared tensors; empty if there is one model for all.
        """
