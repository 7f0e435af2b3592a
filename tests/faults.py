"""Clients that misbehave: apps in which one client's replies are changed on their way to the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp

from fedham_flwr.client_app import make_client_app
from fedham_flwr.federation.record_values import tensors as read_tensors
from fedham_flwr.settings import Value


def tampered(change: Callable[[Message, Message], Message | None], client: int, kind: str = "train") -> Any:
    """Makes a client app in which one client's replies of a kind are changed (or replaced) by `change`."""

    def make(given: dict[str, Value]) -> ClientApp:
        honest = make_client_app(given)

        def app(message: Message, context: Context) -> Message:
            reply = honest(message, context)
            if context.node_config["partition-id"] != client or message.metadata.message_type != kind:
                return reply
            return change(message, reply) or reply

        return app  # type: ignore[return-value]

    return make


def break_app(_message: Message, _reply: Message) -> Message:
    raise RuntimeError("killed\nin mid-round")


def with_tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Message, Message], None]:
    def tamper(_message: Message, reply: Message) -> None:
        tensors = read_tensors(reply.content.array_records["tensors"])
        change(tensors)
        reply.content["tensors"] = ArrayRecord({n: Array(t.numpy()) for n, t in tensors.items()})

    return tamper


def with_examples(value: int | float) -> Callable[[Message, Message], None]:
    def tamper(_message: Message, reply: Message) -> None:
        reply.content["report"] = MetricRecord({**reply.content.metric_records["report"], "examples": value})

    return tamper


def impersonate(_message: Message, reply: Message) -> None:
    reply.content["sender"] = ConfigRecord({"client-id": "0"})


def strip(_message: Message, reply: Message) -> None:
    del reply.content["report"]
