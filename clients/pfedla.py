"""The client half of pFedLA and HeurpFedLA; see algorithms/pfedla.py."""

import logging
from collections.abc import Sequence
from typing import ClassVar, final

from clients.base import RoundClient
from fedham_flwr.algorithms import pfedla
from fedham_flwr.parameters import Params
from fedham_flwr.state import StateLostError, StateNotFoundError

log = logging.getLogger("fedham_flwr")


@final
class PFedLAClient(RoundClient):
    """R4: start from the mixed layers and from what is one's own: retained layers and running statistics."""

    one_model: ClassVar[bool] = False
    partial: ClassVar[bool] = True

    def personal_tensors(self) -> Sequence[str]:
        """The running statistics, unless they are mixed."""
        return pfedla.personal_names(self.job.trainer.manifest, self.settings.pfedla)

    def kept_names(self) -> Sequence[str]:
        """R5: all tensors, since any layer may be retained in the next round; without retained layers the personal."""
        everything = self.job.trainer.manifest.names()
        return everything if self.settings.pfedla.retained_layers else self.personal_names

    def without_state(self, names: Sequence[str], error: StateNotFoundError) -> Params:
        """The first tensors before the first round; later the running statistics start again, which training mends.

        Raises:
            StateLostError: layers are missing; the server has them and sends them when it hears of it.
        """
        if self.job.download.has_trained:
            if set(names) - set(self.personal_names):
                raise StateLostError(f"{error}, though it has trained in this run") from error
            log.warning("%s, though it has trained in this run: its running statistics start again", error)
        return {name: self.job.trainer.initial[name] for name in names}
