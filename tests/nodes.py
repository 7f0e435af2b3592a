"""Real nodes in this process: with a folder each, and restarted before a round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message
from flwr.clientapp import ClientApp
from safetensors.torch import load_file

from fedham_flwr.federation import trainers
from fedham_flwr.runners.in_process import InProcessGrid


class Nodes(InProcessGrid):
    """SuperNodes with a folder each; before some rounds all of them are new processes, and something happens first.

    Args:
        restarts: numbers of those rounds; the closing evaluation has the last.
        before: called with the number of such a round and the folder of the training of each node.
    """

    def __init__(
        self,
        app: ClientApp,
        clients: int,
        top: Path,
        restarts: Sequence[int] = (),
        before: Callable[[int, list[Path]], None] = lambda *_: None,
    ) -> None:
        configs = [{"client-id": f"site-{i}", "state-dir": str(top / f"node-{i}")} for i in range(clients)]
        super().__init__(app, clients, node_configs=configs)
        self.top, self.restarts, self.before, self.done = top, restarts, before, set[int]()
        self.ages: dict[tuple[int, str], dict[str, int]] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        number = int(messages[0].metadata.group_id)
        if number in self.restarts and number not in self.done:
            for context in self.contexts.values():
                context.state.clear()
            trainers._made.cache_clear()
            self.done.add(number)
            self.before(number, [next(self.top.glob(f"node-{i}/*")) for i in range(len(self.contexts))])
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            sender = reply.content.config_records.get("sender", {})
            key = (int(reply.metadata.group_id), reply.metadata.message_type)
            if "age" in sender:
                self.ages.setdefault(key, {})[str(sender["client-id"])] = int(str(sender["age"]))
        return replies


def on_nodes(federate: Callable[..., Any], top: Path) -> Callable[..., Any]:
    """Run on nodes: run("a", restarts=(3,), before=..., strategy="fedper"); the first names the folder of theirs."""

    def run(place: str = "nodes", restarts: Sequence[int] = (), before: Any = lambda *_: None, **given: Any) -> Any:
        grid = partial(Nodes, top=top / place, restarts=restarts, before=before)
        return federate(grid=grid, **{"clients": 3, "samples_per_client": 64, **given})

    return run


def three_nodes(data: Path, west: Mapping[str, str] = {}) -> Callable[[ClientApp, int], InProcessGrid]:
    """A grid of three nodes with the data at a path, as SuperNodes are; the last one may have more in its config."""
    more: dict[str, Mapping[str, str]] = {"north": {}, "south": {}, "west": west}
    configs = [{"client-id": site, "data-path": str(data), **own} for site, own in more.items()]

    def grid(app: ClientApp, clients: int) -> InProcessGrid:
        made = InProcessGrid(app, clients, node_configs=configs)
        for context in made.contexts.values():
            del context.node_config["partition-id"], context.node_config["num-partitions"]
        return made

    return grid


def kept(top: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors that each node has kept, by the node's folder and the file's name."""
    return {f"{file.parts[-3]}/{file.name}": load_file(file) for file in top.glob("node-*/*/*.safetensors")}


def failures(run: Any) -> list[tuple[int, str, str]]:
    return [(r["round"], f["client"], f["error"]) for r in run.records for f in r["failures"]]
