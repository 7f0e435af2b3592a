"""What is typed wrong on a command line is one sentence, at once, that names it and what was wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.sources import local_path


def test_a_name_with_the_ending_of_a_file_or_in_a_folder_is_a_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("stays.tsv", "Stays.XLSX", "stays.csv.gz", "data/stays", "data/stays.txt", "stays/", "no/stays.zip"):
        with pytest.raises(UserError, match=rf"dataset is '{name}', but there is no file or folder"):
            local_path(name)
    names = ("mnist", "ylecun/mnist", "allenai/c4.en", "wikitext-2-raw-v1", "user/data-v1.0", "google/fleurs.v2")
    assert not any(map(local_path, names))
