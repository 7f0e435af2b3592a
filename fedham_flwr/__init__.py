"""Personalised federated learning on Flower: every client ends with a model of its own."""

import gc
import importlib
import sys

__version__ = "0.1.0"


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
