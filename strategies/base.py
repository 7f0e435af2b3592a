"""The server half that every method shares: messages, the error policy, and the round loop.

A method says what each client of a round starts from (`plan`) and what becomes of their replies (`merge`), in tensors.
This file turns that into Flower's `configure_*` and `aggregate_*`.
"""

from __future__ import annotations

import logging
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedham_flwr import wire
from fedham_flwr.config import Settings
from fedham_flwr.errors import UserError
from fedham_flwr.mixing import MixingWeights
from fedham_flwr.parameters import LayerGroup, Manifest, Params, num_bytes
from fedham_flwr.results import Failure, RoundRecord, Row
from fedham_flwr.roster import Roster, cohort, first_line, order, read_reply

log = logging.getLogger("fedham_flwr")

Recorder = Callable[[RoundRecord, Sequence[Row], MixingWeights | None], None]
"""Called after every exchange with the clients, with what it brought and how the clients' models had been mixed."""


@dataclass(frozen=True)
class Task:
    """What all clients of a run are told alike.

    Attributes:
        shape: (channels, height, width) of one sample.
        classes: number of classes.
        export: folder for the personal models at the end; empty for none.
    """

    shape: tuple[int, ...]
    classes: int
    export: str = ""


class Exchange(NamedTuple):
    """The messages of one exchange on their way: when they were made, for whom, and how many bytes."""

    kind: str
    round: int
    began: float
    clients: tuple[str, ...]
    bytes_down: int
    restored: tuple[str, ...] = ()  # those that had lost their state and were asked again


