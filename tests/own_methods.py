"""Methods of a user's whose server halves do something wrong: used by import path in tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedham_flwr import AveragingStrategy, Method, Outcome, RoundClient, RoundStrategy, Setup, split_groups


def everything(manifest: Any, settings: object) -> Any:
    return split_groups(manifest, ())


class Stops(AveragingStrategy):
    """Somebody presses Ctrl-C in round 3."""

    def merge(self, round_number: int, uploads: Mapping[str, Any]) -> None:
        if round_number == 3:
            raise KeyboardInterrupt
        super().merge(round_number, uploads)


class SlipInInit(AveragingStrategy):
    """Cannot be made."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.size = {}["size"]


class SlipInPlan(AveragingStrategy):
    """Fails before a round."""

    def plan(self, round_number: int, clients: Sequence[str]) -> Any:
        return [clients[0], clients.no_such_thing]  # type: ignore[attr-defined]


class SlipInMerge(AveragingStrategy):
    """Fails after a round, in torch."""

    def merge(self, round_number: int, uploads: Mapping[str, Any]) -> None:
        (first, *_) = uploads.values()
        self.mean = first.params["fc1.weight"] + first.params["fc1.bias"][:3]


class SlipInState(SlipInMerge):
    """Fails, and cannot say what its state is either."""

    def state_dict(self) -> Any:
        raise RuntimeError("no state")


class WrongPlan(AveragingStrategy):
    """Gives what is not wanted."""

    def plan(self, round_number: int, clients: Sequence[str]) -> Any:
        return dict.fromkeys(clients, 3)


class NoPlan(AveragingStrategy):
    """Forgets a client."""

    def plan(self, round_number: int, clients: Sequence[str]) -> Any:
        return super().plan(round_number, clients[1:])


class WrongMerge(AveragingStrategy):
    """Makes other tensors of the shared ones."""

    def merge(self, round_number: int, uploads: Mapping[str, Any]) -> None:
        self.shared = {name: tensor.double() for name, tensor in self.shared.items()}


class NoTensors(AveragingStrategy):
    """Has something else than tensors for a state."""

    def state_dict(self) -> Any:
        return {**super().state_dict(), "rounds": 3}


class SendsNothing(RoundClient):
    """Gives an outcome of which nothing can be sent."""

    def train(self, start: Any) -> Outcome:
        return Outcome({}, self.fit(start))


class KeepsNothing(RoundClient):
    """Forgets what is personal."""

    def train(self, start: Any) -> Outcome:
        model = self.fit(start)
        return Outcome(model, model)


class Unfinished(RoundStrategy):
    """Has half of what a method needs."""

    def plan(self, round_number: int, clients: Sequence[str]) -> Any:
        return {}


def method(server: type, name: str) -> Method:
    return Method(server, RoundClient, everything, averages=True, name=name)


STOPS = method(Stops, "stops")
INIT = method(SlipInInit, "init")
PLAN = method(SlipInPlan, "plan")
MERGE = method(SlipInMerge, "merge")
STATE = method(SlipInState, "state")
WRONG_PLAN = method(WrongPlan, "wrong-plan")
NO_PLAN = method(NoPlan, "no-plan")
WRONG_MERGE = method(WrongMerge, "wrong-merge")
NO_TENSORS = method(NoTensors, "no-tensors")
SENDS_NOTHING = Method(AveragingStrategy, SendsNothing, everything)
KEEPS_NOTHING = Method(AveragingStrategy, KeepsNothing, lambda manifest, _: split_groups(manifest, ("fc2",)))
UNFINISHED = method(Unfinished, "unfinished")
NO_SERVER_HALF = method(dict, "no-server-half")
