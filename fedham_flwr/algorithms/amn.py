"""AMN: a meta-model for each client, hosted by the server, attends over the clients' models and mixes a hybrid.

Faithful to the abstract of Gao, Wang, Liu, Ma, Journal of Computer Research and Development 61(1), 196-208, 2024,
10.7544/issn1000-1239.202220922, and not more: its full text could not be read. The predecessor of FedHAM; the
mathematics, the symbols and what is open are those of algorithms/fedham.py.

Identity card
    shared      every layer group; the clients' models are mixed and never averaged into one
    personal    the mixed model; the running statistics of batch normalisation
    lives       pool {w_j} and meta-models {psi_i} on the server; running statistics with the client
    down, up    P scalars each, for every client of the cohort and round
    cost        server: 3 n N P multiply-adds, n P additions; N (P + |psi|) scalars of memory; client: E epochs

The round
    R1  server: choose S; f_j = LN(R w_j - pref) (7); rows a_ij, beta_i (8), (9)   `fedham.features`, `fedham.attend`
    R2  server: send h_i = beta_i w_i + (1 - beta_i) sum_j a_ij w_j                 `bank.Bank.mix`
    R3  client: wt_i <- E epochs of SGD on L_i from h_i                             clients/amn.py
    R4  client: keep its running statistics, send wt_i                              clients/amn.py
    R5  server: S_ij = <h_i - wt_i, w_j>, then w_i <- wt_i, for all i in S          `bank.Bank.absorb`
    R6  server: psi_i <- descend by (10)                                            `fedham.gradient`, meta_models.py

h_i - wt_i is the gradient of L_i at h_i times the learning rate if training is one step of SGD, and stands for it
otherwise. The unit is the whole model by default. A client that comes late is mixed into no other client's model, its
own included, until it has trained once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedham_flwr.algorithms.fedham import AttentionSettings


@dataclass(frozen=True)
class AMNSettings(AttentionSettings):
    """Settings under `amn.`; see `AttentionSettings`.

    Attributes:
        unit: the whole model has one row of weights, or each layer group its own.
    """

    unit: Literal["layer", "model"] = "model"
