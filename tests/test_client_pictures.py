"""Folders of pictures, one for each client: what is left out is said, and an empty folder is a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fedham_flwr.data.client_files import load_clients


def test_other_files_are_said_and_an_empty_folder_is_a_class(tmp_path: Path) -> None:
    for client, label in (("north", "cat"), ("south", "dog")):
        folder = tmp_path / "photos" / client / label
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(folder / "1.png")
    (tmp_path / "photos" / "north" / "bird").mkdir()
    (tmp_path / "photos" / "south" / "dog" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "photos" / "south" / "dog" / ".hidden").write_bytes(b"x")
    data, notes = load_clients(str(tmp_path / "photos"), str(tmp_path / "copy"))
    assert data.features["label"].names == ["bird", "cat", "dog"]
    assert data["label"][:] == [1, 2]
    assert notes == [f"left out of {tmp_path / 'photos'}, since they are no pictures: south/dog/Thumbs.db"]
