"""pFedGraph: a collaboration graph that the server infers from where the models have gone says who is mixed with whom.

Source: Ye, Ni, Wu, Chen, Wang, "Personalized Federated Learning with Inferred Collaboration Graphs", ICML 2023, and the
authors' code. Shape letters: N clients, n of a cohort, P scalars. Symbols: w_i the last trained model of client i, w_0
the common start, m_i its training samples and p_i its share of all, d_ij = -cos(w_i - w_0, w_j - w_0), x_i the row of
the graph, a point of the simplex D, alpha and lambda the weights of even shares and of similar models.

Identity card
    shared      every layer group; the clients' models are mixed and never averaged into one
    personal    w_i, the model after local training
    lives       {w_i}, their N N inner products and m_i on the server
    down, up    2 P, P scalars for every client of the cohort and round; down P with `reference="mixture"`
    cost        server: 3 n N P multiply-adds, for cosines, mixtures and references, fewer where rows have zeros;
                N (P + N) scalars; client: E epochs, and 6 P operations more in each local step
    server sees its whole model after each training, and m_i
    peers see   mixtures of the others' models, which may be mostly one client's
    bound       its weight in the other's row times C, and as much as the row turns, since it depends on where both
                models have gone; what a client starts from stays between the models of all clients

The round
    R1  server: choose S; x_i = argmin_{x in D} alpha |x - p|^2 + <d_i, x> of its clients   `graph`, `projected`
    R2  server: send wbar_i = sum_j x_ij w_j and r_i = sum_j x_ij w_j / |w_j|       strategies/pfedgraph.py
    R3  client: w_i <- E epochs of SGD on L_i(w) - lambda <r_i, w> / |w| from wbar_i    `Similarity`
    R4  client: send w_i and m_i                                                   clients/pfedgraph.py
    R5  server: put w_i in place of the old one, and make its row of inner products anew    mixing/gram.py

The row is in closed form the Euclidean projection of p - d_i / (2 alpha) onto the simplex; no solver is needed.
alpha -> infinity gives p, FedAvg's weights, to everybody, alpha -> 0 the most similar model alone, which is one's own.
As in the authors' code a cosine above 0.9 counts as 1, and in the first round there is neither a graph nor the term.

The sign of the term. <r_i, w> / |w| is sum_j x_ij cos(w_j, w). Equation 1 subtracts it from the loss, so that models
with an edge become alike (as issue 1 of the authors' repository quotes it). The authors' code adds it, for each of
their three frameworks, which pushes a model away from those it was mixed from: `sign="code"` is for numbers that were
made with it. `reference="mixture"` is their approximation, r_i = wbar_i / |wbar_i|, by which the term is cos(wbar_i, w)
and what is sent is halved.

Deviation. The authors mix those that trained in the round; here the graph is over the last models of all that have
trained, absent ones' too, which is the same if all take part. Running statistics are mixed by the same row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float
from torch import Tensor

from fedham_flwr.algorithms.fedavg import split
from fedham_flwr.core.methods import Method
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.search_space import Range, Space
from fedham_flwr.core.trees import stack

ALIKE = 0.9
"""A cosine above it counts as 1."""
REFERENCE = "reference/"
"""Prefix of r_i's tensors in what the server sends beside the model."""


@dataclass(frozen=True)
class PFedGraphSettings:
    """Settings under `pfedgraph.`; the defaults are the authors', but for the sign.

    Attributes:
        alpha: > 0, how much a row is held near the shares of samples.
        penalty: lambda, >= 0; 0 for none, and then no reference is sent.
        sign: paper, by which the similarity is subtracted from the loss; or code, by which it is added.
        reference: normalised, of the models that are mixed; or mixture, what the client starts from, by its length.
    """

    alpha: Annotated[float, Gt(0)] = 0.8
    penalty: Annotated[float, Ge(0)] = 0.01
    sign: Literal["paper", "code"] = "paper"
    reference: Literal["normalised", "mixture"] = "normalised"


def projected(v: Float[Tensor, "n N"], allowed: Bool[Tensor, "n N"]) -> Float[Tensor, "n N"]:
    """R1: the Euclidean projection of each row onto the simplex of those that are allowed.

    Args:
        v: rows.
        allowed: at least one in each row; the others have 0.
    """
    v = v.masked_fill(~allowed, -torch.inf)
    v = v - v.max(1, keepdim=True).values  # the projection does not change, and large numbers leave no rounding
    ordered = v.sort(1, descending=True).values
    above = ordered.cumsum(1) - 1
    counts = torch.arange(1, v.shape[1] + 1, device=v.device)
    kept = (ordered * counts > above).sum(1, keepdim=True)  # how many are above 0
    return (v - above.gather(1, kept - 1) / kept).clamp_min(0)


