"""FedPAC's server half; see algorithms/fedpac.py."""

from collections.abc import Mapping, Sequence
from typing import final

import torch

from fedham_flwr.algorithms import fedavg, fedpac
from fedham_flwr.algorithms.fedpac import FedPACSettings
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.trees import check_like, read_clients
from fedham_flwr.federation.classes import check_classes
from fedham_flwr.federation.contract import Extras, Setup, Start, Upload
from fedham_flwr.federation.extras import check_tensors
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.mixing.bank import Bank
from fedham_flwr.models.heads import head_name


@final
class FedPACStrategy(RoundStrategy):
    """The mean of the bodies, a head for every client, and the common class means of the last round.

    Raises:
        UserError: there are no classes, or the settings name another loss.
    """

    own: FedPACSettings

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        check_classes(setup)
        body, self._head = fedpac.names_of(self.manifest)
        self._body: Params = {name: self.first[name] for name in body}
        self._size = self.manifest.shapes[f"{head_name(self.manifest)}.weight"]  # (k, d)
        self._means, self._known = torch.zeros(self._size), torch.zeros(self._size[0], dtype=torch.bool)
        self._heads = self._empty()

    def add_clients(self, clients: Sequence[str]) -> None:
        """Give new clients the first head."""
        there = set(self._heads.clients)
        if new := [client for client in clients if client not in there]:
            self._heads.add(new, self.first)

    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """R1: the same body for every client, with its own head, and the class means once there are some."""
        extras = Extras()
        if bool(self._known.any()):
            extras = Extras({"means": self._means}, {"known": tuple(self._known.int().tolist())})
        own = {client: {**self._body, **self._heads.model(client)} for client in clients}
        return {
            client: Start({name: model[name].cpu() for name in self.split.shared}, extras, own=True)
            for client, model in own.items()
        }

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """R6 to R8."""
        replies, clients = list(uploads.values()), list(uploads)
        samples = [reply.examples for reply in replies]
        self._body = fedavg.aggregate([{n: r.params[n] for n in self._body} for r in replies], samples)
        means, shares, variance, trained = (
            torch.stack([reply.extras[name].double() for reply in replies]) for name in self._wanted
        )
        weights = torch.tensor(samples, dtype=torch.float64)
        common, self._known = fedpac.common_means(trained, shares * weights[:, None])
        self._means = common.float()
        models: list[Params] = [{name: reply.params[name] for name in self._head} for reply in replies]
        if self.own.mix_heads:
            a = fedpac.head_weights((shares[..., None] * means).flatten(1), variance / weights)  # R7
            stacked = {name: torch.stack([m[name].double() for m in models]) for name in self._head}
            mixed = {name: torch.tensordot(a, heads, 1).float() for name, heads in stacked.items()}  # R8
            models = [{name: heads[place] for name, heads in mixed.items()} for place in range(len(clients))]
        self.add_clients(clients)
        self._heads.put(clients, models)

    def check_extras(self, stage: str, client: str, tensors: Params) -> None:
        """Refuse statistics that cannot be.

        Raises:
            ValueError: they are missing or of other shapes, not finite or too large, or the shares are none.
        """
        check_tensors(tensors, self._wanted if stage == "train" else {})
        if not tensors:
            return
        shares = tensors["shares"]
        if not bool((shares >= 0).all()) or not abs(float(shares.sum()) - 1) < 1e-3:
            raise ValueError("shares has a negative share of a class, or does not sum to 1")
        if not float(tensors["variance"]) >= 0:
            raise ValueError("variance is negative")

    def state_dict(self) -> Params:
        """The body, the heads by client, and the class means."""
        body = {f"body/{name}": tensor for name, tensor in self._body.items()}
        return {**body, **self._heads.state_dict(), "means": self._means, "known": self._known}

    def load_state_dict(self, state: Params) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            ValueError: it is not of this model, or a tensor is not finite.
        """
        self._heads = self._empty()
        self.add_clients(read_clients(state))
        own = self.state_dict()
        check_like(state, own)
        self.manifest.check({name: state[f"body/{name}"] for name in self._body}, tuple(self._body))
        self._body = {name: state[f"body/{name}"] for name in self._body}
        self._means, self._known = state["means"], state["known"]
        for name, tensor in self._heads.state_dict().items():
            tensor.copy_(state[name])
        self._heads.check()

    def _empty(self) -> Bank:
        return Bank(self.manifest, self._head, torch.device("cpu"), self.setup.storage)

    @property
    def _wanted(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of what clients send beside a model."""
        classes, _ = self._size
        return {"means": self._size, "shares": (classes,), "variance": (), "trained": self._size}
