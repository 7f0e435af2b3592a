"""What the rules under `server.aggregation` withstand, and what they cost where clients differ and nobody is bad.

    python benchmarks/aggregation.py --card cards/aggregation.md

Digits, ten clients, FedAvg: with classes dealt evenly, and with two classes to a client. In each case nobody is bad, or
two clients send back what they started from less four times what they have learned: as much the other way as the eight
others have learned. The accuracy is that of the common model on the test samples of these eight.
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import publish, spread, table

from fedham_flwr import AveragingStrategy, Method, Outcome, RoundClient, simulate, split_groups
from fedham_flwr.core.errors import UserError

RULES: Mapping[str, Any] = {
    "mean": {},
    "median": {"server": {"aggregation": "median"}},
    "trimmed-mean": {"server": {"aggregation": "trimmed-mean", "trim": 0.2}},
    "krum": {"server": {"aggregation": "krum", "bad_clients": 2}},
    "multi-krum": {"server": {"aggregation": "multi-krum", "bad_clients": 2}},
}
DEALT = {"evenly": "iid", "two classes each": "pathological"}
CLIENTS, BAD, ROUNDS, SEEDS = 10, ("0", "1"), 20, (0, 1, 2)


class Turncoat(RoundClient):
    """Trains, and sends the opposite."""

    def train(self, start: Any) -> Outcome:
        """Local training; of a bad client what is sent is four times as far the other way."""
        outcome = super().train(start)
        if self.job.client not in BAD:
            return outcome
        sent = {name: start[name] - 4 * (tensor - start[name]) for name, tensor in outcome.send.items()}
        return Outcome(sent, outcome.use, outcome.keep)


def everything(manifest: Any, _: object) -> Any:
    """Every layer group is shared."""
    return split_groups(manifest, ())


HONEST = Method(AveragingStrategy, RoundClient, everything, averages=True, name="honest")
ATTACKED = Method(AveragingStrategy, Turncoat, everything, averages=True, name="attacked")


def accuracy(method: Method, partitioner: str, rule: str, seed: int) -> float:
    """Mean test accuracy in percent of the last common model, over the honest clients; NaN if training diverged."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = simulate(
                method, clients=CLIENTS, backend="cohort", partitioner=partitioner, num_server_rounds=ROUNDS, seed=seed,
                results_dir=folder, verbose=False, checkpoint_every=0, evaluate_every=ROUNDS, device="cpu",
                **RULES[rule],
            )  # fmt: skip
        except UserError as error:
            if "diverge" not in str(error):
                raise
            return math.nan
        rows = run.rows
        said = rows[(rows["round"] == ROUNDS + 1) & (rows["split"] == "test") & (rows["metric"] == "accuracy")]
        said = said[(said["phase"] == "before") & ~said["client"].astype(str).isin(BAD)]
        return 100 * float(said["value"].mean())


def cell(values: list[float]) -> str:
    """Mean and deviation over the seeds, unless training diverged."""
    ended = sum(map(math.isnan, values))
    return f"diverges ({ended} of {len(values)})" if ended else spread(values, 1)


def main() -> None:
    """All rules in all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--card", type=Path)
    given = parser.parse_args()
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for seed, rule, (dealt, partitioner), method in itertools.product(
        given.seeds, RULES, DEALT.items(), (HONEST, ATTACKED)
    ):
        value = accuracy(method, partitioner, rule, seed)
        found[rule, dealt, method.name].append(value)
        print(f"{rule:13} {dealt:17} {method.name:9} seed {seed}: {value:.1f}", flush=True)
    columns = list(itertools.product(DEALT, (HONEST.name, ATTACKED.name)))
    rows = [[rule, *(cell(found[rule, dealt, name]) for dealt, name in columns)] for rule in RULES]
    heads = ["rule", *(f"{dealt}, {'nobody' if name == HONEST.name else 'two'} bad" for dealt, name in columns)]
    publish(TEXT.format(seeds=len(given.seeds), rounds=ROUNDS, table=table(heads, rows)), given.card)


TEXT = """# Aggregation

What the rules under `server.aggregation` withstand: test accuracy of the common model in percent, after {rounds} rounds
of FedAvg on digits with ten clients, over the eight that are never bad; mean ± standard deviation over {seeds} seeds.
Two bad clients send back what they started from less four times what they have learned. Where training diverges, no
client can give a good reply any more and the run ends. `server.trim` is 0.2 and `server.bad-clients` 2, also where
nobody is bad.

{table}

`python benchmarks/aggregation.py --card cards/aggregation.md`"""

if __name__ == "__main__":
    main()
