"""Who is who: ids, the one order, the cohort of a round, and finding the clients behind a fake grid."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from fedham_flwr.core.errors import UserError
from fedham_flwr.federation import wire
from fedham_flwr.federation.agreement import agree
from fedham_flwr.federation.messages import ClientFailure, Profile
from fedham_flwr.federation.roster import Roster, cohort, hold_out, identify, order, read_reply

IDS = st.sets(
    st.integers(0, 999).map(str) | st.from_regex(r"[A-Za-z_-][A-Za-z0-9._-]{0,9}", fullmatch=True), min_size=1
)


def profile(client: str, partitions: int = 0, **changes: Any) -> Profile:
    parts: dict[str, Any] = {"shape": (1, 8, 8), "classes": 2, "counts": {"train": 3, "test": 1}, "labels": (2, 1)}
    return Profile(client=client, partitions=partitions, **parts | changes)


Answer = Profile | ClientFailure | str | None
"""A profile, a failure of the client, an error of Flower's, or no proper content."""


class FakeGrid(Grid):
    """Nodes with a prepared answer each; the node with answer `answers[n]` is there from the `late[n]`-th look on."""

    def __init__(self, answers: Mapping[int, Answer], late: Mapping[int, int] | None = None) -> None:
        self.answers, self.late = dict(answers), dict(late or {})
        self.looks, self.asked, self.timeouts = 0, [0][:0], [0.0][:0]
        self._run = Run.create_empty(run_id=1)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    @property
    def run(self) -> Run:
        return self._run

    def set_run(self, run: Run) -> None:
        self._run = run

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        self.looks += 1
        return [node for node in self.answers if self.late.get(node, 0) < self.looks]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        self.timeouts.append(timeout or 0.0)
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        message.metadata.__dict__["_message_id"] = "m"
        node = message.metadata.dst_node_id
        self.asked.append(node)
        match self.answers[node]:
            case Profile() as given:
                return Message(wire.write_profile(given), reply_to=message)
            case ClientFailure() as failure:
                return Message(wire.write_failure(str(failure), failure.simulated), reply_to=message)
            case str(reason):
                return Message(Error(1, reason), reply_to=message)
        return Message(RecordDict(), reply_to=message)


def find(grid: Grid, min_clients: int, client_timeout: float = 5.0) -> Roster:
    roster = Roster()
    roster.discover(grid, min_clients, client_timeout, 60.0)
    return roster


@pytest.mark.parametrize(
    ("node_config", "client"),
    [
        ({"partition-id": 3, "num-partitions": 10}, "3"),
        ({"client-id": "site-7"}, "site-7"),
        ({"client-id": "site-7", "partition-id": 3}, "site-7"),
        ({"client-id": 12}, "12"),
        ({"client-id": "a" * 64}, "a" * 64),
    ],
)
def test_a_client_is_who_its_node_says(node_config: dict[str, object], client: str) -> None:
    assert identify(node_config) == client


def test_a_node_without_an_id_is_told_how_to_give_one() -> None:
    with pytest.raises(UserError, match=r"no client-id: start the SuperNode with --node-config 'client-id=.*data-path"):
        identify({"data-path": "x"})


@pytest.mark.parametrize(
    "unsafe", ["", ".", "..", ".hidden", "a/b", "../x", "a b", "é", "a" * 65, "a\n", "-0/", "a\\b"]
)
def test_an_id_that_is_no_safe_file_name_is_refused(unsafe: str) -> None:
    with pytest.raises(UserError, match=rf"^client-id={re.escape(repr(unsafe))} must be 1 to 64 letters, digits"):
        identify({"client-id": unsafe})


def test_numbers_go_by_value_and_names_by_spelling() -> None:
    assert order(["b", "10", "9", "a10", "a9", "0", "B"]) == ("0", "9", "10", "B", "a10", "a9", "b")


