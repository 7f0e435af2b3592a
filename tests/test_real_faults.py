"""What an operator sees when a real federation meets with a fault, and that nothing is lost by it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import real
from real import HEAD, SITES, Federation, Outcome
from safetensors.torch import load

from fedham_flwr.state.format import unseal

pytestmark = pytest.mark.slow
SLOW, LATE = "va", "hungarian"


@dataclass(frozen=True)
class Story:
    """What happened.

    Attributes:
        of: the federation, whose processes have ended.
        sites: data folder of each hospital.
        failed: a run in which all clients fail, while another goes on.
        raw: exit code of its `flwr run`.
        doubled: a run with two nodes that give the same client id.
        timeout: seconds of the run that follows.
        interrupted: that run, whose SuperLink was killed in round 4.
        first: the server's tensors after its round 2, of which the late client knows nothing.
        kept: the file of each client's state, when a new SuperLink was there and nobody had work.
        resumed: the run that went on from there.
    """

    of: Federation
    sites: dict[str, Path]
    failed: Outcome
    raw: int
    doubled: Outcome
    timeout: str
    interrupted: Outcome
    first: real.Params
    kept: dict[str, bytes]
    resumed: Outcome


@real.story
def story(folder: Path, sites: dict[str, Path]) -> Story:
    with real.federation(folder, min_clients=2) as of:
        of.start_superlink()
        of.start_nodes({site: sites[site] for site in SITES})
        of.stop_node(LATE)
        of.start_node("double", sites["switzerland"], client=SLOW)
        began = time.monotonic()
        doubled = of.run('strategy="fedavg"')
        # Longer than any round takes here: a query to three nodes has been timed, with the start of a run.
        timeout = f"{max(20.0, time.monotonic() - began):.0f}"
        of.stop_node("double")

        run = of.start_run(f'strategy="fedper" num-server-rounds=4 round-timeout={timeout}.0')
        run.wait_for_round(1, real.PATIENCE)
        of.restart_node(LATE, wait=False)
        with real.paused(of, SLOW, 2):
            of.wait_for_node(LATE)
            _start_strangers(of, sites["va"])
            run.wait_for_round(2, real.PATIENCE)
        run.wait_for_round(3, real.PATIENCE)
        assert run.path is not None
        first = real.base(Outcome(0, "", run.path), 2)

        for site in SITES:
            real.wait_for_message(of, site, 4)
        of.kill_superlink()
        interrupted = run.wait()
        of.start_superlink()
        for site in SITES:
            real.wait_until_idle(of, site)
        kept = {site: real.state_file(of, site, "fedper").read_bytes() for site in SITES}
        going_on = of.start_run(run.path / "resume.toml")
        failing = of.start_run('strategy="fedavg" learning-rate=1e30')
        resumed, failed = going_on.wait(), failing.wait()
        raw = failing.process.returncode
        _wait_for_strangers(of)
    assert real.processes(of.folder) == {}
    return Story(of, sites, failed, raw, doubled, timeout, interrupted, first, kept, resumed)


def _start_strangers(of: Federation, data: Path) -> None:
    """Start nodes that the SuperLink does not take in."""
    of.start_node("unknown", data, register=False, wait=False)
    of.start_node("plain", data, register=False, wait=False, options=["--insecure"])
    key = ["--auth-supernode-private-key", str(of.folder / "keys" / "careless")]
    of.start_node("careless", data, register=False, wait=False, options=["--insecure", *key])


def _wait_for_strangers(of: Federation) -> None:
    """Wait until they have said what has come of it."""
    for site, said in (("unknown", "code: 2004"), ("plain", "Connection attempt failed"), ("careless", "Code: 303")):
        log = of.log(f"node-{site}")
        real.wait_for(lambda log=log, said=said: said in log.read_text(), f"{said} at {site}")  # type: ignore[misc]


# ---- runs that are refused -------------------------------------------------------------------------------------------


def test_a_run_whose_clients_all_fail_ends_with_a_sentence(story: Story) -> None:
    run = story.failed
    assert run.code == 1
    assert story.raw == 0  # flwr run says nothing of it, and flwr list says finished:failed, which is the code above
    why = "training diverged: the loss is nan; lower learning-rate=1e+30"
    assert f"round 1  3 clients (cleveland, hungarian, va) failed in train: {why}" in run.output
    sentence = (
        "round 1: 0 of 3 clients gave a good reply to train, and at least 2 are wanted (min-replies=0); "
        f"the first error is client cleveland's: {why}"
    )
    assert sentence in run.output.splitlines()
    assert "Traceback" not in run.output
    assert run.summary["error"] == f"UserError: {sentence}"


def test_two_nodes_with_one_client_id_are_refused_with_a_sentence(story: Story) -> None:
    run = story.doubled
    assert run.code == 1
    one, two = (story.of.registered()[site] for site in (SLOW, "double"))
    pairs = [
        f"two nodes give the client id '{SLOW}' ({a} and {b}): give every SuperNode a client-id of its own"
        for a, b in ((one, two), (two, one))
    ]
    assert set(pairs) & set(run.output.splitlines())
    assert "Traceback" not in run.output
    assert run.path is None  # nothing is left of a run that has not begun


# ---- nodes that are not taken in -------------------------------------------------------------------------------------


def test_a_node_with_an_unknown_key_is_turned_away_and_both_sides_say_so(story: Story) -> None:
    log = story.of.log("node-unknown").read_text()
    assert "Exit Code: 305" in log
    assert "[code: 2004] Failed to activate SuperNode." in log
    assert "SuperNode ID" not in log
    assert "No SuperNode found with the given public key." in story.of.log("superlink").read_text()


def test_a_node_that_speaks_plain_text_never_gets_through(story: Story) -> None:
    log = story.of.log("node-plain").read_text()
    assert "Option `--insecure` was set. Starting insecure channel to 127.0.0.1:" in log
    assert "Connection attempt failed, retrying in " in log
    assert "SuperNode ID" not in log


def test_a_node_that_would_show_its_key_in_plain_text_refuses_by_itself(story: Story) -> None:
    log = story.of.log("node-careless").read_text()
    assert "Exit Code: 303" in log
    assert "SuperNode authentication requires a secure TLS connection with the SuperLink" in log


def test_none_of_them_takes_part(story: Story) -> None:
    assert story.resumed.path is not None
    clients = json.loads((story.resumed.path / "clients.json").read_text())
    assert [client["client"] for client in clients] == list(SITES)


# ---- slow and late ---------------------------------------------------------------------------------------------------


def test_a_slow_client_is_one_failure_and_is_back_in_the_next_round(story: Story) -> None:
    records = story.resumed.records
    assert real.failures(records) == [(2, "train", SLOW)]
    (failure,) = records[1]["failures"]
    assert failure["error"] == f"no reply (round-timeout={story.timeout} seconds)"
    assert f"round 2  client {SLOW} failed in train: {failure['error']}" in story.interrupted.output
    assert [(record["cohort"], record["replies"]) for record in records[:3]] == [
        (["cleveland", SLOW], 2),
        (["cleveland", SLOW], 1),
        (list(SITES), 3),
    ]


def test_its_late_reply_spoils_nothing(story: Story) -> None:
    assert "is ignored" not in story.interrupted.output
    assert all(record["restarted"] == record["restored"] == [] for record in story.resumed.records)
    assert set(story.resumed.records[2]["ages"]) <= {SLOW}  # empty, when it had finished round 2 after all
    assert unseal(story.kept[SLOW])[1].round == 4


def test_a_client_that_joins_late_starts_from_what_there_is_and_a_fresh_head(story: Story) -> None:
    data = real.data_of(story.of, story.sites[LATE])
    first = real.trainer_of(data).initial
    (measured,) = real.rows(story.resumed, 3, LATE, model="personal", phase="before", metric="loss")
    expected = real.loss(data, story.first, {name: first[name] for name in HEAD})
    assert measured.value == pytest.approx(expected, rel=1e-5)
    (described,) = [client for client in _clients(story) if client["client"] == LATE]
    assert (described["name"], described["train"], described["novel"]) == (LATE, data.counts()["train"], False)


def _clients(story: Story) -> list[dict[str, object]]:
    assert story.resumed.path is not None
    return list(json.loads((story.resumed.path / "clients.json").read_text()))


# ---- the SuperLink is killed -----------------------------------------------------------------------------------------


def test_the_run_of_a_superlink_that_is_killed_ends_with_a_sentence(story: Story) -> None:
    assert story.interrupted.code == 1
    assert "Connection to the SuperLink is unavailable." in story.interrupted.output


def test_the_nodes_find_the_new_superlink_by_themselves_and_are_still_registered(story: Story) -> None:
    for site in SITES:
        starts = story.of.log(f"node-{site}").read_text().count("SuperNode ID: ")
        assert starts == (2 if site == LATE else 1), f"{site} was started again"
    assert story.resumed.records[-1]["cohort"] == list(SITES)


def test_the_run_goes_on_from_its_checkpoint_with_the_file_that_it_left(story: Story) -> None:
    run = story.resumed
    assert run.code == 0
    assert run.path == story.interrupted.path
    assert f"continued after round 3, from {run.path / 'checkpoints' / 'round-00003'}" in run.output
    assert [(record["round"], record["kind"], record["replies"]) for record in run.records[2:]] == [
        (3, "train", 3),
        (4, "train", 3),
        (5, "evaluate", 3),
    ]
    assert run.summary["resumed-from"] == [3]
    assert "error" not in run.summary


@pytest.mark.parametrize("site", SITES)
def test_every_client_goes_on_from_what_it_kept(story: Story, site: str) -> None:
    held, label = unseal(story.kept[site])
    end = unseal(real.state_file(story.of, site, "fedper").read_bytes())[1]
    assert (label.training, label.round) == (end.training, 4)
    data = real.data_of(story.of, story.sites[site])
    (measured,) = real.rows(story.resumed, 4, site, model="personal", phase="before", metric="loss")
    assert measured.value == pytest.approx(real.loss(data, real.base(story.resumed, 3), held), rel=1e-5)
    assert end.round == 4
    assert load(story.kept[site]).keys() == set(HEAD)
