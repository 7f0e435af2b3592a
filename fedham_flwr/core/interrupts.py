"""Ctrl-C: raised where Python code can stop, never inside an import, and noted in case something swallows it.

An interrupt inside an import leaves half of a module behind, and comes out as another error: of numpy as a missing
attribute, minutes later. One that comes while an object is taken away is printed, and lost.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

AGAIN = 0.05
"""Seconds after which an interrupt that came inside an import is tried again."""
PATIENCE = 20.0
"""Seconds after which it is raised there too: something may hang."""
_IMPORTS = "<frozen importlib"
_seen = threading.Event()


def seen() -> bool:
    """Whether the user has interrupted what goes on now."""
    return _seen.is_set()


def raise_if_seen() -> None:
    """End what goes on if the user has interrupted it.

    Raises:
        KeyboardInterrupt: so it is.
    """
    if _seen.is_set():
        raise KeyboardInterrupt


class Interruptible:
    """While it lasts, Ctrl-C raises KeyboardInterrupt outside of imports, and any error after it becomes one.

    Only where signals arrive, in the main thread, and nobody but Python or this project handles them.
    """

    def __enter__(self) -> Self:
        """Begin to take note."""
        self._before: Any = signal.getsignal(signal.SIGINT)
        self._on = threading.current_thread() is threading.main_thread() and (
            self._before is signal.default_int_handler or hasattr(self._before, "for_imports")
        )
        self._first, self._timer, self._outside = 0.0, threading.Timer(0, lambda: None), sys._getframe(1)
        if self._on:
            _seen.clear()
            self._unraisable, sys.unraisablehook = sys.unraisablehook, self._lost
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it.

        Raises:
            KeyboardInterrupt: in place of an error that came after an interrupt.
        """
        interrupted = isinstance(error, Exception) and seen()
        if self._on:
            self._timer.cancel()
            signal.signal(signal.SIGINT, self._before)
            sys.unraisablehook = self._unraisable
            _seen.clear()
        del self._outside
        if interrupted:
            raise KeyboardInterrupt from error

    def _handle(self, _number: int, frame: FrameType | None) -> None:
        _seen.set()
        now = time.monotonic()
        self._first = self._first or now
        if now < self._first + PATIENCE and self._imports(frame):
            self._later()
            return
        self._first = 0.0
        raise KeyboardInterrupt

    def _imports(self, frame: FrameType | None) -> bool:
        """Whether an import is going on between where this began and a frame."""
        while frame is not None and frame is not self._outside:
            if frame.f_code.co_filename.startswith(_IMPORTS):
                return True
            frame = frame.f_back
        return False

    def _later(self) -> None:
        self._timer = threading.Timer(AGAIN, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        self._timer.daemon = True
        self._timer.start()

    def _lost(self, unraisable: Any) -> None:
        """An error that nobody can catch: if it is the interrupt, try again."""
        if isinstance(unraisable.exc_value, KeyboardInterrupt) or unraisable.exc_type is KeyboardInterrupt:
            self._later()
        else:
            self._unraisable(unraisable)
