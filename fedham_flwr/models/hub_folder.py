"""What a folder of the Hugging Face Hub says of a network and of its inputs, as data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.core.files import Stamp, stamps

HUB = "hub"
"""The name of these networks."""


@dataclass(frozen=True)
class HubSettings:
    """Settings under `hub.`.

    Attributes:
        folder: with config.json and *.safetensors, as `save_pretrained` or a download of the Hub leaves it.
    """

    folder: str = ""


@dataclass(frozen=True)
class HubNetworkSettings:
    """What such a network is, without its weights.

    Attributes:
        config: JSON, of `transformers`.
        first: codes of the special tokens before a text, with blanks between.
        last: of those behind it.
        mean: of an image's channels in 0..1 that its preprocessor takes off, with blanks between; empty: none.
        deviation: of them, by which it divides.
    """

    config: str = "{}"
    first: str = ""
    last: str = ""
    mean: str = ""
    deviation: str = ""


def describe(settings: HubSettings) -> HubNetworkSettings:
    """What the folder says of a network and its inputs.

    Args:
        settings: the folder.

    Raises:
        UserError: there is no such folder, or it lacks a file.
    """
    if not settings.folder:
        raise UserError('model="hub" needs hub.folder, a folder with config.json and *.safetensors')
    folder = Path(settings.folder).expanduser()
    if not (folder / "config.json").is_file():
        raise UserError(f'hub.folder="{settings.folder}" has no config.json ({folder.absolute()})')
    if not [*folder.glob("*.safetensors")]:
        raise UserError(
            f'hub.folder="{settings.folder}" has no *.safetensors: wanted weights as data, not as a pickle, which is '
            "code that would be run"
        )
    files = [folder / name for name in ("config.json", "tokenizer.json", "preprocessor_config.json")]
    return _described(folder, settings.folder, stamps(files))


@lru_cache(maxsize=8)  # for a model that is exported needs it once more, and a tokeniser takes a while to read
def _described(folder: Path, given: str, _written: tuple[Stamp, ...]) -> HubNetworkSettings:
    config = _json(folder / "config.json")
    if "model_type" not in config:
        raise UserError(f'hub.folder="{given}" has a config.json without model_type')
    first, last = _special_tokens(folder / "tokenizer.json")
    mean, deviation = _scaling(folder / "preprocessor_config.json")
    texts = (" ".join(map(str, numbers)) for numbers in (first, last, mean, deviation))
    return HubNetworkSettings(json.dumps(config, sort_keys=True), *texts)


def _json(file: Path) -> dict[str, Any]:
    """What a file says; nothing without it."""
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {first_line(error)}") from error
    if not isinstance(found, dict):
        what = {list: "a list", str: "a string", bool: "a truth value", type(None): "null"}.get(type(found), "a number")
        raise UserError(f"{file} is {what}, and wanted is a JSON object, as save_pretrained writes it")
    return found


def _scaling(file: Path) -> tuple[list[float], list[float]]:
    """The means and the deviations that a preprocessor's file has of an image's channels; none if it uses none."""
    pixels = _json(file)
    if not pixels.get("do_normalize", True) or "image_mean" not in pixels:
        return [], []
    for key in ("image_mean", "image_std"):
        given = pixels.get(key)
        if not isinstance(given, list) or not all(isinstance(number, int | float) for number in given):
            raise UserError(f"{file} has {key}={given!r}: wanted a list of numbers, one for each channel")
    return pixels["image_mean"], pixels["image_std"]


def _special_tokens(file: Path) -> tuple[list[int], list[int]]:
    """The codes that a tokeniser puts before and behind a text; none without its file."""
    if not file.is_file():
        return [], []
    try:
        from tokenizers import Tokenizer

        encoded = Tokenizer.from_file(str(file)).encode("a")
    except ImportError as error:
        raise UserError(
            f"{file} is read by the package tokenizers, which is not installed: pip install 'fedham-flwr[lora]'"
        ) from error
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"{file} is no tokeniser's file: {first_line(error)}") from error
    special = encoded.special_tokens_mask
    first = special.index(0) if 0 in special else len(special)
    behind = special[::-1].index(0) if 0 in special else 0
    return encoded.ids[:first], encoded.ids[len(special) - behind :]
