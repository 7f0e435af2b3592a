"""What the client halves of the methods share that mix each client's start from the models of all clients."""

import logging
from collections.abc import Sequence
from typing import ClassVar

from clients.base import RoundClient
from fedham_flwr.core.parameters import Params
from fedham_flwr.state.store import StateLostError, StateNotFoundError

log = logging.getLogger("fedham_flwr")


class MixingClient(RoundClient):
    """Starts from a model of its own; its running statistics are personal."""

    one_model: ClassVar[bool] = False

    def personal_tensors(self) -> Sequence[str]:
        """The running statistics."""
        return tuple(name for group in self.job.trainer.manifest.groups for name in group.buffers)

    def without_state(self, names: Sequence[str], error: StateNotFoundError) -> Params:
        """The first tensors before the first round; later the running statistics start again, which training mends.

        Raises:
            StateLostError: layers are missing; the server has them and sends them when it hears of it.
        """
        if self.has_learned:
            if set(names) - set(self.personal_names):
                raise StateLostError(f"{error}, though it has trained in this training") from error
            log.warning("%s, though it has trained in this training: its running statistics start again", error)
            self.restarted = True
        return {name: self.job.trainer.initial[name] for name in names}
