"""Regression on a table: `python main.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fedham_flwr import Run, simulate

COLUMNS = "age bmi bp s1 s5"


def write_table(file: Path) -> None:
    """scikit-learn's diabetes data with a clinic for each row, and the outcome scaled to about 1."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes(as_frame=True).frame
    data["clinic"] = [f"clinic-{int(age > 0.03) + int(age > -0.03)}" for age in data["age"]]
    data["progress"] = (data["target"] - 150) / 75
    data[[*COLUMNS.split(), "clinic", "progress"]].to_csv(file, index=False)


def main() -> Run:
    """Three clinics, which predict a value each with a last layer of its own."""
    file = Path(tempfile.mkdtemp()) / "diabetes.csv"
    write_table(file)
    return simulate(
        "fedper", dataset=str(file), feature_column=COLUMNS, label_column="progress", target="value", clients=3,
        partitioner="natural", client_column="clinic", metrics="rmse r2", num_server_rounds=15, learning_rate=0.01,
        results_dir="results",
    )  # fmt: skip


if __name__ == "__main__":
    print(main().summary["final"])
