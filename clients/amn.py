"""The client half of AMN; see algorithms/amn.py."""

from typing import final

from clients.mixing import MixingClient


@final
class AMNClient(MixingClient):
    """R3, R4: train from the hybrid model; keep the running statistics and send the rest."""
