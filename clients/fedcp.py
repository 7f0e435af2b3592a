"""FedCP's client half; see algorithms/fedcp.py."""

from functools import cached_property
from typing import final

from fedham_flwr.algorithms.fedcp import Conditional, FedCPSettings
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.models.heads import head_name
from fedham_flwr.models.parts import direction


@final
class FedCPClient(RoundClient):
    """R4: keep the own head, send the mean of both in place of the common one."""

    own: FedCPSettings

    def start(self, received: Params) -> Params:
        """R2: what came, the head that was kept, and its context."""
        names = self.job.trainer.manifest.names()
        context = f"{self._head}.context.value"
        kept = self.recall([name for name in names if name not in received and name != context])
        found = {**received, **kept, context: direction(kept[f"{self._head}.personal.weight"])}
        return {name: found[name] for name in names}

    def train(self, start: Params) -> Outcome:
        """R3, R4: body, policy and own head at once; the common head and the body that came stay as they are."""
        trainer, head = self.job.trainer, self._head
        common = [name for name in start if name.rpartition(".")[0] == head]
        body = {name: tensor.to(trainer.device) for name, tensor in start.items() if not name.startswith(f"{head}.")}
        trained = [name for name in trainer.parameter_names if name not in common]
        after = self.fit(start, only=trained, loss=Conditional(head, body, self.own.discrepancy))
        own = {name: after[f"{head}.personal.{name.rpartition('.')[2]}"] for name in common}
        outcome = self.outcome(after)
        return Outcome({**after, **{name: (own[name] + start[name]) / 2 for name in common}}, after, outcome.keep)

    @cached_property
    def _head(self) -> str:
        return head_name(self.job.trainer.manifest)
