"""Published figures beside ours: their files, what is counted, and that outcomes are of the settings that stand."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fedham_flwr import registry
from fedham_flwr.settings import parse

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "published"
NAMES = sorted(file.stem for file in FOLDER.glob("*.toml"))


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])


def module(name: str) -> Any:
    return importlib.import_module(name)


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_accepted_and_figures_are_whole(name: str, tmp_path: Path) -> None:
    entry = module("figures").read(name)
    settings = {
        key: value.format(data=tmp_path) if isinstance(value, str) else value
        for key, value in entry["settings"].items()
    }
    parse(settings)
    parse(settings | {key: value for key, value in entry.get("begin", {}).items() if key != "into"})
    assert set(entry["methods"]) <= set(registry.BUILT_IN)
    for figure in entry["figure"]:
        assert len(figure["after"]) == len(figure["published"])
        assert max(figure["after"]) + figure.get("later", 0) <= settings["num-server-rounds"] + 1


@pytest.mark.parametrize("name", NAMES)
def test_what_was_kept_is_of_these_settings_and_figures(name: str) -> None:
    figures = module("figures")
    entry, found = figures.read(name), figures.outcome(name)
    if found is None:
        pytest.skip("not run yet")
    assert (found["settings"], found["begin"], found["seeds"]) == (
        entry["settings"],
        entry.get("begin", {}),
        entry["seeds"],
    )
    assert [len(here) for here in found["here"]] == [len(entry["seeds"])] * len(figures.points(entry))
    assert entry["remark"], "nothing is said of the distance"
    page = (ROOT / "docs" / "published.md").read_text(encoding="utf-8")
    assert all(f"| {' | '.join(line)} |" in page for line in figures.compared(entry, found))


def test_a_number_is_that_of_its_line_round_and_mean() -> None:
    rows = pd.DataFrame(
        [
            (2, "0", "test", "personal", "after", "accuracy", 0.5, 30),
            (2, "1", "test", "personal", "after", "accuracy", 0.8, 10),
            (2, "1", "test", "personal", "before", "accuracy", 0.1, 10),
            (1, "1", "test", "personal", "after", "accuracy", 0.2, 10),
            (2, "1", "validation", "personal", "after", "accuracy", 0.3, 10),
            (2, "0", "test", "personal", "after", "loss", 0.25, 30),
        ],
        columns=["round", "client", "split", "model", "phase", "metric", "value", "n"],
    )
    figure = {"line": "personal after", "mean": "weighted", "later": 1}
    ours = module("figures").ours
    assert ours(rows, figure, 1) == pytest.approx(100 * (0.5 * 30 + 0.8 * 10) / 40)
    assert ours(rows, figure | {"mean": "plain"}, 1) == pytest.approx(65)
    assert ours(rows, figure | {"mean": "1"}, 1) == pytest.approx(80)
    assert ours(rows, figure | {"metric": "loss"}, 1) == pytest.approx(0.25)


def test_the_distance_is_that_of_the_means() -> None:
    entry = {"figure": [{"what": "a", "after": [3, 4], "published": [[1.0, 3.0], 70.0]}]}
    lines = module("figures").compared(entry, {"here": [[2.5], [69.0, 73.0]]})
    assert lines == [["a", "3", "2.0 ± 1.4 (2)", "2.5", "+0.5"], ["a", "4", "70.0", "71.0 ± 2.8 (2)", "+1.0"]]


def test_a_hospitals_rows_are_complete_coded_and_standardised_by_those_for_training(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    lines = [f"{60 + i},1,{1 + i % 4},{120 + i},200,0,{i % 3},150,0,1.5,?,?,?,{i % 5}" for i in range(40)]
    lines.append("50,1,1,?,200,0,0,150,0,1.5,1,0,3,0")  # a gap in what is used
    (tmp_path / "processed.hungarian.data").write_text("\n".join(draw.permutation(lines)), encoding="utf-8")
    found = module("sources").hospital(1, str(tmp_path))
    (x, y), (held, labels) = found["train"], found["test"]
    assert (x.shape, held.shape) == ((26, 13), (14, 13))
    assert np.concatenate([y, labels]).sum() == 32  # num is above 0 in four of five
    assert x.mean(0) == pytest.approx(np.zeros(13), abs=1e-5)
    assert np.ptp(x, axis=0)[[1, 3]].tolist() == [0, np.ptp(x, axis=0)[3]]  # a constant column is 0


def test_pfedmes_clients_have_as_many_images_as_the_published_means_are_of() -> None:
    counts = [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]  # of MNIST's digits
    labels = np.repeat(np.arange(10), counts)
    clients = module("sources").dealt(labels)
    sizes = [len(numbers) for numbers, _ in clients]
    training = [int(0.75 * size) for size in sizes]
    # A mean of ten runs is a whole number of tenths of images: of 17,499 for testing and 52,470 for training.
    assert (sum(sizes) - sum(training), sum(training)) == (17_499, 52_470)
    assert len(set(np.concatenate([numbers for numbers, _ in clients]))) < sum(sizes) / 2  # clients share images
    for number, (numbers, targets) in enumerate(clients):
        assert set(targets) == {number % 10, (number + 1) % 10}
        assert len(targets) == len(numbers)
        assert (labels[numbers] != targets).sum() <= 1


def test_networks_have_the_parameters_of_their_sources() -> None:
    networks = module("networks")
    digit, picture = torch.zeros(2, 1, 28, 28), torch.zeros(2, 3, 32, 32)

    def size(network: torch.nn.Module, batch: torch.Tensor) -> int:
        assert network(batch).shape == (2, 10)
        return sum(parameter.numel() for parameter in network.parameters())

    assert size(networks.Logistic((784,), 10), torch.zeros(2, 784)) == 7850
    assert size(networks.HiddenLayer((1, 28, 28), 10), digit) == 784 * 200 + 200 + 2010
    assert size(networks.Convolutions((3, 32, 32), 10, 100, True), picture) == 456 + 2416 + 48120 + 12100 + 1010
    assert size(networks.Convolutions((1, 28, 28), 10, 0), digit) == 156 + 2416 + 30840 + 1210
    probabilities = networks.Probabilities((1, 28, 28), 10)
    assert probabilities(digit).sum(1).tolist() == pytest.approx([1, 1])
    logits = networks.OneOutput((13,), 2)(torch.ones(2, 13))
    assert logits[:, 0].tolist() == [0, 0]
