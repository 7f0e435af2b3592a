"""The command `fedham doctor`: looks at the machine, at the data and settings of a run, and at a SuperNode's setup."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedham_flwr import __version__
from fedham_flwr.cli import asked_for, overrides
from fedham_flwr.cli import parser as run_parser
from fedham_flwr.core.errors import UserError
from fedham_flwr.data.cache import cache_root
from fedham_flwr.doctor import data as of_data
from fedham_flwr.doctor import machine, network, node, superlink, trial
from fedham_flwr.doctor.findings import Finding, count, duration, fault, note, ok, size, text
from fedham_flwr.doctor.rehearsal import rehearsed
from fedham_flwr.resume.continuing import clients_of
from fedham_flwr.runners import Simulation
from fedham_flwr.settings import Value, defaults


def command(arguments: Sequence[str], program: str | None = None) -> int:
    """Look, print what was found, and return 0 without a fault, 1 with one.

    Args:
        arguments: of the command line.
        program: its name, for the help.
    """
    options = parser(program).parse_args(arguments)
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    told: dict[str, Any] = {}
    findings: list[Finding] = []
    for finding in _look(options, told):
        findings.append(finding)
        if not options.json:
            sys.stdout.write(_next(findings))
            sys.stdout.flush()
    faults = count(findings)
    if options.json:
        found = {"fedham-flwr": __version__, "faults": faults, "findings": [vars(each) for each in findings], **told}
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        notes = count(findings, "note")
        sys.stdout.write(f"\n{faults} fault{'s' * (faults != 1)}, {notes} note{'s' * (notes != 1)}\n")
    return 1 if faults else 0


def parser(program: str | None = None) -> argparse.ArgumentParser:
    """The command line: that of a run, and more."""
    parent = run_parser(program)
    chosen = (
        "run_config",
        "num_supernodes",
        "backend",
        "engine",
        "num_cpus",
        "num_workers",
        "ray_address",
        "results_dir",
    )
    what = "Check this machine, a run's data and settings, or a SuperNode's setup, without starting anything."
    made = argparse.ArgumentParser(program, description=what, epilog="Exit code: 0 no fault, 1 a fault, 2 usage.")
    made.add_argument("--data", metavar="DATA", help="the setting dataset: open it as a run would")
    for action in parent._actions:
        if action.dest in chosen:
            made._add_action(action)
    made.add_argument("--no-trial", action="store_true", help="do not carry out a few local steps to measure them")
    made.add_argument("--start-ray", action="store_true", help="try whether Ray can be started here (10 s)")
    made.add_argument(
        "--ports", type=_port, nargs="*", metavar="PORT", help="look whether ports are free (8000 9092 9094)"
    )
    made.add_argument("--node-config", metavar="'KEY=VALUE ...'", help="of a SuperNode, as it is started with")
    made.add_argument("--superlink", metavar="HOST:PORT", help="whom the SuperNode is to reach")
    made.add_argument("--root-certificates", metavar="FILE", help="of the SuperLink's authority")
    made.add_argument("--auth-supernode-private-key", metavar="FILE", help="the SuperNode's key")
    made.add_argument("--insecure", action="store_true", help="the SuperLink is reached without TLS")
    made.add_argument("--json", action="store_true", help="print JSON")
    return made


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: wanted 1 to 65535")
    return int(text)


def _next(findings: Sequence[Finding]) -> str:
    """The lines of the last finding, with a heading if its area is new."""
    last = findings[-1]
    new = len(findings) == 1 or findings[-2].area != last.area
    lines = list(text([last]))
    if new and len(findings) > 1:
        lines.insert(0, "")
    return "".join(f"{line}\n" for line in (lines if new else lines[1:]))


def _look(options: argparse.Namespace, told: dict[str, Any]) -> Iterator[Finding]:
    """All findings, in the order in which they are printed."""
    try:
        given, asked = _given(options)
    except UserError as error:
        yield fault("run", "settings", str(error))
        given, asked = {}, set()
    of_node = options.node_config is not None or options.superlink is not None
    of_run = bool(options.data or options.run_config) and not of_node
    yield from machine.python_and_packages()
    yield from machine.processors_and_memory()
    yield from machine.disks(_folders(given))
    if not of_node:
        yield from network.ray(options.start_ray)
    if options.ports is not None:
        yield from network.ports(options.ports)
    if of_node:
        if options.node_config is not None:
            yield from node.findings(options.node_config, given)
        yield from superlink.findings(
            options.superlink, options.root_certificates, options.auth_supernode_private_key, options.insecure
        )
    if of_run and given:
        yield from _of_run(options, given, asked, told)


def _given(options: argparse.Namespace) -> tuple[dict[str, Value], set[str]]:
    """The settings that are given, and which of them on the command line."""
    texts = options.run_config or []
    given = overrides(texts)
    asked = asked_for(texts, given)
    for key, value in (("dataset", options.data), ("results-dir", options.results_dir)):
        if value:
            given[key] = value
            asked.add(key)
    return given, asked


def _folders(given: dict[str, Value]) -> dict[str, Path]:
    results, cache = (str(given.get(key, defaults()[key])) for key in ("results-dir", "cache-dir"))
    return {
        "results-dir": Path(os.path.abspath(os.path.expanduser(results))),
        "cache-dir": cache_root(cache),
        "FLWR_HOME": machine.flower_home(),
    }


def _of_run(
    options: argparse.Namespace, given: dict[str, Value], asked: set[str], told: dict[str, Any]
) -> Iterator[Finding]:
    """The data and what a run will take."""
    try:
        number = clients_of(given) if options.num_supernodes is None else options.num_supernodes
        if number < 1:
            raise UserError(f"--num-supernodes {number} must be above 0")
        simulation = Simulation(
            number, options.backend, options.engine, options.num_cpus, options.num_workers, options.ray_address
        )
        with rehearsed(given, simulation, asked) as rehearsal:
            told["data"] = of_data.describe(rehearsal)
            found = list(of_data.findings(rehearsal, told["data"]))
            lines = list(of_data.table(rehearsal.profiles))
            if not options.no_trial:
                told["prediction"] = trial.predict(given, simulation, rehearsal)
        yield from (finding for finding in found if finding.area == "data")
        if not options.json:
            sys.stdout.write("".join(f"         {line}\n" for line in lines))
        yield from (finding for finding in found if finding.area == "run")
        if not options.no_trial:
            yield from _predicted(told["prediction"])
    except UserError as error:
        yield fault("run", "the run is refused", str(error))


def _predicted(found: dict[str, Any]) -> Iterator[Finding]:
    """What a run will send, take and need."""
    down, up = size(found["bytes-down-per-client"]), size(found["bytes-up-per-client"])
    each = found["bytes-per-round"]
    yield ok(
        "run", "sent per client", f"{down} down and {up} up in a round, of a model of {size(found['model-bytes'])}"
    )
    yield ok(
        "run", "sent per round", f"{size(each['down'])} down and {size(each['up'])} up, of {found['cohort']} clients"
    )
    tried, workers = found["trial"]["clients"], f"{found['workers']} worker{'s' * (found['workers'] != 1)}"
    yield ok(
        "run", "seconds, an estimate",
        f"{duration(found['seconds-per-round'])} a round, {duration(found['seconds-in-all'])} in all, on {workers} "
        f"(measured with {tried} clients here)",
    )  # fmt: skip
    needed, (_, free) = found["memory"]["in-all"], machine.memory()
    line = f"{size(found['memory']['worker'])} a process, {size(needed)} in all"
    yield (
        ok("run", "memory, an estimate", line)
        if not free or needed < free
        else note(
            "run", "memory, an estimate", f"{line}, and {size(free)} are free", "", "take fewer workers: --num-workers"
        )
    )
