"""The bank in a file: the same sums as in memory, little memory, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_bank import CPU, GROUPS, MANIFEST, SHAPES, check_loops, models, random_weights
from torch import Tensor

from fedham_flwr.core import arrays as arrays_module
from fedham_flwr.core import disk, files, mapped
from fedham_flwr.core import sparse as sparse_module
from fedham_flwr.core.arrays import Storage
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import LayerGroup, Manifest
from fedham_flwr.mixing.bank import Bank
from fedham_flwr.mixing.pool import Pool
from fedham_flwr.reporting.summary import digest

Federate = Callable[..., Any]
WIDE = Manifest(
    (LayerGroup("fc", ("w",), ("mean",)),), {"w": (50_000,), "mean": (3,)}, dict.fromkeys(("w", "mean"), torch.float32)
)

pytestmark = pytest.mark.usefixtures("no_pictures")


def filled(trees: list[dict[str, Tensor]], storage: Storage) -> Bank:
    bank = Bank(MANIFEST, tuple(SHAPES), CPU, storage)
    for number, tree in enumerate(trees):
        bank.add([str(number)], tree)
    return bank


def wide(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [{n: torch.randn(s, generator=draw) for n, s in WIDE.shapes.items()} for _ in range(count)]


def memory(what: str) -> float:
    """MB of this process: VmRSS now, VmHWM at the highest."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{what}:")) / 1000


def in_a_process(work: Callable[[], None]) -> int:
    process = get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


# ---- the same sums --------------------------------------------------------------------------------------------------


@given(
    peers=st.integers(2, 9), seed=st.integers(0, 99), sparse=st.booleans(), columns=st.integers(1, 7),
    block=st.integers(8, 400), span=st.integers(4, 200), most=st.integers(0, 800), data=st.data(),
)  # fmt: skip
def test_in_a_file_mixing_and_inner_products_are_those_of_the_naive_loops(
    tmp_path_factory: pytest.TempPathFactory,
    peers: int,
    seed: int,
    sparse: bool,
    columns: int,
    block: int,
    span: int,
    most: int,
    data: st.DataObject,
) -> None:
    cohort = data.draw(st.integers(1, peers))
    mixed = data.draw(st.integers(0, cohort))
    trees, new = models(peers, seed), models(cohort, seed + 1000)
    who = torch.randperm(peers, generator=torch.Generator().manual_seed(seed))[:cohort].tolist()
    weights = random_weights(cohort, peers, seed, sparse)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "COLUMNS", columns)
        patch.setattr(disk, "SPAN", span)
        patch.setattr(arrays_module, "BLOCK", block)
        patch.setattr(sparse_module, "SPARSE", 1 if sparse else 1000)
        bank = filled(trees, Storage(tmp_path_factory.getbasetemp(), most))
        assert bank._arrays.on_disk == (peers * 14 * 8 > most)
        check_loops(bank, trees, weights, mixed, who, new)
        bank.check()
        other = models(1, seed + 2000)
        bank.put([str(who[0])], other)
    for number, tree in enumerate(trees):
        held = other[0] if number == who[0] else new[who.index(number)] if number in who else tree
        assert all(torch.equal(tensor, held[name]) for name, tensor in bank.model(str(number)).items())


@pytest.mark.parametrize("top", [0, 3], ids=["all", "top"])
def test_a_file_gives_what_memory_gives_but_for_rounding_and_the_same_bank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top: int
) -> None:
    monkeypatch.setattr(arrays_module, "BLOCK", 7 * 200_012)
    ours, theirs = Bank(WIDE, ("w", "mean"), CPU, Storage(tmp_path, 0)), Bank(WIDE, ("w", "mean"), CPU)
    for bank in (ours, theirs):
        for number, tree in enumerate(wide(40)):
            bank.add([str(number)], tree)
    weights = torch.rand(10, 40, generator=torch.Generator().manual_seed(1))
    if top:
        weights = torch.where(weights >= weights.topk(top).values[:, -1:], weights, 0.0)
    weights /= weights.sum(1, keepdim=True)
    mixed = [bank.mix("fc", weights) for bank in (ours, theirs)]
    assert torch.allclose(*mixed, atol=1e-6)
    clients = [str(i) for i in (3, 39, 0, 20, 7, 8, 9, 11, 5, 30)]
    scores = [bank.absorb("fc", clients, wide(10, 1), weights) for bank in (ours, theirs)]
    known = weights > 0
    assert torch.allclose(scores[0][known], scores[1][known], rtol=1e-5, atol=1e-2)
    assert scores[1][known].abs().mean() > 100
    assert torch.equal(ours.arrays["fc"], theirs.arrays["fc"])
    assert torch.equal(ours.mix("fc", torch.eye(40)[3:4])[0], ours.arrays["fc"][3])


def test_the_number_of_threads_changes_no_bit_of_a_file_s_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays_module, "BLOCK", 3 * 200_012)
    for sparse in (False, True):
        weights, found = random_weights(5, 8, 0, sparse).float(), []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            bank = Bank(WIDE, ("w", "mean"), CPU, Storage(tmp_path, 0))
            for number, tree in enumerate(wide(8)):
                bank.add([str(number)], tree)
            found.append((bank.mix("fc", weights), bank.absorb("fc", list("01234"), wide(5, 1), weights)))
        torch.set_num_threads(1)
        assert all(torch.equal(one, other) for some in found[1:] for one, other in zip(found[0], some, strict=True))


