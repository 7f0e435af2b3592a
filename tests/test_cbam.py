"""CBAM and its relatives: sizes, bounds, symmetries, a loop over pixels and channels, finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import relu

from fedham_flwr.models.cbam import CBAM, Adapter, SqueezeExcitation, bottleneck

Block = CBAM | SqueezeExcitation | Adapter
BLOCKS = (CBAM, SqueezeExcitation, Adapter)


def made(block: Callable[[], Block], seed: int = 0, spread: float = 0.5, dtype: torch.dtype = torch.float32) -> Block:
    """A block all of whose parameters and running statistics are random."""
    module = block().to(dtype)
    draw = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw, dtype=dtype) * spread
    for name, buffer in module.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.copy_(torch.rand(buffer.shape, generator=draw, dtype=dtype) + 0.1)
    return module


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "wanted"), [(64, 680), (128, 2_284), (256, 8_564)])
def test_cbam_has_the_official_number_of_parameters(channels: int, wanted: int) -> None:
    assert size(CBAM(channels)) == wanted


def test_cbam_without_biases_and_normalisation_has_the_products_alone() -> None:
    assert size(CBAM(128, bias=False, batch_norm=False)) == 2 * 128 * 8 + 2 * 49 == 2_146
    assert size(CBAM(128, bias=False)) == 2_148
    assert size(CBAM(128, kernel=3, batch_norm=False)) == 2_184 + 18


@pytest.mark.parametrize("block", [SqueezeExcitation, Adapter])
def test_the_others_have_the_bottleneck_alone(block: type[Block]) -> None:
    assert size(block(128)) == (128 * 8 + 8) + (8 * 128 + 128) == 2_184
    assert size(block(128, 4)) == (128 * 32 + 32) + (32 * 128 + 128)


@pytest.mark.parametrize(("channels", "reduction", "middle"), [(128, 16, 8), (33, 16, 2), (15, 16, 1), (1, 1, 1)])
def test_the_middle_is_channels_over_reduction_and_never_empty(channels: int, reduction: int, middle: int) -> None:
    assert bottleneck(channels, reduction)[0].out_features == middle


def test_the_normalisation_is_that_of_the_authors() -> None:
    norm = CBAM(32).norm
    assert norm is not None
    assert (norm.num_features, norm.eps, norm.momentum) == (1, 1e-5, 0.01)
    assert CBAM(32).conv.bias is None


# ---- bounds ----------------------------------------------------------------------------------------------------------


@given(
    channels=st.integers(1, 40),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    reduction=st.integers(1, 20),
    training=st.booleans(),
    batch_norm=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_maps_lie_between_0_and_1_and_features_only_shrink(
    channels: int, height: int, width: int, reduction: int, training: bool, batch_norm: bool, seed: int
) -> None:
    block = made(lambda: CBAM(channels, reduction, batch_norm=batch_norm), seed, 0.3).train(training)
    assert isinstance(block, CBAM)
    x = features(2, channels, height, width, seed=seed)
    for weights, shape in ((block.channel_map(x), (2, channels, 1, 1)), (block.spatial_map(x), (2, 1, height, width))):
        assert weights.shape == shape
        assert bool(((weights > 0) & (weights <= 1)).all())  # a float32 just below 1 is rounded to it
    after = block(x)
    assert after.shape == x.shape
    assert bool((after.abs() <= x.abs()).all())
    assert bool((after * x >= 0).all())


@given(channels=st.integers(1, 40), side=st.integers(1, 5), seed=st.integers(0, 1000))
def test_squeeze_and_excitation_lets_a_share_of_each_channel_through(channels: int, side: int, seed: int) -> None:
    block, x = made(lambda: SqueezeExcitation(channels), seed, 0.3), features(3, channels, side, side, seed=seed)
    assert isinstance(block, SqueezeExcitation)
    weights = block.channel_map(x)
    assert weights.shape == (3, channels, 1, 1)
    assert bool(((weights > 0) & (weights <= 1)).all())
    assert torch.equal(block(x), weights * x)


# ---- the formulas, number by number ----------------------------------------------------------------------------------


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def mlp_of(module: nn.Sequential, values: list[float]) -> list[float]:
    """Two linear layers with a rectifier between them, neuron by neuron."""
    for layer in (module[0], module[2]):
        weight = layer.weight.tolist()
        bias = layer.bias.tolist() if layer.bias is not None else [0.0] * len(weight)
        values = [b + sum(w * v for w, v in zip(row, values, strict=True)) for row, b in zip(weight, bias, strict=True)]
        values = [max(0.0, v) for v in values] if layer is module[0] else values
    return values


def scaled_channels(block: CBAM, sample: list[list[list[float]]]) -> list[list[list[float]]]:
    """F' of one sample."""
    pixels = [[value for row in channel for value in row] for channel in sample]
    means = mlp_of(block.mlp, [sum(values) / len(values) for values in pixels])
    peaks = mlp_of(block.mlp, [max(values) for values in pixels])
    weights = [sigmoid(a + b) for a, b in zip(means, peaks, strict=True)]
    return [[[w * v for v in row] for row in channel] for w, channel in zip(weights, sample, strict=True)]


