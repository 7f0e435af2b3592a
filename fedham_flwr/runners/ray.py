"""Flower's simulation under Ray, in the current environment: the one place that calls its deprecated entry point.

`flwr run` starts the same apps in the same runtime; this is the way to do it from a program.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run

from fedham_flwr.core.interrupts import Interruptible
from fedham_flwr.runners import placing
from fedham_flwr.runners.clusters import check_address, prepare_environment

PAUSE = 0.03
"""Seconds between two looks for replies."""

RESTARTS = {"max_restarts": -1, "max_task_retries": 1}
"""Ray's options for a worker that is killed: start it again, and do its message once more from the client's state.

Without them the dead worker would stay in Flower's pool and fail every client that it is given.
"""


def run_under_ray(
    server_app: ServerApp,
    client_app: ClientApp,
    num_supernodes: int,
    num_cpus: int = 1,
    address: str = "",
    device: str = "cpu",
) -> None:
    """Run both apps to the end, the clients in Ray workers.

    Args:
        server_app: the server's app.
        client_app: the clients' app.
        num_supernodes: number of clients.
        num_cpus: of one worker; as many workers run side by side as the machine has room for.
        address: of a Ray cluster; empty for that of `RAY_ADDRESS`, or one of this machine.
        device: the setting; workers share the GPUs of this machine. On a cluster GPUs are not shared out.

    Raises:
        UserError: as the server's app raises it.
        KeyboardInterrupt: the user interrupted; the server's app has written its results by then.
    """
    from flwr.simulation import run_simulation

    prepare_environment()
    if address:
        os.environ["RAY_ADDRESS"] = address
    check_address(os.environ.get("RAY_ADDRESS", ""))
    init: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    gpus = 0.0
    if not os.environ.get("RAY_ADDRESS"):
        here = placing.Node(placing.usable_cpus(), torch.cuda.device_count())
        gpus = placing.plan([here], num_supernodes, device, num_cpus, shared=True).gpus
        init["num_cpus"] = here.cpus
    stop, ended = threading.Event(), threading.Event()
    stoppable = ServerApp()

    with contextlib.ExitStack() as at_the_end:

        @stoppable.main()
        def main(grid: Grid, context: Context) -> None:
            # In Flower's thread nobody could catch the interrupt; the main thread has one of its own.
            with contextlib.suppress(KeyboardInterrupt):
                try:
                    server_app(StoppableGrid(grid, stop), context)
                finally:
                    # The app has had the last word: what Ray prints on ending its workers says nothing.
                    nowhere = at_the_end.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                    at_the_end.enter_context(contextlib.redirect_stdout(nowhere))
                    ended.set()

        try:
            with Interruptible():  # Flower's waiting can make another error of an interrupt
                run_simulation(
                    stoppable,
                    client_app,
                    num_supernodes,
                    backend_config={
                        "client_resources": {"num_cpus": num_cpus, "num_gpus": gpus, **RESTARTS},
                        "init_args": init,
                    },
                )
        except KeyboardInterrupt:
            stop.set()
            ended.wait(60)
            raise


class StoppableGrid(Grid):
    """A grid whose waiting ends when the user interrupts; Flower's own would wait on, in its thread, for the timeout.

    Args:
        grid: the one to ask.
        stop: set to end the waiting.
    """

    def __init__(self, grid: Grid, stop: threading.Event) -> None:
        self._grid = grid
        self._stop = stop

    @property
    def run(self) -> Run:
        """The run of the grid."""
        return self._grid.run

    def set_run(self, run: Run) -> None:
        """Set the run of the grid."""
        self._grid.set_run(run)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are there.

        Raises:
            KeyboardInterrupt: the user interrupted.
        """
        if self._stop.is_set():
            raise KeyboardInterrupt
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull the replies that are there."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and wait for their replies, at most `timeout` seconds.

        Raises:
            KeyboardInterrupt: the user interrupted.
        """
        waiting = set(self._grid.push_messages(messages))
        end = float("inf") if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and time.monotonic() < end:
            arrived = list(self._grid.pull_messages(waiting))
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            if waiting and self._stop.wait(PAUSE):
                raise KeyboardInterrupt
        return replies
