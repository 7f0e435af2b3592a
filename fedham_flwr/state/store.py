"""What a client keeps between rounds: its personal tensors, and nothing else.

They live in Flower's `context.state`, which travels with the client from worker to worker in a simulation. On a real
node that memory ends with the process, so there they are also written to `<state-dir>/<training>/<client>.safetensors`;
a simulation that makes checkpoints has its clients write theirs as well. `format.py` says what is in the file.

Of memory and file the file wins on a real node where they differ: it is what lasts, and what an operator can put back.
In a simulation the later round wins: on several machines an older file may lie where a client comes back to. Memory
counts where there is no file. A file that is not what it should be is renamed, never replaced, and the client says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flwr.app import RecordDict
from safetensors import SafetensorError
from torch import Tensor

from fedham_flwr.core.errors import UnwritableError, UserError, cause
from fedham_flwr.core.parameters import Params
from fedham_flwr.state import files as state_files
from fedham_flwr.state.format import Label, UnfitError
from fedham_flwr.state.held import NOTHING, HeldRecord, Recorded


class StateNotFoundError(UserError):
    """The client has no personal state.

    Args:
        text: a sentence.
        ways: how to go on, as the rest of a sentence.
    """

    def __init__(self, text: str, ways: str = "") -> None:
        super().__init__(text)
        self.ways = ways or 'with lost-state="restart" it starts again from the first tensors'


class StateLostError(UserError):
    """The client has no personal state though it should, and the server has what it needs to go on."""


class ClientState:
    """The personal tensors of one client in one training.

    A state is used whatever round it is of. It is older than the round before when the client was absent; it is of a
    later round when the server went back to an earlier checkpoint, or a message came twice, and then what the client
    learned since is not thrown away.

    Two processes of one client may be there at once, if a node was restarted while its old process still trained. A
    state is written over the file that the process found; over one that has come since only if that is of the same
    round or an earlier one.

    Args:
        memory: the state of Flower's context; it is changed in place.
        client: the client's id, safe as a file name (see `roster.identify`).
        fingerprint: the model's, so that tensors of another model are never taken for this one's.
        folder: where to write the state through to; None for memory alone.
        method: name of the strategy, whose tensors no other takes for its own.
        training: name of the training.
        durable: the file is to survive a crash of the machine, and other processes of this client (see
            `state_files.write`).
        repeated: the round that is asked for, in a simulation; 0 on a node of its own. A worker that is killed may
            have written its state already when another does the same message once more, from the same memory: then
            memory counts, so that nothing is learned twice.

    Attributes:
        round: the round that made the state as it was loaded first; None if none was.
    """

    def __init__(
        self,
        memory: RecordDict,
        client: str,
        fingerprint: str,
        folder: Path | None = None,
        *,
        method: str = "",
        training: str = "",
        durable: bool = True,
        repeated: int = 0,
    ) -> None:
        self._repeated = repeated
        self.round: int | None = None
        self._held = memory if isinstance(memory, HeldRecord) else Recorded(memory)
        self._wanted = Label(client, training, method, fingerprint)
        self._file = folder / f"{client}.safetensors" if folder else None
        self._durable = durable
        self._since: str | None = None  # checksum of the file that was there first; None before the first look

    def load(self) -> Params:
        """The personal tensors as last saved.

        Raises:
            StateNotFoundError: nothing has been saved, neither in memory nor in the folder.
            UserError: what is there is corrupt or belongs to somebody else, and has been set aside; or it cannot be
                read.
        """
        self._look()
        label = self._held.label
        if label == NOTHING:
            where = f" in {self._file}" if self._file else ""
            raise StateNotFoundError(f"client {self._wanted.client} has no personal state{where}", self._ways())
        try:
            label.check(self._wanted)
        except UnfitError as error:
            raise UserError(
                f"the personal state of client {self._wanted.client} in the node's memory {error}"
            ) from error
        if self.round is None:
            self.round = label.round
        return self._held.params()

    def save(self, params: Mapping[str, Tensor], round_number: int) -> None:
        """Replace the personal tensors. After an error everything is as it was.

        Args:
            params: the tensors to keep.
            round_number: the round that made them.

        Raises:
            UserError: the folder cannot be written; a file that is in the way has been set aside; or another process of
                this client has meanwhile written the state of a later round, which stays.
        """
        self._look()
        label = self._wanted._replace(round=round_number)
        if self._file is not None and not self._held.defers:
            try:
                label = state_files.write(self._file, params, label, self._since or "", self._durable)
            except UnfitError as error:
                raise self._set_aside(error) from error
            except (OSError, SafetensorError, NotImplementedError) as error:
                raise UnwritableError(
                    f"the personal state of client {label.client} cannot be written to {self._file}: {cause(error)}"
                ) from error
            self._since = label.checksum
        self._held.keep(dict(params), label, self._file)

    def was_set_aside(self) -> bool:
        """Whether a file lies here that was set aside and may be this client's, so that something is lost."""
        return self._file is not None and bool(state_files.found_aside(self._file))

    def _look(self) -> None:
        """Once: let the memory hold what the file holds, if there is one."""
        newest_here = self._held.defers and self._held.label != NOTHING
        if self._file is None or self._since is not None or newest_here:
            return
        try:
            there = state_files.peek(self._file)
            if there is not None and (not there or there != self._held.label.checksum):
                params, label = state_files.read(self._file, self._wanted)
                held = self._held.label.round
                comes_late = not self._durable and label.round < held  # to another machine than the client was on last
                if not comes_late and not held < label.round == self._repeated:
                    self._held.keep(params, label, None)
                there = label.checksum
        except UnfitError as error:
            raise self._set_aside(error) from error
        except OSError as error:
            raise UserError(
                f"the personal state {self._file} of client {self._wanted.client} cannot be read: {cause(error)}"
            ) from error
        self._since = there or ""

    def _set_aside(self, unfit: UnfitError) -> UserError:
        """Rename the file, unless it has meanwhile become a good one; what to say of it."""
        assert self._file is not None
        client = self._wanted.client
        what = f"the personal state of client {client} in {self._file} {unfit}"
        try:
            with state_files.locked(self._file):
                try:
                    state_files.read(self._file, self._wanted)
                except UnfitError:
                    other = state_files.set_aside(self._file, unfit.why)
                    return UserError(f"{what}; it has been set aside as {other}")
        except (OSError, NotImplementedError) as error:
            return UserError(f"{what}; it could not be set aside: {cause(error)}")
        return UserError(f"{what}; another process has meanwhile put a good one there")

    def _ways(self) -> str:
        """How to go on when the state is lost."""
        if self._file is None:
            return ""
        aside = " and ".join(map(str, state_files.found_aside(self._file)))
        back = f"put a good copy back there (what was set aside is {aside})" if aside else "put the file back there"
        return f'{back}, or let it start again from the first tensors with lost-state="restart"'
