"""Layer groups of any network: one for each module that owns parameters, in the order in which modules run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedham_flwr.core import parameters
from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.core.parameters import LayerGroup, Manifest
from fedham_flwr.models.heads import parts_of, with_parts

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def manifest_of(model: nn.Module, batches: Sequence[Tensor]) -> Manifest:
    """What a model consists of, by the layer groups that it declares or those that it is found to have.

    Args:
        model: any network.
        batches: kinds of samples; it is run on the first that it takes, if it declares no groups.

    Raises:
        UserError: the groups that it declares are no partition of its tensors.
    """
    parts = parts_of(model)
    if not hasattr(model, "layer_groups") or hasattr(model, "adapted_layers"):  # which have other names than declared
        return Manifest.of(model, with_parts(find_groups(model, batches), parts))
    try:
        return Manifest.of(model, with_parts(model.layer_groups(), parts) if parts else None)  # type: ignore[operator]
    except Exception as error:  # whatever a user's own code raises, or returns in place of groups
        name = type(model).__name__
        why = str(error) if name in str(error) else f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"the layer groups of the model {name} are no partition of its tensors: {why}") from error


def find_groups(model: nn.Module, batches: Sequence[Tensor]) -> tuple[LayerGroup, ...]:
    """A layer group for each module that has parameters of its own, named as in `named_modules`.

    A tensor that two modules share belongs to the one that runs first, by the name that `named_parameters` gives it.
    Running statistics of a module without parameters go with the group before it. Convolutions before the first linear
    layer, and what normalises them, are low-level.

    Args:
        model: any network, which is not changed.
        batches: kinds of samples; where the model takes none of them, the order is that of definition.
    """
    names = {id(tensor): name for name, tensor in parameters.floating_tensors(model).items()}
    groups: list[LayerGroup] = []
    loose: list[str] = []  # running statistics before the first group
    low = True
    for name, module in _in_order(model, batches):
        # Who comes first takes a tensor out of those that are left.
        own = [names.pop(id(p)) for p in module.parameters(recurse=False) if id(p) in names]
        buffers = [names.pop(id(b)) for b in module.buffers(recurse=False) if id(b) in names]
        if own:
            low = low and not isinstance(module, nn.Linear | nn.MultiheadAttention)
            groups.append(LayerGroup(name or "model", tuple(own), (*loose, *buffers), low_level=low))
            loose = []
        elif groups:
            groups[-1] = dataclasses.replace(groups[-1], buffers=(*groups[-1].buffers, *buffers))
        else:
            loose += buffers
    if not any(isinstance(module, CONVOLUTIONS) for module in model.modules()):
        groups = [dataclasses.replace(group, low_level=False) for group in groups]
    return tuple(groups)


def _in_order(model: nn.Module, batches: Sequence[Tensor]) -> Sequence[tuple[str, nn.Module]]:
    """All modules, those first that run on a batch, in the order in which they begin to.

    One that never runs may yet be used by the module that it is in, as the output of `nn.MultiheadAttention` is: it
    follows that one. Those that are in none but the whole network come last.
    """
    named = list(model.named_modules())
    ran: list[nn.Module] = []
    hooks = [module.register_forward_pre_hook(lambda module, _: ran.append(module)) for _, module in named]
    modes = [(module, module.training) for _, module in named]
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
    for module, training in modes:
        module.training = training
    for hook in hooks:
        hook.remove()
    first: dict[int, int] = {}
    for place, module in enumerate(ran):
        first.setdefault(id(module), place)
    places: dict[str, int] = {}  # a module stands in `named` behind the one that it is in
    for name, module in named:
        above = name.rpartition(".")[0]
        places[name] = first.get(id(module), (places.get(above, len(ran)) if above else len(ran)))
    return sorted(named, key=lambda pair: places[pair[0]])
