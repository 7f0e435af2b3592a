"""Personalised federated learning on Flower: every client ends with a model of its own."""

import gc
import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedham_flwr.callbacks.protocol import Callback, RoundReport, RunEnd, RunStart
    from fedham_flwr.client_app import make_client_app
    from fedham_flwr.core.methods import Method, Split, split_groups, split_tensors
    from fedham_flwr.core.search_space import Choice, Range
    from fedham_flwr.federation.client import RoundClient
    from fedham_flwr.federation.contract import Outcome, Setup, Start
    from fedham_flwr.federation.rounds import RoundStrategy
    from fedham_flwr.models.export import load as load_model
    from fedham_flwr.models.heads import features, head_name
    from fedham_flwr.predicting.predict import predict
    from fedham_flwr.registry import register
    from fedham_flwr.server_app import make_server_app
    from fedham_flwr.simulation import Run, simulate
    from fedham_flwr.task import Task
    from fedham_flwr.training.own_loss import OwnLoss
    from fedham_flwr.training.step_rules import StepRule, wide
    from strategies.averaging import AveragingStrategy

__version__ = "0.1.0"
__all__ = [
    "AveragingStrategy", "Callback", "Choice", "Method", "Outcome", "OwnLoss", "Range", "RoundClient",
    "RoundReport", "RoundStrategy", "Run", "RunEnd", "RunStart", "Setup", "Split", "Start", "StepRule", "Task",
    "features", "head_name", "load_model", "make_client_app", "make_server_app", "predict", "register",
    "simulate", "split_groups", "split_tensors", "wide",
]  # fmt: skip

_PLACES = {
    "AveragingStrategy": "strategies.averaging",
    "Callback": "fedham_flwr.callbacks.protocol",
    "Choice": "fedham_flwr.core.search_space",
    "Method": "fedham_flwr.core.methods",
    "Outcome": "fedham_flwr.federation.contract",
    "OwnLoss": "fedham_flwr.training.own_loss",
    "Range": "fedham_flwr.core.search_space",
    "RoundClient": "fedham_flwr.federation.client",
    "RoundReport": "fedham_flwr.callbacks.protocol",
    "RoundStrategy": "fedham_flwr.federation.rounds",
    "Run": "fedham_flwr.simulation",
    "RunEnd": "fedham_flwr.callbacks.protocol",
    "RunStart": "fedham_flwr.callbacks.protocol",
    "Setup": "fedham_flwr.federation.contract",
    "Split": "fedham_flwr.core.methods",
    "Start": "fedham_flwr.federation.contract",
    "StepRule": "fedham_flwr.training.step_rules",
    "Task": "fedham_flwr.task",
    "features": "fedham_flwr.models.heads",
    "head_name": "fedham_flwr.models.heads",
    "load_model": "fedham_flwr.models.export:load",
    "make_client_app": "fedham_flwr.client_app",
    "make_server_app": "fedham_flwr.server_app",
    "predict": "fedham_flwr.predicting.predict",
    "register": "fedham_flwr.registry",
    "simulate": "fedham_flwr.simulation",
    "split_groups": "fedham_flwr.core.methods",
    "split_tensors": "fedham_flwr.core.methods",
    "wide": "fedham_flwr.training.step_rules",
}
"""Where a public name is found, once it is used: a client process imports what it needs, and nothing else."""


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, other = _PLACES[name].partition(":")
    imported = importlib.import_module
    if module.startswith("strategies."):  # not a user's folder of that name
        imported = importlib.import_module("fedham_flwr.core.packages").import_ours
    found = getattr(imported(module), other or name)
    globals()[name] = found
    return found


def _import_torch() -> None:
    """Import torch with the garbage collector at rest, which takes a third less time.

    What is imported stays, and looking for garbage among all these new objects again and again finds none. A
    process that Flower starts for one message pays for that each time.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module("torch")
    finally:
        # There and back: all objects are now among the oldest without having been looked at.
        gc.freeze()
        gc.unfreeze()
        if collected:
            gc.enable()


if "torch" not in sys.modules:
    _import_torch()
