"""What pFedLA's clients keep: retained layers and running statistics, and what happens when they are lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flwr.app import Message

from fedham_flwr.runners.in_process import InProcessGrid

Federate = Callable[..., Any]


class Forgetting(InProcessGrid):
    """The first client loses its state before round 2, or before the closing evaluation."""

    when = "2"
    sent: list[tuple[str, str, list[str]]]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.sent = [*getattr(self, "sent", [])]
        if messages[0].metadata.group_id == self.when and not any(key == self.when for key, _, _ in self.sent):
            next(iter(self.contexts.values())).state.clear()
        for m in messages:
            if m.metadata.message_type != "query":
                client = str(self.contexts[m.metadata.dst_node_id].node_config["partition-id"])
                self.sent.append((m.metadata.group_id, client, sorted(m.content.array_records["tensors"])))
        return super().push_messages(messages)


class ForgettingLate(Forgetting):
    when = "3"


@pytest.mark.parametrize("grid", [Forgetting, ForgettingLate])
def test_a_client_that_lost_its_state_is_sent_everything_in_the_same_round(
    federate: Federate, grid: type[Forgetting]
) -> None:
    run = federate(strategy="pfedla", grid=grid, checkpoint_every=0, **{"pfedla.retained-layers": 2})
    assert run.summary["failures"] == 0
    assert [record["restored"] for record in run.records] == [
        ["0"] if str(r["round"]) == grid.when else [] for r in run.records
    ]
    first, second = [sent for key, client, sent in run.grid.sent if (key, client) == (grid.when, "0")]
    assert {name.split(".")[0] for name in second} == {"conv1", "conv2", "fc1", "fc2"}
    assert len(first) == 4
    usual = federate(strategy="pfedla", **{"pfedla.retained-layers": 2})
    at = int(grid.when) - 1
    assert run.records[at]["bytes-down"] == usual.records[at]["bytes-down"] + 13_706 * 4
    if grid is Forgetting:
        assert {c.state.config_records["personal-label"]["round"] for c in run.grid.contexts.values()} == {"2"}


BUFFERS = {f"{layer}.running_{what}" for layer in ("bn1", "bn2") for what in ("mean", "var")}


@pytest.mark.parametrize("where", ["local", "mix"])
def test_running_statistics_stay_with_the_client_or_are_mixed(federate: Federate, coloured: str, where: str) -> None:
    run = federate(
        strategy="pfedla", dataset=coloured, model="lenet-bn", partitioner="iid", grid=Forgetting,
        checkpoint_every=0, **{"pfedla.bn-buffers": where},
    )  # fmt: skip
    sent = {name for _, _, tensors in run.grid.sent for name in tensors}
    kept = {n for c in run.grid.contexts.values() for r in c.state.array_records.values() for n in r}
    assert sent >= BUFFERS if where == "mix" else not BUFFERS & sent
    assert kept == (BUFFERS if where == "local" else set())
    bank = run.state["bank/bn1"]
    assert bank.shape == ((4, 2 * 16) if where == "local" else (4, 4 * 16))
    # client 0 lost its statistics before round 2, and went on
    assert run.summary["failures"] == 0
    assert [r["restored"] for r in run.records] == [[], [], []]
