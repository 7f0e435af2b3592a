"""Which settings exist, of what type and range.

The settings are those of `[tool.flwr.app.config]` in pyproject.toml, which says what each one does; a test holds the
two together. They are parsed once, at the door of either app; below that, functions take plain arguments.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, Self, get_args

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from fedham_flwr import registry
from fedham_flwr.algorithms.amn import AMNSettings
from fedham_flwr.algorithms.fedham import FedHAMSettings
from fedham_flwr.algorithms.fedper import FedPerSettings
from fedham_flwr.algorithms.fedprox import FedProxSettings
from fedham_flwr.algorithms.fedtp import FedTPSettings
from fedham_flwr.algorithms.fedtransfer import FedTransferSettings
from fedham_flwr.algorithms.pfedla import PFedLASettings
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path
from fedham_flwr.core.methods import NetworkNeeds
from fedham_flwr.core.privacy import PrivacySettings, faults
from fedham_flwr.data.clients import DataSettings
from fedham_flwr.data.partitions import Fractions, Partitioning
from fedham_flwr.models import NetworkSettings
from fedham_flwr.models.char_transformer import CharTransformerSettings
from fedham_flwr.models.cnn import TransferCNNSettings
from fedham_flwr.models.grafts import GraftSettings
from fedham_flwr.models.mlp import MLPSettings
from fedham_flwr.models.vit import ViTSettings
from fedham_flwr.training.local import LocalTraining
from fedham_flwr.training.losses import LossSettings
from fedham_flwr.training.optim import OPTIMIZERS
from fedham_flwr.training.schedule import Schedule, rate

Value = bool | int | float | str
"""What a setting can be: the scalars that Flower's configuration carries."""

Strategy = Literal["local", "fedavg", "fedprox", "fedper", "pfedla", "amn", "fedham", "fedtp", "fedtransfer"]
"""The methods; a method's own settings are a field of `Settings` with its name."""

MOST = 3.4e38
"""No number is larger: what becomes a tensor must not overflow."""

