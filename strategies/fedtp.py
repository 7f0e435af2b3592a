"""The server half of FedTP; see algorithms/fedtp.py."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, final

import torch

from fedham_flwr.algorithms import fedtp
from fedham_flwr.algorithms.fedtp import FedTPSettings
from fedham_flwr.core.devices import resolve_device
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.core.trees import check_like, read_clients, write_clients
from fedham_flwr.federation.classes import target_of
from fedham_flwr.federation.contract import Setup, Start, Upload
from fedham_flwr.federation.merging import Merging
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.generating.embeddings import Embeddings
from fedham_flwr.generating.generator import Generator


@final
class FedTPStrategy(RoundStrategy):
    """A mean of everything but self-attention, and a hypernetwork that makes each client's self-attention.

    Raises:
        UserError: FedRoD's losses with settings of another one, or what is for classes where there are none.
    """

    own: FedTPSettings
    aggregates: ClassVar[bool] = True  # what the hypernetwork learns from is a sum, whatever `server.` says of the mean

    def __init__(self, setup: Setup) -> None:
        fedtp.check_model(setup.manifest.group_names, setup.settings.model)
        super().__init__(setup)
        fedtp.check_target(self.own, target_of(setup))
        self._made = self.split.adapted  # vanilla makes nothing
        self._mean = {name: tensor for name, tensor in self.first.items() if name not in self._made}
        members = len(setup.roster.nodes) - len(self.progress.novel)
        self._merging = Merging(self.settings, self._mean, self.manifest.buffers, members)
        self._embeddings = Embeddings(self.own)
        if self.own.head == "fedrod":
            self.settings.local_training(1).check_task_loss('fedtp.head="fedrod"')
        if self._made:
            draw = torch_stream(self.settings.seed, "generator")
            base = {name: self.first[name] for name in self._made}
            self._generator = Generator(self.own, base, draw, resolve_device(self.settings.device))

    def add_clients(self, clients: Sequence[str]) -> None:
        """Give new clients an embedding; nothing changes for the others."""
        new = [client for client in clients if client not in self._embeddings.clients]
        if self._made and new:
            draws = [torch_stream(self.settings.seed, "embedding", client=client) for client in new]
            self._embeddings.add(new, draws)

    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """The mean for every client, and the projections that are made for it."""
        if not self._made:
            return dict.fromkeys(clients, Start(self._mean, own=True))
        made = self._generator.generate(self._embeddings.of(clients))  # R1
        return {c: Start({**self._mean, **own}, own=True) for c, own in zip(clients, made, strict=True)}  # R2

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """Average what is shared, and let the hypernetwork and the embeddings learn from where training went.

        Raises:
            UserError: the hypernetwork or the server's optimiser diverged, or the replies are too few for
                `server.aggregation`.
        """
        examples = [upload.examples for upload in uploads.values()]
        if self._made:
            share = torch.tensor(examples, dtype=torch.float64)
            slopes = self._slopes(uploads, (share / share.sum()).float())
            self._embeddings.step(list(uploads), self._generator.step(self._embeddings.of(list(uploads)), slopes))  # R7
        models = [{name: upload.params[name] for name in self._mean} for upload in uploads.values()]
        self._mean = self._merging.merge(round_number, self._mean, models, examples)  # R5

    def adapt(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """Move the embeddings of novel clients; the hypernetwork and what is shared stay as they are."""
        slopes = self._slopes(uploads, torch.ones(len(uploads)))
        gradient = self._generator.slope(self._embeddings.of(list(uploads)), slopes)
        self._embeddings.step(list(uploads), gradient, decay=False)

    def _slopes(self, uploads: Mapping[str, Upload], share: torch.Tensor) -> Params:
        """R6: p_i (W_i - Wt_i) of each client, stacked: name -> [n, ...]; W_i is made once more."""
        starts = self._generator.generate(self._embeddings.of(list(uploads)))
        slopes = {}
        for name in self._made:
            after = torch.stack([upload.params[name] for upload in uploads.values()])
            away = torch.stack([start[name] for start in starts]).sub_(after)
            slopes[name] = away.mul_(share.view(-1, *[1] * (away.dim() - 1)))
        return slopes

    def describe(self) -> str:
        """What is shared, personal and generated, and the size of the hypernetwork, which stays here."""
        if not self._made:
            return super().describe() + self._merging.describe()
        size = sum(tensor.numel() for tensor in self._generator.params.values())
        made = f"; generated: {fedtp.GROUP}, by a hypernetwork of {size:,} scalars"
        return super().describe() + made + self._merging.describe()

    def state_dict(self) -> Params:
        """The mean, the hypernetwork, the embeddings and their optimisers; live, not copied."""
        state = {f"mean/{name}": tensor for name, tensor in self._mean.items()} | self._merging.state_dict()
        if self._made:
            state |= {f"generator/{name}": tensor for name, tensor in self._generator.params.items()}
            state |= {f"velocity/{name}": tensor for name, tensor in self._generator.velocity.items()}
            state |= {"embeddings": self._embeddings.values, "embeddings-velocity": self._embeddings.velocity}
            state |= write_clients(self._embeddings.clients)
        return state

    def load_state_dict(self, state: Params) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            ValueError: it is not of this model and these settings.
        """
        if self._made:
            self._embeddings = Embeddings(self.own)
            self.add_clients(read_clients(state))
        own = self.state_dict()
        check_like(state, own)
        self._mean = {name: state[f"mean/{name}"].clone() for name in self._mean}
        for name, tensor in own.items():
            if not name.startswith("mean/"):
                tensor.copy_(state[name])
