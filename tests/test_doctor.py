"""`fedham doctor`: the machine, the data and settings of a run, a SuperNode's setup, and what a round will take."""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from fedham_flwr.commands import doctor as command
from fedham_flwr.doctor import machine, network, node, superlink, trial
from fedham_flwr.doctor.findings import Finding, duration, size
from fedham_flwr.doctor.rehearsal import rehearsed
from fedham_flwr.runners import Simulation

Federate = Callable[..., Any]


@pytest.fixture(autouse=True)
def _imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_import_fault", lambda module: "")  # which takes seconds


def states(findings: Iterator[Finding]) -> dict[str, tuple[str, str]]:
    return {each.what: (each.state, each.found) for each in findings}


# ---- the machine -----------------------------------------------------------------------------------------------------


def test_packages_are_compared_with_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    project = {"requires-python": ">=3.99", "dependencies": ["numpy>=1", "torch<1", "no-such-package>=2"]}
    found = {each.what: each for each in machine.python_and_packages(project)}
    assert (found["python"].state, found["python"].wanted) == ("fault", ">=3.99")
    assert (found["numpy"].state, found["numpy"].wanted) == ("ok", ">=1")
    assert (found["torch"].state, found["torch"].advice) == ("fault", "pip install 'torch<1'")
    assert (found["no-such-package"].state, found["no-such-package"].found) == ("fault", "not installed")
    own = {each.what: each for each in machine.python_and_packages()}
    assert own["flwr"].wanted == "<2,>=1.41"
    assert {"torch", "torchvision", "numpy", "datasets", "safetensors", "ray"} <= own.keys()
    monkeypatch.setattr(machine, "_import_fault", lambda module: "ImportError: no" if module == "sklearn" else "")
    broken = {each.what: each for each in machine.python_and_packages()}["scikit-learn"]
    assert (broken.state, "which cannot be imported: ImportError: no" in broken.found) == ("fault", True)


