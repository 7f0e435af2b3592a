"""Networks out of folders as the Hub has them: what they are given, what they leave, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_folders import TOKENS, write_bert, write_texts, write_vit
from safetensors.torch import load_file, save_file

from fedham_flwr import models
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.fixed import counters, fixed_of
from fedham_flwr.core.parameters import load_
from fedham_flwr.models.adapters import AdapterSettings
from fedham_flwr.models.export import load
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.models.hub_folder import HubNetworkSettings, HubSettings, describe
from fedham_flwr.predicting.exported import Exported
from fedham_flwr.predicting.formats import write
from fedham_flwr.training.engine.network import StackedNetwork

LENGTH = 6
TEXTS = (LENGTH, len(TOKENS) + 2, 2, 0)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_vit(tmp_path_factory.mktemp("vit"))


def built(folder: str, shape: tuple[int, ...], outputs: int = 3, adapters: AdapterSettings | None = None) -> Any:
    named = (("hub", HubSettings(folder)),)
    return models.build("hub", shape, outputs, 0, models.NetworkSettings(named, adapters=adapters))


def test_texts_go_in_between_the_special_tokens_of_the_folder(bert: str) -> None:
    """Our codes are two above the tokeniser's; a short text ends where its tokens do."""
    model = built(bert, TEXTS).eval()
    ours = torch.tensor([[6, 9, 11, 0, 0, 0], [6, 7, 8, 9, 10, 11]])
    theirs = torch.tensor([[2, 4, 7, 9, 3, 0, 0, 0], [2, 4, 5, 6, 7, 8, 9, 3]])
    there = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0], [1] * 8])
    with torch.no_grad():
        wanted = model.network(input_ids=theirs, attention_mask=there).logits
        assert torch.equal(model(ours), wanted)
        assert bool(torch.isfinite(model(torch.zeros(2, LENGTH, dtype=torch.int64))).all())


def test_images_are_scaled_as_the_folder_says_and_grey_ones_are_given_thrice(vit: str) -> None:
    model = built(vit, (3, 8, 8)).eval()
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, deviation = (torch.tensor(each)[:, None, None] for each in ([0.5, 0.4, 0.3], [0.2, 0.25, 0.5]))
    with torch.no_grad():
        wanted = model.network(pixel_values=((x + 1) / 2 - mean) / deviation).logits
        torch.testing.assert_close(model(x), wanted)
        grey = built(vit, (1, 8, 8)).eval()
        torch.testing.assert_close(grey(x[:, :1]), model(x[:, :1].expand(-1, 3, -1, -1)))


def test_weights_are_those_of_the_folder_and_what_it_lacks_is_the_same_for_all_and_is_trained(bert: str) -> None:
    one, other = (built(bert, TEXTS, adapters=AdapterSettings()) for _ in range(2))
    written = load_file(Path(bert) / "model.safetensors")
    name = "bert.encoder.layer.0.attention.self.query"
    assert torch.equal(one.get_parameter(f"network.{name}.base_layer.weight"), written[f"{name}.weight"])
    state = other.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())
    manifest = manifest_of(one, models.trial_batches(TEXTS))
    kinds = {"network.bert.pooler.dense", "network.classifier"}
    adapted = {f"network.bert.encoder.layer.0.attention.self.{which}" for which in ("query", "value")}
    assert set(one.adapted_layers) == adapted
    wanted = {f"{name}.{part}" for name in kinds for part in ("weight", "bias")}
    wanted |= {f"{name}.lora_{part}.default.weight" for name in adapted for part in "AB"}
    assert set(manifest.names()) == wanted


