"""The numbers of a round and of a whole run by name, as every tracker is told them.

<split>/<model>/<phase>/<metric>/mean    and weighted-mean, std, worst-decile; of novel clients with novel/ before it
selection/<metric>                       the validation value of the model that the method stands for
round/seconds, bytes-up, bytes-down, failures
clients/<client>/<split>/...             each client's own, if wanted
final/<metric>/mean, ...                 at the end: on the test split, of the models in model/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedham_flwr.callbacks.protocol import RoundReport
from fedham_flwr.core.files import safe_name
from fedham_flwr.core.records import MEMBER

STATISTICS = ("mean", "weighted-mean", "std", "worst-decile")


def of_round(report: RoundReport, clients: bool = False) -> dict[str, float]:
    """A round's numbers.

    Args:
        report: what it brought.
        clients: each client's too.
    """
    found: dict[str, float] = {}
    for one in report.statistics:
        found |= {f"{one.path}/{name}": getattr(one, name.replace("-", "_")) for name in STATISTICS}
    found |= {f"selection/{metric}": value for metric, value in report.validation.items()}
    found |= {
        "round/seconds": report.seconds,
        "round/bytes-up": report.bytes_up,
        "round/bytes-down": report.bytes_down,
        "round/failures": len(report.failures),
    }
    for row in report.rows if clients else ():
        who = safe_name(row.client).replace("%", "_")  # what trackers take in a name
        found[f"clients/{who}/{row.split}/{row.model}/{row.phase}/{row.metric}"] = row.value
    return found


def of_end(summary: Mapping[str, Any]) -> dict[str, float]:
    """What came of a run: the test scores of the models that it has left; empty if it was ended before its time.

    Args:
        summary: what `summary.json` says.
    """
    of_files = summary.get("exported")
    wanted = {**of_files, "split": "test", "population": MEMBER} if of_files else None
    found: dict[str, float] = {}
    for entry in summary.get("final", ()):
        if wanted and all(entry[name] == value for name, value in wanted.items()):
            found |= {f"final/{entry['metric']}/{name}": float(entry[name]) for name in STATISTICS}
    return found
