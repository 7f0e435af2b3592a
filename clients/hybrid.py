"""What a client half with a meta-model does: it keeps it, holds data out for it, trains from or through a hybrid.

See algorithms/fedham.py; `clients/fedham.py` says where the hybrid comes from.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from clients.mixing import MixingClient
from fedham_flwr.algorithms import fedham
from fedham_flwr.core.parameters import LayerGroup, Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.mixing.meta_models import MetaModels
from fedham_flwr.state.store import StateNotFoundError
from fedham_flwr.training.trainer import GradientTerm, Samples

log = logging.getLogger("fedham_flwr")

META, SEEN = "meta/", "seen/"
"""Prefixes of what the client keeps besides a model: psi and its optimiser; what psi looked at last (`mediated`)."""


class HybridClient(MixingClient):
    """The base phase, and the memory of a client with a meta-model.

    Attributes:
        own_model: w_i, where the client makes its hybrid itself.
        hybrid: h_i with w_i's running statistics, there too.
        beta: its gates, for each layer group.
    """

    own_model: Params
    hybrid: Params
    beta: Tensor

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
        kept = {name: t for name, t in self.memory.items() if name.startswith((META, SEEN))}
        return kept | ({META + name: t for name, t in self.meta.state_dict().items()} if self.has_pool else {})

    # ---- the base phase ------------------------------------------------------------------------------------------

    def gradient_term(self, start: Mapping[str, Tensor]) -> GradientTerm | None:
        """R5: with B2, descend w_i and not h_i: dL/dw_i = beta_i dL/dh_i, and h_i moves by beta_i times w_i's step."""
        if not self.has_pool or self.how.base_objective == "hybrid":
            return None
        decay, trainer = self.settings.weight_decay, self.job.trainer
        beta = {name: float(b) for b, g in zip(self.beta, self.groups, strict=True) for name in g.parameters}
        # (1 - beta) c, which weight decay, meant for w_i, must not pull at
        rest = {n: (start[n] - beta[n] * self.own_model[n]).to(trainer.device) for n in trainer.parameter_names}

        def through(name: str, _param: Tensor, gradient: Tensor) -> None:
            gradient.mul_(beta[name] ** 2)
            if decay:
                gradient.sub_(rest[name], alpha=decay)

        return through

    def learned(self, after: Params) -> Params:
        """R5: with B2, w_i of the h_i that training left; with B1 the same."""
        if not self.has_pool or self.how.base_objective == "hybrid":
            return after
        own = dict(after)
        for b, group in zip(self.beta.tolist(), self.groups, strict=True):
            for name in group.parameters:
                moved = (after[name] - self.hybrid[name]) / b if b else torch.zeros_like(after[name])
                own[name] = self.own_model[name] + moved
        return own

    def training_data(self) -> Samples:
        """The client's data without what is held out for the meta-model."""
        return self.parts[0] if self.has_pool else self.job.data

    # ---- what is there -------------------------------------------------------------------------------------------

    @cached_property
    def parts(self) -> tuple[Samples, Samples]:
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

    @cached_property
    def memory(self) -> Params:
        """All that was kept; nothing before the first round."""
        try:
            return self.job.state.load()
        except StateNotFoundError:
            return {}

    @cached_property
    def meta(self) -> MetaModels:
        """The client's meta-model: as kept, or as at the start."""
        groups, how = len(self.groups), self.how
        peers = len(self.ready()[0])
        if not self.has_pool:
            how = dataclasses.replace(how, uniform_penalty=0.0)
        meta = MetaModels(how, groups if how.unit == "layer" else 1)
        kept = {name.removeprefix(META): t for name, t in self.memory.items() if name.startswith(META)}
        if kept:
            meta.load(kept)
            meta.widen(peers)
            return meta
        if self.has_learned:
            log.warning("client %s has lost its meta-model, which starts again with equal weights", self.job.client)
            self.restarted = True
        meta.add([torch_stream(self.settings.seed, "meta-model", client=self.job.client)], peers)
        return meta

    @property
    def groups(self) -> Sequence[LayerGroup]:
        """The model's layer groups."""
        return self.job.trainer.manifest.groups

    @property
    def own(self) -> Tensor:
        """The client's own place: int64 [1]."""
        return torch.tensor(self.job.download.besides.facts["place"], dtype=torch.int64)

    def ready(self) -> Tensor:
        """Whose models may be mixed: bool [1, N]."""
        return torch.tensor([self.job.download.besides.facts["ready"]], dtype=torch.bool)
