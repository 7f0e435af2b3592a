"""Run the method of fedrep_mine.py: `python main.py`."""

from __future__ import annotations

from fedham_flwr import Run, simulate


def main() -> Run:
    """Five clients with two digits each."""
    return simulate(
        "fedrep_mine:FEDREP", clients=5, num_server_rounds=5, samples_per_client=100, results_dir="results",
        **{"fedrep.head-epochs": 3},
    )  # fmt: skip


if __name__ == "__main__":
    print(main().summary["final"])
