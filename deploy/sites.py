"""Makes a data folder for each site out of one data set with a column that says whose a row is.

    python deploy/sites.py sites --dataset heart_disease --client-column center --features "age sex cp trestbps chol"
    python deploy/sites.py sites         # without a data set: scikit-learn's breast-cancer table, dealt to four sites

Every site gets `FOLDER/<site>/data.parquet`: the columns asked for and the label, with the names of its classes (a
class must have the same number everywhere), and nothing else. At the end the settings for `flwr run` are printed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project need not be installed

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import stream

if TYPE_CHECKING:
    import datasets

SHARES = {"north": 0.4, "south": 0.3, "east": 0.2, "west": 0.1}
"""Of the patients of the breast-cancer table, for sites that do not exist."""


@dataclass(frozen=True)
class Sites:
    """Who has what.

    Attributes:
        folders: site -> its data folder.
        rows: site -> how many.
        settings: what a run must be told, `feature-column` and `label-column`.
    """

    folders: dict[str, Path]
    rows: dict[str, int]
    settings: dict[str, str]


def make(
    folder: Path, dataset: Path | None = None, client_column: str = "", features: Sequence[str] = (), label: str = ""
) -> Sites:
    """Write the data folders.

    Args:
        folder: for them; made if it is not there.
        dataset: a folder or file that `datasets.load_dataset` reads; None: the breast-cancer table.
        client_column: says whose a row is.
        features: columns to keep; none: the image column. Of a table they must be named, since one of its columns may
            be the label in disguise.
        label: the column of the classes; empty: the only one that is a class label.

    Raises:
        UserError: a column is not there, or two sites would have the same folder.
    """
    import datasets

    datasets.disable_progress_bars()
    if dataset is None:
        table = _breast_cancer()
        return _write(folder, table, "site", features or [*table.features][:-2], "label")
    with tempfile.TemporaryDirectory() as copy:
        return _write(folder, _load(dataset, copy), client_column, features, label)


def _load(path: Path, copy: str) -> datasets.Dataset:
    """All rows, those of train first."""
    import datasets

    files = sorted(path.rglob("*.parquet"), key=lambda file: ("train" not in file.name, file.name))
    what = [str(file) for file in files] if path.is_dir() else str(path)
    kind = "parquet" if path.is_dir() else {".csv": "csv", ".jsonl": "json"}.get(path.suffix, "parquet")
    if not what or not path.exists():
        raise UserError(
            f"dataset is {path}, but must be a folder of .parquet files, or a .parquet, .csv or .jsonl file"
        )
    return datasets.load_dataset(kind, data_files=what, split="train", cache_dir=copy)


def _breast_cancer() -> datasets.Dataset:
    """Wolberg, Street and Mangasarian's 569 patients, with a site drawn for each."""
    import datasets
    import numpy as np
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer()
    ends = np.cumsum(list(SHARES.values())) * len(table.target)
    drawn = np.searchsorted(ends, stream(0, "sites").permutation(len(table.target)), side="right")
    numbers = {name.replace(" ", "_"): table.data[:, k] for k, name in enumerate(table.feature_names)}
    kinds: dict[str, Any] = dict.fromkeys(numbers, datasets.Value("float64"))
    kinds |= {"label": datasets.ClassLabel(names=[*map(str, table.target_names)])}
    kinds |= {"site": datasets.ClassLabel(names=[*SHARES])}
    columns = numbers | {"label": table.target, "site": drawn}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def _write(folder: Path, data: datasets.Dataset, client: str, features: Sequence[str], label: str) -> Sites:
    owners = [str(owner) for owner in _names(data, client)]
    label = label or _only_class_label(data, client)
    chosen = list(features) or [_image_column(data)]
    for name in (label, *chosen):
        if name not in data.features:
            raise UserError(f"there is no column {name!r} among {', '.join(data.features)}")
    made = Sites({}, {}, {"feature-column": " ".join(chosen), "label-column": label})
    for owner in sorted(set(owners)):
        site = re.sub(r"[^A-Za-z0-9_-]+", "-", owner).strip("-_")
        if not site or site in made.folders:
            raise UserError(f"the site {owner!r} of column {client!r} makes no file name of its own: rename it")
        rows = data.select([row for row, other in enumerate(owners) if other == owner])
        made.folders[site], made.rows[site] = folder / site, len(rows)
        (folder / site).mkdir(mode=0o700, parents=True, exist_ok=True)
        rows.select_columns([*chosen, label]).to_parquet(folder / site / "data.parquet")
        (folder / site / "data.parquet").chmod(0o600)
    return made


def _only_class_label(data: datasets.Dataset, client: str) -> str:
    found = [name for name, kind in data.features.items() if type(kind).__name__ == "ClassLabel" and name != client]
    if len(found) != 1:
        raise UserError(f"--label must name the column of the classes: {len(found)} are class labels")
    return str(found[0])


def _image_column(data: datasets.Dataset) -> str:
    found = [name for name, kind in data.features.items() if type(kind).__name__ == "Image"]
    if len(found) != 1:
        raise UserError(f"--features must name the columns to keep, among {', '.join(data.features)}")
    return str(found[0])


def _names(data: datasets.Dataset, client: str) -> list[Any]:
    if client not in data.features:
        raise UserError(f"there is no column {client!r} among {', '.join(data.features)}: --client-column names one")
    kind, values = data.features[client], data[client][:]
    return [kind.int2str(value) for value in values] if hasattr(kind, "int2str") else list(values)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what the sites have."""
    parser.add_argument("--dataset", type=Path, help="folder or file; without: scikit-learn's breast-cancer table")
    parser.add_argument("--client-column", default="", help="column that says whose a row is")
    parser.add_argument("--features", default="", help="columns to keep, with blanks between")
    parser.add_argument("--label", default="", help="column of the classes, where there are several class labels")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="A data folder for each site, out of one data set.")
    parser.add_argument("folder", type=Path)
    arguments(parser)
    given = parser.parse_args()
    try:
        made = make(given.folder, given.dataset, given.client_column, given.features.split(), given.label)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for site, folder in made.folders.items():
        print(f"{folder}  {made.rows[site]} rows")
    print(" ".join(f'{key}="{value}"' for key, value in made.settings.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
