"""Meta-models of one or many clients, stacked, with their optimiser; and the projections that they look at.

On a client there is one, in its personal state; a server that hosts them has one for each client. The mathematics is in
algorithms/amn.py; shape letters as there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedham_flwr.algorithms import amn
from fedham_flwr.algorithms.amn import AttentionSettings, Rows
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params, finite_rows
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.core.threads import in_threads
from fedham_flwr.mixing.bank import Bank

log = logging.getLogger("fedham_flwr")

DECAY = (0.9, 0.999)
"""Of Adam's moments."""
SMALL = 1e-18
"""Far below any gradient, so that steps do not depend on the loss's scale."""


class Projection:
    """(7): R w_j for the models of a bank.

    Args:
        settings: feature dimension and unit.
        bank: whose layer groups are projected; all its tensors must be parameters.
        seed: the run's, from which everyone makes the same R.
    """

    def __init__(self, settings: AttentionSettings, bank: Bank, seed: int) -> None:
        self._how = settings
        self._signs = {
            group: torch.randint(0, 2, array.shape[1:], generator=torch_stream(seed, "projection", client=group))
            .mul_(2)
            .sub_(1)
            .to(array)
            for group, array in bank.arrays.items()
        }

    def of(self, bank: Bank, rows: Sequence[int]) -> Tensor:
        """The projections of some rows of a bank: float64 [n, L, d], each the same whatever else is there."""
        d = self._how.feature_dim

        def one(row: int) -> Tensor:
            return torch.stack([amn.project(bank.arrays[g][row, None], self._signs[g], d)[0] for g in bank.groups])

        found = torch.stack(in_threads(one, rows)) if rows else torch.empty(0, len(bank.groups), d, dtype=torch.float64)
        return (found if self._how.unit == "layer" else found.sum(1, keepdim=True)).cpu()


