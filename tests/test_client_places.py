"""Where clients write what is their own: a real node in its state-dir, a simulated one where the server says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from nodes import on_nodes

from fedham_flwr.client_app import make_client_app
from fedham_flwr.core.errors import UserError
from fedham_flwr.federation import wire
from fedham_flwr.federation.messages import Download
from fedham_flwr.federation.node import place_of
from fedham_flwr.models import export
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.settings import Value

Federate = Callable[..., Any]


def told(tmp_path: Path, training: str = "trial", closing: bool = True) -> Download:
    """A server that says where to write."""
    keep, export = str(tmp_path / "keep"), str(tmp_path / "export")
    return Download(3, {}, (1, 8, 8), 10, closing=closing, export=export, training=training, keep=keep)


@pytest.mark.parametrize(
    "node",
    [
        {"client-id": "a"},
        {"client-id": "a", "partition-id": 0, "num-partitions": 2},
        {"partition-id": 0, "num-partitions": 2, "data-path": "/data"},
        {"partition-id": 0},
    ],
)
def test_a_real_node_writes_nowhere_that_the_server_says(tmp_path: Path, node: dict[str, Value]) -> None:
    assert place_of(node, told(tmp_path))[:2] == (None, None)
    own = place_of({**node, "state-dir": str(tmp_path / "own")}, told(tmp_path))
    assert own == (tmp_path / "own" / "trial", tmp_path / "own" / "trial" / "model", True)
    assert own.export.is_dir()
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700
    between = place_of({**node, "state-dir": str(tmp_path / "own")}, told(tmp_path, closing=False))
    assert between == (tmp_path / "own" / "trial", None, True)
    assert not (tmp_path / "keep").exists()
    assert not (tmp_path / "export").exists()


def test_a_simulated_client_writes_where_the_server_says(tmp_path: Path) -> None:
    node: dict[str, Value] = {"partition-id": 0, "num-partitions": 2}
    assert place_of(node, told(tmp_path)) == (tmp_path / "keep", tmp_path / "export", False)
    assert place_of(node, Download(3, {}, (1, 8, 8), 10)) == (None, None, False)


@pytest.mark.parametrize("name", ["", "..", "../x", "/tmp/x", "a/b", "a\n", "." * 3, "x" * 65, "ä", "a b"])
def test_a_name_of_a_training_that_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"^training='.*', which the server gives, must be 1 to 64 letters, digits"):
        place_of({"client-id": "a", "state-dir": str(tmp_path / "own")}, told(tmp_path, name))
    assert not list(tmp_path.iterdir())


def test_a_state_dir_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"^the folder .*file/trial/model for a client's own model cannot be made: Not a"
    ):
        place_of({"client-id": "a", "state-dir": str(tmp_path / "file")}, told(tmp_path))


def test_what_a_node_has_at_the_end_is_its_own(federate: Federate, tmp_path: Path) -> None:
    run = on_nodes(federate, tmp_path)(strategy="fedper", num_server_rounds=1)
    assert not list((run.path / "model").iterdir())
    assert not (run.path / "clients").exists() or not list((run.path / "clients").iterdir())
    (model,) = (tmp_path / "nodes" / "node-2").glob("*/model/site-2.safetensors")
    assert {folder.stat().st_mode & 0o777 for folder in (model.parent, model.parent.parent)} == {0o700}


def test_a_model_that_cannot_be_written_is_a_failure_with_its_place(
    federate: Federate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_tensors", full)
    with pytest.raises(
        UserError, match=r"model of client site-0 cannot be written to .*/model: No space left on device"
    ):
        on_nodes(federate, tmp_path)(strategy="fedper", num_server_rounds=1)


def test_a_simulation_that_makes_checkpoints_reads_what_its_clients_wrote(
    settings: Callable[..., dict[str, Value]], tmp_path: Path
) -> None:
    grid = InProcessGrid(make_client_app(settings(strategy="local")), 2)
    node = next(iter(grid.contexts))
    losses = []
    for number in (1, 2, 2):
        content = wire.write_download(
            Download(number, {}, (1, 8, 8), 10, has_trained=number > 1, training="t", keep=str(tmp_path / "keep"))
        )
        (reply,) = grid.send_and_receive([Message(content, node, "train" if number == 1 else "evaluate")])
        upload = wire.read_upload(reply.content, number)
        losses.append({row.phase: row.value for row in upload.rows if (row.split, row.metric) == ("test", "loss")})
        grid.contexts[node].state.clear()
    assert [file.name for file in (tmp_path / "keep").iterdir()] == ["0.safetensors"]
    assert losses[0]["after"] == losses[1]["before"] == losses[2]["before"]
