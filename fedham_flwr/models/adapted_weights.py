"""The tensors of a network with adapters by name: merged into those of one without, and its first ones of a file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.core.fixed import counters

log = logging.getLogger("fedham_flwr")

ADAPTER = "default"
"""The name that `peft` gives an adapter."""
A, B, WHOLE = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight", ".base_layer."
"""How the names of A [r, i], of B [o, r] and of what the layer was before go on behind the layer's."""


def merged(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The tensors of the network without adapters that gives what one with them gives, but for rounding.

    Args:
        tensors: of a network with adapters, by name.
        scale: alpha / r.

    Returns:
        W + scale B A under the name of W; all else as it was.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, inside, rest = name.rpartition(WHOLE)
        if name.endswith((A, B)):
            continue
        if not inside or layer + A not in tensors:
            found[name] = tensor
        elif rest == "weight":
            found[f"{layer}.{rest}"] = tensor + scale * (tensors[layer + B] @ tensors[layer + A])
        else:
            found[f"{layer}.{rest}"] = tensor
    return found


def read_tensors(path: str, setting: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and what its header says.

    Args:
        path: of the file; `~` is the home directory.
        setting: that names it, for errors.

    Raises:
        UserError: there is no such file, or none that can be read.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f'{setting}="{path}": there is no such file ({file.absolute()})')
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in [*opened.keys()]}, dict(opened.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UserError(f'{setting}="{path}" cannot be read as safetensors: {first_line(error)}') from error


def load_base(model: nn.Module, path: str, setting: str, classifier: Sequence[str]) -> None:
    """Give a network the weights of a file; its classifier stays at random where that of the file has other outputs.

    Args:
        model: the network, without adapters.
        path: of the file. A model with adapters of a run is merged first.
        setting: that names it, for errors.
        classifier: names of its modules.

    Raises:
        UserError: the file cannot be read, or is of another network.
    """
    tensors, header = read_tensors(path, setting)
    adapters = json.loads(header.get("network", "{}")).get("adapters")
    tensors = merged(tensors, float(adapters["scale"])) if adapters else tensors
    own = model.state_dict()
    tensors = {name: own[name] for name in counters(model) if name in own} | tensors
    if strange := sorted(tensors.keys() ^ own.keys()):
        raise UserError(f'{setting}="{path}" is of another network: {", ".join(strange[:3])} is in one of them only')
    other = [name for name, tensor in tensors.items() if tensor.shape != own[name].shape]
    for name in other:
        if not any(name.startswith(f"{module}.") for module in classifier):
            raise UserError(
                f'{setting}="{path}" is of another network: {name} has shape {tuple(tensors[name].shape)}, wanted '
                f"{tuple(own[name].shape)}"
            )
    if other:
        log.warning('%s="%s" has %s for other outputs: it starts at random', setting, path, other[0])
    model.load_state_dict({name: own[name] if name in other else tensor for name, tensor in tensors.items()})
