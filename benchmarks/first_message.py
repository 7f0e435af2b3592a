"""The whole life of a ClientApp process for one message, with a clock on each part; `cold_start.py` starts it.

It does what Flower's `flwr-clientapp` does: import Flower's command, unpack the app's bundle, import the app from it,
have the message answered, take the reply apart. Its connection to the SuperNode alone is left out: the message comes
from a file, and the reply goes nowhere. Its last line of output is the seconds of each part, as JSON.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr.app import Context, Message


class Clock:
    """Seconds by part, on the wall and of the processor; at any time one part runs, and those around it do not.

    Args:
        began: `time.monotonic()` when the process was started; its processor's seconds are counted from there too.
    """

    def __init__(self, began: float) -> None:
        self.parts: dict[str, list[float]] = {}
        self._running = ["python"]
        self._at = (began, 0.0)

    def now(self, part: str) -> None:
        """What runs from here on."""
        self._count()
        self._running[-1] = part

    def watch(self, owner: Any, name: str, *parts: str) -> None:
        """Have a function counted as a part of its own; of several, its first call is the first, and so on."""
        work: Callable[..., Any] = getattr(owner, name)
        which: Iterator[str] = itertools.chain(parts, itertools.repeat(parts[-1]))

        def watched(*args: Any, **named: Any) -> Any:
            self._count()
            self._running.append(next(which))
            try:
                return work(*args, **named)
            finally:
                self._count()
                self._running.pop()

        setattr(owner, name, watched)

    def _count(self) -> None:
        now = (time.monotonic(), time.process_time())
        seconds = self.parts.setdefault(self._running[-1], [0.0, 0.0])
        for at in range(2):
            seconds[at] += now[at] - self._at[at]
        self._at = now


def unpack(folder: Path) -> None:
    """Unpack and check the bundle, as is done for each message, and have the app imported from there."""
    from flwr.cli.install import install_from_fab

    sys.path.insert(0, str(install_from_fab((folder / "app.fab").read_bytes(), skip_prompt=True)))


def read(folder: Path) -> tuple[Message, Context]:
    """The message and its context."""
    from flwr.common.serde import context_from_proto, message_from_proto
    from flwr.proto import message_pb2

    message = message_pb2.Message.FromString((folder / "message").read_bytes())
    context = message_pb2.Context.FromString((folder / "context").read_bytes())
    return message_from_proto(message), context_from_proto(context)


def take_apart(reply: Message) -> None:
    """The reply as the objects that are sent.

    Raises:
        SystemExit: the app could not answer.
    """
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    if "failure" in reply.content:
        raise SystemExit(str(reply.content["failure"]))
    for thing in get_all_nested_objects(reply).values():
        thing.deflate()


def watch_parts(clock: Clock) -> None:
    """Watch the parts of the app's work, where they are, until this process ends."""
    from fedham_flwr import client_app
    from fedham_flwr.state.store import ClientState
    from fedham_flwr.training.optim import SGD
    from fedham_flwr.training.trainer import Trainer

    clock.watch(client_app, "parse", "settings")
    clock.watch(client_app, "_open_data", "data")
    clock.watch(client_app, "_trainer", "model")
    clock.watch(Trainer, "_backward", "first step", "further steps")
    clock.watch(SGD, "step", "first step", "further steps")
    clock.watch(Trainer, "evaluate", "first evaluation", "further evaluations")
    clock.watch(ClientState, "load", "state")
    clock.watch(ClientState, "save", "state")


def answer(clock: Clock, folder: Path) -> None:
    """All that comes after Flower's own imports."""
    clock.now("bundle")
    unpack(folder)
    clock.now("torch")
    importlib.import_module("fedham_flwr")  # imports torch, and nothing else
    clock.now("imports")
    importlib.import_module("fedham_flwr.client_app")
    clock.now("bundle")
    from flwr.clientapp.utils import get_load_client_app_fn

    client_app = get_load_client_app_fn("", None, multi_app=True)(*json.loads((folder / "app.json").read_text()))
    clock.now("rest")
    watch_parts(clock)
    clock.now("message")
    message, context = read(folder)
    clock.now("rest")
    reply = client_app(message, context)
    clock.now("reply")
    take_apart(reply)


def main(what: str, folder: str, began: str) -> None:
    """Answer the message in a folder, or only import Flower and torch.

    Args:
        what: "app", or "bare".
        folder: with the bundle, the message and its context.
        began: when this process was started.
    """
    clock = Clock(float(began))
    clock.now("flower")
    importlib.import_module("flwr.supernode.cli")
    if what == "bare":
        clock.now("torch")
        importlib.import_module("torch")
    else:
        answer(clock, Path(folder))
    clock.now("end")
    print(json.dumps(clock.parts))


if __name__ == "__main__":
    main(*sys.argv[1:])
