"""Of deploy/, which is no package: certificates, keys, sites, what is stopped, the examples, and a whole federation."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedham_flwr.core.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "deploy"))

import marked
import sites
from federation import Federation, FederationError, processes
from parts import call, free_port, listens, toml_line

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
HEART = Path(__file__).resolve().parents[2] / "shared" / "data" / "heart_disease"

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
needs_ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def certificates(folder: Path, *names: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(DEPLOY / "certificates.sh"), str(folder), *names]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


# ---- certificates ----------------------------------------------------------------------------------------------------


@needs_openssl
def test_certificates_have_private_keys_that_only_their_owner_reads(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "certificates"
    assert certificates(folder, "superlink.example.org").returncode == 0
    assert mode(folder) == 0o700
    assert {name.name: mode(name) for name in folder.glob("*.key")} == {"ca.key": 0o600, "superlink.key": 0o600}


@needs_openssl
@pytest.mark.parametrize("name", ["superlink.example.org", "localhost", "127.0.0.1", "10.1.2.3", "2001:db8::7"])
def test_the_certificate_is_good_for_every_name_and_for_loopback(tmp_path: Path, name: str) -> None:
    certificates(tmp_path, "superlink.example.org", "10.1.2.3", "2001:db8::7")
    check = "-verify_ip" if re.fullmatch(r"[\d.]+|.*:.*", name) else "-verify_hostname"
    verify = ["openssl", "verify", "-x509_strict", "-CAfile", str(tmp_path / "ca.crt"), check, name]
    call([*verify, str(tmp_path / "superlink.crt")])
    with pytest.raises(FederationError, match="mismatch"):
        call(
            [
                *verify[:-1],
                "10.9.9.9" if check == "-verify_ip" else "other.example.org",
                str(tmp_path / "superlink.crt"),
            ]
        )


@needs_openssl
def test_a_second_call_keeps_everything(tmp_path: Path) -> None:
    certificates(tmp_path, "a.example.org")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    again = certificates(tmp_path, "a.example.org")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert "made" not in again.stdout


@needs_openssl
def test_other_names_and_a_near_end_bring_a_new_certificate_for_the_same_keys(tmp_path: Path) -> None:
    certificates(tmp_path, "a.example.org", DAYS="29")
    keys = {file.name: file.read_bytes() for file in tmp_path.glob("*.key")}
    seen = {(tmp_path / "superlink.crt").read_bytes()}
    for names in (("a.example.org",), ("a.example.org", "b.example.org")):
        assert "superlink.crt" in certificates(tmp_path, *names).stdout
        seen.add((tmp_path / "superlink.crt").read_bytes())
    assert len(seen) == 3
    assert {file.name: file.read_bytes() for file in tmp_path.glob("*.key")} == keys
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    context.load_cert_chain(
        tmp_path / "superlink.crt", tmp_path / "superlink.key"
    )  # fails if they do not belong together


@needs_openssl
def test_without_the_authority_s_key_nothing_is_made_anew(tmp_path: Path) -> None:
    certificates(tmp_path, "a.example.org")
    (tmp_path / "ca.key").unlink()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert certificates(tmp_path, "a.example.org").returncode == 0
    refused = certificates(tmp_path, "b.example.org")
    assert refused.returncode == 1
    assert "ca.key is not here: bring it back" in refused.stderr
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@needs_openssl
@pytest.mark.parametrize("name", ["a b", "a,DNS:evil.example.org", "-x", "$(id)"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    refused = certificates(tmp_path / "new", name)
    assert refused.returncode == 2
    assert f"NAME is '{name}', but must be a host name or an IP address" in refused.stderr
    assert not (tmp_path / "new").exists()


# ---- node keys -------------------------------------------------------------------------------------------------------


@needs_ssh_keygen
def test_node_keys_are_private_and_kept(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    call([str(DEPLOY / "node_keys.sh"), str(keys), "north"])
    before = (keys / "north").read_bytes()
    (keys / "north.pub").unlink()
    call([str(DEPLOY / "node_keys.sh"), str(keys), "north", "south"])
    assert (keys / "north").read_bytes() == before
    assert mode(keys) == 0o700
    assert [mode(keys / site) for site in ("north", "south")] == [0o600, 0o600]
    assert (keys / "north.pub").read_text().startswith("ecdsa-sha2-nistp384 ")


@needs_ssh_keygen
@pytest.mark.parametrize("site", ["../north", "a/b", ".hidden", "-f", "x.pub", ""])
def test_a_site_that_is_no_file_name_is_refused(tmp_path: Path, site: str) -> None:
    with pytest.raises(FederationError, match=r"SITE is .*, but must be of letters"):
        call([str(DEPLOY / "node_keys.sh"), str(tmp_path / "keys"), site])
    assert not (tmp_path / "keys").exists()


# ---- sites -----------------------------------------------------------------------------------------------------------


def test_made_up_sites_share_out_the_table_of_scikit_learn(tmp_path: Path) -> None:
    import datasets

    made = sites.make(tmp_path)
    assert made.rows == {"east": 114, "north": 228, "south": 171, "west": 56}
    features = datasets.load_dataset(
        "parquet", data_files=str(made.folders["west"] / "data.parquet"), split="train"
    ).features
    assert features["label"].names == ["malignant", "benign"]
    assert [*features] == [*made.settings["feature-column"].split(), "label"]
    assert mode(made.folders["west"]) == 0o700
    assert mode(made.folders["west"] / "data.parquet") == 0o600


@pytest.fixture
def hospitals(tmp_path: Path) -> Path:
    """Five patients of three hospitals, one of which has a name that is no file name."""
    import datasets

    kinds = {
        "age": datasets.Value("float32"),
        "note": datasets.Value("string"),
        "hospital": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["absent", "present"]),
    }
    rows = {
        "age": [50.0, None, 70.0, 41.0, 33.0],
        "note": ["x"] * 5,
        "hospital": ["a", "St. Mary / 2", "a", "b", "St. Mary / 2"],
        "label": [0, 0, 0, 1, 1],
    }
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(tmp_path / "all.parquet")
    return tmp_path / "all.parquet"


def test_sites_get_their_rows_and_the_columns_that_a_network_needs(tmp_path: Path, hospitals: Path) -> None:
    import datasets

    made = sites.make(tmp_path / "sites", hospitals, "hospital", ["age"])
    assert made.rows == {"a": 2, "b": 1, "St-Mary-2": 2}
    assert made.settings == {"feature-column": "age", "label-column": "label"}
    data = datasets.load_dataset("parquet", data_files=str(made.folders["St-Mary-2"] / "data.parquet"), split="train")
    assert data.to_dict() == {"age": [None, 33.0], "label": [0, 1]}
    assert data.features["label"].names == ["absent", "present"]


def test_a_column_that_is_not_there_is_named(tmp_path: Path, hospitals: Path) -> None:
    with pytest.raises(UserError, match="there is no column 'ward' among age, note, hospital, label"):
        sites.make(tmp_path / "sites", hospitals, "ward")
    with pytest.raises(UserError, match="there is no column 'weight' among age, note, hospital, label"):
        sites.make(tmp_path / "sites", hospitals, "hospital", ["weight"])


def test_the_columns_of_a_table_are_not_guessed(tmp_path: Path, hospitals: Path) -> None:
    with pytest.raises(UserError, match="--features must name the columns to keep, among age, note, hospital, label"):
        sites.make(tmp_path / "sites", hospitals, "hospital")


def test_a_data_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"dataset is .*nowhere, but must be a folder of \.parquet files, or a \.parquet"
    ):
        sites.make(tmp_path, tmp_path / "nowhere", "hospital")


# ---- what is stopped -------------------------------------------------------------------------------------------------


@pytest.fixture
def sleepers(tmp_path: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """A sleeping process with a child in a session of its own, for each of two federations, and one for none."""
    if shutil.which("setsid") is None or not Path("/proc/self/environ").exists():
        pytest.skip("needs /proc and setsid")
    command = ["sh", "-c", "setsid sleep 60 & exec sleep 61"]
    marks = {name: marked.environment(tmp_path / name, "node-x") for name in ("mine", "other")} | {"none": {}}
    started = {name: subprocess.Popen(command, env=os.environ | mark) for name, mark in marks.items()}
    end, asleep = time.monotonic() + 10, ["sleep 60", "sleep 61"]  # and no shell or setsid that is to become one
    while time.monotonic() < end:
        if all(sorted(processes(tmp_path / name).values()) == asleep for name in ("mine", "other")):
            break
        time.sleep(0.01)
    yield started
    for name in ("mine", "other"):
        marked.stop(tmp_path / name)
    for process in started.values():
        process.kill()
        process.wait()


def test_stop_ends_all_of_a_federation_and_nothing_else(
    tmp_path: Path, sleepers: dict[str, subprocess.Popen[bytes]]
) -> None:
    assert marked.stop(tmp_path / "mine") == 2
    assert sleepers["mine"].wait(5) == -signal.SIGTERM
    assert processes(tmp_path / "mine") == {}
    assert sorted(processes(tmp_path / "other").values()) == ["sleep 60", "sleep 61"]
    assert [sleepers[name].poll() for name in ("other", "none")] == [None, None]


def test_stop_of_a_part_leaves_the_other_parts(tmp_path: Path, sleepers: dict[str, subprocess.Popen[bytes]]) -> None:
    assert marked.stop(tmp_path / "mine", "node-y") == 0
    assert marked.stop(tmp_path / "mine", "node-x", patience=0.0) == 2
    assert sleepers["mine"].wait(5) == -signal.SIGKILL


def test_settings_are_written_as_flower_reads_them() -> None:
    from flwr.common.config import parse_config_args

    given = {"client-id": "north", "data-path": "/srv/my data/ü=1", "rounds": 3, "rate": 0.5, "flag": True}
    assert parse_config_args([toml_line(given)]) == given
    with pytest.raises(FederationError, match='data-path is /a"b, but must have no quotation mark'):
        toml_line({"data-path": '/a"b'})


def test_a_free_port_can_be_listened_on() -> None:
    import socket

    port = free_port()
    assert not listens(port)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        assert listens(port)


# ---- the examples ----------------------------------------------------------------------------------------------------


def test_the_compose_file_publishes_nothing_and_has_each_secret_that_it_uses() -> None:
    import yaml

    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    for name, service in compose["services"].items():
        used = set(re.findall(r"/run/secrets/(\S+)", " ".join(service["command"])))
        assert used == set(service["secrets"]) <= compose["secrets"].keys(), name
        assert all(
            volume.split(":")[0] in compose["volumes"] or volume.endswith(":ro") for volume in service["volumes"]
        )


def test_the_proxy_shows_what_supernodes_need_and_nothing_else() -> None:
    text = re.sub(r"#.*", "", (DEPLOY / "nginx.conf").read_text())
    assert dict(re.findall(r"location (\S+) \{\s*(\S+)", text)) == {"/v1/fleet/": "proxy_pass", "/": "return"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for unit in ("fedham-superlink.service", "fedham-supernode@.service"):
        text = (DEPLOY / "systemd" / unit).read_text()
        programs = Path(sys.executable).parent  # where systemd finds the programs that the unit names
        (tmp_path / unit.replace("@", "@north")).write_text(text.replace("/opt/fedham/venv/bin", str(programs)))
    units = [str(unit) for unit in tmp_path.glob("*.service")]
    assert len(units) == 2
    checked = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (checked.returncode, [line for line in checked.stderr.splitlines() if "fedham" in line]) == (0, [])


# ---- a whole federation ----------------------------------------------------------------------------------------------


def command_lines() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                found.append((entry / "cmdline").read_bytes().decode(errors="replace"))
            except OSError:  # it has ended
                continue
    return found


@pytest.mark.slow
def test_three_sites_train_with_tls_and_authentication_and_all_is_stopped(tmp_path: Path) -> None:
    if HEART.is_dir():
        pytest.skip(f"{HEART} is there, so test_real_federation.py does this and more")
    made = sites.make(tmp_path / "sites")
    chosen = dict(list(made.folders.items())[:3])
    folder = tmp_path / "a federation"  # with a blank
    with Federation(folder, defaults={**made.settings, "round-timeout": 300.0}) as federation:
        federation.start_superlink()
        federation.start_nodes(chosen)
        outcome = federation.run('strategy="fedavg" num-server-rounds=2', timeout=900)
        assert outcome.code == 0, outcome.output
    assert processes(folder) == {}
    assert not any(str(folder) in line for line in command_lines())

    private = [folder / "certificates" / "ca.key", folder / "certificates" / "superlink.key"]
    private += [folder / "keys" / site for site in chosen]
    assert {mode(key) for key in private} == {0o600}
    assert outcome.path is not None
    told = {client["client"]: client for client in json.loads((outcome.path / "clients.json").read_text())}
    assert told.keys() == chosen.keys()
    assert {site: sum(told[site][split] for split in ("train", "validation", "test")) for site in chosen} == {
        site: made.rows[site] for site in chosen
    }
    assert [(record["kind"], record["replies"], record["failures"]) for record in outcome.records] == [
        ("train", 3, []),
        ("train", 3, []),
        ("evaluate", 3, []),
    ]
    assert "Activated node_id" in federation.log("superlink").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for a federation, of which nothing runs when the test is over."""
    yield tmp_path / "federation"
    marked.stop(tmp_path / "federation")


def try_out(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(DEPLOY / "try_out.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind(folder: Path) -> None:
    with try_out("--dir", str(folder)) as started:
        end = time.monotonic() + 120
        while not any("flower-superlink" in line for line in processes(folder).values()):
            assert started.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        with try_out("--dir", str(folder)) as second:
            assert "a federation is running in" in second.communicate()[1]
            assert second.returncode == 1
        started.send_signal(signal.SIGINT)
        assert "interrupted, and all stopped" in started.communicate(timeout=60)[1]
        assert started.returncode == 130
    assert processes(folder) == {}


@pytest.mark.slow
def test_the_stop_command_stops_what_another_process_has_started(folder: Path) -> None:
    left = Federation(folder)
    left.start_superlink()
    with try_out("stop", "--dir", str(folder)) as stopping:
        assert re.fullmatch(r"[1-9]\d* processes stopped\n", stopping.communicate()[0])
    assert processes(folder) == {}
    left.stop()
