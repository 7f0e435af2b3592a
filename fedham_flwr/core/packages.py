"""The packages `strategies` and `clients` of this installation, where a user has a folder of the same name."""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import lru_cache
from pathlib import Path

from fedham_flwr.core.errors import UserError

OURS = ("strategies", "clients")
TOP = Path(__file__).resolve().parents[2]


@lru_cache(maxsize=2)
def check_ours(package: str) -> None:
    """Refuse to go on where another package has the name of one of ours.

    Args:
        package: strategies or clients.

    Raises:
        UserError: that of a user's is found first.
    """
    ours = TOP / package
    spec = importlib.util.find_spec(package)
    found = spec.origin if spec else None
    if found is None or Path(found).resolve().parent != ours:
        raise UserError(
            f"{found or package} is found in place of the {package} of fedham-flwr ({ours}): wanted another name for "
            "it, or another directory to start from"
        )


def check_theirs(setting: str, path: str) -> None:
    """Say of an import path that leads nowhere that a package of ours is found in place of a user's.

    Args:
        setting: the setting that has this value, for the error.
        path: the import path.

    Raises:
        UserError: it begins with a package of ours.
    """
    package, rest = (*re.split("[.:]", path, maxsplit=1), "")[:2]
    found = getattr(sys.modules.get(package), "__file__", None)
    if package in OURS and found and Path(found).resolve().parent == TOP / package:
        lacks = f"has no {rest}" if rest else "brings nothing"
        raise UserError(
            f'{setting}="{path}": {package} is a package of fedham-flwr, which {lacks}: wanted another name for a '
            f"folder {package} of yours"
        ) from None
