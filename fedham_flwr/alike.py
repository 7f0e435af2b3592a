"""What clients' networks must have in common: all of it, if a method sends tensors; or what the last layer sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from fedham_flwr import registry
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import NetworkNeeds
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.models.heads import head_name
from fedham_flwr.run_settings import Settings


class Has(NamedTuple):
    """Who has which network.

    Attributes:
        client: id of one that has it.
        name: of the network.
        manifest: the network's.
    """

    client: str
    name: str
    manifest: Manifest


def check_together(settings: Settings, networks: Sequence[Has]) -> None:
    """Refuse networks that differ where the run needs them alike, or alike in the width of their features.

    Args:
        settings: the run's.
        networks: each of them once, with the first client that has it.

    Raises:
        UserError: they do not fit together.
    """
    first, *others = networks
    differ = f"{first.name} of client {first.client} and {others[0].name} of client {others[0].client}"
    if shared := next((tensor for network in networks if (tensor := sent(settings, network.manifest))), ""):
        raise UserError(
            f"the clients' networks differ ({differ}), and strategy={settings.strategy} sends {shared}: wanted one "
            "network for all, or a split that shares no tensor"
        )
    if settings.cross_evaluation:
        raise UserError(
            f"cross-evaluation=true runs clients' models at other clients, and their networks differ ({differ}): "
            "wanted one of the two"
        )
    ours = sees(settings, first.manifest)
    for other in others:
        if (theirs := sees(settings, other.manifest)) != ours:
            raise UserError(
                f"strategy={settings.strategy} needs last layers that are alike, and that of {first.name} (client "
                f"{first.client}) sees {ours}, that of {other.name} (client {other.client}) {theirs}: wanted networks "
                "of which all see the same"
            )


def unlike(settings: Settings, networks: Sequence[Has], own: Collection[str]) -> dict[str, str]:
    """Clients whose own network does not go with the others' where the run needs them alike, each with the reason.

    What counts is what the run names, if somebody has it; else what most clients have, and of two that as many have
    that of the first client.

    Args:
        settings: the run's.
        networks: what each client has, in order.
        own: clients that have said theirs themselves, and that the run does not name.
    """
    kinds = {has.client: _kind(settings, has) for has in networks}
    named = [kind for client, kind in kinds.items() if client not in own]
    wanted = Counter(named or kinds.values()).most_common(1)[0][0]
    example = next(has for has in networks if kinds[has.client] == wanted and (has.client not in own or not named))
    return {
        has.client: f"the network of client {has.client} does not go with those of the others: "
        f"{_why(settings, has, example)}"
        for has in networks
        if has.client in own and kinds[has.client] not in (named or [wanted])
    }


def sent(settings: Settings, manifest: Manifest) -> str:
    """A tensor of a network that the method sends, so that all must have it; empty if it sends none."""
    return next(iter(registry.method(settings.strategy).split_of(manifest, settings.own, settings.personal).shared), "")


def sees(settings: Settings, manifest: Manifest) -> str:
    """What the last layer sees of a sample, and whether it has a bias; empty if the method does not ask."""
    method = registry.method(settings.strategy)
    needs = method.network(settings.own) if method.network else NetworkNeeds()
    if needs.head is None:
        return ""
    head = head_name(manifest)
    shape = manifest.shapes.get(f"{head}.weight", ())
    if len(shape) != 2:
        return "nothing, since it is not linear"
    return f"{shape[1]} features" + ("" if f"{head}.bias" in manifest.shapes else " and has no bias")


def _kind(settings: Settings, has: Has) -> tuple[str, str]:
    """Equal for clients whose networks go together."""
    whole = bool(sent(settings, has.manifest)) or settings.cross_evaluation
    return (has.name if whole else "", sees(settings, has.manifest))


def _why(settings: Settings, has: Has, wanted: Has) -> str:
    if tensor := sent(settings, has.manifest) or sent(settings, wanted.manifest):
        return f"it is {has.name}, and strategy={settings.strategy} sends {tensor}; wanted {wanted.name}"
    if settings.cross_evaluation:
        return f"it is {has.name}, and cross-evaluation=true runs models at other clients; wanted {wanted.name}"
    ours, theirs = sees(settings, has.manifest), sees(settings, wanted.manifest)
    return f"the last layer of {has.name} sees {ours}; wanted {theirs}, as in {wanted.name} of client {wanted.client}"
