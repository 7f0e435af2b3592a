"""The client half of FedHAM, HAM-style; see algorithms/fedham.py."""

from typing import NamedTuple, final

import torch
from torch import Tensor

from clients.hybrid import META, SEEN, HybridClient
from fedham_flwr.algorithms import amn
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.mixing.bank import Bank
from fedham_flwr.mixing.meta_models import Projection, by_group, by_unit

ONE = torch.zeros(1, dtype=torch.int64)
"""The row of the client's meta-model in a stack of one."""


class Pool(NamedTuple):
    """The models that a client has been sent, its own among them."""

    bank: Bank
    places: Tensor  # int64 [M + 1], of its rows among all N clients
    seen: Tensor  # float32 [N, L, d], centred projections; 0 where no model came
    allowed: Tensor  # bool [1, N]


@final
class FedHAMClient(HybridClient):
    """The meta-model, and local training from the hybrid model or through it."""

    def besides(self) -> Params:
        """R6: the row that the start was mixed with."""
        return {"row": self._row} if self.has_pool else {}

    # ---- transport `mediated` ------------------------------------------------------------------------------------

    def answer(self) -> Params:
        """R2, R3: one step of the meta-model, if the server has scores, and the row for what it has now."""
        sent = self.job.download.besides
        seen, allowed = sent.tensors["projections"], self.ready()
        done = int(self.memory.get(f"{SEEN}learned", torch.tensor(0)))
        scored = sent.facts["scored"][0]
        if scored > done and f"{SEEN}projections" in self.memory and not self.restarted:
            was, then = self.memory[f"{SEEN}projections"], self.memory[f"{SEEN}allowed"].bool()
            looked = self.meta.attend(ONE, was, self.own, then)
            reach = self.settings.local_training().reach(self.examples)
            scores = sent.tensors["scores"][None, :, : len(was)].double() / reach
            self.meta.step(ONE, looked, self.own, scores)  # R2
            done = scored
        row = self.meta.attend(ONE, seen, self.own, allowed).effective(self.own)[0]  # R3
        model = {name: t for name, t in self.memory.items() if not name.startswith((META, SEEN))}
        meta = {META + name: t for name, t in self.meta.state_dict().items()}
        new = {"projections": seen, "allowed": allowed.to(torch.uint8), "learned": torch.tensor(done)}
        kept = {**model, **meta, **{SEEN + name: tensor for name, tensor in new.items()}}
        self.job.state.save(kept, self.job.download.round)
        return {"row": row}

    # ---- transport `peers` ---------------------------------------------------------------------------------------

    def starting_model(self, came: Params, training: bool) -> Params:
        """R2, R3, R5: with peers, train the meta-model and make the hybrid; else the hybrid has come."""
        model = super().starting_model(came, training)
        if not self.has_pool:
            return model
        with self.clock("meta"):
            pool = self._pool(model)
            generator = torch_stream(self.settings.seed, "meta", self.job.download.round, self.job.client)
            for _ in range(self.how.meta_steps if training and len(pool.places) > 1 else 0):
                self._meta_step(pool, model, generator)  # R2
            self.beta, hybrid = self._hybrid(pool)  # R3, R5
        self.own_model, self.hybrid = model, {**model, **hybrid}
        return self.hybrid

    def _pool(self, model: Params) -> Pool:
        """(7) for the models that came and one's own."""
        sent, trainer = self.job.download.besides, self.job.trainer
        places = torch.tensor(sorted((*sent.facts["peers"], *sent.facts["place"])), dtype=torch.int64)
        ids = [str(place) for place in places.tolist()]
        own = str(int(self.own))
        bank = Bank(trainer.manifest, self.shared_names, trainer.device)
        bank.add(ids, model)
        peers = [name for name in ids if name != own]
        bank.put(peers, [{n: sent.tensors[f"{peer}/{n}"] for n in self.shared_names} for peer in peers])
        projection = Projection(self.how, bank, self.settings.seed)
        p = projection.of(bank, range(len(ids)))
        if self.how.reference == "start":
            start = Bank(trainer.manifest, self.shared_names, trainer.device)
            start.add(["start"], trainer.initial)
            p = p - projection.of(start, [0])
        else:
            p = amn.centred(p, torch.ones(len(ids), dtype=torch.bool))
        ready, there = self.ready(), torch.zeros(1, len(self.ready()[0]), dtype=torch.bool)
        there[0, places] = True
        seen = torch.zeros(there.shape[1], *p.shape[1:])
        seen[places] = p.float()
        return Pool(bank, places, seen, ready & there)

    def _meta_step(self, pool: Pool, model: Params, generator: torch.Generator) -> None:
        """R2: one step of the meta-model on a batch, by the gradient of the network at the hybrid."""
        looked = self.meta.attend(ONE, pool.seen, self.own, pool.allowed)
        weights = by_group(looked.effective(self.own), len(pool.bank.groups))
        self.job.trainer.load({**model, **self._mix(pool, weights)})
        slope = self.job.trainer.gradient(self.parts[1], "train", self.how.meta_batch_size, generator)
        scores = torch.zeros(weights.shape, dtype=torch.float64)
        for at, group in enumerate(pool.bank.groups):
            scores[0, at, pool.places] = pool.bank.inner(group, slope)
        self.meta.step(ONE, looked, self.own, by_unit(scores, self.how.unit))

    def _hybrid(self, pool: Pool) -> tuple[Tensor, Params]:
        """(8), (9): the gates of the layer groups, and the shared tensors of h_i."""
        looked = self.meta.attend(ONE, pool.seen, self.own, pool.allowed)
        self._row = looked.effective(self.own)[0]
        groups = len(pool.bank.groups)
        beta = looked.beta[0].expand(groups)
        return beta, self._mix(pool, by_group(looked.effective(self.own), groups))

    def _mix(self, pool: Pool, weights: Tensor) -> Params:
        hybrid: Params = {}
        for at, group in enumerate(pool.bank.groups):
            (row,) = pool.bank.mix(group, weights[:, at, pool.places])
            hybrid |= pool.bank.tensors(group, row.cpu())
        return hybrid
