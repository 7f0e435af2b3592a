"""Networks of series and of texts with labels: against loops, many clients at once, groups, and exported files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cohorts import LOOSE, MOMENTUM, PLAIN, TIGHT, Data, far, models, one_at_a_time, together
from torch import Tensor, nn

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.core.shapes import dimensions, of_series, of_tokens, sample_kind, vocabulary
from fedham_flwr.models import NetworkSettings, build, resolve, trial_batches
from fedham_flwr.models.cnn1d import CNN1dSettings
from fedham_flwr.models.export import label, load, write_model
from fedham_flwr.models.fasttext import FastText, FastTextSettings
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.models.gru import GRULayer, GRUSettings
from fedham_flwr.models.kernels import attend
from fedham_flwr.models.series_transformer import SeriesTransformerSettings, cut
from fedham_flwr.models.text_transformer import TextTransformerSettings
from fedham_flwr.settings import parse
from fedham_flwr.training.engine import layers
from fedham_flwr.training.engine.engine import Engine
from fedham_flwr.training.engine.network import StackedNetwork
from fedham_flwr.training.trainer import Trainer

SERIES, NEWS, CLASSES = of_series(3, 13), of_tokens(9, 30), 4
SIZES: dict[str, Any] = {"width": 8, "depth": 2, "heads": 2, "head_dim": 4, "hidden_dim": 16}
SMALL = NetworkSettings.of(
    cnn1d=CNN1dSettings(width=4, depth=2, kernel=3),
    gru=GRUSettings(width=5, depth=2),
    series_transformer=SeriesTransformerSettings(**SIZES, patch_size=4),
    fasttext=FastTextSettings(width=6, pairs=50),
    text_transformer=TextTransformerSettings(**SIZES),
)
SHAPES = {"cnn1d": SERIES, "gru": SERIES, "series-transformer": SERIES, "fasttext": NEWS, "text-transformer": NEWS}


def inputs(name: str, count: int = 3, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    if SHAPES[name] == SERIES:
        return torch.randn(count, 6, 13, generator=draw)
    texts = torch.randint(1, 30, (count, 9), generator=draw)
    texts[0, 4:] = 0  # a short one
    return texts


# ---- shapes and sizes ------------------------------------------------------------------------------------------------


def test_a_shape_says_what_a_sample_is() -> None:
    assert (SERIES, NEWS) == ((6, 13, 1, 0), (9, 30, 2, 0))
    shapes = [(80,), (2, 13), (3, 8, 8), SERIES, NEWS, (1, 4, 4, 4)]
    assert [sample_kind(shape) for shape in shapes] == ["text", "table", "image", "series", "tokens", "array"]
    assert [dimensions(shape) for shape in shapes] == [(80,), (2, 13), (3, 8, 8), (6, 13), (9,), (1, 4, 4, 4)]
    assert [vocabulary(shape) for shape in shapes] == [0, 0, 0, 0, 30, 0]
    assert [resolve("auto", shape) for shape in (SERIES, NEWS)] == ["cnn1d", "fasttext"]
    assert [(b.dtype, tuple(b.shape)) for b in trial_batches(NEWS)] == [(torch.int64, (2, 9))]


@pytest.mark.parametrize(
    ("name", "shape", "size"),
    [
        # convolutions 6 -> 32 -> 64 -> 128 of 5 steps, and the head of twice as many
        ("cnn1d", of_series(3, 50), 6 * 5 * 32 + 32 + 32 * 5 * 64 + 64 + 64 * 5 * 128 + 128 + 256 * 4 + 4),
        ("gru", of_series(3, 50), 3 * 64 * (6 + 64 + 2) + 128 * 4 + 4),
        # patches, CLS, 8 positions; 2 layers; norm and head
        (
            "series-transformer",
            of_series(3, 50),
            49 * 64 + 64 * 9 + 2 * (128 * 2 + 192 * 64 + 4160 + 8320 + 8256) + 388,
        ),
        ("fasttext", of_tokens(80, 10_002), 32 * 20_002 + 33 * 4),
        ("text-transformer", of_tokens(80, 10_002), 64 * 10_003 + 2 * (128 * 2 + 192 * 64 + 4160 + 8320 + 8256) + 388),
    ],
)
def test_parameter_counts(name: str, shape: tuple[int, ...], size: int) -> None:
    network = build(name, shape, 4, 0)
    assert sum(p.numel() for p in network.parameters()) == size
    assert f"{size:,} parameters" in str(type(network).__doc__)


def test_groups_go_from_the_input_to_the_output() -> None:
    names = {name: Manifest.of(build(name, shape, CLASSES, 0, SMALL)).group_names for name, shape in SHAPES.items()}
    layered = ("embedding", "attention", "block1", "block2", "norm", "head")
    assert names == {
        "cnn1d": ("conv1", "conv2", "head"), "gru": ("layer1", "layer2", "head"), "series-transformer": layered,
        "fasttext": ("words", "pairs", "head"), "text-transformer": layered,
    }  # fmt: skip
    groups = Manifest.of(build("cnn1d", SERIES, CLASSES, 0, SMALL)).groups
    assert [group.low_level for group in groups] == [True, True, False]


def test_networks_for_other_data_are_refused_by_name() -> None:
    with pytest.raises(
        UserError, match=r'"gru" is for series and tables, and the data set is texts with labels, 9 tok.*"fasttext"'
    ):
        build("gru", NEWS, 3, 0)
    with pytest.raises(
        UserError,
        match=r'"fasttext" is for texts with labels, and the data set is series of 3 channels and 13 steps.*"cnn1d"',
    ):
        build("fasttext", SERIES, 3, 0)


def test_a_network_of_ones_own_is_told_the_length_and_how_many_tokens_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bag.py").write_text(
        "from torch import nn\n\n\nclass Bag(nn.Module):\n"
        "    def __init__(self, shape, outputs, vocabulary):\n        super().__init__()\n"
        "        self.length, self.words = shape, nn.Embedding(vocabulary, outputs)\n\n"
        "    def forward(self, x):\n        return self.words(x).mean(1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = build("bag:Bag", NEWS, 5, 0)
    assert model.length == (9,)
    assert tuple(model.get_parameter("words.weight").shape) == (30, 5)


# ---- against loops ---------------------------------------------------------------------------------------------------


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_a_gru_layer_is_that_of_the_paper_and_of_torch() -> None:
    width, channels, steps = 3, 2, 5
    draw = torch.Generator().manual_seed(1)
    layer, theirs = GRULayer(channels, width).double(), nn.GRU(channels, width, batch_first=True).double()
    with torch.no_grad():
        pairs = [(layer.inputs.weight, theirs.weight_ih_l0), (layer.inputs.bias, theirs.bias_ih_l0)]
        pairs += [(layer.states.weight, theirs.weight_hh_l0), (layer.states.bias, theirs.bias_hh_l0)]
        for mine, other in pairs:
            mine.copy_(torch.randn(mine.shape, generator=draw, dtype=torch.float64))
            other.copy_(mine)
    x = torch.randn(2, steps, channels, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(layer(x), theirs(x)[0], rtol=1e-12, atol=1e-12)
    w, u = layer.inputs.weight.tolist(), layer.states.weight.tolist()
    b, c = layer.inputs.bias.tolist(), layer.states.bias.tolist()
    state = [0.0] * width
    for given in x[1].tolist():
        a = [sum(w[i][j] * given[j] for j in range(channels)) + b[i] for i in range(3 * width)]
        s = [sum(u[i][j] * state[j] for j in range(width)) + c[i] for i in range(3 * width)]
        new = []
        for i in range(width):
            reset, update = sigma(a[i] + s[i]), sigma(a[width + i] + s[width + i])
            proposed = math.tanh(a[2 * width + i] + reset * s[2 * width + i])
            new.append((1 - update) * proposed + update * state[i])
        state = new
    assert layer(x)[1, -1].tolist() == pytest.approx(state, abs=1e-12)


def test_a_convolution_over_time_by_a_loop() -> None:
    model = build("cnn1d", of_series(1, 5), 2, 0, NetworkSettings.of(cnn1d=CNN1dSettings(width=3, depth=1, kernel=3)))
    x = torch.randn(1, 2, 5, generator=torch.Generator().manual_seed(0))
    weight, bias = model.get_parameter("conv1.weight").tolist(), model.get_parameter("conv1.bias").tolist()
    padded = [[0.0, *channel, 0.0] for channel in x[0].tolist()]
    features: list[list[float]] = []
    for kernel, offset in zip(weight, bias, strict=True):
        over_time = [
            offset + sum(kernel[c][i] * padded[c][t + i] for c in range(2) for i in range(3)) for t in range(5)
        ]
        features.append(
            [max(0.0, over_time[0], over_time[1]), max(0.0, over_time[2], over_time[3])]
        )  # the fifth is left
    pooled = [sum(each) / 2 for each in features] + [max(each) for each in features]
    head, last = model.get_parameter("head.weight").tolist(), model.get_parameter("head.bias").tolist()
    wanted = [
        offset + sum(a * b for a, b in zip(row, pooled, strict=True)) for row, offset in zip(head, last, strict=True)
    ]
    assert model(x)[0].tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_series_may_be_short(steps: int) -> None:
    for name in ("cnn1d", "gru", "series-transformer"):
        assert build(name, of_series(2, steps), 3, 0)(torch.ones(2, 4, steps)).shape == (2, 3)


def test_patches_of_steps_are_read_step_by_step_and_filled_up() -> None:
    x = torch.arange(10.0).view(1, 2, 5)  # channel 0 is 0..4, channel 1 is 5..9
    assert cut(x, 2).tolist() == [[[0, 5, 1, 6], [2, 7, 3, 8], [4, 9, 0, 0]]]


def test_a_bag_of_words_and_pairs_by_hand() -> None:
    model = FastText(of_tokens(5, 10), 2, FastTextSettings(width=2, pairs=7))
    words, pairs = (model.get_parameter(f"{name}.weight") for name in ("words", "pairs"))
    found = [words[3], words[4], words[3], pairs[(3 * 1_000_003 + 4 * 998_244_353) % 7]]
    found.append(pairs[(4 * 1_000_003 + 3 * 998_244_353) % 7])
    text = torch.tensor([[3, 4, 3, 0, 0]])
    torch.testing.assert_close(model(text)[0], model.head(torch.stack(found).mean(0)))
    torch.testing.assert_close(model(torch.zeros(1, 5, dtype=torch.int64))[0], model.head.bias)  # a text without words


def test_words_alone_have_no_order() -> None:
    model = FastText(of_tokens(3, 10), 2, FastTextSettings(pairs=0))
    assert Manifest.of(model).group_names == ("words", "head")
    torch.testing.assert_close(model(torch.tensor([[3, 4, 5]])), model(torch.tensor([[5, 3, 4]])))


@pytest.mark.parametrize("name", ["fasttext", "text-transformer"])
def test_what_fills_up_a_short_text_changes_nothing(name: str) -> None:
    model = build(name, NEWS, CLASSES, 0, SMALL).eval()
    before = model(inputs(name))
    with torch.no_grad():
        model.get_parameter("words.weight" if name == "fasttext" else "embedding.tokens.weight")[0] = 100.0
    torch.testing.assert_close(model(inputs(name)), before)


def test_tokens_that_are_not_there_have_no_weight() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 1, 4, 3, generator=draw) for _ in range(3))
    there = torch.tensor([[True, True, False, False], [True, True, True, True]])
    found = attend(query, key, value, False, there)
    weights = (query[0] @ key[0, :, :2].transpose(1, 2) / math.sqrt(3)).softmax(-1)
    torch.testing.assert_close(found[0], weights @ value[0, :, :2])
    torch.testing.assert_close(found[1], attend(query, key, value, False)[1])


# ---- many clients at once --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [(1, 2, 1, 1), (2, 0, 1, 1), (1, "same", 2, 2)])
@pytest.mark.parametrize("channels", [4, 8])
def test_a_convolution_over_time_client_by_client(
    stride: int, padding: Any, dilation: int, groups: int, channels: int
) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(6, channels, 11, generator=draw, dtype=torch.float64)
    weight = torch.randn(3, 6, channels // groups, 5, generator=draw, dtype=torch.float64)
    bias = torch.randn(3, 6, generator=draw, dtype=torch.float64)
    wanted = torch.cat(
        [
            nn.functional.conv1d(part, w, b, stride, padding, dilation, groups)
            for part, w, b in zip(x.chunk(3), weight, bias, strict=True)
        ]
    )
    torch.testing.assert_close(layers.conv1d(x, weight, bias, stride, padding, dilation, groups), wanted)


@pytest.mark.parametrize("training", [PLAIN, MOMENTUM], ids=["plain", "momentum"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", SHAPES)
def test_clients_trained_together_are_trained_as_alone(name: str, dtype: torch.dtype, training: Any) -> None:
    model = build(name, SHAPES[name], CLASSES, 0, SMALL).to(dtype)
    batch = inputs(name).to(dtype) if SHAPES[name] == SERIES else inputs(name)
    alone = Trainer(model, torch.device("cpu"), "fp32", manifest_of(model, [batch]))
    engine = Engine(alone, model, [batch])
    assert StackedNetwork(model, [batch]).way == "folded"
    features = inputs(name, 40, 1)
    features = features.to(dtype) if SHAPES[name] == SERIES else features.to(torch.int16)
    labels = torch.randint(0, CLASSES, (40,), generator=torch.Generator().manual_seed(2))
    kind: Any = "array" if SHAPES[name] == SERIES else "tokens"
    parts = torch.arange(40).split([17, 9, 14])
    data = [Data(features, labels, {"train": part, "test": part}, kind) for part in parts]
    starts = models(alone, 3)
    for (mine, loss), (theirs, wanted) in zip(
        together(engine, starts, data, training), one_at_a_time(alone, starts, data, training), strict=True
    ):
        assert far(mine, theirs) < (TIGHT if dtype == torch.float64 else LOOSE)
        assert loss == pytest.approx(wanted, rel=1e-4)


# ---- exported files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_a_model_out_of_its_file_gives_the_same(name: str, tmp_path: Path) -> None:
    model = build(name, SHAPES[name], CLASSES, 7, SMALL).eval()
    path = write_model(tmp_path, "a", model.state_dict(), label(name, SHAPES[name], CLASSES, SMALL))
    again = load(path)
    assert torch.equal(again(inputs(name)), model(inputs(name)))
    assert again(inputs(name)).shape == (3, CLASSES)


def test_arrays_of_ones_own_go_through_the_networks_of_series() -> None:
    x = torch.from_numpy(np.ones((2, 3, 20), dtype=np.float32))
    for name in ("cnn1d", "gru", "series-transformer"):
        assert build(name, (3, 20), 4, 0)(x).shape == (2, 4)
    with pytest.raises(UserError, match=r"cnn1d\.kernel=4: wanted an odd number, so that the convolution keeps the"):
        parse({"cnn1d.kernel": 4})
