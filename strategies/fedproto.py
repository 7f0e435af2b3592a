"""FedProto's server half; see algorithms/fedproto.py."""

from collections.abc import Mapping, Sequence
from typing import final

import torch

from fedham_flwr.algorithms import fedproto
from fedham_flwr.algorithms.fedproto import FedProtoSettings
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.trees import check_like
from fedham_flwr.federation.classes import check_classes, warn_of_few
from fedham_flwr.federation.contract import Extras, Setup, Start, Upload
from fedham_flwr.federation.extras import check_tensors
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.models.heads import head_name


@final
class FedProtoStrategy(RoundStrategy):
    """The global prototypes, which are all that clients have of each other.

    Raises:
        UserError: there are no classes, or the settings name another loss.
    """

    own: FedProtoSettings

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        check_classes(setup)
        warn_of_few(setup, self.own.min_samples)
        self._size = self.manifest.shapes[f"{head_name(self.manifest)}.weight"]  # (k, d)
        self._means, self._known = torch.zeros(self._size), torch.zeros(self._size[0], dtype=torch.bool)

    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """R1: the same prototypes for every client, once there are some."""
        extras = Extras()
        if bool(self._known.any()):
            extras = Extras({"means": self._means}, {"known": tuple(self._known.int().tolist())})
        return dict.fromkeys(clients, Start({}, extras))

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """R5."""
        replies = list(uploads.values())
        means, shares = (torch.stack([reply.extras[name].double() for reply in replies]) for name in self._wanted)
        counts = shares * torch.tensor([reply.examples for reply in replies], dtype=torch.float64)[:, None]
        found, sent = fedproto.merged(means, counts, self.own.weights)
        self._means = torch.where(sent[:, None], found.float(), self._means)
        self._known = self._known | sent

    def check_extras(self, stage: str, client: str, tensors: Params) -> None:
        """Refuse prototypes that cannot be.

        Raises:
            ValueError: they are missing or of other shapes, not finite or too long, or the shares are none.
        """
        check_tensors(tensors, self._wanted if stage == "train" else {})
        if tensors and not (bool((tensors["shares"] >= 0).all()) and float(tensors["shares"].sum()) < 1 + 1e-3):
            raise ValueError("shares has a negative share of a class, or sums to more than 1")

    def state_dict(self) -> Params:
        """The prototypes, and of which classes there is one."""
        return {"means": self._means, "known": self._known}

    def load_state_dict(self, state: Params) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            ValueError: it is of other features or classes.
        """
        check_like(state, self.state_dict())
        self._means, self._known = state["means"], state["known"]

    @property
    def _wanted(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of what clients send."""
        return {"means": self._size, "shares": (self._size[0],)}
