"""A client's personal state: memory, and the file behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.state import files as state_files
from fedham_flwr.state.store import ClientState, StateNotFoundError

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
    return tmp_path / "nodes" / "trial"


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
    with pytest.raises(
        UserError, match=r"client 7 in the node's memory .* another model \(fingerprint 0{12}, wanted f{12}\)"
    ):
        ClientState(memory, "7", PRINT).load()


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fresh().save(head(5), 1)
    assert not list(tmp_path.iterdir())


# ---- the file --------------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    """What lies in the folder, without locks."""
    return sorted(file.name for file in folder.iterdir() if not file.name.endswith(".lock"))


def test_a_new_process_reads_what_the_last_one_wrote(folder: Path) -> None:
    fresh(folder).save(head(5), 1)
    fresh(folder).save(head(6), 2)
    assert equal(fresh(folder).load(), head(6))
    assert names(folder) == ["7.safetensors"]


def test_what_was_read_is_remembered(folder: Path) -> None:
    fresh(folder).save(head(5), 1)
    memory = RecordDict()
    first = ClientState(memory, "7", PRINT, folder).load()
    (folder / "7.safetensors").unlink()
    assert equal(ClientState(memory, "7", PRINT, folder).load(), first)


def test_a_file_that_is_there_again_or_another_goes_before_the_memory(folder: Path) -> None:
    """An operator has put an earlier one back; or another process has written a later one."""
    memory = RecordDict()
    for number in (1, 2, 3):
        ClientState(memory, "7", PRINT, folder).save(head(number), number)
        (folder / f"backup-{number}").write_bytes((folder / "7.safetensors").read_bytes())
    for number in (1, 3, 2):
        (folder / f"backup-{number}").rename(folder / "7.safetensors")
        state = ClientState(memory, "7", PRINT, folder)
        assert equal(state.load(), head(number))
        assert state.round == number


def test_a_file_that_the_memory_knows_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = RecordDict()
    ClientState(memory, "7", PRINT, folder).save(head(5), 1)
    monkeypatch.setattr(state_files, "read", None)
    assert equal(ClientState(memory, "7", PRINT, folder).load(), head(5))


def test_the_file_is_looked_at_once(folder: Path) -> None:
    state = fresh(folder)
    state.save(head(5), 1)
    fresh(folder).save(head(6), 2)
    assert equal(state.load(), head(5))
    assert equal(fresh(folder).load(), head(6))


def test_the_round_is_that_of_the_state_that_was_loaded_first(folder: Path) -> None:
    fresh(folder).save(head(5), 4)
    state = fresh(folder)
    assert state.round is None
    state.load()
    state.save(head(6), 9)
    state.load()
    assert state.round == 4
    again = fresh(folder)
    again.load()
    assert again.round == 9


def test_clients_of_one_folder_do_not_meet(folder: Path) -> None:
    fresh(folder, "7").save(head(5), 1)
    fresh(folder, "7.b").save(head(6), 1)
    assert equal(fresh(folder, "7").load(), head(5))
    with pytest.raises(StateNotFoundError, match=r"client 8 has no personal state in .*8\.safetensors$") as raised:
        fresh(folder, "8").load()
    assert raised.value.ways == (
        'put the file back there, or let it start again from the first tensors with lost-state="restart"'
    )


def test_in_a_simulation_the_later_of_file_and_memory_wins(folder: Path) -> None:
    """A client that comes back to a machine where its older file lies goes on from what it brings along."""
    memory, file = RecordDict(), folder / "7.safetensors"

    def simulated() -> ClientState:
        return ClientState(memory, "7", PRINT, folder, durable=False, repeated=6)

    simulated().save(head(3), 3)
    older = file.read_bytes()
    simulated().save(head(5), 5)  # on another machine
    file.write_bytes(older)
    state = simulated()
    assert equal(state.load(), head(5))
    assert state.round == 5
    state.save(head(6), 6)
    assert equal(fresh(folder).load(), head(6))
