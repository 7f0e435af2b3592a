"""The command `fedham study`: methods tuned on validation and compared over seeds, as a TOML file says."""

from __future__ import annotations

import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from fedham_flwr.cli import Parser
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.interrupts import Interruptible
from fedham_flwr.reporting.terminal import say
from fedham_flwr.study.outlook import Outlook, look
from fedham_flwr.study.plan import Plan, read_plan
from fedham_flwr.study.processors import physical
from fedham_flwr.study.store import Store, opened
from fedham_flwr.study.taken import with_tuning

FOLDER = Path("results") / "study"
"""Where a study's folder is made, under its name."""
SOME_FAILED = 3
"""The exit code of a study that came to its end with runs that failed."""


def command(arguments: Sequence[str], program: str | None = None) -> int:
    """Carry out a study, or say what it would do; 0 if all runs are complete.

    Args:
        arguments: of the command line.
        program: its name, for the help.

    Raises:
        UserError: the study's file is wrong, or its folder cannot be used.
    """
    options = parser(program).parse_args(arguments)
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    try:
        with Interruptible():
            return _study(options)
    except KeyboardInterrupt:
        again = shlex.join([*(program or "fedham study").split(), *arguments])
        sys.stderr.write(f"interrupted; what is done is kept, and the same command goes on: {again}\n")
        return 130


def parser(program: str | None = None) -> Parser:
    """The command line."""
    what = "Tune methods on validation, run them with several seeds, and compare them, as a TOML file says."
    end = (
        "The same command goes on with a study that was interrupted. Exit code: 0 all runs are complete, 1 a fault, "
        f"2 usage, {SOME_FAILED} runs have failed, 130 interrupted."
    )
    made = Parser(program, description=what, epilog=end)
    made.add_argument("study", metavar="STUDY.toml", type=Path, help="what is compared: see docs/study.md")
    made.add_argument("--output", metavar="DIR", type=Path, help=f"the study's folder (default: {FOLDER}/<name>)")
    made.add_argument("--workers", type=int, metavar="N", help="runs side by side (default: a processor each)")
    made.add_argument("--ray-address", default="", metavar="HOST:PORT", help="of a Ray cluster that does the runs")
    made.add_argument(
        "--tuning",
        metavar="DIR",
        type=Path,
        help="of an earlier run of this study: its finished searches are taken over",
    )
    made.add_argument("--retry-failed", action="store_true", help="do runs again that have failed")
    made.add_argument("--dry-run", action="store_true", help="say what would be done, and how long it would take")
    return made


def _study(options: Namespace) -> int:
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers {options.workers} must be above 0")
    plan = read_plan(options.study)
    if options.tuning is not None:
        plan = with_tuning(plan, options.tuning.expanduser())
    folder = (options.output or FOLDER / plan.name).expanduser().absolute()
    if options.dry_run:
        store = Store(folder, options.retry_failed)
        store.check(plan)
        _tell(plan, store, options, None)
        return 0
    with opened(folder, plan) as store:
        if options.retry_failed:
            store.forget_failed()
        return _carry_out(plan, store, options)


def _carry_out(plan: Plan, store: Store, options: Namespace) -> int:
    from fedham_flwr.study.conduct import conduct
    from fedham_flwr.study.pool import LocalPool, Pool
    from fedham_flwr.study.ray_pool import RayPool

    pool: Pool
    if options.ray_address:
        pool = RayPool(options.ray_address, options.workers or 0)
    else:
        pool = LocalPool(options.workers or physical())
    try:
        _tell(plan, store, options, pool.workers)
        say(conduct(plan, store, pool).text)
    finally:
        pool.close()
    say(f"results: {store.folder}")
    return 0 if look(plan, store).complete else SOME_FAILED


def _tell(plan: Plan, store: Store, options: Namespace, workers: int | None) -> Outlook:
    """Say what the study is going to do."""
    ahead = look(plan, store)
    count = workers or options.workers or physical()
    for line in ahead.lines(count):
        say(line)
    sys.stdout.flush()  # what follows runs code of the user's, and takes its time
    ahead.measure(store)
    say(ahead.time(count))
    return ahead