class RoundStrategy(Strategy):
    """A method's server half.

    Args:
        settings: the run's.
        manifest: the model's.
        initial: the first tensors of every group of the model.
        task: what the clients are told.
        roster: the clients; found by a query when it is empty.
        recorder: what to do with the results of an exchange.

    Attributes:
        shared_names: tensors that clients send after training; all others are personal.
        trained: clients whose upload this process has merged.
        stateless: clients that said that they had lost their state, and have not trained since.
    """

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
        personal = set(self.personal_tensors())
        self.shared_names = tuple(name for name in manifest.names() if name not in personal)
        self.stateless: set[str] = set()
        self._recorder = recorder or (lambda _record, _rows, _weights: None)
        self.trained: set[str] = set()
        self._exchange = Exchange("", 0, 0.0, (), 0)
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

    def enrol(self, clients: Sequence[str]) -> None:
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

    @abstractmethod
    def merge(self, round_number: int, uploads: Mapping[str, wire.Upload]) -> None:
        """Learn from the replies of a round.

        Args:
            round_number: the round.
            uploads: client id -> its checked reply, in the order of ids; at least one.
        """

    def mixing_weights(self, round_number: int, clients: Sequence[str]) -> MixingWeights | None:
        """How the models that `plan` gives are mixed from those of all clients; None for a method without a mixture."""
        return None

    @abstractmethod
    def state_dict(self) -> Params:
        """The server's whole state as named tensors."""

    @abstractmethod
    def load_state_dict(self, state: Params) -> None:
        """The inverse of `state_dict`."""

    # ---- the loop ------------------------------------------------------------------------------------------------

    def run(self, grid: Grid) -> None:
        """All rounds, the evaluations between them, and the closing one of every client.

        Args:
            grid: the way to the clients.

        Raises:
            UserError: too few clients, or too few good replies in a round.
        """
        nothing, settings = ArrayRecord(), self.settings
        for number in range(1, settings.num_server_rounds + 1):
            self._learn(number, self._ask(grid, self.configure_train(number, nothing, ConfigRecord(), grid)))
            if number % settings.evaluate_every == 0:
                self._evaluate(grid, number)
        self._evaluate(grid, settings.num_server_rounds + 1)

    def _evaluate(self, grid: Grid, number: int) -> None:
        if messages := list(self.configure_evaluate(number, ArrayRecord(), ConfigRecord(), grid)):
            self.aggregate_evaluate(number, self._ask(grid, messages))

    def _ask(self, grid: Grid, messages: Iterable[Message]) -> list[Message]:
        """Send the messages of the exchange and wait; a client that lost its state gets everything and a second try."""
        timeout = self.settings.round_timeout
        replies = list(grid.send_and_receive(messages, timeout=timeout))
        lost = {client: reply for reply in replies if (client := self._lost(reply))}
        if not lost:
            return replies
        log.warning("without their state, and sent everything: clients %s", ", ".join(order(lost)))
        exchange, self.stateless = self._exchange, self.stateless | lost.keys()
        again, down = self._write(exchange.kind, exchange.round, order(lost))
        self._exchange = exchange._replace(bytes_down=exchange.bytes_down + down, restored=order(lost))
        good = [reply for reply in replies if reply not in lost.values()]
        return good + list(grid.send_and_receive(again, timeout=timeout))

    def _lost(self, reply: Message) -> str:
        """The client that a reply is from, if it says that its state is lost; else empty."""
        if reply.has_error() or not wire.says_lost(reply.content):
            return ""
        return next((c for c in self._exchange.clients if self.roster.nodes.get(c) == reply.metadata.src_node_id), "")

    # ---- Flower's Strategy ---------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """A train message for each client of the round's cohort. `arrays` and `config` are not used.

        Raises:
            UserError: the cohort is smaller than `min-replies`.
        """
        everyone = self._present(grid)
        chosen = cohort(self.settings.seed, server_round, everyone, self.settings.fraction_train)
        if len(chosen) < self.settings.min_replies:
            raise UserError(
                f"min-replies={self.settings.min_replies} can never be reached: round {server_round} has a cohort of "
                f"{len(chosen)} (fraction-train={self.settings.fraction_train:g} of {len(everyone)} clients)"
            )
        return self._messages(MessageType.TRAIN, server_round, chosen)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies, merge those that pass, and record all. Returns the server's state.

        Raises:
            UserError: fewer good replies than `min-replies`.
        """
        self._learn(server_round, replies)
        return wire.tensors_record(self.state_dict()), None

    def _learn(self, server_round: int, replies: Iterable[Message]) -> None:
        uploads = self._receive(server_round, replies, self.shared_names)
        self.merge(server_round, uploads)
        self.trained |= uploads.keys()
        self.stateless -= uploads.keys()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """An evaluate message for each client that the round has not scored yet: all of them after the last round."""
        everyone = self._present(grid)
        closing = server_round > self.settings.num_server_rounds
        scored = set() if closing else set(self._exchange.clients)
        return self._messages(MessageType.EVALUATE, server_round, tuple(c for c in everyone if c not in scored))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Check and record the scores.

        Raises:
            UserError: fewer good replies than `min-replies`.
        """
        self._receive(server_round, replies, ())
        return None

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

    # ---- messages and the error policy -----------------------------------------------------------------------------

    def _present(self, grid: Grid) -> tuple[str, ...]:
        settings, roster = self.settings, self.roster
        if roster.nodes:
            roster.refresh(grid, settings.round_timeout)
        else:
            roster.discover(grid, settings.min_clients, settings.client_timeout, settings.round_timeout)
        everyone = order(roster.nodes)
        self.enrol(everyone)
        return everyone

    def _messages(self, kind: str, number: int, clients: tuple[str, ...]) -> list[Message]:
        """The messages of a new exchange."""
        began = time.perf_counter()
        messages, down = self._write(kind, number, clients)
        self._exchange = Exchange(kind, number, began, clients, down)
        return messages

    def _write(self, kind: str, number: int, clients: tuple[str, ...]) -> tuple[list[Message], int]:
        """A message for each client, and the bytes of their tensors."""
        down, messages = 0, []
        closing = number > self.settings.num_server_rounds
        plan = self.plan(number, clients) if clients else {}  # everyone may have been scored already
        serialised = {key: wire.arrays(params) for key, params in {id(p): p for p in plan.values()}.items()}
        for client, params in plan.items():
            download = wire.Download(
                round=number,
                params=params,
                shape=self.task.shape,
                classes=self.task.classes,
                has_trained=client in self.trained,
                closing=closing,
                export=self.task.export if closing else "",
            )
            down += num_bytes(params)
            content = wire.write_download(download, serialised[id(params)])
            messages.append(Message(content, self.roster.nodes[client], kind, group_id=str(number)))
        return messages, down

    def _receive(self, number: int, replies: Iterable[Message], names: Sequence[str]) -> dict[str, wire.Upload]:
        arrived = time.perf_counter()
        kind, _, began, clients, down, restored = self._exchange
        asked = {self.roster.nodes[client]: client for client in clients if client in self.roster.nodes}
        good: dict[str, wire.Upload] = {}
        failures: dict[str, str] = {}
        for reply in replies:
            client = asked.get(reply.metadata.src_node_id)
            if client is None:
                why = reply.error.reason if reply.has_error() else "it was not asked"
                log.warning("a reply from node %s is ignored: %s", reply.metadata.src_node_id, why)
                continue
            try:
                good[client] = self._checked(client, read_reply(reply), number, names)
            except KeyError as error:
                failures[client] = f"the reply lacks {error}"
            except (wire.ClientFailure, ValueError, TypeError) as error:
                failures[client] = first_line(str(error))
                if isinstance(error, wire.ClientFailure) and error.lost:
                    self.stateless.add(client)
        for client in set(clients) - good.keys() - failures.keys():
            failures[client] = f"no reply (round-timeout={self.settings.round_timeout:g} seconds)"
        uploads = {client: good[client] for client in order(good)}
        record = RoundRecord(
            round=number,
            kind=kind,
            cohort=clients,
            replies=len(uploads),
            failures=tuple(Failure(number, kind, client, failures[client]) for client in order(failures)),
            seconds=_seconds(began, arrived, uploads.values()),
            bytes_up=sum(num_bytes(upload.params) for upload in uploads.values()),
            bytes_down=down,
            restored=restored,
        )
        rows = [row for upload in uploads.values() for row in upload.rows]
        self._recorder(record, rows, self.mixing_weights(number, clients))
        self._enough(number, kind, len(uploads), record.failures)
        return uploads

    def _checked(self, client: str, content: RecordDict, number: int, names: Sequence[str]) -> wire.Upload:
        upload = wire.read_upload(content, number)
        if upload.client != client:
            raise ValueError(f"the reply of client {client} says that it comes from {upload.client!r}")
        self.manifest.check(upload.params, names)
        if bad := [row for row in upload.rows if not math.isfinite(row.value)]:
            raise ValueError(f"the score {bad[0].metric} on {bad[0].split} is {bad[0].value}")
        return upload

    def _enough(self, number: int, kind: str, good: int, failures: Sequence[Failure]) -> None:
        asked = good + len(failures)
        # An evaluation may ask fewer clients than a round trains.
        wanted = min(self.settings.min_replies, asked) or math.ceil(asked / 2)
        if good < wanted:
            raise UserError(
                f"round {number}: {good} of {asked} clients gave a good reply to {kind}, and at least {wanted} are "
                f"wanted (min-replies={self.settings.min_replies}); the first error is client {failures[0].client}'s: "
                f"{failures[0].error}"
            )


def _part(group: LayerGroup, chosen: set[str]) -> str:
    """A layer group's name, and what of it is meant if it is not all of it."""
    if chosen >= set(group.names):
        return group.name
    return f"{group.name}'s {'parameters' if chosen & set(group.parameters) else 'running statistics'}"


def _seconds(began: float, arrived: float, uploads: Iterable[wire.Upload]) -> dict[str, float]:
    """Wall clock of the exchange, and of the clients' work summed over them, by purpose."""
    total: dict[str, float] = {"exchange": arrived - began, "check": time.perf_counter() - arrived}
    for upload in uploads:
        for purpose, seconds in upload.seconds.items():
            total[f"clients-{purpose}"] = total.get(f"clients-{purpose}", 0.0) + seconds
    return total
