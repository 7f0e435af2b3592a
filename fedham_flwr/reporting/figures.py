"""Figures: empty axes in the style of all pictures, and what is written of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedham_flwr.core.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(size: tuple[float, float], gap: float | None = None) -> tuple["Figure", "Axes"]:
    """An empty figure of its own (no pyplot, which keeps global state) with axes.

    Args:
        size: width and height, in units of 100 pixels.
        gap: left free above and below each axes, in the same units; matplotlib's own when None.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=size, dpi=100, layout=ConstrainedLayoutEngine(h_pad=gap))
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.tick_params(labelsize=10, color="#9A9A9A")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9A9A9A")
    return figure, axes


def finish_figure(figure: "Figure", axes: "Axes", path: Path, title: str, note: str) -> Path:
    """Add title and legend, both outside the data where they hide nothing, and write the file.

    Args:
        figure: to be written.
        axes: its only ones.
        path: the PNG.
        title: above.
        note: the title of the legend, below.
    """
    axes.xaxis.label.set_fontsize(11)
    axes.yaxis.label.set_fontsize(11)
    handles, labels = axes.get_legend_handles_labels()
    columns = _columns(labels, figure.get_figwidth())
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=10.5, title=note
    )
    legend.get_title().set(fontsize=9.5, color="#555555")
    return write_figure(figure, path, title)


def _columns(labels: Sequence[str], width: float) -> int:
    """How many entries of a legend fit beside each other: all of them, or else as many as the longest allows."""
    widths = [0.65 + 0.085 * len(label) for label in labels]  # line, gap and text, in units of 100 pixels
    return len(labels) if sum(widths) <= width else max(1, int(width / max(widths)))


def write_figure(figure: "Figure", path: Path, title: str) -> Path:
    """Add a title and write the PNG.

    Args:
        figure: to be written.
        path: the PNG.
        title: above, to the left.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # Names from outside may hold a dollar sign, which would start a formula.
    figure.suptitle(title, fontsize=13, x=0.02, ha="left", parse_math=False)
    with replacing(path) as part:
        FigureCanvasAgg(figure).print_png(part)
    return path
