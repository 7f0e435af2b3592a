"""One exchange with the clients: the messages, and the error policy for the replies. It knows no method."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from flwr.app import Array, Message, Metadata, RecordDict
from flwr.serverapp import Grid

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.core.methods import Split
from fedham_flwr.core.parameters import Manifest, Params
from fedham_flwr.core.records import Failure, MixingWeights, RoundRecord
from fedham_flwr.core.trees import num_bytes
from fedham_flwr.federation import bounds, wire
from fedham_flwr.federation.messages import ClientFailure, Download, Upload
from fedham_flwr.federation.progress import Plan, Recorder, RunProgress, Sent, Task
from fedham_flwr.federation.replies import read_checked, seconds_of, sender_of
from fedham_flwr.federation.roster import Roster, order, read_reply
from fedham_flwr.federation.stages import EVALUATE, TRAIN, Stage
from fedham_flwr.run_settings import Settings

log = logging.getLogger("fedham_flwr")
AT_ONCE = 16
"""Clients whose starts are made once more at a time, to measure updates from: each takes the memory of a model."""


Check = Callable[[str, str, Params], None]
"""Refuses, by a ValueError, what a client sent along: of the stage's name, the client and its extra tensors."""
Weights = Callable[[Mapping[str, Upload]], MixingWeights | None]
"""The mixing weights of an exchange, of its good replies."""


