"""The server half that every method shares: the round loop.

`method.py` says what a method must say of itself, in tensors, and `messages.py` turns that into messages.
"""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid

from strategies.messages import ADAPTED, NOVEL, PERSONAL, TURN, MessageStrategy
from strategies.method import Task

__all__ = ["RoundStrategy", "Task"]


class RoundStrategy(MessageStrategy):
    """Carries out what a method says, round by round."""

    def run(self, grid: Grid) -> None:
        """All rounds that are not done, the evaluations between them, and the closing one of every client.

        Args:
            grid: the way to the clients.

        Raises:
            UserError: too few clients, or too few good replies in a round.
        """
        nothing, closing = ArrayRecord(), self.rounds + 1
        for number in range(self.done + 1, closing):
            self._learn(number, self._ask(grid, self.configure_train(number, nothing, ConfigRecord(), grid)))
            if number % self.settings.evaluate_every == 0:
                self._evaluate(grid, number)
            self.done = number
            self._checkpoint()
        if self.personal_stage:
            self._receive(closing, self._ask(grid, self._messages(grid, PERSONAL, closing, self._present(grid))), ())
        else:
            self._evaluate(grid, closing)
        if self.novel:
            self._adapt(grid, closing)

    def _adapt(self, grid: Grid, number: int) -> None:
        """Let the novel clients adapt, and score them before and after."""
        self._present(grid)
        clients = tuple(client for client in self.novel if client in self.roster.nodes)
        self.enrol(clients)
        names = self.adapted_tensors()
        self._receive(number, self._ask(grid, self._messages(grid, NOVEL, number, clients)), ())
        if not names or not clients:
            return
        for turn in range(number, number + self.settings.novel_turns):
            replies = self._ask(grid, self._messages(grid, TURN, turn, clients))
            self.adapt(turn, self._receive(turn, replies, names))
        self._receive(number, self._ask(grid, self._messages(grid, ADAPTED, number, clients)), ())

    def _evaluate(self, grid: Grid, number: int) -> None:
        if messages := list(self.configure_evaluate(number, ArrayRecord(), ConfigRecord(), grid)):
            self.aggregate_evaluate(number, self._ask(grid, messages))

    def _checkpoint(self) -> None:
        every = self.settings.checkpoint_every
        if self._recorder and every and (self.done % every == 0 or self.done == self.rounds):
            self._recorder.checkpoint(self.done)
