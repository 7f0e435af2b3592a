"""The client half of FedHAM, HAM-style; see algorithms/fedham.py."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from clients.mixing import MixingClient
from fedham_flwr.algorithms import fedham
from fedham_flwr.bank import Bank
from fedham_flwr.meta_models import MetaModels, Projection, by_group, by_unit
from fedham_flwr.parameters import LayerGroup, Params
from fedham_flwr.seeding import torch_stream
from fedham_flwr.state import StateNotFoundError
from fedham_flwr.training import GradientHook, Samples

log = logging.getLogger("fedham_flwr")

META, SEEN = "meta/", "seen/"
"""Prefixes of what the client keeps besides a model: psi and its optimiser; what psi looked at last (`mediated`)."""
ONE = torch.zeros(1, dtype=torch.int64)
"""The row of the client's meta-model in a stack of one."""


class Pool(NamedTuple):
    """The models that a client has been sent, its own among them."""

    bank: Bank
    places: Tensor  # int64 [M + 1], of its rows among all N clients
    seen: Tensor  # float32 [N, L, d], centred projections; 0 where no model came
    allowed: Tensor  # bool [1, N]


@final
class FedHAMClient(MixingClient):
    """The meta-model, and local training from the hybrid model or through it."""

    partial: ClassVar[bool] = True

    @property
    def how(self) -> fedham.FedHAMSettings:
        """The method's settings."""
        return self.settings.fedham

    @property
    def has_pool(self) -> bool:
        """Whether the client is sent the models of its peers (`peers`), and so mixes itself and keeps its own."""
        return "peers" in self.job.download.besides.facts

    def kept_names(self) -> Sequence[str]:
        """R6: all tensors where the client mixes itself, else the personal ones."""
        return self.job.trainer.manifest.names() if self.has_pool else self.personal_names

    def also_kept(self) -> Params:
        """R6: the meta-model, which no message holds."""
        kept = {name: t for name, t in self._memory.items() if name.startswith((META, SEEN))}
        return kept | ({META + name: t for name, t in self._meta.state_dict().items()} if self.has_pool else {})

    def besides(self) -> Params:
        """R6: the row that the start was mixed with."""
        return {"row": self._row} if self.has_pool else {}

    # ---- transport `mediated` ------------------------------------------------------------------------------------

    def answer(self) -> Params:
        """R2, R3: one step of the meta-model, if the server has scores, and the row for what it has now."""
        sent = self.job.download.besides
        seen, allowed = sent.tensors["projections"], self._ready()
        done = int(self._memory.get(f"{SEEN}learned", torch.tensor(0)))
        scored = sent.facts["scored"][0]
        if scored > done and f"{SEEN}projections" in self._memory and not self.restarted:
            was, then = self._memory[f"{SEEN}projections"], self._memory[f"{SEEN}allowed"].bool()
            looked = self._meta.attend(ONE, was, self._own, then)
            reach = self.settings.local_training().reach(self.examples)
            scores = sent.tensors["scores"][None, :, : len(was)].double() / reach
            self._meta.step(ONE, looked, self._own, scores)  # R2
            done = scored
        row = self._meta.attend(ONE, seen, self._own, allowed).effective(self._own)[0]  # R3
        model = {name: t for name, t in self._memory.items() if not name.startswith((META, SEEN))}
        meta = {META + name: t for name, t in self._meta.state_dict().items()}
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
            self._beta, hybrid = self._hybrid(pool)  # R3, R5
        self._own_model, self._start_model = model, {**model, **hybrid}
        return self._start_model

    def _pool(self, model: Params) -> Pool:
        """(7) for the models that came and one's own."""
        sent, trainer = self.job.download.besides, self.job.trainer
        places = torch.tensor(sorted((*sent.facts["peers"], *sent.facts["place"])), dtype=torch.int64)
        ids = [str(place) for place in places.tolist()]
        own = str(int(self._own))
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
            p = fedham.centred(p, torch.ones(len(ids), dtype=torch.bool))
        ready, there = self._ready(), torch.zeros(1, len(self._ready()[0]), dtype=torch.bool)
        there[0, places] = True
        seen = torch.zeros(there.shape[1], *p.shape[1:])
        seen[places] = p.float()
        return Pool(bank, places, seen, ready & there)

    def _meta_step(self, pool: Pool, model: Params, generator: torch.Generator) -> None:
        """R2: one step of the meta-model on a batch, by the gradient of the network at the hybrid."""
        looked = self._meta.attend(ONE, pool.seen, self._own, pool.allowed)
        weights = by_group(looked.effective(self._own), len(pool.bank.groups))
        self.job.trainer.load({**model, **self._mix(pool, weights)})
        slope = self.job.trainer.gradient(self._meta_data, "train", self.how.meta_batch_size, generator)
        scores = torch.zeros(weights.shape, dtype=torch.float64)
        for at, group in enumerate(pool.bank.groups):
            scores[0, at, pool.places] = pool.bank.inner(group, slope)
        self._meta.step(ONE, looked, self._own, by_unit(scores, self.how.unit))

    def _hybrid(self, pool: Pool) -> tuple[Tensor, Params]:
        """(8), (9): the gates of the layer groups, and the shared tensors of h_i."""
        looked = self._meta.attend(ONE, pool.seen, self._own, pool.allowed)
        self._row = looked.effective(self._own)[0]
        groups = len(pool.bank.groups)
        beta = looked.beta[0].expand(groups)
        return beta, self._mix(pool, by_group(looked.effective(self._own), groups))

    def _mix(self, pool: Pool, weights: Tensor) -> Params:
        hybrid: Params = {}
        for at, group in enumerate(pool.bank.groups):
            (row,) = pool.bank.mix(group, weights[:, at, pool.places])
            hybrid |= pool.bank.tensors(group, row.cpu())
        return hybrid

    # ---- the base phase ------------------------------------------------------------------------------------------

    def gradient_hook(self, start: Mapping[str, Tensor]) -> GradientHook | None:
        """R5: with B2, descend w_i and not h_i: dL/dw_i = beta_i dL/dh_i, and h_i moves by beta_i times w_i's step."""
        if not self.has_pool or self.how.base_objective == "hybrid":
            return None
        decay, trainer = self.settings.weight_decay, self.job.trainer
        beta = {name: float(b) for b, g in zip(self._beta, self._groups, strict=True) for name in g.parameters}
        names = trainer.parameter_names
        # (1 - beta) c, which weight decay, meant for w_i, must not pull at
        rest = {n: (start[n] - beta[n] * self._own_model[n]).to(trainer.device) for n in names}

        def through(params: Sequence[nn.Parameter]) -> None:
            for name, param in zip(names, params, strict=True):
                assert param.grad is not None
                param.grad.mul_(beta[name] ** 2)
                if decay:
                    param.grad.sub_(rest[name], alpha=decay)

        return through

    def learned(self, after: Params) -> Params:
        """R5: with B2, w_i of the h_i that training left; with B1 the same."""
        if not self.has_pool or self.how.base_objective == "hybrid":
            return after
        own = dict(after)
        for b, group in zip(self._beta.tolist(), self._groups, strict=True):
            for name in group.parameters:
                moved = (after[name] - self._start_model[name]) / b if b else torch.zeros_like(after[name])
                own[name] = self._own_model[name] + moved
        return own

    def training_data(self) -> Samples:
        """The client's data without what is held out for the meta-model."""
        return self._parts[0] if self.has_pool else self.job.data

    # ---- what is there -------------------------------------------------------------------------------------------

    @cached_property
    def _parts(self) -> tuple[Samples, Samples]:
        """Data for the base phase and for the meta phase; the same where there is nothing to hold out."""
        data, job = self.job.data, self.job
        train = data.splits["train"]
        if self.how.meta_data == "shared" or len(train) < 2:
            return data, data
        number = job.download.round if self.how.meta_data == "fresh" else 0
        order = torch.randperm(len(train), generator=torch_stream(self.settings.seed, "meta-data", number, job.client))
        count = min(len(train) - 1, max(1, round(self.how.meta_share * len(train))))
        base, meta = ({**data.splits, "train": train[part.sort().values]} for part in (order[count:], order[:count]))
        return dataclasses.replace(data, splits=base), dataclasses.replace(data, splits=meta)

    @property
    def _meta_data(self) -> Samples:
        return self._parts[1]

    @cached_property
    def _memory(self) -> Params:
        """All that was kept; nothing before the first round."""
        try:
            return self.job.state.load()
        except StateNotFoundError:
            return {}

    @cached_property
    def _meta(self) -> MetaModels:
        """The client's meta-model: as kept, or as at the start."""
        groups, how = len(self._groups), self.how
        peers = len(self._ready()[0])
        meta = MetaModels(how, groups if how.unit == "layer" else 1)
        kept = {name.removeprefix(META): t for name, t in self._memory.items() if name.startswith(META)}
        if kept:
            meta.load(kept)
            meta.widen(peers)
            return meta
        if self.job.download.has_trained:
            log.warning("client %s has lost its meta-model, which starts again with equal weights", self.job.client)
            self.restarted = True
        meta.add([torch_stream(self.settings.seed, "meta-model", client=self.job.client)], peers)
        return meta

    @property
    def _groups(self) -> Sequence[LayerGroup]:
        return self.job.trainer.manifest.groups

    @property
    def _own(self) -> Tensor:
        """The client's own place: int64 [1]."""
        return torch.tensor(self.job.download.besides.facts["place"], dtype=torch.int64)

    def _ready(self) -> Tensor:
        """Whose models may be mixed: bool [1, N]."""
        return torch.tensor([self.job.download.besides.facts["ready"]], dtype=torch.bool)
