"""FedRoD: a common head that is trained to be fair to all classes, and a personal one that is added to it.

Source: Chen, Chao, "On Bridging Generic and Personalized Federated Learning for Image Classification", ICLR 2022,
arXiv:2107.00778, equations 7 to 10. Symbols: theta the body, psi the generic head, phi_k the personal head of client k,
n_kc its training samples of class c, m_k of all classes, z features.

Identity card
    shared      every layer group of the network, theta and psi
    personal    phi_k, a second last layer; the personal model is the sum of both heads on the common body
    lives       theta, psi on the server, phi_k with the client
    down, up    P scalars each for every client of the cohort and round; the personal head's d K + K scalars stay
    cost        FedAvg's, and a second last layer
    server sees its model without the personal head
    peers see   the mean of the bodies and generic heads
    bound       p C; the personal head does not move

The round
    R1  server: choose S, send (theta, psi) to each of its clients              strategies/fedrod.py
    R2  client: (theta_k, psi_k) <- E epochs of SGD on the balanced softmax (8)      `balanced_cross_entropy`
    R3  client: phi_k <- along, on the cross-entropy of psi(z) + phi_k(z), z and psi(z) detached (10)   `BothHeads`
    R4  client: keep phi_k, send (theta_k, psi_k) and m_k                        clients/fedrod.py
    R5  server: (theta, psi) <- sum_{k in S} m_k (theta_k, psi_k) / sum_{k in S} m_k       `fedavg.aggregate`

phi_k starts at zero. A class of which a client has no sample has probability 0 in the balanced softmax, so that its
logit gets no gradient there. Deviation from the paper: its personal head may also come from a hypernetwork, which is
not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedham_flwr.core.methods import Method, NetworkNeeds, Split, split_groups
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.models.heads import HeadSettings, SecondHead, through
from fedham_flwr.training.own_loss import Batch, OwnLoss

PERSONAL = SecondHead.parts["personal"]
"""The layer group of the personal head."""


def balanced_cross_entropy(
    logits: Float[Tensor, "b k"], targets: Int64[Tensor, " b"], counts: Float[Tensor, "*b k"]
) -> Float[Tensor, " b"]:
    """Equation 8: the cross-entropy of softmax(logits + log n_c) of each prediction, in nats.

    Args:
        logits: of the generic head.
        targets: classes.
        counts: n_c >= 0, the client's training samples of each class; a class of none is never predicted.
    """
    # log 0 is -inf, with which a class has probability 0; a target of such a class can't occur in training.
    return cross_entropy(logits + counts.log(), targets, reduction="none")


class BothHeads(OwnLoss):
    """The balanced softmax of the generic head, and the cross-entropy of both heads for the personal one.

    Args:
        head: name of the last linear layer, which has a second head as a part.
        counts: the client's training samples of each class.
        device: where the model is.
    """

    def __init__(self, head: str, counts: Sequence[int], device: torch.device) -> None:
        super().__init__({"counts": torch.tensor(counts, dtype=torch.float32, device=device)})
        self._head = head

    def of(self, model: nn.Module, batch: Batch, values: Mapping[str, Tensor]) -> Float[Tensor, " m"]:
        """The mean of both losses of each client."""
        generic, both = through(model, self._head, batch.x, _both).flatten(0, -2).chunk(2, -1)
        targets = batch.y.flatten()
        counts = values["counts"].repeat_interleave(len(targets) // batch.clients, 0)
        terms = balanced_cross_entropy(generic.float(), targets, counts)
        return batch.means(terms + cross_entropy(both.float(), targets, reduction="none"))


def _both(head: nn.Linear, features: Tensor) -> Tensor:
    """The generic head's outputs, and those of both, which have a gradient for the personal head alone: [.., 2 k]."""
    assert isinstance(head, SecondHead)
    generic = head.own(features)
    return torch.cat([generic, generic.detach() + head.personal(features.detach())], -1)


def split(manifest: Manifest, _settings: object) -> Split:
    """The personal head stays with the client."""
    return split_groups(manifest, (PERSONAL,))


def network(_settings: object) -> NetworkNeeds:
    """A second head."""
    return NetworkNeeds(head=HeadSettings("second", 'strategy="fedrod"'))


METHOD = Method(
    "strategies.fedrod:FedRoDStrategy", "clients.fedrod:FedRoDClient", split, network=network, averages=True
)
