"""FedGH's server half; see algorithms/fedgh.py."""

from collections.abc import Mapping, Sequence
from typing import final

import torch

from fedham_flwr.algorithms import fedgh
from fedham_flwr.algorithms.fedgh import FedGHSettings
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params, all_finite
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.core.trees import check_like
from fedham_flwr.federation.classes import check_classes, warn_of_few
from fedham_flwr.federation.contract import Extras, Setup, Start, Upload
from fedham_flwr.federation.extras import check_tensors
from fedham_flwr.federation.rounds import RoundStrategy


@final
class FedGHStrategy(RoundStrategy):
    """The common last layer, the header.

    Raises:
        UserError: there are no classes.
    """

    own: FedGHSettings

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        check_classes(setup, own_loss=False)
        warn_of_few(setup, self.own.min_samples)
        self._header: Params = {part: setup.initial[name] for part, name in fedgh.header_names(self.manifest).items()}

    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """R1: the same header for every client."""
        return dict.fromkeys(clients, Start({}, Extras(self._header)))

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """R6.

        Raises:
            UserError: the header diverged.
        """
        means = torch.stack([upload.extras["means"].double() for upload in uploads.values()])
        has = torch.stack([upload.extras["has"] for upload in uploads.values()]) > 0
        if not bool(has.any()):
            return
        own, draw = self.own, torch_stream(self.settings.seed, "header", round_number)
        trained = fedgh.train_header(
            self._header,
            means[has],
            has.nonzero()[:, 1],
            own.server_rate,
            own.server_epochs,
            self.settings.batch_size,
            draw,
        )
        if not all(map(all_finite, trained.values())):
            raise UserError(f"the server's last layer diverged in round {round_number}: lower fedgh.server-rate")
        self._header = trained

    def check_extras(self, stage: str, client: str, tensors: Params) -> None:
        """Refuse class means that cannot be.

        Raises:
            ValueError: they are missing or of other shapes, not finite or too long, or a class is neither had nor not.
        """
        k, d = self._header["weight"].shape
        check_tensors(tensors, {"means": (k, d), "has": (k,)} if stage == "train" else {})
        if tensors and not bool(((tensors["has"] == 0) | (tensors["has"] == 1)).all()):
            raise ValueError("has is neither 0 nor 1 for a class")

    def state_dict(self) -> Params:
        """The header."""
        return dict(self._header)

    def load_state_dict(self, state: Params) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            ValueError: it is of another last layer.
        """
        check_like(state, self._header)
        self._header = {part: state[part] for part in self._header}