# ---- growth ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [float("inf"), 0.0, 3000.0], ids=["memory", "file", "both"])
def test_clients_who_come_one_by_one_find_all_others_as_they_were(tmp_path: Path, most: float) -> None:
    trees = models(200)
    bank, places = Bank(MANIFEST, tuple(SHAPES), CPU, Storage(tmp_path, most)), set()
    for number, tree in enumerate(trees):
        bank.add([str(number)], tree)
        places.add(bank.arrays["conv"].data_ptr())
    for number, tree in enumerate(trees):
        assert all(torch.equal(tensor, tree[name]) for name, tensor in bank.model(str(number)).items())
    assert bank.arrays["conv"].shape == (200, 8)
    if most == float("inf"):
        assert len(places) < 40, "each client costs a copy of the bank"


def test_where_a_system_cannot_reserve_space_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr(mapped, "CHUNK", 1000)
    rows = mapped.MappedRows(tmp_path, 7, torch.float64)
    held = torch.empty(0, 7, dtype=torch.float64)
    for count in (1, 30, 31, 200):
        array = rows.grow(count)
        assert torch.equal(array[: len(held)], held)
        assert not array[len(held) :].any()
        array[len(held) :] = torch.randn(count - len(held), 7, dtype=torch.float64)
        held = array.clone()
        rows.release()
    assert torch.equal(array, held)


def test_a_bank_in_memory_takes_what_its_first_clients_need() -> None:
    bank = Bank(MANIFEST, tuple(SHAPES), CPU)
    bank.add([str(number) for number in range(100)], models(1)[0])
    assert bank.arrays["conv"].untyped_storage().nbytes() == 100 * 8 * 8


# ---- memory and the disk --------------------------------------------------------------------------------------------


def test_a_file_takes_little_memory_whatever_is_done_with_it(tmp_path: Path) -> None:
    """A bank of 300 MB: mixed, absorbed, checked, written as a checkpoint, compared, and its digest made."""

    def work() -> None:
        arrays_module.BLOCK, files.CHUNK = 1 << 22, 1 << 22
        pool = Pool(WIDE, wide(1)[0], CPU, Storage(tmp_path, 1e6))
        weights = torch.full((10, 1, 1500), 1 / 1500)
        uploads = {str(i): tree for i, tree in enumerate(wide(10, 1))}
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        pool.add([str(i) for i in range(1500)])
        for _ in range(2):
            pool.mixtures(list(uploads), weights)
            pool.absorb(uploads, weights)
        files.write_tensors(tmp_path / "state", pool.state_dict(), {})
        assert files.holds(tmp_path / "state", pool.state_dict(), {})
        digest(pool.state_dict(), [])
        pool.bank.check()
        grown = memory("VmHWM") - before
        assert grown < 60, f"{grown} MB more"
        assert memory("VmRSS") - before < 40

    assert in_a_process(work) == 0
    assert (tmp_path / "state").stat().st_size > 300e6


def test_the_file_has_no_name_and_goes_with_the_bank(tmp_path: Path) -> None:
    def opened() -> int:
        links = []
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # the one of the listing itself
                links.append(os.readlink(f"/proc/self/fd/{number}"))
        return sum(str(tmp_path) in link for link in links)

    bank = filled(models(3), Storage(tmp_path, 0))
    assert os.listdir(tmp_path) == []
    assert opened() >= len(GROUPS)
    address = bank.arrays["conv"].data_ptr()
    del bank
    assert opened() == 0
    assert not any(rows.covers(address) for rows in mapped._THERE)


def test_a_process_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    def work() -> None:
        bank = filled(models(3), Storage(tmp_path, 0))
        (tmp_path / "ready").touch()
        time.sleep(60)
        bank.check()

    process = get_context("fork").Process(target=work)
    process.start()
    while not (tmp_path / "ready").exists():
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert os.listdir(tmp_path) == ["ready"]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """The system refuses to let a file grow beyond 64 KiB, as it would on a full disk."""

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        bank = Bank(MANIFEST, tuple(SHAPES), CPU, Storage(tmp_path, 10_000))
        bank.add([str(number) for number in range(500)], models(1)[0])
        sentence = (
            r"^the models of 10500 clients take 0\.00118 GB, more than bank-memory=1e-05, and cannot be in a file in "
            r".* \(File too large\): wanted a results-dir with more room, or more bank-memory$"
        )
        with pytest.raises(UserError, match=sentence):
            bank.add([f"late {number}" for number in range(10_000)], models(1)[0])
        assert len(bank.clients) == 500
        bank.check()

    assert in_a_process(work) == 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be in a file in .*/nowhere \(No such file or directory\)"):
        filled(models(1), Storage(tmp_path / "nowhere", 0))


# ---- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [{"strategy": "pfedla"}, {"strategy": "pfedla", "pfedla.top-k-peers": 2}, {"strategy": "amn"},
              {"strategy": "fedham", "fedham.transport": "mediated"}], ids=str,
)  # fmt: skip
def test_a_run_with_its_bank_in_a_file_learns_what_one_in_memory_does(
    federate: Federate, given: dict[str, Any]
) -> None:
    memory, file = (federate(**given, samples_per_client=64, bank_memory=most) for most in (16.0, 0.0))
    for name, tensor in memory.state.items():
        assert torch.allclose(tensor.double(), file.state[name].double(), rtol=1e-3, atol=1e-4), name
    assert sorted(path.name for path in memory.path.iterdir()) == sorted(path.name for path in file.path.iterdir())