def test_numbers_of_positions_are_no_counters(bert: str) -> None:
    model = built(bert, TEXTS).eval()
    x = torch.tensor([[6, 9, 11, 0, 0, 0]])
    before = model(x)
    manifest = manifest_of(model, models.trial_batches(TEXTS))
    assert counters(model) == {}
    assert "network.bert.embeddings.position_ids" in fixed_of(model)
    load_(model, {name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
    assert set(manifest.names()) == set(model.state_dict())
    assert torch.equal(model(x), before)


def test_many_clients_with_one_fixed_base_run_as_one_program(vit: str) -> None:
    model = built(vit, (3, 8, 8), adapters=AdapterSettings())
    assert StackedNetwork(model, models.trial_batches((3, 8, 8))).way == "folded"


def of_texts(bert: str, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": "hub", "hub.folder": bert, "dataset": write_texts(tmp_path / "news.csv"), "label_column": "topic",
        "partitioner": "natural", "client_column": "site", "sequence_length": LENGTH, "learning_rate": 0.05,
        "text.tokenizer": f"{bert}/tokenizer.json", "batch_size": 8,
    }  # fmt: skip


def test_a_run_on_texts_leaves_models_that_need_neither_folder_nor_adapters(
    federate: Callable[..., Any], bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(shutil.copytree(bert, tmp_path / "copy"))
    run = federate(clients=2, strategy="lora", **of_texts(folder, tmp_path))
    names = {name.rpartition(".lora_")[2] for name in run.state}
    assert names == {"A.default.weight", "lora/base"}
    file = next((run.path / "model").glob("*.safetensors"))
    model = built(folder, TEXTS, 2, AdapterSettings()).eval()
    model.load_state_dict(load_file(file))
    shutil.rmtree(folder)
    x = torch.tensor([[6, 9, 11, 0, 0, 0], [6, 7, 8, 9, 10, 11]])
    with torch.no_grad():
        torch.testing.assert_close(load(file)(x), model(x), rtol=1e-4, atol=1e-5)
    write(Exported.open(file), "torch", tmp_path / "model.pt2")  # which compares before it writes
    outputs = Exported.open(file).outputs(np.asarray(x, dtype=np.uint8))
    torch.testing.assert_close(outputs, model(x).detach(), rtol=1e-4, atol=1e-5)


def test_every_other_method_takes_such_a_network_and_sends_it_whole(federate: Callable[..., Any], vit: str) -> None:
    run = federate(
        clients=2, strategy="fedavg", model="hub", samples_per_client=40, num_server_rounds=1, **{"hub.folder": vit}
    )
    assert "network.vit.layernorm.weight" in run.state
    assert run.state["network.classifier.weight"].shape == (10, 16)


@pytest.mark.parametrize(
    ("shape", "changed", "sentence"),
    [
        ((2, 7), {}, r'model="hub" is for images and for texts with labels, and the data set is a table of 7 columns'),
        ((LENGTH, 500, 2, 0), {}, r"knows 28 tokens, and the texts have 498: set text.tokenizer="),
        ((40, 30, 2, 0), {}, r"takes texts of up to 14 tokens beside 2 special ones: lower sequence-length=40"),
        ((3, 8, 8), {}, r"gives no network that classifies images"),
        (TEXTS, {"hidden_size": "wide"}, r"does not know: TypeError: Field 'hidden_size' expected int, got str"),
        (TEXTS, {"num_attention_heads": 0}, r"gives no network that classifies texts: ZeroDivisionError"),
        (TEXTS, {"model_type": "nobody-knows"}, r"has a config.json that transformers does not know"),
        (TEXTS, {"model_type": None}, r"has a config.json without model_type"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    bert: str, tmp_path: Path, shape: tuple[int, ...], changed: dict[str, str | int | None], sentence: str
) -> None:
    folder = shutil.copytree(bert, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(UserError, match=sentence) as refused:
        built(str(folder), shape)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    ("written", "found"), [("[]", "a list"), ('"vit"', "a string"), ("7", "a number"), ("null", "null")]
)
def test_json_that_is_no_object_is_one_sentence(vit: str, tmp_path: Path, name: str, written: str, found: str) -> None:
    folder = shutil.copytree(vit, tmp_path / "changed")
    (folder / name).write_text(written)
    with pytest.raises(UserError) as refused:
        built(str(folder), (3, 8, 8))
    assert (
        str(refused.value) == f"{folder / name} is {found}, and wanted is a JSON object, as save_pretrained writes it"
    )


@pytest.mark.parametrize("changed", [{"image_mean": 0.5}, {"image_mean": ["a", "b", "c"]}, {"image_std": None}])
def test_means_and_deviations_that_are_no_lists_of_numbers_are_one_sentence(
    vit: str, tmp_path: Path, changed: dict[str, Any]
) -> None:
    folder = shutil.copytree(vit, tmp_path / "changed")
    file = folder / "preprocessor_config.json"
    given = {key: value for key, value in (json.loads(file.read_text()) | changed).items() if value is not None}
    file.write_text(json.dumps(given))
    (key,) = changed
    with pytest.raises(UserError) as refused:
        built(str(folder), (3, 8, 8))
    assert str(refused.value) == f"{file} has {key}={given.get(key)!r}: wanted a list of numbers, one for each channel"


def test_positions_that_are_counted_from_behind_the_padding_are_fewer() -> None:
    config = {
        "model_type": "roberta", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": 10, "pad_token_id": 1,
    }  # fmt: skip
    networks = models.NetworkSettings((("hub", HubNetworkSettings(json.dumps(config))),))
    models.build("hub", (8, 30, 2, 0), 3, 0, networks)
    with pytest.raises(UserError, match=r"takes no texts of 9 tokens beside its .*: lower sequence-length=9"):
        models.build("hub", (9, 30, 2, 0), 3, 0, networks)


def test_code_that_a_config_names_elsewhere_is_left_alone(bert: str, tmp_path: Path) -> None:
    """With the folder, and as out of a model's file, where `transformers` would ask at the terminal."""
    folder = shutil.copytree(bert, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    elsewhere = {"AutoModelForSequenceClassification": "nobody/nothing--code.Net"}
    config |= {"auto_map": elsewhere, "attn_implementation": "nobody/kernel"}
    (folder / "config.json").write_text(json.dumps(config))
    for own in (HubSettings(str(folder)), describe(HubSettings(str(folder)))):
        model: Any = models.build("hub", TEXTS, 3, 0, models.NetworkSettings((("hub", own),)))
        assert not hasattr(model.network.config, "auto_map")
        assert model.network.config._attn_implementation in ("sdpa", "eager")


def test_a_folder_without_what_is_needed_is_refused_and_pickles_are_never_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'model="hub" needs hub.folder, a folder with config'):
        built("", TEXTS)
    with pytest.raises(UserError, match=r"has no config.json"):
        built(str(tmp_path), TEXTS)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"code")
    with pytest.raises(UserError, match=r"has no \*.safetensors: wanted weights as data, not as a pickle"):
        built(str(tmp_path), TEXTS)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is no JSON"):
        built(str(tmp_path), TEXTS)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 12}')
    with pytest.raises(UserError, match=r"has the weights of another network than its config.json says: it lacks bert"):
        built(str(tmp_path), TEXTS)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is no tokeniser's file"):
        built(str(tmp_path), TEXTS)
