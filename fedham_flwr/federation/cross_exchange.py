"""The messages of cross-site evaluation, and what is looked at in the replies; a client that fails is noted once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from flwr.app import Array, Message
from flwr.serverapp import Grid

from fedham_flwr.core.errors import first_line
from fedham_flwr.core.records import Row
from fedham_flwr.core.trees import num_bytes
from fedham_flwr.federation import bounds, wire
from fedham_flwr.federation.cross_client import NUMBER
from fedham_flwr.federation.direct import HandsOver
from fedham_flwr.federation.messages import ClientFailure, Download, Extras, Upload
from fedham_flwr.federation.replies import read_checked, sender_of
from fedham_flwr.federation.roster import order, read_reply
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.federation.stages import GIVE, Stage


class CrossRow(NamedTuple):
    """One number: a client's model on a client's test data."""

    model_of: str
    data_of: str
    metric: str
    value: float
    n: int


class CrossExchange:
    """Asks clients, and checks what they say.

    Args:
        grid: the way to the clients.
        strategy: of a run whose rounds are over.

    Attributes:
        number: of the closing round.
        direct: the clients are in this process, and are handed the values as they are.
        failures: client -> what it did first that was of no use.
        bytes: of tensors, `up` and `down`.
    """

    def __init__(self, grid: Grid, strategy: RoundStrategy) -> None:
        self._grid, self._setup, self._manifest = grid, strategy.setup, strategy.manifest
        self._timeout = strategy.settings.round_timeout
        self.number, self.direct = strategy.rounds + 1, isinstance(grid, HandsOver)
        self.failures: dict[str, str] = {}
        self.bytes = {"up": 0, "down": 0}

    def ask(self, stage: Stage, clients: Sequence[str], extras_of: Callable[[str], Extras]) -> dict[str, Upload]:
        """The good replies, by client in order; the others' faults are noted.

        Args:
            stage: of the messages.
            clients: ids.
            extras_of: what each is sent.
        """
        task, nodes, shared = self._setup.task, self._setup.roster.nodes, dict[int, Array]()
        messages, senders = [], dict[object, str]()
        for client in filter(nodes.__contains__, clients):
            download = Download(
                self.number, {}, task.shape, task.classes, closing=True, export=task.export, training=task.training,
                keep=task.keep, extras=extras_of(client), data=task.data,
            )  # fmt: skip
            self.bytes["down"] += num_bytes(download.extras.tensors)
            content = wire.write_download(download, shared, self.direct)
            messages.append(Message(content, nodes[client], stage.message, group_id=str(self.number)))
            senders[nodes[client]] = client
        replies = list(self._grid.send_and_receive(messages, timeout=self._timeout)) if messages else []
        senders |= {m.metadata.message_id: senders[m.metadata.dst_node_id] for m in messages}
        good = self._sort(stage, senders, replies)
        for client in clients:
            if client not in good:
                self.fail(client, f"no reply (round-timeout={self._timeout:g} seconds)")
        return {client: good[client] for client in order(good)}

    def rows(self, client: str, reply: Upload, models: Sequence[str], known: Iterable[str]) -> list[CrossRow]:
        """The scores of a reply; none, and a fault noted, if they cannot be scores.

        Args:
            client: whose data were scored.
            reply: its.
            models: whose models it was sent, in order.
            known: names of the metrics.
        """
        scores = {name: tensor for name, tensor in reply.extras.items() if name != NUMBER}
        if not scores:  # it has no test samples
            return []
        found = []
        try:
            n = int(reply.extras[NUMBER])
            for name, tensor in scores.items():
                if name not in known or tensor.dtype != torch.float64 or tuple(tensor.shape) != (len(models),):
                    raise ValueError(f"{name} {tuple(tensor.shape)} is no score of {len(models)} models")
                pairs = zip(models, tensor.tolist(), strict=True)
                found += [CrossRow(model, client, name, value, n) for model, value in pairs if math.isfinite(value)]
            told = (Row(self.number, client, "test", "personal", "after", r.metric, r.value, r.n) for r in found)
            bounds.check_report(dataclasses.replace(reply, params={}, extras={}, rows=tuple(told)))
        except (KeyError, ValueError, RuntimeError) as error:
            self.fail(client, first_line(error))
            return []
        return found

    def fail(self, client: str, why: str) -> None:
        """Note a fault of a client's; its first one counts."""
        self.failures.setdefault(client, why)

    def _sort(self, stage: Stage, senders: Mapping[object, str], replies: Iterable[Message]) -> dict[str, Upload]:
        good: dict[str, Upload] = {}
        for reply in replies:
            client = sender_of(dict(senders), reply)
            if client is None:
                continue
            try:
                good[client] = self._checked(stage, client, read_checked(read_reply(reply), self.number))
            except KeyError as error:
                self.fail(client, f"the reply lacks {error}")
            except (ClientFailure, ValueError, TypeError) as error:
                self.fail(client, first_line(error))
        return good

    def _checked(self, stage: Stage, client: str, upload: Upload) -> Upload:
        if upload.client != client:
            raise ValueError(f"the reply of client {client} says that it comes from {upload.client!r}")
        self._manifest.check(upload.params, self._manifest.names() if stage is GIVE else ())
        bounds.check_size(upload.params)
        bounds.check_report(upload)
        self.bytes["up"] += num_bytes(upload.params) + num_bytes(upload.extras)
        return upload
