"""The client half of LoRA; see algorithms/lora.py."""

from typing import final

from fedham_flwr.algorithms.lora import LoraSettings, check_base
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient


@final
class LoraClient(RoundClient):
    """R3, R4: train all that is not fixed, keep what is personal, send what is shared."""

    own: LoraSettings

    def start(self, received: Params) -> Params:
        """R2: what came and what was kept, on the same fixed network."""
        check_base(self.job.download.extras.facts, self.job.trainer.manifest.fixed, self.job.client)
        return super().start(received)
