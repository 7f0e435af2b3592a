"""Settings that are read only where something else is chosen, and why a run does not read them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import NamedTuple

from fedham_flwr import registry
from fedham_flwr.core.aggregation import KRUM
from fedham_flwr.core.callback_settings import EARLY_STOPPING, TRACKERS
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path
from fedham_flwr.core.methods import Split, never
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.core.server_optimizers import ADAPTIVE
from fedham_flwr.core.shapes import sample_kind
from fedham_flwr.data import groups
from fedham_flwr.data.batches import Target
from fedham_flwr.data.data_settings import CLASS_GROUPS
from fedham_flwr.run_settings import Settings


class Facts(NamedTuple):
    """What decides which settings are read; all but the settings is not known before the data are looked at.

    Attributes:
        settings: the run's.
        network: its name, `auto` resolved; of several, with commas between.
        shape: of one sample.
        target: what is learned.
        partitioned: the data are dealt to clients, and no client has brought its own.
        manifest: of the network, the largest of several.
    """

    settings: Settings
    network: str = ""
    shape: tuple[int, ...] | None = None
    target: Target | None = None
    partitioned: bool = True
    manifest: Manifest | None = None


Reason = Callable[[Facts], str]
"""Why a setting is not read; empty if it is."""


def _dealt(facts: Facts) -> str:
    return "" if facts.partitioned else "each client has data of its own, which are not dealt"


def _by_partitioner(*names: str, own: bool = False) -> Reason:
    """Of a setting that some partitioners read, and those of a user's own if `own`."""

    def reason(facts: Facts) -> str:
        chosen = facts.settings.partitioner_used
        read = chosen in names or (own and is_path(chosen))
        return _dealt(facts) or ("" if read else f"partitioner is {chosen}")

    return reason


def _of_groups(facts: Facts) -> str:
    read = registry.method(facts.settings.strategy).told_groups or groups.words_of(facts.settings.shift)
    return "" if read else _by_partitioner(CLASS_GROUPS)(facts)


def _of_steps(facts: Facts) -> str:
    chosen = facts.settings.strategy
    return f"strategy is {chosen}, which takes steps of its own" if registry.method(chosen).own_steps else ""


def _by_optimizer(*names: str) -> Reason:
    def reason(facts: Facts) -> str:
        if why := _of_steps(facts):
            return why
        chosen = facts.settings.optimizer
        return "" if chosen in names or is_path(chosen) else f"optimizer is {chosen}"

    return reason


def _by_schedule(name: str) -> Reason:
    return lambda facts: "" if facts.settings.schedule == name else f"schedule is {facts.settings.schedule}"


def _of_kind(what: str, *kinds: str) -> Reason:
    return lambda facts: "" if not facts.shape or sample_kind(facts.shape) in kinds else f"the data are no {what}"


_of_text, _of_series = _of_kind("text", "text", "tokens"), _of_kind("series", "series")
_of_images, _of_tables = _of_kind("images", "image"), _of_kind("table", "table", "series")


def _of_next(facts: Facts) -> str:
    return "" if facts.target in ("next-token", None) else "no next token is predicted"


def _of_words(facts: Facts) -> str:
    if facts.target in ("next-token", None) or facts.settings.text.tokenizer or facts.settings.text.unit == "character":
        return _of_text(facts) or "no words are hashed"
    return _of_text(facts)


def _of_epochs(facts: Facts) -> str:
    return f"local-steps is {facts.settings.local_steps}" if facts.settings.local_steps else ""


def _of_novel(facts: Facts) -> str:
    return "" if facts.settings.novel_clients else "novel-clients is 0"


def _split(facts: Facts, manifest: Manifest) -> Split:
    settings = facts.settings
    return registry.method(settings.strategy).split_of(manifest, settings.own, settings.personal)


def _of_turns(facts: Facts) -> str:
    chosen = facts.settings.strategy
    if why := _of_novel(facts):
        return why
    if not registry.learns_from_novel(chosen):
        return f"strategy is {chosen}, of which novel clients adapt alone"
    if facts.manifest is None:
        return ""
    with contextlib.suppress(UserError):  # of a network that the method refuses, in its own words
        if not _split(facts, facts.manifest).adapted:
            return f"strategy is {chosen}, with settings by which novel clients adapt alone"
    return ""


def _of_personal(facts: Facts) -> str:
    if facts.manifest is None:
        return ""
    with contextlib.suppress(UserError):
        if not {*_split(facts, facts.manifest).personal} - {*facts.manifest.buffers}:
            return f'personal is "{facts.settings.personal}", and clients keep no layer'
    return ""


def _of_noise(facts: Facts) -> str:
    return "" if facts.settings.dp.epsilon else "dp.epsilon is 0.0"


def _of_counts(facts: Facts) -> str:
    settings, rule = facts.settings, facts.settings.server.aggregation
    if not (counts := registry.method(settings.strategy).counts_samples)(settings.own):
        why = "which counts no samples" if counts is never else "which counts no samples with these settings"
        return f"strategy is {settings.strategy}, {why}"
    if rule == "mean" or not (registry.method(settings.strategy).averages and registry.aggregates(settings.strategy)):
        return ""
    return f"server.aggregation is {rule}, which counts no samples"


def _by_name(setting: str, *names: str) -> Reason:
    def reason(facts: Facts) -> str:
        chosen = str(attrgetter(setting)(facts.settings))
        return "" if set(chosen.split()) & set(names) else f"{setting} is {json.dumps(chosen)}"

    return reason


