"""FedDBE's server half; see algorithms/feddbe.py."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from fedham_flwr.algorithms.feddbe import MEAN, mean_of
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.bounds import MOST_NORM
from fedham_flwr.federation.contract import Extras, Setup, Start, Upload
from fedham_flwr.models.heads import head_name
from strategies.averaging import AveragingStrategy

STATE = "feddbe/mean"
"""Name of m_g in the server's state."""


@final
class FedDBEStrategy(AveragingStrategy):
    """R4, R7: the mean of the clients' models; before the first round, once, that of their features.

    Raises:
        UserError: the settings name another loss than the task's.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.settings.local_training(1).check_task_loss('strategy="feddbe"')
        self._width = self.manifest.shapes[f"{head_name(self.manifest)}.weight"][1]
        self._mean: Tensor | None = None
        self._everyone: tuple[str, ...] = ()

    def add_clients(self, clients: Sequence[str]) -> None:
        """Take note of who can be asked."""
        self._everyone = tuple(clients)

    def questions(self, round_number: int, clients: Sequence[str]) -> dict[str, Extras]:
        """R1: once, the common model for everyone who is there, not for the round's cohort alone."""
        if self._mean is not None:
            return {}
        asked = Extras(dict(self.shared))
        return dict.fromkeys((*clients, *(one for one in self._everyone if one not in clients)), asked)

    def answered(self, round_number: int, replies: Mapping[str, Upload]) -> None:
        """R3: m_g is the mean of those that answered, for good."""
        means = [upload.extras[MEAN] for upload in replies.values()]
        self._mean = mean_of(means, [upload.examples for upload in replies.values()])

    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """R4: the same model and m_g for every client; no m_g before anybody was asked."""
        plan = super().plan(round_number, clients)
        if self._mean is None:
            return plan
        along = Extras({MEAN: self._mean})
        return {client: dataclasses.replace(start, extras=along) for client, start in plan.items()}

    def check_extras(self, stage: str, client: str, tensors: Params) -> None:
        """Refuse what is no mean of features.

        Raises:
            ValueError: it is missing, not asked for, of another shape or type, not finite or absurdly long.
        """
        wanted = {MEAN} if stage == "query" else set()
        if tensors.keys() != wanted:
            raise ValueError(f"tensors other than the model's are {sorted(tensors)}, wanted {sorted(wanted)}")
        for mean in tensors.values():
            if tuple(mean.shape) != (self._width,) or mean.dtype != torch.float32:
                raise ValueError(
                    f"the mean of features is {mean.dtype} {tuple(mean.shape)}, wanted float32 {(self._width,)}"
                )
            if not float(torch.linalg.vector_norm(mean.double())) <= MOST_NORM:
                raise ValueError(f"the mean of features is not finite, or longer than {MOST_NORM:g}")

    def state_dict(self) -> Params:
        """The shared tensors, and m_g once it is there."""
        return {**super().state_dict(), **({} if self._mean is None else {STATE: self._mean})}

    def load_state_dict(self, state: Params) -> None:
        """Continue from shared tensors and m_g.

        Raises:
            ValueError: they are not those of this model.
        """
        super().load_state_dict({name: tensor for name, tensor in state.items() if name != STATE})
        self._mean = state.get(STATE)
        if self._mean is not None:
            self.check_extras("query", "", {MEAN: self._mean})
