"""The models that a run has left, by client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import nn

from fedham_flwr.models.export import load


class Models(Mapping[str, nn.Module]):
    """The clients' personal models by client id or by the name of its data, each loaded when it is asked for.

    Args:
        folder: with a file for each.
        clients: the entries of `clients.json`, which say the names.
        trust_imports: as of `load_model`.
    """

    def __init__(self, folder: Path, clients: Sequence[Mapping[str, object]] = (), trust_imports: bool = False) -> None:
        self._files = {file.stem: file for file in sorted(folder.glob("*.safetensors"))}
        self._ids = {str(each["name"]): str(each["client"]) for each in clients if "name" in each}
        self._trust_imports = trust_imports

    def __getitem__(self, client: str) -> nn.Module:
        wanted = str(client)
        file = self._files.get(wanted) or self._files.get(self._ids.get(wanted, ""))
        if file is None:
            known = dict.fromkeys([*self._files, *self._ids])
            raise KeyError(f"there is no model of client {client!r}: wanted one of {', '.join(known)}")
        return load(file, trust_imports=self._trust_imports)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
