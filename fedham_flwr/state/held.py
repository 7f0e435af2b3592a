"""Where a client's personal tensors are between two messages: in records of Flower's context, or as objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import ConfigRecord, RecordDict

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.trees import num_bytes
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.federation.record_values import tensors, tensors_record
from fedham_flwr.state import files as state_files
from fedham_flwr.state.format import Label, UnfitError

TENSORS, LABEL = "personal", "personal-label"
NOTHING = Label("", "", "", "")
"""Of what is not there."""
MOST_HELD = 100_000_000
"""Bytes of what clients keep that stay in a process's memory where it is kept elsewhere too."""


class Recorded:
    """Personal tensors in the state of Flower's context.

    Args:
        memory: the state; it is changed in place.
    """

    defers = False

    def __init__(self, memory: RecordDict) -> None:
        self._memory = memory

    @property
    def label(self) -> Label:
        """What is kept; `NOTHING` if nothing is."""
        given = self._memory.config_records.get(LABEL)
        return Label.read(given) if given and TENSORS in self._memory.array_records else NOTHING

    def params(self) -> Params:
        """The tensors."""
        return tensors(self._memory.array_records[TENSORS])

    def keep(self, params: Params, label: Label, _file: Path | None) -> None:
        """Replace the personal tensors."""
        self._memory[TENSORS] = tensors_record(params)
        self._memory[LABEL] = ConfigRecord(dict(label.texts()))


class Held(NamedTuple):
    """What a client keeps, for another process.

    Attributes:
        params: the personal tensors.
        label: what they are.
    """

    params: Params
    label: Label


class HeldRecord(RecordDict):
    """The state of a context whose node never leaves this process, of which files are written when they are wanted.

    Args:
        shared: what all nodes of this process have in common.

    Attributes:
        shared: as given.
        data: the client's samples, once they have been opened.
        label: what is kept.
        defers: files are written by `write`, and what is here is newer.
    """

    defers = True
    data: ClientData | None
    label: Label

    def __init__(self, shared: dict[str, Any]) -> None:
        super().__init__()
        self.shared = shared
        self.data, self.label = None, NOTHING
        self._kept: Params = {}
        self._file: Path | None = None  # where `write` puts what is kept
        self._home: Path | None = None  # where it is once it has been released
        self._changed = False

    def params(self) -> Params:
        """The personal tensors, which are not to be changed.

        Raises:
            UserError: they had been released, and their file is not what was written.
        """
        if self._home is None:
            return dict(self._kept)
        try:
            return state_files.read(self._home, self.label)[0]
        except (UnfitError, OSError) as error:
            raise UserError(f"the personal state of client {self.label.client} in {self._home} {error}") from error

    def keep(self, params: Params, label: Label, file: Path | None) -> None:
        """Replace the personal tensors.

        Args:
            params: they are copied, since they may be rows of a whole cohort's.
            label: what they are.
            file: where `write` puts them; None for nowhere.
        """
        self._hold({name: tensor.detach().clone() for name, tensor in params.items()})
        self.label, self._file, self._home, self._changed = label, file, None, True

    def changed(self) -> Held | None:
        """What is kept, if it has changed since this was last asked."""
        if not self._changed:
            return None
        self._changed = False
        return Held(self._kept, self.label)

    def restore(self, held: Held) -> None:
        """Take what another process kept, in place of what is here."""
        self.keep(held.params, held.label, None)
        self._changed = False

    def write(self) -> None:
        """Write what is kept to its file, if it has changed since.

        Raises:
            OSError: the file cannot be written.
        """
        if self._file is None:
            return
        if self._changed:
            state_files.write(self._file, self._kept, self.label, durable=False)
        self._changed = False

    def release(self) -> None:
        """Let go of what has been written: it is read from its file when it is asked for."""
        if self._file is not None and not self._changed and self._home is None:
            self._home = self._file
            self._hold({})

    def drop(self) -> None:
        """Forget what is kept, since somebody else has it."""
        self._hold({})
        self.label, self._changed = NOTHING, False

    def _hold(self, params: Params) -> None:
        self.shared["held-bytes"] = self.shared.get("held-bytes", 0) + num_bytes(params) - num_bytes(self._kept)
        self._kept = params
