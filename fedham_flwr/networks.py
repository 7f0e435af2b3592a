"""The networks of a run's clients, each built and tried once before the first round: one, unless clients differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fedham_flwr import models
from fedham_flwr.alike import Has, check_together, unlike
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path
from fedham_flwr.core.parameters import Manifest, floating_tensors
from fedham_flwr.core.trees import num_bytes
from fedham_flwr.federation.messages import Profile
from fedham_flwr.federation.roster import Roster, order
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.models import client_models
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.models.sizes import model_line
from fedham_flwr.run_settings import Settings
from fedham_flwr.training.recalibration import has_statistics
from fedham_flwr.trials import check_size, try_training

Key = tuple[str, tuple[int, ...], int]
"""A network's name, the shape of a sample, and the number of classes."""
SHOWN = 10
"""Clients whose ids are said beside a network; of more their number is."""


@dataclass(frozen=True)
class Built:
    """A network of the run.

    Attributes:
        name: its, `auto` resolved.
        model: with its first parameters.
        manifest: the model's.
        clients: ids of those that have it, in order.
    """

    name: str
    model: nn.Module
    manifest: Manifest
    clients: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of what is not fixed, which each client has of its own."""
        return num_bytes(floating_tensors(self.model))


def leave_out(settings: Settings, roster: Roster, again: Callable[[], None]) -> None:
    """Leave out real nodes that say a network of their own which there is not or does not fit.

    It cannot be built for their data, or does not go with the others' networks where the method needs them alike.
    That is their mistake, and not the run's: as with nodes that cannot open their data, the run goes on with the others
    if they are enough, and else waits for more.

    Args:
        settings: the run's.
        roster: of those that have answered, who are fewer afterwards.
        again: waits for as many as the run wants.

    Raises:
        UserError: too few are left.
    """
    tried: dict[Key, Manifest | str] = {}
    while True:
        profiles = [roster.profiles[client] for client in order(roster.nodes)]
        faults = {profile.client: why for profile in profiles if (why := _fault(settings, profile, tried))}
        if not (faults := faults or _unlike(settings, profiles, tried)):
            return
        for client, why in faults.items():
            roster.leave_out(client, why)
        again()


def build(settings: Settings, profiles: Sequence[Profile], shape: tuple[int, ...], classes: int) -> tuple[Built, ...]:
    """Build and try what the clients have, in the order in which the clients name them.

    Args:
        settings: the run's.
        profiles: of the clients, in order.
        shape: of one sample.
        classes: outputs of the networks.

    Raises:
        UserError: a network, or a user's optimiser or loss, does not fit the data, the networks do not fit together, or
            this run needs them alike.
    """
    of: dict[str, list[Profile]] = {}
    for profile in profiles:
        _check_said(settings, profile)
        of.setdefault(profile.network or models.resolve(settings.model, shape), []).append(profile)
    _check_named(settings, profiles)
    found = []
    for name, theirs in of.items():
        # Of an only one the setting is taken as it is written, `auto` too, as errors name it.
        own = settings.model_copy(update={"model": name}) if len(of) > 1 or theirs[0].network else settings
        check_size(own, theirs[0], classes)
        model = models.build(own.model, shape, classes, own.seed, own.networks())
        try_training(own, theirs[0], classes, model)
        manifest = manifest_of(model, models.trial_batches(shape))
        found.append(Built(name, model, manifest, tuple(profile.client for profile in theirs)))
    if settings.batch_norm_statistics == "recalibrated" and not any(has_statistics(m.model, m.manifest) for m in found):
        raise UserError(
            f'batch-norm-statistics="recalibrated" needs batch normalisation, and model={found[0].name} has none with '
            'running statistics of its own: wanted "running", or another model'
        )
    if len(found) > 1:
        check_together(settings, [Has(one.clients[0], one.name, one.manifest) for one in found])
    return tuple(found)


def largest(networks: Sequence[Built]) -> Built:
    """The one of most bytes, the first of equals: what is said of memory is true of all."""
    return max(networks, key=lambda network: network.size)


def lines(networks: Sequence[Built], shape: tuple[int, ...]) -> list[str]:
    """A line on each network, and who has it where they differ.

    Args:
        networks: of the run.
        shape: of one sample.
    """
    if len(networks) == 1:
        return [model_line(networks[0].name, networks[0].model, shape)]
    found = []
    for network in networks:
        count = len(network.clients)
        who = f"clients {', '.join(network.clients)}" if count <= SHOWN else f"{count} clients"
        found.append(f"{model_line(network.name, network.model, shape)}; {who}")
    return found


def describe(strategy: RoundStrategy, networks: Sequence[Built]) -> str:
    """What is shared and what is personal; where networks differ, it is that of the largest.

    Args:
        strategy: the run's.
        networks: its.
    """
    text = strategy.describe()
    return text if len(networks) == 1 else f"{text}; of {largest(networks).name}, and so of each client's own network"


def check_unchanged(run: Path, then: Sequence[Mapping[str, object]], now: Sequence[Profile]) -> None:
    """Refuse to continue a run with another network for a client than the one that it has trained.

    Args:
        run: its directory.
        then: its `clients.json`.
        now: the clients that are there.

    Raises:
        UserError: a client has another one.
    """
    was = {str(client["client"]): str(client.get("model", "")) for client in then}
    for profile in now:
        if profile.client in was and was[profile.client] != profile.network:
            before, after = (name or "that of the setting model" for name in (was[profile.client], profile.network))
            raise UserError(
                f"resume={run}: the network of client {profile.client} was {before}, and is {after} now: wanted "
                "client-models, its table and the node configs as they were"
            )


def _said_itself(settings: Settings, profile: Profile) -> bool:
    """Whether a real node says a network of its own that the run does not name."""
    named = (settings.model, *client_models.named(settings.client_models))
    ours = {models.resolve(name, profile.shape) for name in named}
    return not profile.partitions and bool(profile.network) and profile.network not in ours


def _fault(settings: Settings, profile: Profile, tried: dict[Key, Manifest | str]) -> str:
    """Why a node's network is none; empty if it is one, or if the run itself names it."""
    if not _said_itself(settings, profile):
        return ""
    try:
        _check_said(settings, profile)
    except UserError as error:
        return str(error)
    found = _tried(settings, profile, tried)
    return f"the network of client {profile.client} cannot be built: {found}" if isinstance(found, str) else ""


