"""A client's personal state: memory, the folder behind it, and what is refused."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fedham_flwr import state as state_module
from fedham_flwr.errors import UserError
from fedham_flwr.parameters import Params
from fedham_flwr.state import ClientState, StateNotFoundError

PRINT = "f" * 64
OTHER = "0" * 64


def head(value: float) -> Params:
    return {"fc2.weight": torch.full((3, 2), value) / 3, "fc2.bias": torch.tensor([-0.0, 1e-45, value])}


def equal(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(a[name].numpy().tobytes() == b[name].numpy().tobytes() for name in a)


def fresh(folder: Path | None = None, client: str = "7", fingerprint: str = PRINT) -> ClientState:
    """The state in a process that remembers nothing."""
    return ClientState(RecordDict(), client, fingerprint, folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "nodes" / "run-1"


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_what_is_saved_in_memory_is_loaded_bit_for_bit() -> None:
    state = fresh()
    state.save(head(5), 1)
    assert equal(state.load(), head(5))


def test_the_memory_travels_through_flowers_serialisation() -> None:
    memory = RecordDict()
    ClientState(memory, "7", PRINT).save(head(5), 1)
    elsewhere = recorddict_from_proto(recorddict_to_proto(memory))
    assert equal(ClientState(elsewhere, "7", PRINT).load(), head(5))


def test_a_save_replaces_everything_saved_before() -> None:
    state = fresh()
    state.save(head(5), 1)
    state.save({"other": torch.ones(1)}, 2)
    assert equal(state.load(), {"other": torch.ones(1)})


def test_what_is_kept_does_not_follow_changes_of_what_was_saved_or_loaded() -> None:
    state, given = fresh(), head(5)
    state.save(given, 1)
    given["fc2.bias"].fill_(9)
    state.load()["fc2.weight"].fill_(9)
    assert equal(state.load(), head(5))


def test_nothing_saved_is_a_named_error() -> None:
    with pytest.raises(StateNotFoundError, match=r"^client 7 has no personal state$"):
        fresh().load()


def test_memory_of_another_model_is_refused() -> None:
    memory = RecordDict()
    ClientState(memory, "7", OTHER).save(head(5), 1)
    with pytest.raises(UserError, match=r"client 7 in the memory .* another model \(fingerprint 0{12}, wanted f{12}\)"):
        ClientState(memory, "7", PRINT).load()


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fresh().save(head(5), 1)
    assert not list(tmp_path.iterdir())


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_a_new_process_reads_what_the_last_one_wrote(folder: Path) -> None:
    fresh(folder).save(head(5), 1)
    fresh(folder).save(head(6), 2)
    assert equal(fresh(folder).load(), head(6))
    assert [file.name for file in folder.iterdir()] == ["7.safetensors"]


def test_what_was_read_is_remembered(folder: Path) -> None:
    fresh(folder).save(head(5), 1)
    state = fresh(folder)
    first = state.load()
    (folder / "7.safetensors").unlink()
    assert equal(state.load(), first)


def test_the_memory_goes_before_the_folder(folder: Path) -> None:
    state = fresh(folder)
    state.save(head(5), 1)
    fresh(folder).save(head(6), 2)
    assert equal(state.load(), head(5))


def test_only_the_owner_may_read_what_is_personal(folder: Path) -> None:
    fresh(folder).save(head(5), 1)
    assert stat.S_IMODE((folder / "7.safetensors").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_clients_of_one_folder_do_not_meet(folder: Path) -> None:
    fresh(folder, "7").save(head(5), 1)
    fresh(folder, "7.b").save(head(6), 1)
    assert equal(fresh(folder, "7").load(), head(5))
    with pytest.raises(StateNotFoundError, match=r"client 8 has no personal state in .*8\.safetensors"):
        fresh(folder, "8").load()


def test_a_file_of_another_model_is_refused(folder: Path) -> None:
    fresh(folder, fingerprint=OTHER).save(head(5), 1)
    with pytest.raises(UserError, match=r"7\.safetensors belongs to another model \(fingerprint 0{12}, wanted f{12}\)"):
        fresh(folder).load()


def test_a_refused_file_is_not_remembered(folder: Path) -> None:
    fresh(folder, fingerprint=OTHER).save(head(5), 1)
    memory = RecordDict()
    with pytest.raises(UserError, match="another model"):
        ClientState(memory, "7", PRINT, folder).load()
    assert not memory


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 100])
def test_a_corrupt_file_is_refused_by_its_name(folder: Path, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "7.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"personal state .*7\.safetensors of client 7 cannot be read"):
        fresh(folder).load()


def test_a_truncated_file_is_refused(folder: Path) -> None:
    fresh(folder).save(head(5), 1)
    file = folder / "7.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match="cannot be read"):
        fresh(folder).load()


def test_a_file_without_a_label_is_refused(folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file(head(5), folder / "7.safetensors")
    with pytest.raises(UserError, match="fingerprint missing"):
        fresh(folder).load()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match=r"personal state of client 7 cannot be written to .*file.*7\.safetensors"):
        fresh(blocked).save(head(5), 1)


# ---- a save that fails leaves what was there -------------------------------------------------------------------------


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def full_half_way(_tensors: object, file: Path, **_: object) -> None:
    file.write_bytes(b"half of the tensors")
    full()


@pytest.mark.parametrize(
    ("where", "name", "failure"),
    [
        (state_module, "save_file", full),
        (state_module, "save_file", full_half_way),
        (Path, "chmod", full),
        (Path, "replace", full),
    ],
)
def test_a_failing_save_leaves_the_old_state_and_no_remains(
    folder: Path, monkeypatch: pytest.MonkeyPatch, where: object, name: str, failure: Callable[..., None]
) -> None:
    state = fresh(folder)
    state.save(head(5), 1)
    old = (folder / "7.safetensors").read_bytes()
    with monkeypatch.context() as broken:
        broken.setattr(where, name, failure)
        with pytest.raises(UserError, match="No space left on device"):
            state.save(head(6), 2)
    assert [file.name for file in folder.iterdir()] == ["7.safetensors"]
    assert (folder / "7.safetensors").read_bytes() == old
    assert equal(state.load(), head(5))
    assert equal(fresh(folder).load(), head(5))


def test_a_first_save_that_fails_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = fresh(folder)
    monkeypatch.setattr(state_module, "save_file", full_half_way)
    with pytest.raises(UserError, match="No space left on device"):
        state.save(head(6), 2)
    assert not list(folder.iterdir())
    with pytest.raises(StateNotFoundError, match="no personal state"):
        state.load()
