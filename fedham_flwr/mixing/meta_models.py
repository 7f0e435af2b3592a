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
from fedham_flwr.algorithms.amn import AttentionSettings, Rows, gate_logits, peer_logits
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params, finite_rows
from fedham_flwr.core.projections import project
from fedham_flwr.core.row_optimizers import SMALL, directions, like
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.core.threads import in_threads
from fedham_flwr.mixing.bank import Bank

log = logging.getLogger("fedham_flwr")

FARTHEST = 5.0
"""A step leads a gate's logit no farther from 0; beyond it the gradient is as there, or Adam never turns it back."""
LAYER_TWO = ("gate", "query2", "key2")


class Projection:
    """(7): R w_j for the models of a bank.

    Args:
        dimension: d, of a projection.
        bank: whose layer groups are projected; all its tensors must be parameters.
        seed: the run's, from which everyone makes the same R.
    """

    def __init__(self, dimension: int, bank: Bank, seed: int) -> None:
        self._dimension = dimension
        self._signs = {
            group: torch.randint(0, 2, array.shape[1:], generator=torch_stream(seed, "projection", client=group))
            .mul_(2)
            .sub_(1)
            .to(array)
            for group, array in bank.arrays.items()
        }

    def of(self, bank: Bank, rows: Sequence[int]) -> Tensor:
        """The projections of some rows of a bank: float64 [n, G, d], each the same whatever else is there."""
        d = self._dimension

        def one(row: int) -> Tensor:
            return torch.stack([project(bank.arrays[g][row, None], self._signs[g], d)[0] for g in bank.groups])

        found = torch.stack(in_threads(one, rows)) if rows else torch.empty(0, len(bank.groups), d, dtype=torch.float64)
        return found.cpu()


def initial(settings: AttentionSettings, units: int, peers: int, generator: torch.Generator, mixed: int = 0) -> Params:
    """A meta-model at the start: peers weigh by likeness, the client itself as in a mean; for aghn, p = 0.05.

    Args:
        settings: settings.
        units: L.
        peers: N, itself included.
        mixed: of how many models, itself included, a mixture is at most; 0: N.
        generator: for the queries, whose components are of order one. Biases start at 0, and keys unless the weights
            are to start by likeness.

    Returns:
        gate [L], the logit of 1 by `mixed`; query, key, query2, key2 [L, k, d]; for aghn gate [L], which is log p, and
        temperature [L], which is q; bias [L, N] if there is one.
    """
    if settings.meta == "aghn":
        q = torch.full((units,), settings.initial_temperature or 1.0)
        psi = {"gate": torch.full((units,), 0.05).log(), "temperature": q}
    else:
        psi = {"gate": torch.full((units,), 1 / max(mixed or peers, 2)).logit()}
        shape = (units, settings.key_dim, settings.feature_dim)
        for layer in ("", "2"):
            psi[f"query{layer}"] = torch.randn(shape, generator=generator) / settings.feature_dim**0.5
            psi[f"key{layer}"] = torch.zeros(shape)
        # E<W_Q f, W_Q g> = k cos(f, g), since normalised features have the length sqrt(d), and (8) divides by sqrt(k).
        psi["key"] += psi["query"] * (settings.initial_temperature / settings.key_dim**0.5)
    return psi | ({"bias": torch.zeros(units, peers)} if settings.peer_bias else {})


