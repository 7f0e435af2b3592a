"""Local training: every client learns alone. The floor that any federated method has to beat.

Symbols: w_k client k's model, E local epochs. The number of local steps is that of the federated runs.

Identity card
    shared      nothing
    personal    every layer group
    lives       w_k with the client
    down, up    nothing
    cost        server: none; client: E epochs
    server sees nothing
    peers see   nothing
    bound       nothing: no client hears of another

The round
    R1  server: choose S, tell each of its clients to train                     strategies/local.py
    R2  client: w_k <- E epochs of SGD on L_k from its own w_k                   clients/local.py
    R3  client: keep w_k                                                        clients/local.py

Every w_k starts from the same initialisation, the one that the federated methods start from.
"""

from __future__ import annotations

from fedham_flwr.core.methods import Method, Split, never, split_groups
from fedham_flwr.core.parameters import Manifest


def split(manifest: Manifest, _settings: None) -> Split:
    """All layer groups stay with the client."""
    return split_groups(manifest, manifest.group_names)


METHOD = Method(
    "strategies.local:LocalStrategy",
    "clients.local:LocalClient",
    split,
    floor=True,
    own_networks=True,
    counts_samples=never,
)
