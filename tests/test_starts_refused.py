"""What a personal stage cannot start from, each with its sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save
from saved import CLIENTS, TENSORS, put, put_run, same, start
from torch import Tensor

from fedham_flwr import models
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.resume.warm_start import read_start


def refusal(path: Path | str, **settings: object) -> str:
    """The sentence with which a start from there is refused."""
    with pytest.raises(UserError) as caught:
        start(path, **settings)  # type: ignore[arg-type]
    return str(caught.value)


WANTED = "wanted the directory of a run, results/<strategy>/<time>-<seed>, or the file of one model, " \
    "model/<client>.safetensors"  # fmt: skip


def test_a_path_that_is_not_there_is_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal("a/b") == f"resume=a/b: there is nothing at {tmp_path / 'a' / 'b'}; {WANTED}"
    assert (
        refusal("~nobody-of-this-name/b")
        == f"resume=~nobody-of-this-name/b: there is nothing at {tmp_path}/~nobody-of-this-name/b; {WANTED}"
    )


@pytest.mark.parametrize("path", ["a\0b", "x" * 300 + ".safetensors"])
def test_a_path_that_cannot_be_is_not_there_either(path: str) -> None:
    with pytest.raises(UserError, match="there is nothing at"):
        start(path)


def test_a_folder_of_runs_is_answered_with_the_newest_that_came_to_its_end(tmp_path: Path) -> None:
    results = tmp_path / "results"
    (results / "fedavg").mkdir(parents=True)
    text = "resume={} is not the directory of a run{}; " + WANTED
    none = ", and no run below it has come to its end"
    assert refusal(results) == text.format(results, none)
    failed = put_run(results / "fedavg" / "20261123T000000Z-0", TENSORS, "fedavg")
    (failed / "summary.json").write_text('{"strategy": "fedavg", "error": "UserError: no"}')
    assert refusal(results) == text.format(results, none)
    put_run(results / "fedavg" / "20261121T000000Z-5", TENSORS, "fedavg")
    newest = put_run(results / "fedavg" / "20261122T000000Z-0", TENSORS, "fedavg")
    put_run(results / "local" / "20261121T235959Z-9", {}, "local", CLIENTS)
    for folder in (results, results / "fedavg"):
        assert refusal(folder) == text.format(folder, f" (the newest below it is {newest})")


def test_of_a_method_that_starts_from_its_own_runs_alone_the_newest_of_these_is_named(tmp_path: Path) -> None:
    """A user's own method is named by its import path in what a run leaves."""
    run = put_run(tmp_path / "babu" / "20261121T000000Z-0", TENSORS, "package.module:Babu")
    put_run(tmp_path / "fedavg" / "20261122T000000Z-0", TENSORS, "fedavg")
    assert refusal(tmp_path, only="babu") == (
        f"resume={tmp_path} is not the directory of a run (the newest below it is {run}); wanted the directory of a "
        "babu run, results/babu/<time>-<seed>, or its server.safetensors"
    )


def test_a_part_of_a_run_is_answered_with_the_run(tmp_path: Path) -> None:
    run = put_run(tmp_path / "r", TENSORS, "fedavg", CLIENTS)
    assert refusal(run / "model") == f"resume={run}/model is not the directory of a run but a part of {run}; {WANTED}"


def test_a_run_that_ended_before_the_clients_came_is_refused(tmp_path: Path) -> None:
    run = put_run(tmp_path / "r", {}, "fedavg")
    (run / "server.safetensors").unlink()
    assert (
        refusal(run)
        == f"resume={run} is of a run that left no server.safetensors, since it ended too early: wanted one that did"
    )


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(save(TENSORS))
    assert refusal(tmp_path / "model.pt") == f"resume={tmp_path}/model.pt is no .safetensors file; {WANTED}"


def test_clients_without_a_model_are_named_and_the_way_out(tmp_path: Path) -> None:
    run = put_run(tmp_path / "r", {}, "local", CLIENTS)
    text = (
        f"resume={run}: the server of that run keeps no model like this run's, and model/ has none of clients %s; "
        "wanted one of each client, or resume= one file model/<client>.safetensors, from which all clients then start"
    )
    assert refusal(run, clients=("0", "4", "1", "a")) == text % "4, a"
    assert refusal(run, clients=tuple(map(str, range(11)))) == text % "4, 5, 6, 7, 8 and 2 more"


def test_another_network_is_named_with_the_setting_that_builds_it(tmp_path: Path) -> None:
    lenet = {"model": "lenet", "strategy": "fedavg"}
    text = 'resume={} holds a lenet, and this run builds a digits-cnn: set model="lenet"'
    file = put(tmp_path / "a.safetensors", label=lenet)
    assert refusal(file) == text.format(file)
    run = put_run(tmp_path / "r", TENSORS, "local", CLIENTS)
    put(run / "server.safetensors", label=lenet)
    assert refusal(run) == text.format(f"{run}: server.safetensors")
    for tensors in ({}, dict.fromkeys(TENSORS)):  # whether or not the server has a whole model
        put(run / "server.safetensors", tensors, label=lenet)
        assert refusal(run) == text.format(f"{run}: server.safetensors")
    put(run / "server.safetensors", {"fc2.bias": None}, label={"model": "digits-cnn"})
    put(run / "model" / "3.safetensors", label=lenet)
    assert refusal(run) == text.format(f"{run}: model/3.safetensors")