@given(IDS, st.floats(0, 1, exclude_min=True), st.integers(0, 2**62), st.integers(1, 500), st.randoms())
def test_a_cohort_is_an_ordered_share_that_depends_on_seed_round_and_ids_alone(
    clients: set[str], fraction: float, seed: int, number: int, random: Any
) -> None:
    drawn = cohort(seed, number, clients, fraction)
    assert set(drawn) <= clients
    assert len(set(drawn)) == len(drawn) >= 1
    assert abs(len(drawn) - fraction * len(clients)) <= 0.5 or len(drawn) == 1
    assert drawn == order(drawn)
    shuffled = sorted(clients)
    random.shuffle(shuffled)
    assert cohort(seed, number, shuffled, fraction) == drawn


@given(IDS, st.integers(1, 100))
def test_a_fraction_of_1_is_everyone(clients: set[str], number: int) -> None:
    assert cohort(0, number, clients, 1.0) == order(clients)


@pytest.mark.parametrize(("count", "fraction", "size"), [(10, 0.25, 3), (10, 0.24, 2), (10, 0.001, 1), (3, 0.5, 2)])
def test_the_size_is_rounded_to_the_nearest_and_never_zero(count: int, fraction: float, size: int) -> None:
    assert len(cohort(0, 1, map(str, range(count)), fraction)) == size


def test_every_client_has_its_turn_equally_often() -> None:
    clients, rounds = [str(i) for i in range(10)], 2000
    drawn = Counter(client for number in range(rounds) for client in cohort(3, number, clients, 0.3))
    # Binomial(2000, 0.3): mean 600, standard deviation sqrt(2000 * 0.3 * 0.7) = 20.5; four of them are 82.
    assert all(abs(drawn[client] - 600) < 82 for client in clients)


def test_rounds_and_seeds_draw_differently() -> None:
    clients = [str(i) for i in range(20)]
    assert len({cohort(seed, number, clients, 0.5) for seed in (0, 1) for number in (1, 2, 3)}) == 6


# ---- novel clients ---------------------------------------------------------------------------------------------------


@given(IDS, st.integers(0, 9), st.integers(0, 2**62), st.randoms())
def test_novel_clients_depend_on_seed_and_ids_alone(clients: set[str], count: int, seed: int, random: Any) -> None:
    count = min(count, len(clients) - 1)
    drawn = hold_out(seed, clients, count)
    assert set(drawn) <= clients
    assert len(set(drawn)) == len(drawn) == count
    assert drawn == order(drawn)
    shuffled = sorted(clients)
    random.shuffle(shuffled)
    assert hold_out(seed, shuffled, count) == drawn


def test_seeds_hold_out_different_clients_and_not_those_of_a_cohort() -> None:
    clients = [str(i) for i in range(20)]
    drawn = [hold_out(seed, clients, 5) for seed in range(8)]
    assert len(set(drawn)) == 8
    assert all(
        hold_out(seed, clients, 5) != cohort(seed, number, clients, 0.25) for seed in (0, 1) for number in (0, 1)
    )


@pytest.mark.parametrize("count", [4, 5])
def test_holding_everyone_out_is_refused(count: int) -> None:
    with pytest.raises(
        UserError, match=rf"^novel-clients={count} leaves nobody to train of 4 clients: it must be below their number$"
    ):
        hold_out(0, ["0", "1", "2", "3"], count)


# ---- finding them ----------------------------------------------------------------------------------------------------


def test_a_simulation_is_complete_when_all_of_its_clients_have_answered() -> None:
    grid = FakeGrid({10 + i: profile(str(i), partitions=4) for i in range(4)}, late={12: 1, 13: 3})
    roster = find(grid, min_clients=2)
    assert roster.nodes == {"0": 10, "1": 11, "2": 12, "3": 13}
    assert grid.looks == 4
    assert sorted(grid.asked) == [10, 11, 12, 13]  # each once
    assert set(grid.timeouts) == {60.0}
    assert roster.profiles["3"] == profile("3", partitions=4)


def test_real_nodes_are_enough_when_min_clients_have_answered() -> None:
    roster = find(FakeGrid({i: profile(f"site-{i}") for i in (5, 6, 7)}, late={7: 10**6}), min_clients=2)
    assert roster.nodes == {"site-5": 5, "site-6": 6}


