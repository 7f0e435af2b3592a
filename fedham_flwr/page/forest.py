"""The results as a picture without scripts: a dot for each method's mean, and a line for its interval."""

from __future__ import annotations

from fedham_flwr.analysis.collection import Collection
from fedham_flwr.analysis.statistics import Interval, mean_interval
from fedham_flwr.page.html import escaped, score, score_text
from fedham_flwr.page.sources import named
from fedham_flwr.training.metrics import Metric

ACROSS, RIGHT, STEP, TOP = 332, 188, 26, 8
LONGEST, LETTER = 28, 8
"""Characters of a label that fit beside the picture, and pixels that one takes."""


def forest(collection: Collection, task: str) -> str:
    """The picture of one task, as SVG; nothing of a single method.

    Args:
        collection: the runs.
        task: its label.
    """
    found = [(m, mean_interval(list(v.values()))) for m in collection.methods if (v := collection.values(m, task))]
    if len(found) < 2:
        return ""
    low = min(interval.mean if interval.low is None else interval.low for _, interval in found)
    high = max(interval.mean if interval.high is None else interval.high for _, interval in found)
    metric = collection.metrics[task]
    low, high = max(low, metric.least), min(high, metric.most)
    left = 20 + LETTER * max(10, *(len(_short(method)) for method, _ in found))
    scale = _Scale(low, high if high > low else low + 1e-9 + abs(low) * 0.01, left)
    rows = "".join(_row(collection, task, at, method, interval, scale) for at, (method, interval) in enumerate(found))
    bottom = TOP + STEP * len(found)
    label = named(collection, task, f"{collection.split} {metric.name}: means over seeds with 95 % intervals")
    said = "; ".join(f"{m} {_said(i, metric)}" for m, i in found)
    size = f"{left + ACROSS + RIGHT} {bottom + 38}"
    return (
        f'<figure class="static"><div><svg class="forest" viewBox="0 0 {size}" role="img" '
        f'aria-label="{escaped(f"{label}: {said}")}">{_axis(scale, bottom, metric)}{rows}</svg></div>\n'
        f"<figcaption>{escaped(label)}. A line is the interval; a dot without one has none.</figcaption></figure>\n"
    )


class _Scale:
    """From scores to pixels, with round numbers as ticks."""

    def __init__(self, low: float, high: float, left: int) -> None:
        self.left = left
        step = next(s for e in range(-12, 308) for s in (10.0**e, 2 * 10.0**e, 5 * 10.0**e) if (high - low) / s <= 6)
        self.low, self.high = step * (low // step), step * -(-high // step)
        self.ticks = [self.low + at * step for at in range(round((self.high - self.low) / step) + 1)]
        self.step = step

    def at(self, value: float) -> float:
        """The pixel of a score."""
        value = min(max(value, self.low), self.high)
        return round(self.left + ACROSS * (value - self.low) / (self.high - self.low), 1)


def _axis(scale: _Scale, bottom: int, metric: Metric) -> str:
    parts = []
    for tick in scale.ticks:
        x, text = scale.at(tick), f"{100 * tick:.10g} %" if metric.bounded else f"{tick:.10g}"
        parts.append(f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}" stroke="var(--line)"/>')
        parts.append(f'<text class="soft" x="{x}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
    return "".join(parts)


def _row(collection: Collection, task: str, at: int, method: str, interval: Interval, scale: _Scale) -> str:
    y = TOP + STEP * at + STEP // 2
    colour = "var(--soft)" if method in collection.floors else "var(--accent)"
    line = ""
    if interval.low is not None and interval.high is not None:
        ends = [scale.at(interval.low), scale.at(interval.high)]
        line = f'<line x1="{ends[0]}" x2="{ends[1]}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>'
    mark = f'<circle cx="{scale.at(interval.mean)}" cy="{y}" r="5" fill="{colour}"/>'
    said = escaped(_said(interval, collection.metrics[task]))
    return (
        f'<text x="{scale.left - 12}" y="{y + 4}" text-anchor="end">{escaped(_short(method))}</text>{line}{mark}'
        f'<text class="soft" x="{scale.left + ACROSS + 14}" y="{y + 4}">{said}</text>'
    )


def _short(method: str) -> str:
    """A label as it fits beside the picture; those of settings differ towards their ends."""
    return method if len(method) <= LONGEST else f"{method[:8]}…{method[-(LONGEST - 9) :]}"


def _said(interval: Interval, metric: Metric) -> str:
    """A mean and the ends of its interval, or what lies of it within what the metric can be."""
    if interval.low is None or interval.high is None:
        return score_text(interval.mean, metric)
    within = max(interval.low, metric.least), min(interval.high, metric.most)
    ends = " to ".join(score(end, metric).text for end in within)
    return f"{score_text(interval.mean, metric)} ({ends})"
