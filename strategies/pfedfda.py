"""pFedFDA's server half; see algorithms/pfedfda.py."""

from collections.abc import Mapping, Sequence
from typing import final

import torch

from fedham_flwr.algorithms import fedavg, pfedfda
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.core.trees import check_like
from fedham_flwr.federation.classes import target_of
from fedham_flwr.federation.contract import Extras, Setup, Start, Upload
from fedham_flwr.federation.extras import check_tensors
from fedham_flwr.models.heads import head_name
from strategies.averaging import AveragingStrategy

ROUNDING = 1e-4
"""Of the largest entry of a covariance: by how much it may lack symmetry, or have eigenvalues below 0."""
PREFIX = "gaussian/"
"""Of the Gaussian's tensors in the server's state."""


@final
class PFedFDAStrategy(AveragingStrategy):
    """R1, R7: the means of the bodies and of the Gaussians.

    Raises:
        UserError: the target is not one class of each sample.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        pfedfda.check_target(target_of(setup))
        k, d = self._size = self.manifest.shapes[f"{head_name(self.manifest)}.weight"]
        draw = torch_stream(self.settings.seed, "gaussian")
        self.gaussian: Params = {"means": torch.rand(k, d, generator=draw), "covariance": torch.eye(d)}

    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """R1: the same for every client."""
        starts = super().plan(round_number, clients)
        return {client: Start(start.params, Extras(self.gaussian)) for client, start in starts.items()}

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """R7."""
        super().merge(round_number, uploads)
        replies = list(uploads.values())
        self.gaussian = fedavg.aggregate([reply.extras for reply in replies], [reply.examples for reply in replies])

    def check_extras(self, stage: str, client: str, tensors: Params) -> None:
        """Refuse means and covariances that cannot be.

        Raises:
            ValueError: they are missing, of other shapes, not finite or too large, or the covariance is none.
        """
        k, d = self._size
        check_tensors(tensors, {"means": (k, d), "covariance": (d, d)} if stage == "train" else {})
        if not tensors:
            return
        covariance = tensors["covariance"].double()
        least = -ROUNDING * float(covariance.abs().max())
        if float((covariance - covariance.T).abs().max()) > -least:
            raise ValueError("covariance is not symmetric")
        if float(torch.linalg.eigvalsh(covariance)[0]) < least:
            raise ValueError("covariance has a negative eigenvalue")

    def state_dict(self) -> Params:
        """The shared tensors and the Gaussian."""
        return {**super().state_dict(), **{PREFIX + name: tensor for name, tensor in self.gaussian.items()}}

    def load_state_dict(self, state: Params) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            ValueError: it is not of this model, or not finite.
        """
        check_like(state, self.state_dict())
        given = {name: state[PREFIX + name] for name in self.gaussian}
        self.check_extras("train", "", given)
        super().load_state_dict({name: state[name] for name in self.split.shared})
        self.gaussian = given
