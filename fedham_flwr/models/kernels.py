"""Attention and dropout, each by the way that is the fastest where it runs.

Shape letters: b batch, n tokens, m tokens that ask, h heads, e head size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention

Asked = Float[Tensor, "b h n e"]
LEVELS = 2**16
"""The numbers that an element's draw in `drop` can be."""


def attend(
    query: Float[Tensor, "b h m e"], key: Asked, value: Asked, causal: bool, there: Bool[Tensor, "b n"] | None = None
) -> Float[Tensor, "b h m e"]:
    """softmax(Q K^T / sqrt(e)) V.

    Args:
        query: m tokens.
        key: n tokens.
        value: of the same.
        causal: whether a token sees only itself and those before it; then m = n.
        there: which tokens can be seen at all, at least one of each sample; by default all. Not with `causal`.
    """
    if there is not None:
        mask = there[:, None, None, :].to(query.device)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # Torch's kernel is the faster one in fp32, but for training small networks, where it hardly matters. In bfloat16 on
    # a processor it takes 5 to 10 times as long to train as plain products, and up to 2.5 times as long to evaluate. On
    # a GPU it keeps the [n, n] weights out of memory. benchmarks/cards/attention-kernel.md has the measurements.
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return by_products(query, key, value, causal)
    return scaled_dot_product_attention(query, key, value, is_causal=causal)


def by_products(query: Float[Tensor, "b h m e"], key: Asked, value: Asked, causal: bool) -> Float[Tensor, "b h m e"]:
    """The same as two matrix products and a softmax; arguments as in `attend`."""
    b, h, m, e = query.shape
    query, key, value = (part.reshape(b * h, -1, e) for part in (query, key, value))
    later = query.new_full((m, m), -torch.inf).triu(1) if causal else query.new_zeros(1)
    # The product scales, and adds the mask, on its way.
    scores = torch.baddbmm(later, query, key.transpose(1, 2), beta=float(causal), alpha=e**-0.5)
    return torch.bmm(scores.softmax(-1), value).view(b, h, m, e)


def drop(x: Float[Tensor, "*s"], rate: float, training: bool) -> Float[Tensor, "*s"]:
    """Dropout: each element is zero with probability `rate`, or else divided by 1 - rate; nothing out of training.

    Args:
        x: of any shape.
        rate: in [0, 1); on a processor it is rounded to a multiple of 2^-16.
        training: whether to drop at all.
    """
    if training and rate and _drawn_by:
        kept = drawn(x, lambda part, generator: _kept(part, rate, generator))
        return x if kept is None else x * kept.to(x.dtype).div_(1 - rate)
    if not training or rate == 0 or x.device.type != "cpu":
        return dropout(x, rate, training)
    return x * _kept(x, rate).to(x.dtype).div_(1 - rate)


def _kept(x: Tensor, rate: float, generator: torch.Generator | None = None) -> Tensor:
    """Which elements stay: bool, like x.

    Torch draws a Bernoulli number for each element, in a third of a small network's whole step. Here one draw of 64
    bits, from the same global generator, is good for four elements.
    """
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
    words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    draws = words.view(torch.int16)[: x.numel()].view(x.shape)  # uniform in -LEVELS / 2 .. LEVELS / 2 - 1
    return draws >= round(rate * LEVELS) - LEVELS // 2


def gumbel(logits: Float[Tensor, "*s"], training: bool) -> Float[Tensor, "*s"]:
    """Logits with standard Gumbel noise, so that the largest is a draw of their softmax; as they are out of training.

    Args:
        logits: of any shape.
        training: whether to add noise at all.
    """
    noise = drawn(logits, _gumbel) if training else None
    return logits if noise is None else logits + noise


def _gumbel(x: Tensor, generator: torch.Generator | None) -> Tensor:
    draws = torch.empty_like(x, memory_format=torch.contiguous_format)
    return draws.exponential_(generator=generator).log_().neg_()


Make = Callable[[Tensor, torch.Generator | None], Tensor]
"""Random numbers in the shape of a tensor, drawn from a generator; from torch's global one without."""
Drawing = Callable[[Tensor, Make], Tensor | None]
"""Random numbers in the shape of a tensor, by what makes them; None where nothing is to be drawn, as in a trial."""
_drawn_by: list[Drawing] = []


def drawn(x: Tensor, make: Make) -> Tensor | None:
    """Random numbers for the elements of a tensor, which each client of a batch draws as it would alone.

    Args:
        x: of any shape.
        make: makes them, of a part of x that is one client's.

    Returns:
        In the shape of x; None where nothing is to be drawn.
    """
    return _drawn_by[-1](x, make) if _drawn_by else make(x, None)


@contextlib.contextmanager
def drawing(draw: Drawing | None) -> Iterator[None]:
    """Let another function draw within, for a batch of which each client draws its own part.

    Args:
        draw: the function; None for torch's global generator as ever.
    """
    if draw is None:
        yield
        return
    _drawn_by.append(draw)
    try:
        yield
    finally:
        _drawn_by.pop()


_stacks: list[int] = []


def per_sample(param: Tensor, samples: int | torch.SymInt) -> Tensor:
    """A parameter for each sample of a batch, to be added to the samples or put beside them.

    Args:
        param: the parameter; of several clients at once, stacked [m, ...].
        samples: of the batch, the clients' one after the other.

    Returns:
        The parameter itself; of several clients [samples, ...], each sample's its client's.
    """
    own = isinstance(param, nn.Parameter)  # the network's, for it is fixed; stacked ones are plain tensors
    return param.repeat_interleave(samples // _stacks[-1], 0) if _stacks and not own else param


def is_stacked() -> bool:
    """Whether parameters are those of several clients, stacked."""
    return bool(_stacks)


@contextlib.contextmanager
def stacked(clients: int) -> Iterator[None]:
    """Parameters are those of so many clients, stacked, within."""
    _stacks.append(clients)
    try:
        yield
    finally:
        _stacks.pop()
