"""Three hospitals' own files, from the first command of the page to predictions: in a simulation, and over TLS."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "deploy"))

from federation import Federation  # noqa: E402

EXAMPLE = ROOT / "examples" / "hospitals"
SITES = ("north", "south", "west")


def commands() -> list[str]:
    """Those of the page's first block."""
    block = re.search(r"```sh\n(.*?)```", (ROOT / "docs" / "three-files.md").read_text(), re.DOTALL)
    assert block is not None
    return block[1].splitlines()


def test_the_page_needs_at_most_ten_commands() -> None:
    assert 3 <= len(commands()) <= 10


@pytest.mark.slow
def test_the_commands_of_the_page_lead_from_three_files_to_predictions(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "examples" / "hospitals")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "FLWR_TELEMETRY_ENABLED": "0", "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(commands())],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    folder = tmp_path / "examples" / "hospitals"
    rows = list(csv.DictReader((folder / "south.csv").read_text().splitlines()))
    assert len(rows) == 120
    assert all(abs(float(row["p(healthy)"]) + float(row["p(sick)"]) - 1) < 1e-6 for row in rows)
    with (folder / "data" / "south.csv").open() as file:
        truth = [row["diagnosis"] for row in csv.DictReader(file, delimiter=";")]
    assert sum(row["prediction"] == each for row, each in zip(rows, truth, strict=True)) / len(rows) > 0.7
    assert (folder / "south.onnx").stat().st_size > 10_000
    (run,) = (folder / "results" / "fedper").iterdir()
    assert {file.stem for file in (run / "model").glob("*.safetensors")} == set(SITES)


@pytest.mark.slow
def test_three_hospitals_keep_their_files_and_go_through_tls_to_predictions(tmp_path: Path) -> None:
    from fedham_flwr import predict

    data = shutil.copytree(EXAMPLE / "data", tmp_path / "data")
    schema = tmp_path / "schema.toml"
    command = [sys.executable, "-c", "from run_simulation import fedham; raise SystemExit(fedham())"]
    drafted = subprocess.run(
        [*command, "schema", str(data / "north.csv"), "--label", "diagnosis", "-o", str(schema)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert drafted.returncode == 0, drafted.stderr
    folder = tmp_path / "federation"
    settings = {"table.schema": str(schema), "round-timeout": 300.0, "min-clients": 3, "seed": 1}
    with Federation(folder, defaults=settings) as federation:
        federation.start_superlink()
        federation.start_nodes({site: data / f"{site}.csv" for site in SITES})
        outcome = federation.run('strategy="fedper" num-server-rounds=3 local-epochs=6', timeout=900)
        assert outcome.code == 0, outcome.output
    assert outcome.path is not None
    assert not list((outcome.path / "model").glob("*.safetensors"))  # they are the hospitals' own
    for site in SITES:
        (model,) = (folder / "nodes" / site / "state").glob(f"*/model/{site}.safetensors")
        assert model.with_suffix(".md").is_file()
        with (data / f"{site}.csv").open() as file:
            truth = [row["diagnosis"] for row in csv.DictReader(file, delimiter=";" if site == "south" else ",")]
        predicted = predict(model, data / f"{site}.csv")
        right = sum(a == b for a, b in zip(predicted["prediction"], truth, strict=True)) / len(truth)
        assert right > max(truth.count("sick"), truth.count("healthy")) / len(truth), site
