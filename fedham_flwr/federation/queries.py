"""The query of the roster: who a client is, with what the server tells of the data."""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict

_TOLD = "told"


def write_query(told: str = "") -> RecordDict:
    """A fresh record; with what is told, if that is not empty."""
    return RecordDict({_TOLD: ConfigRecord({"data": told})}) if told else RecordDict()


def read_told(content: RecordDict) -> str:
    """What a query tells of the data; empty without."""
    return str(content.config_records[_TOLD]["data"]) if _TOLD in content.config_records else ""