def graph(
    cosines: Float[Tensor, "n N"], shares: Float[Tensor, " N"], allowed: Bool[Tensor, "n N"], alpha: float
) -> Float[Tensor, "n N"]:
    """R1: the rows x_i, which are not negative and sum to 1.

    Args:
        cosines: -d_ij.
        shares: p_j, of the training samples.
        allowed: whose models there are, the same in each row.
        alpha: as of the settings.
    """
    alike = torch.where(cosines > ALIKE, 1.0, cosines)
    return projected(shares + alike / (2 * alpha), allowed)


class Similarity:
    """R3 as a term of the gradient: weight <r, w> / |w|; of several clients at once where the reference is stacked.

    Args:
        reference: r, by name: each tensor as the parameter, or [n, ...] of n clients; w are those that it names.
        weight: -lambda by the paper, lambda by the code.
        clients: n; 0 for one client whose tensors are not stacked.
    """

    def __init__(self, reference: Mapping[str, Tensor], weight: float, clients: int = 0) -> None:
        self._reference, self._weight, self._clients = reference, weight, clients
        self._length = self._product = torch.zeros(1)  # |w| and <r, w>, of each client

    def look(self, params: Mapping[str, Tensor]) -> None:
        """Take note of a step's parameters before any of them is asked for: of one client, or the first of a stack."""
        rows = {name: self._rows(param) for name, param in params.items() if name in self._reference}
        if not rows:
            return
        squares = [row.square().sum(1) for row in rows.values()]
        products = [(row * self._rows(self._of(name, row))).sum(1) for name, row in rows.items()]
        self._length, self._product = torch.stack(squares).sum(0).sqrt(), torch.stack(products).sum(0)

    def __call__(self, name: str, param: Tensor, gradient: Tensor) -> None:
        """Change a gradient in place: weight (r / |w| - <r, w> w / |w|^3)."""
        if name not in self._reference:
            return
        row, length = self._rows(param), self._length.clamp_min(torch.finfo(param.dtype).tiny)[:, None]
        along = (self._product[:, None] / length) * (row / length)
        slope = (self._rows(self._of(name, row)) - along) / length
        gradient.add_(slope.view(gradient.shape), alpha=self._weight)

    def stacked(self, terms: Sequence[Similarity]) -> Similarity:
        """One term for several clients, of which this is the first; all have the same weight."""
        return Similarity(stack([term._reference for term in terms]), self._weight, len(terms))

    def _of(self, name: str, row: Tensor) -> Tensor:
        """The reference of as many clients as there are rows."""
        return self._reference[name][: len(row)] if self._clients else self._reference[name]

    def _rows(self, tensor: Tensor) -> Tensor:
        """[m, p], one row for each client."""
        return tensor.reshape(len(tensor), -1) if self._clients else tensor.reshape(1, -1)


def weight_of(settings: PFedGraphSettings) -> float:
    """What the similarity is multiplied with in the loss."""
    return settings.penalty if settings.sign == "code" else -settings.penalty


def reference_of(tensors: Params, start: Params, names: Collection[str]) -> Params:
    """r_i of what the server sent beside the model, or the start divided by its length where it sent none.

    Args:
        tensors: beside the model.
        start: what the client starts from.
        names: of the parameters, by which the length is measured.
    """
    if tensors:
        return {name.removeprefix(REFERENCE): tensor for name, tensor in tensors.items()}
    length = torch.stack([start[name].double().square().sum() for name in names]).sum().sqrt()
    scale = length.clamp_min(torch.finfo(torch.float32).tiny)
    return {name: (start[name].double() / scale).to(start[name].dtype) for name in names}


AUTHORS = "the authors' code"
SEARCH: Space = {
    "pfedgraph.alpha": Range(0.05, 10.0, start=0.8, log=True, source=AUTHORS),
    "pfedgraph.penalty": Range(0.001, 1.0, start=0.01, log=True, source=AUTHORS),
}
METHOD = Method(
    "strategies.pfedgraph:PFedGraphStrategy",
    "clients.pfedgraph:PFedGraphClient",
    split,
    PFedGraphSettings,
    personal_model="after",
    mixes=True,
    composes=True,
    search=SEARCH,
)
