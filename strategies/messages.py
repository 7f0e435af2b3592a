"""The messages of every method's server half, and the error policy for the replies.

`method.py` says what a method must say of itself, in tensors. This file turns that into Flower's `configure_*` and
`aggregate_*`; `base.py` has the round loop that calls them.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.core.parameters import Params, num_bytes
from fedham_flwr.core.records import NOVEL as NOVEL_CLIENTS
from fedham_flwr.core.records import Failure, RoundRecord
from fedham_flwr.federation import bounds, wire
from fedham_flwr.federation.roster import cohort, order, read_reply
from strategies.method import Method

log = logging.getLogger("fedham_flwr")
QUERY = f"{MessageType.QUERY}.before"
"""Type of the message that asks a client `questions`."""
NOVEL, TURN, ADAPTED = f"{MessageType.EVALUATE}.novel", f"{MessageType.TRAIN}.novel", f"{MessageType.EVALUATE}.adapted"
"""Types of the messages to novel clients: score, and adapt alone; adapt what the server learns from; score again."""
PERSONAL = f"{MessageType.TRAIN}.personal"
"""Type of the message that ends the rounds, if clients then have a stage of their own."""
STAGES = {QUERY: "query", PERSONAL: "personal", NOVEL: "novel", TURN: "adapt", ADAPTED: "adapted"}
"""What such an exchange is called in the results."""
AT_ONCE = 16
"""Clients whose starts are made once more at a time, to measure updates from: each takes the memory of a model."""


class Exchange(NamedTuple):
    """The messages of one exchange on their way: when they were made, for whom, and how many bytes."""

    kind: str
    round: int
    began: float
    clients: tuple[str, ...]
    bytes_down: int
    restored: tuple[str, ...] = ()  # those that had lost their state and were asked again


class MessageStrategy(Method, Strategy):
    """Puts what a method says into Flower's messages, and checks what comes back."""

    _exchange = Exchange("", 0, 0.0, (), 0)

    @cached_property
    def _sent(self) -> dict[str, Metadata]:
        """Of each client's last message; it has an id once it has been pushed."""
        return {}

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
        return self._messages(grid, MessageType.TRAIN, server_round, chosen)

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
        closing = server_round > self.rounds
        scored = set() if closing else set(self._exchange.clients)
        absent = tuple(client for client in everyone if client not in scored)
        return self._messages(grid, MessageType.EVALUATE, server_round, absent)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Check and record the scores.

        Raises:
            UserError: fewer good replies than `min-replies`.
        """
        self._receive(server_round, replies, ())
        return None

    # ---- messages and the error policy -----------------------------------------------------------------------------

    def _ask(self, grid: Grid, messages: Iterable[Message]) -> list[Message]:
        """Send the messages of the exchange and wait; a client that lost its state gets everything and a second try."""
        timeout = self.settings.round_timeout
        replies = list(grid.send_and_receive(messages, timeout=timeout))
        says = [reply for reply in replies if not reply.has_error() and wire.says_lost(reply.content)]
        senders = self._senders() if says else {}
        lost = {senders[node]: reply for reply in says if (node := reply.metadata.src_node_id) in senders}
        if not lost:
            return replies
        log.warning("without their state, and sent everything: clients %s", ", ".join(order(lost)))
        exchange, self.stateless = self._exchange, self.stateless | lost.keys()
        again, down = self._write(exchange.kind, exchange.round, order(lost))
        self._exchange = exchange._replace(bytes_down=exchange.bytes_down + down, restored=order(lost))
        good = [reply for reply in replies if reply not in lost.values()]
        return good + list(grid.send_and_receive(again, timeout=timeout))

    def _senders(self) -> dict[object, str]:
        """The clients of this exchange, by node id and by the id of the message that each was sent."""
        asked = [client for client in self._exchange.clients if client in self.roster.nodes]
        nodes: dict[object, str] = {self.roster.nodes[client]: client for client in asked}
        return nodes | {self._sent[client].message_id: client for client in asked}

    def _present(self, grid: Grid) -> tuple[str, ...]:
        settings, roster = self.settings, self.roster
        if roster.nodes:
            roster.refresh(grid, settings.round_timeout)
        else:
            roster.discover(grid, settings.min_clients, settings.client_timeout, settings.round_timeout)
            self.hold_out()
        everyone = tuple(client for client in order(roster.nodes) if client not in self.novel)
        self.enrol(everyone)
        return everyone

    def _messages(self, grid: Grid, kind: str, number: int, clients: tuple[str, ...]) -> list[Message]:
        """The messages of a new exchange, after the method has asked its clients what it must know.

        Those that give no good answer are left out: one that is gone would be waited for twice.
        """
        if questions := self.questions(number, clients) if clients else {}:
            messages = self._begin(QUERY, number, order(questions), questions)
            replies = grid.send_and_receive(messages, timeout=self.settings.round_timeout)
            answers = self._receive(number, replies, ())
            self.answered(number, answers)
            clients = tuple(client for client in clients if client in answers or client not in questions)
        return self._begin(kind, number, clients)

    def _begin(
        self, kind: str, number: int, clients: tuple[str, ...], questions: Mapping[str, wire.Besides] | None = None
    ) -> list[Message]:
        began = time.perf_counter()
        messages, down = self._write(kind, number, clients, questions)
        self._exchange = Exchange(kind, number, began, clients, down)
        return messages

    def _write(
        self, kind: str, number: int, clients: tuple[str, ...], questions: Mapping[str, wire.Besides] | None = None
    ) -> tuple[list[Message], int]:
        """A message for each client, with its model or with questions, and the bytes of their tensors."""
        down, messages = 0, []
        closing = number > self.rounds
        plan: dict[str, Params] = {client: {} for client in clients}
        besides = questions or {}
        if clients and questions is None:  # everyone may have been scored already
            plan, besides = self.plan(number, clients), self.besides(number, clients)
        serialised: dict[int, Array] = {}
        for client, params in plan.items():
            download = wire.Download(
                round=number,
                params=params,
                shape=self.task.shape,
                classes=self.task.classes,
                has_trained=client in self.trained,
                closing=closing,
                export=self.task.export if closing and questions is None else "",
                training=self.task.training,
                keep=self.task.keep,
                besides=besides.get(client, wire.Besides()),
            )
            down += num_bytes(params) + num_bytes(download.besides.tensors)
            content = wire.write_download(download, serialised)
            messages.append(Message(content, self.roster.nodes[client], kind, group_id=str(number)))
            self._sent[client] = messages[-1].metadata
        return messages, down

    def _receive(self, number: int, replies: Iterable[Message], names: Sequence[str]) -> dict[str, wire.Upload]:
        arrived = time.perf_counter()
        kind, _, began, clients, down, restored = self._exchange
        stage = STAGES.get(kind, kind)
        senders = self._senders()
        good: dict[str, wire.Upload] = {}
        failures: dict[str, str] = {}
        for reply in replies:
            client = _sender(senders, reply)
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
        clipped = self._clip(number, uploads) if names and self.settings.clip_norm else ()
        record = RoundRecord(
            round=number,
            kind=stage,
            cohort=clients,
            replies=len(uploads),
            failures=tuple(Failure(number, stage, client, failures[client]) for client in order(failures)),
            seconds=_seconds(began, arrived, uploads.values()),
            bytes_up=sum(num_bytes(upload.params) + num_bytes(upload.besides) for upload in uploads.values()),
            bytes_down=down,
            restored=restored,
            restarted=tuple(client for client, upload in uploads.items() if upload.restarted),
            clipped=clipped,
            ages={client: upload.age for client, upload in uploads.items() if upload.age not in (0, 1)},
        )
        if record.restarted:
            log.warning(
                "what they had learned for themselves was lost and starts again: %s", ", ".join(record.restarted)
            )
        rows = [row for upload in uploads.values() for row in upload.rows]
        if kind in (NOVEL, ADAPTED):
            rows = [row._replace(population=NOVEL_CLIENTS) for row in rows]
        weights = None if kind in STAGES else self.mixing_weights(number, clients, uploads)
        if self._recorder:
            self._recorder.record(record, rows, weights)
        self._enough(number, record.kind, len(uploads), record.failures)
        return uploads

    def _checked(self, client: str, content: RecordDict, number: int, names: Sequence[str]) -> wire.Upload:
        upload = _read(content, number)
        if upload.client != client:
            raise ValueError(f"the reply of client {client} says that it comes from {upload.client!r}")
        self.manifest.check(upload.params, names)
        self.check_besides(STAGES.get(self._exchange.kind, self._exchange.kind), client, upload.besides)
        bounds.check_size(upload.params)
        bounds.check_report(upload)
        return bounds.capped(upload, self.settings.max_examples_per_client)

    def _clip(self, number: int, uploads: dict[str, wire.Upload]) -> tuple[str, ...]:
        """Shorten the updates that are longer than `clip-norm`, in place; whose they were."""
        most, clients, clipped = self.settings.clip_norm, tuple(uploads), []
        for at in range(0, len(clients), AT_ONCE):
            for client, start in self.references(number, clients[at : at + AT_ONCE]).items():
                params = bounds.clip(uploads[client].params, start, most)
                if params is not uploads[client].params:
                    uploads[client] = dataclasses.replace(uploads[client], params=params)
                    clipped.append(client)
        if clipped:
            log.info("updates longer than clip-norm=%g, and shortened to it: clients %s", most, ", ".join(clipped))
        return tuple(clipped)

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


def _read(content: RecordDict, number: int) -> wire.Upload:
    """A client's reply; whatever is wrong with it, it is the fault of this reply alone."""
    try:
        return wire.read_upload(content, number)
    except (wire.ClientFailure, KeyError, ValueError, TypeError):
        raise
    except Exception as error:  # of NumPy, which is given any bytes: EOFError, BadZipFile, MemoryError, ...
        raise ValueError(f"the reply cannot be read: {type(error).__name__}: {error}") from error


def _seconds(began: float, arrived: float, uploads: Iterable[wire.Upload]) -> dict[str, float]:
    """Wall clock of the exchange, and of the clients' work summed over them, by purpose."""
    total: dict[str, float] = {"exchange": arrived - began, "check": time.perf_counter() - arrived}
    for upload in uploads:
        for purpose, seconds in upload.seconds.items():
            total[f"clients-{purpose}"] = total.get(f"clients-{purpose}", 0.0) + seconds
    return total


def _sender(senders: Mapping[object, str], reply: Message) -> str | None:
    """Whose a reply is. For a node that has gone Flower answers itself, and only the message tells for which."""
    told = reply.metadata
    return senders.get(told.src_node_id) or (senders.get(told.reply_to_message_id) if reply.has_error() else None)