@pytest.mark.parametrize("change", [{"fc2.bias": None}, {"bank/fc2": torch.zeros(4, 650)}])
def test_the_state_of_a_server_that_is_no_whole_model_is_named_as_such(
    tmp_path: Path, change: dict[str, Tensor | None]
) -> None:
    file = put(tmp_path / "a.safetensors", change, {"model": "digits-cnn", "strategy": "fedper"})
    assert refusal(file) == (
        f"resume={file} is what the server of a fedper run keeps, and no whole model like this run's: wanted the "
        "directory of that run, or one file model/<client>.safetensors in it"
    )


def test_tensors_that_the_model_does_not_share_are_named(tmp_path: Path) -> None:
    block = {f"cbam.{name}": torch.zeros(2) for name in "abcdefg"}
    file = put(tmp_path / "a.safetensors", block)
    assert refusal(file) == (
        f"resume={file} holds tensors that the model of this run does not share, cbam.a, cbam.b, cbam.c, cbam.d, "
        "cbam.e and 2 more: wanted the server.safetensors of a run that averages whole models, or a model without such "
        "a block"
    )


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    file = put(tmp_path / "a.safetensors", {"fc2.bias": None, "conv1.bias": None})
    text = f"resume={file} lacks conv1.bias, fc2.bias: wanted all shared tensors of the digits-cnn of this run"
    assert refusal(file) == text


@pytest.mark.parametrize(
    ("name", "tensor", "fault"),
    [
        (
            "fc2.bias",
            torch.zeros(3),
            "has shape (3,), wanted (10,), as if for other classes or samples of another size",
        ),
        ("fc2.bias", torch.zeros(10).double(), "has dtype torch.float64, wanted torch.float32"),
        ("fc2.bias", torch.zeros(10, dtype=torch.int64), "has dtype torch.int64, wanted torch.float32"),
        ("fc2.bias", torch.tensor([float("nan")] * 10), "holds NaN or infinity"),
        ("fc1.bias", torch.tensor([float("-inf")] * 64), "holds NaN or infinity"),
    ],
)
def test_tensors_that_do_not_fit_are_named_with_what_was_wanted(
    tmp_path: Path, name: str, tensor: Tensor, fault: str
) -> None:
    file = put(tmp_path / "a.safetensors", {name: tensor})
    assert refusal(file) == f"resume={file} does not fit the digits-cnn of this run: {name} {fault}"
    run = put_run(tmp_path / "r", {}, "local", CLIENTS)
    put(run / "model" / "1.safetensors", {name: tensor})
    assert refusal(run) == f"resume={run}: model/1.safetensors does not fit the digits-cnn of this run: {name} {fault}"


def test_a_model_for_other_classes_or_images_is_refused(tmp_path: Path) -> None:
    file = put(tmp_path / "a.safetensors")
    for net, name in (
        (models.build("digits-cnn", (1, 8, 8), 7, 0), r"fc2.weight has shape \(10, 64\), wanted \(7, 64\)"),
        (
            models.build("digits-cnn", (3, 8, 8), 10, 0),
            r"conv1.weight has shape \(16, 1, 3, 3\), wanted \(16, 3, 3, 3\)",
        ),
        (models.build("digits-cnn", (1, 12, 12), 10, 0), r"fc1.weight has shape \(64, 128\), wanted \(64, 288\)"),
    ):
        with pytest.raises(UserError, match=rf"digits-cnn of this run: {name}, as if for other classes or samples"):
            start(file, net)


# ---- broken files --------------------------------------------------------------------------------------------------

GOOD = save({"w": torch.ones(2), "n": torch.tensor(1)}, {"model": "tiny", "strategy": "x", "client": "0"})


def start_of_bytes(folder: Path, content: bytes) -> Mapping[str, Tensor]:
    (folder / "a.safetensors").write_bytes(content)
    manifest = Manifest((), {"w": (2,)}, {"w": torch.float32})
    return read_start(str(folder / "a.safetensors"), manifest, ("w",), "tiny", ()).common


BROKEN = {
    "empty": b"",
    "zip": b"PK\x03\x04",
    "ones": b"\xff" * 50,
    "cut": GOOD[:-1],
    "long": GOOD + b"\0",
    "head": GOOD[:40],
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    assert same(start_of_bytes(tmp_path, GOOD), {"w": torch.ones(2)})
    why = r"cannot be read as a model \(.+\); wanted a safetensors file that a run left"
    with pytest.raises(UserError, match=f"^resume={tmp_path}/a.safetensors {why}$"):
        start_of_bytes(tmp_path, content)


@given(damage=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=3))
@example(damage=[])
@example(damage=[(len(GOOD) - 1, 0x7F), (len(GOOD) - 2, 0xC0)])  # a NaN
def test_damage_to_a_file_is_refused_or_leaves_finite_tensors(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]]
) -> None:
    content = bytearray(GOOD)
    for place, byte in damage:
        content[place] = byte
    with contextlib.suppress(UserError):
        common = start_of_bytes(tmp_path_factory.getbasetemp(), bytes(content))
        assert tuple(common) == ("w",)
        assert common["w"].shape == (2,)
        assert common["w"].isfinite().all()
