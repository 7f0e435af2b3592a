"""Checkpoints and the final state do not write twice what has not changed, and a file is whole or not there."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedham_flwr.core import files
from fedham_flwr.core.files import holds, write_tensors
from fedham_flwr.resume import checkpoints
from fedham_flwr.resume.checkpoints import CLIENTS, Checkpoint

Federate = Callable[..., Any]
LABEL = {"strategy": "pfedla", "model": "digits-cnn"}
STATE = {"bank/fc": torch.arange(3000.0).view(3, 1000), "ready": torch.tensor([True, False, True])}

pytestmark = pytest.mark.usefixtures("no_pictures")


def at(number: int) -> Checkpoint:
    return Checkpoint(number, "t", "pfedla", "digits-cnn", ("a", "b"), ("a",), (), (), 9)


def put_client(run: Path, client: str, value: float) -> None:
    (run / "clients").mkdir(exist_ok=True)
    write_tensors(run / "clients" / f"{client}.safetensors", {"w": torch.tensor(value)}, {})


def save(run: Path, number: int, state: Mapping[str, Tensor]) -> Path:
    return checkpoints.save(run, at(number), state, run / "clients")


# ---- files ----------------------------------------------------------------------------------------------------------


def test_a_file_is_that_of_safetensors_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = {
        'b/weights of "Zürich"': torch.randn(7, 5, generator=draw),
        "a": torch.randn(3, dtype=torch.float64, generator=draw),
        "half": torch.randn(3, generator=draw).bfloat16(),
        "places": torch.arange(5),
        "clients": torch.arange(9, dtype=torch.uint8),
        "ready": torch.tensor([True, False]),
        "nothing": torch.empty(0, 3),
        "number": torch.tensor(2.5),
    }
    monkeypatch.setattr(files, "CHUNK", 16)
    for metadata in ({}, {"strategy": "fedper"}):
        for names in (tensors, ['b/weights of "Zürich"', "number"], ["a"], []):
            some = {name: tensors[name] for name in names}
            save_file(some, tmp_path / "theirs", metadata or None)
            write_tensors(tmp_path / "ours", some, metadata)
            # Of types of one width theirs has an order of its own.
            if len({t.dtype for t in some.values()}) < 2:
                assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
            read, wanted = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
            assert read.keys() == wanted.keys() == some.keys()
            assert all(torch.equal(read[n], some[n]) and read[n].dtype == some[n].dtype for n in some)
            assert holds(tmp_path / "ours", some, metadata)


@given(change=st.sampled_from(["value", "shape", "name", "dtype", "label", "longer", "cut", "gone", "nothing"]))
def test_a_file_holds_what_was_written_and_nothing_else(tmp_path_factory: pytest.TempPathFactory, change: str) -> None:
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    write_tensors(path, STATE, LABEL)
    state, label, content = dict(STATE), dict(LABEL), path.read_bytes()
    if change == "value":
        state["bank/fc"] = STATE["bank/fc"].clone()
        state["bank/fc"][2, 999] += 1
    elif change == "shape":
        state["bank/fc"] = STATE["bank/fc"].view(1000, 3)
    elif change == "name":
        state["learned"] = state.pop("ready")
    elif change == "dtype":
        state["bank/fc"] = STATE["bank/fc"].view(torch.int32)
    elif change == "label":
        label["model"] = "cnn"
    elif change == "longer":
        path.write_bytes(content + b" ")
    elif change == "cut":
        path.write_bytes(content[:-1])
    elif change == "gone":
        path.unlink()
    assert holds(path, state, label) == (change == "nothing")


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def test_the_state_at_the_end_is_the_file_of_the_last_checkpoint(federate: Federate) -> None:
    for strategy in ("pfedla", "fedavg", "amn"):
        run = federate(strategy=strategy, samples_per_client=64)
        (last,) = (run.path / "checkpoints").iterdir()
        assert (run.path / "server.safetensors").samefile(last / "server.safetensors")
        assert checkpoints.read(last).round == 2


def test_a_state_that_changed_after_the_last_checkpoint_is_a_file_of_its_own(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, STATE)
    other = {**STATE, "ready": torch.tensor([True, True, True])}
    path = checkpoints.write_state(tmp_path / "server.safetensors", other, LABEL, tmp_path)
    assert not path.samefile(folder / "server.safetensors")
    assert torch.equal(load_file(path)["ready"], other["ready"])
    checkpoints.read(folder)
    again = checkpoints.write_state(path, STATE, LABEL, tmp_path)  # over the one that was there
    assert again.samefile(folder / "server.safetensors")


@pytest.mark.parametrize("links", [True, False], ids=["links", "copies"])
def test_what_did_not_change_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    looked_at: list[str] = []
    digest = checkpoints._digest
    monkeypatch.setattr(checkpoints, "_digest", lambda file: looked_at.append(file.name) or digest(file))
    for client in "abc":
        put_client(tmp_path, client, 1.0)
    one = save(tmp_path, 1, STATE)
    assert sorted(looked_at) == ["a.safetensors", "b.safetensors", "c.safetensors", "server.safetensors"]
    looked_at.clear()
    put_client(tmp_path, "b", 2.0)
    two = save(tmp_path, 2, STATE)
    assert looked_at == (["b.safetensors"] if links else ["server.safetensors", *(f"{c}.safetensors" for c in "abc")])
    for name in ("server.safetensors", *(f"clients/{client}.safetensors" for client in "abc")):
        same = links and name != "clients/b.safetensors"
        assert (one / name).samefile(two / name) == same
    monkeypatch.setattr(checkpoints, "_digest", digest)
    assert (checkpoints.read(one).round, checkpoints.read(two).round) == (1, 2)
    assert [load_file(f / CLIENTS / "b.safetensors")["w"].item() for f in (one, two)] == [1.0, 2.0]
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in checkpoints.read_state(two).items())


def test_without_hard_links_a_run_ends_and_goes_on_as_with_them(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    linked = federate(strategy="pfedla", samples_per_client=64)
    monkeypatch.setattr(os, "link", refuse)
    copied = federate(strategy="pfedla", samples_per_client=64)
    assert copied.summary["digest"] == linked.summary["digest"]
    (last,) = (copied.path / "checkpoints").iterdir()
    assert not (copied.path / "server.safetensors").samefile(last / "server.safetensors")
    assert (copied.path / "server.safetensors").read_bytes() == (last / "server.safetensors").read_bytes()


def test_a_file_that_was_damaged_is_not_named_as_good(tmp_path: Path) -> None:
    put_client(tmp_path, "a", 1.0)
    one = save(tmp_path, 1, STATE)
    file = one / "server.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    two = save(tmp_path, 2, STATE)
    assert not (two / "server.safetensors").samefile(file)
    assert checkpoints.read(two).round == 2
    client = two / CLIENTS / "a.safetensors"  # one file with that of the first checkpoint and the client's own
    client.write_bytes(b"\0" + client.read_bytes()[1:])
    three = save(tmp_path, 3, STATE)
    with pytest.raises(ValueError, match=r"clients/a.safetensors is not what was written"):
        checkpoints.read(three)


def test_a_checkpoint_of_before_is_still_read(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "round-00004"
    (folder / CLIENTS).mkdir(parents=True)
    save_file(STATE, folder / "server.safetensors", LABEL)
    save_file({"w": torch.tensor(1.0)}, folder / CLIENTS / "a.safetensors")
    names = ("server.safetensors", "clients/a.safetensors")
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    meta = {"schema": 1, **asdict(at(4)), "files": digests}
    (folder / "checkpoint.json").write_text(json.dumps(meta, indent=2))
    assert checkpoints.newest(tmp_path) == (at(4), folder)
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in checkpoints.read_state(folder).items())
    put_client(tmp_path, "a", 2.0)
    save(tmp_path, 5, {**STATE, "ready": ~STATE["ready"]})  # and one of today beside it
    assert checkpoints.newest(tmp_path)[0].round == 5


def test_a_large_state_that_was_read_outlives_its_file_and_never_changes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "IN_FILE", 1000)
    (tmp_path / "clients").mkdir()
    folder = save(tmp_path, 1, STATE)
    before = (folder / "server.safetensors").read_bytes()
    state = checkpoints.read_state(folder)
    state["bank/fc"][0] = -1.0
    assert (folder / "server.safetensors").read_bytes() == before
    for number in (2, 3):
        save(tmp_path, number, {})
    assert not folder.exists()
    assert state["bank/fc"][0].eq(-1).all()
    assert torch.equal(state["bank/fc"][1:], STATE["bank/fc"][1:])


def test_on_a_full_disk_what_was_there_before_stays(tmp_path: Path) -> None:
    """The system refuses to let a file grow beyond 8 KiB, as it would on a full disk."""
    (tmp_path / "clients").mkdir()
    folder = save(tmp_path, 1, STATE)
    path = checkpoints.write_state(tmp_path / "server.safetensors", STATE, LABEL, tmp_path)
    before = path.read_bytes()

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        other = {**STATE, "bank/fc": -STATE["bank/fc"]}
        for attempt in (
            lambda: save(tmp_path, 2, other),
            lambda: checkpoints.write_state(path, other, LABEL, tmp_path),
        ):
            with pytest.raises(OSError, match="File too large"):
                attempt()

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert path.read_bytes() == before
    assert checkpoints.newest(tmp_path) == (at(1), folder)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoints", "clients", "server.safetensors"]
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["round-00001"]
