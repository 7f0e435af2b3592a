"""The data that a simulation began with: what the run remembers of them, and what is said where they have changed.

`data.json` in the run's directory has the digest of the source, the folder of the cache that its clients opened, how
many clients there were, and how many the data had. Real nodes keep their data to themselves, which may grow.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.files import replacing
from fedham_flwr.core.records import MixingWeights, RoundRecord, Row
from fedham_flwr.data.cache import cache_root
from fedham_flwr.data.clients import said_of
from fedham_flwr.data.data_settings import DataSettings
from fedham_flwr.data.partitioners import BY_NAME
from fedham_flwr.data.sources import content_key
from fedham_flwr.federation.messages import Profile
from fedham_flwr.federation.progress import Recorder
from fedham_flwr.federation.roster import order

log = logging.getLogger("fedham_flwr")

FILE = "data.json"
FIRST = 5
"""How many names a sentence lists before it counts the rest."""
SHARE, LEAST = 100, 1.0
"""Between two looks at a source pass so many times the seconds that a look takes, and this many at least."""


class Began(NamedTuple):
    """What a run began with.

    Attributes:
        pin: of `ClientData`; empty if that isn't known.
        clients: how many took part, 0 if that isn't known.
        there: how many the data had, where they say so; else 0.
    """

    pin: str = ""
    clients: int = 0
    there: int = 0


def pin_of_all(profiles: Sequence[Profile]) -> str:
    """The `pin` of the data that the clients of a simulation have opened; empty on real nodes.

    Args:
        profiles: of the clients, as they have just answered.

    Raises:
        UserError: some have opened others.
    """
    pins = {profile.data: profile.client for profile in profiles}
    if len(pins) > 1:
        one, other = list(pins.values())[:2]
        raise UserError(
            f"client {one} and client {other} have opened data of different content: the source has changed while the "
            "run began, or is not the same on all machines; start again when it is at rest"
        )
    return next(iter(pins), "")


def remember(run: Path, pin: str, clients: int, settings: DataSettings) -> None:
    """Write what a run has begun with.

    Args:
        run: its directory.
        pin: of its data; without one nothing is written.
        clients: how many take part.
        settings: of the data.

    Raises:
        UserError: it can't be written.
    """
    if not pin:
        return
    content, _, folder = pin.rpartition(" ")
    there = said_of(settings, pin)[1]
    told = {"content": content, "folder": folder, "clients": clients, "clients-there": there}
    try:
        with replacing(run / FILE) as part:
            part.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"the results cannot be written to {run}: {error.strerror or error}") from error


def recall(run: Path) -> Began:
    """What a run began with, as far as it says so."""
    try:
        told = json.loads((run / FILE).read_text(encoding="utf-8"))
        return Began(f"{told['content']} {told['folder']}", int(told["clients"]), int(told["clients-there"]))
    except (OSError, ValueError, TypeError, KeyError):
        return Began()


def check(
    run: Path, pin: str, partitioner: str, accept: bool, then: Sequence[Mapping[str, object]], now: Sequence[Profile]
) -> bool:
    """Whether a run goes on with other data than it began with, which is said; whose states are whose goes by name.

    Args:
        run: its directory.
        pin: of the data as they are now.
        partitioner: the setting, `auto` resolved.
        accept: other data are welcome.
        then: the entries of clients.json.
        now: what the clients say.

    Raises:
        UserError: the data are others, and that is not accepted, or clients have no names to go by.
    """
    began = recall(run).pin
    if not began or began == pin:
        return False
    same_source, found = began.split(" ")[0] == pin.split(" ", maxsplit=1)[0], _differences(then, now)
    if same_source and not found:
        what = "the data are split or dealt otherwise than when the run began, by another version of this program"
        what += ", or by a class-table or a partitioner that has changed"
    elif same_source and len(then) != len(now):
        return False  # another number of clients of the same data, of which the caller says more
    else:
        what = "the data have changed since the run began: " + (
            "; ".join(found) if found else "values, in as many rows as before"
        )
    if not accept:
        way = ', or continue with changed-data="accept"' if partitioner in (*BY_NAME, "class-table") else ""
        raise UserError(
            f"resume={run}: {what}. A run is continued with the data that it began with: put them back, start anew{way}"
        )
    if partitioner not in (*BY_NAME, "class-table"):
        raise UserError(
            f'resume={run}: {what}. changed-data="accept" is for clients that have names, and '
            f'partitioner="{partitioner}" deals rows by draw, which would give one client what another has trained on: '
            "start anew"
        )
    log.warning('%s (changed-data="accept"): each client goes on from what the client of its name had learned', what)
    return True


def _differences(then: Sequence[Mapping[str, object]], now: Sequence[Profile]) -> list[str]:
    """Who is new, who is gone, and whose number of samples has changed."""
    before = {str(client["client"]): client for client in then}
    after = {profile.client: profile for profile in now}
    found = []
    if new := [client for client in order(after) if client not in before]:
        found.append(f"new {'is' if len(new) == 1 else 'are'} {_some(new)}")
    if gone := [client for client in order(before) if client not in after]:
        found.append(f"gone {'is' if len(gone) == 1 else 'are'} {_some(gone)}")
    counts = {client: _samples(before[client], profile) for client, profile in after.items() if client in before}
    changed = [f"{client} has {new} samples and had {old}" for client, (old, new) in counts.items() if old != new]
    return found + ([_some(changed)] if changed else [])


def _samples(before: Mapping[str, object], after: Profile) -> tuple[int, int]:
    return sum(int(str(before.get(which, 0))) for which in after.counts), sum(after.counts.values())


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - FIRST} more" if len(names) > FIRST else ""
    return ", ".join(names[:FIRST]) + rest


class Watch:
    """A recorder that also looks, now and then, whether the source of a simulation is what it was, and says so once.

    The run goes on with what it began with, which is in the cache.

    Args:
        recorder: is told of everything.
        settings: of the data.
        pin: of the data that the run began with; without one there is nothing to look at.
    """

    def __init__(self, recorder: Recorder, settings: DataSettings, pin: str) -> None:
        self._recorder, self._settings, self._content = recorder, settings, pin.rpartition(" ")[0]
        self._next = time.monotonic() + LEAST

    def record(self, record: RoundRecord, rows: Sequence[Row], weights: MixingWeights | None) -> None:
        """As `Recorder.record`."""
        self._recorder.record(record, rows, weights)
        if self._content and time.monotonic() >= self._next:
            self.look()

    def round_done(self, last: bool) -> bool:
        """As `Recorder.round_done`."""
        return self._recorder.round_done(last)

    def checkpoint(self) -> None:
        """As `Recorder.checkpoint`."""
        self._recorder.checkpoint()

    def look(self) -> None:
        """Look at the source now."""
        began, source = time.monotonic(), self._settings.dataset
        try:
            now = content_key(source, cache_root(self._settings.cache_dir) / "digests.json")
        except (UserError, OSError) as error:
            now = f"it cannot be read any more ({error})"
        if now != self._content:
            self._content = ""
            log.warning(
                "the data at %s have changed since the run began, which goes on with what it began with; to learn from "
                "what is there now, start a new run", source,
            )  # fmt: skip
        self._next = time.monotonic() + max(LEAST, SHARE * (time.monotonic() - began))
