"""Groups of clients in a simulation: with classes of their own, or with images changed or classes renamed by group.

Client k is of group k mod G, and group g has the g-th word of the setting `shift`. What tells the groups apart is then
known, as it never is of real data, so that a method can be asked whether it finds it.

| word | what becomes of a sample of group g | source |
| --- | --- | --- |
| none | it stays | |
| rotated, rotated-180, rotated-270 | its image is turned by 90, 180 or 270 degrees, against the clock | (1) |
| inverted | each pixel x is 255 - x | |
| blurred | its image is blurred by a Gaussian of a sixteenth of its side | |
| permuted-labels | its class y is (y + g) mod K, so that no two groups agree on any class | (2) |

(1) Ghosh et al., "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020, section 6: rotated MNIST.
(2) Sattler et al., "Clustered Federated Learning", IEEE TNNLS 2020, section V: permuted labels, there by lot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.cache import array, meta_of

NONE, LABELS = "none", "permuted-labels"
TURNS = {"rotated": 1, "rotated-180": 2, "rotated-270": 3}
"""Word -> how many times 90 degrees."""
WORDS = (NONE, *TURNS, "inverted", "blurred", LABELS)
"""What a group may have."""
BLUR = 1 / 16
"""The Gaussian's standard deviation, of the image's side."""
Indices = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


def class_amounts(counts: Indices, clients: int, groups: int, rng: np.random.Generator) -> Indices:
    """The amounts of `class-groups`: each group has classes of its own, whose samples are dealt evenly to its clients.

    The classes fall to the groups by lot, as many to each as to any other or one more. What a class leaves over goes to
    the first clients of its group, a sample each.

    Args:
        counts: int64 [K], the samples of each class.
        clients: N; client k is of group k mod G.
        groups: G.
        rng: decides which classes a group has.

    Returns:
        int64 [N, K].

    Raises:
        UserError: there are fewer clients or classes than groups, or fewer than 2 groups.
    """
    most = min(clients, len(counts))
    if not 2 <= groups <= most:
        raise UserError(
            f"groups is {groups}, but for class-groups it must be from 2 to {most}: there are {len(counts)} classes "
            f"and {clients} clients."
        )
    group_of = np.empty(len(counts), dtype=np.int64)
    group_of[rng.permutation(len(counts))] = np.arange(len(counts)) % groups
    number = np.arange(clients)[:, None]
    holds = group_of == number % groups
    each, left = np.divmod(counts, holds.sum(axis=0))
    amounts: Indices = holds * (each + (number // groups < left))
    return amounts


def words_of(shift: str) -> tuple[str, ...]:
    """The words of the groups, in their order; none if no group is shifted.

    Args:
        shift: the setting, words with blanks between.

    Raises:
        ValueError: a word is none of `WORDS`, or there is none.
    """
    words = tuple(shift.split())
    if unknown := [word for word in words if word not in WORDS]:
        raise ValueError(f"'{unknown[0]}' is no shift: wanted a word for each group, of {', '.join(WORDS)}")
    if not words:
        raise ValueError(f"wanted a word for each group, of {', '.join(WORDS)}")
    return words if {*words} - {NONE} else ()


def images(pixels: Pixels, word: str) -> Pixels:
    """Images as a group has them.

    Args:
        pixels: uint8 [n, H, W, C].
        word: of the group.

    Returns:
        uint8 of the same shape.

    Raises:
        UserError: images that are turned by 90 degrees are no squares.
    """
    height, width = pixels.shape[1:3]
    if word in TURNS:
        if TURNS[word] % 2 and height != width:
            raise UserError(
                f'shift="{word}" turns images by 90 degrees, and these are {width}x{height} pixels: wanted squares, '
                "which image-size makes"
            )
        return np.ascontiguousarray(np.rot90(pixels, TURNS[word], axes=(1, 2)))
    if word == "inverted":
        return 255 - pixels
    if word == "blurred":
        return _blurred(pixels)
    return pixels


def classes(labels: Indices, word: str, group: int, count: int) -> Indices:
    """Classes as a group has them.

    Args:
        labels: int64 [n], below K.
        word: of the group.
        group: g.
        count: K.
    """
    return (labels + group) % count if word == LABELS else labels


def write(data: Path, clients: Path, words: Sequence[str], parts: Sequence[Indices]) -> None:
    """Write samples as clients of groups have them: `features.npy` if images change, `labels.npy` if classes do.

    Both have a row for each sample of the data set; those that nobody has are 0 and take no room on the disk.

    Args:
        data: the folder of the cache with the samples.
        clients: that with the clients, which exists.
        words: of the groups.
        parts: the numbers of each client's samples, in the order of the clients.

    Raises:
        UserError: the data cannot be shifted so.
    """
    meta = meta_of(data)
    check(words, meta["kind"], meta.get("target", ""), len(meta["classes"]))
    pixels, labels = array(data / "features.npy"), array(data / "labels.npy")
    if {*words} - {NONE, LABELS}:
        changed = np.lib.format.open_memmap(clients / "features.npy", "w+", dtype=pixels.dtype, shape=pixels.shape)
        for number, part in enumerate(parts):
            changed[part] = images(pixels[part], words[number % len(words)])
        changed.flush()
    if LABELS in words:
        renamed = labels.copy()
        for number, part in enumerate(parts):
            group = number % len(words)
            renamed[part] = classes(labels[part], words[group], group, len(meta["classes"]))
        np.save(clients / "labels.npy", renamed)


def recipe_of(words: Sequence[str], number: int) -> dict[str, Any]:
    """What a client's recipe says of its group; nothing of one that is not shifted.

    Args:
        words: of the groups.
        number: of the client.
    """
    group = number % len(words) if words else 0
    return {"shift": words[group], "group": group} if words and words[group] != NONE else {}


def shifted(features: npt.NDArray[Any], recipe: Mapping[str, Any]) -> npt.NDArray[Any]:
    """New samples as they are stored, as the group of a client has them.

    Args:
        features: of the source.
        recipe: the client's.
    """
    word = recipe.get("shift", NONE)
    return features if word in (NONE, LABELS) else images(features, word)


def outputs(names: Sequence[str], recipe: Mapping[str, Any]) -> list[str]:
    """What a network's outputs are called in the source, where the client's group has its classes renamed.

    Args:
        names: of the K classes.
        recipe: the client's.
    """
    by = int(recipe["group"]) if recipe.get("shift") == LABELS else 0
    return [names[(at - by) % len(names)] for at in range(len(names))]


def check(words: Sequence[str], kind: str, target: str, class_count: int) -> None:
    """Refuse shifts that the data do not have.

    Args:
        words: of the groups.
        kind: of the data, as `meta.json` has it.
        target: what is learned of them there; empty: a class.
        class_count: K.

    Raises:
        UserError: images are to be changed where there are none, or classes where there are none or too few.
    """
    of_images = [word for word in words if word not in (NONE, LABELS)]
    if of_images and kind != "image":
        raise UserError(f'shift has "{of_images[0]}", which changes images, and the data are of the kind {kind}')
    if LABELS in words and (target or kind == "text"):
        raise UserError(f'shift has "{LABELS}", and the data have no classes: target is {target or "next-token"}')
    if LABELS in words and len(words) > class_count:
        raise UserError(
            f'shift has "{LABELS}" and {len(words)} groups, and the data have {class_count} classes: wanted no more '
            "groups than classes, so that no two groups agree"
        )


def _blurred(pixels: Pixels) -> Pixels:
    from torchvision.transforms.v2.functional import gaussian_blur

    deviation = max(0.5, BLUR * min(pixels.shape[1:3]))
    size = 2 * min(ceil(3 * deviation), min(pixels.shape[1:3]) - 1) + 1  # what lies beyond is reflected, once
    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    found: Pixels = gaussian_blur(planes, [size, size], [deviation, deviation]).permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(found)
