"""A user's own folders `strategies/` and `clients/` are theirs, and the methods of this project run all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedham_flwr.core.packages import TOP, import_ours, is_ours

SCRIPT = """
import sys
if "early" in sys.argv:
    import clients, strategies
    from clients.nets import WARD

from fedham_flwr import AveragingStrategy, registry, simulate

def main():
    import clients, strategies
    assert AveragingStrategy.__module__ == "strategies.averaging"
    short = dict(clients=3, num_server_rounds=1, samples_per_client=40, verbose=False, device="cpu")
    for method in ("fedavg", "pfedla"):
        run = simulate(method, backend=sys.argv[1], model="clients.nets:Net", **short)
        assert run.summary["failures"] == 0, run.rounds
        print(method, run.summary["digest"])
    from clients.nets import WARD
    import strategies.plan
    assert (WARD, strategies.plan.PLAN, strategies.MINE, clients.MINE) == (7, 8, 9, 9)
    assert sys.modules["clients"].__file__ == sys.argv[2]
    assert registry.half("strategies.fedavg:FedAvgStrategy") is registry.half("strategies.fedavg:FedAvgStrategy")
    assert issubclass(registry.half("strategies.fedavg:FedAvgStrategy"), AveragingStrategy)

if __name__ == "__main__":
    main()
"""
NET = """
import torch
WARD = 7
class Net(torch.nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.one, self.two = torch.nn.Linear(64, 8), torch.nn.Linear(8, outputs)
    def forward(self, images):
        return self.two(self.one(images.flatten(1)).relu())
"""


def decoys(folder: Path) -> None:
    """A script's folder with packages of the names of ours, one with modules of the same names too."""
    for package in ("clients", "strategies"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text("MINE = 9\n")
        for name in ("fedavg", "averaging", "pfedla", "fedper"):
            (folder / package / f"{name}.py").write_text("raise AssertionError('a module of the user was imported')\n")
    (folder / "clients" / "nets.py").write_text(NET)
    (folder / "strategies" / "plan.py").write_text("PLAN = 8\n")
    (folder / "script.py").write_text(SCRIPT)


def ran(folder: Path, *command: str) -> list[str]:
    """The lines that a process in this folder prints, which must end well."""
    environment = {**os.environ, "PYTHONPATH": str(TOP), "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_is_ours_is_told_by_its_name_and_file() -> None:
    names = ["strategies", "strategies.averaging", "clients.fedper", "clients.nets", "client.fedper", "strategies.a.b"]
    assert [is_ours(name) for name in names] == [True, True, True, False, False, False]
    import strategies.averaging

    assert import_ours("strategies.averaging") is strategies.averaging  # where nobody is in the way


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["in-process", "cohort", "ray"])
def test_a_script_beside_such_folders_runs_and_has_its_own(tmp_path: Path, backend: str) -> None:
    decoys(tmp_path)
    init = str(tmp_path / "clients" / "__init__.py")
    late = ran(tmp_path, "script.py", backend, init)
    assert [line.split()[0] for line in late] == ["fedavg", "pfedla"]
    if backend == "in-process":
        assert ran(tmp_path, "script.py", backend, init, "early") == late


@pytest.mark.slow
@pytest.mark.parametrize("program", ["run_simulation", "fedham"])
def test_the_command_runs_in_a_folder_with_such_folders(tmp_path: Path, program: str) -> None:
    decoys(tmp_path)
    options = ["-c", "num-server-rounds=1 samples-per-client=40", "--num-supernodes", "3", "--backend", "in-process"]
    start = "import sys; sys.path.insert(0, ''); from run_simulation import fedham; sys.exit(fedham())"
    command = [str(TOP / "run_simulation.py")] if program == "run_simulation" else ["-c", start, "run"]
    ran(tmp_path, *command, *options)
    (run,) = (tmp_path / "results" / "fedper").iterdir()
    assert json.loads((run / "summary.json").read_text())["failures"] == 0
