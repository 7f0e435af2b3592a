"""The client half that every method shares: the order in which a round's few steps happen.

`method.py` says what a method must say of itself. Personal tensors go into the client's state and into no message.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar
from safetensors import SafetensorError

from clients.method import ClientMethod, Job
from fedham_flwr.core import parameters
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.models import export
from fedham_flwr.models.export import write_model
from fedham_flwr.training.trainer import Trainer

__all__ = ["Job", "RoundClient"]

MOST_NATS = 700.0
"""A mean loss beyond this has no perplexity that a float could hold."""


class RoundClient(ClientMethod, NumPyClient):
    """Carries out what a method says, when Flower calls."""

    # ---- Flower's NumPyClient ------------------------------------------------------------------------------------

    def fit(self, parameters: NDArrays, config: Mapping[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """One round: score the model received, train it, score it again, keep the personal part.

        Args:
            parameters: the shared tensors, in the order of `download_names`.
            config: not used; what the server says besides is in the job's download.

        Returns:
            The shared tensors after training, the number of training samples, and the scores.
        """
        after = self._improve(parameters, training=True)  # R2
        return [after[name].numpy() for name in self.shared_names], self.examples, self.metrics

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
        self._score(self.origin, "before")
        self._export("before")
        if self.job.download.closing or self.personal_phase == "after":
            self._train(start)
            self._score("personal", "after")
            self._export("after")
        loss = self.metrics[f"test/{self.origin}/before/loss"]
        return float(loss), len(self.job.data.splits["test"]), self.metrics

    # ---- a stage of its own ----------------------------------------------------------------------------------------

    def personalise(self, parameters: NDArrays) -> dict[str, Scalar]:
        """After the last round: train the model received once more, by the method's rules, and keep what becomes of it.

        Args:
            parameters: the shared tensors, in the order of `download_names`.
        """
        self._improve(parameters, training=False)
        self._export("after", asked=True)
        return self.metrics

    # ---- a novel client ------------------------------------------------------------------------------------------

    def meet(self, parameters: NDArrays) -> dict[str, Scalar]:
        """Score what the federation gives a client that it does not know; if that adapts alone, do so and score again.

        Args:
            parameters: the shared tensors, in the order of `download_names`.
        """
        start = self._start(parameters, training=False)
        self._score(self.origin, "before")
        if not self.adapted_tensors():
            self._train(start, steps=self.settings.novel_steps)
            self._score("personal", "after")
            self._export("after", asked=True)
        return self.metrics

    def adapt(self, parameters: NDArrays) -> Params:
        """A turn: train the adapted tensors, and what is personal, for `novel-steps` steps; return the former.

        Args:
            parameters: as for `meet`.
        """
        names = self.adapted_tensors()
        start = self._start(parameters, training=False)
        self._train(start, self.settings.novel_steps, (*names, *self.personal_names))
        trained = read_checked(self.job.trainer)
        if kept := {name: trained[name] for name in self.personal_names}:
            self.job.state.save(kept, self.job.download.round)
        return {name: trained[name] for name in names}

    def score_adapted(self, parameters: NDArrays) -> dict[str, Scalar]:
        """Score what the server half has made of the turns.

        Args:
            parameters: as for `meet`.
        """
        self._start(parameters, training=False)
        self._score("personal", "after")
        self._export("after", asked=True)
        return self.metrics

    # ---- the steps -----------------------------------------------------------------------------------------------

    def _improve(self, arrays: NDArrays, training: bool) -> Params:
        """Score the model received, train it, score it again, and keep what is to be kept; all tensors after it."""
        start = self._start(arrays, training)
        self._score(self.origin, "before")
        self._train(start)
        self._score("personal", "after")
        after = self.learned(read_checked(self.job.trainer))
        if kept := {name: after[name] for name in self.kept_names()} | self.also_kept():
            self.job.state.save(kept, self.job.download.round)  # R3
        return after

    def _start(self, arrays: NDArrays, training: bool) -> Params:
        """Put the model together and load it; all its tensors."""
        trainer = self.job.trainer
        came = dict(zip(self.download_names, map(torch.from_numpy, arrays), strict=True))
        trainer.manifest.check(came, self.download_names)
        model = self.starting_model(came, training)
        trainer.load(model)
        return model

    def _train(self, start: Params, steps: int = 0, only: Collection[str] | None = None) -> None:
        job = self.job
        how = dataclasses.replace(self.local_training(), steps=steps)
        only = self.trained_tensors() if only is None else only
        with self.clock("train"):
            job.trainer.fit(self.training_data(), how, self.stream(), self.gradient_term(start), self.loss(), only)

    def _score(self, model: str, phase: str) -> None:
        data = self.job.data
        with self.clock("evaluate"):
            predictor = self.predictor()
        for split in ("validation", "test"):
            if not len(data.splits[split]):
                continue
            with self.clock("evaluate"):
                scores = self.job.trainer.evaluate(data, split, predictor)
            key = f"{split}/{model}/{phase}"
            self.metrics |= {f"{key}/accuracy": scores.accuracy, f"{key}/loss": scores.loss, f"n/{split}": scores.n}
            if data.kind == "text":
                self.metrics[f"{key}/perplexity"] = math.exp(min(scores.loss, MOST_NATS))

    def _export(self, phase: str, asked: bool = False) -> None:
        download, job = self.job.download, self.job
        if not download.export or not (asked or phase == self.personal_phase):
            return
        label = {
            "client": job.client,
            "strategy": self.settings.strategy,
            "phase": phase,
            **export.label(self.settings.model, download.shape, download.classes, self.settings.networks()),
            **(job.data.scaling.label() if job.data.scaling else {}),
        }
        try:
            write_model(Path(download.export), job.client, job.trainer.state_dict(), label)
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(
                f"the model of client {job.client} cannot be written to {download.export}: {why}"
            ) from error


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
