"""The rounds of every method: Flower's Strategy, in which a method's server half fills in `plan` and `merge`."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedham_flwr.core.methods import describe_split
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.answers import starts_of
from fedham_flwr.federation.contract import AdaptsNovel, Asks, ChecksExtras, ReportsMixing, Setup, Start
from fedham_flwr.federation.direct import HandsOver, states_written
from fedham_flwr.federation.exchange import Exchange
from fedham_flwr.federation.messages import Upload
from fedham_flwr.federation.record_values import tensors_record
from fedham_flwr.federation.roster import cohort, hold_out, order
from fedham_flwr.federation.stages import ADAPT, ADAPTED, EVALUATE, MEET, PERSONAL, QUERY, TRAIN, Stage

log = logging.getLogger("fedham_flwr")


class RoundStrategy(Strategy, ABC):
    """A method's server half, and the rounds that every method has in common.

    A subclass sets all of its fields in `__init__`, which it begins with `super().__init__(setup)`.

    Args:
        setup: the run's.

    Attributes:
        setup, settings: the run's.
        own: the method's own settings, an instance of the dataclass that its `Method` names.
        manifest: the model's.
        split: which tensors are shared and which personal.
        first: the first tensors of the shared names.
        progress: how far the run is.
        rounds: how many rounds there are; none if a personal stage starts from a model that is there already.
    """

    own: Any

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.settings, self.own = setup.settings, setup.settings.own
        self.manifest, self.split = setup.manifest, setup.method.split_at(setup.manifest, setup.initial, self.settings)
        self.first: Params = {name: setup.initial[name] for name in self.split.shared}
        self.progress = setup.progress
        self._drawn: dict[int, tuple[str, ...]] = {}  # cohorts of rounds that have been evaluated
        self.rounds = 0 if setup.method.personal_stage and self.settings.resume else self.settings.num_server_rounds
        check = self.check_extras if isinstance(self, ChecksExtras) else None
        self._exchange = Exchange(
            self.settings, setup.manifest, self.split, setup.task, setup.roster, setup.progress, setup.recorder, check
        )
        if setup.roster.nodes and not self.progress.done:
            self.progress.novel = hold_out(self.settings.seed_of_data, setup.roster.nodes, self.settings.novel_clients)

    # ---- what a method says ----------------------------------------------------------------------------------------

    @abstractmethod
    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """What each client starts the round from. Asked for evaluations too, and again: it changes nothing.

        Args:
            round_number: the round, from 1.
            clients: ids, in order.
        """

    @abstractmethod
    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """Learn from the replies of a round.

        Args:
            round_number: the round.
            uploads: client id -> its checked reply, in the order of ids; at least one.
        """

    @abstractmethod
    def state_dict(self) -> Params:
        """The server's whole state as named tensors."""

    @abstractmethod
    def load_state_dict(self, state: Params) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: it is not of this model and these settings.
        """

    def add_clients(self, clients: Sequence[str]) -> None:  # nothing by default
        """Take note of who is there, before each exchange: new clients may have come. Nothing by default.

        Args:
            clients: all ids, in order.
        """

    def describe(self) -> str:
        """What is shared and what is personal, in layer groups and scalars: one sentence."""
        return f"{self.settings.strategy}  {describe_split(self.manifest, self.split)}"

    # ---- the rounds ------------------------------------------------------------------------------------------------

    def run(self, grid: Grid) -> None:
        """All rounds that are not done, with an evaluation of those whom one does not train before it; the closing one.

        Raises:
            UserError: too few clients, or too few good replies in a round.
        """
        self._told(self.progress.done)
        while self.progress.done < self.rounds:
            number = self.progress.done + 1
            if number % self.settings.evaluate_every == 0:
                self._evaluate(grid, number)
            self._merge(number, self._exchange.ask(grid, self.configure_train(number, None, None, grid)))
            self.progress.done = number
            try:
                self._told(number)
            finally:
                self._checkpoint(grid)
        closing = self.rounds + 1
        if self.setup.method.personal_stage:
            self._exchange_with(grid, PERSONAL, closing, self._present(grid))
        else:
            self._evaluate(grid, closing)
        if self.progress.novel:
            self._adapt(grid, closing)
        if isinstance(grid, HandsOver):
            grid.write_states()

    def _told(self, number: int) -> None:
        """Let the recorder make a round the last one. It also is if the recorder fails, and so has its checkpoint."""
        recorder, rounds, self.rounds = self.setup.recorder, self.rounds, number
        if not (recorder and recorder.round_done(number == rounds)):
            self.rounds = rounds

    def _adapt(self, grid: Grid, number: int) -> None:
        """Let the novel clients adapt, and score them before and after."""
        self._present(grid)
        clients = tuple(client for client in self.progress.novel if client in self.setup.roster.nodes)
        self.add_clients(clients)
        self._exchange_with(grid, MEET, number, clients)
        if not isinstance(self, AdaptsNovel) or not self.split.adapted or not clients:
            return
        for turn in range(number, number + self.settings.novel_turns):
            self.adapt(turn, self._exchange_with(grid, ADAPT, turn, clients))
        self._exchange_with(grid, ADAPTED, number, clients)

    def _evaluate(self, grid: Grid, number: int) -> None:
        if messages := list(self.configure_evaluate(number, None, None, grid)):
            self.aggregate_evaluate(number, self._exchange.ask(grid, messages))

    def _checkpoint(self, grid: Grid) -> None:
        every, done, recorder = self.settings.checkpoint_every, self.progress.done, self.setup.recorder
        if recorder and every and (done % every == 0 or done == self.rounds) and states_written(grid, done):
            recorder.checkpoint()

    def _receive(self, replies: Iterable[Message]) -> dict[str, Upload]:
        sent = self._exchange.sent
        mixing = self.mixing_weights if isinstance(self, ReportsMixing) else None
        return self._exchange.receive(replies, mixing and (lambda good: mixing(sent.round, sent.clients, good)))

    def _merge(self, number: int, replies: Iterable[Message]) -> None:
        uploads = self._receive(replies)
        self.merge(number, uploads)
        self.progress.trained |= uploads.keys()
        self.progress.stateless -= uploads.keys()

    def _exchange_with(self, grid: Grid, stage: Stage, number: int, clients: tuple[str, ...]) -> dict[str, Upload]:
        return self._receive(self._exchange.ask(grid, self._messages(grid, stage, number, clients)))

    def _messages(self, grid: Grid, stage: Stage, number: int, clients: tuple[str, ...]) -> list[Message]:
        """The messages of a new exchange, after the method has asked its clients what it must know.

        Those that give no good answer are left out: one that is gone would be waited for twice.
        """
        closing = number > self.rounds
        direct = isinstance(grid, HandsOver) and not self.settings.dp.epsilon
        if isinstance(self, Asks) and clients and (questions := self.questions(number, clients)):
            asked = order(questions)
            plan = {client: Start({}, questions[client]) for client in asked}
            messages = self._exchange.write(QUERY, number, asked, lambda _: plan, closing, direct)
            answers = self._exchange.receive(grid.send_and_receive(messages, timeout=self.settings.round_timeout))
            self.answered(number, answers)
            clients = tuple(client for client in clients if client in answers or client not in questions)
        return self._exchange.write(stage, number, clients, lambda some: starts_of(self, number, some), closing, direct)

    def _draw(self, number: int, everyone: Sequence[str]) -> tuple[str, ...]:
        """The cohort of a round."""
        settings = self.settings
        return cohort(settings.seed, number, everyone, settings.fraction_train, settings.min_replies)

    def _present(self, grid: Grid) -> tuple[str, ...]:
        """The clients that are there, without novel ones."""
        settings, roster = self.settings, self.setup.roster
        if roster.nodes:
            roster.refresh(grid, settings.round_timeout)
        else:
            roster.discover(grid, settings.min_clients, settings.client_timeout, settings.round_timeout)
            self.progress.novel = hold_out(settings.seed_of_data, roster.nodes, settings.novel_clients)
        everyone = tuple(client for client in order(roster.nodes) if client not in self.progress.novel)
        self.add_clients(everyone)
        return everyone

    # ---- Flower's Strategy -----------------------------------------------------------------------------------------

    def start(self, grid: Grid, initial_arrays: Any = None, num_rounds: int = 0, *_: Any, **__: Any) -> Result:
        """`run` under Flower's name, for `num_rounds` or, if 0, as the settings say; returns the server's state."""
        self.rounds = num_rounds or self.rounds
        self.run(grid)
        return Result(arrays=tensors_record(self.state_dict()))

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Grid) -> Iterable[Message]:
        """A train message for each client of the round's cohort. `arrays` and `config` are not used.

        Raises:
            UserError: the cohort is smaller than `min-replies`.
        """
        chosen = self._drawn.pop(server_round, ()) or self._draw(server_round, self._present(grid))
        return self._messages(grid, TRAIN, server_round, chosen)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, None]:
        """Check the replies, merge those that pass, and record all. Returns the server's state.

        Raises:
            UserError: fewer good replies than `min-replies`.
        """
        self._merge(server_round, replies)
        return tensors_record(self.state_dict()), None

    def configure_evaluate(self, server_round: int, arrays: Any, config: Any, grid: Grid) -> Iterable[Message]:
        """An evaluate message for each client that the round does not train: all of them after the last round."""
        everyone = self._present(grid)
        chosen = self._draw(server_round, everyone) if server_round <= self.rounds else ()
        self._drawn, trained = {server_round: chosen}, set(chosen)
        return self._messages(grid, EVALUATE, server_round, tuple(one for one in everyone if one not in trained))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Check and record the scores."""
        self._receive(replies)

    def summary(self) -> None:
        """Log what is shared and what is personal."""
        log.info("%s", self.describe())
