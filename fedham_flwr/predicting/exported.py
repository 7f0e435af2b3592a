"""An exported model, with all that its file says of raw rows and of outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedham_flwr.core import shapes
from fedham_flwr.core.devices import resolve_device
from fedham_flwr.core.errors import UserError
from fedham_flwr.data import recipes
from fedham_flwr.data.batches import inputs_and_targets, sample_shape
from fedham_flwr.models import export
from fedham_flwr.reporting.run_directory import RunDirectory
from fedham_flwr.training.trainer import EVALUATION_BATCH


@dataclass(frozen=True)
class Exported:
    """A client's model out of its file, with what makes inputs of raw rows.

    Attributes:
        path: of the file.
        header: its metadata.
        trust_imports: as of `load_model`.
    """

    path: Path
    header: Mapping[str, str]
    trust_imports: bool = False

    @classmethod
    def open(cls, path: str | Path, *, client: str = "", trust_imports: bool = False) -> Exported:
        """A model's file, or that of a client of a run.

        Args:
            path: `<run>/model/<client>.safetensors`, or the directory of a run.
            client: of the run: its id or its name. Not needed where there is one.
            trust_imports: as of `load_model`.

        Raises:
            UserError: there is none, or not of this client.
        """
        file = Path(path).expanduser()
        if file.is_dir():
            file = _of_run(file, client)
        elif not file.exists():
            raise UserError(f"there is no file or folder {path}: wanted a run's directory, or one client's model")
        elif client:
            raise UserError(
                f"client {client!r} was asked for, and {path} is no run's directory, but one client's model"
            )
        return cls(file, export.read_header(file), trust_imports)

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        """What makes inputs of raw rows; see `data.recipes`.

        Raises:
            UserError: the file does not say it.
        """
        found = recipes.read(self.path, self.header)
        names = [*found["outputs"]]  # a node may lack the last classes, where these have numbers for names
        names += map(str, range(len(names), int(self.header["classes"]))) if found["target"] == "class" else []
        return {**found, "outputs": names}

    @cached_property
    def network(self) -> nn.Module:
        """The network, in evaluation mode."""
        return export.load(self.path, trust_imports=self.trust_imports)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample as the network sees it."""
        return tuple(map(int, self.header["shape"].split(",")))

    @property
    def caution(self) -> str:
        """What one must know of the model before its predictions are used; empty if there is nothing."""
        if "predictor" not in self.header:
            return ""
        return (
            f"the run's scores of this client are those of {self.header['predictor']}, which asks the client's own "
            "training samples too; the file holds the network alone, and so predicts by itself"
        )

    @torch.no_grad()
    def outputs(
        self, features: np.ndarray[Any, Any], device: str = "auto", batch_size: int = EVALUATION_BATCH
    ) -> Tensor:
        """Logits or values of samples as they are stored, float32 [n, ...].

        Batches are those of a run's evaluation, and so are the bits on the same processor.

        Args:
            features: [n, ...].
            device: as the setting.
            batch_size: samples at a time.

        Raises:
            UserError: they are of another shape than those of the training.
        """
        kind, place = self.recipe["features"], resolve_device(device)
        stored = torch.from_numpy(np.ascontiguousarray(features))
        if (shape := sample_shape(stored, kind, shapes.vocabulary(self.shape))) != self.shape:
            raise UserError(f"the rows make samples of shape {shape}, and the model of {self.path} is for {self.shape}")
        network: Any = self.network.to(device=place, memory_format=torch.channels_last)  # type: ignore[call-overload]
        bf16 = self.header.get("precision") == "bf16"
        found = []
        for some in torch.split(stored, batch_size):
            inputs, _ = inputs_and_targets(some.to(place), torch.empty(0), kind)
            with torch.autocast(place.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
                outputs = network(inputs)
            found.append(outputs.float().cpu())
        return torch.cat(found)


def _of_run(directory: Path, client: str) -> Path:
    """The file of a client of a run, by its id or its name."""
    files = {file.stem: file for file in sorted((directory / "model").glob("*.safetensors"))}
    if not files:
        raise UserError(f"{directory} has no models: wanted model/<client>.safetensors, or the directory of a run")
    names = {str(each.get("name")): str(each["client"]) for each in RunDirectory(directory).read_clients()}
    if not client and len(files) == 1:
        return next(iter(files.values()))
    file = files.get(client) or files.get(names.get(client, ""))
    if file is None:
        known = ", ".join(dict.fromkeys([*files, *(name for name, number in names.items() if number in files)]))
        asked = f"and no client {client!r}" if client else "and no client is named"
        raise UserError(f"{directory} has the models of several clients, {asked}: wanted one of {known}")
    return file
