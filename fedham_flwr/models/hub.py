"""Networks of the Hugging Face Hub, by `model="hub"`, out of a local folder: nothing is fetched, and no code of it run.

Images go to a network as its preprocessor has them, texts between the special tokens of its tokeniser: both are read of
the folder, and stored with a model that a run leaves, which needs the folder no more. Shape letters: b batch, c
channels, h height, w width, t tokens, s tokens with the special ones, k outputs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fedham_flwr.core.errors import UserError, described
from fedham_flwr.core.shapes import dimensions, sample_kind, vocabulary
from fedham_flwr.models.hub_folder import HubNetworkSettings, HubSettings, describe
from fedham_flwr.models.kinds import described_data

log = logging.getLogger("fedham_flwr")

OURS = 2
"""Codes before the first one of a tokeniser: the mask, and the break of a line (`data.kinds.words`)."""
HALF = 0.5
"""Mean and deviation with which an image's 0..1 becomes -1..1, as networks get them here."""
CODE = ("auto_map", "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
"""What a config.json may name of code that lies elsewhere, and which `transformers` would fetch."""


class HubNetwork(nn.Module):
    """A network of `transformers` that takes inputs as networks get them here, and gives logits.

    Args:
        network: the network.
        fresh: names of its parameters that no file has weights for.
    """

    fixed_tensors: frozenset[str] = frozenset()

    def __init__(self, network: nn.Module, fresh: Sequence[str]) -> None:
        super().__init__()
        self.network, self._fresh = network, tuple(fresh)
        constants = [
            f"network.{place}.{name}"
            for place, module in network.named_modules()
            for name in module._non_persistent_buffers_set
        ]
        self.fixed_tensors = frozenset(constants)

    def classifier_modules(self) -> tuple[str, ...]:
        """Names of the modules that are no part of the pretrained network, or that its file has no weights for."""
        base = getattr(self.network, "base_model_prefix", "")
        beside = [name for name, module in self.network.named_children() if name != base and [*module.parameters()]]
        fresh = [name.rpartition(".")[0] for name in self._fresh if name.partition(".")[0] not in beside]
        return tuple(f"network.{name}" for name in dict.fromkeys((*beside, *fresh)))


class HubText(HubNetwork):
    """Such a network of texts; `settings` has its special tokens."""

    def __init__(self, network: nn.Module, settings: HubNetworkSettings, fresh: Sequence[str]) -> None:
        super().__init__(network, fresh)
        self._first, self._last = (tuple(map(int, each.split())) for each in (settings.first, settings.last))
        self._pad = _pad(network)

    def forward(self, x: Int64[Tensor, "b t"]) -> Float[Tensor, "b k"]:
        """Logits of a batch of texts, codes of tokens of which 0 is the mask."""
        first, last = len(self._first), len(self._last)
        there = torch.nn.functional.pad(x >= OURS, (first, last))
        ids = torch.nn.functional.pad(torch.where(x >= OURS, x - OURS, self._pad), (first, last), value=self._pad)
        places = torch.arange(ids.shape[1], device=x.device)
        there = there | (places == 0)  # of a text without tokens, which has nothing else to look at
        for place, code in enumerate(self._first):
            ids, there = torch.where(places == place, code, ids), there | (places == place)
        length = (there * (places + 1)).amax(1, keepdim=True)
        for place, code in enumerate(self._last):
            here = places == length + place
            ids, there = torch.where(here, code, ids), there | here
        logits: Tensor = self.network(input_ids=ids, attention_mask=there.long()).logits
        return logits


class HubImage(HubNetwork):
    """Such a network of images; `settings` has their means and deviations."""

    def __init__(self, network: nn.Module, settings: HubNetworkSettings, fresh: Sequence[str]) -> None:
        super().__init__(network, fresh)
        self._channels = int(getattr(network.config, "num_channels", 3))
        self._mean, self._deviation = (
            [float(number) for number in each.split()] for each in (settings.mean, settings.deviation)
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits of a batch of images in -1..1; one that is grey has its channel as often as the network wants."""
        if x.shape[1] == 1 != self._channels:
            x = x.expand(-1, self._channels, -1, -1)
        if any(number != HALF for number in (*self._mean, *self._deviation)):
            mean, deviation = (x.new_tensor(each)[:, None, None] for each in (self._mean, self._deviation))
            x = (x * HALF + HALF - mean) / deviation
        logits: Tensor = self.network(pixel_values=x).logits
        return logits


def build_hub(shape: tuple[int, ...], outputs: int, settings: HubSettings | HubNetworkSettings) -> nn.Module:
    """A network of the Hub's, with the weights of its folder, or at random if only its config is there.

    Args:
        shape: of a sample.
        outputs: of the network; a classifier of another size starts at random.
        settings: the folder, or what `describe` made of it.

    Raises:
        UserError: `transformers` is not installed, there is no such folder, or it is for other data.
    """
    found = describe(settings) if isinstance(settings, HubSettings) else settings
    folder = settings.folder if isinstance(settings, HubSettings) else ""
    kind = sample_kind(shape)
    if kind not in ("image", "tokens"):
        raise UserError(
            f'model="hub" is for images and for texts with labels, and the data set is {described_data(shape)}: try '
            'model="auto"'
        )
    transformers = _transformers()
    config = _config(json.loads(found.config), outputs)
    text = kind == "tokens"
    if text:
        _check_text(shape, found, config, folder)
    auto = transformers.AutoModelForSequenceClassification if text else transformers.AutoModelForImageClassification
    try:
        network, fresh = _pretrained(auto, folder, config) if folder else (auto.from_config(config), [])
    except (UserError, MemoryError):
        raise
    except Exception as error:  # of any kind, as `transformers` says what it does not like
        what = "texts" if text else "images"
        raise UserError(f'hub.folder="{folder}" gives no network that classifies {what}: {described(error)}') from error
    if not text:
        return HubImage(network.float(), found, fresh)
    made = HubText(network.float(), found, fresh)
    _check_longest(made, dimensions(shape)[0], folder)
    return made


def _pretrained(auto: Any, folder: str, config: Any) -> tuple[nn.Module, list[str]]:
    network, told = auto.from_pretrained(
        str(Path(folder).expanduser()),
        config=config,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        dtype=torch.float32,
    )
    fresh = sorted({*told["missing_keys"], *(each[0] for each in told["mismatched_keys"])})
    sizes = {n: p.numel() for n, p in network.named_parameters() if n.startswith(f"{network.base_model_prefix}.")}
    if 2 * sum(sizes.get(name, 0) for name in fresh) > sum(sizes.values()):
        raise UserError(
            f'hub.folder="{folder}" has the weights of another network than its config.json says: it lacks '
            f"{', '.join(fresh[:3])} and more"
        )
    if fresh:
        log.warning('hub.folder="%s" has no weights for %s: they start at random', folder, ", ".join(fresh))
    return network, fresh


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "model=\"hub\" needs the package transformers, which is not installed: pip install 'fedham-flwr[lora]'"
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _config(written: Mapping[str, Any], outputs: int) -> Any:
    """The config of a network with so many outputs."""
    data = _data_of(written)
    given = {key: value for key, value in data.items() if key not in ("model_type", "id2label", "label2id")}
    try:
        return _transformers().AutoConfig.for_model(written["model_type"], **{**given, "num_labels": outputs})
    except Exception as error:  # of any kind, as `transformers` says what it does not like
        said = described(error.__cause__ or error)  # a wrong field is its cause
        raise UserError(f"hub.folder has a config.json that transformers does not know: {said}") from error


def _data_of(written: Any) -> Any:
    """A config, and those in it, without what names code."""
    if not isinstance(written, dict):
        return written
    return {key: _data_of(value) for key, value in written.items() if key not in CODE}


def _check_text(shape: tuple[int, ...], found: HubNetworkSettings, config: Any, folder: str) -> None:
    """Refuse texts of other tokens than the network's, or with too many."""
    given = f'hub.folder="{folder}"'
    known, there = int(getattr(config, "vocab_size", 0)), vocabulary(shape) - OURS
    if there > known:
        raise UserError(
            f"{given} knows {known:,} tokens, and the texts have {there:,}: set "
            f'text.tokenizer="{Path(folder) / "tokenizer.json"}"'
        )
    specials = len(found.first.split()) + len(found.last.split())
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and dimensions(shape)[0] + specials > most:
        raise UserError(
            f"{given} takes texts of up to {most - specials} tokens beside {specials} special ones: lower "
            f"sequence-length={dimensions(shape)[0]}"
        )


def _check_longest(network: HubText, length: int, folder: str) -> None:
    """Refuse texts that are longer than the network has positions: some begin to count them behind the padding's."""
    try:
        with torch.no_grad():
            network.eval()(torch.full((1, length), OURS))
    except (IndexError, RuntimeError) as error:
        raise UserError(
            f'hub.folder="{folder}" takes no texts of {length} tokens beside its special ones ({described(error)}): '
            f"lower sequence-length={length}"
        ) from error


def _pad(network: nn.Module) -> int:
    """The code that fills up; 0 where the network has none, for it is not looked at."""
    code = getattr(network.config, "pad_token_id", None)
    return code if isinstance(code, int) and code >= 0 else 0
