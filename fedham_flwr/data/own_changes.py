"""Data of a node's own that change: they may, which is said; what their classes and columns mean may not in a run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.files import replacing
from fedham_flwr.data.cache import key_of
from fedham_flwr.data.client_data import ClientData

log = logging.getLogger("fedham_flwr")


def look(root: Path, path: str, content: str, training: str, data: ClientData, notes: Sequence[str]) -> None:
    """Compare a node's data with what they were when they were opened last, and say a change.

    Args:
        root: of the cache, where what they are is remembered.
        path: of the data.
        content: their digest.
        training: name of the training that they are opened for; empty before the first round.
        data: as they are now.
        notes: what is to be said of them, where they are new or have changed.

    Raises:
        UserError: their classes or columns are others than the training began with.
    """
    place = os.path.abspath(os.path.expanduser(path))
    file = root / f"own-{key_of(place)}.json"
    means = [list(names) for names in data.meanings]
    samples = sum(data.counts().values())
    now = {"path": place, "content": content, "samples": samples, "training": training, "means": means}
    was: dict[str, object] = {}
    with contextlib.suppress(OSError, ValueError):
        was = dict(json.loads(file.read_text(encoding="utf-8")))
    same_training = bool(training) and was.get("training") == training
    if same_training and was.get("means") != means:
        raise UserError(
            f"the classes or columns of the data at {path} are others than when this training began: they were "
            f"{_listed(was.get('means'))} and are {_listed(means)}; put the data back, or start a new run"
        )
    if was.get("content") not in (None, content):
        log.warning(
            "the data at %s have changed: %s samples, and there were %s; this client goes on with what is there now",
            path, samples, was.get("samples"),
        )  # fmt: skip
    for note in notes if was.get("content") != content else ():
        log.warning("%s: %s", path, note)
    if was.get("content") != content or (training and not same_training):
        with contextlib.suppress(OSError), replacing(file) as part:  # it would be said again, no more
            part.write_text(json.dumps(now if training else now | {"training": was.get("training", "")}))


def _listed(means: object) -> str:
    named = [each for each in means if each] if isinstance(means, list) else []
    return " and ".join(", ".join(map(str, each[:10])) + (" ..." if len(each) > 10 else "") for each in named)
