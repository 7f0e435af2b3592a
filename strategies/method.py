"""What a method's server half says of itself, in tensors: the contract that `base.RoundStrategy` carries out.

A method says what each client of a round starts from (`plan`) and what becomes of their replies (`merge`). One that
needs more from its clients than a model asks them before (`questions`), or sends more along (`besides`).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import LayerGroup, Manifest, Params
from fedham_flwr.core.records import MixingWeights, RoundRecord, Row
from fedham_flwr.federation import wire
from fedham_flwr.federation.roster import Roster, hold_out
from fedham_flwr.settings import Settings

log = logging.getLogger("fedham_flwr")


class Recorder(Protocol):
    """What a strategy tells of its progress."""

    def record(self, record: RoundRecord, rows: Sequence[Row], weights: MixingWeights | None) -> None:
        """Called after every exchange, with what it brought and how the clients' models had been mixed."""

    def checkpoint(self, round_number: int) -> None:
        """Called when a round is done that the run could go on from later."""


@dataclass(frozen=True)
class Task:
    """What all clients of a run are told alike.

    Attributes:
        shape: of one sample: (channels, height, width) of an image, (T,) of a text.
        classes: number of classes.
        export: folder for the personal models at the end; empty for none.
        training: name of the training, by which clients find what they keep.
        keep: folder in which the clients of a simulation keep it; empty for none.
    """

    shape: tuple[int, ...]
    classes: int
    export: str = ""
    training: str = ""
    keep: str = ""


