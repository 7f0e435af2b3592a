"""The files of personal states: any change is noticed, nobody else may read them, and a kill leaves a whole one."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import re
import signal
import stat
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st
from test_state import PRINT, equal, fresh, head, names

from fedham_flwr import __version__
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.state import files as state_files
from fedham_flwr.state.format import Label, UnfitError, header, seal, unseal
from fedham_flwr.state.store import ClientState, StateNotFoundError

LABEL = Label("7", "trial", "fedper", PRINT, 12)
WHOLE, SEALED = seal(
    {**head(5), "empty": torch.zeros(0, 3), "steps": torch.tensor(4), "seen": torch.ones(2).bool()}, LABEL
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "nodes" / "trial"


# ---- any change is noticed -------------------------------------------------------------------------------------------


def test_a_state_comes_back_bit_for_bit_with_its_label() -> None:
    tensors, label = unseal(WHOLE)
    assert label == SEALED == LABEL._replace(checksum=SEALED.checksum)
    assert re.fullmatch("[0-9a-f]{64}", label.checksum)
    assert equal({name: tensors[name] for name in head(5)}, head(5))
    assert tensors["empty"].shape == (0, 3)
    assert tensors["steps"].dtype == torch.int64
    assert tensors["seen"].tolist() == [True, True]


def test_the_header_says_what_the_file_is() -> None:
    assert header(WHOLE) == {
        "schema": "1", "version": __version__, "client": "7", "training": "trial", "method": "fedper",
        "fingerprint": PRINT, "round": "12", "checksum": SEALED.checksum,
    }  # fmt: skip


DAMAGED = {"corrupt", "older", "newer"}
"""What can be said of a file whose bytes were changed: a change of the schema looks like another version's file."""


def refused(raw: bytes) -> UnfitError:
    with pytest.raises(UnfitError) as raised:
        unseal(raw)
    return raised.value


def test_every_truncation_is_noticed() -> None:
    for length in range(len(WHOLE)):
        assert refused(WHOLE[:length]).why == "corrupt"


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF])
def test_every_flipped_byte_is_noticed(flip: int) -> None:
    for at in range(len(WHOLE)):
        assert refused(WHOLE[:at] + bytes([WHOLE[at] ^ flip]) + WHOLE[at + 1 :]).why in DAMAGED


@given(st.integers(0, len(WHOLE)), st.integers(0, 8), st.binary(max_size=8))
def test_every_other_change_is_noticed(at: int, removed: int, put: bytes) -> None:
    """Bytes are replaced, put in, or taken out: also a blank by another blank, which means the same to a parser."""
    changed = WHOLE[:at] + put + WHOLE[at + removed :]
    if changed != WHOLE:
        assert refused(changed).why in DAMAGED


@given(st.binary(max_size=200))
def test_no_bytes_are_taken_for_a_state_or_end_in_another_error(raw: bytes) -> None:
    length = len(raw).to_bytes(8, "little")
    for content in (raw, length + raw, length + raw + WHOLE):
        assert refused(content).why in DAMAGED


@pytest.mark.parametrize(
    "text",
    ["[" * 20_000, "[]", "null", '{"__metadata__": 3}', '{"__metadata__": {"schema": 1}}', '{"__metadata__": null}'],
)
def test_a_header_that_is_something_else_is_corrupt(text: str) -> None:
    assert refused(len(text).to_bytes(8, "little") + text.encode()).why == "corrupt"


def test_a_file_of_a_later_version_says_which() -> None:
    later = WHOLE.replace(b'"schema":"1"', b'"schema":"2"').replace(__version__.encode(), b"9.8.7", 1)
    error = refused(later)
    assert error.why == "newer"
    assert str(error) == "is of fedham-flwr 9.8.7: its schema is 2, wanted 1"


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_client_whose_file_has_changed_loads_nothing_and_sets_it_aside(at: int, flip: int) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder, changed = Path(made), bytearray(WHOLE)
        changed[at] ^= flip
        (folder / "7.safetensors").write_bytes(changed)
        memory = RecordDict()
        state = ClientState(memory, "7", PRINT, folder, method="fedper", training="trial")
        with pytest.raises(UserError, match="it has been set aside as"):
            state.load()
        assert not memory
        (left,) = names(folder)
        assert left.startswith("7.safetensors.")
        assert (folder / left).read_bytes() == changed


