"""Results of the papers, repeated: accuracy beside the printed numbers, and what the methods learned.

    python benchmarks/reproduce.py pfedla --card pfedla.md                 # Table 1 of pFedLA; an hour on two cores
    python benchmarks/reproduce.py pfedla --quick                          # two rounds of few samples: does it run?
    python benchmarks/reproduce.py pfedla --methods local --pairs --seeds 0 --rounds 10 -c 'learning-rate=0.005'
    python benchmarks/reproduce.py fedham --folder runs --card fedham.md   # seven methods in the setting of PFLlib
    python benchmarks/reproduce.py fedham --folder runs --methods local fedham-peers --splits dirichlet --seeds 0
    python benchmarks/reproduce.py fedtp --folder runs --card fedtp.md     # Transformers on CIFAR-10 and Shakespeare
    python benchmarks/reproduce.py fedtransfer --folder runs --card fedtransfer.md    # Fed_T, Fed_T_A and ablations

What is compared with what, and how, is said in `paper_pfedla.py`, `paper_fedham.py`, `paper_fedtp.py` and
`paper_fedtransfer.py`. A run is one process with one thread, and `--processes` of them stand side by side. With
`--folder` what was finished with the same settings is not done again, and a card may be made of a part of it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import paper_fedham
import paper_fedtp
import paper_fedtransfer
import paper_pfedla
from common import CIFAR10, publish
from runs import Case, Result, Setup, check, run_all


class Paper(Protocol):
    """What is to be said of a comparison, each in a module of its own."""

    __doc__: str | None

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that only this one has, the default of `--rounds`, and other defaults of its own."""

    def plan(self, given: argparse.Namespace, folder: Path) -> dict[Case, Setup]:
        """The runs that are asked for."""

    def prepare(self, given: argparse.Namespace, folder: Path) -> None:
        """Write data that the runs need and that are not there."""

    def card(self, results: Mapping[Case, Result], given: argparse.Namespace) -> str:
        """The result as Markdown."""


PAPERS: Mapping[str, Paper] = {
    "pfedla": paper_pfedla,
    "fedham": paper_fedham,
    "fedtp": paper_fedtp,
    "fedtransfer": paper_fedtransfer,
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    papers = parser.add_subparsers(dest="paper", required=True, metavar="|".join(PAPERS), help="whose results")
    for name, paper in PAPERS.items():
        what = (paper.__doc__ or "").partition("\n")[0]
        one = papers.add_parser(name, help=what, description=what)
        one.add_argument("--data", type=Path, default=CIFAR10, help="folder with CIFAR-10 as Parquet files")
        one.add_argument("--rounds", type=int, help="default %(default)s")
        one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default %(default)s")
        one.add_argument(
            "--processes", type=int, default=os.cpu_count() or 1, help="runs side by side (default %(default)s)"
        )
        one.add_argument("--folder", type=Path, help="where the runs go and are found again (default: a temporary one)")
        one.add_argument("--quick", action="store_true", help="two rounds, one seed, few images")
        one.add_argument("-c", default="", metavar="KEY=VALUE ...", help="settings for all runs, values as in JSON")
        one.add_argument("--card", type=Path, help="a file for the result")
        paper.options(one)
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seeds, given.samples = 2, [0], 60
    return given


def main() -> None:
    """Run everything and print the card."""
    given = arguments()
    paper = PAPERS[given.paper]
    if not given.data.is_dir():
        raise SystemExit(f"--data {given.data}: there is no such folder; wanted CIFAR-10 as Parquet files")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        plan = paper.plan(given, folder)
        check(plan)
        paper.prepare(given, folder)
        publish(paper.card(run_all(plan, folder, given.processes), given), given.card)


if __name__ == "__main__":
    main()
