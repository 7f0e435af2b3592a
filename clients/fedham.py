"""The client half of FedHAM, HAM-style; see algorithms/fedham.py."""

import dataclasses
import logging
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from fedham_flwr.algorithms.fedham import FedHAMSettings
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.federation.stages import EVALUATE, TRAIN
from fedham_flwr.mixing.meta_models import MetaModels
from fedham_flwr.mixing.peers import TOGETHER, Peers
from fedham_flwr.mixing.rows import Units
from fedham_flwr.training.local import Samples
from fedham_flwr.training.through import Hybrid, Through

log = logging.getLogger("fedham_flwr")

META, SEEN = "meta/", "seen/"
"""Prefixes of what the client keeps beside a model: psi and its optimiser; what psi looked at last (`mediated`)."""
ONE = torch.zeros(1, dtype=torch.int64)
"""The row of the client's meta-model in a stack of one."""


@final
class FedHAMClient(RoundClient):
    """The meta-model, and local training from the hybrid model or through it."""

    own: FedHAMSettings

    def answer(self) -> Params:
        """R2, R3: one step of the meta-model, if the server has scores, and the row for what it has now."""
        sent = self.job.download.extras
        seen, allowed = sent.tensors["projections"], self.ready()
        if self.has_pool:  # `peers`, of which it is to say whose models it wants
            return {"row": self.meta.attend(ONE, seen, self.place, allowed).effective(self.place)[0]}
        done = int(self.kept.tensors.get(f"{SEEN}learned", torch.tensor(0)))
        scored = sent.facts["scored"][0]
        if scored > done and f"{SEEN}projections" in self.kept.tensors and not self.kept.restarted:
            was, then = self.kept.tensors[f"{SEEN}projections"], self.kept.tensors[f"{SEEN}allowed"]
            place = self.kept.tensors.get(f"{SEEN}place", self.place)
            looked = self.meta.attend(ONE, was, place, then)
            reach = self.settings.local_training(scored).reach(self.examples)
            scores = sent.tensors["scores"][None, :, : len(was)].double() / reach
            self.meta.step(ONE, looked, place, scores)  # R2
            done = scored
        row = self.meta.attend(ONE, seen, self.place, allowed).effective(self.place)[0]  # R3
        if self.has_few and self.job.download.closing:
            return {"row": row}  # nothing comes after it
        model = {name: t for name, t in self.kept.tensors.items() if not name.startswith((META, SEEN))}
        now = {"projections": seen, "allowed": allowed, "place": self.place, "learned": torch.tensor(done)}
        psi = {} if self.has_few and not done else self._meta_state()  # as it starts, it is made anew
        self.job.state.save({**model, **psi, **{SEEN + name: t for name, t in now.items()}}, self.job.download.round)
        return {"row": row}

    def start(self, received: Params) -> Params:
        """R2, R3, R5: with peers, train the meta-model and make the hybrid; else the hybrid has come."""
        model = super().start(received)
        if not self.has_pool:
            return model
        with self.clock("meta"):
            peers = self._peers(model)
            generator = torch_stream(self.settings.seed, "meta", self.job.download.round, self.job.client)
            looks = self.job.stage in (TRAIN, EVALUATE) and len(peers.places) > 1
            prior = self._fresh().attend(ONE, peers.seen, self.place, peers.allowed).effective(self.place)
            for _ in range(self.own.meta_steps if looks else 0):  # an evaluation's are forgotten
                self._meta_step(peers, model, prior, generator)  # R2
            looked = self.meta.attend(ONE, peers.seen, self.place, peers.allowed)  # (8), (9)
            row, gates = looked.effective(self.place), looked.beta[0, list(self.units.unit_of)].tolist()
            hybrid = peers.mix(self.units.by_group(row))  # R3, R5
        self.extras = {"row": row[0]}  # R6
        beta = dict(zip(peers.groups, gates, strict=True))
        by_name = {n: beta.get(g.name, 1.0) for g in self.job.trainer.manifest.groups for n in g.parameters}
        return Hybrid({**model, **hybrid}, model, by_name)

    def _peers(self, model: Params) -> Peers:
        sent, trainer = self.job.download.extras, self.job.trainer
        own, at, p = {name: model[name] for name in self.split.shared}, int(self.place), sent.tensors["projections"]
        theirs = {place: {name: sent.tensors[f"{place}/{name}"] for name in own} for place in sent.facts["peers"]}
        together = sent.facts["together"]
        mixture = {name: sent.tensors[f"{TOGETHER}{name}"] for name in own if together}
        return Peers(trainer.manifest, trainer.device, at, own, theirs, together, mixture, p, self.ready())

    def _meta_step(self, peers: Peers, model: Params, prior: Tensor, generator: torch.Generator) -> None:
        """R2: one step of the meta-model on a batch, by the gradient of the network at the hybrid."""
        looked = self.meta.attend(ONE, peers.seen, self.place, peers.allowed)
        hybrid = peers.mix(self.units.by_group(looked.effective(self.place)))
        slope = self.gradient({**model, **hybrid}, self.parts[1], self.own.meta_batch_size, generator)
        self.meta.step(ONE, looked, self.place, self.units.scores(peers.inner(slope)), prior)

    def train(self, start: Params) -> Outcome:
        """R5, R6: train from h_i, or through it; keep what is personal and the meta-model, which no message holds."""
        remembered = {n: t for n, t in self.kept.tensors.items() if n.startswith((META, SEEN))}
        if not isinstance(start, Hybrid):
            after = self.fit(start)
            return Outcome(after, after, {**remembered, **{name: after[name] for name in self.split.personal}})
        if self.own.base_objective == "own":  # B2: w_i descends, and not h_i
            through = Through(start.beta, self.on_device(start.rest()), self.settings.weight_decay)
            after = self.fit(start, gradient_term=through, samples=self.parts[0])
            own = start.own_after(after)
        else:
            own = after = self.fit(start, samples=self.parts[0])
        return Outcome(own, after, {**own, **remembered, **self._meta_state()})

    @cached_property
    def parts(self) -> tuple[Samples, Samples]:
        """Data for the base phase and for the meta phase; the same where there is nothing to hold out."""
        data, job, own = self.job.data, self.job, self.own
        train = data.splits["train"]
        if own.meta_data == "shared" or len(train) < 2:
            return data, data
        number = job.download.round if own.meta_data == "fresh" else 0
        order = torch.randperm(len(train), generator=torch_stream(self.settings.seed, "meta-data", number, job.client))
        count = min(len(train) - 1, max(1, round(own.meta_share * len(train))))
        base, meta = ({**data.splits, "train": train[part.sort().values]} for part in (order[count:], order[:count]))
        return dataclasses.replace(data, splits=base), dataclasses.replace(data, splits=meta)

    @cached_property
    def meta(self) -> MetaModels:
        """The client's meta-model: as kept, or as at the start."""
        kept = {name.removeprefix(META): t for name, t in self.kept.tensors.items() if name.startswith(META)}
        if kept:
            meta = MetaModels(self.own, len(self.units))
            meta.load(kept)
            meta.widen(self._peers_there)
            return meta
        if self.kept.must_be_there and f"{SEEN}learned" not in self.kept.tensors:
            log.warning("client %s has lost its meta-model, which starts again", self.job.client)
            self.kept.restarted = True
        return self._fresh()

    def _fresh(self) -> MetaModels:
        """The client's meta-model as at the start."""
        meta, there = MetaModels(self.own, len(self.units)), self._peers_there
        few = self.has_pool and self.own.peers and not self.own.mixed_rest
        mixed = min(self.own.peers + 1, there) if few else there
        meta.add([torch_stream(self.settings.seed, "meta-model", client=self.job.client)], there, mixed)
        return meta

    @property
    def _peers_there(self) -> int:
        """N, or of those that the client is told of, itself included."""
        return self.own.candidates + 1 if self.has_few else len(self.ready()[0])

    @property
    def has_pool(self) -> bool:
        """Whether the client is sent the models of its peers (`peers`), and so mixes itself and keeps its own."""
        return "peers" in self.job.download.extras.facts

    @property
    def has_few(self) -> bool:
        """Whether there are more models than the client is told of."""
        return "few" in self.job.download.extras.facts

    @property
    def place(self) -> Tensor:
        """The client's own place: int64 [1]."""
        return torch.tensor(self.job.download.extras.facts["place"], dtype=torch.int64)

    def ready(self) -> Tensor:
        """Whose models may be mixed, and with which share, see `amn.attend`: [1, N]."""
        return self.job.download.extras.tensors["shares"][None]

    @cached_property
    def units(self) -> Units:
        """What has a row of its own."""
        shared, groups = set(self.split.shared), self.job.trainer.manifest.groups
        return Units.of([g.name for g in groups if shared & set(g.names)], self.own.unit, self.own.features_of)

    def _meta_state(self) -> Params:
        return {META + name: t for name, t in self.meta.state_dict().items()}
