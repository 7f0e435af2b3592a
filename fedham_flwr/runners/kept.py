"""What the clients of a sharded cohort keep, as the process of the server knows it: where the latest of it is.

After each exchange a worker hands over, as one value, what its clients keep where that has changed. The value stays in
Ray's object store and is not looked at here, but for a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedham_flwr.core.errors import UnwritableError, cause, reason
from fedham_flwr.core.files import replacing
from fedham_flwr.runners.packing import States, unpack_states
from fedham_flwr.state import files as state_files


class Latest(NamedTuple):
    """The latest of what one client keeps.

    Attributes:
        states: reference to the value that has it.
        place: in that value.
        worker: the one that has it too.
    """

    states: Any
    place: int
    worker: int | None


class Kept:
    """Where the latest is of what each client keeps.

    Attributes:
        names: the clients' ids by node, once they have said who they are.
    """

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self._latest: dict[int, Latest] = {}
        self._unwritten: set[int] = set()
        self._keep = self._export = ""

    def folders(self, told: tuple[str, str]) -> None:
        """Take note of where files of states and of models are to be, as the messages say."""
        keep, export = told
        self._keep, self._export = keep or self._keep, export or self._export

    def bring(
        self, nodes: Sequence[int], worker: int, away: bool
    ) -> tuple[dict[str, bytes], list[list[int]], list[Any]]:
        """What a worker needs to train these clients, and does not have.

        Args:
            nodes: the clients'.
            worker: its number.
            away: it does not see the files that are here.

        Returns:
            Files by name; and for each of some values the places in it that are wanted, and the value's reference.
        """
        wanted: dict[int, tuple[list[int], Any]] = {}
        files = {}
        for node in nodes:
            latest = self._latest.get(node)
            if latest is None:
                if away and self._keep and (file := self._file(node)).is_file():
                    files[file.name] = file.read_bytes()
            elif latest.worker != worker:
                wanted.setdefault(id(latest.states), ([], latest.states))[0].append(latest.place)
                self._latest[node] = latest._replace(worker=worker)
        return files, [places for places, _ in wanted.values()], [states for _, states in wanted.values()]

    def take(self, worker: int, reference: Any, states: States, models: Mapping[str, bytes]) -> None:
        """Take note of what a worker handed over.

        Args:
            worker: its number.
            reference: to what its clients keep.
            states: the same.
            models: files that they wrote on another machine.

        Raises:
            UserError: a file cannot be written.
        """
        for place, node in enumerate(states.nodes):
            self._latest[node] = Latest(reference, place, worker)
        self._unwritten |= set(states.nodes)
        if states.alone:
            for node, latest in self._latest.items():
                if latest.worker == worker:
                    self._latest[node] = latest._replace(worker=None)
        for name, raw in models.items():
            try:
                state_files.private_folder(Path(self._export))
                with replacing(Path(self._export, name)) as part:
                    part.write_bytes(raw)
            except OSError as error:
                raise UnwritableError(f"a model cannot be written to {self._export}: {reason(error)}") from error

    def died(self, worker: int, get: Callable[[Any], Any]) -> None:
        """Take note that a worker is gone, and of what its machine may have taken along: then older files count.

        Args:
            worker: its number.
            get: the value of a reference; it raises an error for one that is gone.
        """
        gone: dict[int, bool] = {}
        for node, latest in list(self._latest.items()):
            if latest.worker != worker:
                continue
            if id(latest.states) not in gone:
                try:
                    get(latest.states)
                    gone[id(latest.states)] = False
                except Exception:  # whatever Ray says of an object that it has lost
                    gone[id(latest.states)] = True
            if gone[id(latest.states)]:
                del self._latest[node]
                self._unwritten.discard(node)
            else:
                self._latest[node] = latest._replace(worker=None)

    def write(self, get: Callable[[Any], Any]) -> None:
        """Write what the clients keep to their files, where it has changed since.

        Args:
            get: the value of a reference.

        Raises:
            UserError: a file cannot be written.
        """
        if not self._keep:
            return
        parts: dict[int, tuple[Any, list[int]]] = {}
        for node in sorted(self._unwritten, key=lambda node: self._latest[node].place):
            states, place, _ = self._latest[node]
            parts.setdefault(id(states), (states, []))[1].append(place)
        for states, places in parts.values():
            for node, held in unpack_states(get(states), places).items():
                try:
                    state_files.write(self._file(node), held.params, held.label, durable=False)
                except OSError as error:
                    raise UnwritableError(
                        f"the personal state of client {held.label.client} cannot be written: {cause(error)}"
                    ) from error
                self._unwritten.discard(node)

    def _file(self, node: int) -> Path:
        """Of a client's state."""
        return Path(self._keep, f"{self.names[node]}.safetensors")
