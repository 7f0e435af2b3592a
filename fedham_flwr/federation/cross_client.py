"""The client's half of cross-site evaluation: whether it takes part, its exported model, and scores of others' models.

A client takes part if its node config says `cross-evaluation=true`; one of a simulation does unless it says `false`.
What a client does not consent to it does not do, whatever the server asks: it sends no model and scores none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.direct import Reply
from fedham_flwr.federation.stages import Stage
from fedham_flwr.settings import Value
from fedham_flwr.training.measurement import Scores

CONSENTS, MODEL, TEST, NUMBER = "consents", "model", "test", "n"
"""Names of whole numbers in an answer: consents and has a model (0 or 1), its test samples, predictions scored."""
ALSO_VALIDATION = "also-validation"
"""In a question: the validation split is scored first, whose scores are not sent."""


class CrossClient:
    """One message's work.

    Args:
        half: the method's client half, which brings trainer and predictor.
        data: the client's, all of them.
        node: the node config.
    """

    def __init__(self, half: RoundClient, data: ClientData, node: Mapping[str, Value]) -> None:
        self._half, self._job, self._data, self._node = half, half.job, data, node

    def work(self, stage: Stage) -> Reply:
        """The answer to a message of this stage."""
        params, extras = getattr(self, stage.work)()
        return Reply(self._job.client, params, self._half.examples, self._half.metrics, extras)  # type: ignore[arg-type]

    def consent(self) -> tuple[Params, Params]:
        """Whether the client takes part, has left a model, and how many test samples it has."""
        numbers = {CONSENTS: self._consents, MODEL: self._file.is_file(), TEST: len(self._data.splits["test"])}
        return {}, {name: torch.tensor([int(number)]) for name, number in numbers.items()}

    def give(self) -> tuple[Params, Params]:
        """The whole model that the client uses, as it was exported."""
        self._check()
        return read_model(self._file, self._job.trainer.manifest.names()), {}

    def score_others(self) -> tuple[Params, Params]:
        """Scores of models, in the order in which they came: float64 [models] of each metric, NaN where it has none."""
        self._check()
        models = parted(self._job.download.extras.tensors)
        first = ("validation",) if ALSO_VALIDATION in self._job.download.extras.facts else ()
        splits = [which for which in (*first, "test") if len(self._data.splits[which])]
        found: list[Mapping[str, float]] = []
        n = 0
        for params in models:
            self._job.trainer.manifest.check(params, self._job.trainer.manifest.names())
            for which in splits:
                scores = self._score(params, which)
                if which == "test":
                    found.append(scores.values)
                    n = scores.n
        names = dict.fromkeys(name for values in found for name in values)
        columns = {name: [values.get(name, math.nan) for values in found] for name in names}
        told = {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}
        return {}, {**told, NUMBER: torch.tensor([n])}

    def _score(self, params: Params, split: str) -> Scores:
        half, job = self._half, self._job
        with half.clock("evaluate"):
            half.load(params)
            measured = half.settings.measured(self._data.target, job.download.classes)
            return job.trainer.evaluate(self._data, split, half.predictor(), measured)

    @property
    def _consents(self) -> bool:
        # The same that makes a client write into the run's directory: it has no data and no name of its own.
        simulated = {"partition-id", "num-partitions"} <= self._node.keys() and not (
            {"client-id", "data-path"} & self._node.keys()
        )
        return self._node.get("cross-evaluation", simulated) is True

    @property
    def _file(self) -> Path:
        """The exported model; of a client that has none, a file that is not there."""
        return model_file(self._job.download.export, self._job.client)

    def _check(self) -> None:
        if not self._consents:
            raise UserError(
                f"client {self._job.client} takes no part in cross-site evaluation: its node config would have to say "
                "cross-evaluation=true"
            )


def model_file(folder: str, client: str) -> Path:
    """Where a client's exported model lies; nowhere, if there is no folder."""
    return Path(folder or "/dev/null", f"{client}.safetensors")


def read_model(file: Path, names: tuple[str, ...]) -> Params:
    """The named tensors of an exported model.

    Args:
        file: of the model.
        names: of the run's model.

    Raises:
        UserError: it is not there, or not of this network.
    """
    from safetensors.torch import load_file

    try:
        whole = load_file(file)
        return {name: whole[name] for name in names}
    except (OSError, SafetensorError, KeyError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"the model {file} cannot be read: {why}") from error


def joined(models: list[Params]) -> Params:
    """Several models as one tree, each under its number."""
    return {f"{place}/{name}": tensor for place, model in enumerate(models) for name, tensor in model.items()}


def parted(tensors: Params) -> list[Params]:
    """The inverse of `joined`.

    Raises:
        UserError: the names are not numbered.
    """
    models: dict[int, Params] = {}
    for key, tensor in tensors.items():
        place, _, name = key.partition("/")
        if not place.isdecimal():
            raise UserError(f"{key!r} is no tensor of a numbered model")
        models.setdefault(int(place), {})[name] = tensor
    return [models[place] for place in sorted(models)]
