"""The first file of a worker process, which runs it by its path: it listens before it imports anything that takes time.

So a worker ends when whoever has started it ends, also if that is while it is starting.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import TextIO


def listen(orders: TextIO, lines: queue.SimpleQueue[str]) -> None:
    """Take orders until there are no more, and end the process then, whatever it is doing."""
    for line in orders:
        lines.put(line)
    os._exit(0)


def start() -> None:
    """Be a worker."""
    orders, lines = os.fdopen(os.dup(0), encoding="utf-8"), queue.SimpleQueue[str]()
    threading.Thread(target=listen, args=(orders, lines), daemon=True).start()
    sys.path[:] = json.loads(sys.argv[1])
    from fedham_flwr.study.worker import work

    work(lines)


if __name__ == "__main__":
    start()
