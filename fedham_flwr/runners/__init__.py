"""Ways to run a federation on this machine, each imported when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp

Backend = Literal["ray", "cohort", "in-process"]
"""Ray: as many clients at a time as there are processors. Cohort: a round's clients as one program, in this process.
In-process: one client after the other, through the serialisation of a real network."""
BACKENDS: tuple[Backend, ...] = get_args(Backend)


def run_apps(
    backend: Backend, server_app: ServerApp, client_app: ClientApp, num_supernodes: int, num_cpus: int = 1
) -> None:
    """Run both apps to the end.

    Args:
        backend: which way.
        server_app: the server's app.
        client_app: the clients' app.
        num_supernodes: number of clients.
        num_cpus: of one Ray worker, or threads of the cohort's program.

    Raises:
        UserError: as the server's app raises it.
    """
    if backend == "ray":
        from fedham_flwr.runners.ray import run_under_ray

        run_under_ray(server_app, client_app, num_supernodes, num_cpus)
    elif backend == "cohort":
        from fedham_flwr.runners.cohort import run_cohort

        run_cohort(server_app, client_app, num_supernodes, num_cpus)
    else:
        from fedham_flwr.runners.in_process import run_in_process

        run_in_process(server_app, client_app, num_supernodes)
