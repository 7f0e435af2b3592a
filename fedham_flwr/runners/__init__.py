"""Ways to run a federation on this machine or a cluster, each imported when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from fedham_flwr.core.errors import UserError

if TYPE_CHECKING:
    from flwr.serverapp import ServerApp

Backend = Literal["ray", "cohort", "in-process"]
"""Ray: several processes. Cohort: a round's clients as one program, in this process. In-process: one client after the
other, through the serialisation of a real network."""
BACKENDS: tuple[Backend, ...] = get_args(Backend)

Engine = Literal["cohort", "one-by-one"]
"""How a Ray worker trains its clients: as one program, or one after the other in Flower's own simulation."""
ENGINES: tuple[Engine, ...] = get_args(Engine)


@dataclass(frozen=True)
class Simulation:
    """How the clients of a simulation are run.

    Attributes:
        clients: how many there are.
        backend: which way.
        engine: of `ray`.
        num_cpus: of `ray`: processors of a worker.
        num_workers: of `ray`: how many workers; 0 for as many as fit.
        ray_address: of `ray`: of a cluster; empty for that of `RAY_ADDRESS`, or one of this machine.
    """

    clients: int
    backend: Backend = "ray"
    engine: Engine = "cohort"
    num_cpus: int = 1
    num_workers: int = 0
    ray_address: str = ""

    def check(self) -> None:
        """Refuse what cannot be, and what is without effect.

        Raises:
            UserError: the first fault.
        """
        least = {"clients": 1, "num_cpus": 1, "num_workers": 0}
        for name, number in least.items():
            value = getattr(self, name)
            if type(value) is not int or value < number:
                raise UserError(f"{name}={value!r} must be a whole number of at least {number}")
        known: dict[str, tuple[str, ...]] = {"backend": BACKENDS, "engine": ENGINES}
        for name, wanted in known.items():
            if getattr(self, name) not in wanted:
                raise UserError(f"{name}={getattr(self, name)!r}: wanted one of {', '.join(map(repr, wanted))}")
        usual, here = vars(Simulation(1, "ray")), vars(self)
        idle = [name for name in usual if name not in ("clients", "backend") and here[name] != usual[name]]
        if self.backend != "ray" and idle:
            raise UserError(f"{idle[0]}={here[idle[0]]!r} is for backend='ray', and this is {self.backend!r}")
        if self.engine == "one-by-one" and self.num_workers:
            raise UserError(
                f"num_workers={self.num_workers!r} is for engine='cohort': one by one there are as many workers as "
                "fit, fewer with a larger num_cpus"
            )

    @property
    def elsewhere(self) -> bool:
        """Whether clients run in other processes than this one."""
        return self.backend == "ray"


def run_backend(server_app: ServerApp, given: Mapping[str, bool | int | float | str], simulation: Simulation) -> None:
    """Run a federation to the end.

    Args:
        server_app: the server's app.
        given: settings by key, for the clients' app.
        simulation: how.

    Raises:
        UserError: as the server's app raises it, or the workers do not fit.
    """
    from fedham_flwr.client_app import make_client_app
    from fedham_flwr.settings import parse

    clients = simulation.clients
    if simulation.backend == "ray" and simulation.engine == "cohort":
        from fedham_flwr.runners.shards import run_sharded

        run_sharded(server_app, given, clients, simulation.num_cpus, simulation.num_workers, simulation.ray_address)
    elif simulation.backend == "ray":
        from fedham_flwr.runners.ray import run_under_ray

        address, device = simulation.ray_address, parse(given).device
        run_under_ray(server_app, make_client_app(given), clients, simulation.num_cpus, address, device)
    else:
        from fedham_flwr.runners.cohort import CohortGrid
        from fedham_flwr.runners.in_process import InProcessGrid, run_on

        grid = CohortGrid if simulation.backend == "cohort" else InProcessGrid
        run_on(grid(make_client_app(given), clients), server_app)
