"""What a method declares of itself: its two halves, its settings, what is shared, and its traits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedham_flwr.core.errors import UserError, described
from fedham_flwr.core.normalisation import normalisation
from fedham_flwr.core.parameters import LayerGroup, Manifest
from fedham_flwr.core.records import Phase
from fedham_flwr.core.search_space import Space

NONE = "none"
"""The value of `personal` with which a method's split is as the method says."""


class Split(NamedTuple):
    """Which tensors of the model are sent and which stay with the client; every tensor is in one of the first two.

    Attributes:
        shared: names of the tensors that clients send after training, in the model's order.
        personal: names of the tensors that enter no message.
        adapted: of the shared ones, those that a novel client trains for the server to learn from, in turns.
    """

    shared: tuple[str, ...]
    personal: tuple[str, ...]
    adapted: tuple[str, ...] = ()


def split_groups(manifest: Manifest, personal: tuple[str, ...]) -> Split:
    """A split by layer groups.

    Args:
        manifest: the model's.
        personal: names of the layer groups that stay with the client.
    """
    return split_tensors(manifest, manifest.names(personal))


def split_tensors(manifest: Manifest, personal: tuple[str, ...], adapted: tuple[str, ...] = ()) -> Split:
    """A split by tensors.

    Args:
        manifest: the model's.
        personal: names of the tensors that stay with the client.
        adapted: as in `Split`.
    """
    kept = set(personal)
    return Split(tuple(name for name in manifest.names() if name not in kept), tuple(personal), adapted)


def narrowed(split: Split, manifest: Manifest, personal: str) -> Split:
    """A split of which more stays with the client.

    Args:
        split: a method's.
        manifest: the model's.
        personal: with blanks between: head, the last layer group; norms, all normalisation layers with their running
            statistics; names of layer groups.

    Raises:
        UserError: there is no such layer group, no normalisation, or nothing would be left to share.
    """
    kept, groups = set(split.personal), manifest.group_names
    for word in personal.split():
        found = normalisation(manifest, "all") if word == "norms" else ()
        if word == "head" or word in groups:
            found = manifest.names(groups[-1:] if word == "head" else [word])
        if not found:
            what = "the model has no normalisation layers" if word == "norms" else f"{word} is no layer group"
            raise UserError(f"personal={personal!r}: {what}: wanted none, head, norms, or some of {', '.join(groups)}")
        kept |= set(found)
    shared = tuple(name for name in split.shared if name not in kept)
    if not shared:
        raise UserError(f'personal={personal!r} leaves nothing to share: wanted less, or strategy="local"')
    adapted = tuple(name for name in split.adapted if name not in kept)
    return Split(shared, tuple(name for name in manifest.names() if name in kept), adapted)


def check_resting(what: str, initial: Mapping[str, Tensor], groups: Iterable[LayerGroup], names: Iterable[str]) -> None:
    """Refuse layers that are not trained if no gradient comes through them to those before.

    Args:
        what: the setting that leaves them as they are.
        initial: the network's first tensors.
        groups: the network's layer groups.
        names: of the tensors that are not trained.

    Raises:
        UserError: all matrices of one of these layer groups are zero, and it has some.
    """
    resting = set(names)
    for group in groups:
        matrices = [initial[name] for name in group.names if name in resting and initial[name].dim() > 1]
        if matrices and not any(bool(matrix.any()) for matrix in matrices):
            raise UserError(
                f"{what} leaves {group.name} as it is at first, and in this network it is zero, so that nothing before "
                "it would learn: wanted a network in which it begins at random"
            )


def describe_split(manifest: Manifest, split: Split) -> str:
    """What is shared and what is personal, in layer groups and scalars."""
    parts = []
    for what, chosen in (("shared", set(split.shared)), ("personal", set(split.personal))):
        groups = [_part(group, chosen) for group in manifest.groups if chosen & set(group.names)]
        scalars = sum(torch.Size(manifest.shapes[name]).numel() for name in chosen)
        parts.append(f"{what}: {', '.join(groups) or 'nothing'}" + (f" ({scalars:,} scalars)" if scalars else ""))
    return "; ".join(parts)


def _part(group: LayerGroup, chosen: set[str]) -> str:
    """A layer group's name, and what of it is meant if it is not all of it."""
    if chosen >= set(group.names):
        return group.name
    return f"{group.name}'s {'parameters' if chosen & set(group.parameters) else 'running statistics'}"


