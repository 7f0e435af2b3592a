"""A full disk: one sentence that names the file, what was written stays whole, and the run goes on to the same end."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedham_flwr import simulate
from fedham_flwr.core.errors import UserError, out_of_space, reason
from fedham_flwr.core.files import replacing, write_tensors
from fedham_flwr.core.packages import TOP

SHORT: dict[str, Any] = {
    "clients": 2, "num_server_rounds": 2, "samples_per_client": 30, "checkpoint_every": 1, "device": "cpu",
    "verbose": False,
}  # fmt: skip


def full(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28]")


def test_the_reason_is_the_systems_and_names_the_file(tmp_path: Path) -> None:
    def write() -> None:
        with replacing(tmp_path / "a.parquet") as part:
            part.touch()
            full()

    with pytest.raises(OSError, match="Detail") as raised:
        write()
    assert reason(raised.value) == "No space left on device (a.parquet)"
    assert list(tmp_path.iterdir()) == []
    assert str(out_of_space(raised.value)) == "a file cannot be written: No space left on device (a.parquet)"
    assert out_of_space(OSError(errno.EACCES, "no")) is None
    assert out_of_space(ValueError("28")) is None
    behind = UserError("results-dir x cannot be written")
    behind.__cause__ = raised.value
    assert str(out_of_space(behind)) == "results-dir x cannot be written"
    assert reason(ValueError("two\nlines")) == "two"
    with pytest.raises(OSError, match="No such file") as raised:
        write_tensors(tmp_path / "nowhere" / "b.safetensors", {}, {})
    assert reason(raised.value) == "No such file or directory (b.safetensors)"


PLACES: list[tuple[str, str, str]] = [  # what fails from its n-th call on, and what is said
    ("pyarrow.parquet.write_table:2", "the results cannot be written to RUN: ", "(round-00002-train.parquet)"),
    ("fedham_flwr.models.export.write_tensors:2", "the model of client 1 cannot be written to RUN/model: ", ""),
    ("fedham_flwr.state.files._replace:4", "the personal state of client 1 cannot be written to RUN/clients/1.saf", ""),
    ("fedham_flwr.reporting.journal.client_bars:1", "the results cannot be written to RUN: ", ""),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole() -> dict[str, str]:
    """The digest of a run that nothing happens to; filled by the first test that needs it."""
    return {}


@pytest.mark.parametrize(("place", "sentence", "file"), PLACES)
@pytest.mark.usefixtures("workplace")
def test_a_run_ends_with_a_sentence_and_goes_on_to_the_same_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: dict[str, str], place: str, sentence: str, file: str
) -> None:
    whole = whole or {"digest": str(simulate("fedper", **SHORT).summary["digest"])}
    before = set((tmp_path / "results" / "fedper").glob("*"))
    with monkeypatch.context() as patched:
        target, _, first = place.partition(":")
        failing(patched, target, int(first))
        with pytest.raises(UserError) as raised:
            simulate("fedper", **SHORT)
    (run,) = {*(tmp_path / "results" / "fedper").iterdir()} - before
    text = str(raised.value)
    assert text.startswith(sentence.replace("RUN", str(run)))
    assert f"No space left on device{file and f' {file}'}" in text
    assert text.endswith(f"; what was written before is whole: after room is made, resume={run} goes on")
    assert [path for path in run.rglob("*") if path.name.endswith((".tmp", ".part", ".partial"))] == []
    assert not (run / "summary.json").exists() or "error" in json.loads((run / "summary.json").read_text())
    assert simulate(resume=run, verbose=False).summary["digest"] == whole["digest"]


def failing(patched: pytest.MonkeyPatch, target: str, first: int) -> None:
    """Let a function fail as on a full disk, from its first-th call on."""
    from importlib import import_module

    path, _, name = target.rpartition(".")
    try:
        place: Any = import_module(path)
    except ModuleNotFoundError:
        path, _, outer = path.rpartition(".")
        place = getattr(import_module(path), outer)
    real: Callable[..., Any] = getattr(place, name)
    calls: list[int] = []

    def call(*given: Any, **named: Any) -> Any:
        calls.append(1)
        return real(*given, **named) if len(calls) < first else full()

    patched.setattr(place, name, call)


@pytest.mark.parametrize("backend", ["in-process", "cohort"])
@pytest.mark.usefixtures("workplace")
def test_a_full_disk_before_the_first_round_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: Any
) -> None:
    for target in ("write_clients", "write_settings"):
        with monkeypatch.context() as patched:
            failing(patched, f"fedham_flwr.reporting.run_directory.RunDirectory.{target}", 1)
            with pytest.raises(UserError, match=r"cannot be written.*No space left on device"):
                simulate("fedper", backend=backend, **SHORT)
        assert not (tmp_path / "results").exists()


# ---- all writes ----------------------------------------------------------------------------------------------------

EVERY = int(os.environ.get("FEDHAM_SWEEP_EVERY", "10"))
"""The write that fails is the first, and then every tenth; 1: every one, which takes a quarter of an hour."""
SWEEP = """
import errno, io, json, os, sys
from pathlib import Path
from fedham_flwr import simulate
from fedham_flwr.core.errors import UserError

