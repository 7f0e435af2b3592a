"""How many runs go on side by side where nobody says it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fedham_flwr.doctor.machine import CGROUP, cgroup_processors
from fedham_flwr.runners.placing import usable_cpus

CPUS = Path("/sys/devices/system/cpu")


def physical(cpus: Path = CPUS, cgroup: Path = CGROUP) -> int:
    """Processors that this process may use, two threads of one core counted once: what trains gains little by both.

    Args:
        cpus: where the system tells which threads are of one core.
        cgroup: where it tells what the control group grants.
    """
    bound = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for number in bound:
        core = str(number)
        with contextlib.suppress(OSError):  # where it is not told each counts
            core = (cpus / f"cpu{number}" / "topology" / "thread_siblings_list").read_text().strip()
        cores.add(core)
    granted = cgroup_processors(cgroup)
    return max(1, min(len(cores), usable_cpus(), int(granted) if granted is not None else len(cores)))