# ---- for its owner alone ---------------------------------------------------------------------------------------------


def test_only_the_owner_may_read_what_is_personal_from_the_first_moment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes, fdopen = [], os.fdopen

    def looking(handle: int, *args: Any) -> Any:
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
        return fdopen(handle, *args)

    monkeypatch.setattr(os, "fdopen", looking)
    before = os.umask(0)
    try:
        fresh(folder).save(head(5), 1)
        fresh(folder).save(head(6), 2)
    finally:
        os.umask(before)
    assert modes == [0o600, 0o600]
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert [stat.S_IMODE(made.stat().st_mode) for made in (folder, folder.parent)] == [0o700, 0o700]


def test_a_folder_that_is_there_is_left_as_it_is(folder: Path) -> None:
    folder.mkdir(parents=True, mode=0o750)
    fresh(folder).save(head(5), 1)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


# ---- what a crash leaves ---------------------------------------------------------------------------------------------


def test_what_was_saved_is_on_the_disk_before_its_name_is_and_the_name_after(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def renamed(part: Path, file: Path) -> Path:
        done.append("rename")
        return replace(part, file)

    folder.mkdir(parents=True)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    fresh(folder).save(head(5), 1)
    assert done == ["file", "rename", "folder"]
    done.clear()
    ClientState(RecordDict(), "7", PRINT, folder, durable=False).save(head(6), 2)
    assert done == ["rename"]
    assert equal(fresh(folder).load(), head(6))


def test_a_file_system_that_cannot_sync_names_is_used_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_files(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", only_files)
    error = 22
    fresh(folder).save(head(5), 1)
    assert equal(fresh(folder).load(), head(5))
    error = 5
    with pytest.raises(UserError, match=r"cannot be written to .*7\.safetensors: Input/output error$"):
        fresh(folder).save(head(6), 2)


def test_what_a_killed_process_had_begun_is_removed_and_nobody_elses(folder: Path) -> None:
    folder.mkdir(parents=True)
    others = [".7.b.safetensors.12-0123abcd.part", ".77.safetensors.12-0123abcd.part", ".7.safetensors.part", "7.part"]
    for name in (".7.safetensors.12-0123abcd.part", ".7.safetensors.99999-ffffffff.part", *others):
        (folder / name).write_bytes(b"half of the ten")
    fresh(folder).save(head(5), 1)
    assert names(folder) == sorted([*others, "7.safetensors"])


def in_a_process(work: Callable[[], None], seconds: float | None = None) -> int | None:
    """Do the work in a forked process, which is killed after so many seconds; its exit code."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


def numbered(number: int) -> Params:
    return {name: torch.full((20_000,), float(number)) for name in "abc"}


def last(folder: Path) -> int:
    """The round of the state that is there, 0 for none; all of it is of that round."""
    state = fresh(folder)
    try:
        kept = state.load()
    except StateNotFoundError:
        return 0
    assert equal(kept, numbered(state.round or -1))
    return int(state.round or -1)


def test_a_process_that_is_killed_leaves_the_last_state_or_the_one_before(folder: Path, tmp_path: Path) -> None:
    """At random moments; one that said that it had saved has saved."""

    def save_for_ever() -> None:
        for number in itertools.count(last(folder)):
            if number:
                fresh(folder).save(numbered(number), number)
                (tmp_path / "said").write_text(str(number))

    draw, kills = random.Random(0), 0
    (tmp_path / "said").write_text("0")
    while kills < 15 or last(folder) < 15:
        # Longer and longer, for a machine that is busy with something else.
        assert in_a_process(save_for_ever, draw.uniform(0.002, 0.05 + kills / 100)) == -signal.SIGKILL
        kills += 1
        said = int((tmp_path / "said").read_text() or 0)  # of a process that was killed as it said it: nothing
        assert last(folder) - said in ((0, 1) if said else range(1000))
        assert kills < 200, "it gets nowhere"
    fresh(folder).save(head(5), 1000)
    assert names(folder) == ["7.safetensors"]


@pytest.mark.parametrize("function", ["open", "fsync", "rename", "replace", "write", "unlink", "mkdir", "close"])
def test_a_process_that_is_killed_at_any_step_leaves_a_whole_state(folder: Path, function: str) -> None:
    """Before the n-th call of each function that may change the disk, for all n."""

    def save(number: int, calls: int) -> None:
        real, counted = getattr(os, function), itertools.count(1)

        def step(*given: Any, **named: Any) -> Any:
            if next(counted) == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)

        setattr(os, function, step)  # of this process, which ends with it
        fresh(folder).save(numbered(number), number)
        setattr(os, function, real)

    for number in range(1, 20):
        code = in_a_process(partial(save, number, number))
        assert last(folder) in (number - 1, number)
        fresh(folder).save(numbered(number), number)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert code == 0, "it is called without end"
    assert names(folder) == ["7.safetensors"]


# ---- two processes of one client -------------------------------------------------------------------------------------


def test_a_process_that_began_earlier_does_not_replace_a_later_round(folder: Path) -> None:
    fresh(folder).save(head(4), 4)
    old = fresh(folder)
    old.load()
    new = fresh(folder)
    new.load()
    new.save(head(5), 5)
    new.save(head(6), 6)
    with pytest.raises(UserError) as raised:
        old.save(head(50), 5)
    assert str(raised.value) == (
        "the personal state of client 7 that round 5 made is not kept: another process of this client has meanwhile "
        f"written that of round 6 to {folder}/7.safetensors"
    )
    assert equal(old.load(), head(4))
    assert equal(fresh(folder).load(), head(6))
    old.save(head(60), 6)  # the same round, twice
    assert equal(fresh(folder).load(), head(60))


def test_a_server_that_went_back_is_followed(folder: Path) -> None:
    """The file of the later round was there before, and is where the client starts from."""
    for number in (1, 2, 3):
        fresh(folder).save(head(number), number)
    state = fresh(folder)
    assert equal(state.load(), head(3))
    assert state.round == 3
    state.save(head(20), 2)
    state.save(head(20), 2)
    again = fresh(folder)
    assert equal(again.load(), head(20))
    assert again.round == 2


def test_a_file_that_comes_in_the_meantime_and_is_none_of_this_clients_is_set_aside(folder: Path) -> None:
    state = fresh(folder)
    state.save(head(5), 1)
    (folder / "7.safetensors").write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"no safetensors file; it has been set aside as .*corrupt-1$"):
        state.save(head(6), 2)
    state.save(head(6), 2)
    assert equal(fresh(folder).load(), head(6))


def test_a_lock_that_another_process_holds_is_waited_for_and_then_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh(folder).save(head(5), 1)
    monkeypatch.setattr(state_files, "LOCK_TIMEOUT", 0.05)
    with state_files.locked(folder / "7.safetensors"):
        with pytest.raises(UserError, match=r"cannot be written to .*7\.safetensors: .*7\.safetensors\.lock"):
            fresh(folder).save(head(6), 2)
        fresh(folder, "8").save(head(8), 2)
    assert equal(fresh(folder).load(), head(5))


def test_processes_that_write_at_once_leave_one_whole_state(folder: Path) -> None:
    def save_often() -> None:
        for number in range(1, 11):
            with contextlib.suppress(UserError):
                fresh(folder).save(numbered(number), number)

    folder.mkdir(parents=True)
    crowd = [multiprocessing.get_context("fork").Process(target=save_often) for _ in range(4)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join()
    assert [process.exitcode for process in crowd] == [0] * 4
    assert 1 <= last(folder) <= 10
    assert names(folder) == ["7.safetensors"]
