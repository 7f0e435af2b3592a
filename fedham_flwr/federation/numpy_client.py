"""Flower's NumPyClient around the client half of any method: what a client does for each kind of exchange."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data import recipes
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.federation import model_card
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.federation.messages import Metrics
from fedham_flwr.federation.stages import EVALUATE, TRAIN, Stage
from fedham_flwr.models import export
from fedham_flwr.training.guard import TEST
from fedham_flwr.training.trainer import Predictor


class FlowerClient(NumPyClient):
    """One message's work: score, train, score again, keep and export what the method says.

    Args:
        half: the method's, for one message.
        data: the client's, all of them, of which the method sees no test split.
    """

    def __init__(self, half: RoundClient, data: ClientData) -> None:
        self.half, self._data = half, data
        self._job = half.job
        self._scores: dict[str, float | int] = {}
        self._predictor: Predictor | None = None
        self._exported: model_card.Exported | None = None

    def work(self, stage: Stage) -> Params:
        """What a message of this stage asks for; the tensors to send back."""
        sent = self._work(stage)
        if self._exported:  # all scores are there now
            model_card.write(self._exported, self.metrics)
        return sent

    @property
    def metrics(self) -> Metrics:
        """All scores so far, and seconds."""
        return {**self._scores, **self.half.metrics}  # type: ignore[dict-item]

    def _work(self, stage: Stage) -> Params:
        received = self._job.download.params
        if stage is TRAIN:
            trained, _, _ = self.fit([received[name].numpy() for name in self.half.received_names], {})
            return dict(zip(self.half.split.shared, map(torch.from_numpy, trained), strict=True))
        if stage is EVALUATE:
            self.evaluate([received[name].numpy() for name in self.half.received_names], {})
            return {}
        sent: Params = getattr(self, stage.work)(received)
        return sent

    # ---- Flower's ----------------------------------------------------------------------------------------------------

    def fit(self, parameters: NDArrays, config: Mapping[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """A round: score the model to start from, train it, score what the client uses, keep what is to be kept.

        Args:
            parameters: the shared tensors that came, in the model's order.
            config: not used; what the server says beside them is in the job's download.

        Returns:
            The shared tensors after training, the number of training samples, and the scores.
        """
        outcome = self._improve(self._received(parameters))
        return [outcome.send[name].numpy() for name in self.half.split.shared], self.half.examples, {**self.metrics}

    def evaluate(self, parameters: NDArrays, config: Mapping[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """Score the model to start from, and what training makes of it, which is then forgotten.

        Training is left out between rounds when the model that the client uses is the one before it.

        Args:
            parameters: as for `fit`.
            config: not used.

        Returns:
            The loss of the model to start from and the number of samples behind it, of the test split where that is
            scored, else of the validation split (NaN without samples); and the scores.
        """
        start = self._start(self._received(parameters))
        self._export("before")
        *_, shown = self._splits
        loss = float(self._scores.get(f"{shown}/{self._origin}/before/loss", "nan"))
        if self._job.download.closing or self._job.method.personal_model == "after":
            self._use(self._trained(start))
        return loss, len(self._data.splits[shown]), {**self.metrics}

    # ---- the other stages --------------------------------------------------------------------------------------------

    def personalise(self, received: Params) -> Params:
        """After the last round: train once more, by the method's rules, and keep what becomes of it."""
        self._improve(received)
        self._export("after", asked=True)
        return {}

    def meet(self, received: Params) -> Params:
        """A novel client: score what it is given; if it adapts alone, do so and score again."""
        start = self._start(received)
        if not self.half.split.adapted:
            self._use(self._trained(start), asked=True)
        return {}

    def adapt(self, received: Params) -> Params:
        """A novel client's turn: train the adapted tensors and what is personal; the former go back."""
        outcome = self._trained(self.half.start(received))
        if kept := {name: outcome.use[name] for name in self.half.split.personal}:
            self._job.state.save(kept, self._job.download.round)
        return {name: outcome.send[name] for name in self.half.split.adapted}

    def assess_adapted(self, received: Params) -> Params:
        """A novel client: score what the server has made of the turns."""
        self._load(self.half.start(received))
        self._score("personal", "after")
        self._export("after", asked=True)
        return {}

    def reply(self, _received: Params) -> Params:
        """Answer the method's question."""
        self.half.extras = self.half.answer()
        return {}

    # ---- the steps ---------------------------------------------------------------------------------------------------

    @property
    def _origin(self) -> str:
        """Whose model the client starts from: everybody's, or its own."""
        return "personal" if self._job.download.own or self.half.recalled else "global"

    def _received(self, arrays: NDArrays) -> Params:
        return dict(zip(self.half.received_names, map(torch.from_numpy, arrays), strict=True))

    def _start(self, received: Params) -> Params:
        """The model to start from, scored."""
        start = self.half.start(received)
        self._load(start)
        self._score(self._origin, "before")
        return start

    def _load(self, model: Params) -> None:
        """Make a model that is scored or exported the trainer's, with the running statistics that the run wants."""
        half, trainer = self.half, self._job.trainer
        half.load(model)
        if half.settings.batch_norm_statistics == "recalibrated":
            with half.clock("evaluate"):
                trainer.recalibrate(self._job.data, torch_stream(half.settings.seed, "parts", client=self._job.client))
                half.load(trainer.read(trainer.manifest.names()))

    def _trained(self, start: Params) -> Outcome:
        """What the client half's training gives."""
        outcome = self.half.train(start)
        if not isinstance(outcome, Outcome):
            raise UserError(
                f"train of {type(self.half).__name__} gives {type(outcome).__name__}, and wanted is an Outcome: "
                "self.outcome(the trained model)"
            )
        if self.half.trains:
            self._check(outcome)
        return outcome

    def _check(self, outcome: Outcome) -> None:
        """Refuse an outcome that lacks what the server, or the client's next round, will look for."""
        half, split = self.half, self.half.split
        kept = (
            split.personal if type(half).start is RoundClient.start else ()
        )  # another `start` says itself what it needs
        wanted = (("send", split.shared, outcome.send), ("use", (*split.shared, *split.personal), outcome.use))
        for what, names, given in (*wanted, ("keep", kept, outcome.keep)):
            if missing := [name for name in names if name not in given]:
                raise UserError(
                    f"train of {type(half).__name__} gives an Outcome whose `{what}` lacks {', '.join(missing[:3])}: "
                    "wanted self.outcome(the trained model), or the shared tensors to send, the whole model to use and "
                    "the personal ones to keep"
                )

    def _improve(self, received: Params) -> Outcome:
        outcome = self._trained(self._start(received))
        self._load(outcome.use)
        self._score("personal", "after")
        if outcome.keep:
            self._job.state.save(outcome.keep, self._job.download.round)
        self.half.extras = {**self.half.extras, **outcome.extras}
        return outcome

    def _use(self, outcome: Outcome, asked: bool = False) -> None:
        """Score and export the model that the client uses."""
        self._load(outcome.use)
        self._score("personal", "after")
        self._export("after", asked)

    @property
    def _splits(self) -> tuple[str, ...]:
        """The splits to score."""
        return self.half.settings.scored_splits(self._job.download.closing)

    def _score(self, model: str, phase: str) -> None:
        data, half = self._data, self.half
        measured = half.settings.measured(data.target, self._job.download.classes)
        with half.clock("evaluate"):
            predictor = half.predictor()
        self._predictor = predictor
        for split in self._splits:
            if not len(data.splits[split]):
                continue
            with half.clock("evaluate"):
                scores = self._job.trainer.evaluate(data, split, predictor, measured)
            found = {f"{split}/{model}/{phase}/{name}": value for name, value in scores.values.items()}
            found[f"n/{split}"] = scores.n
            self._scores |= found
            if split != TEST:
                half.metrics |= found

    def _export(self, phase: str, asked: bool = False) -> None:
        download, job = self._job.download, self._job
        if not download.export or not (asked or phase == self.half.settings.phase(download.closing)):
            return
        label = {
            "client": job.client,
            "strategy": self.half.settings.strategy,
            "phase": phase,
            "round": str(download.round),
            "precision": self.half.settings.precision,
            **({"predictor": type(self.half).__name__} if self._predictor else {}),
            **export.label(self.half.settings.model, download.shape, download.classes, self.half.settings.networks()),
            **recipes.label(self._data),
        }
        file = export.write_model(Path(download.export), job.client, job.trainer.state_dict(), label)
        if job.card:
            calibrated = model_card.calibration(job, self._data, self._predictor) if TEST in self._splits else None
            self._exported = model_card.Exported(self.half, self._data, file, phase, calibrated, self._predictor)
