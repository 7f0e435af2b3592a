"""Run the task of sensors.py: `python main.py`."""

from __future__ import annotations

from fedham_flwr import Run, simulate


def main() -> Run:
    """Six devices, whose models are mixed layer by layer."""
    return simulate(
        "pfedla", task="sensors", model="cnn1d", cnn1d={"width": 16, "depth": 2}, clients=6, num_server_rounds=10,
        metrics="accuracy f1", results_dir="results",
    )  # fmt: skip


if __name__ == "__main__":
    print(main().summary["final"])
