"""Three hospitals on a SuperLink and SuperNodes, with TLS and authentication: three methods, and one node is killed."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import real
import torch
from flwr.clientapp import ClientApp
from real import HEAD, SITES, Federation, Outcome
from safetensors.torch import load, load_file

from fedham_flwr.data.kinds import table as tables
from fedham_flwr.models import export
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.state.format import unseal

pytestmark = pytest.mark.slow
log = logging.getLogger(__name__)
METHODS = ("fedham", "pfedla", "fedper")
KILLED, OTHER = "va", "hungarian"
NUMBERS = 26 * 64 + 64 + 64 * 64 + 64 + 64 * 2 + 2
"""Of the network: 13 values and whether each is missing, two hidden layers of 64, two classes."""


@dataclass(frozen=True)
class Story:
    """What happened.

    Attributes:
        of: the federation, whose processes have ended.
        sites: data folder of each hospital.
        runs: what came of each method's run.
        killed: the file of the killed node's state, right after the kill.
        back: the same when the node was back and had got no message yet.
    """

    of: Federation
    sites: dict[str, Path]
    runs: dict[str, Outcome]
    killed: bytes
    back: bytes


@real.story
def story(folder: Path, hospitals: dict[str, Path]) -> Story:
    sites = {site: hospitals[site] for site in SITES}
    with real.federation(folder, min_clients=3) as of:
        of.start_superlink()
        of.start_nodes(sites)
        at_once = {strategy: of.start_run(f'strategy="{strategy}"') for strategy in METHODS[:2]}
        runs = {strategy: run.wait() for strategy, run in at_once.items()}
        run = of.start_run('strategy="fedper" num-server-rounds=4')
        run.wait_for_round(1, real.PATIENCE)
        real.wait_for_message(of, KILLED, 2)
        of.kill_node(KILLED)
        killed = real.state_file(of, KILLED, "fedper").read_bytes()
        run.wait_for_round(2, real.PATIENCE)
        with real.paused(of, OTHER, 3):  # so that round 4 finds the node, round 3 does not end before it is there
            of.restart_node(KILLED)
        back = real.state_file(of, KILLED, "fedper").read_bytes()
        runs["fedper"] = run.wait()
    assert real.processes(of.folder) == {}
    return Story(of, sites, runs, killed, back)


# ---- two runs at a time, and nothing happens -------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", METHODS[:2])
def test_every_hospital_takes_part_in_every_round_and_nothing_fails(story: Story, strategy: str) -> None:
    run = story.runs[strategy]
    assert run.code == 0
    assert [record["kind"] for record in run.records] == ["train", "train", "train", "evaluate"]
    assert all(record["cohort"] == list(SITES) and record["replies"] == 3 for record in run.records)
    assert real.failures(run.records) == []
    assert all(record["ages"] == {} and record["restarted"] == [] for record in run.records)


def _as_nodes(app: ClientApp, clients: int, sites: dict[str, Path]) -> InProcessGrid:
    configs = [{"client-id": site, "data-path": str(path)} for site, path in sites.items()]
    grid = InProcessGrid(app, clients, node_configs=configs)
    for context in grid.contexts.values():
        del context.node_config["partition-id"], context.node_config["num-partitions"]
    return grid


@pytest.mark.parametrize("strategy", METHODS[:2])
def test_the_same_nodes_in_one_process_give_the_same_digest(
    story: Story, federate: Callable[..., Any], strategy: str
) -> None:
    run = story.runs[strategy]
    assert run.path is not None
    written = tomllib.loads((run.path / "config.toml").read_text())
    given = {key: value for key, value in written.items() if not isinstance(value, dict)}
    del given["results-dir"]
    here = federate(clients=3, grid=lambda app, clients: _as_nodes(app, clients, story.sites), **given)
    assert here.summary["digest"] == run.summary["digest"]
    assert here.summary["bytes"] == run.summary["bytes"]


def test_the_bytes_of_a_round_are_those_of_the_models_that_it_sends(story: Story) -> None:
    """With `--log-cli-level=INFO` it shows them, and the seconds of the rounds in which nothing happened."""
    model = 4 * NUMBERS
    head = 4 * (64 * 2 + 2)
    # fedham: the models of the two others, three models' projections by layer groups, and a byte of each that says
    # whether it may be mixed; three weights of each back.
    wanted = {
        "fedham": (3 * model + 3 * 36, 6 * model + 3 * 3 * (3 * 64 * 4 + 1)),
        "pfedla": (3 * model,) * 2,
        "fedper": (3 * (model - head),) * 2,
    }
    for strategy, run in story.runs.items():
        trained = [record for record in run.records if record["kind"] == "train" and record["replies"] == 3]
        assert {(record["bytes-up"], record["bytes-down"]) for record in trained} == {wanted[strategy]}
        seconds = [round(record["seconds"]["exchange"], 1) for record in trained]
        log.info("%s: %s bytes up and %s down, %s seconds a round", strategy, *wanted[strategy], seconds)


# ---- a node is killed ------------------------------------------------------------------------------------------------


def test_a_node_that_is_killed_is_one_failure_and_the_run_goes_on(story: Story) -> None:
    run = story.runs["fedper"]
    assert run.code == 0
    assert real.failures(run.records) == [(2, "train", KILLED)]
    cohorts = [(record["kind"], record["cohort"], record["replies"]) for record in run.records]
    others = [site for site in SITES if site != KILLED]
    assert cohorts == [
        ("train", list(SITES), 3),
        ("train", list(SITES), 2),
        ("train", others, 2),
        ("train", list(SITES), 3),
        ("evaluate", list(SITES), 3),
    ]
    assert run.summary["failures"] == 1
    assert f"round 2  client {KILLED} failed in train: Error: Node Unavailable" in run.output


def test_its_personal_state_outlives_it(story: Story) -> None:
    held, label = unseal(story.killed)
    assert set(held) == set(HEAD)
    assert (label.client, label.method, label.round) == (KILLED, "fedper", 1)
    assert story.back == story.killed


def test_it_goes_on_from_that_state_and_from_no_other(story: Story) -> None:
    run, data = story.runs["fedper"], real.data_of(story.of, story.sites[KILLED])
    assert [record["ages"] for record in run.records] == [{}, {}, {}, {KILLED: 3}, {}]
    assert all(record["restarted"] == record["restored"] == [] for record in run.records)
    (measured,) = real.rows(run, 4, KILLED, model="personal", phase="before", metric="loss")
    base, first = real.base(run, 3), real.trainer_of(data).initial
    assert measured.value == pytest.approx(real.loss(data, base, load(story.killed)), rel=1e-5)
    assert measured.value != pytest.approx(real.loss(data, base, {name: first[name] for name in HEAD}), rel=1e-2)


def test_its_state_is_in_the_end_of_the_last_round_and_for_its_owner_alone(story: Story) -> None:
    file = real.state_file(story.of, KILLED, "fedper")
    held, label = unseal(file.read_bytes())
    before = unseal(story.killed)[1]
    assert (label.training, label.round) == (before.training, 4)
    assert [path.stat().st_mode & 0o077 for path in (file, file.parent, file.parent.parent)] == [0, 0, 0]
    model = load_file(real.model_file(story.of, KILLED, "fedper"))
    assert all(torch.equal(model[name], held[name]) for name in HEAD)


# ---- what is left ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", METHODS)
def test_each_hospital_ends_with_a_model_of_its_own_and_nobody_else_has_it(story: Story, strategy: str) -> None:
    import pandas as pd

    run, tensors = story.runs[strategy], {}
    for site, path in story.sites.items():
        file = real.model_file(story.of, site, strategy)
        tensors[site] = load_file(file)
        test = real.data_of(story.of, path).splits["test"].tolist()
        raw = pd.read_parquet(path / "data.parquet").iloc[test]
        hits = export.load(file)(tables.read_scaling(file).inputs(raw)).argmax(1).numpy() == raw["label"].to_numpy()
        (row,) = real.rows(run, len(run.records), site, model="personal", phase="before", metric="accuracy")
        assert hits.mean() == pytest.approx(row.value)
        assert row.value > 0.6
    for one, other in combinations(tensors.values(), 2):
        assert not torch.equal(one["head.weight"], other["head.weight"])
    assert run.path is not None
    assert list((run.path / "model").iterdir()) == []
