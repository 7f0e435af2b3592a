"""The client half of pFedLA and HeurpFedLA; see algorithms/pfedla.py."""

from collections.abc import Sequence
from typing import ClassVar, final

from clients.mixing import MixingClient
from fedham_flwr.algorithms import pfedla


@final
class PFedLAClient(MixingClient):
    """R4: start from the mixed layers and from what is one's own: retained layers and running statistics."""

    partial: ClassVar[bool] = True

    def personal_tensors(self) -> Sequence[str]:
        """The running statistics, unless they are mixed."""
        return pfedla.personal_names(self.job.trainer.manifest, self.settings.pfedla)

    def kept_names(self) -> Sequence[str]:
        """R5: all tensors, since any layer may be retained in the next round; without retained layers the personal."""
        everything = self.job.trainer.manifest.names()
        return everything if self.settings.pfedla.retained_layers else self.personal_names
