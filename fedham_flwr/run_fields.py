"""Which settings a run has, each with its type, its range and its default.

They are those of `[tool.flwr.app.config]` in pyproject.toml, which says what each one does; a test holds the two
together. How they fit together, and what is made of them, is in `run_settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, BaseModel, ConfigDict

from fedham_flwr import registry
from fedham_flwr.core.aggregation import ServerSettings
from fedham_flwr.core.callback_settings import EarlyStoppingSettings, TrackingSettings
from fedham_flwr.core.imports import is_path
from fedham_flwr.core.privacy import PrivacySettings
from fedham_flwr.data import groups
from fedham_flwr.data.kinds.image_pixels import ImageSettings
from fedham_flwr.data.kinds.series_settings import SeriesSettings
from fedham_flwr.data.kinds.table_settings import AS_FOUND, TableSettings
from fedham_flwr.data.kinds.words import TextSettings
from fedham_flwr.data.partitioners import PARTITIONERS
from fedham_flwr.models import MODELS
from fedham_flwr.models.hub_folder import HUB
from fedham_flwr.models.torchvision_models import TORCHVISION
from fedham_flwr.training.augment import AUGMENTATIONS
from fedham_flwr.training.optim import OPTIMIZERS

PositiveInt = Annotated[int, Gt(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
NonNegativeFloat = Annotated[float, Ge(0)]


def _one_of(setting: str, names: Iterable[str]) -> Callable[[str], str]:
    """A check that a value is one of some names or an import path."""

    def check(value: str) -> str:
        if value in names or is_path(value) or (setting == "model" and value.startswith(TORCHVISION)):
            return value
        if setting == "strategy" and registry.is_entry_point(value):
            return value
        quoted = [f"'{name}'" for name in (*names, *([f"{TORCHVISION}<name>"] if setting == "model" else []))]
        raise ValueError(f"wanted {', '.join(quoted)} or an import path 'package.module:Object'")

    return check


def _shift(value: str) -> str:
    """A check that each word is one of a group's."""
    groups.words_of(value)
    return value


class RunFields(BaseModel):
    """Every setting of a run but those of sections, in Python's spelling: `batch-size` is `batch_size`."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

    strategy: Annotated[str, AfterValidator(_one_of("strategy", registry.METHODS))] = "fedper"
    task: str = ""
    dataset: Annotated[str, MinLen(1)] = "digits"
    feature_column: str = ""
    label_column: str = ""
    target: Literal["auto", "class", "multi-label", "value", "next-token"] = "auto"
    image_size: NonNegativeInt = 0
    personal: Annotated[str, MinLen(1)] = "none"
    model: Annotated[str, AfterValidator(_one_of("model", ("auto", *MODELS, HUB)))] = "auto"
    client_models: str = ""
    partitioner: Annotated[str, AfterValidator(_one_of("partitioner", ("auto", *PARTITIONERS)))] = "auto"
    alpha: PositiveFloat = 0.1
    classes_per_client: PositiveInt = 2
    owner_share: Annotated[float, Ge(0), Le(1)] = 0.9
    class_table: str = ""
    groups: NonNegativeInt = 0
    shift: Annotated[str, AfterValidator(_shift)] = "none"
    samples_per_client: NonNegativeInt = 0
    client_column: str = ""
    sequence_length: PositiveInt = 80
    vocabulary: str = ""
    min_characters: NonNegativeInt = 0
    validation_fraction: Annotated[float, Ge(0), Lt(1)] = 0.1
    test_fraction: Annotated[float, Gt(0), Lt(1)] = 0.25
    cache_dir: str = ""
    num_server_rounds: PositiveInt = 20
    fraction_train: Annotated[float, Gt(0), Le(1)] = 1.0
    min_replies: NonNegativeInt = 0
    min_clients: PositiveInt = 2
    client_timeout: PositiveFloat = 120.0
    round_timeout: PositiveFloat = 3600.0
    evaluate_every: PositiveInt = 10
    metrics: str = "auto"
    selection_metric: str = "auto"
    score_test: Literal["always", "closing", "never"] = "always"
    cross_evaluation: bool = False
    cross_evaluation_clients: Annotated[int, Ge(2)] = 50
    novel_clients: NonNegativeInt = 0
    novel_steps: PositiveInt = 50
    novel_turns: PositiveInt = 10
    max_examples_per_client: NonNegativeInt = 0
    clip_norm: Annotated[float, Ge(0)] = 0.0
    local_epochs: PositiveInt = 1
    personal_epochs: NonNegativeInt = 0
    personal_training: Literal["each-round", "after-rounds"] = "each-round"
    local_steps: NonNegativeInt = 0
    batch_size: PositiveInt = 10
    loss: Annotated[str, AfterValidator(_one_of("loss", ("auto",)))] = "auto"
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    optimizer: Annotated[str, AfterValidator(_one_of("optimizer", OPTIMIZERS))] = "sgd"
    learning_rate: PositiveFloat = 0.02
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    nesterov: bool = False
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: NonNegativeFloat = 0.0
    schedule: Literal["constant", "cosine", "step"] = "constant"
    warmup_rounds: NonNegativeInt = 0
    schedule_every: PositiveInt = 10
    schedule_factor: Annotated[float, Gt(0), Le(1)] = 0.1
    min_learning_rate: NonNegativeFloat = 0.0
    augment: bool = False
    augmentation: Annotated[str, AfterValidator(_one_of("augmentation", AUGMENTATIONS))] = "shift-flip"
    batch_norm_statistics: Literal["running", "recalibrated"] = "running"
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "auto"
    seed: NonNegativeInt = 0
    data_seed: Annotated[int, Ge(-1)] = -1
    results_dir: str = "results"
    resume: str = ""
    changed_data: Literal["refuse", "accept"] = "refuse"
    checkpoint_every: NonNegativeInt = 10
    bank_memory: NonNegativeFloat = 16.0
    model_cards: NonNegativeInt = 200
    lost_state: Literal["refuse", "restart"] = "refuse"
    callbacks: str = ""
    tracker: str = ""
    image: ImageSettings = ImageSettings()
    table: TableSettings = AS_FOUND
    dp: PrivacySettings = PrivacySettings()
    server: ServerSettings = ServerSettings()
    series: SeriesSettings = SeriesSettings()
    text: TextSettings = TextSettings()
    early_stopping: EarlyStoppingSettings = EarlyStoppingSettings()
    tracking: TrackingSettings = TrackingSettings()
