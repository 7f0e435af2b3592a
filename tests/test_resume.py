"""A run that was interrupted and goes on is the run that was not: same numbers, same state, same files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import context_from_proto, context_to_proto
from safetensors.torch import load_file

from fedham_flwr import server_app
from fedham_flwr.client_app import make_client_app
from fedham_flwr.core.errors import UserError
from fedham_flwr.resume import checkpoints
from fedham_flwr.resume import continuing as resuming
from fedham_flwr.resume.runs import flat, read_settings
from fedham_flwr.runners.cohort import CohortGrid
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.settings import Value, methods

Settings = Callable[..., dict[str, Value]]
Runs = Callable[..., Path]
OF_CLIENTS: dict[str, dict[str, Value]] = {
    "fedham-mediated": {"strategy": "fedham", "fedham.transport": "mediated"},
    "fedham-candidates": {"strategy": "fedham", "fedham.transport": "mediated", "fedham.candidates": 2},
    "fedtp-vanilla": {"strategy": "fedtp", "fedtp.personal": "vanilla"},
    "fed_t_a-novel": {"strategy": "fedtransfer", "fedtransfer.attention": "cbam", "novel-clients": 1},
    "fedper-novel": {"strategy": "fedper", "novel-clients": 1, "fraction-train": 0.5},
}
"""Settings with which clients keep something else, or not all of them do."""
OF_THE_SERVER: dict[str, dict[str, Value]] = {
    "amn-candidates": {"strategy": "amn", "amn.candidates": 2, "fraction-train": 0.5},
    "pfedla-retained": {"strategy": "pfedla", "pfedla.retained-layers": 1, "fraction-train": 0.5},
    "pfedla-on-disk": {"strategy": "pfedla", "bank-memory": 0.0},
    "pfedla-factorised-novel": {
        "strategy": "pfedla", "pfedla.head": "factorised", "pfedla.hypernetwork-momentum": 0.5, "novel-clients": 1,
    },
    "fedtp-server-momentum": {"strategy": "fedtp", "server.optimizer": "momentum"},
    "fedper-median-adam": {"strategy": "fedper", "server.aggregation": "median", "server.optimizer": "adam"},
}  # fmt: skip
"""Settings with which the server alone does, whatever runs its clients."""


pytestmark = pytest.mark.usefixtures("no_pictures")


FEW: dict[str, Value] = {
    "samples_per_client": 64, "num_server_rounds": 4, "checkpoint_every": 2, "evaluate_every": 2,
}  # fmt: skip


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Four rounds of clients with 64 samples, and a checkpoint after every second."""
    return lambda **given: settings(**{**FEW, **given})


