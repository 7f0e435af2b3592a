"""The networks of a run's clients, each built and tried once before the first round: one, unless clients differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fedham_flwr import models, registry
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path
from fedham_flwr.core.methods import NetworkNeeds
from fedham_flwr.core.parameters import Manifest, floating_tensors
from fedham_flwr.core.trees import num_bytes
from fedham_flwr.federation.messages import Profile
from fedham_flwr.federation.roster import Roster, order
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.models import client_models
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.models.heads import head_name
from fedham_flwr.models.sizes import model_line
from fedham_flwr.run_settings import Settings
from fedham_flwr.trials import check_size, try_training

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
    """Leave out real nodes that say a network of their own which there is not, or which cannot be built for their data.

    It is their mistake, and not the run's: as with nodes that cannot open their data, the run goes on with the others
    if they are enough, and else waits for more.

    Args:
        settings: the run's.
        roster: of those that have answered, who are fewer afterwards.
        again: waits for as many as the run wants.

    Raises:
        UserError: too few are left.
    """
    tried: dict[tuple[object, ...], str] = {}
    while True:
        faults = {who: _fault(settings, roster.profiles[who], tried) for who in order(roster.nodes)}
        if not any(faults.values()):
            return
        for client, why in faults.items():
            if why:
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
    if len(found) > 1:
        _check_together(settings, found)
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


def _fault(settings: Settings, profile: Profile, tried: dict[tuple[object, ...], str]) -> str:
    """Why a node's network is none; empty if it is one, or if the run itself names it. Each is tried once."""
    named = (settings.model, *client_models.named(settings.client_models))
    ours = {models.resolve(name, profile.shape) for name in named}
    if profile.partitions or not profile.network or profile.network in ours:
        return ""
    try:
        _check_said(settings, profile)
    except UserError as error:
        return str(error)
    given = (profile.network, profile.shape, profile.classes)
    if given not in tried:
        try:
            own = settings.model_copy(update={"model": profile.network})
            models.build(*given, own.seed, own.networks())
            tried[given] = ""
        except UserError as error:
            tried[given] = str(error)
    return tried[given] and f"the network of client {profile.client} cannot be built: {tried[given]}"


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


def _check_together(settings: Settings, networks: Sequence[Built]) -> None:
    """Refuse networks that differ where the run needs them alike, or alike in the width of their features."""
    method = registry.method(settings.strategy)
    first, *others = networks
    differ = f"{first.name} of client {first.clients[0]} and {others[0].name} of client {others[0].clients[0]}"
    if shared := [name for network in networks for name in method.split_of(network.manifest, settings.own).shared]:
        raise UserError(
            f"the clients' networks differ ({differ}), and strategy={settings.strategy} sends {shared[0]}: wanted one "
            "network for all, or a split that shares no tensor"
        )
    if settings.cross_evaluation:
        raise UserError(
            f"cross-evaluation=true runs clients' models at other clients, and their networks differ ({differ}): "
            "wanted one of the two"
        )
    needs = method.network(settings.own) if method.network else NetworkNeeds()
    if needs.head is None:
        return
    seen = {network.name: _sees(network) for network in networks}
    for other in others:
        if seen[other.name] != seen[first.name]:
            raise UserError(
                f"strategy={settings.strategy} needs last layers that are alike, and that of {first.name} (client "
                f"{first.clients[0]}) sees {seen[first.name]}, that of {other.name} (client {other.clients[0]}) "
                f"{seen[other.name]}: wanted networks of which all see the same"
            )


def _sees(network: Built) -> str:
    """What the last layer sees of a sample, and whether it has a bias."""
    head = head_name(network.manifest)
    width = network.manifest.shapes[f"{head}.weight"][1]
    return f"{width} features" + ("" if f"{head}.bias" in network.manifest.shapes else " and has no bias")
