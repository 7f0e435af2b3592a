"""Facts about the environment of a run that a reader needs to judge or repeat it: versions, machine, commit."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import torch

from fedham_flwr import __version__

_SOURCE = Path(__file__).resolve().parents[2]


def environment_facts(device: str, start: datetime) -> dict[str, object]:
    """The facts; what is not known is absent.

    Args:
        device: the setting.
        start: when the run began, UTC.
    """
    cuda = device != "cpu" and torch.cuda.is_available()
    packages = {name: _version(name) for name in ("flwr", "ray", "torch", "numpy")}
    facts = {
        "started": f"{start:%Y-%m-%dT%H:%M:%SZ}",
        "commit": _commit(),
        "python": platform.python_version(),
        "fedham-flwr": __version__,
        **packages,
        "platform": platform.platform(),
        "cpu-count": os.cpu_count(),
        "torch-threads": torch.get_num_threads(),
        "device": f"cuda ({torch.cuda.get_device_name()})" if cuda else "cpu",
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


@lru_cache(maxsize=16)
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree, ending in -dirty when files differ from it; None without one."""
    git = shutil.which("git")
    # Only a repository of our own: an installed copy may lie inside somebody else's.
    if git is None or not (_SOURCE / ".git").exists():
        return None
    command = [git, "-C", str(_SOURCE), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