def _unlike(settings: Settings, profiles: Sequence[Profile], tried: dict[Key, Manifest | str]) -> dict[str, str]:
    """Nodes whose own network does not go with the others', each with the reason."""
    own = {profile.client for profile in profiles if _said_itself(settings, profile)}
    found = {profile.client: _tried(settings, profile, tried) for profile in profiles} if own else {}
    networks = [
        Has(profile.client, profile.network or models.resolve(settings.model, profile.shape), manifest)
        for profile in profiles
        # A network of the run that is none, or samples of another shape, are said of the whole run.
        if isinstance(manifest := found.get(profile.client), Manifest)
    ]
    return unlike(settings, networks, own) if networks else {}


def _tried(settings: Settings, profile: Profile, tried: dict[Key, Manifest | str]) -> Manifest | str:
    """The manifest of a client's network, or why it cannot be built; each is tried once."""
    name = profile.network or models.resolve(settings.model, profile.shape)
    given = (name, profile.shape, profile.classes)
    if given not in tried:
        try:
            own = settings.model_copy(update={"model": name})
            model = models.build(*given, own.seed, own.networks())
            tried[given] = manifest_of(model, models.trial_batches(profile.shape))
        except UserError as error:
            tried[given] = str(error)
    return tried[given]


def _check_said(settings: Settings, profile: Profile) -> None:
    """Refuse a network that there is not, and to import what nobody but a client names: code would be run for it."""
    if not profile.network:
        return
    if fault := client_models.unknown(profile.network):
        raise UserError(f"client {profile.client} says which network it has: {fault}")
    known = (settings.model, *client_models.named(settings.client_models))
    if is_path(profile.network) and profile.network not in known:
        raise UserError(
            f"client {profile.client} says that its network is {profile.network}, which is code that the server would "
            f'run: wanted it in client-models of the run too, as client-models="{profile.network}"'
        )


def _check_named(settings: Settings, profiles: Sequence[Profile]) -> None:
    """Refuse a table that names somebody who is not there, in a simulation, where all are."""
    if not all(profile.partitions for profile in profiles):
        return
    there = {profile.client for profile in profiles}
    if strange := [client for client in client_models.named_in(settings.client_models) if client not in there]:
        raise UserError(
            f"client-models={settings.client_models!r} names client {strange[0]}, which there is not: the clients are "
            f"{', '.join([profile.client for profile in profiles][:SHOWN])}"
        )