def _unless(setting: str, off: float) -> Reason:
    """Of a setting that is read unless another has this value."""
    value = attrgetter(setting.replace("-", "_"))
    return lambda facts: f"{setting} is {off:g}" if value(facts.settings) == off else ""


def _of_models(facts: Facts) -> str:
    chosen = facts.settings.strategy
    return f"strategy is {chosen}, of which no client sends a model" if registry.method(chosen).own_networks else ""


def _of_votes(facts: Facts) -> str:
    return "" if facts.settings.section("knnper").tune_share else _unless("knnper.share", 0)(facts)


OF_FEDTPS_HYPERNETWORK = (
    "rank", "embedding-dim", "hidden-dim", "hidden-layers", "learning-rate", "embedding-learning-rate",
    "momentum", "weight-decay",
)  # fmt: skip
OF_METHODS: Mapping[str, Reason] = {
    **{f"fedtp.{key}": _by_name("fedtp.personal", "generated") for key in OF_FEDTPS_HYPERNETWORK},
    **{f"{method}.update-momentum": _by_name(f"{method}.reference", "update") for method in ("amn", "fedham")},
    "fedamp.sigma": _by_name("fedamp.variant", "amp"),
    **dict.fromkeys(("fedamp.self-weight", "fedamp.sharpness"), _by_name("fedamp.variant", "heuristic")),
    "fedamp.alpha-every": _unless("fedamp.alpha-decay", 1),
    "fedas.align-rate": _unless("fedas.align-epochs", 0),
    "fedas.most-share": _by_name("fedas.weights", "fisher"),
    **dict.fromkeys(("fedselect.limit", "fedselect.every"), _unless("fedselect.growth", 0)),
    **dict.fromkeys(("knnper.neighbours", "knnper.scale", "knnper.capacity"), _of_votes),
    "perfedavg.delta": _by_name("perfedavg.variant", "hf"),
    **dict.fromkeys(("pfedgraph.sign", "pfedgraph.reference"), _unless("pfedgraph.penalty", 0)),
}
"""Settings of methods that are read only with others of the same method."""
OF_CALLBACKS: Mapping[str, Reason] = {
    **{f"early-stopping.{key}": _by_name("callbacks", EARLY_STOPPING) for key in ("patience", "min-delta", "metric")},
    "early-stopping.min-rounds": _by_name("callbacks", EARLY_STOPPING),
    **dict.fromkeys(("tracking.project", "tracking.run-name"), _by_name("tracker", "mlflow", "wandb")),
    "tracking.mlflow-uri": _by_name("tracker", "mlflow"),
    "tracking.wandb-mode": _by_name("tracker", "wandb"),
    "tracking.log-clients": _by_name("tracker", *TRACKERS),
}
"""Those of callbacks and trackers: no method decides whether they are read, so that those of a file are said too."""
REASONS: Mapping[str, Reason] = {
    **OF_METHODS,
    "clip-norm": _of_models,
    "partitioner": _dealt,
    "samples-per-client": _dealt,
    "alpha": _by_partitioner("dirichlet", own=True),
    "classes-per-client": _by_partitioner("pathological", "noniid-1", "noniid-2", own=True),
    "owner-share": _by_partitioner("class-owners"),
    "groups": _of_groups,
    "shift": _dealt,
    "client-column": _dealt,
    "min-characters": lambda facts: _of_text(facts) or _of_next(facts) or _by_partitioner("natural", "files")(facts),
    **dict.fromkeys(("sequence-length", "vocabulary"), _of_text),
    "image-size": _of_images,
    "image.resize": lambda facts: _of_images(facts) or ("" if facts.settings.image_size else "image-size is 0"),
    "image.channels": _of_images,
    "image.unreadable": _of_images,
    **dict.fromkeys(("text.unit", "text.tokenizer"), _of_text),
    "text.buckets": _of_words,
    **{f"series.{key}": _of_series for key in ("length", "stride", "time", "recording", "gap", "label", "split")},
    **dict.fromkeys(("table.decimal", "table.missing", "table.categories", "table.schema"), _of_tables),
    **dict.fromkeys(("personal-epochs", "personal-training"), _of_personal),
    "momentum": _by_optimizer("sgd"),
    "nesterov": _of_steps,
    **dict.fromkeys(("beta1", "beta2"), _by_optimizer("adam", "adamw")),
    "local-epochs": _of_epochs,
    "schedule-every": _by_schedule("step"),
    "schedule-factor": _by_schedule("step"),
    "min-learning-rate": _by_schedule("cosine"),
    "cross-evaluation-clients": lambda facts: "" if facts.settings.cross_evaluation else "cross-evaluation is false",
    "novel-steps": _of_novel,
    "novel-turns": _of_turns,
    **dict.fromkeys(("dp.delta", "dp.clipping-norm", "dp.sensitivity"), _of_noise),
    "max-examples-per-client": _of_counts,
    "server.trim": _by_name("server.aggregation", "trimmed-mean"),
    "server.bad-clients": _by_name("server.aggregation", *KRUM),
    "server.selected": _by_name("server.aggregation", "multi-krum"),
    **{f"server.{key}": _by_name("server.optimizer", "momentum", *ADAPTIVE) for key in ("learning-rate", "momentum")},
    "server.beta2": _by_name("server.optimizer", "adam", "yogi"),
    "server.tau": _by_name("server.optimizer", *ADAPTIVE),
    **OF_CALLBACKS,
}
"""Settings that are read only where something else is chosen. What contradicts another setting is refused instead."""
