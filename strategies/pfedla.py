"""The server half of pFedLA and HeurpFedLA; see algorithms/pfedla.py."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from fedham_flwr.algorithms import pfedla
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.records import MixingWeights
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.federation.wire import Upload
from fedham_flwr.mixing.hypernetworks import Hypernetworks
from strategies.mixing import MixingStrategy


class Plan(NamedTuple):
    """Who is mixed into whom: for n clients, L layer groups and N peers."""

    rows: Tensor  # int64 [n], the clients' own places in the bank
    logits: Tensor  # float [n, L, N]
    weights: Tensor  # float [n, L, N]
    retained: Tensor  # bool [n, L]
    mixed: Tensor  # bool [n, L, N], the peers that have a part; none in a layer that is retained


@final
class PFedLAStrategy(MixingStrategy):
    """A hypernetwork for each client says how the models of the bank are mixed for it."""

    def personal_tensors(self) -> Sequence[str]:
        """The running statistics, unless they are mixed."""
        return pfedla.personal_names(self.manifest, self.settings.pfedla)

    def begin(self, shared: Params) -> None:
        """Start from one common model; the clients get their places when they come.

        Raises:
            UserError: more retained layers than the model has groups.
        """
        how = self.settings.pfedla
        pfedla.check_retained(how.retained_layers, self.manifest.group_names)
        super().begin(shared)
        self._networks = Hypernetworks(how, len(self.bank.groups))

    def admit(self, clients: Sequence[str]) -> None:
        """Give new clients a hypernetwork."""
        self._networks.add([torch_stream(self.settings.seed, "hypernetwork", client=client) for client in clients])

    def plan(self, round_number: int, clients: Sequence[str]) -> dict[str, Params]:
        """The mixed model of each client, without the layers that it retains."""
        plan = self._weigh(round_number, clients)
        return self.mixtures(clients, plan.weights, plan.retained)  # R3

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """Put the trained models into the bank, and let the hypernetworks learn from where training went.

        Raises:
            UserError: most hypernetworks diverge.
        """
        plan = self._weigh(round_number, list(uploads))
        scores = self.absorb(uploads, plan.weights, plan.retained)  # R6
        weights, logits = plan.weights.double(), plan.logits.double()
        normaliser = self.settings.pfedla.normaliser
        self._networks.step(plan.rows, pfedla.logit_gradient(weights, logits, scores, plan.mixed, normaliser))  # R7

    def mixing_weights(self, round_number: int, clients: Sequence[str], uploads: Mapping[str, Upload]) -> MixingWeights:
        """The weights that the clients' models of a round are mixed with, those of retained layers included."""
        weights = self._weigh(round_number, clients).weights
        return MixingWeights(tuple(clients), self.bank.groups, self.bank.clients, weights)

    def state_dict(self) -> Params:
        """Bank, embeddings, hypernetworks, optimiser, and who may be mixed; live, not copied."""
        networks = {f"hypernetworks/{name}": tensor for name, tensor in self._networks.params.items()}
        velocity = {f"velocity/{name}": tensor for name, tensor in self._networks.velocity.items()}
        return {**super().state_dict(), **networks, **velocity}

    def _weigh(self, round_number: int, clients: Sequence[str]) -> Plan:
        """R1 and R2 for some clients."""
        how, rows = self.settings.pfedla, self.bank.rows(clients)
        logits = self._networks.logits(rows)
        allowed = self.ready.expand_as(logits)
        weights = pfedla.mixing_weights(logits, allowed, rows, how.normaliser)  # R1
        if 0 < how.top_k_peers < len(self.bank.clients):
            order = torch.stack([self._order(round_number, client) for client in clients])
            allowed = allowed & pfedla.largest(weights, how.top_k_peers, order)
            weights = pfedla.mixing_weights(logits, allowed, rows, how.normaliser)
        retained = pfedla.retained(weights, rows, how.retained_layers)  # R2
        retained &= self._has_own(rows, clients)[:, None]
        return Plan(rows, logits, weights, retained, allowed & ~retained[:, :, None])

    def _has_own(self, rows: Tensor, clients: Sequence[str]) -> Tensor:
        """Which clients have layers of their own to start from: bool [n].

        A client that has never trained has the common model, unless it came late. One that has trained has what it
        kept, unless it said that it lost it, or trained in a run that this one continues.
        """
        kept = [client in self.trained and client not in self.stateless for client in clients]
        return torch.where(self.learned[rows], torch.tensor(kept, dtype=torch.bool), self.ready[rows])

    def _order(self, round_number: int, client: str) -> Tensor:
        """In which order equal weights are kept: the client's own first, then as drawn for the round."""
        peers, own = len(self.bank.clients), int(self.bank.rows([client]))
        drawn = torch.randperm(peers, generator=torch_stream(self.settings.seed, "peers", round_number, client))
        return torch.cat([torch.tensor([own]), drawn[drawn != own]])
