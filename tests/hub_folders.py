"""Folders as the Hub has them, of tiny networks at random; and texts for them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import torch

TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "goal", "match", "bank", "stock", *(f"word{n}" for n in range(20)))


def write_texts(file: Path, sites: int = 2, each: int = 24) -> str:
    """A table of texts with a topic; its path."""
    draw = torch.Generator().manual_seed(0)
    topics = {"sport": ("goal", "match"), "money": ("bank", "stock")}
    with file.open("w", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["text", "topic", "site"])
        for number in range(sites * each):
            name = list(topics)[number // sites % 2]
            numbers = torch.randint(20, (5,), generator=draw).tolist()
            words = [*(f"word{n}" for n in numbers), topics[name][number // (2 * sites) % 2]]
            rows.writerow([" ".join(words), name, f"site{number % sites}"])
    return str(file)


def write_bert(folder: Path, length: int = 16) -> str:
    """A tiny BERT that was trained to fill in masks, with its tokeniser; the folder's path."""
    import transformers
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers import models as kinds

    made = Tokenizer(kinds.WordLevel({word: code for code, word in enumerate(TOKENS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    config = transformers.BertConfig(
        vocab_size=len(TOKENS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=length, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertForMaskedLM(config).save_pretrained(folder)
    made.save(str(folder / "tokenizer.json"))
    return str(folder)


def write_vit(folder: Path, outputs: int = 3) -> str:
    """A tiny vision Transformer for images in colour, with other means than ours; the folder's path."""
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4,
        num_labels=outputs,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.ViTForImageClassification(config).save_pretrained(folder)
    scaling = {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(scaling))
    return str(folder)
