"""Replies as they come in: read whatever they hold, whose they are, and what they took."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from flwr.app import Message, RecordDict

from fedham_flwr.core.errors import UnwritableError
from fedham_flwr.federation import wire
from fedham_flwr.federation.messages import ClientFailure, Upload


def read_checked(content: RecordDict, number: int) -> Upload:
    """A client's reply; whatever is wrong with it, it is the fault of this reply alone.

    Raises:
        UserError: it says what ends the run.
    """
    try:
        return wire.read_upload(content, number)
    except ClientFailure as error:
        if error.ends and error.simulated:
            raise UnwritableError(str(error)) from error
        raise
    except (KeyError, ValueError, TypeError):
        raise
    except Exception as error:  # of NumPy, which is given any bytes: EOFError, BadZipFile, MemoryError, ...
        raise ValueError(f"the reply cannot be read: {type(error).__name__}: {error}") from error


def seconds_of(began: float, arrived: float, uploads: Iterable[Upload]) -> dict[str, float]:
    """Wall clock of the exchange, and of the clients' work summed over them, by purpose."""
    total: dict[str, float] = {"exchange": arrived - began, "check": time.perf_counter() - arrived}
    for upload in uploads:
        for purpose, seconds in upload.seconds.items():
            total[f"clients-{purpose}"] = total.get(f"clients-{purpose}", 0.0) + seconds
    return total


def sender_of(senders: Mapping[object, str], reply: Message) -> str | None:
    """Whose a reply is. For a node that has gone Flower answers itself, and only the message tells for which."""
    told = reply.metadata
    return senders.get(told.src_node_id) or (senders.get(told.reply_to_message_id) if reply.has_error() else None)
