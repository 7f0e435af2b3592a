"""Who takes part in a run, and what they have, as entries of `clients.json`."""

from __future__ import annotations

from collections.abc import Iterable

from fedham_flwr.federation.messages import Profile


def describe(profile: Profile) -> dict[str, object]:
    """Who a client is and what it has: a row of the table that is shown, and an entry of clients.json.

    Args:
        profile: what the client said of itself.
    """
    classes = {"classes": sum(n > 0 for n in profile.labels), "train-labels": list(profile.labels)}
    told = {"client": profile.client, "name": profile.name, **profile.counts, **(classes if profile.labels else {})}
    names = names_of([profile])
    told |= {"shape": list(profile.shape), **({"class-names": names} if names else {})}
    return told | ({"model": profile.network} if profile.network else {})


def names_of(profiles: Iterable[Profile]) -> list[str]:
    """What the outputs of the network mean, in their order; nothing of a vocabulary.

    Args:
        profiles: of clients, some of which may lack the last classes.
    """
    named = [[*each.meanings[0]] for each in profiles if each.meanings and each.target != "next-token"]
    return max(named, key=len, default=[])
