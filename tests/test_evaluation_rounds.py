"""Rounds with an evaluation of those whom they do not train: of which models the scores are, and whose."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from flwr.app import Message
from presets import network

from fedham_flwr.federation.contract import Task
from fedham_flwr.federation.record_values import tensors as read_tensors
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.server_app import build_strategy
from fedham_flwr.settings import parse

Federate = Callable[..., Any]


@pytest.mark.parametrize("strategy", ["fedavg", "fedper"])
def test_all_scores_of_a_round_are_of_one_state_of_the_server(strategy: str, federate: Federate) -> None:
    shared: dict[int, list[dict[str, torch.Tensor]]] = {}

    class Looking(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            for message in messages:
                if message.metadata.message_type in ("train", "evaluate"):
                    tensors = read_tensors(message.content.array_records["tensors"])
                    shared.setdefault(int(message.metadata.group_id), []).append(tensors)
            return super().push_messages(messages)

    federate(strategy=strategy, num_server_rounds=4, fraction_train=0.5, evaluate_every=2, grid=Looking)
    assert {number: len(sent) for number, sent in shared.items()} == {1: 2, 2: 4, 3: 2, 4: 4, 5: 4}
    for number, (first, *others) in shared.items():
        assert all(torch.equal(other[name], first[name]) for other in others for name in first), number
    assert not torch.equal(shared[2][0]["fc1.weight"], shared[4][0]["fc1.weight"])


def test_nobody_is_evaluated_and_trained_in_one_round_who_comes_between(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse({"strategy": "fedavg", "num-server-rounds": 8, "fraction-train": 0.5, "device": "cpu"})
    net = network("fedavg")
    made = build_strategy(settings, manifest_of(net, []), net.state_dict(), Task((1, 8, 8), 10))
    there = itertools.count(4)
    monkeypatch.setattr(made, "_present", lambda _grid: tuple(map(str, range(next(there)))))
    monkeypatch.setattr(made, "_messages", lambda _grid, _stage, _number, clients: clients)
    grid: Any = None
    for number in range(1, 9):
        scored = made.configure_evaluate(number, None, None, grid)
        trained = made.configure_train(number, None, None, grid)
        assert sorted([*scored, *trained]) == sorted(map(str, range(number + 3)))
    assert len(list(made.configure_evaluate(9, None, None, grid))) == 12
    assert len(list(made.configure_train(8, None, None, grid))) == 7  # without an evaluation, drawn when it is asked
