"""One client's view of a data set: its samples, what they are, and what is to be learned of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedham_flwr.data.batches import Kind, Target, kind_of, sample_shape, target_of
from fedham_flwr.data.kinds import table as tables

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class ClientData:
    """One client's view of a data set.

    Attributes:
        features: uint8 [N, H, W, C] of images, integers [N, T + 1] of text and [N, T] of text with labels, float32
            [N, F] of a table and [N, T, C] of series, standardised, and NaN where a value is missing, float32 [N, ...]
            of arrays; all samples of the data set, mapped from disk: index it, never copy it whole.
        labels: int64 [N], classes; of text without labels: zeros. Or uint8 or bool [N, k], which labels a sample has;
            or float32 [N] or [N, k], values.
        splits: "train", "validation" and "test" -> int64, the sample numbers of this client.
        classes: K names; of text without labels: the tokens; of multi-label data the k labels, of values their
            k names, or none.
        name: in a simulation the client's, by which it is known: the owner's with the natural partitioner, the table's
            with class-table, the file's with files, else the partition's number.
        scaling: of a table: how raw rows become inputs. It says something of this client's data, and stays with it.
        kind: what the samples are; by default told by the features.
        recipe: what turns raw rows of the source into features as they are stored, this client's scaling among it; None
            where a function of a user's loads the data. See `data.recipes`.
        vocabulary: of text with labels, how many tokens there are.
        agreed: names that all clients must have the same, beside those of the classes.
        pin: in a simulation, a text that says what data these are, which clients of the same run open: the digest of
            the source and the folder of the cache, with a blank between. Empty where a function loads the data.
    """

    features: Tensor
    labels: Tensor
    splits: Mapping[str, Tensor]
    classes: tuple[str, ...]
    name: str
    scaling: tables.Scaling | None = None
    kind: Kind = None  # type: ignore[assignment]  # never, after __post_init__
    recipe: Mapping[str, Any] | None = None
    vocabulary: int = 0
    agreed: tuple[str, ...] = ()
    pin: str = ""

    def __post_init__(self) -> None:
        if self.kind is None:
            object.__setattr__(self, "kind", kind_of(self.features))

    @property
    def shape(self) -> tuple[int, ...]:
        """One sample as a network sees it, as `core.shapes` has it: (C, H, W) of an image, (2, F) of a table."""
        return sample_shape(self.features, self.kind, self.vocabulary)

    @property
    def meanings(self) -> tuple[tuple[str, ...], ...]:
        """What must be the same at all clients: the names of classes, and of columns, channels or what makes tokens.

        Of a table with a schema its digest, too.
        """
        columns = self.scaling.names if self.scaling else self.agreed
        schema = (self.recipe or {}).get("schema", "") if self.scaling else ""
        return (self.classes, *([columns] if columns else []), *([(schema,)] if schema else []))

    @property
    def target(self) -> Target:
        """What is to be learned."""
        return "next-token" if self.kind == "text" else target_of(self.labels)

    @property
    def outputs(self) -> int:
        """How many numbers a network gives for one prediction: K classes, k labels, or k values."""
        if self.target in ("class", "next-token"):
            return len(self.classes)
        return self.labels.shape[1] if self.labels.dim() == 2 else 1

    def counts(self) -> dict[str, int]:
        """Samples per split."""
        return {name: len(indices) for name, indices in self.splits.items()}

    def with_outputs(self, outputs: int) -> ClientData:
        """The same data with the classes that other clients have beyond this one's, named by their numbers.

        Args:
            outputs: K of the whole run.
        """
        lacking = range(len(self.classes), outputs if self.target == "class" else 0)
        return replace(self, classes=(*self.classes, *map(str, lacking))) if lacking else self

    def label_counts(self, which: str) -> list[int]:
        """How often each of the K classes is a target in this split: once per sample, or T times in a text.

        Nothing where there are no classes, but values or several labels.
        """
        if self.target in ("value", "multi-label"):
            return []
        index = self.splits[which]
        targets = self.features[index][:, 1:].flatten() if self.kind == "text" else self.labels[index]
        return torch.bincount(targets, minlength=len(self.classes)).tolist()