def always(_settings: object) -> bool:
    """Yes, whatever a method's own settings are."""
    return True


def never(_settings: object) -> bool:
    """No, whatever a method's own settings are."""
    return False


class NetworkNeeds(NamedTuple):
    """What a method wants of the network beside its shared layers.

    Attributes:
        head: which parts are added to the last linear layer (`models.heads.HeadSettings`); None for none.
        graft: kind of the block that is inserted, and its settings (`models.grafts.GraftSettings`); None for none.
        adapters: those beside its linear layers (`models.adapters.AdapterSettings`); None for none.
    """

    head: Any = None
    graft: Any = None
    adapters: Any = None


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        strategy: its server half, a `RoundStrategy`, or the import path of one.
        client: its client half, a `RoundClient`, or the import path of one.
        split: (manifest, own settings) -> what is shared; asked by both halves.
        settings: the frozen dataclass of its own settings, which are set under the method's name; None without any.
        personal_model: the model that a client uses is the one that it starts a round from (before), or the one that
            local training makes of it (after).
        averages: the server needs nothing of a client but a weighted mean with others, in which noise averages out.
        mixes: it reports with which weights the clients' models are mixed.
        personal_stage: after the last round each client trains a model of its own, in place of the last evaluation; the
            stage may start from what another run has trained.
        frozen_head: in the rounds the personal layers, which every network has, stay as they are at first, by the
            seed; what its personal stage starts from is then the shared ones alone, and never a whole model.
        network: own settings -> what it needs of the network.
        name: what `simulate` calls a method that it is given as an object, and the section of its settings.
        search: setting, as it is written (`fedprox.mu`) -> the values that a study may try, the paper's first. One that
            the study's file sets is not searched, unless the file asks for it.
        own_steps: its clients take steps of their own, which know learning rate and weight decay and no more: momentum
            has no effect.
        composes: the setting `personal` may take layers out of what it shares, whatever else it does with the rest.
        own_networks: clients may have networks that differ, since its split shares no tensor of any.
        counts_samples: own settings -> whether its server weighs what clients send by how many samples they have, which
            `max-examples-per-client` caps.
        told_groups: its server knows which group each client is of, by the setting `groups`.
        floor: every comparison has it beside its methods, which are worth their effort only above it.
        extras: what its clients send the server beside the tensors that are shared, in the words of its identity card;
            the cards of models say it.
    """

    strategy: str | type
    client: str | type
    split: Callable[[Manifest, Any], Split]
    settings: type | None = None
    personal_model: Phase = "before"
    averages: bool = False
    mixes: bool = False
    personal_stage: bool = False
    frozen_head: bool = False
    network: Callable[[Any], NetworkNeeds] | None = None
    name: str = "method"
    own_steps: bool = False
    composes: bool = False
    own_networks: bool = False
    told_groups: bool = False
    counts_samples: Callable[[Any], bool] = always
    floor: bool = False
    extras: str = ""
    search: Space = field(default_factory=dict, compare=False)

    def split_of(self, manifest: Manifest, settings: Any, personal: str = NONE) -> Split:
        """What is shared and what is personal, of this model.

        Args:
            manifest: the model's.
            settings: the method's own.
            personal: what else is personal, see `narrowed`.

        Raises:
            UserError: the function fails, or gives no split of the model's tensors; or nothing would be shared.
        """
        name = getattr(self.split, "__name__", "split")
        try:
            found = self.split(manifest, settings)
        except UserError:
            raise
        except Exception as error:  # whatever the user's function raises
            raise UserError(f"{name}, the split of the method {self.name}, failed: {described(error)}") from error
        if not isinstance(found, Split):
            raise UserError(
                f"{name}, the split of the method {self.name}, gives {type(found).__name__}, and wanted is a Split: "
                "split_groups(manifest, names of the layer groups that stay with the client)"
            )
        return found if personal == NONE else narrowed(found, manifest, personal)

    def split_at(self, manifest: Manifest, initial: Mapping[str, Tensor], settings: Any) -> Split:
        """What is shared and what is personal in a run.

        Args:
            manifest: the model's.
            initial: the network's first tensors.
            settings: the run's.

        Raises:
            UserError: as of `split_of`; or layers that rest until the end let no gradient through.
        """
        found = self.split_of(manifest, settings.own, settings.personal)
        if settings.personal_training == "after-rounds":
            check_resting('personal-training="after-rounds"', initial, manifest.groups, found.personal)
        return found
