"""What a client keeps between rounds: its personal tensors, and nothing else.

They live in Flower's `context.state`, which travels with the client from worker to worker in a simulation. On a real
node that memory ends with the process, so there they are also written to the node's `state-dir`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedham_flwr import wire
from fedham_flwr.errors import UserError
from fedham_flwr.parameters import Params

TENSORS, LABEL = "personal", "personal-label"


class StateNotFoundError(UserError):
    """The client has no personal state."""


class StateLostError(UserError):
    """The client has no personal state though it should, and the server has what it needs to go on."""


class ClientState:
    """The personal tensors of one client in one run.

    Args:
        memory: the state of Flower's context; it is changed in place.
        client: the client's id, safe as a file name (see `roster.identify`).
        fingerprint: the model's, so that tensors of another model are never taken for this one's.
        folder: where to write the state through to; None for memory alone.
    """

    def __init__(self, memory: RecordDict, client: str, fingerprint: str, folder: Path | None = None) -> None:
        self._memory = memory
        self._client = client
        self._fingerprint = fingerprint
        self._file = folder / f"{client}.safetensors" if folder else None

    def load(self) -> Params:
        """The personal tensors as last saved.

        Raises:
            StateNotFoundError: nothing has been saved, neither in memory nor in the folder.
            UserError: what is there belongs to another model, or the file cannot be read.
        """
        if TENSORS in self._memory.array_records:
            record = self._memory.array_records[TENSORS]
            self._check(str(self._memory.config_records[LABEL]["fingerprint"]), "the memory of the node")
            return wire.tensors(record)
        if self._file is None or not self._file.exists():
            where = f" in {self._file}" if self._file else ""
            raise StateNotFoundError(f"client {self._client} has no personal state{where}")
        return self._read(self._file)

    def save(self, params: Mapping[str, Tensor], round_number: int) -> None:
        """Replace the personal tensors.

        Args:
            params: the tensors to keep.
            round_number: the round that made them.

        Raises:
            UserError: the folder cannot be written.
        """
        label = {"fingerprint": self._fingerprint, "client": self._client, "round": str(round_number)}
        if self._file is not None:
            self._write(self._file, params, label)
        self._memory[TENSORS] = wire.tensors_record(params)
        self._memory[LABEL] = ConfigRecord(dict(label))

    def _read(self, file: Path) -> Params:
        try:
            with safe_open(file, framework="pt") as source:
                label = source.metadata() or {}
                params: Params = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"the personal state {file} of client {self._client} cannot be read: {error}") from error
        self._check(label.get("fingerprint", ""), str(file))
        self._memory[TENSORS] = wire.tensors_record(params)
        self._memory[LABEL] = ConfigRecord(dict(label))
        return params

    def _write(self, file: Path, params: Mapping[str, Tensor], label: dict[str, str]) -> None:
        part = file.with_suffix(f".{os.getpid()}.part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            save_file(dict(params), part, metadata=label)
            part.chmod(0o600)
            part.replace(file)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                part.unlink()
            raise UserError(
                f"the personal state of client {self._client} cannot be written to {file}: {error}"
            ) from error

    def _check(self, fingerprint: str, where: str) -> None:
        if fingerprint != self._fingerprint:
            raise UserError(
                f"the personal state of client {self._client} in {where} belongs to another model "
                f"(fingerprint {fingerprint[:12] or 'missing'}, wanted {self._fingerprint[:12]})"
            )
