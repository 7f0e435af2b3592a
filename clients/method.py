"""What a method's client half says of itself: the contract that `base.RoundClient` carries out.

A method says which layer groups are personal, and, where it differs, what the client starts from, how it trains and
predicts, and what it remembers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from fedham_flwr.core import parameters
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.clients import ClientData
from fedham_flwr.federation.wire import Download
from fedham_flwr.settings import Settings
from fedham_flwr.state.store import ClientState, StateNotFoundError
from fedham_flwr.training.trainer import GradientTerm, LocalTraining, Loss, Predictor, Samples, Trainer

log = logging.getLogger("fedham_flwr")

Score = bool | bytes | float | int | str
"""What a NumPyClient may return beside its arrays."""


@dataclass(frozen=True)
class Job:
    """What a client half works with: who it is, its data, the worker's model, and what it kept."""

    client: str
    settings: Settings
    data: ClientData
    trainer: Trainer
    state: ClientState
    download: Download


class ClientMethod:
    """A method's client half, as far as it differs from the others.

    Args:
        job: what to work with, for one message.

    Attributes:
        personal_phase: whether the model a client uses is the one before local training, or the one after it.
        one_model: every client without personal tensors starts from the same model, the global one.
        partial: the server may leave out shared tensors, which the client then takes from what it kept.
        personal_names: tensors that stay with this client.
        shared_names: all others; they are sent after training.
        download_names: those of them that came.
        metrics: scores and seconds so far.
        restarted: it has trained before, and something that it had learned for itself was lost and starts again.
    """

    personal_phase: ClassVar[Literal["before", "after"]] = "before"
    one_model: ClassVar[bool] = True
    partial: ClassVar[bool] = False

    def __init__(self, job: Job) -> None:
        self.job = job
        names = job.trainer.manifest.names()
        self.personal_names = tuple(self.personal_tensors())
        self.shared_names = tuple(name for name in names if name not in set(self.personal_names))
        came = job.download.params
        self.download_names = tuple(name for name in self.shared_names if name in came or not self.partial)
        self.restarted = False
        self.metrics: dict[str, Score] = {}

    # ---- what a method says --------------------------------------------------------------------------------------

    def personal_groups(self) -> Sequence[str]:
        """Names of the layer groups that stay with this client; none by default."""
        return ()

    def personal_tensors(self) -> Sequence[str]:
        """Names of the tensors that stay with this client; by default those of its personal groups."""
        return self.job.trainer.manifest.names(self.personal_groups())

    def kept_names(self) -> Sequence[str]:
        """Names of the tensors that the client remembers from round to round; by default its personal ones."""
        return self.personal_names

    def without_state(self, names: Sequence[str], error: StateNotFoundError) -> Params:
        """What a client starts from that has kept nothing: by default the first tensors.

        If it has trained before, that is so with lost-state="restart" only, and `restarted` says it.

        Args:
            names: the tensors that did not come.
            error: where they were looked for, and how to go on.

        Raises:
            UserError: it has trained before, so something was lost.
        """
        if self.has_learned:
            lost = f"{error}, though it has trained in this training: what it had learned is lost ({_few(names)})"
            if self.settings.lost_state == "refuse":
                raise UserError(f"{lost}; {error.ways}") from error
            log.warning("%s, and it starts again from the first tensors", lost)
            self.restarted = True
        return {name: self.job.trainer.initial[name] for name in names}

    def answer(self) -> Params:
        """What the server half asks before it can make the client's model: tensors of the method's own.

        Raises:
            UserError: this method asks nothing.
        """
        raise UserError(f"strategy={self.settings.strategy} asks its clients nothing before a round")

    def starting_model(self, came: Params, training: bool) -> Params:
        """All tensors of the model to start from; by default those that came and those that were kept.

        Args:
            came: shared tensors.
            training: whether the model will be trained and sent, or only scored.
        """
        names = self.job.trainer.manifest.names()
        return parameters.merge(came, self.kept([name for name in names if name not in came]), names)

    @property
    def origin(self) -> str:
        """Whose model the client starts from: global, if it is everybody's, or personal."""
        return "global" if self.one_model and not self.personal_names else "personal"

    def local_training(self) -> LocalTraining:
        """How to train; by default as the settings say."""
        return self.settings.local_training()

    def stream(self) -> torch.Generator:
        """What decides the order of the samples in local training; by default another for each round and client."""
        return torch_stream(self.settings.seed, "batches", self.job.download.round, self.job.client)

    def trained_tensors(self) -> Collection[str] | None:
        """Names of the tensors that local training moves, by whole layer groups; None, the default, for all."""
        return None

    def training_data(self) -> Samples:
        """The data whose training split the model is trained on; by default all of the client's."""
        return self.job.data

    def learned(self, after: Params) -> Params:
        """The model to keep and to send, of the model that training left; by default the same."""
        return after

    def also_kept(self) -> Params:
        """What the client remembers besides tensors of its model, by names that the model does not have; nothing."""
        return {}

    def besides(self) -> Params:
        """What is sent besides tensors of the model; nothing by default."""
        return {}

    def adapted_tensors(self) -> Sequence[str]:
        """Names of the tensors that a novel client trains for the server half to learn from; none by default."""
        return ()

    def loss(self) -> Loss | None:
        """The loss of local training; by default the mean cross-entropy."""
        return None

    def predictor(self) -> Predictor | None:
        """How the client predicts with the model that is loaded; by default the model alone."""
        return None

    def gradient_term(self, start: Mapping[str, torch.Tensor]) -> GradientTerm | None:
        """A term of the method's own in the gradient of local training; none by default.

        Args:
            start: the model that local training starts from.
        """
        return None

    # ---- what a method may use -------------------------------------------------------------------------------------

    def kept(self, names: Sequence[str]) -> Params:
        """Tensors of the model that the client has, or what it starts from that has not kept them."""
        if not names:
            return {}
        try:
            kept = self.job.state.load()
        except StateNotFoundError as error:
            return self.without_state(names, error)
        if missing := [name for name in names if name not in kept]:
            what = f"client {self.job.client} has not kept {', '.join(missing)}"
            kept |= self.without_state(missing, StateNotFoundError(what))
        return {name: kept[name] for name in names}

    @property
    def has_learned(self) -> bool:
        """Whether this client must have kept something, so that it is lost if nothing is there."""
        return self.job.download.has_trained or self.job.state.was_set_aside()

    @property
    def age(self) -> int:
        """Rounds since the client made the personal state that it starts from; 0 if it starts from none.

        Below 0 if that is of a later round, since the server went back to an earlier checkpoint.
        """
        made = self.job.state.round
        return 0 if made is None else self.job.download.round - made

    @property
    def examples(self) -> int:
        """Training samples of this client."""
        return len(self.job.data.splits["train"])

    @property
    def settings(self) -> Settings:
        """The run's settings."""
        return self.job.settings

    @contextmanager
    def clock(self, purpose: str) -> Iterator[None]:
        """Count the seconds within as the client's, for a purpose."""
        began = time.perf_counter()
        yield
        key = f"seconds/{purpose}"
        self.metrics[key] = float(self.metrics.get(key, 0.0)) + time.perf_counter() - began


def _few(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
