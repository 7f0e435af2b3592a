"""Make the runs of a published setting, and print their figures beside the published ones.

    python benchmarks/published/run.py heart-local --data data
    python benchmarks/published/run.py --list

Everything that decides is in NAME.toml: settings, seeds, split. `--data` is a folder with the data sets that it names:
mnist and cifar10 as Parquet files, heart_disease with UCI's processed.*.data. The figures are written to
outcomes/NAME.json; `python docs/make.py` takes them into docs/published.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]  # the project need not be installed

from figures import OUTCOMES, compared, names, ours, points, read, table  # noqa: E402

from fedham_flwr import simulate  # noqa: E402
from fedham_flwr.simulation import Run  # noqa: E402


def play(entry: Mapping[str, Any], seed: int, data: Path, results: Path) -> Run:
    """The run of a seed; before it that of `begin`, whose model on the server the setting named by `into` is given.

    Args:
        entry: as read from NAME.toml.
        seed: of all that is drawn.
        data: the folder that {data} stands for.
        results: the folder for runs.
    """
    settings: dict[str, Any] = {
        key: value.format(data=data) if isinstance(value, str) else value for key, value in entry["settings"].items()
    } | {"seed": seed, "results-dir": str(results), "device": "cpu"}
    usual: dict[str, Any] = {"clients": entry["clients"], "backend": "cohort", "verbose": False}
    if "begin" in entry:
        own = f"{settings['strategy']}."
        first = {key: value for key, value in settings.items() if not key.startswith(own)} | entry["begin"]
        into = str(first.pop("into"))
        settings[into] = str(simulate(**usual, **first).directory / "server.safetensors")
    return simulate(**usual, **settings)


def main() -> None:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", choices=[*names(), []], help="settings")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder with the data sets")
    parser.add_argument("--results", type=Path, default=Path("results/published"), help="the folder for runs")
    parser.add_argument("--list", action="store_true", help="say which settings there are")
    given = parser.parse_args()
    if given.list or not given.name:
        print("\n".join(f"{name:22} {read(name)['title']}" for name in names()))
    for name in given.name:
        entry = read(name)
        runs = [play(entry, seed, given.data.resolve(), given.results) for seed in entry["seeds"]]
        facts = [json.loads((run.directory / "environment.json").read_text(encoding="utf-8")) for run in runs]
        found = {
            "settings": entry["settings"],
            "begin": entry.get("begin", {}),
            "seeds": entry["seeds"],
            "versions": {what: facts[0][what] for what in ("fedham-flwr", "torch", "flwr")},
            "here": [[ours(run.rows, figure, after) for run in runs] for figure, after, _ in points(entry)],
        }
        OUTCOMES.mkdir(exist_ok=True)
        (OUTCOMES / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(
            f"\n{entry['title']}\n{table(['figure', 'after', 'published', 'here', 'distance'], compared(entry, found))}"
        )


if __name__ == "__main__":
    main()
