"""Layer groups of any network: one for each module that owns parameters, in the order in which modules run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedham_flwr.core.parameters import LayerGroup, Manifest

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def manifest_of(model: nn.Module, batches: Sequence[Tensor]) -> Manifest:
    """What a model consists of, by the layer groups that it declares or those that it is found to have.

    Args:
        model: any network.
        batches: kinds of samples; it is run on the first that it takes, if it declares no groups.

    Raises:
        ValueError: the groups that it declares are no partition of its tensors.
    """
    if hasattr(model, "layer_groups"):
        return Manifest.of(model)
    return Manifest.of(model, find_groups(model, batches))


def find_groups(model: nn.Module, batches: Sequence[Tensor]) -> tuple[LayerGroup, ...]:
    """A layer group for each module that has parameters of its own, named as in `named_modules`.

    A tensor that two modules share belongs to the one that runs first. Running statistics of a module without
    parameters go with the group before it. Convolutions before the first linear layer, and what normalises them, are
    low-level.

    Args:
        model: any network, which is not changed.
        batches: kinds of samples; where the model takes none of them, the order is that of definition.
    """
    taken: set[int] = set()
    groups: list[LayerGroup] = []
    loose: list[str] = []  # running statistics before the first group
    low = True
    for name, module in _in_order(model, batches):
        place = f"{name}." if name else ""
        own = [(n, p) for n, p in module.named_parameters(recurse=False) if id(p) not in taken]
        statistics = [(n, b) for n, b in module.named_buffers(recurse=False) if b.is_floating_point()]
        buffers = [f"{place}{n}" for n, b in statistics if id(b) not in taken]
        taken |= {id(p) for _, p in own} | {id(b) for _, b in statistics}
        if own:
            low = low and not isinstance(module, nn.Linear | nn.MultiheadAttention)
            names = tuple(f"{place}{n}" for n, _ in own)
            groups.append(LayerGroup(name or "model", names, (*loose, *buffers), low_level=low))
            loose = []
        elif groups:
            groups[-1] = dataclasses.replace(groups[-1], buffers=(*groups[-1].buffers, *buffers))
        else:
            loose += buffers
    if not any(isinstance(module, CONVOLUTIONS) for module in model.modules()):
        groups = [dataclasses.replace(group, low_level=False) for group in groups]
    return tuple(groups)


def _in_order(model: nn.Module, batches: Sequence[Tensor]) -> Sequence[tuple[str, nn.Module]]:
    """All modules, those first that run on a batch, in the order in which they begin to."""
    named = list(model.named_modules())
    ran: list[nn.Module] = []
    hooks = [module.register_forward_pre_hook(lambda module, _: ran.append(module)) for _, module in named]
    was = model.training
    model.eval()
    for batch in batches:
        ran.clear()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                model(batch)
            break
        except Exception:  # noqa: S112  # it does not take such a batch
            continue
    else:
        ran.clear()  # the order of definition is as good as any
    model.train(was)
    for hook in hooks:
        hook.remove()
    first: dict[int, int] = {}
    for place, module in enumerate(ran):
        first.setdefault(id(module), place)
    return sorted(named, key=lambda pair: first.get(id(pair[1]), len(ran)))
