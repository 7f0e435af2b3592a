"""The examples run, from their own folder, and learn."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEAST = {"vision": ("accuracy", 0.8), "sensors": ("accuracy", 0.8), "method": ("accuracy", 0.8), "tables": ("r2", 0.1)}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEAST)
def test_an_example_runs_and_learns(name: str, tmp_path: Path) -> None:
    metric, least = LEAST[name]
    code = f"""
import main
rows = main.main().rows
rows = rows[(rows["split"] == "test") & (rows["metric"] == {metric!r}) & (rows["round"] == rows["round"].max())]
print("mean", rows.groupby("phase")["value"].mean().max())
"""
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT / 'examples' / name}{os.pathsep}{ROOT}", "FLWR_TELEMETRY_ENABLED": "0",
        "XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.splitlines()[-1].split()[1]) > least


@pytest.mark.parametrize("name", LEAST)
def test_an_example_has_a_short_readme(name: str) -> None:
    assert len((ROOT / "examples" / name / "README.md").read_text().splitlines()) <= 14
