"""The client half that every method shares: the order in which a round's few steps happen.

A method says which layer groups are personal, and, where it differs, what the client starts from and what it adds to
the gradient. Personal tensors go into the client's state and into no message.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar

from fedham_flwr import models, parameters
from fedham_flwr.config import Settings
from fedham_flwr.data import ClientData
from fedham_flwr.errors import UserError
from fedham_flwr.parameters import Params
from fedham_flwr.results import write_model
from fedham_flwr.seeding import torch_stream
from fedham_flwr.state import ClientState, StateNotFoundError
from fedham_flwr.training import GradientHook, Samples, Trainer
from fedham_flwr.wire import Download


@dataclass(frozen=True)
class Job:
    """What a client half works with: who it is, its data, the worker's model, and what it kept."""

    client: str
    settings: Settings
    data: ClientData
    trainer: Trainer
    state: ClientState
    download: Download


class RoundClient(NumPyClient):
    """A method's client half.

    Args:
        job: what to work with, for one message.

    Attributes:
        personal_phase: whether the model a client uses is the one before local training, or the one after it.
        one_model: every client without personal tensors starts from the same model, the global one.
        partial: the server may leave out shared tensors, which the client then takes from what it kept.
        personal_names: tensors that stay with this client.
        shared_names: all others; they are sent after training.
        download_names: those of them that came.
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
        self._metrics: dict[str, Scalar] = {}

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
        """What a client starts from that has kept nothing: by default the first tensors, before its first round only.

        Args:
            names: the tensors that did not come.
            error: where they were looked for.

        Raises:
            UserError: it has trained before, so something was lost.
        """
        if self.job.download.has_trained:
            raise UserError(f"{error}, though it has trained in this run: what it had learned is lost") from error
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

    def gradient_hook(self, start: Mapping[str, torch.Tensor]) -> GradientHook | None:
        """A term of the method's own in the gradient of local training; none by default.

        Args:
            start: the model that local training starts from.
        """
        return None

    # ---- Flower's NumPyClient ------------------------------------------------------------------------------------

    def fit(self, parameters: NDArrays, config: Mapping[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """One round: score the model received, train it, score it again, keep the personal part.

        Args:
            parameters: the shared tensors, in the order of `download_names`.
            config: not used; what the server says besides is in the job's download.

        Returns:
            The shared tensors after training, the number of training samples, and the scores.
        """
        start = self._start(parameters, training=True)
        self._score(start.origin, "before")
        self._train(start.params)  # R2
        self._score("personal", "after")
        after = self.learned(read_checked(self.job.trainer))
        if kept := {name: after[name] for name in self.kept_names()} | self.also_kept():
            self.job.state.save(kept, self.job.download.round)  # R3
        return [after[name].numpy() for name in self.shared_names], self.examples, self._metrics

    def evaluate(self, parameters: NDArrays, config: Mapping[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """Score the model received, and the same after local fine-tuning, which is then forgotten.

        Fine-tuning is left out between rounds when the method's personal model is the one before it.

        Args:
            parameters: the shared tensors, in the order of `download_names`.
            config: not used.

        Returns:
            The loss of the model received on the test split, the number of test samples, and the scores.
        """
        start = self._start(parameters, training=False)
        self._score(start.origin, "before")
        self._export("before")
        if self.job.download.closing or self.personal_phase == "after":
            self._train(start.params)
            self._score("personal", "after")
            self._export("after")
        loss = self._metrics[f"test/{start.origin}/before/loss"]
        return float(loss), len(self.job.data.splits["test"]), self._metrics

    @property
    def examples(self) -> int:
        """Training samples of this client."""
        return len(self.job.data.splits["train"])

    # ---- the steps -----------------------------------------------------------------------------------------------

    def _start(self, arrays: NDArrays, training: bool) -> Start:
        """Put the model together and load it."""
        trainer = self.job.trainer
        came = dict(zip(self.download_names, map(torch.from_numpy, arrays), strict=True))
        trainer.manifest.check(came, self.download_names)
        model = self.starting_model(came, training)
        trainer.load(model)
        return Start(model, "global" if self.one_model and not self.personal_names else "personal")

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

    def _train(self, start: Params) -> None:
        settings, job = self.settings, self.job
        generator = torch_stream(settings.seed, "batches", job.download.round, job.client)
        with self.clock("train"):
            job.trainer.fit(self.training_data(), settings.local_training(), generator, self.gradient_hook(start))

    def _score(self, model: str, phase: str) -> None:
        for split in ("validation", "test"):
            if not len(self.job.data.splits[split]):
                continue
            with self.clock("evaluate"):
                scores = self.job.trainer.evaluate(self.job.data, split)
            self._metrics[f"{split}/{model}/{phase}/accuracy"] = scores.accuracy
            self._metrics[f"{split}/{model}/{phase}/loss"] = scores.loss
            self._metrics[f"n/{split}"] = scores.n

    def _export(self, phase: str) -> None:
        download, job = self.job.download, self.job
        if not download.export or phase != self.personal_phase:
            return
        label = {
            "client": job.client,
            "strategy": self.settings.strategy,
            "model": models.resolve(self.settings.model, download.shape),
            "shape": ",".join(map(str, download.shape)),
            "classes": str(download.classes),
            "phase": phase,
        }
        write_model(Path(download.export), job.client, job.trainer.state_dict(), label)

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
        self._metrics[key] = float(self._metrics.get(key, 0.0)) + time.perf_counter() - began


@dataclass(frozen=True)
class Start:
    """The model that a client starts from: all its tensors, and whose it is ("global" or "personal")."""

    params: Params
    origin: str


def read_checked(trainer: Trainer) -> Params:
    """All tensors of a trained model.

    Raises:
        UserError: a tensor is not finite; nothing of it may be kept or sent.
    """
    model = trainer.read(trainer.manifest.names())
    for name, tensor in model.items():
        if not parameters.all_finite(tensor):
            raise UserError(f"training diverged: {name} holds NaN or infinity; lower learning-rate")
    return model