@pytest.fixture(scope="module")
def ended(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The directory of such a run with these arguments of `go`, made once for all that ask, who only read it."""
    made: dict[object, Path] = {}

    def run(at: tuple[str, str] = ("", ""), nodes: type[Interrupted] = Interrupted, **given: Value) -> Path:
        asked = (at, nodes, repr(sorted(given.items())))
        if asked not in made:
            made[asked] = go(small(tmp_path_factory.mktemp("ended"), cache_dir, **{**FEW, **given}), at, nodes=nodes)
        return made[asked]

    return run


@pytest.fixture
def halved(ended: Runs, tmp_path: Path) -> Runs:
    """The same of a run that was interrupted in round 4, as a copy that the test may change or continue."""

    def copy(**given: Any) -> Path:
        half = ended(at=("4", "train"), **given)
        return shutil.copytree(half, tmp_path / "halved" / half.name)

    return copy


class Interrupted(InProcessGrid):
    """A simulation whose server is interrupted in an exchange of a round when some clients have done their work."""

    at: tuple[str, str] = ("", "")
    after = 2

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        messages = list(messages)
        stop = any((m.metadata.group_id, m.metadata.message_type) == self.at for m in messages)
        replies = super().send_and_receive(messages[: self.after] if stop else messages, timeout=timeout)
        if stop:
            raise KeyboardInterrupt
        return replies


class InterruptedCohort(Interrupted, CohortGrid):
    """The same with a round's clients as one program."""


def go(
    chosen: dict[str, Value], at: tuple[str, str] = ("", ""), clients: int = 4, nodes: type[Interrupted] = Interrupted
) -> Path:
    """Run with fresh nodes, whose memory is empty, and return the run's directory."""
    grid = nodes(make_client_app(chosen), clients)
    grid.at = at
    context = Context(run_id=grid.run.run_id, node_id=1, node_config={}, state=RecordDict(), run_config={})
    before = set(Path(str(chosen["results-dir"])).glob("*/*"))
    try:
        server_app.make_server_app(chosen)(grid, context)
    except KeyboardInterrupt:
        assert at[0], "it was not asked to stop"
    else:
        assert not at[0], "it was to be interrupted"
    if chosen.get("resume"):
        return Path(str(chosen["resume"]))
    (path,) = set(Path(str(chosen["results-dir"])).glob("*/*")) - before
    return path


def tensors(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {file.name: load_file(file) for file in folder.glob("*.safetensors")}


def lines(path: Path) -> list[dict[str, Any]]:
    """The exchanges, without what differs from run to run."""
    given = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in given]


def assert_same_run(one: Path, other: Path) -> None:
    summaries = [json.loads((path / "summary.json").read_text()) for path in (one, other)]
    assert summaries[0]["digest"] == summaries[1]["digest"]
    assert summaries[0]["bytes"] == summaries[1]["bytes"]
    assert summaries[0]["num-rounds"] == summaries[1]["num-rounds"]
    assert lines(one) == lines(other)
    assert {f.name for f in (one / "metrics").iterdir()} == {f.name for f in (other / "metrics").iterdir()}
    assert {f.name for f in one.glob("mixing/*")} == {f.name for f in other.glob("mixing/*")}
    for folder in ("", "clients", "model"):
        first, second = tensors(one / folder), tensors(other / folder)
        assert first.keys() == second.keys(), folder
        for name, given in first.items():
            assert given.keys() == second[name].keys(), name
            assert all(torch.equal(tensor, second[name][key]) for key, tensor in given.items()), name


def cases() -> Iterable[Any]:
    for name, nodes, more in (("in-process", Interrupted, OF_THE_SERVER), ("cohort", InterruptedCohort, {})):
        what = {strategy: {"strategy": strategy} for strategy in methods()} | OF_CLIENTS | more
        yield from (pytest.param(given, nodes, id=f"{key}-{name}") for key, given in what.items())


@pytest.mark.parametrize(("given", "nodes"), list(cases()))
def test_interrupted_in_mid_round_and_continued_equals_uninterrupted(
    settings: Settings, ended: Runs, halved: Runs, given: Any, nodes: type[Interrupted]
) -> None:
    whole, half = ended(**given, nodes=nodes), halved(**given, nodes=nodes)
    assert checkpoints.newest(half)[0].round == 2
    assert_same_run(whole, go(settings(**given, resume=str(half)), nodes=nodes))
    assert json.loads((half / "summary.json").read_text())["resumed-from"] == [2]


def test_a_run_may_be_interrupted_again_and_again(settings: Settings, ended: Runs) -> None:
    chosen = settings(strategy="pfedla", checkpoint_every=1)
    whole, half = ended(strategy="pfedla"), go(chosen, at=("2", "train"))
    for number in ("3", "4"):
        go(chosen | {"resume": str(half)}, at=(number, "train"))
    assert_same_run(whole, go(chosen | {"resume": str(half)}))
    assert json.loads((half / "summary.json").read_text())["resumed-from"] == [1, 2, 3]


def test_interrupted_in_the_closing_evaluation_only_that_is_done_again(settings: Settings, ended: Runs) -> None:
    whole, half = ended(strategy="fedper"), go(settings(strategy="fedper"), at=("5", "evaluate"))
    assert checkpoints.newest(half)[0].round == 4
    assert_same_run(whole, go(settings(strategy="fedper", resume=str(half))))


def test_a_run_that_has_ended_goes_on_for_more_rounds(settings: Settings) -> None:
    whole = go(settings(strategy="fedavg", num_server_rounds=6))
    short = go(settings(strategy="fedavg"))
    with pytest.raises(UserError, match=r"has come to its end, after 4 rounds: wanted .* num-server-rounds above that"):
        go(settings(strategy="fedavg", resume=str(short)))
    assert_same_run(whole, go(settings(strategy="fedavg", num_server_rounds=6, resume=str(short))))


def test_what_was_done_after_the_checkpoint_is_not_forgotten(settings: Settings, halved: Runs) -> None:
    half = halved(strategy="fedper")
    before = lines(half)
    go(settings(strategy="fedper", resume=str(half)))
    undone = [json.loads(line)["round"] for line in (half / "undone.jsonl").read_text().splitlines()]
    assert undone == [line["round"] for line in before if line["round"] > 2] == [3]


def test_two_checkpoints_are_kept_and_each_is_whole(ended: Runs) -> None:
    run = ended(strategy="fedper", checkpoint_every=1)
    folders = sorted((run / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["round-00003", "round-00004"]
    for folder in folders:
        assert sorted(file.name for file in (folder / "clients").iterdir()) == [f"{i}.safetensors" for i in range(4)]
    one, other = (tensors(folder / "clients")["0.safetensors"] for folder in folders)
    assert any(not torch.equal(one[name], other[name]) for name in one), "the older one has changed with the newer"


@pytest.mark.parametrize("harm", ["cut", "flip", "missing", "meta", "client"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    settings: Settings, ended: Runs, halved: Runs, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    chosen: dict[str, Value] = {"strategy": "fedper", "checkpoint_every": 1}
    whole, half = ended(**chosen), halved(**chosen)
    newest = half / "checkpoints" / "round-00003"
    file = newest / {"meta": "checkpoint.json", "client": "clients/2.safetensors"}.get(harm, "server.safetensors")
    content = file.read_bytes()
    file.unlink()
    if harm == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm != "missing":
        file.write_bytes(content[: len(content) // 2])
    assert checkpoints.newest(half)[0].round == 2
    assert "round-00003 is damaged" in caplog.text
    assert_same_run(whole, go(settings(**chosen, resume=str(half))))


def test_without_a_whole_checkpoint_there_is_nothing_to_go_on_from(settings: Settings) -> None:
    half = go(settings(strategy="fedper"), at=("2", "train"))
    with pytest.raises(UserError, match=r"it has no checkpoint, so there is nothing .* checkpoint-every"):
        go(settings(strategy="fedper", resume=str(half)))
    none = go(settings(strategy="fedper", checkpoint_every=0))
    assert not (none / "checkpoints").exists()
    assert not (none / "clients").exists()


def test_a_half_written_checkpoint_is_never_read(halved: Runs) -> None:
    half = halved(strategy="fedper")
    shutil.copytree(half / "checkpoints" / "round-00002", half / "checkpoints" / ".round-00004.partial")
    assert checkpoints.newest(half)[0].round == 2


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "sync", full)
    run = go(settings(strategy="fedper"))
    assert "the checkpoint of round 2 cannot be written (No space left on device)" in caplog.text
    assert json.loads((run / "summary.json").read_text())["num-rounds"] == 4
    assert list((run / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"alpha": 0.5}, r"settings that it began with: alpha=0.1 \(now 0.5\)"),
        ({"strategy": "fedavg"}, r'strategy="fedper" \(now "fedavg"\)'),
        ({"seed": 1, "momentum": 0.5}, r"momentum=0.9 \(now 0.5\), seed=0 \(now 1\)"),
    ],
)
def test_other_settings_are_refused_all_at_once(settings: Settings, halved: Runs, given: Any, why: str) -> None:
    half = halved(strategy="fedper")
    before = {file: file.read_bytes() for file in half.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=why):
        go(settings(**{"strategy": "fedper", "resume": str(half), **given}))
    assert {file: file.read_bytes() for file in half.rglob("*") if file.is_file()} == before


def test_settings_of_other_methods_may_be_others_as_after_an_upgrade(
    settings: Settings, ended: Runs, halved: Runs
) -> None:
    whole, half = ended(strategy="fedper"), halved(strategy="fedper")
    config = half / "config.toml"
    then = config.read_text().replace("amn.initial-temperature = 5.0", "amn.initial-temperature = 0.0")
    config.write_text(then.replace("fedham.prior-penalty", "fedham.a-name-of-an-earlier-version"))
    assert {"amn.initial-temperature", "fedham.a-name-of-an-earlier-version"} <= read_settings(half).keys()
    given = resuming.complete(str(half), settings(strategy="fedper"))
    assert not [key for key in resuming.complete(str(half), {}) if key.startswith(("amn.", "fedham."))]
    assert_same_run(whole, go(given))


def test_another_number_of_clients_is_refused_and_changes_nothing(settings: Settings, halved: Runs) -> None:
    half = halved(strategy="fedper")
    before = {file: file.read_bytes() for file in half.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=r"the run had 4 clients, and there are 3 now: .*--num-supernodes 4"):
        go(settings(strategy="fedper", resume=str(half)), clients=3)
    assert {file: file.read_bytes() for file in half.rglob("*") if file.is_file()} == before


def test_a_folder_that_is_no_run_is_named(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not the directory of a run: wanted .*config.toml"):
        go(settings(strategy="fedper", resume=str(tmp_path / "nowhere")))


def test_the_command_line_takes_the_settings_and_the_clients_of_the_run(settings: Settings) -> None:
    half = go(settings(strategy="pfedla", **{"pfedla.top-k-peers": 2}), at=("4", "train"))
    given = resuming.complete(str(half), {"num-server-rounds": 9})
    assert (given["strategy"], given["pfedla.top-k-peers"], given["num-server-rounds"]) == ("pfedla", 2, 9)
    assert given["resume"] == str(half)
    assert resuming.num_clients(str(half)) == 4
    assert resuming.complete(str(half), {"strategy": "fedtransfer"}) == {"strategy": "fedtransfer", "resume": str(half)}


def test_the_file_that_a_run_leaves_continues_it(settings: Settings, ended: Runs) -> None:
    whole, half = ended(strategy="fedper"), go(settings(strategy="fedper"), at=("4", "train"))
    import tomllib

    left = flat(tomllib.loads((half / "resume.toml").read_text()))
    assert_same_run(whole, go(left))


def test_a_worker_killed_after_it_has_written_its_state_learns_nothing_twice(
    federate: Callable[..., Any],
) -> None:
    """A simulation does such a message once more, from the memory that the worker had been given."""

    class Twice(InProcessGrid):
        def _answer(self, message: Message) -> Message:
            memory = context_to_proto(self.contexts[message.metadata.dst_node_id])
            if message.metadata.message_type == "train":
                super()._answer(message)
                self.contexts[message.metadata.dst_node_id] = context_from_proto(memory)
            return super()._answer(message)

    for strategy in ("fedper", "local"):
        once, twice = federate(strategy=strategy), federate(strategy=strategy, grid=Twice)
        assert once.summary["digest"] == twice.summary["digest"]


def test_the_privacy_budget_counts_what_was_sent_before_the_interruption(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    private = settings(strategy="fedavg", **{"dp.epsilon": 1.0, "dp.clipping-norm": 0.1})
    half = go(private, at=("4", "train"))
    go(private | {"resume": str(half)})
    budget = json.loads((half / "summary.json").read_text())["privacy"]
    # rounds 1 to 3, the one on its way when it was interrupted, and 3 and 4
    assert {client: spent["releases"] for client, spent in budget["clients"].items()} == dict.fromkeys("0123", 6)
    assert "privacy: at most 6 releases of a client: epsilon " in capsys.readouterr().out