PositiveInt = Annotated[int, Gt(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
NonNegativeFloat = Annotated[float, Ge(0)]


def _name_or_path(*names: str) -> AfterValidator:
    """One of some names, or an import path."""

    def check(value: str) -> str:
        if value not in names and not is_path(value):
            raise ValueError(f'wanted {", ".join(map(repr, names))} or an import path, "package.module:Object"')
        return value

    return AfterValidator(check)


class Settings(BaseModel):
    """All settings of a run, in Python's spelling: `batch-size` is `batch_size`, `fedprox.mu` is `fedprox.mu`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    strategy: Strategy = "fedper"
    dataset: Annotated[str, MinLen(1)] = "digits"
    feature_column: str = ""
    label_column: str = ""
    model: Literal[
        "auto", "digits-cnn", "cnn", "lenet", "lenet-bn", "transfer-cnn", "vit", "char-transformer", "mlp"
    ] = "auto"
    partitioner: Literal[
        "iid", "dirichlet", "pathological", "noniid-1", "noniid-2", "class-owners", "class-table", "natural"
    ] = "pathological"
    alpha: PositiveFloat = 0.1
    classes_per_client: PositiveInt = 2
    owner_share: Annotated[float, Ge(0), Le(1)] = 0.9
    class_table: str = ""
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
    novel_clients: NonNegativeInt = 0
    novel_steps: PositiveInt = 50
    novel_turns: PositiveInt = 10
    max_examples_per_client: NonNegativeInt = 0
    clip_norm: Annotated[float, Ge(0)] = 0.0
    local_epochs: PositiveInt = 1
    local_steps: NonNegativeInt = 0
    batch_size: PositiveInt = 10
    loss: Annotated[str, _name_or_path("auto")] = "auto"
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    optimizer: Annotated[str, _name_or_path(*OPTIMIZERS)] = "sgd"
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
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "auto"
    seed: NonNegativeInt = 0
    results_dir: str = "results"
    resume: str = ""
    checkpoint_every: NonNegativeInt = 10
    lost_state: Literal["refuse", "restart"] = "refuse"
    fedprox: FedProxSettings = FedProxSettings()
    fedper: FedPerSettings = FedPerSettings()
    pfedla: PFedLASettings = PFedLASettings()
    amn: AMNSettings = AMNSettings()
    fedham: FedHAMSettings = FedHAMSettings()
    fedtp: FedTPSettings = FedTPSettings()
    fedtransfer: FedTransferSettings = FedTransferSettings()
    dp: PrivacySettings = PrivacySettings()
    vit: ViTSettings = ViTSettings()
    char_transformer: CharTransformerSettings = CharTransformerSettings()
    transfer_cnn: TransferCNNSettings = TransferCNNSettings()
    mlp: MLPSettings = MLPSettings()

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        averaging = [name for name in registry.METHODS if registry.method(name).averages] if self.dp.epsilon else []
        found = faults(self.dp, self.strategy, averaging) + self._training_faults()
        if self.validation_fraction + self.test_fraction >= 1:
            found.append(
                f"validation-fraction={self.validation_fraction:g} and test-fraction={self.test_fraction:g} leave "
                "nothing to train on: their sum must be below 1"
            )
        if self.partitioner == "natural" and not self.client_column:
            found.append('partitioner="natural" needs client-column, the column that names the client')
        if self.partitioner == "class-table" and not self.class_table:
            found.append('partitioner="class-table" needs class-table, the TOML file that says who has what')
        if self.class_table and self.partitioner != "class-table":
            found.append(
                f'class-table={self.class_table!r} is read by partitioner="class-table" only, but partitioner is '
                f'"{self.partitioner}"'
            )
        if found:
            raise ValueError("; ".join(found))
        return self

    def data(self) -> DataSettings:
        """What the data layer needs to know."""
        return DataSettings(
            dataset=self.dataset,
            feature_column=self.feature_column,
            label_column=self.label_column,
            client_column=self.client_column,
            sequence_length=self.sequence_length,
            vocabulary=self.vocabulary,
            min_characters=self.min_characters,
            partitioning=Partitioning(
                self.partitioner,
                self.alpha,
                self.classes_per_client,
                self.seed,
                self.samples_per_client,
                self.owner_share,
                self.class_table,
            ),
            fractions=Fractions(self.validation_fraction, self.test_fraction),
            cache_dir=self.cache_dir,
        )

    @property
    def own(self) -> Any:
        """The settings of the run's method; None if it has none."""
        return getattr(self, self.strategy, None)

    def networks(self) -> NetworkSettings:
        """What building a network needs to know besides its name."""
        network = registry.method(self.strategy).network
        needs = network(self.own) if network else NetworkNeeds()
        graft = needs.graft or GraftSettings()
        return NetworkSettings(self.vit, self.char_transformer, needs.second_head, self.transfer_cnn, graft, self.mlp)

    def _training_faults(self) -> list[str]:
        """Settings of local training that do not go together."""
        found = []
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            found.append(
                f'nesterov=True needs optimizer="sgd" with momentum, not optimizer="{self.optimizer}" with '
                f"momentum={self.momentum:g}"
            )
        if self.warmup_rounds >= self.num_server_rounds:
            found.append(
                f"warmup-rounds={self.warmup_rounds} leaves none of num-server-rounds={self.num_server_rounds} at the "
                "full learning rate"
            )
        if self.schedule == "cosine" and self.min_learning_rate > self.learning_rate:
            found.append(
                f"min-learning-rate={self.min_learning_rate:g} is above learning-rate={self.learning_rate:g}, from "
                "where the cosine falls"
            )
        if self.loss != "auto" and (self.label_smoothing or self.class_weights != "none"):
            found.append(
                f'label-smoothing and class-weights belong to the cross-entropy, not to loss="{self.loss}": wanted '
                '0 and "none"'
            )
        return found

    def local_training(self, round_number: int) -> LocalTraining:
        """What local training in a round needs to know.

        Args:
            round_number: from 1; what comes after the last round has the last round's learning rate.
        """
        schedule = Schedule(
            self.schedule,
            self.num_server_rounds,
            self.warmup_rounds,
            self.schedule_every,
            self.schedule_factor,
            self.min_learning_rate,
        )
        return LocalTraining(
            local_epochs=self.local_epochs,
            batch_size=self.batch_size,
            learning_rate=rate(schedule, self.learning_rate, round_number),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            augment=self.augment,
            steps=self.local_steps,
            optimizer=self.optimizer,
            nesterov=self.nesterov,
            beta1=self.beta1,
            beta2=self.beta2,
            max_grad_norm=self.max_grad_norm,
            loss=LossSettings(self.loss, self.label_smoothing, self.class_weights),
        )


def parse(raw: Mapping[str, Value]) -> Settings:
    """Settings from a flat mapping of keys as they are written (`fedprox.mu`); what is not named has its default.

    Raises:
        UserError: every fault at once: keys that do not exist, each with the nearest one that does, and values of
            the wrong type or out of range, each with what was wanted.
    """
    return _parse(tuple(sorted(raw.items(), key=lambda item: item[0])), tuple(type(raw[k]) for k in sorted(raw)))


@lru_cache(maxsize=8)
def _parse(items: tuple[tuple[str, Value], ...], _types: tuple[type, ...]) -> Settings:
    # The types are part of the cache's key: 1, 1.0 and True are equal, and only one of them is a batch size.
    raw, known = dict(items), defaults()
    faults = [_unknown(key, value, list(known)) for key, value in items if key not in known]
    good = {key: value for key, value in items if key in known}
    faults += [
        f"{key}={good.pop(key)!r}: wanted at most 3.4e38 in size, what a 32-bit float can hold"
        for key in [key for key, value in good.items() if not isinstance(value, str) and MOST < abs(value) < math.inf]
    ]
    while True:
        try:
            # Through JSON, since strict validation of Python objects takes no mapping for a method's settings.
            settings = Settings.model_validate_json(json.dumps(_nest(good)))
        except ValidationError as error:
            faults += [_invalid(fault["loc"], fault["msg"], raw) for fault in error.errors()]
            wrong = {_key(fault["loc"]) for fault in error.errors()} & good.keys()
        else:
            break
        if not wrong:
            break
        # How settings fit together is only looked at when each of them is right: look again without the wrong ones.
        good = {key: value for key, value in good.items() if key not in wrong}
    if faults:
        raise UserError("settings: " + "; ".join(faults))
    return settings


def _nest(flat: Mapping[str, Value]) -> dict[str, object]:
    nested: dict[str, object] = {}
    for key, value in flat.items():
        section, _, name = key.replace("-", "_").rpartition(".")
        place = nested.setdefault(section, {}) if section else nested
        assert isinstance(place, dict)
        place[name] = value
    return nested


def flatten(settings: Settings) -> dict[str, Value]:
    """The settings as a flat mapping, spelled as in pyproject.toml; `parse` is the inverse."""
    flat: dict[str, Value] = {}
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            section = name.replace("_", "-")
            flat |= {f"{section}.{key.replace('_', '-')}": v for key, v in dataclasses.asdict(value).items()}
        else:
            flat[name.replace("_", "-")] = value
    return flat


@lru_cache(maxsize=1)
def defaults() -> Mapping[str, Value]:
    """Every key with its default."""
    return flatten(Settings())


def methods() -> tuple[str, ...]:
    """Names of the methods."""
    return get_args(Strategy)


def _unknown(key: str, value: Value, known: list[str]) -> str:
    spelled = key.replace("_", "-")
    near = [k for k in known if k.startswith(f"{spelled}.")] or difflib.get_close_matches(
        spelled, known, n=1, cutoff=0.5
    )
    advice = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}"
    return f"there is no key {key} (given {value!r}): {advice}"


def _key(place: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in place).replace("_", "-")


def _invalid(place: tuple[int | str, ...], message: str, raw: Mapping[str, Value]) -> str:
    key, wanted = _key(place), message.removeprefix("Value error, ")
    wanted = wanted.replace("Input should be", "wanted").replace("String should have", "wanted")
    return f"{key}={raw[key]!r}: {wanted}" if key in raw else wanted
