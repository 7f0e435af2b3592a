"""Kinds of samples, as networks are chosen and refused by them."""

from __future__ import annotations

from fedham_flwr.core.shapes import sample_kind

AUTO = {"table": "mlp", "series": "cnn1d", "text": "char-transformer", "tokens": "fasttext"}
"""What the network `auto` stands for, but for images, of which it depends on the size."""
NAMED = {
    "image": "images",
    "text": "text",
    "table": "tables",
    "series": "series",
    "tokens": "texts with labels",
}
"""Kinds of samples, in sentences."""


def described_data(shape: tuple[int, ...]) -> str:
    """What samples of a shape are, in a sentence.

    Args:
        shape: as `core.shapes` has it.
    """
    kind = sample_kind(shape)
    if kind == "image":
        return f"images of {' x '.join(map(str, shape[1:]))} pixels"
    if kind == "table":
        return f"a table of {shape[1]} columns"
    if kind == "series":
        return f"series of {shape[0] // 2} channels and {shape[1]} steps"
    if kind == "array":
        return f"arrays of the shape {shape}"
    return f"{NAMED[kind]}, {shape[0]} tokens a sample"
