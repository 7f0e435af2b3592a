"""Nodes whose personal state is lost: gone or corrupt, restored by the server, or started again if asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from nodes import Nodes, failures, on_nodes

from fedham_flwr.client_app import make_client_app
from fedham_flwr.federation import wire
from fedham_flwr.federation.messages import ClientFailure, Download, Upload
from fedham_flwr.settings import Value

Federate = Callable[..., Any]
RETAINED: dict[str, Value] = {"strategy": "pfedla", "pfedla.retained-layers": 1}


@pytest.fixture
def federate(federate: Federate, tmp_path: Path) -> Federate:
    """Of nodes; see `on_nodes`."""
    return on_nodes(federate, tmp_path)


def remove_first(at: int) -> Callable[[int, list[Path]], None]:
    def before(number: int, folders: list[Path]) -> None:
        if number == at:
            (folders[0] / "site-0.safetensors").unlink()

    return before


def spoil_first(at: int) -> Callable[[int, list[Path]], None]:
    def before(number: int, folders: list[Path]) -> None:
        file = folders[0] / "site-0.safetensors"
        if number == at:
            file.write_bytes(file.read_bytes()[:-1] + b"?")

    return before


def test_a_client_whose_file_is_gone_fails_until_it_is_back(federate: Federate, tmp_path: Path) -> None:
    saved: dict[str, bytes] = {}

    def before(number: int, folders: list[Path]) -> None:
        file = folders[0] / "site-0.safetensors"
        if number == 2:
            saved["file"] = file.read_bytes()
            file.unlink()
        elif number == 4:
            file.write_bytes(saved["file"])

    run = federate(restarts=(2, 4), before=before, strategy="fedper", num_server_rounds=4)
    (file,) = (tmp_path / "nodes" / "node-0").glob("*/site-0.safetensors")
    error = (
        f"client site-0 has no personal state in {file}, though it has trained in this training: what it had learned "
        "is lost (fc2.weight, fc2.bias); put the file back there, or let it start again from the first tensors with "
        'lost-state="restart"'
    )
    assert failures(run) == [(2, "site-0", error), (3, "site-0", error)]
    assert run.grid.ages[4, "train"] == {"site-0": 3, "site-1": 1, "site-2": 1}
    assert all(record["restarted"] == [] for record in run.records)


@pytest.mark.parametrize(("training", "lost"), [("each-round", True), ("after-rounds", False)])
def test_a_head_that_rests_is_not_lost_with_the_file(federate: Federate, training: str, lost: bool) -> None:
    given = {"strategy": "fedavg", "personal": "head", "personal_epochs": 1, "personal_training": training}
    run = federate(restarts=(2,), before=remove_first(2), num_server_rounds=3, **given)
    assert bool(failures(run)) == lost


def test_with_lost_state_restart_it_starts_again_and_says_so(federate: Federate, caplog: Any) -> None:
    run = federate(
        restarts=(2,), before=remove_first(2), strategy="fedper", num_server_rounds=3, lost_state="restart"
    )  # fmt: skip
    assert failures(run) == []
    assert [record["restarted"] for record in run.records] == [[], ["site-0"], [], []]
    assert run.grid.ages[2, "train"] == {"site-0": 0, "site-1": 1, "site-2": 1}
    assert run.grid.ages[3, "train"] == {"site-0": 1, "site-1": 1, "site-2": 1}
    assert (
        "what it had learned is lost (fc2.weight, fc2.bias), and it starts again from the first tensors" in caplog.text
    )


@pytest.mark.parametrize("then", ["refuse", "restart"])
def test_a_corrupt_file_is_set_aside_named_and_never_replaced_unasked(
    federate: Federate, tmp_path: Path, then: str
) -> None:
    run = federate(restarts=(2,), before=spoil_first(2), strategy="fedper", num_server_rounds=3, lost_state=then)
    (aside,) = (tmp_path / "nodes" / "node-0").glob("*/site-0.safetensors.*")
    file = aside.with_name("site-0.safetensors")
    assert aside.name == "site-0.safetensors.corrupt-1"
    assert aside.read_bytes().endswith(b"?")
    first, *later = failures(run)
    assert first == (
        2,
        "site-0",
        f"the personal state of client site-0 in {file} is corrupt: its checksum is wrong; it has been set aside as "
        f"{aside}",
    )
    assert file.exists() is (then == "restart")
    if then == "restart":
        assert not later
        assert [record["restarted"] for record in run.records] == [[], [], ["site-0"], []]
    else:
        assert [(number, client) for number, client, _ in later] == [(3, "site-0"), (4, "site-0")]
        ways = (
            f"put a good copy back there (what was set aside is {aside}), or let it start again from the first "
            'tensors with lost-state="restart"'
        )
        assert all(error.endswith(ways) for *_, error in later)


def test_a_client_whose_only_training_never_reached_the_server_is_not_started_afresh_either(
    federate: Federate, settings: Callable[..., dict[str, Value]], tmp_path: Path
) -> None:
    """The server does not know that it has trained; the file that was set aside does."""
    grid = Nodes(make_client_app(settings(strategy="local")), 2, tmp_path / "nodes")
    node = next(iter(grid.contexts))

    def train() -> Upload:
        download = Download(1, {}, (1, 8, 8), 10, training="trial")
        (reply,) = grid.send_and_receive([Message(wire.write_download(download), node, "train", group_id="1")])
        return wire.read_upload(reply.content, 1)

    train()
    spoil_first(1)(1, [tmp_path / "nodes" / "node-0" / "trial"])
    grid.contexts[node].state.clear()
    with pytest.raises(ClientFailure, match=r"set aside as .*corrupt-1$"):
        train()
    with pytest.raises(ClientFailure, match=r"what it had learned is lost \(conv1.weight, .* and \d more\); put a"):
        train()


def test_layers_that_the_server_has_are_sent_again(federate: Federate) -> None:
    """After a file that was corrupt too, whatever lost-state is."""
    run = federate(restarts=(2,), before=remove_first(2), num_server_rounds=3, **RETAINED)
    assert failures(run) == []
    assert [record["restored"] for record in run.records] == [[], ["site-0"], [], []]
    run = federate("spoilt", restarts=(2,), before=spoil_first(2), num_server_rounds=3, **RETAINED)
    assert [(number, client) for number, client, _ in failures(run)] == [(2, "site-0")]
    assert [record["restored"] for record in run.records] == [[], [], ["site-0"], []]
