"""Which tensors of a model are those of normalisation layers, told by their names and shapes alone."""

from __future__ import annotations

from typing import Literal

from fedham_flwr.core.parameters import Manifest

STATISTICS = "running_mean"
"""What a layer has that keeps running statistics, by torch's name."""


def normalisation(manifest: Manifest, layers: Literal["batch", "all"]) -> tuple[str, ...]:
    """Names of the tensors of normalisation layers, in the model's order, whatever layer groups they are in.

    Batch normalisation is a module with running statistics. Any other one, such as layer, group or RMS normalisation,
    is a module of nothing but a `weight` and a `bias` of one shape, or of a vector `weight` alone; an activation with a
    slope for each channel, such as `nn.PReLU(8)`, can't be told from the latter.

    Args:
        manifest: the model's.
        layers: batch or all.
    """
    modules: dict[str, dict[str, str]] = {}
    for name in manifest.names():
        module, _, tensor = name.rpartition(".")
        modules.setdefault(module, {})[tensor] = name
    kept = {
        module
        for module, tensors in modules.items()
        if STATISTICS in tensors
        or (layers == "all" and _scales_and_shifts({name: manifest.shapes[full] for name, full in tensors.items()}))
    }
    return tuple(name for name in manifest.names() if name.rpartition(".")[0] in kept)


def _scales_and_shifts(shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether a module with tensors of these shapes does nothing but scale and shift."""
    weight = shapes.get("weight")
    if weight is None or not shapes.keys() <= {"weight", "bias"}:
        return False
    return shapes["bias"] == weight if "bias" in shapes else len(weight) == 1 and weight[0] > 1