def test_fewer_clients_than_wanted_are_waited_for_and_then_counted() -> None:
    grid = FakeGrid({5: profile("a")})
    with pytest.raises(UserError, match=r"^3 clients are wanted and 1 answered within client-timeout=0.12 seconds$"):
        find(grid, min_clients=3, client_timeout=0.12)
    assert grid.looks >= 2
    assert grid.asked == [5]


def test_a_simulation_wants_all_of_its_own_whatever_min_clients_says() -> None:
    with pytest.raises(UserError, match=r"^10 clients are wanted and 1 answered"):
        find(FakeGrid({5: profile("0", partitions=10)}), min_clients=1, client_timeout=0.01)
    with pytest.raises(UserError, match=r"^2 clients are wanted and 0 answered within client-timeout=0.01 seconds$"):
        find(FakeGrid({}), min_clients=2, client_timeout=0.01)


@pytest.mark.parametrize(
    ("answer", "quoted"),
    [
        (ClientFailure("no file images.csv"), "no file images.csv"),
        ("\nout of memory\nstack", r"out of memory.*\(code 1\)"),
        (None, "node 6 gave no proper answer to the query: .sender."),
    ],
)
def test_a_failing_real_node_is_asked_once_and_quoted(answer: Answer, quoted: str) -> None:
    grid = FakeGrid({5: profile("a"), 6: answer})
    with pytest.raises(UserError, match=f"^2 clients are wanted and 1 answered .* the first failure is: {quoted}$"):
        find(grid, min_clients=2, client_timeout=0.12)
    assert grid.asked == [5, 6]
    assert find(grid, min_clients=1).nodes == {"a": 5}


def test_nobody_is_waited_for_when_as_many_as_are_wanted_have_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedham_flwr.federation.roster.GRACE", 0.15)
    refused = ClientFailure("label-column names 'sick', whose values are yes and no")
    grid = FakeGrid({5: refused, 6: ClientFailure("the same"), 7: ClientFailure("the same")})
    with pytest.raises(UserError, match=r"^all 3 nodes that are there cannot take part; the first says: label-col"):
        find(grid, min_clients=3, client_timeout=30.0)
    assert grid.asked == [5, 6, 7]
    late = FakeGrid({5: refused, 6: profile("a")}, late={6: 3})  # within the grace another one comes
    assert find(late, min_clients=1).nodes == {"a": 6}
    with pytest.raises(
        UserError, match=r"^2 clients are wanted and 0 answered within client-timeout=0.4 seconds; the "
    ):
        find(FakeGrid({5: refused}), min_clients=2, client_timeout=0.4)  # others may yet come


def test_a_failing_client_of_a_simulation_ends_the_search_at_once() -> None:
    grid = FakeGrid({5: profile("0", partitions=9), 6: ClientFailure("no data set named mist", simulated=True)})
    with pytest.raises(UserError, match=r"^no data set named mist$"):
        find(grid, min_clients=2)
    assert grid.looks == 1


def test_two_nodes_with_one_id_are_refused() -> None:
    with pytest.raises(UserError, match=r"two nodes give the client id 'a' \(5 and 6\): give every SuperNode"):
        find(FakeGrid({5: profile("a"), 6: profile("a")}), min_clients=1)


def test_two_nodes_with_one_id_are_refused_too_after_one_was_left_out() -> None:
    grid = FakeGrid({5: profile("a"), 6: profile("b")})
    roster = find(grid, min_clients=2)
    roster.leave_out("b", "its network is none")
    grid.answers |= {7: profile("c"), 8: profile("c")}
    with pytest.raises(UserError, match=r"two nodes give the client id 'c' \(7 and 8\)"):
        roster.discover(grid, 2, 1.0, 60.0)
    assert roster.failures == {6: "its network is none"}


def test_refresh_drops_who_left_asks_who_is_new_and_leaves_the_rest_alone() -> None:
    grid = FakeGrid({5: profile("a"), 6: profile("b")})
    roster = find(grid, min_clients=2)
    del grid.answers[6]
    grid.answers |= {7: profile("b"), 9: ClientFailure("broken")}  # b has restarted
    grid.asked.clear()
    roster.refresh(grid, 60.0)
    assert roster.failures == {9: "broken"}
    assert roster.nodes == {"a": 5, "b": 7}
    assert grid.asked == [7, 9]
    roster.refresh(grid, 60.0)
    assert grid.asked == [7, 9]  # who failed is not asked again
    grid.answers.clear()
    roster.refresh(grid, 60.0)
    assert roster.nodes == {}
    assert set(roster.profiles) == {"a", "b"}  # what is known of them stays known


