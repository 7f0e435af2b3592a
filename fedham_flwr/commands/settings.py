"""`fedham settings`: every setting with its default and what it does."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from fedham_flwr.cli import Parser
from fedham_flwr.settings import defaults


def command(arguments: Sequence[str], program: str | None = None) -> int:
    """Print every setting with its default and what it does, or those of one section, or one setting.

    Args:
        arguments: of the command line: nothing, or a section's or a setting's name.
        program: its name, for the help.
    """
    parser = Parser(program, description="Print settings with their defaults and what they do.")
    parser.add_argument("name", nargs="?", default="", metavar="SECTION | SETTING", help="default: all")
    given = arguments[1:] if arguments[:1] == ["--section"] else arguments
    section, known = parser.parse_args(given).name, defaults()
    chosen = {key: known[key] for key in known if not section or section in (key, key.rpartition(".")[0])}
    if not chosen:
        sections = dict.fromkeys(key.partition(".")[0] for key in known if "." in key)
        sys.stderr.write(f"error: there is no section and no setting {section}: wanted one of {', '.join(sections)}\n")
        return 1
    said = remarks()
    try:
        for key, value in chosen.items():
            line = f"{key} = {json.dumps(value)}"
            sys.stdout.write(f"{line:<32}  # {said[key]}\n" if said.get(key) else f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:  # `fedham settings | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def remarks() -> dict[str, str]:
    """What pyproject.toml, or its copy in an installed package, says of each setting; nothing if there is neither."""
    here = Path(__file__).parents[1]
    file = next((file for file in (here / "settings.toml", here.parent / "pyproject.toml") if file.is_file()), None)
    text = file.read_text(encoding="utf-8") if file else ""
    part = text.partition("[tool.flwr.app.config]")[2].partition("# ---- the gates")[0]
    found: dict[str, str] = {}
    key = ""
    for line in part.splitlines():
        if match := re.match(r"([a-z][\w.-]*) = .*?(?:  +# (.*)|(?<=\") # (.*))?$", line):
            key = match[1]
            found[key] = match[2] or match[3] or ""
        elif key and (more := re.match(r" +# (.*)", line)):
            found[key] += f" {more[1]}"
        else:
            key = ""
    return {name: " ".join(remark.split()) for name, remark in found.items()}
