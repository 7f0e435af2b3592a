"""A network's tensors for many clients, stacked, and its outputs for them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedham_flwr.core import trees
from fedham_flwr.core.fixed import counters
from fedham_flwr.core.parameters import Manifest, Params
from fedham_flwr.models import heads
from fedham_flwr.training.engine.memory import Resident
from fedham_flwr.training.engine.network import StackedNetwork


class StackedModel:
    """What trains and scores many clients with the same network.

    Args:
        model: the network, on its device; its weights are not used.
        network: the same for many clients.
        manifest: the model's.
        device: where it runs.
        bf16: whether under autocast to bfloat16.

    Attributes:
        template: the network.
        network: as given.
        manifest: as given.
        device: as given.
        resident: data sets that are there.
        parameters: names of the parameters that are not fixed, in the model's order.
        counts: names of the integer buffers that count.
    """

    def __init__(
        self, model: nn.Module, network: StackedNetwork, manifest: Manifest, device: torch.device, bf16: bool
    ) -> None:
        self.template, self.network, self.manifest, self.device = model, network, manifest, device
        self._bf16 = bf16
        self.resident = Resident(device)
        self.parameters = tuple(name for name, _ in model.named_parameters() if name in manifest.shapes)
        self.counts = tuple(counters(model))

    def stack(self, models: Sequence[Params]) -> Params:
        """All tensors, stacked, in new memory; counts of batches at 0."""
        stacked = {name: tensor.to(self.device) for name, tensor in trees.stack(models).items()}
        for name in self.counts:
            stacked[name] = torch.zeros(len(models), dtype=torch.int64, device=self.device)
        return stacked

    @torch.no_grad()
    def outputs(self, tensors: Params, x: Tensor) -> Tensor:
        """Outputs of a folded batch in evaluation.

        Args:
            tensors: as of `stack`.
            x: [m b, ...].
        """
        self.template.eval()
        with self.autocast():
            return self.network(tensors, x)

    @torch.no_grad()
    def features(self, tensors: Params, x: Tensor) -> Tensor:
        """What the last linear layers see of a folded batch in evaluation; arguments as of `outputs`."""
        self.template.eval()
        head = heads.head_name(self.manifest)
        with self.autocast():
            return self.network.apply(lambda model, x: heads.features(model, head, x)[0], tensors, (x,))

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """To bfloat16, or nothing."""
        return torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else contextlib.nullcontext()
