"""Workers as Ray actors: started, and what they give, with Ray's many errors told apart."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from fedham_flwr.runners.placing import Workers
from fedham_flwr.runners.worker import Shard, machine
from fedham_flwr.settings import Value


class WorkerDiedError(Exception):
    """An actor is gone; what it was doing is not known."""


def start(given: Mapping[str, Value] | None, nodes: Sequence[int], workers: Workers) -> Any:
    """A new actor, which may not be there yet.

    Args:
        given: settings by key.
        nodes: the ids of all nodes of the simulation.
        workers: what an actor has.
    """
    import ray

    shard = ray.remote(num_cpus=workers.cpus, num_gpus=workers.gpus)(Shard)
    return shard.remote(given, nodes, machine(), workers.cpus)


def get(reference: Any, end: float | None = None) -> Any:
    """The value of a reference.

    Args:
        reference: Ray's.
        end: until when to wait, a time of the monotonic clock; None for ever.

    Raises:
        WorkerDiedError: the actor, or what it left, is gone.
        TimeoutError: it is not there in time.
        Exception: what the actor raised.
    """
    import ray
    from ray import exceptions as errors

    try:
        return ray.get(reference, timeout=None if end is None else max(0.0, end - time.monotonic()))
    except errors.GetTimeoutError as error:
        raise TimeoutError from error
    except errors.RayTaskError as error:
        raise error.cause or error from error
    except errors.RayError as error:  # ActorDiedError, ObjectLostError, OutOfMemoryError, ...
        raise WorkerDiedError(str(error).partition("\n")[0]) from error
