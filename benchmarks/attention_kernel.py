"""Which way to compute attention is the faster one, where, and how close the two are.

    python benchmarks/attention_kernel.py --card attention-kernel.md
    python benchmarks/attention_kernel.py --device cuda
    python benchmarks/attention_kernel.py --quick            # two turns: does it run?

Plain matrix products with a softmax, and torch's `scaled_dot_product_attention`, on queries, keys and values that lie
in memory as the networks make them. Training is forward and backward. Both take turns, so that a slow moment of the
machine hits both. `fedham_flwr.models.kernels.attend` chooses by what this finds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from common import machine, publish, table
from server_step import versions
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fedham_flwr.models.kernels import attend, by_products

Kernel = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
SHORTEST = 0.05
"""Seconds of one measurement, at least."""


class Size(NamedTuple):
    """Of one call."""

    name: str
    batch: int
    tokens: int
    heads: int
    head_dim: int
    causal: bool


SIZES = (
    Size("vit, 65 tokens, 8 heads of 64", 32, 65, 8, 64, causal=False),
    Size("small vit, 65 tokens, 4 heads of 16", 32, 65, 4, 16, causal=False),
    Size("small vit, 17 tokens, 4 heads of 16", 32, 17, 4, 16, causal=False),
    Size("char-transformer, 64 characters, 8 heads of 64", 16, 64, 8, 64, causal=True),
    Size("small char-transformer, 64 characters, 4 heads of 16", 16, 64, 4, 16, causal=True),
)
PRECISIONS: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Found(NamedTuple):
    """Milliseconds of a call, median over the turns; which one `attend` takes; the largest relative difference."""

    products: float
    kernel: float
    chosen: str
    difference: float

    @property
    def ratio(self) -> float:
        """Of torch's kernel to plain products; above 1, plain products are faster."""
        return self.kernel / self.products


def torchs(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Torch's kernel, with the arguments of `attend`."""
    return scaled_dot_product_attention(query, key, value, is_causal=causal)


def parts(size: Size, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Random queries, keys and values: views of [b, n, h, e], as the networks' linear layers leave them."""
    draw = torch.Generator().manual_seed(0)
    shape = (size.batch, size.tokens, size.heads, size.head_dim)
    made = [torch.randn(shape, generator=draw).to(device, dtype) for _ in range(3)]
    return [part.transpose(1, 2).requires_grad_() for part in made]


def seconds(kernel: Kernel, size: Size, given: list[Tensor], training: bool) -> float:
    """Of one call, the mean of as many as take long enough."""

    def once() -> None:
        with torch.set_grad_enabled(training):
            out = kernel(given[0], given[1], given[2], size.causal).transpose(1, 2).flatten(2)
        if training:
            torch.autograd.grad(out, given, torch.ones_like(out))

    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < SHORTEST:
        once()
        count += 1
        if given[0].is_cuda:
            torch.cuda.synchronize()
    return passed / count


def measure(size: Size, precision: str, training: bool, turns: int, device: torch.device) -> Found:
    """Both kernels in turn; the first turn warms up and does not count."""
    given = parts(size, PRECISIONS[precision], device)
    took: dict[Kernel, list[float]] = {by_products: [], torchs: []}
    for turn in range(turns + 1):
        for kernel, passed in took.items():
            one = seconds(kernel, size, given, training)
            if turn:
                passed.append(one)
    outs = [kernel(given[0], given[1], given[2], size.causal).detach().float() for kernel in (by_products, torchs)]
    difference = ((outs[0] - outs[1]).abs().max() / outs[1].abs().max()).item()
    plain, theirs = (1000 * statistics.median(passed) for passed in took.values())
    return Found(plain, theirs, choice(given, size), difference)


def choice(given: list[Tensor], size: Size) -> str:
    """Which one `attend` takes: it equals that one's result bit for bit."""
    result = attend(given[0], given[1], given[2], size.causal)
    plain, theirs = (kernel(given[0], given[1], given[2], size.causal) for kernel in (by_products, torchs))
    if torch.equal(plain, theirs):
        return "?"
    return "products" if torch.equal(result, plain) else "torch's"


def card(rows: Mapping[tuple[Size, str, bool], Found], turns: int, where: str, facts: str) -> str:
    """The result as Markdown."""
    lines = []
    for (size, precision, training), found in rows.items():
        numbers = [f"{found.products:.2f}", f"{found.kernel:.2f}", f"{found.ratio:.2f}", found.chosen]
        what = "training" if training else "evaluation"
        lines.append([size.name, precision, what, *numbers, f"{found.difference:.0e}"])
    head = ("size", "precision", "what", "products, ms", "torch's, ms", "torch's / products", "chosen", "difference")
    return f"""\
# Attention: plain products and torch's kernel

Milliseconds of one call on {where}; batches of 32 images or 16 texts; texts are causal; median of {turns} turns of at \
least {SHORTEST:g} s each.
{facts}

{table(head, lines)}

Training is forward and backward, without the linear layers around. Chosen: what `fedham_flwr.models.kernels.attend`
takes. Difference: the largest of two results, as a share of the largest result."""


def main() -> None:
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu (one thread) or cuda")
    parser.add_argument("--turns", type=int, default=9, help="that count (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two turns")
    parser.add_argument("--card", type=Path, metavar="FILE", help="write the result here too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    turns, rows = 2 if given.quick else given.turns, {}
    for size in SIZES:
        for precision in PRECISIONS:
            for training in (True, False):
                rows[size, precision, training] = measure(size, precision, training, turns, given.device)
    where = torch.cuda.get_device_name() if given.device.type == "cuda" else "one thread of the processor"
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "environment.json").write_text(json.dumps(versions()))
        publish(card(rows, turns, where, machine(Path(name))), given.card)


if __name__ == "__main__":
    main()
