"""LoRA: its four splits and how they belong together, what travels, and who must have the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from presets import TINY_VIT
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedham_flwr import models, registry
from fedham_flwr.algorithms.fedavg import aggregate
from fedham_flwr.algorithms.lora import KEPT, SHARES, LoraSettings, check_base, digest_facts, network, split
from fedham_flwr.client_app import make_client_app
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.contract import Setup, Task
from fedham_flwr.federation.node import open_data
from fedham_flwr.federation.record_values import tensors
from fedham_flwr.models.adapted_weights import A, B, merged
from fedham_flwr.models.adapters import AdapterSettings
from fedham_flwr.models.export import load, read_header
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.settings import parse
from fedham_flwr.training.trainer import Trainer
from strategies.lora import LoraStrategy

SHAPE = (1, 8, 8)


def built(adapters: AdapterSettings | None = None) -> Any:
    return models.build("digits-cnn", SHAPE, 3, 0, models.NetworkSettings(adapters=adapters))


def fitted(model: nn.Module, training: Any, data: Any, only: Any = None) -> dict[str, Tensor]:
    trainer = Trainer(model, torch.device("cpu"), "fp32", manifest_of(model, models.trial_batches(data.shape)))
    names = None if only is None else [n for n in trainer.parameter_names if only(n)]
    trainer.fit(data, training, torch_stream(0, "batches", 1, "0"), only=names)
    return trainer.read_checked()


# ---- the splits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "shared", "personal"),
    [
        ("fedsa", 8 * 128, 8 * 64 + 195),
        ("ffa", 8 * 64 + 195, 0),
        ("averaged", 8 * (128 + 64) + 195, 0),
        ("local", 0, 8 * (128 + 64) + 195),
    ],
)
def test_what_travels_is_what_the_variant_says_and_never_the_base(which: Any, shared: int, personal: int) -> None:
    """By hand for a layer of 128 inputs and 64 outputs and a classifier of 3 times 64 + 1 scalars."""
    settings = LoraSettings(split=which)
    model = built(adapters=network(settings).adapters)
    manifest = manifest_of(model, models.trial_batches(SHAPE))
    found = split(manifest, settings)
    sizes = [sum(torch.Size(manifest.shapes[name]).numel() for name in names) for names in found[:2]]
    assert sizes == [shared, personal]
    assert not [name for name in manifest.names() if "base_layer" in name or "conv" in name]
    assert (f"fc1{A}" in model.fixed_tensors) == (SHARES[which]["A"] == "fixed")


GIVEN: dict[str, Any] = {"strategy": "lora", "partitioner": "iid", "samples_per_client": 64, "min_clients": 1}


def test_ffa_is_averaged_with_a_fixed_at_its_start(settings: Callable[..., Any]) -> None:
    chosen = parse(settings(**GIVEN))
    data, training = open_partition(chosen.data(), 0, 1), chosen.local_training(1).changed(local_epochs=2)
    whole, ffa = (
        models.build("digits-cnn", SHAPE, 10, 0, models.NetworkSettings(adapters=AdapterSettings(fixed=fixed)))
        for fixed in ("", "A")
    )
    first = whole.get_parameter(f"fc1{A}").clone()
    theirs = fitted(whole, training, data, only=lambda name: not name.endswith(A))
    mine = fitted(ffa, training, data)
    assert mine.keys() == theirs.keys() - {f"fc1{A}"}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert torch.equal(theirs[f"fc1{A}"], first)
    assert torch.equal(ffa.get_parameter(f"fc1{A}"), first)


def test_the_mean_of_products_is_the_product_of_means_for_one_a_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    seconds = [torch.randn(4, 2, generator=draw) for _ in range(3)]
    firsts = [torch.randn(2, 5, generator=draw) for _ in range(3)]
    examples = [1, 2, 5]

    def mean(tensors_of: list[Tensor]) -> Tensor:
        return aggregate([{"x": tensor} for tensor in tensors_of], examples)["x"]

    products = mean([second @ first for second, first in zip(seconds, firsts, strict=True)])
    assert not torch.allclose(mean(seconds) @ mean(firsts), products, atol=0.1)
    torch.testing.assert_close(mean(seconds) @ firsts[0], mean([second @ firsts[0] for second in seconds]))


def test_one_client_that_averages_with_nobody_trains_alone(federate: Callable[..., Any]) -> None:
    runs = [federate(clients=1, **GIVEN, **{"lora.split": which}) for which in ("averaged", "local", "fedsa")]
    models_of = [load_file(run.path / "model" / "0.safetensors") for run in runs]
    assert runs[1].state.keys() == {KEPT}
    for other in models_of[1:]:
        assert all(torch.equal(tensor, models_of[0][name]) for name, tensor in other.items())


def test_a_round_of_fedsa_is_the_training_written_out(
    federate: Callable[..., Any], settings: Callable[..., Any]
) -> None:
    given = {**GIVEN, "num_server_rounds": 1, "lora.rank": 4}
    run, chosen = federate(clients=2, **given), parse(settings(**given))
    found, examples = [], []
    for client in range(2):
        data = open_partition(chosen.data(), client, 2)
        model = models.build("digits-cnn", SHAPE, 10, 0, chosen.networks())
        trainer = Trainer(model, torch.device("cpu"), "fp32")
        trainer.fit(data, chosen.local_training(1), torch_stream(0, "batches", 1, str(client)))
        found.append(trainer.read_checked())
        examples.append(len(data.splits["train"]))
    kept = [tensors(context.state.array_records["personal"]) for context in run.grid.contexts.values()]
    assert run.state.keys() == {f"fc1{A}", KEPT}
    wanted = sum(each[f"fc1{A}"].double() * count for each, count in zip(found, examples, strict=True)) / sum(examples)
    torch.testing.assert_close(run.state[f"fc1{A}"], wanted.float())  # type: ignore[union-attr]
    for own, mine in zip(found, kept, strict=True):
        assert mine.keys() == {f"fc1{B}", "fc2.weight", "fc2.bias"}
        assert all(torch.equal(tensor, own[name]) for name, tensor in mine.items())
    assert run.summary["bytes"]["train"] == {"down": 2 * 4 * 4 * 128, "up": 2 * 4 * 4 * 128}


def test_the_base_never_changes_and_the_exported_model_has_it(federate: Callable[..., Any]) -> None:
    run = federate(clients=2, **{**GIVEN, "lora.split": "fedsa", "learning_rate": 0.2})
    first = models.build("digits-cnn", SHAPE, 10, 0)
    files = [run.path / "model" / f"{client}.safetensors" for client in range(2)]
    for file in files:
        written, model = load_file(file), load(file)
        assert "adapters" in read_header(file)["network"]
        for name in ("conv1.weight", "conv2.bias"):
            assert torch.equal(written[name], first.get_parameter(name))
        assert torch.equal(written["fc1.base_layer.weight"], first.get_parameter("fc1.weight"))
        assert not torch.equal(model.get_parameter("fc1.weight"), first.get_parameter("fc1.weight"))
        assert type(model.get_submodule("fc1")) is nn.Linear
    assert torch.equal(load_file(files[0])[f"fc1{A}"], load_file(files[1])[f"fc1{A}"])
    assert not torch.equal(load_file(files[0])[f"fc1{B}"], load_file(files[1])[f"fc1{B}"])


def test_a_whole_run_on_a_small_transformer_learns_and_goes_on_from_another_runs_model(
    federate: Callable[..., Any], tmp_path: Path
) -> None:
    given = {"classes_per_client": 2, "learning_rate": 0.1, "samples_per_client": 100, **TINY_VIT}
    base = federate(clients=3, **{**given, "strategy": "fedavg", "num_server_rounds": 3, "local_epochs": 2})
    file = str(base.path / "model" / "0.safetensors")
    run = federate(clients=3, **{**given, "strategy": "lora", "num_server_rounds": 3, "lora.base": file})
    weight = "blocks.1.attention.to_qkv"
    first, last = (load_file(each) for each in (file, run.path / "model" / "0.safetensors"))
    assert torch.equal(last[f"{weight}.base_layer.weight"], first[f"{weight}.weight"])
    scores = [r.value for r in run.rows if (r.split, r.metric, r.phase) == ("validation", "loss", "after")]
    assert scores[-1] < scores[0]
    # Of a run with adapters the merged model is the base, and a classifier for other classes starts at random.
    again = AdapterSettings(base=str(run.path / "model" / "0.safetensors"))
    settings = parse({"strategy": "lora", **TINY_VIT}).networks()
    model = models.build("vit", SHAPE, 4, 0, models.NetworkSettings(settings.sections, adapters=again))
    assert torch.equal(model.get_parameter(f"{weight}.base_layer.weight"), merged(last, 2.0)[f"{weight}.weight"])
    assert model.get_parameter("head.weight").shape == (4, 16)


def test_a_base_of_another_network_is_refused(tmp_path: Path) -> None:
    plain = built()
    file = tmp_path / "base.safetensors"
    save_file({**plain.state_dict(), "fc1.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(UserError, match=r"is of another network: fc1.weight has shape \(2, 2\), wanted \(64, 128\)"):
        built(adapters=AdapterSettings(base=str(file)))
    save_file({"other": torch.zeros(2)}, file)
    with pytest.raises(UserError, match=r"is of another network: conv1.bias, .* is in one of them only"):
        built(adapters=AdapterSettings(base=str(file)))
    file.write_text("no tensors")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        built(adapters=AdapterSettings(base=str(file)))


def test_a_card_says_how_many_parameters_there_are_and_how_many_of_them_are_trained(
    federate: Callable[..., Any],
) -> None:
    """Adapters of rank 8 beside fc1, of 128 inputs and 64 outputs, and the classifier of 10 times 64 + 1 scalars."""
    folder = federate(clients=1, num_server_rounds=1, **GIVEN).path / "model"
    told = json.loads((folder / "0.json").read_text())["model"]
    trained = 8 * (128 + 64) + 650
    base = sum(param.numel() for param in models.build("digits-cnn", SHAPE, 10, 0).parameters())
    assert (told["parameters"], told["trained-parameters"]) == (base + 8 * (128 + 64), trained)
    line = f"| network | digits-cnn, {base + 1536:,} parameters, of which {trained:,} are trained |"
    assert line in (folder / "0.md").read_text()


# ---- who must have the same ------------------------------------------------------------------------------------------


def test_clients_with_another_base_or_another_rank_are_refused() -> None:
    one = manifest_of(built(adapters=AdapterSettings()), [])
    other = models.build("digits-cnn", SHAPE, 3, 1, models.NetworkSettings(adapters=AdapterSettings()))
    assert one.fingerprint() == manifest_of(built(adapters=AdapterSettings()), []).fingerprint()
    assert one.fingerprint() != manifest_of(other, []).fingerprint()
    check_base({"base": digest_facts(one.fixed)}, one.fixed, "a")
    with pytest.raises(UserError, match=r"client a has another base network than the server"):
        check_base({"base": digest_facts(one.fixed)}, manifest_of(other, []).fixed, "a")
    with pytest.raises(UserError, match="another base network"):
        check_base({}, one.fixed, "a")
    smaller = built(adapters=AdapterSettings(rank=4))
    upload = {name: tensor for name, tensor in tensors_of(smaller).items() if name.endswith(A)}
    with pytest.raises(ValueError, match=r"fc1.lora_A.default.weight has shape \(4, 128\), wanted \(8, 128\)"):
        one.check(upload, (f"fc1{A}",))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in model.named_parameters()}


def test_a_client_with_another_base_answers_with_a_sentence_and_trains_nothing(federate: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"client \d has another base network than the server, whose"):
        federate(clients=2, client_app=lambda given: make_client_app({**given, "seed": 1, "data-seed": 0}), **GIVEN)


def test_a_run_does_not_go_on_with_another_base(federate: Callable[..., Any], settings: Callable[..., Any]) -> None:
    run = federate(clients=2, **GIVEN)
    chosen = parse(settings(**GIVEN))
    halves = []
    for seed in (0, 1):
        model = models.build("digits-cnn", SHAPE, 10, seed, chosen.networks())
        manifest = manifest_of(model, models.trial_batches(SHAPE))
        first = {name: tensor.detach() for name, tensor in model.named_parameters() if name in manifest.shapes}
        task = Task(SHAPE, 10, "", "")
        halves.append(LoraStrategy(Setup(chosen, registry.method("lora"), manifest, first, task)))
    halves[0].load_state_dict(run.state)
    assert torch.equal(halves[0].state_dict()[f"fc1{A}"], run.state[f"fc1{A}"])
    with pytest.raises(ValueError, match="its adapters are of another base network"):
        halves[1].load_state_dict(run.state)
    with pytest.raises(ValueError, match="tensors are missing: lora/base"):
        halves[0].load_state_dict({name: tensor for name, tensor in run.state.items() if name != KEPT})


def test_a_node_has_no_rank_of_its_own(settings: Callable[..., Any]) -> None:
    node = {"partition-id": 0, "num-partitions": 2, "lora.rank": 4}
    context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"the node config has lora.rank=4, and the settings of a method are the run's"):
        open_data(context, parse(settings(strategy="lora")))


def test_digests_fit_into_the_numbers_of_a_message() -> None:
    facts = digest_facts("f" * 64)
    assert max(facts) < 2**63
    assert len(facts) == 5
