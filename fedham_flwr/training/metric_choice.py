"""Which metrics a run measures: built-in ones by their names, and a user's own by their import paths.

torchmetrics is imported only when a user's metric needs it. Letters: K classes, k labels or values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.core.imports import call, is_path, load_object, section_of, short_name
from fedham_flwr.data.batches import Target
from fedham_flwr.training.metrics import METRICS, Function, Metric

AUTO: Mapping[Target, tuple[str, ...]] = {
    "class": ("accuracy",),
    "next-token": ("accuracy", "perplexity"),
    "multi-label": ("f1",),
    "value": ("rmse",),
}
"""What `metrics = "auto"` measures; the first is the one by which rounds are compared."""


def faults(names: str, selection: str) -> list[str]:
    """What is wrong with the settings `metrics` and `selection-metric`, whatever the data are."""
    given, found = names.split(), []
    choices = [name for name in METRICS if name != "loss"]
    strange = [name for name in given if name not in (*choices, "auto") and not is_path(name)]
    if not given or strange or ("auto" in given and len(given) > 1):
        found.append(
            f"metrics={names!r}: wanted 'auto', or some of {', '.join(choices)} and import paths "
            "'package.module:Object', with blanks between"
        )
    short = [_short(name) for name in given]
    if twice := [name for number, name in enumerate(short) if name in short[:number]]:
        found.append(f"metrics={names!r} names {twice[0]!r} twice")
    if taken := [name for name in given if is_path(name) and _short(name) in METRICS]:
        found.append(f"metrics={taken[0]!r} has the name of a built-in metric: call the object something else")
    if selection not in ("auto", "loss") and given != ["auto"] and _short(selection) not in short:
        found.append(
            f"selection-metric={selection!r} is not measured: wanted 'auto', 'loss' or one of metrics={names!r}"
        )
    return found


def chosen(names: str, target: Target, outputs: int, sections: Mapping[str, Any] | None = None) -> tuple[Metric, ...]:
    """The metrics that the setting `metrics` names.

    Args:
        names: the setting.
        target: what is learned.
        outputs: K or k.
        sections: the settings of a user's own metrics, by the name of their section.

    Raises:
        UserError: a metric is of another target, or an import path leads to no metric.
    """
    found = []
    for name in AUTO[target] if names == "auto" else names.split():
        if is_path(name):
            found.append(_own(name, target, outputs, (sections or {}).get(section_of(name))))
            continue
        if target not in METRICS[name].targets:
            fitting = [known for known in METRICS if target in METRICS[known].targets and known != "loss"]
            raise UserError(
                f'metrics="{names}": {name} is of {" and ".join(METRICS[name].targets)} targets, and those of the data '
                f"are {target}; wanted some of {', '.join(fitting)}, or an import path"
            )
        found.append(METRICS[name])
    return tuple(found)


def selection(name: str, measured: Sequence[Metric]) -> Metric:
    """The metric by which rounds are compared, and of which tables and pictures are.

    Args:
        name: the setting `selection-metric`.
        measured: the run's metrics.

    Raises:
        UserError: it is not measured.
    """
    if name == "auto":
        return measured[0]
    short = _short(name)
    for metric in (*measured, METRICS["loss"]):
        if metric.name == short:
            return metric
    raise UserError(
        f'selection-metric="{name}" is not measured: wanted "auto" or one of '
        f"{', '.join([metric.name for metric in measured])}, loss"
    )


def check(measured: Sequence[Metric], target: Target, outputs: int) -> None:
    """Try a user's own metrics on a few samples.

    Args:
        measured: the run's metrics.
        target: what is learned.
        outputs: K or k.

    Raises:
        UserError: one of them fails, or gives no number.
    """
    rows = torch.arange(4 * outputs, dtype=torch.float32).reshape(4, outputs)
    targets: Tensor = torch.arange(4) % max(1, outputs)
    if target == "multi-label":
        targets = (rows.long() % 2).to(torch.uint8)
    elif target == "value":
        targets = rows.flip(0) if outputs > 1 else rows[:, 0].flip(0)
    for metric in measured:
        if metric.own is not None:
            metric.own(rows.sin(), targets)


def _short(name: str) -> str:
    return short_name(name) if is_path(name) else name


def _own(path: str, target: Target, outputs: int, settings: object) -> Metric:
    """A user's: a torchmetrics.Metric class, which is given probabilities, or a function, which is given outputs."""
    found = load_object("metrics", path)
    higher = getattr(found, "higher_is_better", None)
    if isinstance(found, type):
        made = _made(path, found, target, outputs, settings)
        higher = made.higher_is_better if higher is None else higher

        def measure(rows: Tensor, targets: Tensor) -> Any:
            made.reset()
            made.to(rows.device).update(_probabilities(rows, target), targets)
            return made.compute()

    elif callable(found):

        def measure(rows: Tensor, targets: Tensor) -> Any:
            return call("metrics", partial(found, rows, targets), settings)

    else:
        raise UserError(
            f'metrics="{path}" is {type(found).__name__}, and wanted is a torchmetrics.Metric class or a function of '
            "(outputs, targets)"
        )
    return Metric(_short(path), True if higher is None else bool(higher), own=_guarded(path, measure))


def _made(path: str, found: type, target: Target, outputs: int, settings: object) -> Any:
    """An instance of a torchmetrics class."""
    import torchmetrics

    if not issubclass(found, torchmetrics.Metric):
        raise UserError(
            f'metrics="{path}" is a class, and wanted is a torchmetrics.Metric or a function of (outputs, targets)'
        )
    sizes = {"outputs": outputs, "num_classes": outputs, "num_labels": outputs, "num_outputs": outputs}
    task = {"multi-label": "multilabel", "value": "regression"}.get(target, "multiclass")
    try:
        return call("metrics", found, settings, task=task, **sizes)
    except UserError:
        raise
    except Exception as error:  # whatever the class raises
        raise UserError(f'metrics="{path}" cannot be made: {type(error).__name__}: {first_line(error)}') from error


def _guarded(path: str, measure: Function) -> Function:
    """A user's metric whose failure is a sentence, and whose score is a float."""

    def guarded(outputs: Tensor, targets: Tensor) -> float:
        try:
            score = measure(outputs, targets)
        except UserError:
            raise
        except Exception as error:  # whatever the user's own code raises
            raise UserError(
                f'metrics="{path}" cannot be called with outputs {list(outputs.shape)} and targets '
                f"{list(targets.shape)}: {type(error).__name__}: {first_line(error)}"
            ) from error
        if isinstance(score, Tensor) and score.numel() == 1:
            return float(score)
        if isinstance(score, bool) or not isinstance(score, int | float):
            gave = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise UserError(f'metrics="{path}" gives {gave}, and wanted is one number')
        return float(score)

    return guarded


def _probabilities(outputs: Tensor, target: Target) -> Tensor:
    if target == "value":
        return outputs
    return outputs.sigmoid() if target == "multi-label" else outputs.softmax(-1)
