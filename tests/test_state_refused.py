"""A client's personal state: files that are set aside, and saves that fail."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict
from test_state import OTHER, PRINT, equal, fresh, head, names

from fedham_flwr.core.errors import UserError
from fedham_flwr.state import files as state_files
from fedham_flwr.state.store import ClientState, StateNotFoundError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "nodes" / "trial"


# ---- what is set aside -----------------------------------------------------------------------------------------------


def test_a_file_that_is_set_aside_is_named_and_stays_as_it_was(folder: Path) -> None:
    folder.mkdir(parents=True)
    file = folder / "7.safetensors"
    for number in (1, 2, 3):
        file.write_bytes(b"x" * number)
        with pytest.raises(UserError) as raised:
            fresh(folder).load()
        assert str(raised.value) == (
            f"the personal state of client 7 in {file} is corrupt: it is no safetensors file; it has been set aside as "
            f"{folder}/7.safetensors.corrupt-{number}"
        )
        assert not isinstance(raised.value, StateNotFoundError)
    assert names(folder) == [f"7.safetensors.corrupt-{number}" for number in (1, 2, 3)]
    assert [(folder / name).read_bytes() for name in names(folder)] == [b"x", b"xx", b"xxx"]


def test_after_that_nothing_is_found_and_the_way_back_is_said(folder: Path) -> None:
    fresh(folder).save(head(5), 1)
    file, other = folder / "7.safetensors", folder / "7.safetensors.corrupt-1"
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    state = fresh(folder)
    with pytest.raises(UserError, match="set aside"):
        state.load()
    assert fresh(folder).was_set_aside()
    assert not fresh(folder, "8").was_set_aside()
    with pytest.raises(StateNotFoundError) as raised:
        fresh(folder).load()
    assert raised.value.ways == (
        f"put a good copy back there (what was set aside is {other}), or let it start again from the first tensors "
        'with lost-state="restart"'
    )
    file.write_bytes(good)
    assert equal(fresh(folder).load(), head(5))


def test_a_refused_file_is_not_remembered_and_not_replaced(folder: Path) -> None:
    """Nor by a client that never looked at it before it saved."""
    fresh(folder, fingerprint=OTHER).save(head(5), 1)
    bytes_then = (folder / "7.safetensors").read_bytes()
    memory = RecordDict()
    with pytest.raises(
        UserError, match=r"belongs to another model \(fingerprint 0{12}, wanted f{12}\); it has been set"
    ):
        ClientState(memory, "7", PRINT, folder).save(head(6), 2)
    assert not memory
    assert names(folder) == ["7.safetensors.other-model-1"]
    assert (folder / "7.safetensors.other-model-1").read_bytes() == bytes_then
    assert not fresh(folder).was_set_aside()  # it was never this client's


def of(client: str = "7", training: str = "t", method: str = "fedper") -> Callable[[RecordDict, Path], ClientState]:
    return lambda memory, folder: ClientState(memory, client, PRINT, folder, training=training, method=method)


@pytest.mark.parametrize(
    ("other", "why", "text"),
    [
        (of(client="8"), "client", "belongs to client '8', wanted '7'"),
        (of(training="u"), "training", "belongs to training 'u', wanted 't'"),
        (of(method="local"), "method", "belongs to strategy 'local', wanted 'fedper'"),
    ],
)
def test_a_file_of_something_else_is_set_aside(
    folder: Path, other: Callable[[RecordDict, Path], ClientState], why: str, text: str
) -> None:
    other(RecordDict(), folder).save(head(5), 1)
    next(folder.glob("[0-9].safetensors")).rename(folder / "7.safetensors")
    with pytest.raises(UserError, match=rf"{text}; it has been set aside as .*7\.safetensors\.other-{why}-1$"):
        of()(RecordDict(), folder).load()


def test_memory_of_something_else_is_refused_where_it_is() -> None:
    memory = RecordDict()
    ClientState(memory, "7", PRINT, method="local").save(head(5), 1)
    with pytest.raises(UserError, match="in the node's memory belongs to strategy 'local', wanted 'fedper'"):
        ClientState(memory, "7", PRINT, method="fedper").load()


def test_a_file_of_the_time_before_there_were_labels_is_set_aside(folder: Path) -> None:
    from safetensors.torch import save_file

    for label in (None, {"fingerprint": PRINT, "client": "7", "round": "3"}):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(head(5), folder / "7.safetensors", label)
        with pytest.raises(UserError, match=r"header has no schema; it has been set aside as .*safetensors\.older-\d$"):
            fresh(folder).load()
    assert names(folder) == ["7.safetensors.older-1", "7.safetensors.older-2"]
    assert fresh(folder).was_set_aside()


def test_a_file_that_cannot_be_set_aside_is_said_to_lie_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    (folder / "7.safetensors").write_bytes(b"rubbish")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "somewhere")

    monkeypatch.setattr(Path, "rename", refuse)
    state = fresh(folder)
    for attempt in (state.load, lambda: state.save(head(5), 1)):
        with pytest.raises(UserError, match=r"no safetensors file; it could not be set aside: Permission denied$"):
            attempt()
    assert (folder / "7.safetensors").read_bytes() == b"rubbish"


def test_a_file_that_cannot_be_opened_is_no_reason_to_rename_it(folder: Path) -> None:
    (folder / "7.safetensors").mkdir(parents=True)
    with pytest.raises(UserError, match=r"personal state .*7\.safetensors of client 7 cannot be read: Is a directory$"):
        fresh(folder).load()
    assert names(folder) == ["7.safetensors"]


def test_a_file_that_became_good_in_the_meantime_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh(folder).save(head(5), 1)
    good = (folder / "7.safetensors").read_bytes()
    (folder / "7.safetensors").write_bytes(b"rubbish")
    lock = state_files.locked

    def meanwhile(file: Path) -> AbstractContextManager[None]:
        file.write_bytes(good)
        return lock(file)

    monkeypatch.setattr(state_files, "locked", meanwhile)
    with pytest.raises(UserError, match="another process has meanwhile put a good one there"):
        fresh(folder).load()
    assert equal(fresh(folder).load(), head(5))


# ---- a save that fails -----------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for act in (lambda state: state.load(), lambda state: state.save(head(5), 1)):
        with pytest.raises(
            UserError, match=r"state .*file/7\.safetensors of client 7 cannot be read: Not a directory$"
        ):
            act(fresh(tmp_path / "file"))


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["mkdir", "open", "fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_state_and_can_be_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    memory = RecordDict()
    state = ClientState(memory, "7", PRINT, folder)
    if name != "mkdir":
        state.save(head(5), 1)
    before = {file.name: file.read_bytes() for file in folder.iterdir()} if folder.exists() else {}
    with monkeypatch.context() as broken:
        broken.setattr(*{"mkdir": (Path, name), "replace": (Path, name)}.get(name, (os, name)), full)
        with pytest.raises(UserError) as raised:
            state.save(head(6), 2)
    assert str(raised.value) == (
        f"the personal state of client 7 cannot be written to {folder}/7.safetensors: No space left on device"
    )
    assert ({file.name: file.read_bytes() for file in folder.iterdir()} if folder.exists() else {}) == before
    if before:
        assert equal(state.load(), head(5))
        assert equal(fresh(folder).load(), head(5))
    else:
        assert not memory
    state.save(head(6), 2)
    assert equal(fresh(folder).load(), head(6))
    assert equal(ClientState(memory, "7", PRINT).load(), head(6))


def test_a_write_that_ends_half_way_leaves_the_old_state(folder: Path) -> None:
    """A real one: the process may write no file longer than the limit."""
    state = fresh(folder)
    state.save(head(5), 1)
    before = (folder / "7.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written to .*7\.safetensors: File too large$"):
            state.save({"fc2.weight": torch.ones(1000)}, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(folder) == ["7.safetensors"]
    assert (folder / "7.safetensors").read_bytes() == before
    assert equal(state.load(), head(5))


def test_a_full_disk_is_named_and_costs_nothing(tmp_path: Path) -> None:
    """A real one, where a file system may be mounted."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        state = fresh(tmp_path)
        state.save(head(5), 1)
        with pytest.raises(UserError, match=r"cannot be written to .*7\.safetensors: No space left on device$"):
            state.save({"fc2.weight": torch.ones(50_000)}, 2)
        assert names(tmp_path) == ["7.safetensors"]
        assert equal(fresh(tmp_path).load(), head(5))
        assert equal(state.load(), head(5))
        state.save(head(6), 2)
        assert equal(fresh(tmp_path).load(), head(6))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
