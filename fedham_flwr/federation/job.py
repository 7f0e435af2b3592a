"""What a client half works with, for one message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedham_flwr.core.methods import Method
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.federation.messages import Download
from fedham_flwr.federation.stages import TRAIN, Stage
from fedham_flwr.run_settings import Settings
from fedham_flwr.state.store import ClientState
from fedham_flwr.training.trainer import Trainer

if TYPE_CHECKING:
    from fedham_flwr.training.engine.cohort import CohortTrainer


@dataclass(frozen=True)
class Job:
    """What a client half works with, for one message.

    Attributes:
        client: its id.
        settings: the run's.
        method: the method's declaration.
        data: the client's, without its test split (see `training.guard`).
        trainer: the worker's model.
        state: what the client kept.
        download: what the server sent.
        stage: the kind of exchange.
        card: an exported model gets a card beside it.
    """

    client: str
    settings: Settings
    method: Method
    data: ClientData
    trainer: Trainer | CohortTrainer
    state: ClientState
    download: Download
    stage: Stage = TRAIN
    card: bool = True