class MetaModels:
    """psi of n clients, stacked, and the state of their optimiser.

    Args:
        settings: settings.
        units: L.

    Attributes:
        params: each [n, L, ...], see `initial`.
        moments: with adam `first/...` and `second/...`, as params, and steps [n].
    """

    def __init__(self, settings: AttentionSettings, units: int) -> None:
        self.settings = settings
        self.units = units
        self.params: Params = {}
        self.moments: Params = {}

    def add(self, generators: Sequence[torch.Generator], peers: int, mixed: int = 0) -> None:
        """Give new clients meta-models as at the start.

        Args:
            generators: one for each; its draws depend on nothing else.
            peers: N with them.
            mixed: see `initial`.
        """
        fresh = [initial(self.settings, self.units, peers, generator, mixed) for generator in generators]
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

    def step(self, rows: Tensor, looked: Rows, own: Tensor, scores: Tensor, prior: Tensor | None = None) -> None:
        """Descend by (10); no other client's meta-model changes.

        A client whose step would lead to numbers that are not finite keeps its meta-model: that is its own model's
        fault, unless it happens to most.

        Args:
            rows: int64 [n].
            looked: what `attend` gave for them.
            own: as there.
            scores: S_ij [n, L, N].
            prior: rows [n, L, N] that these are held to by `prior_penalty`, which takes them.

        Raises:
            UserError: it happens to most clients; no step is taken.
        """
        how = self.settings
        if prior is not None:
            scores = amn.penalised(scores, looked.effective(own).to(scores), prior.to(scores), how.prior_penalty)
        psi = {name: tensor.to(scores) for name, tensor in self._some(rows).items()}
        as_scores = Rows(*(tensor.to(scores) for tensor in looked))
        seen = with_slopes(as_scores) if how.max_logit_step else as_scores
        slopes = amn.gradient(psi, seen, own, scores, how.meta)
        kept = {name: tensor[rows] for name, tensor in self.moments.items()}
        ways, moments = directions(slopes, how.optimizer, kept)
        steps = {name: how.learning_rate * way for name, way in ways.items()}
        if how.max_logit_step:
            steps = bounded(psi, steps, as_scores, how.meta, how.max_logit_step)
        new = {name: psi[name] - step for name, step in steps.items()}
        finite = {name: finite_rows(tensor.float()) for name, tensor in {**new, **moments}.items()}
        good = torch.stack(list(finite.values())).all(0)
        if 2 * int(good.sum()) < len(rows):
            bad = next(name for name, rows_of in finite.items() if not bool(rows_of.all()))
            raise UserError(f"a meta-model diverged ({bad}): lower learning-rate={how.learning_rate:g} of it")
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


def with_slopes(rows: Rows) -> Rows:
    """Rows whose gates count as no nearer to 0 or 1 than those of `FARTHEST`, so that none has a gradient of 0."""
    chosen = (rows.a > 0).any(-1) & (rows.beta > 0)  # the others have nobody to choose from
    low, high = torch.tensor([-FARTHEST, FARTHEST]).sigmoid().tolist()
    return rows._replace(beta=torch.where(chosen, rows.beta.clamp(low, high), rows.beta))


def bounded(psi: Mapping[str, Tensor], steps: Params, rows: Rows, meta: str, bound: float) -> Params:
    """Steps made so short, for each client, unit and layer of attention, that they move no logit by more than a bound.

    A logit is a polynomial of second degree in the length t of a step: s(t) - s(0) = A t + B t^2, of which three values
    give A and B; |A| t + |B| t^2 <= c holds up to t = 2 c / (|A| + sqrt(A^2 + 4 |B| c)). Features count as constant. A
    gate goes no farther than `FARTHEST`, so that it is never far from where its gradient turns it back.

    Args:
        psi: meta-models.
        steps: what is to be taken off them.
        rows: what `attend` gave for them.
        meta: attention or aghn.
        bound: in logits, > 0.
    """
    ahead, back = ({name: psi[name] - t * steps[name] for name in steps} for t in (1, -1))

    def longest(logits: Sequence[Tensor], counts: Tensor, ends: bool) -> Tensor:
        now, there, behind = logits
        linear, square = (there - behind) / 2, (there + behind) / 2 - now
        room = torch.full_like(now, bound)
        if ends:
            room = torch.where(linear * now >= 0, (FARTHEST - now.abs()).clamp(0, bound), room)
        below = linear.abs() + (linear.square() + 4 * square.abs() * room).sqrt()
        return torch.where(counts, 2 * room / below.clamp_min(SMALL), 1.0).clamp_max(1.0)

    one = [peer_logits(each, rows.mine, rows.features, meta) for each in (psi, ahead, back)]
    two = [gate_logits(each, rows.mine, rows.common, meta) for each in (psi, ahead, back)]
    lengths = (
        longest(one, counts=rows.a > 0, ends=False).amin(-1),
        longest(two, counts=rows.beta < 1, ends=True),
    )
    return {name: step * like(lengths[name in LAYER_TWO], step) for name, step in steps.items()}
