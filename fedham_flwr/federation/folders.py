"""The folders that a message tells a client of a simulation to write to, and others in their place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from flwr.app import ConfigRecord, RecordDict

from fedham_flwr.federation import wire
from fedham_flwr.federation.direct import Direct
from fedham_flwr.federation.messages import Download


def read(content: RecordDict) -> tuple[str, str]:
    """Where a client of a simulation is told to keep its state and to write its model; empty for nowhere."""
    if isinstance(content, Direct):
        return (content.value.keep, content.value.export) if isinstance(content.value, Download) else ("", "")
    given: Mapping[str, object] = content.config_records.get(wire.INSTRUCTIONS, ConfigRecord())
    return str(given.get("keep", "")), str(given.get("export", ""))


def replace(content: RecordDict, keep: str, export: str) -> RecordDict:
    """A message with other folders in the place of those that it has."""
    old_keep, old_export = read(content)
    keep, export = keep if old_keep else "", export if old_export else ""
    if isinstance(content, Direct):
        if isinstance(content.value, Download):
            return Direct(dataclasses.replace(content.value, keep=keep, export=export))
    elif wire.INSTRUCTIONS in content.config_records:
        content.config_records[wire.INSTRUCTIONS].update({"keep": keep, "export": export})
    return content