class Exchange:
    """Makes the messages of an exchange, sends them, checks what comes back and records it.

    Args:
        settings: the run's.
        manifest: the model's.
        split: what is shared.
        task: what the clients are told.
        roster: the clients.
        progress: who has trained, and who lost its state.
        recorder: what is told of each exchange; None for nobody.
        check: of what clients send along; None if they may send nothing.

    Attributes:
        sent: the exchange in progress.
    """

    def __init__(
        self,
        settings: Settings,
        manifest: Manifest,
        split: Split,
        task: Task,
        roster: Roster,
        progress: RunProgress,
        recorder: Recorder | None,
        check: Check | None,
    ) -> None:
        self._settings, self._manifest, self._task = settings, manifest, task
        self._roster, self._progress, self._recorder, self._check = roster, progress, recorder, check
        self._names: Mapping[str, tuple[str, ...]] = {"shared": split.shared, "adapted": split.adapted, "none": ()}
        self._messages: dict[str, Metadata] = {}  # of each client's last one, which has an id once it is pushed
        self.sent = Sent(TRAIN, 0, 0.0, (), lambda _: {}, False)

    def write(
        self, stage: Stage, number: int, clients: Sequence[str], plan: Plan, closing: bool, direct: bool = False
    ) -> list[Message]:
        """The messages of a new exchange.

        Args:
            stage: its kind.
            number: the round.
            clients: ids, in order.
            plan: what they start from, or are asked.
            closing: the rounds are over.
            direct: the clients are in this process, and are handed the values as they are.
        """
        self.sent = Sent(stage, number, time.perf_counter(), tuple(clients), plan, closing, direct)
        return self._write(clients)

    def ask(self, grid: Grid, messages: Iterable[Message]) -> list[Message]:
        """Send the messages and wait; a client that lost its state gets everything and a second try."""
        timeout = self._settings.round_timeout
        replies = list(grid.send_and_receive(messages, timeout=timeout))
        says = [reply for reply in replies if not reply.has_error() and wire.says_lost(reply.content)]
        senders = self._senders() if says else {}
        lost = {senders[node]: reply for reply in says if (node := reply.metadata.src_node_id) in senders}
        if not lost:
            return replies
        log.warning("without their state, and sent everything: clients %s", ", ".join(order(lost)))
        self._progress.stateless |= lost.keys()
        self.sent = self.sent._replace(restored=order(lost))
        again = self._write(order(lost))
        good = [reply for reply in replies if reply not in lost.values()]
        return good + list(grid.send_and_receive(again, timeout=timeout))

    def receive(self, replies: Iterable[Message], weights: Weights | None = None) -> dict[str, Upload]:
        """Check the replies and record the exchange.

        Args:
            replies: as they came.
            weights: how the clients' models were mixed; asked for training and evaluations.

        Returns:
            Client id -> its good reply as a method may see it, in the order of ids.

        Raises:
            UserError: fewer good replies than `min-replies`.
        """
        arrived = time.perf_counter()
        good, failures = self._sort(replies)
        uploads = {client: good[client] for client in order(good)}
        sent, stage = self.sent, self.sent.stage
        clipped = self._clip(uploads) if stage.sends != "none" and self._settings.clip_norm else ()
        record = RoundRecord(
            round=sent.round,
            kind=stage.name,
            cohort=sent.clients,
            replies=len(uploads),
            failures=tuple(Failure(sent.round, stage.name, client, failures[client]) for client in order(failures)),
            seconds=seconds_of(sent.began, arrived, uploads.values()),
            bytes_up=sum(num_bytes(upload.params) + num_bytes(upload.extras) for upload in uploads.values()),
            bytes_down=sent.bytes_down,
            restored=sent.restored,
            restarted=tuple(client for client, upload in uploads.items() if upload.restarted),
            clipped=clipped,
            ages={client: upload.age for client, upload in uploads.items() if upload.age not in (0, 1)},
        )
        if record.restarted:
            log.warning(
                "what they had learned for themselves was lost and starts again: %s", ", ".join(record.restarted)
            )
        rows = [row._replace(population=stage.population) for upload in uploads.values() for row in upload.rows]
        uploads = {client: upload.for_method() for client, upload in uploads.items()}
        if self._recorder:
            mixed = weights(uploads) if weights and stage in (TRAIN, EVALUATE) else None
            self._recorder.record(record, rows, mixed)
        self._enough(record)
        return uploads

    def _write(self, clients: Sequence[str]) -> list[Message]:
        """A message of the exchange for each of these clients."""
        down, messages, task, sent = 0, [], self._task, self.sent
        plan = sent.plan(clients) if clients else {}  # everyone may have been scored already
        serialised: dict[int, Array] = {}
        for client, start in plan.items():
            download = Download(
                round=sent.round,
                params=start.params,
                shape=task.shape,
                classes=task.classes,
                has_trained=client in self._progress.trained,
                closing=sent.closing,
                export=task.export if sent.closing and sent.stage.planned else "",
                training=task.training,
                keep=task.keep,
                own=start.own,
                extras=start.extras,
                data=task.data,
            )
            down += num_bytes(start.params) + num_bytes(start.extras.tensors)
            content = wire.write_download(download, serialised, sent.direct)
            messages.append(Message(content, self._roster.nodes[client], sent.stage.message, group_id=str(sent.round)))
            self._messages[client] = messages[-1].metadata
        self.sent = sent._replace(bytes_down=sent.bytes_down + down)
        return messages

    def _senders(self) -> dict[object, str]:
        """The clients of this exchange, by node id and by the id of the message that each was sent."""
        nodes = self._roster.nodes
        asked = [client for client in self.sent.clients if client in nodes]
        senders: dict[object, str] = {nodes[client]: client for client in asked}
        return senders | {self._messages[client].message_id: client for client in asked}

    def _sort(self, replies: Iterable[Message]) -> tuple[dict[str, Upload], dict[str, str]]:
        """The good replies by client, and why the others are none."""
        senders = self._senders()
        good: dict[str, Upload] = {}
        failures: dict[str, str] = {}
        for reply in replies:
            client = sender_of(senders, reply)
            if client is None:
                why = reply.error.reason if reply.has_error() else "it was not asked"
                log.warning("a reply from node %s is ignored: %s", reply.metadata.src_node_id, why)
                continue
            try:
                good[client] = self._checked(client, read_reply(reply))
            except KeyError as error:
                failures[client] = f"the reply lacks {error}"
            except (ClientFailure, ValueError, TypeError) as error:
                failures[client] = first_line(error)
                if isinstance(error, ClientFailure) and error.lost:
                    self._progress.stateless.add(client)
        for client in set(self.sent.clients) - good.keys() - failures.keys():
            failures[client] = f"no reply (round-timeout={self._settings.round_timeout:g} seconds)"
        return good, failures

    def _checked(self, client: str, content: RecordDict) -> Upload:
        upload = read_checked(content, self.sent.round)
        if upload.client != client:
            raise ValueError(f"the reply of client {client} says that it comes from {upload.client!r}")
        sized = bounds.well_sized(upload.params)
        self._manifest.check(upload.params, self._names[self.sent.stage.sends], finite=sized)
        if self._check:
            self._check(self.sent.stage.name, client, upload.extras)
        elif upload.extras:
            raise ValueError(f"tensors are not wanted: {sorted(upload.extras)}")
        bounds.check_size(upload.params, sized)
        bounds.check_report(upload)
        return bounds.capped(upload, self._settings.max_examples_per_client)

    def _clip(self, uploads: dict[str, Upload]) -> tuple[str, ...]:
        """Shorten the updates that are longer than `clip-norm`, in place; whose they were."""
        most, clients, clipped = self._settings.clip_norm, tuple(uploads), []
        for at in range(0, len(clients), AT_ONCE):
            for client, start in self.sent.plan(clients[at : at + AT_ONCE]).items():
                params = bounds.clip(uploads[client].params, {**start.left_out, **start.params}, most)
                if params is not uploads[client].params:
                    uploads[client] = dataclasses.replace(uploads[client], params=params)
                    clipped.append(client)
        if clipped:
            log.info("updates longer than clip-norm=%g, and shortened to it: clients %s", most, ", ".join(clipped))
        return tuple(clipped)

    def _enough(self, record: RoundRecord) -> None:
        asked = record.replies + len(record.failures)
        least = self._settings.min_replies
        # An evaluation may ask fewer clients than a round trains.
        wanted = min(least, asked) or math.ceil(asked / 2)
        if record.replies < wanted:
            raise UserError(
                f"round {record.round}: {record.replies} of {asked} clients gave a good reply to {record.kind}, and at "
                f"least {wanted} are wanted (min-replies={least}); the first error is client "
                f"{record.failures[0].client}'s: {record.failures[0].error}"
            )
