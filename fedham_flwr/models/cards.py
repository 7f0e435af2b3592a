"""The card of an exported model: what it is, what it was trained on and how good it is, as JSON and as Markdown.

`<client>.json` and `<client>.md` lie beside `<client>.safetensors`, and have the same facts. What was not measured is
absent from the one, and the other says that it was not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedham_flwr.core.files import replacing

FORMAT = 1
"""Of the JSON."""
MOST = 40
"""Classes, columns or peers in the Markdown; the JSON has all."""
Facts = dict[str, Any]


def write(folder: Path, client: str, facts: Mapping[str, Any]) -> None:
    """Write both files, each whole or not at all.

    Args:
        folder: of the model.
        client: id, the name of the files.
        facts: of the card.

    Raises:
        OSError: they cannot be written.
    """
    text = json.dumps(_finite(facts), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in ((f"{client}.json", text), (f"{client}.md", markdown(facts))):
        with replacing(folder / name) as part:
            part.write_text(content, encoding="utf-8")


def read(folder: Path, client: str) -> Facts | None:
    """The facts of a card; None if there is none.

    Args:
        folder: of the model.
        client: id.
    """
    try:
        return dict(json.loads((folder / f"{client}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def markdown(facts: Mapping[str, Any]) -> str:
    """A card to be read.

    Args:
        facts: as in the JSON.
    """
    name, client = str(facts["name"]), str(facts["client"])
    title = f"# The model of client {_plain(client)}" + (f" ({_plain(name)})" if name != client else "")
    parts = [title, *_model(facts), *_data(facts["data"]), *_method(facts["method"]), *_scores(facts), *_history(facts)]
    parts += [*_listened(facts), "## Versions", _table(("package", "version"), facts["versions"].items())]
    return "\n\n".join(parts) + "\n"


def _model(facts: Mapping[str, Any]) -> list[str]:
    model = facts["model"]
    trained = model.get("trained-parameters", model["parameters"])  # an earlier version has one number
    part = f", of which {trained:,} are trained" if trained != model["parameters"] else ""
    phases = {"before": "before the last local training", "after": "after local training"}
    rows = [
        ("file", model["file"]),
        ("SHA-256", model["sha256"]),
        ("network", f"{model['network']}, {model['parameters']:,} parameters{part}"),
        ("phase", f"{model['phase']}: {phases.get(model['phase'], '')} in round {model['round']}"),
        ("method", facts["method"]["strategy"]),
    ]
    rows += [("caution", facts["caution"])] if "caution" in facts else []
    return [_table(("", ""), rows)]


def _data(data: Mapping[str, Any]) -> list[str]:
    counts = data["samples"]
    parts = ["## Data", f"Samples of the kind {_plain(data['kind'])}; what is learned: {_plain(data['target'])}."]
    head: tuple[str, ...] = ("", *counts)
    rows: list[Sequence[Any]] = [("samples", *counts.values())]
    found = data.get("classes", {})
    rows += [(name, *(each.get(split, 0) for split in counts)) for name, each in _some(found.items())]
    parts.append(_table(head, rows))
    if len(found) > MOST:
        parts.append(f"{len(found) - MOST} more classes are in the JSON file.")
    if columns := data.get("columns"):
        more = f" and {len(columns) - MOST} more" if len(columns) > MOST else ""
        parts.append(f"Columns: {', '.join(f'`{_code(name)}`' for name in _some(columns))}{more}.")
    if period := data.get("period"):
        parts.append(_table(("period", "from", "to"), [(name, *ends) for name, ends in period.items()]))
    return parts


def _method(method: Mapping[str, Any]) -> list[str]:
    taken = method.get("rounds-taken-part")
    told = "" if taken is None else f", in {taken} of which this client took part"
    parts = ["## Method", f"`{_code(method['strategy'])}`, {method['rounds']} rounds{told}."]
    if method.get("personal"):
        crossed = method["settings"].get("cross-evaluation")
        nobody = "nobody unless this client took part in the cross-evaluation" if crossed else "nobody"
        names = ", ".join(f"`{_code(name)}`" for name in method["personal"])
        parts.append(f"Personal, and sent to {nobody}: {names}.")
    if extras := method.get("extras"):
        parts.append(f"Sent to the server, beside shared tensors: {_sentence(extras)}.")
    given = [(f"`{_code(key)}`", f"`{_code(json.dumps(value))}`") for key, value in method["settings"].items()]
    return [*parts, _table(("setting", "value"), given)] if given else parts


def _scores(facts: Mapping[str, Any]) -> list[str]:
    scores = facts["scores"]
    metrics = list(dict.fromkeys(name for each in scores for name in each["values"]))
    rows = [
        (_told(each), each["split"], *(_number(each["values"].get(name)) for name in metrics), each.get("n", ""))
        for each in scores
    ]
    table = _table(("model", "split", *metrics, "n"), rows) if rows else "Nothing was measured in the last round."
    parts = ["## Scores", table, *(f"- {text}" for text in facts["compared"].values())]
    parts = [*parts[:2], "\n".join(parts[2:])]
    error = facts.get("calibration-error")
    told = (
        f"The expected calibration error on the test split, over 15 bins of confidence, is {_number(error)}: how far "
        "the probabilities are from how often they are right."
        if error is not None
        else "Not measured: it is of one class of several, on a test split that is scored."
    )
    return [*parts, "## Calibration", told]


def _history(facts: Mapping[str, Any]) -> list[str]:
    history = facts.get("history")
    if not history or not history["rounds"]:
        return []
    names = list(dict.fromkeys(name for entry in history["rounds"] for name in entry if name != "round"))
    rows = [(entry["round"], *(_number(entry.get(name)) for name in names)) for entry in history["rounds"][-MOST:]]
    title = f"## Round by round\n\nThe {_plain(history['metric'])} on the {_plain(history['split'])} split."
    return [title, _table(("round", *names), rows)]


def _told(score: Mapping[str, Any]) -> str:
    whose = {"global": "everybody's", "personal": "its own"}.get(score["model"], score["model"])
    return f"{whose}, {score['phase']} training" + (" (this file)" if score.get("exported") else "")


def _listened(facts: Mapping[str, Any]) -> list[str]:
    mixing = facts.get("mixing")
    if not mixing:
        return ["## Whom it listened to", _plain(facts["listened"])]
    rows = [(group, peer, _number(weight)) for group, peers in mixing["weights"].items() for peer, weight in peers]
    parts = [f"Mixing weights of round {mixing['round']}, the largest of each group of layers."]
    return ["## Whom it listened to", *parts, _table(("layers", "client", "weight"), rows)]


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(each) for each in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    text = str(value)
    return text.replace("|", "\\|") if text.startswith("`") else _plain(text) if text != "---" else text


def _plain(text: str) -> str:
    """A text without what Markdown would take for its own."""
    return _escaped(" ".join(str(text).split()))


def _sentence(text: str) -> str:
    """The same, of one in which code stands between backticks."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(part if place % 2 else _escaped(part) for place, part in enumerate(parts))


def _escaped(line: str) -> str:
    return "".join(f"\\{each}" if each in "\\`*_|<>[]#~" else each for each in line)


def _code(text: str) -> str:
    return " ".join(str(text).replace("`", "'").split())


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}"


def _some(values: Iterable[Any]) -> list[Any]:
    return list(values)[:MOST]


def _finite(value: Any) -> Any:
    """A copy with null for NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
