"""Augmentation of training batches: ours, torchvision's and a user's; the same draws for the same client and round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.batches import Kind, to_float
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.settings import parse
from fedham_flwr.training.augment import AUGMENTATIONS, check, make, shift_flip
from fedham_flwr.training.local import LocalTraining
from fedham_flwr.training.modes import seeded
from fedham_flwr.training.trainer import Trainer

CPU = torch.device("cpu")
HOW = LocalTraining(local_epochs=1, batch_size=4, learning_rate=0.1, momentum=0.9, weight_decay=0.0, augment=True)


def settings(name: str) -> LocalTraining:
    return replace(HOW, augmentation=name)


def pictures(count: int = 6, channels: int = 3, side: int = 16) -> Tensor:
    """Batches of noise, in -1..1."""
    drawn = torch.randint(0, 256, (count, side, side, channels), generator=torch.Generator().manual_seed(3))
    return to_float(drawn.to(torch.uint8))


def changed(name: str, batch: Tensor, seed: int = 1, kind: Kind = "image", **own: Any) -> Tensor:
    """What local training with this seed makes of a batch."""
    given = replace(settings(name), augmentation_settings=own["settings"] if own else None)
    with seeded(CPU, seed):
        return make(given, kind)(batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("height", "width", "channels", "pad"), [(8, 6, 1, 1), (32, 32, 3, 4), (40, 16, 2, 4)])
def test_shifts_and_mirrors_against_a_loop(height: int, width: int, channels: int, pad: int) -> None:
    batch = to_float((torch.arange(6 * height * width * channels) % 251 + 1).to(torch.uint8).view(6, height, width, -1))
    moved = shift_flip(batch, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    shifts = torch.randint(0, 2 * pad + 1, (2, 6, 1), generator=generator).squeeze(2).T - pad
    mirrored = torch.randint(0, 2, (6, 1), generator=generator).bool().flatten()
    expected = torch.full_like(batch, -1)
    for i in range(6):
        for y in range(height):
            for x in range(width):
                from_y = y + int(shifts[i, 0])
                from_x = (width - 1 - x if mirrored[i] else x) + int(shifts[i, 1])
                if 0 <= from_y < height and 0 <= from_x < width:
                    expected[i, :, y, x] = batch[i, :, from_y, from_x]
    assert torch.equal(moved, expected)
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert 0 < int(mirrored.sum()) < 6
    assert len(shifts.unique(dim=0)) > 1


def test_without_augmentation_a_batch_stays_what_it_is() -> None:
    batch = pictures()
    assert make(replace(HOW, augment=False), "image")(batch, torch.Generator()) is batch


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_built_in_ones_keep_shape_and_range_and_draw_from_the_seed(name: str, channels: int) -> None:
    batch = pictures(channels=channels)
    first = changed(name, batch)
    assert first.shape == batch.shape
    assert first.dtype == torch.float32
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert -1 <= first.min() <= first.max() <= 1
    assert not torch.equal(first, batch)
    torch.rand(7)
    assert torch.equal(first, changed(name, batch))
    assert not torch.equal(first, changed(name, batch, seed=2))
    assert torch.equal(batch, pictures(channels=channels))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_image_of_a_batch_has_draws_of_its_own(name: str) -> None:
    same = pictures(1).expand(12, -1, -1, -1)
    assert len({tuple(image.flatten().tolist()) for image in changed(name, same)}) > 3


def test_the_global_generator_is_as_it_was_after_training() -> None:
    features = torch.randint(0, 256, (8, 6, 6, 1), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = ClientData(features, torch.arange(8) % 2, {"train": torch.arange(8)}, ("a", "b"), "0")
    ends = []
    for disturbed in (False, True):
        torch.manual_seed(5 + disturbed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
        for param in model.parameters():
            nn.init.constant_(param, 0.1)
        before = torch.get_rng_state()
        trainer = Trainer(model, CPU, "fp32", make_manifest(model))
        trainer.fit(data, settings("randaugment"), torch.Generator().manual_seed(9))
        assert torch.equal(torch.get_rng_state(), before)
        ends.append(trainer.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def make_manifest(model: nn.Module) -> Any:
    from fedham_flwr.models.grouping import manifest_of

    return manifest_of(model, [torch.zeros(2, 1, 6, 6)])


# ---- a user's own ----------------------------------------------------------------------------------------------------


def test_a_function_sees_images_in_0_to_1() -> None:
    batch = pictures()
    torch.testing.assert_close(changed("own_objects:inverted", batch), -batch)


def test_arrays_go_in_as_they_are() -> None:
    batch = torch.arange(12.0).view(2, 6)
    assert changed("own_objects:inverted", batch, kind="array").tolist() == (1 - batch).tolist()


def test_a_class_is_made_with_its_settings() -> None:
    settings = parse({"augment": True, "augmentation": "own_objects:Darker", "darker.factor": 0.25})
    training = settings.local_training(1)
    batch = pictures()
    result = make(training, "image")(batch, torch.Generator())
    torch.testing.assert_close(result, (batch + 1) / 4 - 1)


def test_a_transform_of_torchvisions_is_called_with_its_own_settings() -> None:
    path = "torchvision.transforms.v2:RandomHorizontalFlip"
    training = parse({"augment": True, "augmentation": path, "randomhorizontalflip.p": 1.0}).local_training(1)
    batch = pictures()
    torch.testing.assert_close(make(training, "image")(batch, torch.Generator()), batch.flip(3))


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_only_images_are_augmented() -> None:
    make(HOW, "image")
    with pytest.raises(UserError, match=r"augment is true, but it shifts and mirrors images, and the data set is text"):
        make(HOW, "text")
    with pytest.raises(UserError, match=r"augment is true, .* and the data set is a table; set it false"):
        make(HOW, "table")
    with pytest.raises(UserError, match=r"it changes images, and the data set is arrays of numbers; set it false"):
        make(settings("color"), "array")
    with pytest.raises(UserError, match=r"it changes images, and the data set is text; set it false"):
        make(settings("own_objects:inverted"), "text")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere:f", r'augmentation="nowhere:f": there is no module nowhere'),
        ("own_objects:NUMBER", r'augmentation="own_objects:NUMBER" gives int, and wanted is a function of a batch'),
        (
            "own_objects:cut",
            r'"own_objects:cut" makes torch.float32 \[2, 3, 15, 16\] of a batch of .* \[2, 3, 16, 16\]',
        ),
        ("own_objects:two_at_a_time", r"cannot be called with a batch of shape \[2, 3, 16, 16\]: TypeError: "),
        ("torchvision.transforms.v2:GaussianBlur", r"GaussianBlur wants kernel_size, which it is not called with"),
    ],
)
def test_a_mistake_is_a_sentence(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check(settings(name), "image", (3, 16, 16))


def test_images_of_two_channels_are_refused_where_colours_are_wanted() -> None:
    check(settings("randaugment"), "image", (1, 8, 8))
    with pytest.raises(
        UserError, match=r'augmentation="color" cannot be called with a batch of shape \[2, 2, 8, 8\]: '
    ):
        check(settings("color"), "image", (2, 8, 8))


def test_a_setting_without_effect_is_refused() -> None:
    with pytest.raises(
        UserError, match=r'augmentation="color" says how, and augment=False that nothing is: set augment'
    ):
        parse({"augmentation": "color"})
    with pytest.raises(UserError, match=r"augmentation='blur': wanted 'shift-flip', .*'color' or an import path"):
        parse({"augment": True, "augmentation": "blur"})


@pytest.mark.parametrize("strategy", ["fedavg", "fedper"])
def test_a_run_with_it_is_reproducible(federate: Callable[..., Any], strategy: str) -> None:
    def trained() -> dict[str, Tensor]:
        run = federate(
            strategy=strategy, augment=True, augmentation="trivialaugment", num_server_rounds=1, samples_per_client=20,
            clients=2,
        )  # fmt: skip
        state: dict[str, Tensor] = run.state
        return state

    first, second = trained(), trained()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_mistake_ends_a_run_before_its_first_round(federate: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r'"own_objects:cut" makes torch.float32 \[2, 1, 7, 8\]'):
        federate(strategy="fedavg", augment=True, augmentation="own_objects:cut")
