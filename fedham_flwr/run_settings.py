"""The settings of a run: how they fit together, and what each part of a run is told of them."""

from __future__ import annotations

import json
from typing import Any, Self

from pydantic import model_validator

from fedham_flwr import registry
from fedham_flwr.core import aggregation, callback_settings
from fedham_flwr.core.imports import is_path, section_of
from fedham_flwr.core.methods import NONE, NetworkNeeds
from fedham_flwr.core.privacy import faults
from fedham_flwr.core.records import Phase
from fedham_flwr.data import groups
from fedham_flwr.data.batches import Target
from fedham_flwr.data.data_settings import CLASS_GROUPS, DataSettings, Fractions, Partitioning, resolved
from fedham_flwr.models import NETWORKS, NetworkSettings, client_models
from fedham_flwr.models.grafts import GraftSettings
from fedham_flwr.models.heads import HeadSettings
from fedham_flwr.run_fields import RunFields
from fedham_flwr.training import metric_choice
from fedham_flwr.training.local import LocalTraining, training_faults
from fedham_flwr.training.losses import LossSettings
from fedham_flwr.training.metrics import Metric
from fedham_flwr.training.schedule import Schedule, rate


class Settings(RunFields):
    """The settings of a run that every method has, in Python's spelling: `batch-size` is `batch_size`.

    Those of a run also have a section for each method, network and object that has settings of its own.
    """

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        averaging = [name for name in registry.METHODS if registry.method(name).averages] if self.dp.epsilon else []
        found = faults(self.dp, self.strategy, averaging) + metric_choice.faults(self.metrics, self.selection_metric)
        found += aggregation.faults(self.server, self.dp.epsilon)
        found += training_faults(self.local_training(1), self._schedule(), self.learning_rate)
        split = self.validation_fraction > 0 or is_path(self.dataset)  # a loader may bring a split of its own
        found += self._method_faults()
        found += client_models.faults(self.client_models)
        found += callback_settings.faults(self.callbacks, self.tracker, split)
        if self.cross_evaluation and self.dp.epsilon:
            found.append(
                f"cross-evaluation=true sends whole models without noise, which dp.epsilon={self.dp.epsilon:g} is to "
                "prevent: wanted one of them"
            )
        if self.cross_evaluation and self.score_test == "never":
            found.append(
                'cross-evaluation=true scores models on test splits, which score-test="never" forbids: wanted one of '
                "them"
            )
        if self.validation_fraction + self.test_fraction >= 1:
            found.append(
                f"validation-fraction={self.validation_fraction:g} and test-fraction={self.test_fraction:g} leave "
                "nothing to train on: their sum must be below 1"
            )
        found += self._dealing_faults()
        if found:
            raise ValueError("; ".join(found))
        return self

    def _dealing_faults(self) -> list[str]:
        """Of the settings that deal the data, those that do not go together, a sentence each."""
        found, words = [], groups.words_of(self.shift)
        if self.client_column and self.partitioner not in ("auto", "natural"):
            found.append(
                f"client-column={self.client_column!r} names whose each row is, and "
                f'partitioner="{self.partitioner}" deals the rows to others: wanted one of the two, or '
                'partitioner="natural"'
            )
        if self.partitioner == "natural" and not self.client_column:
            found.append('partitioner="natural" needs client-column, the column that names the client')
        if self.partitioner == "class-table" and not self.class_table:
            found.append('partitioner="class-table" needs class-table, the TOML file that says who has what')
        if self.class_table and self.partitioner_used != "class-table":
            found.append(
                f'class-table={self.class_table!r} is read by partitioner="class-table" only, but partitioner is '
                f'"{self.partitioner_used}"'
            )
        if words and self.groups not in (0, len(words)):
            found.append(
                f"shift={self.shift!r} has a word for each of {len(words)} groups, and groups={self.groups}: wanted "
                "as many words as groups"
            )
        if self.partitioner == CLASS_GROUPS and self.groups_used < 2:
            found.append(f'partitioner="{CLASS_GROUPS}" needs groups, 2 or more')
        return found

    def _method_faults(self) -> list[str]:
        """What the run's method cannot do, a sentence each."""
        found = []
        if self.client_models and not registry.method(self.strategy).own_networks:
            what = f"client-models={self.client_models!r}"
            found.append(client_models.refusal(what, self.strategy, registry.with_own_networks()))
        for key, off in (("personal", NONE), ("personal-epochs", 0), ("personal-training", "each-round")):
            value = getattr(self, key.replace("-", "_"))
            if value != off and not registry.method(self.strategy).composes:
                found.append(
                    f"{key}={json.dumps(value)} is not for strategy={self.strategy}, which says itself what clients "
                    f"keep and train: wanted {json.dumps(off)}, or one of {', '.join(registry.composing())}"
                )
        if self.personal_training == "after-rounds" and not self.personal_epochs:
            found.append(
                'personal-training="after-rounds" trains for personal-epochs=0 epochs, and so personal layers never: '
                "wanted some, such as personal-epochs=10"
            )
        return found

    def phase(self, closing: bool) -> Phase:
        """Whether the model that clients use is the one before or the one after local training.

        Where all layers are trained once more at the end it is, `closing`, the one after that.
        """
        method = registry.method(self.strategy)
        last = closing and (method.personal_stage or self.personal_training == "after-rounds")
        return "after" if last else method.personal_model

    @property
    def partitioner_used(self) -> str:
        """The partitioner, `auto` resolved."""
        return resolved(self.partitioner, self.client_column, self.class_table)

    @property
    def groups_used(self) -> int:
        """Into how many groups the clients of a simulation fall: `groups`, or one for each word of `shift`; else 0."""
        return self.groups or len(groups.words_of(self.shift))

    @property
    def seed_of_data(self) -> int:
        """What decides who has which samples, how they are split, and which clients are novel."""
        return self.seed if self.data_seed < 0 else self.data_seed

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
                self.partitioner_used,
                self.alpha,
                self.classes_per_client,
                self.seed_of_data,
                self.samples_per_client,
                self.owner_share,
                self.class_table,
                self.section(section_of(self.partitioner)) if is_path(self.partitioner) else None,
                self.groups_used if self.partitioner == CLASS_GROUPS else 0,
            ),
            fractions=Fractions(self.validation_fraction, self.test_fraction),
            cache_dir=self.cache_dir,
            target=self.target,
            own=self.section(section_of(self.dataset)) if is_path(self.dataset) else None,
            image_size=self.image_size,
            image=self.image,
            table=self.table,
            series=self.series,
            text=self.text,
            shift=groups.words_of(self.shift),
        )

    def scored_splits(self, closing: bool) -> tuple[str, ...]:
        """The splits of a client's data that models are scored on.

        Args:
            closing: the rounds are over.
        """
        tested = self.score_test == "always" or (self.score_test == "closing" and closing)
        return ("validation", "test") if tested else ("validation",)

    def measured(self, target: Target, outputs: int) -> tuple[Metric, ...]:
        """The metrics of the run, beside the loss.

        Args:
            target: what is learned.
            outputs: numbers that the network gives for a prediction.

        Raises:
            UserError: a metric does not fit the target, or leads to none.
        """
        if self.metrics == "auto":
            return metric_choice.chosen("auto", target, outputs)
        names = self.metrics.split()
        sections = {section_of(name): self.section(section_of(name)) for name in names}
        return metric_choice.chosen(self.metrics, target, outputs, sections)

    def section(self, name: str) -> Any:
        """The settings of a method, a network or an object of a user's, by the name of their section; None without."""
        return (
            getattr(self, name.replace("-", "_"), None) if name.replace("-", "_") not in Settings.model_fields else None
        )

    def _own_of(self, path: str) -> Any:
        """The settings of an object that an import path names; None for a built-in name."""
        return self.section(section_of(path)) if is_path(path) else None

    @property
    def own(self) -> Any:
        """The settings of the run's method; None if it has none."""
        return self.section(section_of(self.strategy))

    def networks(self) -> NetworkSettings:
        """What building the run's network needs to know beside its name."""
        network = registry.method(self.strategy).network
        needs = network(self.own) if network else NetworkNeeds()
        own = tuple((name, self.section(name)) for name in dict.fromkeys((*NETWORKS, section_of(self.model))))
        return NetworkSettings(own, needs.head or HeadSettings(), needs.graft or GraftSettings(), needs.adapters)

    def _schedule(self) -> Schedule:
        return Schedule(
            self.schedule,
            self.num_server_rounds,
            self.warmup_rounds,
            self.schedule_every,
            self.schedule_factor,
            self.min_learning_rate,
        )

    def local_training(self, round_number: int) -> LocalTraining:
        """What local training in a round needs to know.

        Args:
            round_number: from 1; what comes after the last round has the last round's learning rate.
        """
        return LocalTraining(
            local_epochs=self.local_epochs,
            batch_size=self.batch_size,
            learning_rate=rate(self._schedule(), self.learning_rate, round_number),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            augment=self.augment,
            augmentation=self.augmentation,
            steps=self.local_steps,
            optimizer=self.optimizer,
            nesterov=self.nesterov,
            beta1=self.beta1,
            beta2=self.beta2,
            max_grad_norm=self.max_grad_norm,
            loss=LossSettings(self.loss, self.label_smoothing, self.class_weights, self._own_of(self.loss)),
            optimizer_settings=self._own_of(self.optimizer),
            augmentation_settings=self._own_of(self.augmentation),
        )
