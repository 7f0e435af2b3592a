"""Running statistics of many clients at once, taken anew from their training data; results as of `Trainer`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedham_flwr.core.parameters import Params
from fedham_flwr.training.engine.model import StackedModel
from fedham_flwr.training.engine.requests import Recalibrate
from fedham_flwr.training.engine.rows import Rows, pad, real_samples
from fedham_flwr.training.engine.scoring import ROWS
from fedham_flwr.training.recalibration import parts, recalibrating


@torch.no_grad()
def recalibrate(model: StackedModel, requests: Sequence[Recalibrate]) -> list[Params]:
    """Each client's model with the running statistics of its training split.

    Args:
        model: the network.
        requests: alike, sorted by their number of samples, the largest first.
    """
    rows = Rows.of([r.samples for r in requests], ["train"] * len(requests), model.resident, model.device)
    tensors, kind = model.stack([request.model for request in requests]), requests[0].samples.kind
    of_each = [parts(index, request.generator) for index, request in zip(rows.index, requests, strict=True)]
    with recalibrating(model.template, model.manifest) as told, model.autocast():
        for number in range(len(of_each[0])):
            told(number)
            here = [some[number] for some in of_each if len(some) > number]
            width = max(1, ROWS // max(map(len, here)))  # clients; a part is one batch, and cannot be made smaller
            for start in range(0, len(here), width):
                some = here[start : start + width]
                x, _ = rows.take(pad(some, max(map(len, some))), kind)
                of_some = {name: tensor[start : start + len(some)] for name, tensor in tensors.items()}
                sizes = [len(numbers) for numbers in some]
                model.network(of_some, x, real_samples(sizes, model.device), None, sizes)
    made = {name: tensors[name].cpu().unbind(0) for name in model.manifest.buffers}
    return [{**r.model, **{name: of[at] for name, of in made.items()}} for at, r in enumerate(requests)]
