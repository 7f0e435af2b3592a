"""Clustered FedAvg with known groups: a model for each group of clients, the weighted mean of what these trained.

What Ghosh, Chung, Yin, Ramchandran, "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020, ends with
once its clusters are right (Algorithm 1, there by each client's smallest loss): here the groups are told, and nothing
is learned of who is like whom. Beside methods that learn it, it is the oracle: what they could reach by listening to
their own group alone. Symbols: w_g the model of group g, g(k) that of client k, w_k its model after local training, m_k
its training samples, S the cohort of the round.

Identity card
    shared      every layer group; with `personal` some stay with the client
    personal    nothing; the personal model is the group's
    lives       w_g on the server
    down, up    P scalars each for every client of the cohort and round, as FedAvg
    cost        server: |S| P multiply-adds; client: E epochs
    server sees its whole model after each training, and knows its group
    peers see   the mean of its group's models
    bound       p C, p its share of the samples of its group's clients in a round

The round
    R1  server: choose S, send w_g(k) to each of its clients                    strategies/clustered.py
    R2  client: w_k <- E epochs of SGD on L_k from w_g(k); send it and m_k      clients/clustered.py
    R3  server: w_g <- sum_{k in S, g(k) = g} m_k w_k / sum m_k                 `merge`

Groups are those of the setting `groups`, client k being of group k mod G as in a simulation with `class-groups` or
`shift`; or those of a table, a TOML file with a line `client = "group"` for each client. With one group it is FedAvg to
the bit, before fine-tuning; with a group for each client it is `local`. A group of which nobody is in a round keeps its
model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import Method, Split, split_groups
from fedham_flwr.core.parameters import Manifest, Params
from fedham_flwr.core.trees import weighted_mean


@dataclass(frozen=True)
class ClusteredSettings:
    """Settings under `clustered.`.

    Attributes:
        table: path of the TOML file that says which group each client is of; empty: by number, see `groups`.
    """

    table: str = ""


def group_of(client: str, table: Mapping[str, str], groups: int) -> str:
    """g(k).

    Args:
        client: its id.
        table: client -> group; empty without one.
        groups: G; 0 where all are of one.

    Raises:
        UserError: the table does not name the client, or there is none and the client is known by a name.
    """
    if table:
        if client not in table:
            raise UserError(f"clustered.table does not say which group client '{client}' is of: wanted a line for it")
        return table[client]
    if groups < 2:
        return "0"
    if not client.isdecimal():
        raise UserError(
            f"groups={groups} goes by the numbers of clients, and client '{client}' has a name: wanted clustered.table"
        )
    return str(int(client) % groups)


def merge(
    models: Mapping[str, Params], members: Mapping[str, str], clients: Mapping[str, tuple[Mapping[str, Tensor], int]]
) -> dict[str, Params]:
    """R3: the models of all groups after a round.

    Args:
        models: group -> w_g before it.
        members: client -> group, of those that replied.
        clients: client -> w_k and m_k >= 1, in the order of their ids.
    """
    found = dict(models)
    for group in sorted({*members.values()}):
        some: Sequence[str] = [client for client in clients if members[client] == group]
        found[group] = weighted_mean([clients[client][0] for client in some], [clients[client][1] for client in some])
    return found


def split(manifest: Manifest, _settings: object) -> Split:
    """Every layer group is shared."""
    return split_groups(manifest, ())


METHOD = Method(
    "strategies.clustered:ClusteredStrategy", "clients.clustered:ClusteredClient", split, ClusteredSettings,
    composes=True, told_groups=True,
)  # fmt: skip
