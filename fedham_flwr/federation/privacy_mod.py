"""Flower's `LocalDpMod` around a client's app: clips what the client has learned, and adds noise, before it is sent.

It fails closed: what cannot be protected is not sent. The noise comes from the operating system. It is the only
randomness that is no function of the run's seed, since whoever knows the seed, as the server does, could subtract it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MessageType

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.privacy import PrivacySettings, noise
from fedham_flwr.federation import wire
from fedham_flwr.federation.bounds import VARIANCES
from fedham_flwr.run_settings import Settings

App = Callable[[Message, Context], Message]
NOTHING = 1e-15
"""An update of which no number is larger has a length of 0 in float32, by which Flower's mod would divide."""
NUDGE = 1e-6
"""Length of the update that such a one is replaced by; it is clipped, too."""


def private(settings_of: Callable[[Context], Settings]) -> Callable[[Message, Context, App], Message]:
    """The mod, which does nothing where `dp.epsilon` is 0.

    Args:
        settings_of: the run's settings.
    """

    def mod(message: Message, context: Context, app: App) -> Message:
        reply = app(message, context)
        if reply.has_error() or not any(map(len, reply.content.array_records.values())):
            return reply  # there is nothing to protect in a failure, or in scores
        settings = settings_of(context).dp
        if not settings.epsilon:
            return reply
        try:
            return protected(message, reply, context, settings)
        except UserError as error:
            return Message(wire.write_failure(str(error), "partition-id" in context.node_config), reply_to=message)

    return mod


def protected(message: Message, reply: Message, context: Context, settings: PrivacySettings) -> Message:
    """A reply with its update clipped and noise in every number of it.

    Args:
        message: what the client was sent.
        reply: what its app would send; it is changed.
        context: the client's.
        settings: the run's settings, with an epsilon.

    Raises:
        UserError: this reply cannot be protected.
    """
    from flwr.clientapp.mod import LocalDpMod

    if message.metadata.message_type != MessageType.TRAIN or set(reply.content.array_records) != {wire.TENSORS}:
        raise UserError(
            f"dp.epsilon={settings.epsilon:g} protects the model in a reply to train, and this reply to "
            f"{message.metadata.message_type} has {', '.join(reply.content.array_records)}: it is not sent"
        )
    sent, start = reply.content.array_records[wire.TENSORS], message.content.array_records[wire.TENSORS]
    for name, array in sent.items():
        if array.dtype != "float32" or not array.shape:  # Flower's mod adds no noise to an array without axes
            raise UserError(
                f"dp.epsilon={settings.epsilon:g}: {name} is {array.dtype} {tuple(array.shape)}, and only float32 "
                "arrays with at least one axis can be protected: it is not sent"
            )
    if all(name in start and _equal(array, start[name]) for name, array in sent.items()):
        first = next(iter(sent))
        sent[first] = _nudged(start[first])
    sigma = noise(settings)
    # The numbers by which the mod's own formula, which holds for small epsilons only, comes to this sigma.
    sensitivity = sigma * settings.epsilon / math.sqrt(2 * math.log(1.25 / settings.delta))
    mod = LocalDpMod(settings.clipping_norm, sensitivity, settings.epsilon, settings.delta)
    with _system_randomness(), np.errstate(over="ignore", invalid="ignore"):
        noisy = mod(message, context, lambda *_: reply)
    if noisy.has_error():
        raise UserError(f"dp.epsilon={settings.epsilon:g}: {noisy.error.reason}")
    _check(noisy.content.array_records[wire.TENSORS])
    return noisy


def _check(record: ArrayRecord) -> None:
    """Refuse what is not finite, and make variances of those that noise has made negative."""
    for name, array in record.items():
        value = array.numpy()
        if not np.isfinite(value).all():
            raise UserError(f"{name} with noise holds NaN or infinity: it is not sent; lower dp.clipping-norm")
        if name.rpartition(".")[2] == VARIANCES:
            record[name] = Array(np.maximum(value, 0))


def _equal(one: Array, other: Array) -> bool:
    """Whether there is no update, as far as Flower's mod can tell."""
    return one.shape == other.shape and bool((np.abs(one.numpy() - other.numpy()) < NOTHING).all())


def _nudged(array: Array) -> Array:
    """The array with its first number a little larger."""
    value = array.numpy().copy()
    value.flat[0] += max(NUDGE, np.spacing(np.abs(value.flat[0])))
    return Array(value)


@contextmanager
def _system_randomness() -> Iterator[None]:
    """NumPy's global generator, which Flower's mod draws from, seeded by the operating system; as it was afterwards.

    Another seed or none, a fork with the parent's state: nothing of that decides the noise.
    """
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
