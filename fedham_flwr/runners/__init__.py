"""Ways to run a federation on this machine, each imported when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from flwr.serverapp import ServerApp

Backend = Literal["ray", "cohort", "in-process"]
"""Ray: as many clients at a time as there are processors. Cohort: a round's clients as one program, in this process.
In-process: one client after the other, through the serialisation of a real network."""
BACKENDS: tuple[Backend, ...] = get_args(Backend)


def run_backend(
    backend: Backend,
    server_app: ServerApp,
    given: Mapping[str, bool | int | float | str],
    num_supernodes: int,
    num_cpus: int = 1,
) -> None:
    """Run a federation to the end.

    Args:
        backend: which way.
        server_app: the server's app.
        given: settings by key, for the clients' app.
        num_supernodes: number of clients.
        num_cpus: ray: of one worker. cohort: processes among which the clients are shared out, by Ray if above 1.

    Raises:
        UserError: as the server's app raises it.
    """
    from fedham_flwr.client_app import make_client_app

    if backend == "ray":
        from fedham_flwr.runners.ray import run_under_ray

        run_under_ray(server_app, make_client_app(given), num_supernodes, num_cpus)
    elif backend == "in-process":
        from fedham_flwr.runners.in_process import run_in_process

        run_in_process(server_app, make_client_app(given), num_supernodes)
    elif num_cpus > 1:
        from fedham_flwr.runners.shards import run_sharded

        run_sharded(server_app, given, num_supernodes, num_cpus)
    else:
        from fedham_flwr.runners.cohort import run_cohort

        run_cohort(server_app, make_client_app(given), num_supernodes)
