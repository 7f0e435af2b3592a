"""The server half of LoRA; see algorithms/lora.py."""

from collections.abc import Mapping, Sequence
from typing import final

import torch

from fedham_flwr.algorithms import lora
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.contract import Extras, Start
from strategies.averaging import AveragingStrategy


@final
class LoraStrategy(AveragingStrategy):
    """R1, R5: the mean of what is shared; of the fixed network it tells a digest, and no client sends any of it."""

    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """R1: the same for every client."""
        told = Extras(facts={lora.BASE: lora.digest_facts(self.manifest.fixed)})
        starts = super().plan(round_number, clients)
        return {client: Start(start.params, told) for client, start in starts.items()}

    def describe(self) -> str:
        """What is shared and personal, and which network it is that nobody sends."""
        return f"{super().describe()}; all else is fixed, and in no message (digest {self.manifest.fixed[:8]})"

    def state_dict(self) -> Params:
        """What is shared, and of which fixed network."""
        return {**super().state_dict(), lora.KEPT: torch.tensor(lora.digest_facts(self.manifest.fixed))}

    def load_state_dict(self, state: Params) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            ValueError: it is not of this model and these settings, or the fixed network is another one by now.
        """
        if lora.KEPT not in state:
            raise ValueError(f"tensors are missing: {lora.KEPT}")
        if tuple(state[lora.KEPT].tolist()) != lora.digest_facts(self.manifest.fixed):
            raise ValueError(
                "its adapters are of another base network than lora.base, hub.folder or the seed give: wanted the same"
            )
        super().load_state_dict({name: tensor for name, tensor in state.items() if name != lora.KEPT})
