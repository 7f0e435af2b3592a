"""Adapters of low rank beside linear layers of a network whose own weights are fixed, as layers of `peft`.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, equation 3. A layer with an adapter
gives W x + b + (alpha / r) B A dropout(x). A is drawn at random and B is 0 at first, so that the layer gives what it
gave without, bit for bit. Only adapters and the classifier are trained; all else is fixed (`core.fixed`), works as in
evaluation where it has running statistics, and is in no layer group. Shape letters: r rank, i inputs, o outputs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.models.adapted_weights import ADAPTER, A, B, load_base
from fedham_flwr.models.heads import head_name

ATTENTION = (
    "query", "value", "query_proj", "value_proj", "q_proj", "v_proj", "q_lin", "v_lin", "query_key_value", "qkv",
    "qkv_proj", "Wqkv", "to_qkv",
)  # fmt: skip
"""The last parts of the names of layers that make queries and values; the last ones make keys with them."""
SHOWN = 12
"""Names in an error."""


@dataclass(frozen=True)
class AdapterSettings:
    """Which adapters a network has.

    Attributes:
        rank: r.
        alpha: of the factor alpha / r.
        dropout: of what an adapter sees.
        targets: which linear layers have one: names, or their ends, or patterns with `*`, with blanks between; auto:
            those that make the queries and values of attention, or without these all but the classifier.
        classifier: modules that are trained as a whole, in the same way; auto: the network's classifier.
        base: a safetensors file with the network's weights, such as a model that a run has left; empty: as it is built.
        fixed: of which of its matrices, "A" or "B", an adapter keeps the first values.
        section: of the settings, for errors.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    targets: str = "auto"
    classifier: str = "auto"
    base: str = ""
    fixed: str = ""
    section: str = "lora"

    @property
    def scale(self) -> float:
        """What an adapter's output is multiplied with."""
        return self.alpha / self.rank


class _Layers(NamedTuple):
    """Names of layers with adapters, and of modules that are trained as a whole."""

    adapted: list[str]
    whole: list[str]


class _Rests:
    """What a module's `train` becomes whose running statistics are fixed: it stays as in evaluation."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        module.eval()

    def __call__(self, _mode: bool = True) -> nn.Module:
        return self._module


def adapt(model: nn.Module, manifest: Manifest, settings: AdapterSettings, batches: Sequence[Tensor]) -> None:
    """Give a network adapters, and fix all but them and its classifier.

    Args:
        model: the network, which is changed: its attribute `fixed_tensors` names what is fixed.
        manifest: the model's.
        settings: which adapters. A is drawn from torch's generator, after all that the network draws.
        batches: kinds of batches, of which the network takes one.

    Raises:
        UserError: `peft` is not installed, there are no such layers, or an adapter of one would have no effect.
    """
    whole = _modules(model, manifest, settings)
    if settings.base:
        load_base(model, settings.base, f"{settings.section}.base", whole)
    layers = _Layers(_targets(model, whole, settings, batches), whole)
    inject(model, layers.adapted, settings)
    kept = {f"{name}{end}" for name in layers.adapted for end in (A, B) if end != {"A": A, "B": B}.get(settings.fixed)}
    fixed = set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        trained = name in kept or _within(name, whole)
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(trained)
        if not trained:
            fixed.add(name)
    for place, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and f"{place}.running_mean" in fixed:
            module.train = _Rests(module)  # type: ignore[assignment]
    model.fixed_tensors = frozenset(fixed)  # type: ignore[assignment]
    model.adapted_layers = tuple(layers.adapted)  # type: ignore[assignment]
    _check_effect(model, settings, batches)


def inject(model: nn.Module, layers: Sequence[str], settings: AdapterSettings) -> None:
    """Put layers of `peft` in the place of linear ones.

    Args:
        model: the network, which is changed.
        layers: their names.
        settings: rank, alpha and dropout.

    Raises:
        UserError: `peft` is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise UserError(
            f'strategy="{settings.section}" needs the package peft, which is not installed: pip install '
            f"'fedham-flwr[{settings.section}]'"
        ) from error
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="|".join(re.escape(name) for name in layers),  # a text is a pattern for whole names
    )
    peft.inject_adapter_in_model(config, model, adapter_name=ADAPTER)


# ---- which layers ----------------------------------------------------------------------------------------------------


def _within(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _matching(names: Sequence[str], pattern: str) -> list[str]:
    """Those that a pattern is, ends, or fits."""
    return [name for name in names if name == pattern or name.endswith(f".{pattern}") or fnmatchcase(name, pattern)]


def _modules(model: nn.Module, manifest: Manifest, settings: AdapterSettings) -> list[str]:
    """The modules that are trained as a whole."""
    names = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    if settings.classifier == "auto":
        declared: Any = getattr(model, "classifier_modules", None)
        return list(declared()) if declared is not None else [head_name(manifest)]
    found = []
    for pattern in settings.classifier.split():
        if not (some := _matching(names, pattern)):
            raise UserError(
                f'{settings.section}.classifier="{settings.classifier}": no module with parameters is {pattern}; '
                f"there are {_few(names)}"
            )
        found += some
    return list(dict.fromkeys(found))


def _targets(model: nn.Module, whole: Sequence[str], settings: AdapterSettings, batches: Sequence[Tensor]) -> list[str]:
    """The layers that are to have an adapter, in the model's order."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    free = [name for name in linear if name and not _within(name, whole)]
    written = f'{settings.section}.targets="{settings.targets}"'
    if settings.targets == "auto":
        attention = [name for name in free if name.rpartition(".")[2] in ATTENTION]
        found = attention or [name for name in free if name in _called(model, free, batches)]
        if not found:
            raise UserError(
                f"{written} finds no layer for an adapter: {type(model).__name__} has no linear layer but its "
                f"classifier, {_few(whole)}: wanted a network with others, such as a Transformer"
            )
        return found
    chosen: set[str] = set()
    for pattern in settings.targets.split():
        if not (some := _matching(free, pattern)):
            why = "is the classifier, which is trained as a whole" if _matching(linear, pattern) else "fits no layer"
            raise UserError(f"{written}: {pattern} {why}; the linear layers are {_few(free)}")
        chosen |= set(some)
    return [name for name in free if name in chosen]


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + more


def _called(model: nn.Module, names: Sequence[str], batches: Sequence[Tensor]) -> set[str]:
    """Which of these modules a network calls; all of them if it takes none of the batches."""
    seen: set[str] = set()
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _module, _given, name=name: seen.add(name))
        for name in names
    ]
    was = [(module, module.training) for module in model.modules()]
    model.eval()
    took = False
    for batch in batches:
        seen.clear()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                model(batch)
            took = True
            break
        except Exception:  # noqa: S112  # it does not take such a batch
            continue
    for hook in hooks:
        hook.remove()
    for module, training in was:
        module.training = training
    return seen if took else set(names)


def _check_effect(model: nn.Module, settings: AdapterSettings, batches: Sequence[Tensor]) -> None:
    """Refuse adapters of layers that the network uses without calling them."""
    names: Sequence[str] = model.adapted_layers  # type: ignore[assignment]
    inner = {f"{name}.lora_A.{ADAPTER}": name for name in names}
    if idle := [inner[name] for name in inner if name not in _called(model, list(inner), batches)]:
        raise UserError(
            f'{settings.section}.targets="{settings.targets}": an adapter of {idle[0]} would have no effect, since the '
            "network never calls this layer, but uses its weight (as nn.MultiheadAttention does): wanted other layers"
        )
