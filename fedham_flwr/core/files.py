"""Files that are whole or not there: written under a temporary name, and renamed."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
"""What may become the name of a file or a folder: a client's id, a training's name."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; it becomes `path` when the block ends well and is removed when not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before going on, so that a power cut does not lose them."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
    """Write a safetensors file and return its path.

    Args:
        path: its name.
        tensors: by name, on any device; memory may be shared between them.
        metadata: stored in the file's header.
    """
    with replacing(path) as part:
        save_file(_plain(tensors), part, dict(metadata))
    return path


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as safetensors wants them: laid out row by row, each in memory of its own; copies only where need be."""
    plain, taken = {}, set()
    for name, tensor in tensors.items():
        one = tensor.detach().cpu().contiguous()
        memory = one.untyped_storage()
        if memory.data_ptr() in taken or memory.nbytes() != one.nbytes:
            one = one.clone()
        taken.add(one.untyped_storage().data_ptr())
        plain[name] = one
    return plain
