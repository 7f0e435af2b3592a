"""Settings of callbacks and trackers: which there are, what each can be told, and what does not fit together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, MinLen

from fedham_flwr.core.imports import is_path

EARLY_STOPPING = "early-stopping"
CALLBACKS = (EARLY_STOPPING,)
"""Callbacks that have a name."""
TRACKERS = ("tensorboard", "mlflow", "wandb")
"""Programs that can be told of a run; each is the name of the package that does it."""


@dataclass(frozen=True)
class EarlyStoppingSettings:
    """Settings under `early-stopping.`.

    Attributes:
        patience: evaluations in a row without improvement after which the run ends.
        min_delta: what is better by no more than this is no improvement, >= 0.
        metric: on the validation split; auto: the selection metric.
        min_rounds: the run does not end before so many rounds.
    """

    patience: Annotated[int, Ge(1)] = 10
    min_delta: Annotated[float, Ge(0)] = 0.0
    metric: Annotated[str, MinLen(1)] = "auto"
    min_rounds: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True)
class TrackingSettings:
    """Settings under `tracking.`.

    Attributes:
        project: name of the project (W&B) and of the experiment (MLflow).
        run_name: empty for the strategy and the name of the run's directory.
        mlflow_uri: empty for what MLflow takes by itself, `MLFLOW_TRACKING_URI` or a store on this machine.
        wandb_mode: offline (files in the run's directory, nothing is sent) or online.
        log_clients: whether each client's numbers are told too.
    """

    project: Annotated[str, MinLen(1)] = "fedham"
    run_name: str = ""
    mlflow_uri: str = ""
    wandb_mode: Literal["offline", "online"] = "offline"
    log_clients: bool = False


def faults(callbacks: str, tracker: str, split: bool) -> list[str]:
    """What is wrong with the settings `callbacks` and `tracker`, a sentence each.

    Args:
        callbacks: names and import paths, with blanks between.
        tracker: names, with blanks between.
        split: there may be validation samples.
    """
    names, trackers, found = callbacks.split(), tracker.split(), []
    if [name for name in names if name not in CALLBACKS and not is_path(name)]:
        wanted = ", ".join(map(repr, CALLBACKS))
        found.append(
            f"callbacks={callbacks!r}: wanted some of {wanted} and import paths 'package.module:Object', with blanks "
            "between"
        )
    if [name for name in trackers if name not in TRACKERS]:
        found.append(f"tracker={tracker!r}: wanted some of {', '.join(map(repr, TRACKERS))}, with blanks between")
    for setting, value, given in (("callbacks", callbacks, names), ("tracker", tracker, trackers)):
        if twice := [name for number, name in enumerate(given) if name in given[:number]]:
            found.append(f"{setting}={value!r} names {twice[0]!r} twice")
    if EARLY_STOPPING in names and not split:
        found.append(
            f'callbacks="{EARLY_STOPPING}" goes by the validation samples, and validation-fraction=0 leaves none: '
            "wanted a fraction above 0"
        )
    return found
