"""What was found: a line each, with what was wanted and what to do, as text or as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "fault"]
"""A note is worth reading, and a run goes on; with a fault it would not, or not for long."""
LEAST_FREE = 1e9
"""Bytes below which a disk or a memory is noted."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: machine, packages, disk, data, ...
        what: the thing.
        state: ok, note or fault.
        found: what it is.
        wanted: what it should be; empty if that goes without saying.
        advice: what to do; empty if nothing is to be done.
    """

    area: str
    what: str
    state: State
    found: str
    wanted: str = ""
    advice: str = ""

    def line(self) -> str:
        """As it is printed."""
        parts = [self.found if self.state != "ok" or not self.wanted else f"{self.found} (wanted: {self.wanted})"]
        parts += [f"wanted: {self.wanted}"] if self.wanted and self.state != "ok" else []
        parts += [self.advice] if self.advice else []
        return f"{self.state:<5}  {self.what:<22}  {'; '.join(parts)}"


def ok(area: str, what: str, found: str, wanted: str = "") -> Finding:
    """A finding that is as it should be."""
    return Finding(area, what, "ok", found, wanted)


def note(area: str, what: str, found: str, wanted: str = "", advice: str = "") -> Finding:
    """A finding that is worth reading."""
    return Finding(area, what, "note", found, wanted, advice)


def fault(area: str, what: str, found: str, wanted: str = "", advice: str = "") -> Finding:
    """A finding with which a run would not come to its end."""
    return Finding(area, what, "fault", found, wanted, advice)


def text(findings: Iterable[Finding]) -> Iterator[str]:
    """The lines of all findings, with a heading for each area."""
    area = ""
    for finding in findings:
        if finding.area != area:
            yield from ([""] if area else [])
            area = finding.area
            yield area
        yield f"  {finding.line()}"


def size(count: float) -> str:
    """Bytes for people: `1.2 GB`."""
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= least:
            return f"{count / least:,.1f} {unit}"
    return f"{count:,.0f} bytes"


def duration(seconds: float) -> str:
    """A time for people: `3.2 s`, `12 min`, `1.5 h`."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def count(findings: Iterable[Finding], state: str = "fault") -> int:
    """How many findings are of a state."""
    return sum(finding.state == state for finding in findings)
