"""heart_disease with its codes as the words that they stand for, by a schema, beside the numbers that they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Outcome

from fedham_flwr.data import row_hashes

Federate = Callable[..., Outcome]
NUMBERS = "age trestbps chol thalach oldpeak ca"
WORDS = {
    "sex": ["female", "male"],
    "cp": ["", "typical angina", "atypical angina", "non-anginal", "asymptomatic"],
    "fbs": ["no", "yes"],
    "restecg": ["normal", "ST-T wave", "hypertrophy"],
    "exang": ["no", "yes"],
    "slope": ["", "up", "flat", "down"],
    "thal": ["", "", "", "normal", "", "", "fixed", "reversible"],
}
"""Column -> the word of each code, from 0."""
HEART = "age sex cp trestbps chol fbs restecg thalach exang oldpeak slope ca thal"


def write_words(folder: Path, source: Path) -> tuple[Path, Path]:
    """The rows as a .csv file of words, and its schema."""
    import pandas as pd

    frame = pd.concat([pd.read_parquet(source / f"{part}.parquet") for part in ("train", "test")])
    centres, labels = ["cleveland", "hungarian", "switzerland", "va"], ["absent", "present"]
    frame["center"], frame["label"] = frame["center"].map(centres.__getitem__), frame["label"].map(labels.__getitem__)
    schema = "".join(f'[columns.{name}]\nkind = "number"\n' for name in NUMBERS.split())
    for name, words in WORDS.items():
        frame[name] = frame[name].map(dict(enumerate(words)), na_action="ignore")
        kind = "boolean" if words == ["no", "yes"] else "category"
        names = "" if kind == "boolean" else f"categories = {[word for word in words if word]}\n"
        schema += f'[columns.{name}]\nkind = "{kind}"\n{names}'
    schema += f'[label]\ncolumn = "label"\nclasses = {labels}\n'
    rows, file = folder / "heart.csv", folder / "schema.toml"
    frame.to_csv(rows, index=False)
    file.write_text(schema.replace("'", '"'))
    return rows, file


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fedper", "local"])
def test_words_do_about_as_well_as_codes(
    federate: Federate, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    def by_place(data: Any, _: Any) -> Any:
        return row_hashes.mixed(np.arange(len(data), dtype=np.uint64))

    monkeypatch.setattr(
        row_hashes, "row_hashes", by_place
    )  # both are split in the same way: what is left are the columns
    rows, schema = write_words(tmp_path, shared_data / "heart_disease")
    ways = {
        "codes": {"dataset": str(shared_data / "heart_disease"), "feature-column": HEART},
        "words": {"dataset": str(rows), "table.schema": str(schema)},
    }
    found = dict.fromkeys(ways, 0.0)
    for way, given in ways.items():
        for seed in range(3):
            run = federate(
                clients=4, partitioner="natural", client_column="center", strategy=strategy, model="mlp", seed=seed,
                num_server_rounds=10, **given,
            )  # fmt: skip
            last = [row for row in run.rows if (row.round, row.metric) == (11, "accuracy") and row.phase == "before"]
            for split in ("validation", "test"):
                scored = [row for row in last if row.split == split]
                value = sum(row.value * row.n for row in scored) / sum(row.n for row in scored)
                print(f"{strategy} {way} seed {seed} {split} {value:.4f}")  # noqa: T201
                found[way] += value / 3 if split == "test" else 0
    assert found["words"] > found["codes"] - 0.02  # of about 231 patients in each of three seeds: five
    assert found["words"] > 0.74
