"""FedDBE: a client's own offset of the features, and features whose mean is held at one mean for all.

Source: Zhang et al., "Eliminating Domain Bias for Federated Learning in Representation Space", NeurIPS 2023,
arXiv:2311.14975, and its authors' code (github.com/TsingZ0/DBE). Symbols: f the body and h the head, w = (f, h), z
features of d numbers, v_k client k's offset (PRBM in the paper), m_k the running mean of its features, m_g the mean of
all clients' features, kappa and mu the weight of the mean regularisation and the momentum of m_k, n_k its training
samples.

Identity card
    shared      every layer group of the network, w
    personal    v_k, a vector that is added to the features; the personal model is h(z + v_k)
    lives       w and m_g on the server, v_k with the client
    down, up    P scalars each for every client of the cohort and round, and d more down; once, before the first round,
                P down and d up for every client
    cost        FedAvg's, and once, before the first round, a local training of every client
    server sees its model without the offset, and once the mean of its features
    peers see   the mean of the models, and m_g
    bound       p C for w, with m_g as it is; m_g moves by p_b times what b sends, of which no length is bounded by C.
                The offset does not move

The round
    R1  server: once, before the first round: send w to every client            strategies/feddbe.py
    R2  client: once: w_k <- E epochs of SGD on L_k from w; send n_k and m_k, the mean of z at w_k over its training
                samples                                                         clients/feddbe.py, `answer`
    R3  server: once: m_g <- sum_k n_k m_k / sum_k n_k, which stays             `mean_of`
    R4  server: choose S, send w and m_g to each of its clients                 strategies/feddbe.py
    R5  client: (w_k, v_k) <- E epochs of SGD on CE(h(z + v_k), y) + (kappa/2) mean_d (m_k - m_g)^2, where each batch
                first makes m_k <- (1 - mu) m_k + mu mean_batch(z), from m_k = 0        `MeanRegularised`
    R6  client: keep v_k, send w_k and n_k                                      clients/feddbe.py
    R7  server: w <- sum_{k in S} n_k w_k / sum_{k in S} n_k                    `fedavg.aggregate`

kappa = 0 with v_k held at 0 is FedAvg. The gradient of m_k goes through the present batch alone. In R2 the offset stays
0, and what was trained is forgotten. A client that comes later gets the same m_g. PFLlib's command line has kappa 0
and mu 0.1 as defaults, which is the method without its regularisation; the values here are the authors'.

Deviations: m_k of R2 is the mean over all of k's training samples at the model that it has trained; the authors' code
sends its running mean there, which with mu = 1 is that of the last batch alone. Momentum and weight decay of the run,
which the authors do not use, hold for v_k too. The factor 1/2 of the regularisation is the authors' code's, for which
kappa was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float
from torch import Tensor, nn

from fedham_flwr.core.methods import Method, NetworkNeeds, Split, split_groups
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.core.search_space import Choice, Range
from fedham_flwr.models.heads import HeadSettings, features
from fedham_flwr.models.parts import OffsetHead
from fedham_flwr.training.engine.losses import terms
from fedham_flwr.training.own_loss import Batch, OwnLoss

PERSONAL = OffsetHead.parts["offset"]
"""The layer group of the offset."""
MEAN = "mean"
"""Name of the mean of features in messages."""


@dataclass(frozen=True)
class FedDBESettings:
    """Settings under `feddbe.`.

    Attributes:
        kappa: weight of the mean regularisation, >= 0; 0 leaves it out.
        mu: momentum of the running mean of features, in (0, 1]; 1 is the mean of each batch alone.
    """

    kappa: Annotated[float, Ge(0)] = 50.0
    mu: Annotated[float, Gt(0), Le(1)] = 1.0


def mean_of(means: Sequence[Float[Tensor, " d"]], samples: Sequence[int]) -> Float[Tensor, " d"]:
    """R3: the mean of all clients' features, float32.

    Args:
        means: m_k of each client, in a fixed order of clients.
        samples: n_k >= 1, in the same order.
    """
    whole = torch.tensor(samples, dtype=torch.float64)
    total = (torch.stack(list(means)).double() * whole[:, None]).sum(0)
    return (total / whole.sum()).float()


def regularisation(means: Float[Tensor, "m d"], goal: Float[Tensor, "m d"], kappa: float) -> Float[Tensor, " m"]:
    """R5: (kappa/2) mean_d (m_k - m_g)^2 of each client.

    Args:
        means: m_k.
        goal: m_g, once for each client.
        kappa: weight.
    """
    return kappa / 2 * (means - goal).square().mean(-1)


class MeanRegularised(OwnLoss):
    """R5: the task's loss with the offset in the model, and the regularisation of the features' running mean.

    Args:
        head: name of the last linear layer, which has an offset as a part.
        goal: m_g, [d].
        kappa: weight of the regularisation.
        mu: momentum of the running mean.
    """

    def __init__(self, head: str, goal: Float[Tensor, " d"], kappa: float, mu: float) -> None:
        super().__init__({"goal": goal, "running": torch.zeros_like(goal)})
        self._head, self._kappa, self._mu = head, kappa, mu

    def of(self, model: nn.Module, batch: Batch, values: Mapping[str, Tensor]) -> Float[Tensor, " m"]:
        """The loss of each client; its running mean takes in the batch."""
        seen, outputs = features(model, self._head, batch.x)
        now = batch.mean_rows(seen.float().flatten(0, -2))
        means = (1 - self._mu) * values["running"] + self._mu * now
        values["running"].copy_(means.detach())
        loss = batch.means(terms(outputs.float(), batch.y))
        return loss + regularisation(means, values["goal"], self._kappa)


def split(manifest: Manifest, _settings: object) -> Split:
    """The offset stays with the client."""
    return split_groups(manifest, (PERSONAL,))


def network(_settings: object) -> NetworkNeeds:
    """An offset of what the head sees."""
    return NetworkNeeds(head=HeadSettings("offset", 'strategy="feddbe"'))


CODE = "the authors' code"
METHOD = Method(
    "strategies.feddbe:FedDBEStrategy",
    "clients.feddbe:FedDBEClient",
    split,
    FedDBESettings,
    network=network,
    extras="once the mean of its features",
    search={
        "feddbe.kappa": Range(0.5, 500.0, start=50.0, log=True, source=CODE),
        "feddbe.mu": Choice((0.1, 0.5, 1.0), start=1.0, source=CODE),
    },
)