def test_limits_of_a_control_group_count(tmp_path: Path) -> None:
    assert machine.cgroup_processors(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert machine.cgroup_processors(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.cgroup_processors(tmp_path) is None
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:  8000 kB\nMemFree: 1 kB\nMemAvailable:  4000 kB\n")
    assert machine.memory(tmp_path, info) == (8_192_000, 4_096_000)
    (tmp_path / "memory.max").write_text("2000000\n")
    (tmp_path / "memory.current").write_text("1500000\n")
    (tmp_path / "memory.stat").write_text("anon 900000\ninactive_file 300000\n")
    assert machine.memory(tmp_path, info) == (2_000_000, 800_000)
    assert machine.memory(tmp_path, tmp_path / "nowhere") == (0, 0)


def test_folders_are_tried_and_not_left_with_anything(tmp_path: Path) -> None:
    found = states(machine.disks({"results-dir": tmp_path / "a" / "b", "cache-dir": Path("/proc/1/nothing")}))
    assert found["results-dir"][0] in ("ok", "note")
    assert "(not there yet)" in found["results-dir"][1]
    assert found["cache-dir"][0] == "fault"
    assert list(tmp_path.iterdir()) == []


def test_a_port_is_free_or_taken() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        (taken,) = network.ports([port])
        assert (taken.state, taken.found.startswith("taken")) == ("note", True)
    (free,) = network.ports([port])
    assert (free.state, free.found) == ("ok", "free")


def test_what_is_mistyped_has_its_own_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--ports", "99999"], ["--bogus"], ["--backend", "horse"]):
        with pytest.raises(SystemExit) as ended:
            command.command(wrong)
        assert ended.value.code == 2
    assert "'99999' is no port: wanted 1 to 65535" in capsys.readouterr().err


def test_sizes_and_times_are_for_people() -> None:
    assert [size(n) for n in (999, 1_200, 3_400_000, 2e9)] == ["999 bytes", "1.2 kB", "3.4 MB", "2.0 GB"]
    assert [duration(s) for s in (0.123, 42.3, 600, 9000)] == ["0.12 s", "42 s", "10 min", "2.5 h"]


# ---- the data and the run --------------------------------------------------------------------------------------------


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = command.command([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, and the working directory, of this test alone."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "tmp"


def test_what_a_run_sends_is_known_before_it_to_the_byte(
    federate: Federate,
    cache_dir: Path,
    scratch: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial, "ROUNDS", 2)
    run = federate(clients=3, strategy="fedham", num_server_rounds=2, samples_per_client=60)
    capsys.readouterr()
    config = f'strategy="fedham" num-server-rounds=2 samples-per-client=60 batch-size=32 cache-dir="{cache_dir}"'
    config += f' device="cpu" results-dir="{scratch.parent / "nowhere"}"'
    code, found = told(capsys, "--num-supernodes", "3", "--backend", "in-process", "-c", config)
    assert code == found["faults"] == 0, [each for each in found["findings"] if each["state"] == "fault"]
    (last,) = [record for record in run.records if (record["kind"], record["round"]) == ("train", 2)]
    predicted = found["prediction"]
    assert predicted["bytes-per-round"] == {"up": last["bytes-up"], "down": last["bytes-down"]}
    assert (predicted["cohort"], predicted["workers"], predicted["local-steps"]) == (3, 1, 2.0)
    assert 0 < predicted["seconds-per-round"] < 60
    counts = [{key: entry[key] for key in ("client", "train", "test")} for entry in found["data"]["clients"]]
    known = json.loads((run.path / "clients.json").read_text())
    assert counts == [{key: entry[key] for key in ("client", "train", "test")} for entry in known]
    assert found["data"]["classes"] == [str(digit) for digit in range(10)]
    assert list(scratch.iterdir()) == []
    assert not (scratch.parent / "nowhere").exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("rounds=3", "settings: there is no key rounds (given 3): did you mean num-server-rounds?"),
        ('dataset="./none.csv"', "dataset is './none.csv', but there is no file or folder"),
        ("novel-clients=4", "novel-clients=4 leaves nobody to train of 4 clients: it must be below their number"),
        ('model="lenet"', 'model="lenet" needs images of at least 16 x 16 pixels, and the data set has 8 x 8'),
        ('fedprox.mu=0.5', "fedprox.mu"),
    ],
)  # fmt: skip
def test_what_a_run_refuses_is_said_in_the_same_words_and_nothing_is_left(
    given: str, sentence: str, cache_dir: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = f'{given} cache-dir="{cache_dir}" device="cpu"'
    code, found = told(capsys, "--num-supernodes", "4", "--backend", "cohort", "--no-trial", "-c", config)
    (fault,) = [each for each in found["findings"] if each["state"] == "fault"]
    assert (code, fault["what"]) == (1, "the run is refused")
    assert sentence in fault["found"]
    assert list(scratch.iterdir()) == []
    assert not Path("results").exists()


def test_odd_clients_are_named_and_the_text_is_a_line_each(
    cache_dir: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = f'partitioner="pathological" classes-per-client=1 validation-fraction=0.0 cache-dir="{cache_dir}"'
    assert command.command(
        ["--data", "digits", "--backend", "cohort", "--num-supernodes", "25", "--no-trial", "-c", config]
    ) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "note   one class in training   25 clients (all): 0, 1, 2" in said
    assert "note   no validation samples   25 clients (all): 0, 1, 2" in said
    assert "... 15 more" in said
    assert "shared: conv1, conv2, fc1 (13,056 scalars); personal: fc2 (650 scalars)" in said
    assert said.rstrip().endswith("0 faults, 2 notes")


def test_settings_of_no_effect_are_notes(cache_dir: Path, scratch: Path) -> None:
    given = {"cache-dir": str(cache_dir), "alpha": 0.5, "device": "cpu"}
    with rehearsed(given, Simulation(3, "cohort"), {"alpha"}) as rehearsal:
        assert rehearsal.warnings == ["settings that have no effect: alpha=0.5 (partitioner is pathological)"]
        assert [profile.client for profile in rehearsal.profiles] == ["0", "1", "2"]
    with rehearsed(given, Simulation(3, "cohort")) as rehearsal:
        assert rehearsal.warnings == []


# ---- a SuperNode -----------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> str:
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 2)), columns=["a", "b"])
    rows["sick"] = np.arange(40) % 2
    rows.to_parquet(tmp_path / "ward.parquet")
    (tmp_path / "state").mkdir(mode=0o700)
    return f'client-id="ward-3" data-path="{tmp_path / "ward.parquet"}" state-dir="{tmp_path / "state"}"'


def test_a_node_config_is_looked_at_as_a_node_would(site: str, tmp_path: Path, cache_dir: Path) -> None:
    given = {"feature-column": "a b", "label-column": "sick", "cache-dir": str(cache_dir)}
    found = states(node.findings(site, given))
    assert {state for state, _ in found.values()} == {"ok"}
    assert found["client-id"] == ("ok", "ward-3")
    counts = re.findall(r"(\d+) (train|validation|test)", found["data-path"][1])
    assert [which for _, which in counts] == ["train", "validation", "test"]
    assert sum(int(count) for count, _ in counts) == 40
    assert found["columns"] == ("ok", "a, b")
    (tmp_path / "state").chmod(0o755)
    found = states(node.findings(site + " cross-evaluation=1 colour=2", given))
    assert found["state-dir"][0] == "fault"
    assert "mode 0755" in found["state-dir"][1]
    assert found["cross-evaluation"] == ("fault", "1")
    assert found["colour"] == ("note", "2 is read by nobody")
    found = states(node.findings('client-id="../x" data-path="/nowhere/at/all.csv"', given))
    assert found["client-id"][0] == found["data-path"][0] == "fault"
    assert "client-id='../x' must be 1 to 64 letters" in found["client-id"][1]
    assert found["state-dir"][0] == "note"
    assert states(node.findings("client-id=ward", {}))["node-config"][0] == "fault"


def test_a_key_must_be_private_and_of_the_kind_that_flower_takes(tmp_path: Path) -> None:
    key = tmp_path / "north"
    save(key, ec.generate_private_key(ec.SECP384R1()))
    found = states(superlink.findings(None, key=str(key)))
    assert found["key"] == ("ok", f"{key}, ECDSA on secp384r1, mode 0600")
    assert found["public key"][0] == "ok"
    key.chmod(0o644)
    assert states(superlink.findings(None, key=str(key)))["key"][0] == "fault"
    (tmp_path / "north.pub").write_text("ecdsa-sha2-nistp384 AAAA someone\n")
    assert states(superlink.findings(None, key=str(key)))["public key"][0] == "fault"
    save(tmp_path / "other", ed25519.Ed25519PrivateKey.generate())
    assert "of the kind Ed25519" in states(superlink.findings(None, key=str(tmp_path / "other")))["key"][1]
    (tmp_path / "text").write_text("hello")
    assert states(superlink.findings(None, key=str(tmp_path / "text")))["key"][0] == "fault"
    assert "cannot be read" in states(superlink.findings(None, key=str(tmp_path / "none")))["key"][1]


def save(file: Path, key: Any) -> None:
    openssh = serialization.PrivateFormat.OpenSSH
    file.write_bytes(key.private_bytes(serialization.Encoding.PEM, openssh, serialization.NoEncryption()))
    file.chmod(0o600)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    Path(f"{file}.pub").write_bytes(public + b" comment\n")


def certificate(folder: Path, days: tuple[int, int] = (-1, 400), host: str = "127.0.0.1") -> tuple[Path, Path]:
    """A certificate that signs itself, good from and to so many days from now; and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Authority")])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
        .not_valid_before(now + datetime.timedelta(days[0])).not_valid_after(now + datetime.timedelta(days[1]))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    files = folder / "ca.crt", folder / "ca.key"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pkcs8 = serialization.PrivateFormat.PKCS8
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption()))
    return files


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have connections be answered by a server in this process, by TLS, with a date."""

    def serve(files: tuple[Path, Path] | None, date: str = "") -> None:
        def connect(*_: object, **__: object) -> socket.socket:
            ours, theirs = socket.socketpair()

            def answer() -> None:
                try:
                    end: socket.socket = theirs
                    if files:
                        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                        context.load_cert_chain(*files)
                        end = context.wrap_socket(theirs, server_side=True)
                    end.recv(1000)
                    end.sendall(f"HTTP/1.1 404 Not Found\r\n{date}\r\n\r\n".encode())
                    end.close()
                except (OSError, ssl.SSLError):
                    theirs.close()

            threading.Thread(target=answer, daemon=True).start()
            return ours

        monkeypatch.setattr(socket, "create_connection", connect)

    return serve


def http_date(seconds: float) -> str:
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return f"date: {moment:%a, %d %b %Y %H:%M:%S} GMT"


def test_a_superlink_is_reached_by_tls_and_its_clock_compared(tmp_path: Path, answered: Callable[..., None]) -> None:
    files = certificate(tmp_path)
    answered(files, http_date(0))
    found = states(superlink.findings("127.0.0.1:9092", str(files[0])))
    assert {state for state, _ in found.values()} == {"ok"}
    assert found["TLS"][1].endswith("its certificate is of this authority and for 127.0.0.1")
    assert "clock" in found
    answered(files, http_date(-60))
    clock = states(superlink.findings("127.0.0.1:9092", str(files[0])))["clock"]
    assert clock[0] == "fault"
    assert "s ahead of the SuperLink's" in clock[1]
    answered(files)
    assert states(superlink.findings("127.0.0.1:9092", str(files[0])))["clock"][0] == "note"
    assert states(superlink.findings("10.0.0.1:9092", str(files[0])))["TLS"][0] == "fault"  # another name
    assert "self-signed" in states(superlink.findings("127.0.0.1:9092"))["TLS"][1]


def test_a_superlink_that_cannot_be_reached_is_a_sentence(
    tmp_path: Path, answered: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert states(superlink.findings("nowhere"))["superlink"] == ("fault", "'nowhere'")
    old = certificate(tmp_path, (-90, -3))
    (only,) = superlink.findings("127.0.0.1:9092", str(old[0]))  # it is not tried with these
    assert (only.state, only.advice) == ("fault", "renew it, or is the clock ahead?")
    soon = certificate(tmp_path, (-90, 10))
    assert next(superlink.findings(None, str(soon[0]))).state == "note"
    (tmp_path / "no.crt").write_text("nothing")
    assert states(superlink.findings(None, str(tmp_path / "no.crt")))["root certificates"][0] == "fault"

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert states(superlink.findings("127.0.0.1:9092"))["reachable"] == ("fault", "127.0.0.1:9092: Connection refused")
    answered(None)
    assert states(superlink.findings("127.0.0.1:9092"))["TLS"][0] == "fault"
    assert {state for state, _ in states(superlink.findings("127.0.0.1:9092", insecure=True)).values()} == {
        "ok",
        "note",
    }
