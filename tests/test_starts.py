"""What a personal stage starts from: what is read out of the runs of every method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Outcome
from presets import adapted, network, network_settings, one_model
from safetensors.torch import load_file, save_file
from saved import CLIENTS, DIGITS, TENSORS, put, put_run, same, start

from fedham_flwr import models, registry
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.resume.warm_start import read_start
from fedham_flwr.settings import Value, methods, parse


def holds_back(strategy: str) -> bool:
    """Whether clients keep a part of the model, or the whole is made in a personal stage."""
    net = network(strategy)
    method, given = registry.method(strategy), parse({"strategy": strategy, **network_settings(strategy)})
    return method.personal_stage or bool(method.split_of(manifest_of(net, []), given.own).personal)


CHEAP: dict[str, Value] = {
    "groups": 2, "batch-size": 64, "evaluate-every": 9, "fedham.transport": "mediated",
    "fedham.feature-dim": 4, "amn.feature-dim": 4, "pfedla.hidden-dim": 4, "fedtp.hidden-dim": 4,
}  # fmt: skip
AVERAGED = tuple(name for name in methods() if one_model(name) and not holds_back(name))
MIXED = tuple(name for name in methods() if name not in (*AVERAGED, "fedtransfer") and not adapted(name))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """Where all runs of these tests lie, and the directory of each that there is."""
    return tmp_path_factory.mktemp("results"), {}


@pytest.fixture
def left(federate: Callable[..., Outcome], shelf: tuple[Path, dict[str, Path]]) -> Callable[..., Path]:
    """The directory that a run of a method left; every run is made once."""

    def find(strategy: str, name: str = "", **given: Value) -> Path:
        root, runs = shelf
        key = name or strategy
        if key not in runs:
            # Those that mix begin with equal weights: after one round all clients would have the same model.
            rounds = 1 if strategy in AVERAGED else 2
            run = federate(strategy=strategy, results_dir=str(root / key), num_server_rounds=rounds, **CHEAP, **given)
            runs[key] = run.path
        return runs[key]

    return find


# ---- the runs of all methods ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", AVERAGED)
def test_all_clients_start_from_the_whole_model_of_the_server(left: Callable[..., Path], strategy: str) -> None:
    run = left(strategy)
    common, own, source = start(run)
    assert same(common, load_file(run / "server.safetensors"))
    assert not same(common, {name: TENSORS[name] for name in common})
    assert own == {}
    assert source == f"{run}/server.safetensors, of a {strategy} run of 1 round"


@pytest.mark.parametrize("strategy", MIXED)
def test_each_client_starts_from_its_own_if_the_server_has_none_for_all(
    left: Callable[..., Path], strategy: str
) -> None:
    run, net = left(strategy), network(strategy)
    common, own, source = start(run, net, str(network_settings(strategy)["model"]))
    assert common == {}
    assert tuple(own) == CLIENTS
    for client in CLIENTS:
        assert same(own[client], load_file(run / "model" / f"{client}.safetensors"))
        assert tuple(own[client]) == manifest_of(net, []).names()
    assert not same(own["0"], own["1"])
    assert source == f"{run}/model, to each client its own, of a {strategy} run of 2 rounds"


def test_what_the_server_holds_decides_and_not_the_name_of_the_method(left: Callable[..., Path]) -> None:
    run = left("fedper", "fedper-that-is-fedavg", **{"fedper.personal-layers": 0})
    assert same(start(run).common, load_file(run / "server.safetensors"))


def test_a_server_that_keeps_more_than_a_model_has_none_for_all(tmp_path: Path) -> None:
    run = put_run(tmp_path / "r", {**TENSORS, "momentum": torch.zeros(2)}, "other", CLIENTS)
    common, own, _ = start(run)
    assert common == {}
    assert all(same(own[client], TENSORS) for client in CLIENTS)


@pytest.mark.parametrize(("strategy", "length"), [("fedavg", "1 round"), ("local", "2 rounds")])
def test_the_model_of_one_client_is_for_all_when_its_file_is_named(
    left: Callable[..., Path], strategy: str, length: str
) -> None:
    file = left(strategy) / "model" / "2.safetensors"
    common, own, source = start(file)
    assert same(common, load_file(file))
    assert own == {}
    assert source == f"{file}, of a {strategy} run of {length}"


def test_the_file_of_the_server_is_what_its_directory_gives(left: Callable[..., Path]) -> None:
    run = left("fedavg")
    named, found = start(run / "server.safetensors"), start(run)
    assert same(named.common, found.common)
    assert named.source == found.source


def test_the_state_of_a_server_that_is_no_model_is_named_as_such(left: Callable[..., Path]) -> None:
    for strategy in ("fedper", "pfedla", "local"):
        file = left(strategy) / "server.safetensors"
        with pytest.raises(
            UserError, match=rf"/server.safetensors is what the server of a {strategy} run keeps, and no"
        ):
            start(file)


# ---- what is read --------------------------------------------------------------------------------------------------


def test_the_tensors_have_the_order_of_the_names_and_others_of_the_manifest_may_stay_away(tmp_path: Path) -> None:
    names = ("fc2.weight", "conv1.bias")  # as if all others belonged to a block of each client's own
    file = put(tmp_path / "a.safetensors", {name: None for name in TENSORS if name not in names})
    common = read_start(str(file), Manifest.of(DIGITS), names, "digits-cnn", CLIENTS).common
    assert tuple(common) == names
    assert same(common, {name: TENSORS[name] for name in names})


def test_counters_are_passed_over(tmp_path: Path) -> None:
    net = models.build("lenet-bn", (3, 32, 32), 10, 0)
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    assert state["bn1.num_batches_tracked"].dtype == torch.int64
    save_file(state, tmp_path / "a.safetensors", {"model": "lenet-bn"})
    common = start(tmp_path / "a.safetensors", net, "lenet-bn").common
    assert tuple(common) == Manifest.of(net).names()
    assert "bn1.running_var" in common


def test_a_file_that_says_nothing_of_itself_will_do_if_its_tensors_fit(tmp_path: Path) -> None:
    file = put(tmp_path / "a.safetensors", label={})
    common, own, source = start(file)
    assert same(common, TENSORS)
    assert (own, source) == ({}, str(file))


def test_what_was_read_does_not_change_with_the_file(tmp_path: Path) -> None:
    file = put(tmp_path / "a.safetensors")
    common = start(file).common
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(size // 2)
        opened.write(b"\1" * (size - size // 2))
    assert same(common, TENSORS)
    assert not same(start(file).common, TENSORS)


def test_a_tilde_is_the_home_directory_and_a_relative_path_starts_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert same(start("~/a.safetensors").common, TENSORS)
    monkeypatch.chdir(tmp_path)
    assert same(start("a.safetensors").common, TENSORS)


@pytest.mark.parametrize("summary", ["", "[1]", '{"strategy": "other", "num-rounds": 3}', None])
def test_without_its_summary_the_length_of_a_run_is_not_told(tmp_path: Path, summary: str | None) -> None:
    run = put_run(tmp_path / "r", TENSORS, "fedavg")
    assert start(run).source == f"{run}/server.safetensors, of a fedavg run of 7 rounds"
    (run / "summary.json").unlink()
    if summary is not None:
        (run / "summary.json").write_text(summary)
    assert start(run).source == f"{run}/server.safetensors, of a fedavg run"
