"""Attention and dropout of the Transformers, against plain loops and against each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import dropout, scaled_dot_product_attention

from fedham_flwr.models.kernels import attend, by_products, drop
from fedham_flwr.models.transformer import Attention, TransformerSettings


def heads(seed: int, b: int, h: int, n: int, e: int, m: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(b, h, k, e, generator=draw).to(dtype).requires_grad_() for k in (m, n, n)]


def naive(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Attention in loops over samples, heads and tokens, in float64."""
    query, key, value = query.double(), key.double(), value.double()
    out = torch.zeros_like(query)
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for m in range(query.shape[2]):
                seen = m + 1 if causal else key.shape[2]
                scores = [(query[b, h, m] @ key[b, h, n]).item() / math.sqrt(key.shape[3]) for n in range(seen)]
                exps = [math.exp(score - max(scores)) for score in scores]
                for n in range(seen):
                    out[b, h, m] += exps[n] / sum(exps) * value[b, h, n]
    return out


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


@given(shape=SHAPES, seed=st.integers(0, 2**31), causal=st.booleans(), one=st.booleans())
@hypothesis_settings(max_examples=60, deadline=None)
def test_both_kernels_are_the_naive_loop(shape: tuple[int, int, int, int], seed: int, causal: bool, one: bool) -> None:
    b, h, n, e = shape
    parts = heads(seed, b, h, n, e, 1 if one and not causal else n)
    expected = naive(*(part.detach() for part in parts), causal)
    for kernel in (by_products, attend):
        torch.testing.assert_close(kernel(*parts, causal).double(), expected, atol=1e-5, rtol=1e-5)


@given(shape=SHAPES, seed=st.integers(0, 2**31), causal=st.booleans())
@hypothesis_settings(max_examples=40, deadline=None)
def test_the_kernels_gradients_agree(shape: tuple[int, int, int, int], seed: int, causal: bool) -> None:
    b, h, n, e = shape
    found = []
    for kernel in (by_products, lambda q, k, v, c: scaled_dot_product_attention(q, k, v, is_causal=c)):
        parts = heads(seed, b, h, n, e, n)
        out = kernel(*parts, causal)
        found.append(torch.autograd.grad(out, parts, torch.linspace(-1, 1, out.numel()).view_as(out)))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_bfloat16_on_a_processor_uses_plain_products_and_all_else_torch_s_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[str] = []
    for name in ("by_products", "scaled_dot_product_attention"):
        monkeypatch.setattr(f"fedham_flwr.models.kernels.{name}", lambda q, *_, name=name, **__: used.append(name) or q)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        attend(*heads(0, 1, 1, 2, 2, 2, dtype), True)
    assert used == ["by_products", "scaled_dot_product_attention", "scaled_dot_product_attention"]


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_the_naive_loop_with_rows_of_query_key_and_value_in_order(causal: bool) -> None:
    chosen = TransformerSettings(width=10, heads=3, head_dim=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer, x = Attention(chosen, causal, bias=True).double(), torch.randn(2, 7, 10, dtype=torch.float64)
    weight = layer.to_qkv.weight
    gathered = torch.zeros(2, 7, 12, dtype=torch.float64)
    for head in range(3):
        rows = [slice(part * 12 + head * 4, part * 12 + head * 4 + 4) for part in range(3)]
        query, key, value = ((x @ weight[r].T)[:, None] for r in rows)
        gathered[..., head * 4 : head * 4 + 4] = naive(query, key, value, causal)[:, 0]
    expected = gathered @ layer.out.weight.T + layer.out.bias
    torch.testing.assert_close(layer(x), expected, atol=1e-10, rtol=1e-10)
    if not causal:
        torch.testing.assert_close(layer(x, first_only=True), expected[:, :1], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_dropout_drops_its_share_of_the_elements_and_keeps_the_mean(rate: float) -> None:
    count = 1_000_001  # no multiple of four
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        after = drop(torch.full((count,), 2.0), rate, training=True)
    gone = after == 0
    error = math.sqrt(rate * (1 - rate) / count)
    assert gone.double().mean().item() == pytest.approx(rate, abs=5 * error)
    assert torch.equal(after[~gone], torch.full((count,), 2.0)[~gone] * (1 / torch.tensor(1 - rate)))
    for lag in (1, 2, 3, 4):  # elements that share a draw, and those that do not, are independent
        both = (gone[lag:] & gone[:-lag]).double().mean().item()
        assert both == pytest.approx(rate**2, abs=5 * math.sqrt(rate**2 / count))


def test_dropout_s_gradient_is_its_mask() -> None:
    x = torch.ones(5, 7, dtype=torch.bfloat16, requires_grad=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        after = drop(x, 0.5, training=True)
    after.sum().backward()
    assert x.grad is not None
    assert after.dtype == torch.bfloat16
    assert torch.equal(x.grad, after)
    assert set(after.flatten().tolist()) == {0.0, 2.0}


def test_dropout_that_drops_nothing_draws_nothing() -> None:
    x, state = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.get_rng_state()
    assert torch.equal(drop(x, 0.0, training=True), x)
    assert torch.equal(drop(x, 0.5, training=False), dropout(x, 0.5, training=False))
    assert torch.equal(state, torch.get_rng_state())
