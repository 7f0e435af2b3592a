"""Who is who: client id <-> node id, and the cohort of a round.

Flower's node ids are random and change when a node restarts. A client's id is its own: the `client-id` of its node
config, in a simulation the name of its data, or its number where data have no names. Ids are learned by a query
message; duplicates are refused.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.core.files import SAFE_NAME
from fedham_flwr.core.seeding import stream
from fedham_flwr.federation import wire
from fedham_flwr.federation.messages import ClientFailure, Profile
from fedham_flwr.federation.queries import write_query

log = logging.getLogger("fedham_flwr")

PAUSE = 0.05
"""Seconds between two looks at who is there."""
GRACE = 5.0
"""Seconds in which another node may come, after as many as are wanted have all failed."""


def identify(node_config: Mapping[str, object]) -> str:
    """The id of the client that runs on a node.

    Raises:
        UserError: the node config names none, or one that is not safe as a file name.
    """
    given = node_config.get("client-id", node_config.get("partition-id"))
    if given is None:
        raise UserError(
            f"the node config has no client-id: start the SuperNode with --node-config 'client-id=\"...\"', "
            f"given {dict(node_config)}"
        )
    client = str(given)
    if not SAFE_NAME.fullmatch(client):
        raise UserError(f"client-id={client!r} must be 1 to 64 letters, digits, '.', '_' or '-', not starting with '.'")
    return client


def order(clients: Iterable[str]) -> tuple[str, ...]:
    """Clients in their one order: numbers by value, then names by spelling."""
    return _ordered(tuple(clients))


@lru_cache(maxsize=8)
def _ordered(clients: tuple[str, ...]) -> tuple[str, ...]:
    # Kept, since thousands of clients are put in order several times in each round.
    return tuple(sorted(clients, key=lambda c: (0, int(c), c) if c.isdecimal() else (1, 0, c)))


def cohort(seed: int, round_number: int, clients: Iterable[str], fraction: float, least: int = 0) -> tuple[str, ...]:
    """The clients of a round, drawn without replacement: a function of seed, round and ids alone.

    Args:
        seed: the run's seed.
        round_number: the round.
        clients: everyone who is there.
        fraction: share to draw, in (0, 1]; at least one client is drawn.
        least: how many are wanted, `min-replies`.

    Raises:
        UserError: the cohort is smaller.
    """
    everyone = order(clients)
    size = cohort_size(len(everyone), fraction)
    if size < least:
        raise UserError(
            f"min-replies={least} can never be reached: round {round_number} has a cohort of {size} "
            f"(fraction-train={fraction:g} of {len(everyone)} clients)"
        )
    drawn = stream(seed, "cohort", round_number).choice(len(everyone), size=size, replace=False)
    return tuple(everyone[i] for i in sorted(drawn))


def cohort_size(count: int, fraction: float) -> int:
    """How many clients a round asks, of so many that there are: at least one."""
    return max(1, math.floor(fraction * count + 0.5))


def hold_out(seed: int, clients: Iterable[str], count: int) -> tuple[str, ...]:
    """The novel clients, which never train: a function of seed and ids alone.

    Args:
        seed: that of the run's data.
        clients: everyone who is there at the start.
        count: how many to hold out.

    Raises:
        UserError: none would be left to train.
    """
    everyone = order(clients)
    if count >= len(everyone):
        raise UserError(
            f"novel-clients={count} leaves nobody to train of {len(everyone)} clients: it must be below their number"
        )
    drawn = stream(seed, "novel").choice(len(everyone), size=count, replace=False)
    return tuple(everyone[i] for i in sorted(drawn.tolist()))


class Roster:
    """The clients that have answered, and the nodes they are on.

    Attributes:
        profiles: client -> what it said of itself.
        nodes: client -> node id.
        failures: node id -> why it could not say who it is; it is not asked again, unless it leaves and comes back.
        told: what each is told of the data with the query: categories that the sites agree upon; empty: nothing.
    """

    def __init__(self, told: str = "") -> None:
        self.told = told
        self.profiles: dict[str, Profile] = {}
        self.nodes: dict[str, int] = {}
        self.failures: dict[int, str] = {}
        self._complete = False

    def discover(self, grid: Grid, min_clients: int, client_timeout: float, round_timeout: float) -> None:
        """Wait until all clients of the simulation, or `min_clients` on real nodes, have answered.

        Args:
            grid: the way to the nodes.
            min_clients: clients to wait for on real nodes.
            client_timeout: seconds to wait for the nodes to appear.
            round_timeout: seconds to wait for the answers of those that have; the first one may have to decode or
                download the data set.

        Raises:
            UserError: fewer clients than wanted came in time (naming wanted, found and the first failure), or as many
                failed; a simulated client failed (they all read the same settings); or two nodes give the same id.
        """
        end = (hopeful := time.monotonic()) + client_timeout
        while True:
            self.refresh(grid, round_timeout)
            partitions = max((profile.partitions for profile in self.profiles.values()), default=0)
            wanted = partitions or min_clients
            if len(self.nodes) >= wanted:
                self._complete = True
                return
            now, first = time.monotonic(), next(iter(self.failures.values()), "")
            if self.nodes or len(self.failures) < wanted:
                hopeful = now
            elif now >= hopeful + GRACE:
                raise UserError(
                    f"all {len(self.failures)} nodes that are there cannot take part; the first says: {first}"
                )
            if now >= end:
                raise UserError(
                    f"{wanted} clients are wanted and {len(self.nodes)} answered within "
                    f"client-timeout={client_timeout:g} seconds{first and f'; the first failure is: {first}'}"
                )
            time.sleep(PAUSE)

    def refresh(self, grid: Grid, timeout: float) -> None:
        """Drop nodes that have left, and ask those that are new who they are.

        Args:
            grid: the way to the nodes.
            timeout: seconds to wait for their answers.

        Raises:
            UserError: two nodes give the same id before the first round, or a simulated client failed.
        """
        present = set(grid.get_node_ids())
        if not present.issuperset(self.nodes.values()):
            self.nodes = {client: node for client, node in self.nodes.items() if node in present}
        # A node that is authenticated has the same id when it is started again, with its mistake mended.
        self.failures = {node: why for node, why in self.failures.items() if node in present}
        new = sorted(present - set(self.nodes.values()) - self.failures.keys())
        messages = [Message(write_query(self.told), node, MessageType.QUERY, group_id="0") for node in new]
        for reply in grid.send_and_receive(messages, timeout=timeout) if messages else ():
            node = reply.metadata.src_node_id
            try:
                self._admit(node, wire.read_profile(read_reply(reply)))
            except ClientFailure as error:
                if error.simulated:
                    raise UserError(str(error)) from error
                self._refuse(node, str(error))
            except (KeyError, ValueError, TypeError) as error:
                self._refuse(node, f"node {node} gave no proper answer to the query: {error}")

    def leave_out(self, client: str, reason: str) -> None:
        """Count the node of a client that has answered among those that cannot take part.

        Args:
            client: its id.
            reason: why, in a sentence that names it.
        """
        del self.profiles[client]
        self._refuse(self.nodes.pop(client), reason)
        self._complete = False

    def _admit(self, node: int, profile: Profile) -> None:
        if profile.client in self.nodes:
            if not self._complete:
                raise UserError(
                    f"two nodes give the client id {profile.client!r} ({self.nodes[profile.client]} and {node}): "
                    "give every SuperNode a client-id of its own"
                )
            # An authenticated node that restarts keeps its number, so this may be somebody else, who would get what is
            # the client's. A node without a key has another number: it is asked again until Flower has dropped the old.
            log.warning(
                "node %s gives the client id %s of node %s, and is left out as long as that one is there",
                node, profile.client, self.nodes[profile.client],
            )  # fmt: skip
            return
        self.profiles[profile.client] = profile
        self.nodes[profile.client] = node

    def _refuse(self, node: int, reason: str) -> None:
        log.warning("a node cannot take part: %s", reason)
        self.failures[node] = reason


def read_reply(reply: Message) -> RecordDict:
    """The content of a reply.

    Raises:
        ClientFailure: Flower reports that the client could not be run.
    """
    if reply.has_error():
        raise ClientFailure(f"{first_line(reply.error.reason or 'no reason given')} (code {reply.error.code})")
    return reply.content
