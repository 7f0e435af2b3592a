"""The client half of pFedHN; see algorithms/pfedhn.py."""

from typing import final

from fedham_flwr.federation.client import RoundClient


@final
class PFedHNClient(RoundClient):
    """R3, R4: train the model that was generated, and what is personal along; keep that, and send the rest."""
