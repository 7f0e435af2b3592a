"""Threads without surprises: results that do not depend on how many there are.

A matrix product that torch divides among threads may round differently from the same product in one thread. Here work
is cut into parts first, the same parts however many threads there are, and each part is done in one thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch in so many threads, and in as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread() -> AbstractContextManager[None]:
    """Torch in one thread, and in as many as before afterwards."""
    return threads(1)


def in_threads(work: Callable[[Part], Result], parts: Iterable[Part]) -> list[Result]:
    """The work's results for all parts, in their order, as many at a time as torch may use threads.

    Args:
        work: changes nothing that another part's work looks at.
        parts: what to work on.
    """
    count = torch.get_num_threads()
    with one_thread():
        if count == 1:
            return [work(part) for part in parts]
        # A new thread starts with as many as the machine has cores.
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, parts))


def use_assigned_threads() -> None:
    """In a Ray worker, as many threads as it was given CPUs: workers that use more slow each other down."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU")
    if cpus and torch.get_num_threads() != max(1, int(cpus)):
        torch.set_num_threads(max(1, int(cpus)))