backend, strategy, every = sys.argv[1], sys.argv[2], int(sys.argv[3])
here, count, wanted, what = os.getcwd(), 0, -1, ""

def hook(event, given):  # fails the wanted-th time that something below here is to be written
    global count, what
    opened = event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR)
    written = event in ("os.rename", "os.mkdir", "os.link") or opened
    if wanted < 0 or not written or not isinstance(given[0], (str, bytes, os.PathLike)):
        return
    path = os.path.abspath(os.fsdecode(given[0]))
    if "/results/" in path:
        count += 1
        if count == wanted:
            what = f"{event} {os.path.basename(path)}"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

sys.addaudithook(hook)
short = dict(clients=3, num_server_rounds=2, samples_per_client=40, checkpoint_every=1, device="cpu", verbose=False)
plain = simulate(strategy, backend=backend, **short).summary["digest"]
while True:
    before = set(Path("results").glob("*/*"))
    count, wanted, failed = 0, wanted + every if wanted > 0 else 1, ""
    try:
        digest = simulate(strategy, backend=backend, **short).summary["digest"]
    except UserError as error:
        failed = str(error)
        assert "No space left" in failed and "\\n" not in failed, failed
    at, wanted_now, wanted = what if count >= wanted else "", wanted, -1
    left = set(Path("results").glob("*/*")) - before
    if failed and left:
        (run,) = left
        assert not [p for p in run.rglob("*") if p.name.endswith((".tmp", ".part", ".partial"))], list(run.rglob("*"))
        if any(run.glob("checkpoints/round-*")):
            digest = simulate(resume=run, backend=backend, verbose=False).summary["digest"]
        else:
            digest = plain
    elif failed:
        digest = plain
    assert digest == plain, (wanted_now, at)
    print(json.dumps([wanted_now, at, failed]), flush=True)
    wanted = wanted_now
    if not at:
        break
"""


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "strategy"), [("in-process", "fedper"), ("cohort", "fedham")])
def test_every_write_of_a_run_may_fail_once(tmp_path: Path, backend: str, strategy: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(TOP), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SWEEP, backend, strategy, str(EVERY)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) > 50 // EVERY
    assert sum(bool(failed) for _, _, failed in lines) > 30 // EVERY


SIZES = ("4k", "20k", "100k", "200k", "300k", "400k")
ROOM = """
mount -t tmpfs -o size=$1 none room && cd room
run() { $PYTHON $TOP/run_simulation.py --num-supernodes 3 --backend $2 "${@:3}"; }
run x $2 -c 'num-server-rounds=3 samples-per-client=40 checkpoint-every=1 device="cpu"'
echo "code $?" >&2
ls -d results/*/*/checkpoints/round-* >/dev/null 2>&1 || exit 0
test -e results/*/*/summary.json && ! grep -q '"error"' results/*/*/summary.json && exit 0
mount -o remount,size=50m . && run x $2 --resume results/*/* && grep digest results/*/*/summary.json >&2
"""


def namespaces() -> bool:
    """Whether a file system of some size may be made here, without being the superuser."""
    command = ["unshare", "-rm", "sh", "-c", "mkdir -p /tmp/room.$$ && mount -t tmpfs -o size=4k none /tmp/room.$$"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not namespaces(), reason="no user namespaces: a small file system cannot be made")
@pytest.mark.parametrize("backend", ["in-process", "cohort", "ray"])
def test_a_file_system_without_room_for_a_run(tmp_path: Path, cache_dir: Path, backend: str) -> None:
    (tmp_path / "room").mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": str(TOP),
        "TOP": str(TOP),
        "PYTHON": sys.executable,
        "XDG_CACHE_HOME": str(cache_dir),
    }
    digests = set()
    for size in SIZES if EVERY == 1 and backend != "ray" else SIZES[1:5:3]:
        done = subprocess.run(
            ["unshare", "-rm", "bash", "-c", ROOM, "room", size, backend],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "code 1" in done.stderr, (size, done.stderr)
        assert "Traceback" not in done.stderr, (size, done.stderr)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, (size, errors)
        assert "No space left on device" in errors[0], size
        digests |= {line for line in done.stderr.splitlines() if '"digest"' in line}
    assert len(digests) == 1
