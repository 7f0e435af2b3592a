"""What a server half makes of the models of a round: their mean, or what the settings under `server.` say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedham_flwr.algorithms import fedavg
from fedham_flwr.core import server_optimizers
from fedham_flwr.core.aggregation import robust, shortage
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params, all_finite
from fedham_flwr.core.server_optimizers import FIRST, SECOND, STATE
from fedham_flwr.core.trees import check_like
from fedham_flwr.federation.roster import cohort_size
from fedham_flwr.run_settings import Settings


class Merging:
    """One tree of tensors, of which each round makes a new one.

    Args:
        settings: the run's.
        params: the tensors at first; they do not change.
        buffers: names of those that are running statistics, which take no steps; others may be named too.
        members: clients that there are for the rounds; 0 if that is not known.

    Raises:
        UserError: a round has too few clients for the rule.
    """

    def __init__(self, settings: Settings, params: Mapping[str, Tensor], buffers: Sequence[str], members: int) -> None:
        self._settings = settings.server
        stepping = {name: tensor for name, tensor in params.items() if name not in set(buffers)}
        self._state = server_optimizers.begin(self._settings, stepping)
        asked = cohort_size(members, settings.fraction_train)
        if params and members and (why := shortage(self._settings, asked)):
            raise UserError(
                f"{why}, and a round asks {asked} clients (fraction-train={settings.fraction_train:g} of {members})"
            )

    def merge(
        self, number: int, before: Mapping[str, Tensor], models: Sequence[Mapping[str, Tensor]], examples: Sequence[int]
    ) -> Params:
        """The tensors after a round, all new.

        Args:
            number: the round.
            before: the tensors that there were.
            models: what each client has made of them, in the order of ids.
            examples: its training samples, which count in a mean alone.

        Raises:
            UserError: the replies are too few for the rule, or the optimiser diverged.
        """
        if self._settings.aggregation == "mean" or not before:
            found = fedavg.aggregate(models, examples)
        elif why := shortage(self._settings, len(models)):
            raise UserError(f"round {number}: there are {len(models)} good replies, and {why}")
        else:
            found = robust(models, self._settings)
        return self._step(before, found) if self._state else found

    def _step(self, before: Mapping[str, Tensor], found: Params) -> Params:
        state: Params = {}
        for name in [name for name in found if FIRST + name in self._state]:
            first, second = self._state[FIRST + name], self._state.get(SECOND + name)
            moved = server_optimizers.step(self._settings, before[name], found[name], first, second)
            found[name], state[FIRST + name] = moved.after, moved.first
            if moved.second is not None:
                state[SECOND + name] = moved.second
            if not all(map(all_finite, (found[name], state[FIRST + name], state.get(SECOND + name, first)))):
                eta = server_optimizers.rate(self._settings)
                raise UserError(f"the server's optimiser diverged: lower server.learning-rate={eta:g}")
        self._state = {name: state[name] for name in self._state}
        return found

    def describe(self) -> str:
        """What is not the mean, to be added to a sentence; empty if nothing is."""
        rule, optimizer = self._settings.aggregation, self._settings.optimizer
        said = [] if rule == "mean" else [f"{rule} of the replies"]
        said += [] if optimizer == "none" else [f"{optimizer}, rate {server_optimizers.rate(self._settings):g}"]
        return f"; server: {', '.join(said)}" if said else ""

    def state_dict(self) -> Params:
        """What the optimiser remembers; live, not copied."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` gave.

        Args:
            state: a server's, in which the tensors of others are passed over.

        Raises:
            ValueError: it is not of these settings.
        """
        given = {name: tensor for name, tensor in state.items() if name.startswith(STATE)}
        check_like(given, self._state)
        self._state = {name: given[name].clone() for name in self._state}