def spatial_scores(block: CBAM, sample: list[list[list[float]]]) -> list[list[float]]:
    """The convolution's output of one sample, [h][w]."""
    height, width, side = len(sample[0]), len(sample[0][0]), block.conv.kernel_size[0]
    weight = block.conv.weight[0].tolist()
    scores = [[0.0] * width for _ in range(height)]
    for i in range(height):
        for j in range(width):
            for u in range(side):
                for v in range(side):
                    y, x = i + u - side // 2, j + v - side // 2
                    if 0 <= y < height and 0 <= x < width:
                        column = [channel[y][x] for channel in sample]
                        scores[i][j] += weight[0][u][v] * max(column) + weight[1][u][v] * sum(column) / len(column)
    return scores


def naive_cbam(block: CBAM, x: Tensor) -> Tensor:
    """The whole of it, one number at a time; the normalisation by the batch in training, else by what was running."""
    inner = [scaled_channels(block, sample) for sample in x.tolist()]
    scores = [spatial_scores(block, sample) for sample in inner]
    if block.norm is not None:
        every = [s for sample in scores for row in sample for s in row]
        mean, variance = block.norm.running_mean.item(), block.norm.running_var.item()
        if block.training:
            mean = sum(every) / len(every)
            variance = sum((s - mean) ** 2 for s in every) / len(every)
        a = block.norm.weight.item() / math.sqrt(variance + block.norm.eps)
        b = block.norm.bias.item()
        scores = [[[a * (s - mean) + b for s in row] for row in sample] for sample in scores]
    return torch.tensor(
        [
            [
                [[sigmoid(s) * v for s, v in zip(scores[n][i], row, strict=True)] for i, row in enumerate(channel)]
                for channel in sample
            ]
            for n, sample in enumerate(inner)
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("kernel", "bias", "batch_norm"), [(7, True, True), (3, True, False), (5, False, True)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_cbam_is_what_a_loop_over_pixels_and_channels_says(
    training: bool, kernel: int, bias: bool, batch_norm: bool, memory: torch.memory_format
) -> None:
    block = made(lambda: CBAM(6, 3, kernel, bias, batch_norm), dtype=torch.float64).train(training)
    x = features(2, 6, 5, 4, seed=1, dtype=torch.float64).to(memory_format=memory)
    assert isinstance(block, CBAM)
    wanted = naive_cbam(block, x)
    torch.testing.assert_close(block(x), wanted, rtol=1e-12, atol=1e-14)


def test_the_running_statistics_move_by_a_hundredth() -> None:
    block = made(lambda: CBAM(4, 2), dtype=torch.float64).train()
    assert isinstance(block, CBAM)
    assert block.norm is not None
    assert block.norm.running_mean is not None
    x, before = features(3, 4, 5, 5, dtype=torch.float64), block.norm.running_mean.clone()
    inner = [scaled_channels(block, sample) for sample in x.tolist()]
    mean = torch.tensor([spatial_scores(block, sample) for sample in inner]).mean()
    block(x)
    torch.testing.assert_close(block.norm.running_mean, 0.99 * before + 0.01 * mean, rtol=1e-6, atol=0)


def test_the_first_map_of_the_convolution_is_the_maximum() -> None:
    block = CBAM(3, batch_norm=False).double()
    block.conv.weight.data.zero_()
    block.conv.weight.data[0, 0, 3, 3] = 1.0
    x = features(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(block.spatial_map(x)[:, 0], torch.sigmoid(x.max(1).values))
    block.conv.weight.data = block.conv.weight.flip(1)
    torch.testing.assert_close(block.spatial_map(x)[:, 0], torch.sigmoid(x.mean(1)))


def test_squeeze_and_excitation_is_what_a_loop_says() -> None:
    block, x = made(lambda: SqueezeExcitation(6, 3), dtype=torch.float64), features(2, 6, 3, 4, dtype=torch.float64)
    for sample, after in zip(x, block(x), strict=True):
        scores = mlp_of(block.mlp, [channel.mean().item() for channel in sample])
        for score, channel, scaled in zip(scores, sample, after, strict=True):
            torch.testing.assert_close(scaled, sigmoid(score) * channel, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 2, 5)])
@pytest.mark.parametrize("last", [False, True])
def test_an_adapter_moves_each_pixel_by_what_its_channels_say(shape: tuple[int, ...], last: bool) -> None:
    block, x = made(lambda: Adapter(6, 3), dtype=torch.float64), features(*shape, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last) if last and len(shape) == 4 else x
    after = block(x)
    assert after.shape == x.shape
    assert after.stride() == x.stride()
    pixels, results = (features.movedim(1, -1).reshape(-1, 6) for features in (x, after))
    for pixel, moved in zip(pixels, results, strict=True):
        wanted = [p + d for p, d in zip(pixel.tolist(), mlp_of(block.mlp, pixel.tolist()), strict=True)]
        torch.testing.assert_close(moved, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-14)


# ---- known answers ---------------------------------------------------------------------------------------------------


@given(channels=st.integers(1, 20), side=st.integers(1, 6), seed=st.integers(0, 1000))
def test_with_all_parameters_zero_a_quarter_of_the_features_is_left(channels: int, side: int, seed: int) -> None:
    x = features(2, channels, side, side, seed=seed)
    block = CBAM(channels).eval()
    for parameter in block.parameters():
        parameter.data.zero_()
    assert torch.equal(block(x), 0.25 * x)


@given(channels=st.integers(1, 20), height=st.integers(1, 6), width=st.integers(1, 6), seed=st.integers(0, 1000))
def test_of_constant_features_both_poolings_are_the_same(channels: int, height: int, width: int, seed: int) -> None:
    block = made(lambda: CBAM(channels, 2), seed, dtype=torch.float64)
    assert isinstance(block, CBAM)
    values = features(3, channels, seed=seed, dtype=torch.float64)
    x = values[:, :, None, None].expand(3, channels, height, width)
    wanted = torch.sigmoid(2 * block.mlp(values))
    torch.testing.assert_close(block.channel_map(x)[:, :, 0, 0], wanted, rtol=1e-9, atol=1e-12)


@given(order=st.permutations(range(8)), seed=st.integers(0, 1000), training=st.booleans())
def test_permuting_channels_commutes_if_the_mlp_is_permuted_too(order: list[int], seed: int, training: bool) -> None:
    first = made(lambda: CBAM(8, 2), seed, dtype=torch.float64).train(training)
    second = made(lambda: CBAM(8, 2), seed, dtype=torch.float64).train(training)
    second.mlp[0].weight.data = second.mlp[0].weight[:, order]
    second.mlp[2].weight.data = second.mlp[2].weight[order]
    second.mlp[2].bias.data = second.mlp[2].bias[order]
    x = features(2, 8, 3, 4, seed=seed, dtype=torch.float64)
    torch.testing.assert_close(second(x[:, order]), first(x)[:, order], rtol=1e-9, atol=1e-12)


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [lambda: CBAM(4, 2), lambda: CBAM(4, 2, 3, False, False), lambda: Adapter(4, 2)])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_those_of_finite_differences(block: Callable[[], Block], training: bool) -> None:
    module = made(block, seed=3, dtype=torch.float64).train(training)
    names = [name for name, _ in module.named_parameters()]

    def output(x: Tensor, *values: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))
        return result

    leaves = [parameter.detach().clone().requires_grad_() for parameter in module.parameters()]
    x = features(2, 4, 3, 3, seed=5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(output, (x, *leaves))


def test_gradients_of_squeeze_and_excitation_are_those_of_finite_differences() -> None:
    module = made(lambda: SqueezeExcitation(4, 2), dtype=torch.float64)
    assert torch.autograd.gradcheck(module, (features(2, 4, 3, 3, dtype=torch.float64).requires_grad_(),))


# ---- neutral blocks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("block", "share"),
    [
        (lambda: CBAM(8, 2), 0.25),
        (lambda: CBAM(8, 2, bias=False), 0.25),
        (lambda: CBAM(8, 2, batch_norm=False), 0.25),
        (lambda: SqueezeExcitation(8, 2), 0.5),
        (lambda: Adapter(8, 2), 1.0),
    ],
)
def test_a_neutral_block_scales_features_and_learns_from_the_first_step(
    block: Callable[[], Block], share: float, training: bool
) -> None:
    module, x = made(block, seed=1).train(training), relu(features(4, 8, 5, 5))
    module.neutral_()
    after = module(x)
    assert torch.equal(after, share * x)
    (after * features(4, 8, 5, 5, seed=1)).sum().backward()
    last = [p for name, p in module.named_parameters() if name.startswith("mlp.2")]
    if isinstance(module, CBAM):
        last += [module.conv.weight] if module.norm is None else [module.norm.weight, module.norm.bias]
    for parameter in last:
        assert parameter.grad is not None
        assert bool(parameter.grad.abs().max() > 0)


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_learn_where_they_shall_look(block: type[Block]) -> None:
    """The target is known: channel 0 is kept, the others are wiped out."""
    module, x = block(4, 1).double(), features(16, 4, 4, 4, dtype=torch.float64).abs() + 1
    module.neutral_()
    wanted = x * torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)[:, None, None]
    losses = []
    for _ in range(200):
        loss = (module(x) - wanted).square().mean()
        losses.append(loss.item())
        for parameter, slope in zip(
            module.parameters(), torch.autograd.grad(loss, list(module.parameters())), strict=True
        ):
            parameter.data -= 0.1 * slope
    assert losses[-1] < 0.5 * losses[0]


# ---- awkward inputs --------------------------------------------------------------------------------------------------


def test_a_last_batch_of_one_pixel_is_normalised_by_the_running_statistics() -> None:
    block, x = made(lambda: CBAM(5)), features(1, 5, 1, 1)
    assert isinstance(block, CBAM)
    assert block.norm is not None
    mean = block.norm.running_mean.clone()
    assert torch.equal(block.train()(x), block.eval()(x))
    assert torch.equal(block.norm.running_mean, mean)
    block.train()(features(2, 5, 1, 1))
    assert not torch.equal(block.norm.running_mean, mean)


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_run_in_bfloat16(block: type[Block]) -> None:
    module, x = made(lambda: block(8, 2), spread=0.2), features(2, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        after = module(x)
    torch.testing.assert_close(after.float(), module(x), rtol=0.05, atol=0.05)
