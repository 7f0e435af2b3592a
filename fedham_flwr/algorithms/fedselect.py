"""FedSelect: each client finds, weight by weight, what of the model it keeps for itself, and that part grows.

Source: Tamirisa, Xie, Bao, Zhou, Arel, Shamsian, "FedSelect: Personalized Federated Learning with Customized Selection
of Parameters for Fine-Tuning", CVPR 2024, arXiv:2404.02478, and the authors' code. Symbols: theta the server's model,
M_k the mask of client k, 1 where a weight is personal, v_k its personal weights, theta_k its model after training,
theta_k^0 the same when its mask last grew (at first the common start), m_k its training samples, S the cohort, p the
growth rate, alpha the limit.

Identity card
    shared      every layer group, of each tensor the weights that are not personal; biases always
    personal    v_k: up to alpha of the weights of each tensor; M_k, which the server sees
    lives       theta on the server; M_k, v_k and theta_k^0 with the client
    down, up    P scalars each for every client of the cohort and round; up a bit for each weight too
    cost        FedAvg's, and as many steps again for the personal weights once there are some; server: twice FedAvg's
    server sees its model without the personal weights, and which weights are personal
    peers see   the means of the weights over the clients that share them
    bound       C times its share of the samples of those who share a weight, which is all of them where it is alone

The round
    R1  server: choose S, send theta to each of its clients                     strategies/fedselect.py
    R2  client: start from theta, and from v_k where M_k was 1 in its last round    clients/fedselect.py
    R3  client: E times: an epoch of SGD on the personal weights, the others frozen, then on the others   `Masked`
    R4  client: send theta_k where M_k is 0, and M_k; keep theta_k where it is 1    clients/fedselect.py
    R5  client: in every `every`th round of its own M_k grows, for the next one  `grown`
    R6  server: theta <- sum_{S} m_k (1 - M_k) theta_k / sum_{S} m_k (1 - M_k), weight by weight   `aggregate`

In each tensor the share p of the weights that are not personal yet become so, those that moved furthest from theta_k^0,
until alpha of the tensor is personal. Biases never are; a bias is a parameter with "bias" in the last part of its name.
A weight that nobody in the cohort shares stays as the server has it. With nothing personal (`growth=0`) this is FedAvg,
bit for bit: there are then no steps of personal weights to take.

Deviations. The mean is weighted by samples, as FedAvg's; in the authors' code all clients count the same. A weight
that has become personal starts from the mean of the round in which it was chosen, as in that code. It lets a tensor
grow once more while it is not above alpha, to 0.82 with its values; here it ends at alpha. Its checks are after rounds
4, 7, ..., here after 3, 6, ..., counted in the client's own rounds, so that one that is seldom chosen grows too. Steps
are of SGD with the run's momentum, which each epoch begins anew once there are personal weights; that code has none.
Running statistics are averaged, as FedAvg's; in that code each client keeps its own. Where a weight is personal the
client sends back what came.

The authors' defaults: ResNet-18, 100 clients of which the same 10 take part in every round, batches of 32, rate 0.05,
15 local epochs; p 0.25 and alpha 0.8, every 3 rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from fedham_flwr.algorithms.fedavg import split
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import Method
from fedham_flwr.core.parameters import Manifest, Params
from fedham_flwr.core.search_space import Range
from fedham_flwr.training.local import LocalTraining
from fedham_flwr.training.step_rules import Slopes, StepRule

CODE = "the authors' code"
MASK = "mask/"
"""Prefix of masks, as they are sent and kept."""
BITS = (128, 64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class FedSelectSettings:
    """Settings under `fedselect.`.

    Attributes:
        growth: p, in [0, 1]: the share of a tensor's shared weights that becomes personal; with 0 nothing ever is.
        limit: alpha, in [0, 1]: the most of a tensor that is personal.
        every: rounds of a client between two growths, >= 1.
    """

    growth: Annotated[float, Ge(0), Le(1)] = 0.25
    limit: Annotated[float, Ge(0), Le(1)] = 0.8
    every: Annotated[int, Ge(1)] = 3


def weights(manifest: Manifest) -> tuple[str, ...]:
    """Names of the parameters of which a part may be personal, all but biases.

    Args:
        manifest: the model's.
    """
    names = (name for group in manifest.groups for name in group.parameters)
    return tuple(name for name in names if "bias" not in name.rpartition(".")[2])


def grown(
    mask: Bool[Tensor, " ..."], moved: Float[Tensor, " ..."], growth: float, limit: float
) -> Bool[Tensor, " ..."]:
    """R5: the mask with the weights of one tensor that have become personal.

    Args:
        mask: the weights that are.
        moved: how far each went since the mask last grew, in either direction.
        growth: the share of the others that becomes personal.
        limit: the most of the tensor that is personal.
    """
    there = int(mask.sum())
    count = min(round(growth * (mask.numel() - there)), int(limit * mask.numel()) - there)
    if count <= 0:
        return mask
    distance = moved.abs().masked_fill(mask, -1.0).flatten()
    chosen = distance.argsort(descending=True, stable=True)[:count]  # of equal ones the first
    found = mask.flatten().clone()
    found[chosen] = True
    return found.view(mask.shape)


def packed(mask: Bool[Tensor, " ..."]) -> UInt8[Tensor, " bytes"]:
    """A mask as bits, eight to a byte, the first one the highest; the last byte is filled with 0."""
    bits = torch.nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return (bits * torch.tensor(BITS, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpacked(given: UInt8[Tensor, " bytes"], shape: tuple[int, ...]) -> Bool[Tensor, " ..."]:
    """The inverse of `packed`.

    Args:
        given: bits.
        shape: of the mask.
    """
    bits = (given[:, None] & torch.tensor(BITS, dtype=torch.uint8)) != 0
    return bits.flatten()[: torch.Size(shape).numel()].view(shape)


def check_mask(name: str, given: Tensor, shape: tuple[int, ...], limit: float) -> None:
    """Refuse what is no packed mask of a tensor.

    Args:
        name: of the tensor.
        given: anything.
        shape: of the tensor.
        limit: the most of it that may be personal.

    Raises:
        ValueError: it has another type or length, bits beyond the tensor, or too many weights are personal.
    """
    size = torch.Size(shape).numel()
    if given.dtype != torch.uint8 or tuple(given.shape) != (-(-size // 8),):
        raise ValueError(
            f"the mask of {name} is {given.dtype} {tuple(given.shape)}, wanted torch.uint8 {(-(-size // 8),)}"
        )
    mask = unpacked(given, shape)
    if not torch.equal(packed(mask), given):
        raise ValueError(f"the mask of {name} has bits beyond its {size} weights")
    if int(mask.sum()) > int(limit * size):
        raise ValueError(
            f"the mask of {name} keeps {int(mask.sum())} of {size} weights, wanted at most {limit:g} of it"
        )


def aggregate(
    before: Mapping[str, Tensor],
    models: Sequence[Mapping[str, Tensor]],
    masks: Sequence[Mapping[str, Tensor]],
    samples: Sequence[int],
) -> Params:
    """R6: the mean of each weight over the clients that share it, summed in float64 in the order given.

    Args:
        before: theta, which stays where nobody shares a weight.
        models: theta_k of each client, in a fixed order of clients.
        masks: M_k of each, bool, of the tensors that may be personal.
        samples: m_k >= 1, in the same order.
    """
    share = torch.tensor(samples, dtype=torch.float64)
    share /= share.sum()
    mean: Params = {}
    for name, old in before.items():
        total, weight = torch.zeros(old.shape, dtype=torch.float64), torch.zeros(old.shape, dtype=torch.float64)
        all_share = torch.ones(old.shape, dtype=torch.bool)
        for model, mask, each in zip(models, masks, share.tolist(), strict=True):
            if name in mask:
                total.add_(model[name] * ~mask[name], alpha=each)
                weight.add_(~mask[name], alpha=each)
                all_share &= ~mask[name]
            else:
                total.add_(model[name], alpha=each)
        # Where all share a weight its mean is FedAvg's to the last bit: the shares' own sum is 1 but for rounding.
        found = torch.where(all_share, total, total / weight.clamp_min(torch.finfo(weight.dtype).tiny))
        mean[name] = torch.where(all_share | (weight > 0), found, old.double()).to(old.dtype)
    return mean


class Masked(StepRule):
    """R3: steps of SGD with momentum, of some of the weights.

    Args:
        free: 1 for each weight that is trained and 0 for each that is frozen, float32, by parameter.
        rate: of the round.
        momentum: of all.
    """

    def __init__(self, free: Mapping[str, Tensor], rate: float, momentum: float) -> None:
        still = {f"velocity/{name}": torch.zeros_like(tensor) for name, tensor in free.items()}
        super().__init__({**{f"free/{name}": tensor for name, tensor in free.items()}, **still})
        self._rate, self._momentum = rate, momentum

    def step(self, params: Params, own: Params, slopes: Slopes) -> Params:
        """The parameters after a step; those of a client that are frozen are as they were, weight decay or not."""
        found = slopes(params, 0)
        for name, param in params.items():
            velocity = own[f"velocity/{name}"].mul_(self._momentum).add_(found[name] * own[f"free/{name}"])
            param.sub_(velocity, alpha=self._rate)
        return params


def check_training(training: LocalTraining) -> None:
    """Refuse another optimiser than the rule's own.

    Args:
        training: of any round.

    Raises:
        UserError: it is not SGD, or SGD with what the rule has not.
    """
    faults = [f'optimizer="{training.optimizer}"'] if training.optimizer != "sgd" else []
    faults += ["nesterov=true"] if training.nesterov else []
    faults += [f"max-grad-norm={training.max_grad_norm:g}"] if training.max_grad_norm else []
    if faults:
        raise UserError(
            'strategy="fedselect" takes steps of its own, of SGD: wanted optimizer="sgd", nesterov=false and '
            f"max-grad-norm=0, not {' and '.join(faults)}"
        )


METHOD = Method(
    "strategies.fedselect:FedSelectStrategy",
    "clients.fedselect:FedSelectClient",
    split,
    FedSelectSettings,
    personal_model="after",
    extras="which weights are personal",
    search={
        "fedselect.growth": Range(0.05, 0.5, start=0.25, log=True, source=CODE),
        "fedselect.limit": Range(0.1, 1.0, start=0.8, source=CODE),
        "fedselect.every": Range(1, 10, start=3, log=True, whole=True, source=CODE),
    },
)
