"""The server's half of cross-site evaluation: every client's model, scored on the test data of every other.

After the closing exchange the server asks who takes part, and then a few models at a time go to each of these. In a
simulation the models are read where the clients have left them. What clients send is looked at as in a round; one that
fails is left out, and the run does not end for it.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from flwr.serverapp import Grid

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.records import Failure, RoundRecord
from fedham_flwr.core.seeding import stream
from fedham_flwr.core.trees import num_bytes
from fedham_flwr.federation import cross_client as clients_half
from fedham_flwr.federation.cross_exchange import CrossExchange, CrossRow
from fedham_flwr.federation.messages import Extras
from fedham_flwr.federation.roster import order
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.federation.stages import CONSENT, CROSS, GIVE
from fedham_flwr.training.metric_choice import selection
from fedham_flwr.training.metrics import Metric

log = logging.getLogger("fedham_flwr")

GROUP_BYTES = 32_000_000
"""Of the models of one message, which is at least one model."""
OWN_BYTES = 512_000_000
"""Of the models that clients of this process score as their own at the same time."""


@dataclasses.dataclass(frozen=True)
class Crossed:
    """What came of it.

    Attributes:
        rows: the scores, by model, data and metric.
        clients: those that took part, in order.
        left_out: client -> why it took no part.
        drawn: the clients are a sample of more that would have taken part.
        headline: the metric that is shown.
        record: of the whole exchange.
    """

    rows: tuple[CrossRow, ...]
    clients: tuple[str, ...]
    left_out: Mapping[str, str]
    drawn: bool
    headline: Metric
    record: RoundRecord


def cross_evaluate(grid: Grid, strategy: RoundStrategy) -> Crossed:
    """Score the clients' exported models on each other's test data.

    Args:
        grid: the way to the clients.
        strategy: of a run whose closing exchange is over.
    """
    return _Crossing(grid, strategy).run()


class _Crossing:
    """One cross-site evaluation under way."""

    def __init__(self, grid: Grid, strategy: RoundStrategy) -> None:
        self._grid, self._strategy, self._settings = grid, strategy, strategy.settings
        self._export, self._roster = strategy.setup.task.export, strategy.setup.roster
        self._exchange = CrossExchange(grid, strategy)
        profile = next(iter(self._roster.profiles.values()))
        measured = self._settings.measured(profile.target, strategy.setup.task.classes)
        self._known = {"loss", *(metric.name for metric in measured)}
        self._headline = selection(self._settings.selection_metric, measured)
        self._size = max(1, num_bytes(strategy.setup.initial))

    def run(self) -> Crossed:
        """All of it."""
        began, exchange = time.perf_counter(), self._exchange
        self._roster.refresh(self._grid, self._settings.round_timeout)
        tested, left_out = self._who(order(self._roster.nodes))
        everyone = order(tested)
        some = self._drawn(everyone)
        scored = (*self._own(some), *self._others(some, [client for client in some if tested[client]]))
        rows = {row[:3]: row for row in reversed(scored)}  # of a pair scored twice the first: in its own cohort
        place = {client: at for at, client in enumerate(some)}
        ordered = sorted(rows.values(), key=lambda row: (place[row.model_of], place[row.data_of], row.metric))
        for client in (failed := order(exchange.failures)):
            log.warning("client %s fails in cross-site evaluation: %s", client, exchange.failures[client])
        record = RoundRecord(
            exchange.number,
            CROSS.name,
            some,
            len(set(some) - set(failed)),
            tuple(Failure(exchange.number, CROSS.name, client, exchange.failures[client]) for client in failed),
            {"exchange": time.perf_counter() - began, "check": 0.0},
            exchange.bytes["up"],
            exchange.bytes["down"],
        )
        return Crossed(tuple(ordered), some, left_out, len(some) < len(everyone), self._headline, record)

    def _who(self, clients: Sequence[str]) -> tuple[dict[str, bool], dict[str, str]]:
        """Who takes part, and whether it has test samples; and why others do not."""
        tested, left_out = dict[str, bool](), dict[str, str]()
        for client, reply in self._exchange.ask(CONSENT, clients, lambda _: Extras()).items():
            said = {name: bool(number.sum()) for name, number in reply.extras.items()}
            there = self._file(client).is_file() if self._export else said.get(clients_half.MODEL)
            if not said.get(clients_half.CONSENTS):
                left_out[client] = "its node config does not say cross-evaluation=true"
            elif not there:
                left_out[client] = "it has kept no model of its own" + (
                    "" if self._export else " (has it a state-dir?)"
                )
            else:
                tested[client] = bool(said.get(clients_half.TEST))
        for client, why in left_out.items():
            log.warning("client %s takes no part in cross-site evaluation: %s", client, why)
        return tested, left_out

    def _drawn(self, clients: tuple[str, ...]) -> tuple[str, ...]:
        most, there = self._settings.cross_evaluation_clients, len(clients)
        if there <= most:
            return clients
        log.warning("cross-site evaluation is of %d clients drawn from %d (cross-evaluation-clients)", most, there)
        chosen = stream(self._settings.seed, "cross-sites").choice(there, size=most, replace=False)
        return tuple(clients[place] for place in sorted(chosen.tolist()))

    def _own(self, clients: Sequence[str]) -> Iterator[CrossRow]:
        """In a cohort each client's own model first, all at once as in the closing exchange: the same sums, to the bit.

        Together with others' models, of which several clients score the same, sums are made in another order.
        """
        novel, extras = set(self._strategy.progress.novel), dict[str, Extras]()
        for group in ([c for c in clients if c not in novel], [c for c in clients if c in novel]):
            for some in self._groups(group if self._exchange.direct else [], OWN_BYTES):
                for client, model in self._models(some).items():
                    extras[client] = Extras(clients_half.joined([model]), {clients_half.ALSO_VALIDATION: (1,)})
                for client, reply in self._exchange.ask(CROSS, list(extras), extras.__getitem__).items():
                    yield from self._exchange.rows(client, reply, [client], self._known)
                extras.clear()

    def _others(self, clients: Sequence[str], tested: Sequence[str]) -> Iterator[CrossRow]:
        """A few models at a time on the test data of all."""
        for some in self._groups(clients, GROUP_BYTES):
            models = self._models(some)
            if models and tested:
                extras = Extras(clients_half.joined(list(models.values())))
                for client, reply in self._exchange.ask(CROSS, tested, partial(_same, extras)).items():
                    yield from self._exchange.rows(client, reply, list(models), self._known)

    def _groups(self, clients: Sequence[str], most: int) -> Iterator[Sequence[str]]:
        size = max(1, most // self._size)
        return (clients[at : at + size] for at in range(0, len(clients), size))

    def _file(self, client: str) -> Path:
        return clients_half.model_file(self._export, client)

    def _models(self, clients: Sequence[str]) -> dict[str, Params]:
        """Client -> its exported model: out of the run's directory in a simulation, else as it is sent."""
        if not self._export:
            replies = self._exchange.ask(GIVE, clients, lambda _: Extras())
            return {client: reply.params for client, reply in replies.items()}
        found, manifest = {}, self._strategy.manifest
        for client in clients:
            try:
                model = clients_half.read_model(self._file(client), manifest.names())
                manifest.check(model, manifest.names())
                found[client] = model
            except (UserError, ValueError) as error:
                self._exchange.fail(client, first_line(error))
        return found


def _same(extras: Extras, _client: str) -> Extras:
    return extras
