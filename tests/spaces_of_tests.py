"""A space with a dimension of each kind, for the tests of searches."""

from __future__ import annotations

from fedham_flwr.core.search_space import Choice, Range, Space

RATE = Range(0.001, 1.0, start=0.1, log=True)
MIXED: Space = {
    "rate": RATE,
    "layers": Range(1, 4, start=2, whole=True),
    "kind": Choice(("a", "b", "c"), start="b"),
    "share": Range(0.0, 1.0, start=0.25),
}
