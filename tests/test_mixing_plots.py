"""The pictures of mixing weights: they are there, of a sane size, and show what they are given."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from fedham_flwr.core.records import MixingWeights
from fedham_flwr.reporting import figures, mixing_plots
from fedham_flwr.reporting.mixing_plots import heat_maps, self_weight_curves
from fedham_flwr.reporting.mixing_weights import read_weights, write_weights


def pixels(path: Path) -> np.ndarray:
    """Of a picture: [height, width, 3]."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def make(clients: int, groups: int, seed: int = 0, names: str = "") -> MixingWeights:
    draw = torch.Generator().manual_seed(seed)
    weights = (torch.randn(clients, groups, clients, generator=draw) + 2 * torch.eye(clients)[:, None]).softmax(-1)
    ids = tuple(f"{names}{i}" for i in range(clients))
    return MixingWeights(ids, tuple(f"layer {g}" for g in range(groups)), ids, weights)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written, in turn."""
    made: list[Figure] = []
    write = figures.write_figure

    def keep(figure: Figure, path: Path, title: str) -> Path:
        made.append(figure)
        return write(figure, path, title)

    monkeypatch.setattr(figures, "write_figure", keep)
    monkeypatch.setattr(mixing_plots, "write_figure", keep)
    return made


def names(axes: Axes, axis: str) -> list[str]:
    return [label.get_text() for label in getattr(axes, f"get_{axis}ticklabels")()]


def apart(texts: Sequence[Text]) -> bool:
    """Whether no two of some texts touch."""
    boxes = [text.get_window_extent() for text in texts]
    return not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def within(figure: Figure, texts: Sequence[Text]) -> bool:
    """Whether all texts lie on the picture."""
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    page = figure.bbox
    return all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= page.x1 and b.y1 <= page.y1 for b in boxes)


@pytest.mark.parametrize(
    ("clients", "groups", "names"),
    [(1, 1, ""), (1, 12, ""), (2, 1, ""), (8, 12, ""), (10, 7, ""), (100, 4, "site $ of ")],
)
def test_heat_maps_of_any_federation_have_a_sane_size(tmp_path: Path, clients: int, groups: int, names: str) -> None:
    assert_sane(heat_maps(make(clients, groups, names=names), tmp_path / "maps.png", "pfedla", "digits"))


def assert_sane(path: Path) -> None:
    height, width, _ = pixels(path).shape
    assert 400 <= width <= 2500
    assert 250 <= height <= 2500


def test_a_part_of_the_clients_can_be_drawn(tmp_path: Path) -> None:
    whole = make(6, 2)
    part = MixingWeights(whole.clients[:2], whole.groups, whole.peers, whole.weights[:2])
    assert heat_maps(part, tmp_path / "maps.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("rows", "peers", "named"),
    [(20, 20, ""), (30, 100, ""), (500, 500, "")]
    + [(rows, peers, "hospital$ward-north-") for rows, peers in ((1, 1), (20, 20), (41, 41), (30, 100), (500, 500))],
)
def test_no_two_names_touch_and_all_are_on_the_picture(
    tmp_path: Path, drawn: list[Figure], rows: int, peers: int, named: str
) -> None:
    whole = make(peers, 5, names=named)
    part = MixingWeights(whole.clients[:rows], whole.groups, whole.peers, whole.weights[:rows])
    assert_sane(heat_maps(part, tmp_path / "maps.png", "heurpfedla", "folder/" * 12))
    (figure,) = drawn
    texts = [figure._suptitle]
    for axes in figure.axes[:5]:
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            assert 1 <= len(labels) <= 20
            assert apart(labels)
            texts += labels
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label]
    assert within(figure, texts)
    assert apart([text for text in texts if text.get_text()])


def test_names_are_those_of_their_rows_and_long_ones_keep_what_tells_them_apart(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    heat_maps(make(3, 1, names="hospital$ward-north-"), tmp_path / "maps.png")
    heat_maps(make(60, 1), tmp_path / "maps.png")
    for axis in "xy":
        assert names(drawn[0].axes[0], axis) == ["hosp…north-0", "hosp…north-1", "hosp…north-2"]
        assert names(drawn[1].axes[0], axis) == [str(i) for i in range(0, 60, 5)]


def test_maps_are_square_also_with_few_clients_of_many(tmp_path: Path, drawn: list[Figure]) -> None:
    whole = make(100, 3)
    heat_maps(MixingWeights(whole.clients[:7], whole.groups, whole.peers, whole.weights[:7]), tmp_path / "maps.png")
    for axes in drawn[0].axes[:3]:
        box = axes.get_window_extent()
        assert box.width == pytest.approx(box.height, abs=1)
        assert box.width > 250


@pytest.mark.parametrize("clients", [100, 250, 500])
def test_no_client_is_lost_between_pixels(tmp_path: Path, drawn: list[Figure], clients: int) -> None:
    ids = tuple(map(str, range(clients)))
    path = heat_maps(MixingWeights(ids, ("fc",), ids, torch.eye(clients)[:, None]), tmp_path / "maps.png")
    box = drawn[0].axes[0].get_window_extent()
    inside = pixels(path)[:, : int(box.x1)]
    yellow = (np.abs(inside - [253, 231, 37]).max(-1) < 3).any(1)
    assert yellow.sum() >= clients


def test_cells_hold_their_weights_up_to_ten_clients(tmp_path: Path, drawn: list[Figure]) -> None:
    weights = torch.tensor([[[1.0, 0.0]], [[0.256, 0.744]]])
    heat_maps(MixingWeights(("a", "b"), ("fc",), ("a", "b"), weights), tmp_path / "maps.png")
    heat_maps(make(10, 2), tmp_path / "maps.png")
    heat_maps(make(11, 2), tmp_path / "maps.png")
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["1", ".00", ".26", ".74"]
    assert [len(figure.axes[1].texts) for figure in drawn[1:]] == [100, 0]
    assert apart(drawn[1].axes[1].texts)


def test_all_maps_have_one_scale_from_zero(tmp_path: Path, drawn: list[Figure]) -> None:
    weights = make(4, 3)
    heat_maps(weights, tmp_path / "maps.png")
    limits = {axes.images[0].get_clim() for axes in drawn[0].axes[:3]}
    assert limits == {(0.0, weights.weights.max().item())}
    assert [axes.get_title() for axes in drawn[0].axes[:3]] == ["layer 0", "layer 1", "layer 2"]


def test_heat_maps_show_the_weights(tmp_path: Path) -> None:
    one, again, other = (pixels(heat_maps(make(5, 2, seed), tmp_path / f"{i}.png")) for i, seed in enumerate((0, 0, 1)))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_the_largest_weight_has_the_brightest_colour(tmp_path: Path) -> None:
    weights = torch.zeros(2, 1, 2)
    weights[0, 0, 1] = weights[1, 0, 1] = 1.0
    drawn = pixels(heat_maps(MixingWeights(("a", "b"), ("fc",), ("a", "b"), weights), tmp_path / "maps.png"))
    yellow, purple = (np.abs(drawn - color).max(-1) < 3 for color in ([253, 231, 37], [68, 1, 84]))
    # peer a is the left column, purple throughout; peer b the right one, yellow
    assert np.nonzero(purple)[1].mean() < np.nonzero(yellow)[1].mean()


def test_curves_are_drawn_for_a_method_with_weights_and_not_for_another(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    assert self_weight_curves(read_weights(tmp_path), tmp_path / "curves.png") is None
    assert not (tmp_path / "curves.png").exists()
    for number in (1, 2, 3):
        write_weights(tmp_path, number, "train", make(4, 9, seed=number))
    path = self_weight_curves(read_weights(tmp_path), tmp_path / "curves.png", "pfedla", "digits")
    assert path == tmp_path / "curves.png"
    assert pixels(path).shape == (560, 1000, 3)


@pytest.mark.parametrize(("groups", "clients"), [(1, 1), (7, 4), (12, 20)])
def test_every_curve_is_in_the_legend_and_the_legend_on_the_picture(
    tmp_path: Path, drawn: list[Figure], groups: int, clients: int
) -> None:
    (tmp_path / "metrics").mkdir()
    weights = make(clients, groups)
    layers = tuple(f"block{g}.attention$" for g in range(groups))
    for number in (1, 2):
        write_weights(tmp_path, number, "train", MixingWeights(weights.clients, layers, weights.peers, weights.weights))
    self_weight_curves(read_weights(tmp_path), tmp_path / "curves.png", "pfedla", "digits")
    (figure,) = drawn
    (legend,) = figure.legends
    shown = [text.get_text().replace("\\$", "$") for text in legend.get_texts()]
    assert shown == [*layers, "1/N, equal weights"]
    assert within(figure, legend.get_texts())
    lines = figure.axes[0].get_lines()
    assert np.allclose(lines[0].get_ydata(), np.trace(weights.weights[:, 0].numpy()) / clients)
    assert np.allclose(lines[-1].get_ydata(), 1 / clients)
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == groups + 1
    low, high = figure.axes[0].get_ylim()
    assert low == 0
    assert 1 / clients < high <= 1.02
    assert figure._suptitle.get_text() == f"pfedla on digits, {clients} client{'' if clients == 1 else 's'}"


def test_curves_of_clients_that_are_nobodys_peer_show_the_equal_weights_only(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    (tmp_path / "metrics").mkdir()
    write_weights(tmp_path, 1, "evaluate", MixingWeights(("new",), ("fc",), ("a", "b"), torch.tensor([[[0.25, 0.75]]])))
    assert self_weight_curves(read_weights(tmp_path), tmp_path / "curves.png") is not None
    assert np.isnan(drawn[0].axes[0].get_lines()[0].get_ydata()).all()


@pytest.mark.parametrize("groups", [1, 5])
@pytest.mark.parametrize("named", ["", "hospital$ward-north-"])
def test_a_sample_shows_what_clients_give_others_and_says_whose_weights_these_are(
    tmp_path: Path, drawn: list[Figure], groups: int, named: str
) -> None:
    whole = make(60, groups, names=named)
    note = "60 of 2,000 clients: 12 drawn and the 48 to whom these give most weight"
    heat_maps(whole, tmp_path / "maps.png", "pfedla", "folder/" * 12, note)
    (figure,) = drawn
    assert figure._suptitle.get_text().replace("\n", " ").endswith(f", mixing weights of {note}")
    others = whole.weights.masked_fill(torch.eye(60, dtype=torch.bool)[:, None], 0.0)
    assert {axes.images[0].get_clim() for axes in figure.axes[:groups]} == {(0.0, others.max().item())}
    assert others.max() < whole.weights.max()
    bar = figure.axes[-1]
    assert bar.get_ylabel() == "weight of another client"
    texts = [figure._suptitle, bar.yaxis.label, *bar.get_yticklabels()]
    for axes in figure.axes[:groups]:
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            assert apart(labels)
            texts += labels
    assert within(figure, texts)


def test_a_sample_of_clients_who_give_nothing_to_others_shows_what_they_keep(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    ids = tuple(map(str, range(60)))
    alone = MixingWeights(ids, ("fc",), ids, torch.eye(60)[:, None])
    heat_maps(alone, tmp_path / "maps.png", note="60 of 200 clients: 60 drawn")
    assert drawn[0].axes[0].images[0].get_clim() == (0.0, 1.0)
    assert drawn[0].axes[-1].get_ylabel() == "weight"


def test_weights_by_places_are_drawn_as_all_weights(tmp_path: Path) -> None:
    whole = make(6, 2)
    values, places = whole.weights.sort(-1)
    by_places = MixingWeights(whole.clients, whole.groups, whole.peers, values, places)
    one, other = (pixels(heat_maps(w, tmp_path / f"{i}.png")) for i, w in enumerate((whole, by_places)))
    assert np.array_equal(one, other)
