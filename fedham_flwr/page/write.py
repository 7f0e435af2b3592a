"""`write_report`: one HTML file with all tables and figures of a comparison, which asks nothing of a network."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import NamedTuple

from fedham_flwr import __version__
from fedham_flwr.analysis.cells import Table
from fedham_flwr.analysis.collection import Collection
from fedham_flwr.analysis.tables import all_tables
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.files import replacing
from fedham_flwr.page.clients import client_data, client_parts
from fedham_flwr.page.curves import Curves, curve_data, curve_parts, curves_of
from fedham_flwr.page.facts import environment_parts, failure_parts, setting_parts
from fedham_flwr.page.forest import forest
from fedham_flwr.page.headline import headline_parts
from fedham_flwr.page.html import embedded, escaped, figure, section, shown
from fedham_flwr.page.mixing import mixing_data, mixing_parts
from fedham_flwr.page.sources import Places
from fedham_flwr.page.tuning import tuning_data, tuning_parts
from fedham_flwr.page.weights import Weights, weights_of

LIMIT, SHARES = 6_000_000, (1.0, 0.5, 0.25, 0.1)
"""Bytes of a page at most, and what figures and their tables may take of their room until it is as small."""
SCRIPTS = ("base.js", "curves.js", "clients.js", "mixing.js", "tuning.js", "tables.js")
TITLES = {
    "headline": "What was found", "results": "Results", "differences": "Differences to the reference",
    "clients": "Clients", "costs": "Costs", "ranks": "Ranks", "further": "Further tables",
    "learning": "Learning curves", "each-client": "Each client", "listening": "Whom each client listens to",
    "over-bytes": "Scores over bytes", "tuned": "Tuned values", "settings": "Settings", "failures": "Failures",
    "runs": "Runs, environment, digests",
}  # fmt: skip
"""Sections by their anchors, in their order; a table stands in the section of its name."""
WITH = {"novel": "clients"}
"""Tables that stand in the section of another."""


def write_report(collection: Collection, path: Path) -> Path:
    """Write the page of a comparison, whole and renamed, and return its path.

    Equal comparisons give equal bytes.

    Args:
        collection: the runs.
        path: of the file, which ends in .html.

    Raises:
        UserError: plotly is not installed.
    """
    plotly, tables = _plotly(), all_tables(collection)
    for share in SHARES:
        text = page(collection, tables, plotly, share).encode("utf-8", "replace")
        if len(text) <= LIMIT:
            break
    with replacing(path) as part:
        part.write_bytes(text)
    return path


def page(collection: Collection, tables: Sequence[Table], plotly: str, share: float = 1.0) -> str:
    """The page as text.

    Args:
        collection: the runs.
        tables: of the comparison.
        plotly: the script that draws figures.
        share: of what the figures and their tables have room for: with less, more is left out, and it is said.
    """
    drawn = _Drawn(curves_of(collection, share), weights_of(collection, share), share)
    parts = _parts(collection, tables, drawn)
    against = {"each-client": f"Each client: personal against {collection.reference}"} if collection.reference else {}
    titles = TITLES | against
    sections = {anchor: section(anchor, title, parts[anchor]) for anchor, title in titles.items()}
    contents = "".join(
        f'<li><a href="#{anchor}">{escaped(titles[anchor])}</a></li>\n' for anchor, text in sections.items() if text
    )
    what = "Run" if len(collection.runs) == 1 else "Comparison"
    return Template(_asset("page.html")).substitute(
        title=escaped(f"{what}: {collection.title}" if collection.title else what),
        version=escaped(__version__),
        style=_asset("page.css"),
        contents=contents,
        main="".join(sections.values()),
        data=embedded(_data(collection, drawn)),
        plotly=plotly,
        script="\n".join(map(_asset, SCRIPTS)),
    )


class _Drawn(NamedTuple):
    """What several parts of a page are made of, and the share of their room that they may take."""

    curves: Curves
    weights: Sequence[Weights]
    share: float


def _parts(collection: Collection, tables: Sequence[Table], drawn: _Drawn) -> dict[str, str]:
    """The HTML of each section; empty text for one that there is not."""
    parts = dict.fromkeys(TITLES, "")
    for table in tables:
        parts[WITH.get(table.name, table.name if table.name in parts else "further")] += shown(table)
    parts["results"] = "".join(forest(collection, task) for task in collection.tasks) + parts["results"]
    parts["tuned"] += tuning_parts(collection, drawn.share)
    parts["settings"] += setting_parts(collection)
    parts["failures"] += failure_parts(collection)
    parts["runs"] += environment_parts(collection)
    return parts | {
        "headline": headline_parts(collection),
        "learning": curve_parts(collection, drawn.curves),
        "each-client": client_parts(collection, drawn.share),
        "listening": mixing_parts(collection, drawn.weights, drawn.share),
        "over-bytes": _costs(collection),
    }


def _costs(collection: Collection) -> str:
    label = f"{collection.split} score at the end over all that was sent, or all the time that it took"
    return figure(
        "costs-figure", label, "Small marks are seeds, large ones their means; the numbers are in the table of costs."
    )


def _data(collection: Collection, drawn: _Drawn) -> dict[str, object]:
    """What the figures are drawn from."""
    places = Places.of(collection)
    floors = [method for method in collection.methods if method in collection.floors]
    others = [method for method in collection.methods if method not in collection.floors]
    methods = [
        {"label": m, "floor": m in floors, "place": (floors if m in floors else others).index(m)}
        for m in collection.methods
    ]
    metrics = [collection.metrics[task] for task in collection.tasks]
    return {
        "methods": methods,
        "tasks": places.tasks,
        "seeds": places.seeds,
        "bounded": all(metric.bounded for metric in metrics),
        "measured": [metric.name for metric in metrics],
        "higher": [metric.higher for metric in metrics],
        "curves": curve_data(collection, places, drawn.curves),
        "clients": client_data(collection, places, drawn.share),
        "mixing": mixing_data(places, drawn.weights),
        "tuning": tuning_data(collection, drawn.share),
    }


def _asset(name: str) -> str:
    return (resources.files("fedham_flwr.page") / "assets" / name).read_text(encoding="utf-8")


def _plotly() -> str:
    """The script of the installed plotly."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError(
            "the page draws with plotly, which is not installed: pip install 'fedham-flwr[report]'"
        ) from error
    return str(get_plotlyjs()).replace("</script", "<\\/script")
