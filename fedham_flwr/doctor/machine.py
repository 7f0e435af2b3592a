"""The machine: Python and packages, processors, memory, GPUs and disks."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import os
import platform
import shutil
import sys
import tempfile
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedham_flwr import __version__
from fedham_flwr.core.errors import first_line
from fedham_flwr.doctor.findings import LEAST_FREE, Finding, fault, note, ok, size
from fedham_flwr.runners import placing

MODULES = {"flwr-datasets": "flwr_datasets", "scikit-learn": "sklearn", "annotated-types": "annotated_types"}
"""Names of modules that are not their packages'."""
CGROUP = Path("/sys/fs/cgroup")
LEAST_MEMORY = 0.5e9
"""Bytes that torch and Flower take alone."""


def python_and_packages(project: Mapping[str, object] | None = None) -> Iterator[Finding]:
    """Python, the platform, and each package that this one needs.

    Args:
        project: the table `project` of pyproject.toml; by default this package's own.
    """
    from packaging.specifiers import SpecifierSet

    declared = own_project() if project is None else project
    wanted = str(declared.get("requires-python", ">=3.11,<3.14"))
    found = f"{platform.python_version()} ({sys.executable})"
    if platform.python_version() in SpecifierSet(wanted, prereleases=True):
        yield ok("python", "python", found, wanted)
    else:
        yield fault("python", "python", found, wanted, "make a virtual environment with another Python")
    known = platform.system() == "Linux"
    system = f"{platform.platform()}, {platform.machine()}"
    yield (
        ok("python", "platform", system)
        if known
        else note(
            "python", "platform", system, "Linux", "single processes work; Ray and SuperNodes were tried on Linux"
        )
    )
    yield ok("python", "fedham-flwr", __version__)
    for requirement in _requirements(declared):
        yield _package(requirement)


def own_project() -> Mapping[str, object]:
    """The table `project` of this package's pyproject.toml, or of its copy in an installed package."""
    here = Path(__file__).parents[1]
    file = next((file for file in (here / "settings.toml", here.parent / "pyproject.toml") if file.is_file()), None)
    return dict(tomllib.loads(file.read_text(encoding="utf-8"))["project"]) if file else {}


def _requirements(project: Mapping[str, object]) -> Iterator[str]:
    """What is needed, and Ray as Flower's simulation wants it."""
    given = project.get("dependencies", [])
    yield from map(str, given if isinstance(given, list) else [])
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for text in importlib.metadata.requires("flwr") or []:
            if text.startswith("ray") and "simulation" in text:
                yield text.partition(";")[0].replace("(", "").replace(")", "")
                return  # a line for each range of Pythons


def _package(text: str) -> Finding:
    from packaging.requirements import Requirement

    requirement = Requirement(text)
    name, wanted = requirement.name, str(requirement.specifier) or "any"
    advice = f"pip install '{name}{requirement.specifier}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if name == "ray":
            return note("python", name, "not installed", wanted, f"--backend cohort and in-process need none; {advice}")
        return fault("python", name, "not installed", wanted, advice)
    if not requirement.specifier.contains(version, prereleases=True):
        return fault("python", name, version, wanted, advice)
    if why := _import_fault(MODULES.get(name, name)):
        return fault(
            "python", name, f"{version}, which cannot be imported: {why}", wanted, f"install it anew: {advice}"
        )
    return ok("python", name, version, wanted)


def _import_fault(module: str) -> str:
    """Why a module cannot be imported; empty if it can. What is imported already costs nothing."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:  # whatever the module raises
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


def processors_and_memory() -> Iterator[Finding]:
    """What this process may use of the processors and the memory, and the GPUs."""
    usable, there, quota = placing.usable_cpus(), os.cpu_count() or 1, cgroup_processors()
    found = f"{usable} usable of {there}"
    if quota is not None and quota < usable:
        yield note(
            "machine", "processors", f"{found}, of which the control group grants {quota:g}", "",
            f"--num-workers {max(1, int(quota))} has as many workers as there is work for",
        )  # fmt: skip
    else:
        yield ok("machine", "processors", found)
    total, available = memory()
    if not total:
        yield note("machine", "memory", "cannot be told on this platform")
    else:
        told = f"{size(available)} free of {size(total)}"
        if available < LEAST_MEMORY:
            yield fault("machine", "memory", told, f"{size(LEAST_MEMORY)} free at least", "end other programs")
        elif available < 4 * LEAST_MEMORY:
            yield note("machine", "memory", told, "", "a worker takes about 0.5 GB and its data")
        else:
            yield ok("machine", "memory", told)
    yield _gpus()


def cgroup_processors(root: Path = CGROUP) -> float | None:
    """Processors that the control group grants; None without a limit."""
    for name in ("cpu.max", "cpu/cpu.cfs_quota_us"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            words = (root / name).read_text().split()
            if len(words) == 1:
                words.append((root / "cpu/cpu.cfs_period_us").read_text().strip())
            if words[0] not in ("max", "-1"):
                return int(words[0]) / int(words[1])
    return None


def memory(root: Path = CGROUP, info: Path = Path("/proc/meminfo")) -> tuple[int, int]:
    """Bytes of memory in all and free, of the machine or of the control group, whichever is less; 0, 0 if unknown."""
    try:
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        total, available = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return 0, 0
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            limit, taken = (int((root / name).read_text()) for name in (most, used))
            if limit < total:
                # What the group has read of files counts as used, and is given back when it is needed.
                return limit, min(available, max(0, limit - taken + _cached(root)))
    return total, available


def _cached(root: Path) -> int:
    for name in ("memory.stat", "memory/memory.stat"):
        with contextlib.suppress(OSError, ValueError):
            told = dict(line.split() for line in (root / name).read_text().splitlines())
            return int(told.get("inactive_file", told.get("total_inactive_file", 0)))
    return 0


def _gpus() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return ok("machine", "GPUs", "none, so that clients train on processors")
    told = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        told.append(f"cuda:{number} {torch.cuda.get_device_name(number)}, {size(free)} free of {size(total)}")
    return ok("machine", "GPUs", "; ".join(told))


def disks(folders: Mapping[str, Path]) -> Iterator[Finding]:
    """Whether folders can be written, and what is free.

    Args:
        folders: by what they are; one that is not there yet would be made.
    """
    for what, folder in folders.items():
        yield _disk(what, folder)
    shared = Path("/dev/shm")  # noqa: S108  # where Ray keeps its objects
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        told = f"{size(free)} free"
        yield (
            ok("disk", str(shared), told)
            if free >= LEAST_FREE
            else note("disk", str(shared), told, "", "Ray keeps its objects there, and else on the disk, which is slow")
        )


def _disk(what: str, folder: Path) -> Finding:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        # Trying is the only test that holds: access bits say nothing on a read-only mount or for the superuser.
        with tempfile.NamedTemporaryFile(dir=there, prefix=".fedham-doctor-"):
            free = shutil.disk_usage(there).free
    except OSError as error:
        advice = f"name another by {what}=... or mend it" if what.endswith("-dir") else "mend it, or name another"
        return fault("disk", what, f"{folder} cannot be written ({error.strerror or error})", "", advice)
    told = f"{folder}{'' if there == folder else ' (not there yet)'}, {size(free)} free"
    if free < LEAST_FREE / 10:
        return fault("disk", what, told, f"{size(LEAST_FREE / 10)} free at least", "make room")
    return ok("disk", what, told) if free >= LEAST_FREE else note("disk", what, told, "", "make room")


def flower_home() -> Path:
    """Where Flower keeps its configuration."""
    return Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
