"""The Transformers: sizes, groups, who sees whom, dropout, heads, and refusals."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.models import NetworkSettings, build
from fedham_flwr.models.char_transformer import CharTransformer, CharTransformerSettings
from fedham_flwr.models.export import label, load, write_model
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.models.heads import HeadSettings
from fedham_flwr.models.transformer import sinusoids
from fedham_flwr.models.vit import ViT, ViTSettings, cut

IMAGE, TEXT, CLASSES, CHARACTERS = (3, 8, 8), (12,), 5, 20
SIZES: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "head_dim": 6, "hidden_dim": 24}
SMALL = NetworkSettings.of(vit=ViTSettings(**SIZES), char_transformer=CharTransformerSettings(**SIZES))
NETWORKS = ("vit", "char-transformer")


def small(name: str, personal_head: bool = False, seed: int = 0, **changed: Any) -> Any:
    """A small network, with settings of its own changed."""
    options = NetworkSettings.of(
        HeadSettings("second" if personal_head else ""),
        vit=ViTSettings(**(SIZES | changed)),
        char_transformer=CharTransformerSettings(**(SIZES | changed)),
    )
    return build(name, *data_of(name), seed, options)


def data_of(name: str) -> tuple[tuple[int, ...], int]:
    """Shape and classes."""
    return (IMAGE, CLASSES) if name == "vit" else (TEXT, CHARACTERS)


def inputs(name: str, count: int = 3, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    if name == "vit":
        return torch.randn(count, *IMAGE, generator=draw).to(memory_format=torch.channels_last)
    return torch.randint(CHARACTERS, (count, *TEXT), generator=draw)


# ---- sizes and groups ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "size"), [(10, 1_988_490), (100, 2_000_100)])
def test_the_vision_transformer_has_the_published_size(classes: int, size: int) -> None:
    manifest = Manifest.of(build("vit", (3, 32, 32), classes, 0))
    assert manifest.count() == size
    assert manifest.count(["attention"]) == 1_179_648 == 6 * 1536 * 128
    assert manifest.count(["embedding"]) == 6_272 + 128 + 65 * 128  # patches, CLS, positions
    assert manifest.count(["head"]) == 129 * classes
    assert [manifest.shapes[name] for name in manifest.names(["attention"])] == [(1536, 128)] * 6


@pytest.mark.parametrize(("depth", "size"), [(1, 354_432), (2, 683_008), (6, 1_997_312)])
def test_the_language_transformer_has_the_published_size(depth: int, size: int) -> None:
    options = NetworkSettings.of(char_transformer=CharTransformerSettings(depth=depth))
    manifest = Manifest.of(build("char-transformer", (64,), 100, 0, options))
    assert manifest.count() == size
    assert manifest.count(["attention"]) == depth * 3 * 512 * 128
    assert manifest.count(["embedding"]) == 100 * 128 + 2 * 128  # characters, normalisation
    assert manifest.count(["head"]) == 100 * 128


def test_the_language_transformer_has_two_layers_unless_told_otherwise() -> None:
    assert CharTransformerSettings() == CharTransformerSettings(128, 2, 8, 64, 256, 0.1, "sinusoidal")
    assert ViTSettings() == ViTSettings(128, 6, 8, 64, 256, 0.1, "learned", 4)
    assert Manifest.of(build("auto", (80,), 100, 0)).count(["attention"]) == 393_216


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("personal_head", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_groups_go_from_the_input_to_the_output_and_partition_the_state(
    name: str, personal_head: bool, positions: str
) -> None:
    model = small(name, personal_head, depth=3, positions=positions)
    manifest = manifest_of(model, [])
    expected = ["embedding", "attention", "block1", "block2", "block3"]
    expected += ["norm"] * (name == "vit") + ["head"] + ["personal-head"] * personal_head
    assert list(manifest.group_names) == expected
    assert set(manifest.names()) == set(model.state_dict())  # sinusoidal positions are nobody's
    assert manifest.names(["attention"]) == tuple(f"blocks.{i}.attention.to_qkv.weight" for i in range(3))
    if personal_head:
        assert manifest.names(["personal-head"]) == ("head.personal.weight", "head.personal.bias")


@pytest.mark.parametrize("name", NETWORKS)
def test_learned_positions_are_parameters_of_the_embedding_and_sinusoidal_ones_are_none(name: str) -> None:
    learned, sinusoidal = (small(name, positions=p) for p in ("learned", "sinusoidal"))
    tokens = 5 if name == "vit" else 12
    more = Manifest.of(learned).count(["embedding"]) - Manifest.of(sinusoidal).count(["embedding"])
    assert more == tokens * 16
    assert learned(inputs(name)).shape == sinusoidal(inputs(name)).shape


def test_learned_positions_start_standard_normal() -> None:
    positions = build("vit", (3, 32, 32), 10, 0).get_parameter("embedding.positions")
    assert positions.std().item() == pytest.approx(1, abs=0.03)
    assert positions.mean().item() == pytest.approx(0, abs=0.03)


def test_sinusoids_by_hand() -> None:
    table = sinusoids(3, 5, torch.device("cpu"))  # frequencies 1, 10000^-0.4, 10000^-0.8
    slow = 10_000**-0.4
    expected = [math.sin(2), math.cos(2), math.sin(2 * slow), math.cos(2 * slow), math.sin(2 * slow**2)]
    assert table.shape == (3, 5)
    torch.testing.assert_close(table[2], torch.tensor(expected))
    torch.testing.assert_close(table[0], torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]))


def test_patches_are_read_row_by_row_and_pixel_by_pixel() -> None:
    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).view(2, 3, 4, 6)
    patches = cut(images.to(memory_format=torch.channels_last), 2)
    assert patches.shape == (2, 6, 12)
    assert torch.equal(patches, cut(images, 2))
    # The fifth patch is rows 2, 3 and columns 2, 3.
    fifth = [images[1, c, row, column].item() for row in (2, 3) for column in (2, 3) for c in range(3)]
    assert patches[1, 4].tolist() == fifth


# ---- who sees whom ---------------------------------------------------------------------------------------------------

CAUSAL = small("char-transformer", depth=3).eval()
SEEING = small("vit").eval()


@given(place=st.integers(0, 11), change=st.integers(1, CHARACTERS - 1), seed=st.integers(0, 2**31))
@hypothesis_settings(max_examples=40, deadline=None)
def test_a_character_moves_its_own_logits_and_later_ones_and_none_before(place: int, change: int, seed: int) -> None:
    before = inputs("char-transformer", 2, seed)
    after = before.clone()
    after[:, place] = (after[:, place] + change) % CHARACTERS
    with torch.no_grad():
        away = (CAUSAL(after) - CAUSAL(before)).abs().amax(dim=(0, 2))
    assert not away[:place].any()  # not by the last bit
    assert (away[place:] > 0).all()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_no_gradient_flows_from_a_position_to_later_characters(precision: torch.dtype) -> None:
    tokens = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
        x = tokens
        for block in CAUSAL.blocks:
            x = block(x)
    (x[0, 6] * torch.arange(16)).sum().backward()  # the sum alone is 0, whatever the tokens are
    assert tokens.grad is not None
    assert not tokens.grad[0, 7:].any()
    assert tokens.grad[0, :7].abs().sum(1).all()


@given(row=st.integers(0, 7), column=st.integers(0, 7), channel=st.integers(0, 2))
@hypothesis_settings(max_examples=20, deadline=None)
def test_every_pixel_moves_the_image_s_logits(row: int, column: int, channel: int) -> None:
    before = inputs("vit", 2)
    after = before.clone()
    after[:, channel, row, column] += 1
    with torch.no_grad():
        assert (SEEING(after) != SEEING(before)).any(dim=1).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_positions_matter(name: str) -> None:
    x = inputs(name)
    if name == "vit":  # the right half before the left one
        moved = torch.cat([x[..., 4:], x[..., :4]], dim=3)
    else:  # the last character sees the same others in another order
        moved = torch.cat([x[:, :-1].flip(1), x[:, -1:]], dim=1)
    for positions in ("learned", "sinusoidal"):
        model = small(name, positions=positions).eval()
        with torch.no_grad():
            first, second = (model(images).view(3, -1)[:, -CLASSES:] for images in (x, moved))
        assert not torch.allclose(first, second, atol=1e-3)


def test_shorter_texts_than_those_of_training_are_read_the_same_way() -> None:
    for positions in ("learned", "sinusoidal"):
        model, x = small("char-transformer", positions=positions).eval(), inputs("char-transformer")
        with torch.no_grad():
            torch.testing.assert_close(model(x[:, :7]), model(x)[:, :7])


def test_the_last_layer_works_for_the_cls_token_alone_and_nothing_is_lost() -> None:
    model, x = small("vit", dropout=0.0).double(), inputs("vit").double()
    tokens = model.embedding(x)
    for block in model.blocks:
        tokens = block(tokens)
    expected = model.head(layer_norm(tokens, (16,), model.norm.weight, model.norm.bias)[:, 0])
    names = [name for name, _ in model.named_parameters()]
    whole = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    torch.testing.assert_close(model(x), expected)
    parts = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for name, first, second in zip(names, whole, parts, strict=True):
        torch.testing.assert_close(first, second, msg=name)


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_is_close_to_float32(name: str) -> None:
    model, x = small(name).eval(), inputs(name)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x)
    torch.testing.assert_close(rough.float(), exact, atol=0.03, rtol=0.03)


# ---- dropout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_is_off_in_evaluation_and_seeded_in_training(name: str) -> None:
    model, x = small(name, dropout=0.3), inputs(name)
    without = small(name, dropout=0.0).train()

    def seeded(seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            logits: Tensor = model(x)
            return logits.detach()

    assert torch.equal(seeded(1), seeded(1))
    assert not torch.equal(seeded(1), seeded(2))
    model.eval()
    assert torch.equal(seeded(1), seeded(2))
    assert torch.equal(model(x), without(x))


# ---- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_personal_head_starts_at_zero_and_moves_nothing(name: str) -> None:
    one, two, x = small(name), small(name, personal_head=True), inputs(name)
    state = two.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in one.state_dict().items())
    assert state.keys() - one.state_dict().keys() == {"head.personal.weight", "head.personal.bias"}
    assert not state["head.personal.weight"].any()
    assert not state["head.personal.bias"].any()
    assert torch.equal(two.eval()(x), one.eval()(x))


@pytest.mark.parametrize(("name", "scale"), [("vit", 1.0), ("char-transformer", 0.25)])  # 16^-1/2
def test_logits_are_those_of_both_heads_with_the_network_s_scale(name: str, scale: float) -> None:
    model, x = small(name, personal_head=True).eval(), inputs(name)
    nn.init.normal_(model.head.personal.weight, generator=torch.Generator().manual_seed(1))
    nn.init.ones_(model.head.personal.bias)
    features = model.features(x)
    bias = 0 if model.head.bias is None else model.head.bias
    shared = scale * (features @ model.head.weight.T + bias)
    personal = scale * (features @ model.head.personal.weight.T + 1)
    torch.testing.assert_close(model(x), shared + personal)


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_normalised(name: str) -> None:
    features = small(name).features(inputs(name))
    assert features.shape == ((3, 16) if name == "vit" else (3, 12, 16))
    torch.testing.assert_close(features.mean(-1), torch.zeros(features.shape[:-1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.std(-1, correction=0), torch.ones(features.shape[:-1]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_learns(name: str) -> None:
    model, x = small(name, personal_head=True), inputs(name)
    logits = model(x)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    assert [key for key, param in model.named_parameters() if param.grad is None or not param.grad.any()] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_a_few_samples_are_learned_by_heart(name: str) -> None:
    model, x = small(name, dropout=0.0), inputs(name, 8)
    y = torch.arange(8) % CLASSES if name == "vit" else x.roll(-1, dims=1)
    x, y = (x, y) if name == "vit" else (x[:, :-1], y[:, :-1])
    losses = []
    for _ in range(150):
        loss = cross_entropy(model(x).flatten(0, -2), y.flatten())
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for param in model.parameters():
                assert param.grad is not None
                param.sub_(param.grad, alpha=0.1 if name == "vit" else 1.0)
                param.grad = None
    assert losses[-1] < 0.25 * losses[0]


# ---- what is refused, and what is written ----------------------------------------------------------------------------


def test_networks_for_other_data_are_refused_by_name() -> None:
    with pytest.raises(
        UserError,
        match=r'^model="char-transformer" is for text, and the data set is images of 8 x 8 pixels: try model=',
    ):
        build("char-transformer", IMAGE, 10, 0)
    for name in ("vit", "cnn", "lenet-bn"):
        wanted = rf'^model="{name}" is for images, and the data set is text, 12 tokens a sample: try model="char-tr'
        with pytest.raises(UserError, match=wanted):
            build(name, TEXT, 100, 0)


@pytest.mark.parametrize("shape", [(3, 32, 30), (1, 30, 32), (1, 28, 28)])
def test_patches_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    size = 5 if shape == (1, 28, 28) else 4
    wanted = rf"^vit.patch-size={size} does not divide images of {shape[1]} x {shape[2]} pixels: wanted a divisor of bo"
    with pytest.raises(UserError, match=wanted):
        build("vit", shape, 10, 0, NetworkSettings.of(vit=ViTSettings(patch_size=size)))


WRITTEN = [(name, head) for name in NETWORKS for head in (False, True)] + [("digits-cnn", False), ("auto", False)]


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize(("name", "personal_head"), WRITTEN)
def test_a_written_model_is_loaded_again(name: str, personal_head: bool, positions: Any, tmp_path: Path) -> None:
    shape, classes = data_of("vit" if name in ("digits-cnn", "auto") else name)
    sizes = SIZES | {"positions": positions, "dropout": 0.5}
    vit, char = ViTSettings(**sizes, patch_size=2), CharTransformerSettings(**sizes)
    options = NetworkSettings.of(HeadSettings("second" if personal_head else ""), vit=vit, char_transformer=char)
    model = build(name, shape, classes, 7, options)
    if personal_head:
        nn.init.normal_(model.get_parameter("head.personal.weight"))
    path = write_model(tmp_path, "ward-3", model.state_dict(), {"client": "3"} | label(name, shape, classes, options))
    found, x = load(str(path)), inputs("char-transformer" if len(shape) == 1 else "vit")
    assert not found.training
    assert manifest_of(found, []).fingerprint() == manifest_of(model, []).fingerprint()
    with torch.no_grad():
        assert torch.equal(found(x), model.eval()(x))


def test_the_label_says_what_the_network_has_and_no_more() -> None:
    vit = label("vit", IMAGE, CLASSES, SMALL)
    assert (vit["model"], vit["shape"], vit["classes"]) == ("vit", "3,8,8", "5")
    assert '"patch_size": 4' in vit["network"]
    assert "char" not in vit["network"]
    assert label("auto", (80,), 100, SMALL)["model"] == "char-transformer"
    assert label("cnn", (3, 32, 32), 10, SMALL)["network"] == "{}"
    assert asdict(SMALL.section("char-transformer")).keys() < asdict(SMALL.section("vit")).keys()


def test_files_that_are_no_exported_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nobody.safetensors cannot be read as a model .*; wanted a file model/"):
        load(tmp_path / "nobody.safetensors")
    (tmp_path / "text.safetensors").write_text("not tensors at all")
    with pytest.raises(UserError, match=r"text.safetensors cannot be read as a model .*; wanted a file model/"):
        load(tmp_path / "text.safetensors")
    with pytest.raises(UserError, match=rf"{tmp_path.name} cannot be read as a model"):
        load(tmp_path)
    path = write_model(tmp_path, "bare", {"x": torch.zeros(1)}, {"model": "vit"})
    with pytest.raises(UserError, match=r"bare.safetensors does not say its shape, classes, network: wanted a file mo"):
        load(path)


def test_the_networks_are_named_classes_for_their_kind() -> None:
    assert isinstance(small("vit"), ViT)
    assert isinstance(small("char-transformer"), CharTransformer)
    assert (ViT.kinds, CharTransformer.kinds) == (("image",), ("text",))
