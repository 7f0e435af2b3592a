"""The server half of local training; see algorithms/local.py."""

from typing import ClassVar, final

from strategies.averaging import AveragingStrategy


@final
class LocalStrategy(AveragingStrategy):
    """R1: tell the clients to train; the tree of shared tensors is empty."""

    aggregates: ClassVar[bool] = False
