"""The server half of pFedLA and HeurpFedLA; see algorithms/pfedla.py."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from fedham_flwr.algorithms import pfedla
from fedham_flwr.bank import Bank, read_clients
from fedham_flwr.errors import UserError
from fedham_flwr.hypernetworks import Hypernetworks
from fedham_flwr.mixing import MixingWeights
from fedham_flwr.parameters import Params, check_like
from fedham_flwr.seeding import torch_stream
from fedham_flwr.training import resolve_device
from fedham_flwr.wire import Upload
from strategies.base import RoundStrategy


class Plan(NamedTuple):
    """Who is mixed into whom: for n clients, L layer groups and N peers."""

    rows: Tensor  # int64 [n], the clients' own places in the bank
    logits: Tensor  # float [n, L, N]
    weights: Tensor  # float [n, L, N]
    retained: Tensor  # bool [n, L]
    mixed: Tensor  # bool [n, L, N], the peers that have a part; none in a layer that is retained


@final
class PFedLAStrategy(RoundStrategy):
    """The bank of the clients' models, and a hypernetwork for each client that says how they are mixed."""

    def personal_groups(self) -> Sequence[str]:
        """Every layer group is shared."""
        return ()

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
        self._initial = shared
        self._bank = Bank(self.manifest, self.shared_names, resolve_device(self.settings.device))
        self._networks = Hypernetworks(how, len(self._bank.groups))
        self._ready = torch.zeros(0, dtype=torch.bool)  # [N]: may be mixed into others
        self._learned = torch.zeros(0, dtype=torch.bool)  # [N]: the bank has what the client trained

    def enrol(self, clients: Sequence[str]) -> None:
        """Give new clients a place in the bank and a hypernetwork; nothing changes for the others.

        Those that are there at the start are mixed from the start, later ones when they have trained once.
        """
        new = [client for client in clients if client not in self._bank.clients]
        if not new:
            return
        founding = not self._bank.clients
        self._bank.add(new, self._initial)
        self._networks.add([torch_stream(self.settings.seed, "hypernetwork", client=client) for client in new])
        self._ready = torch.cat([self._ready, torch.full((len(new),), founding)])
        self._learned = torch.cat([self._learned, torch.zeros(len(new), dtype=torch.bool)])

    def plan(self, round_number: int, clients: Sequence[str]) -> dict[str, Params]:
        """The mixed model of each client, without the layers that it retains."""
        plan = self._weigh(round_number, clients)
        starts: dict[str, Params] = {client: {} for client in clients}
        for at, group in enumerate(self._bank.groups):
            kept = ~plan.retained[:, at]
            mixed = self._bank.mix(group, plan.weights[kept, at]).cpu()  # R3
            receivers = [client for client, gets in zip(clients, kept.tolist(), strict=True) if gets]
            for client, row in zip(receivers, mixed, strict=True):
                starts[client] |= self._bank.tensors(group, row)
        return starts

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """Put the trained models into the bank, and let the hypernetworks learn from where training went.

        Raises:
            UserError: models have grown so large that their inner products overflow.
        """
        clients = list(uploads)
        plan = self._weigh(round_number, clients)
        scores = torch.zeros(plan.weights.shape, dtype=torch.float64)
        for at, group in enumerate(self._bank.groups):
            # Clients whose layer was mixed come first: the retained ones' start does not depend on the weights.
            order = plan.retained[:, at].argsort(stable=True)
            mixed = order[: int((~plan.retained[:, at]).sum())]
            names = [clients[i] for i in order.tolist()]
            models = [uploads[name].params for name in names]
            scores[mixed, at] = self._bank.absorb(group, names, models, plan.weights[mixed, at]).cpu()  # R6
        self._refuse_overflow(scores, clients)
        weights, logits = plan.weights.double(), plan.logits.double()
        normaliser = self.settings.pfedla.normaliser
        self._networks.step(plan.rows, pfedla.logit_gradient(weights, logits, scores, plan.mixed, normaliser))  # R7
        self._ready[plan.rows] = self._learned[plan.rows] = True

    def mixing_weights(self, round_number: int, clients: Sequence[str]) -> MixingWeights:
        """The weights that the clients' models of a round are mixed with, those of retained layers included."""
        weights = self._weigh(round_number, clients).weights
        return MixingWeights(tuple(clients), self._bank.groups, self._bank.clients, weights)

    def state_dict(self) -> Params:
        """Bank, embeddings, hypernetworks, optimiser, and who may be mixed; live, not copied."""
        networks = {f"hypernetworks/{name}": tensor for name, tensor in self._networks.params.items()}
        velocity = {f"velocity/{name}": tensor for name, tensor in self._networks.velocity.items()}
        return {**self._bank.state_dict(), "ready": self._ready, "learned": self._learned, **networks, **velocity}

    def load_state_dict(self, state: Params) -> None:
        """Continue from bank and hypernetworks.

        Raises:
            ValueError: they are not those of this model and these settings, or a model is not finite.
        """
        self.begin(self._initial)
        self.enrol(read_clients(state))
        own = self.state_dict()
        check_like(state, own)
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self._bank.check()

    def _weigh(self, round_number: int, clients: Sequence[str]) -> Plan:
        """R1 and R2 for some clients."""
        how, rows = self.settings.pfedla, self._bank.rows(clients)
        logits = self._networks.logits(rows)
        allowed = self._ready.expand_as(logits)
        weights = pfedla.mixing_weights(logits, allowed, rows, how.normaliser)  # R1
        if 0 < how.top_k_peers < len(self._bank.clients):
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
        return torch.where(self._learned[rows], torch.tensor(kept, dtype=torch.bool), self._ready[rows])

    def _order(self, round_number: int, client: str) -> Tensor:
        """In which order equal weights are kept: the client's own first, then as drawn for the round."""
        peers, own = len(self._bank.clients), int(self._bank.rows([client]))
        drawn = torch.randperm(peers, generator=torch_stream(self.settings.seed, "peers", round_number, client))
        return torch.cat([torch.tensor([own]), drawn[drawn != own]])

    def _refuse_overflow(self, scores: Tensor, clients: Sequence[str]) -> None:
        if not bool(torch.isfinite(scores).all()):
            client, group, _ = (~torch.isfinite(scores)).nonzero()[0].tolist()
            raise UserError(
                f"the weights of {self._bank.groups[group]} of client {clients[client]} are too large to be compared "
                "with those of its peers; lower learning-rate"
            )