class Method(ABC):
    """A method's server half, as far as it differs from the others.

    Args:
        settings: the run's.
        manifest: the model's.
        initial: the first tensors of every group of the model.
        task: what the clients are told.
        roster: the clients; found by a query when it is empty.
        recorder: what is told of each exchange; nobody by default.

    Attributes:
        personal_stage: after the last round each client trains a model of its own from what it is sent, in place of the
            closing evaluation.
        shared_names: tensors that clients send after training; all others are personal.
        novel: clients that never train, and adapt after the last round.
        done: the last round that is behind it.
        trained: clients whose upload has been merged.
        stateless: clients that said that they had lost their state, and have not trained since.
    """

    personal_stage: ClassVar[bool] = False

    def __init__(
        self,
        settings: Settings,
        manifest: Manifest,
        initial: Params,
        task: Task,
        roster: Roster | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.settings = settings
        self.manifest = manifest
        self.task = task
        self.roster = roster or Roster()
        self.novel: tuple[str, ...] = ()
        if self.roster.nodes:
            self.hold_out()
        personal = set(self.personal_tensors())
        self.shared_names = tuple(name for name in manifest.names() if name not in personal)
        self.stateless: set[str] = set()
        self.done = 0
        self._recorder = recorder
        self.trained: set[str] = set()
        self.begin({name: initial[name] for name in self.shared_names})

    # ---- what a method says --------------------------------------------------------------------------------------

    @abstractmethod
    def personal_groups(self) -> Sequence[str]:
        """Names of the layer groups that stay with the client."""

    def personal_tensors(self) -> Sequence[str]:
        """Names of the tensors that stay with the client; by default those of the personal groups."""
        return self.manifest.names(self.personal_groups())

    @abstractmethod
    def begin(self, shared: Params) -> None:
        """Set the server's state before the first round.

        Args:
            shared: the first tensors of the shared names.
        """

    @property
    def rounds(self) -> int:
        """How many rounds to train; by default as many as the settings say."""
        return self.settings.num_server_rounds

    def start_from(self, common: Params, own: Mapping[str, Params]) -> None:
        """Start from models that another run has trained, before the first round.

        Args:
            common: the shared tensors for every client; empty if each has its own.
            own: client id -> its shared tensors; empty if there is one model for all.

        Raises:
            UserError: this method cannot.
        """
        raise UserError(f'resume="{self.settings.resume}": strategy={self.settings.strategy} starts from nothing else')

    def enrol(self, clients: Sequence[str]) -> None:  # noqa: B027  # nothing by default
        """Take note of who is there, before each round: new clients may have come. Nothing by default.

        Args:
            clients: all ids, in order.
        """

    @abstractmethod
    def plan(self, round_number: int, clients: Sequence[str]) -> dict[str, Params]:
        """The shared tensors that each client starts the round from. Asked for evaluations too: it changes nothing.

        Tensors may be left out if the method's client half then takes its own.

        Args:
            round_number: the round, from 1.
            clients: ids, in order.
        """

    def references(self, round_number: int, clients: Sequence[str]) -> dict[str, Params]:
        """The shared tensors that clients of the round in progress started from: by default what `plan` sent them.

        An update is measured from there (`clip-norm`), before it is merged.

        Args:
            round_number: the round.
            clients: ids, in order.
        """
        return self.plan(round_number, clients)

    @abstractmethod
    def merge(self, round_number: int, uploads: Mapping[str, wire.Upload]) -> None:
        """Learn from the replies of a round.

        Args:
            round_number: the round.
            uploads: client id -> its checked reply, in the order of ids; at least one.
        """

    def questions(self, round_number: int, clients: Sequence[str]) -> dict[str, wire.Besides]:
        """What each client must be asked before `plan` can be made; nothing by default, which costs no exchange.

        A client that gives no good answer is left out of the round.

        Args:
            round_number: the round.
            clients: ids, in order.
        """
        return {}

    def answered(self, round_number: int, replies: Mapping[str, wire.Upload]) -> None:  # noqa: B027  # as above
        """Take the answers to `questions`, of the clients that gave a good one.

        Args:
            round_number: the round.
            replies: client id -> its reply, in the order of ids.
        """

    def besides(self, round_number: int, clients: Sequence[str]) -> dict[str, wire.Besides]:
        """What is sent along with the model, for training and for evaluations; nothing by default.

        Args:
            round_number: the round.
            clients: ids, in order.
        """
        return {}

    def check_besides(self, kind: str, client: str, tensors: Params) -> None:
        """Refuse what a client sent along; by default anything.

        Args:
            kind: of the exchange: query, train or evaluate.
            client: the sender.
            tensors: by the method's names.

        Raises:
            ValueError: it is not what the method wants.
        """
        if tensors:
            raise ValueError(f"tensors are not wanted: {sorted(tensors)}")

    def mixing_weights(
        self, round_number: int, clients: Sequence[str], uploads: Mapping[str, wire.Upload]
    ) -> MixingWeights | None:
        """How the clients' models of a round were mixed from those of all clients; None for a method without a mixture.

        Args:
            round_number: the round.
            clients: those that were asked.
            uploads: the good replies, not merged yet.
        """
        return None

    def adapted_tensors(self) -> Sequence[str]:
        """Names of the tensors that novel clients train for the server to learn from, in `novel-turns` turns.

        None by default: they then adapt alone, from what the method gives a client that it does not know.
        """
        return ()

    def adapt(self, round_number: int, uploads: Mapping[str, wire.Upload]) -> None:  # noqa: B027  # none by default
        """Learn for novel clients from the replies of a turn; nothing that a member has may change.

        Args:
            round_number: of the turn.
            uploads: client id -> the adapted tensors, checked.
        """

    @abstractmethod
    def state_dict(self) -> Params:
        """The server's whole state as named tensors."""

    @abstractmethod
    def load_state_dict(self, state: Params) -> None:
        """The inverse of `state_dict`."""

    def hold_out(self) -> None:
        """Choose the novel clients among those that are there.

        Raises:
            UserError: none would be left to train.
        """
        self.novel = hold_out(self.settings.seed, self.roster.nodes, self.settings.novel_clients)

    # ---- what is said of it ------------------------------------------------------------------------------------------

    def summary(self) -> None:
        """Log what is shared and what is personal."""
        log.info("%s", self.describe())

    def describe(self) -> str:
        """What is shared and what is personal, in layer groups and scalars: one sentence."""
        parts, shared = [], set(self.shared_names)
        for what, chosen in (("shared", shared), ("personal", set(self.manifest.names()) - shared)):
            groups = [_part(group, chosen) for group in self.manifest.groups if chosen & set(group.names)]
            scalars = sum(torch.Size(self.manifest.shapes[name]).numel() for name in chosen)
            parts.append(f"{what}: {', '.join(groups) or 'nothing'}" + (f" ({scalars:,} scalars)" if scalars else ""))
        return f"{self.settings.strategy}  {'; '.join(parts)}"


def _part(group: LayerGroup, chosen: set[str]) -> str:
    """A layer group's name, and what of it is meant if it is not all of it."""
    if chosen >= set(group.names):
        return group.name
    return f"{group.name}'s {'parameters' if chosen & set(group.parameters) else 'running statistics'}"