class MetaModels:
    """psi of n clients, stacked, and the state of their optimiser.

    Args:
        settings: settings.
        units: L.

    Attributes:
        params: each [n, L, ...], see `amn.initial`.
        moments: with adam `first/...` and `second/...`, as params, and steps [n].
    """

    def __init__(self, settings: AttentionSettings, units: int) -> None:
        self.settings = settings
        self.units = units
        self.params: Params = {}
        self.moments: Params = {}

    def add(self, generators: Sequence[torch.Generator], peers: int) -> None:
        """Give new clients meta-models as at the start.

        Args:
            generators: one for each; its draws depend on nothing else.
            peers: N with them.
        """
        fresh = [amn.initial(self.settings, self.units, peers, generator) for generator in generators]
        added = {name: torch.stack([one[name] for one in fresh]) for name in fresh[0]}
        self.widen(peers)
        self.params = {name: torch.cat([self.params[name], new]) if self.params else new for name, new in added.items()}
        if self.settings.optimizer == "adam":
            still = {f"{m}/{name}": torch.zeros_like(new) for m in ("first", "second") for name, new in added.items()}
            still["steps"] = torch.zeros(len(generators))
            self.moments = {n: torch.cat([self.moments[n], new]) if self.moments else new for n, new in still.items()}

    def widen(self, peers: int) -> None:
        """Give every client a bias of 0 for peers that have come."""
        for tensors in (self.params, self.moments):
            for name in [name for name in tensors if name.rpartition("/")[2] == "bias"]:
                tensors[name] = pad(tensors[name], (0, peers - tensors[name].shape[-1]))

    def attend(self, rows: Tensor, p: Tensor, own: Tensor, allowed: Tensor) -> Rows:
        """(8), (9) for some of the clients.

        Args:
            rows: int64 [n], which of the stacked meta-models.
            p: centred projections [N, L, d].
            own: int64 [n], places of their models among the N.
            allowed: bool [n, N], models that may be mixed.
        """
        return amn.attend(self._some(rows), p.float(), own, allowed, self.settings.meta)

    def step(self, rows: Tensor, looked: Rows, own: Tensor, scores: Tensor) -> None:
        """Descend by (10); no other client's meta-model changes.

        A client whose step would lead to numbers that are not finite keeps its meta-model: that is its own model's
        fault, unless it happens to most.

        Args:
            rows: int64 [n].
            looked: what `attend` gave for them.
            own: as there.
            scores: S_ij [n, L, N].

        Raises:
            UserError: it happens to most clients; no step is taken.
        """
        if self.settings.uniform_penalty:
            scores = amn.penalised(scores, looked.effective(own).to(scores), self.settings.uniform_penalty)
        psi = {name: tensor.to(scores) for name, tensor in self._some(rows).items()}
        as_scores = Rows(*(tensor.to(scores) for tensor in looked))
        slopes = amn.gradient(psi, as_scores, own, scores, self.settings.meta)
        steps, moments = self._directions(rows, slopes)
        new = {name: psi[name] - self.settings.learning_rate * step for name, step in steps.items()}
        finite = {name: finite_rows(tensor.float()) for name, tensor in {**new, **moments}.items()}
        good = torch.stack(list(finite.values())).all(0)
        if 2 * int(good.sum()) < len(rows):
            bad = next(name for name, rows_of in finite.items() if not bool(rows_of.all()))
            raise UserError(f"a meta-model diverged ({bad}): lower learning-rate={self.settings.learning_rate:g} of it")
        if not bool(good.all()):
            log.warning("%s meta-models would have diverged, and stay as they were", int((~good).sum()))
        for name, tensor in new.items():
            self.params[name][rows[good]] = tensor[good].float()
        for name, tensor in moments.items():
            self.moments[name][rows[good]] = tensor[good].float()

    def state_dict(self) -> Params:
        """Everything, by name; live, not copied."""
        return {**self.params, **self.moments}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Become what `state_dict` gave."""
        self.moments = {n: t.clone() for n, t in state.items() if n.partition("/")[0] in ("first", "second", "steps")}
        self.params = {name: tensor.clone() for name, tensor in state.items() if name not in self.moments}

    def _some(self, rows: Tensor) -> Params:
        return {name: tensor[rows] for name, tensor in self.params.items()}

    def _directions(self, rows: Tensor, slopes: Params) -> tuple[Params, Params]:
        """What the learning rate is multiplied with, and the new moments."""
        if self.settings.optimizer == "sgd":
            return slopes, {}
        if self.settings.optimizer == "normalised":
            squares = torch.stack([slope.flatten(2).square().sum(-1) for slope in map(_three, slopes.values())])
            length = squares.sum(0).sqrt()  # [n, L]
            return {name: slope / _like(length.clamp_min(SMALL), slope) for name, slope in slopes.items()}, {}
        steps, moments = {}, {"steps": self.moments["steps"][rows] + 1}
        for name, slope in slopes.items():
            for which, power, decay in zip(("first", "second"), (1, 2), DECAY, strict=True):
                moment = self.moments[f"{which}/{name}"][rows].to(slope)
                moments[f"{which}/{name}"] = decay * moment + (1 - decay) * slope**power
            first, second = (
                moments[f"{which}/{name}"] / _like(1 - decay ** moments["steps"], slope)
                for which, decay in zip(("first", "second"), DECAY, strict=True)
            )
            steps[name] = first / (second.sqrt() + SMALL)
        return steps, moments


def by_unit(per_group: Tensor, unit: str) -> Tensor:
    """Inner products by layer group [n, groups, N] as inner products by unit [n, L, N]."""
    return per_group if unit == "layer" else per_group.sum(1, keepdim=True)


def by_group(weights: Tensor, groups: int) -> Tensor:
    """Weights by unit [n, L, N] as weights by layer group [n, groups, N]."""
    return weights.expand(-1, groups, -1)


def side_by_side(scores: Sequence[Tensor]) -> Tensor:
    """Scores [L, M] of n clients as [n, L, M], with 0 where a client's list is shorter."""
    most = max(each.shape[-1] for each in scores)
    return torch.stack([pad(each, (0, most - each.shape[-1])) for each in scores])


def _three(tensor: Tensor) -> Tensor:
    return tensor[..., None] if tensor.dim() == 2 else tensor


def _like(given: Tensor, tensor: Tensor) -> Tensor:
    """With axes of length one at the end, to go with a tensor of more axes."""
    return given.view(*given.shape, *[1] * (tensor.dim() - given.dim()))