def test_a_failing_node_that_was_mended_is_asked_again_when_it_is_back() -> None:
    grid = FakeGrid({5: profile("a"), 6: ClientFailure("no file rows.csv")})
    roster = find(grid, min_clients=1)
    del grid.answers[6]
    roster.refresh(grid, 60.0)
    assert roster.failures == {}
    grid.answers[6] = profile("b")
    roster.refresh(grid, 60.0)
    assert roster.nodes == {"a": 5, "b": 6}
    assert grid.asked == [5, 6, 6]


def test_nobody_takes_over_the_id_of_a_client_whose_node_is_there() -> None:
    grid = FakeGrid({5: profile("a"), 6: profile("b")})
    roster = find(grid, min_clients=2)
    grid.answers[7] = profile("b", counts={"train": 9, "test": 1})
    roster.refresh(grid, 60.0)
    assert roster.nodes == {"a": 5, "b": 6}
    assert roster.profiles["b"].counts["train"] == 3
    del grid.answers[6]  # Flower lists a node that has died until its heartbeat is overdue
    roster.refresh(grid, 60.0)
    assert roster.nodes == {"a": 5, "b": 7}
    assert grid.asked == [5, 6, 7, 7]


def test_a_reply_is_its_content_or_the_first_line_of_what_flower_says() -> None:
    grid = FakeGrid({5: profile("a"), 6: "\n  first line \nsecond", 7: ""})

    def ask(node: int) -> Message:
        return grid._answer(Message(RecordDict(), node, "query", group_id="0"))

    assert wire.read_profile(read_reply(ask(5))) == profile("a")
    for node, match in ((6, "^first line"), (7, r"^no reason given \(code 1\)$")):
        with pytest.raises(ClientFailure, match=match) as caught:
            read_reply(ask(node))
        assert caught.value.simulated is False


def test_clients_agree_on_a_shape_and_on_the_most_classes() -> None:
    assert agree([profile("a", classes=2), profile("b", classes=7)]) == ((1, 8, 8), 7)


def test_clients_with_texts_of_one_length_agree() -> None:
    assert agree([profile("a", shape=(80,)), profile("b", shape=(80,))]) == ((80,), 2)
    with pytest.raises(
        UserError, match=r"client a has samples of shape \(80,\) and client b of \(1, 8, 8\): .* of text"
    ):
        agree([profile("a", shape=(80,)), profile("b")])


def test_clients_with_tables_of_as_many_columns_agree() -> None:
    assert agree([profile("a", shape=(2, 13)), profile("b", shape=(2, 13), classes=3)]) == ((2, 13), 3)
    with pytest.raises(UserError, match=r"shape \(2, 13\) and client b of \(2, 12\): .* or \(2, columns\) of tables"):
        agree([profile("a", shape=(2, 13)), profile("b", shape=(2, 12))])


def test_clients_with_samples_of_other_shapes_are_named() -> None:
    others = [profile("a"), profile("b"), profile("c", shape=(3, 8, 8))]
    with pytest.raises(UserError, match=r"client a has samples of shape \(1, 8, 8\) and client c of \(3, 8, 8\)"):
        agree(others)


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        ((("no", "yes"),), (("yes", "no"),), "client a calls class 0 'no' and client b calls it 'yes'"),
        ((("0", "1"), ("age", "sex")), (("0", "1"), ("age", "chol")), "column 1 'sex' and client b calls it 'chol'"),
    ],
)
def test_clients_that_mean_different_things_by_a_number_are_refused(ours: Any, theirs: Any, why: str) -> None:
    with pytest.raises(UserError, match=why):
        agree([profile("a", meanings=ours), profile("b", meanings=theirs)])


def test_a_client_may_lack_the_last_classes() -> None:
    assert agree([profile("a", meanings=(("0", "1"),)), profile("b", classes=3, meanings=(("0", "1", "2"),))])[1] == 3
