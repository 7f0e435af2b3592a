"""FedGH's client half; see algorithms/fedgh.py."""

from typing import final

from fedham_flwr.algorithms.fedgh import FedGHSettings, header_names
from fedham_flwr.algorithms.fedpac import class_means
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome


@final
class FedGHClient(RoundClient):
    """R5: keep the network, whose last layer the next header replaces, and send class means."""

    own: FedGHSettings

    def start(self, received: Params) -> Params:
        """R2: the own body, and the header as the last layer.

        Raises:
            UserError: the header is none for this network.
        """
        trainer, header = self.job.trainer, self.job.download.extras.tensors
        names = header_names(trainer.manifest)
        shapes = {part: tuple(tensor.shape) for part, tensor in header.items()}
        own = {part: trainer.manifest.shapes[name] for part, name in names.items()}
        if shapes != own:
            raise UserError(
                f"client {self.job.client} has a network whose last layer has {own}, and that of this run has "
                f"{shapes}: wanted a network like the others' in this"
            )
        return {**super().start(received), **{name: header[part] for part, name in names.items()}}

    def train(self, start: Params) -> Outcome:
        """R3, R4, R5."""
        after, manifest = self.fit(start), self.job.trainer.manifest
        extras: Params = {}
        if self.trains:
            classes, _ = manifest.shapes[header_names(manifest)["weight"]]
            means, counts = class_means(*self.encode(after, "train"), classes)
            has = counts >= self.own.min_samples
            extras = {"means": (means * has[:, None]).float(), "has": has.float()}
        return Outcome({}, after, after, extras)
