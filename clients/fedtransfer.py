"""The client half of Fed_T and Fed_T_A; see algorithms/fedtransfer.py."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import final

import torch

from clients.base import RoundClient
from fedham_flwr.algorithms import fedtransfer
from fedham_flwr.core import parameters
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.training.trainer import LocalTraining


@final
class FedTransferClient(RoundClient):
    """R2, R3: FedAvg's rounds, in which the client's own block rests; R6, R7, R8: then the personal stage."""

    def personal_groups(self) -> Sequence[str]:
        """The client's own block."""
        return fedtransfer.block_groups(self.settings.fedtransfer)

    @property
    def origin(self) -> str:
        """What comes is the global model, unless it is the one that this client had at the end of another run."""
        return "personal" if fedtransfer.OWN in self.job.download.besides.facts else "global"

    def starting_model(self, came: Params, training: bool) -> Params:
        """R6: what came, and a fresh block."""
        fresh = {name: self.job.trainer.initial[name] for name in self.personal_names}
        return parameters.merge(came, fresh, self.job.trainer.manifest.names())

    def trained_tensors(self) -> Collection[str] | None:
        """R2: all but the block; R7: all but the frozen groups."""
        manifest = self.job.trainer.manifest
        rests = self.personal_groups()
        if self.job.download.closing:
            rests = fedtransfer.frozen_groups(manifest.groups, self.settings.fedtransfer)
        return manifest.names(name for name in manifest.group_names if name not in rests) if rests else None

    def local_training(self) -> LocalTraining:
        """R7: so many epochs, at a rate of their own if there is one."""
        how, usual = self.settings.fedtransfer, super().local_training()
        if not self.job.download.closing:
            return usual
        rate = how.learning_rate or usual.learning_rate
        return dataclasses.replace(usual, local_epochs=how.personal_epochs, learning_rate=rate)

    def stream(self) -> torch.Generator:
        """R7: whatever the number of rounds before, so a stage that starts later from the same model is the same."""
        if not self.job.download.closing:
            return super().stream()
        return torch_stream(self.settings.seed, "personal-stage", client=self.job.client)

    def kept_names(self) -> Sequence[str]:
        """R8: the whole personal model, once there is one."""
        return self.job.trainer.manifest.names() if self.job.download.closing else ()
