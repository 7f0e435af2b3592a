"""Files that are whole or not there: written under a temporary name, and renamed."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import torch

from fedham_flwr.core.mapped import release

LONGEST = 64
"""Characters of a name that becomes that of a file."""
SAFE_NAME = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{LONGEST - 1}}}")
"""What may become the name of a file or a folder as it is: a client's id, a training's name."""
SAFE_ID = re.compile(rf"[A-Za-z0-9_%-][A-Za-z0-9._%-]{{0,{LONGEST - 1}}}")
"""What `safe_name` gives."""
CHUNK = 1 << 24
"""Bytes that are read, written or compared at a time."""
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16",
}  # fmt: skip
"""Their names in a safetensors file."""
Stamp = tuple[str, int, int, int, int]
"""A file's name, its number on the disk, its bytes, and when it and what the system says of it changed, in ns."""


def safe_name(name: str) -> str:
    """A name for a file, another one for each text: the text itself where it can be, else with %XX for what cannot.

    Args:
        name: any text. One that would get too long keeps its beginning, `%-` and 16 digits of its SHA-256.
    """
    if SAFE_NAME.fullmatch(name):
        return name
    written = quote(name, safe="", errors="surrogatepass").replace("~", "%7E")
    if written.startswith("."):
        written = f"%2E{written[1:]}"
    if not written or len(written) > LONGEST:  # %- comes from nothing else
        digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
        written = f"{written[: LONGEST - 18]}%-{digest}"
    return written


def stamps(files: Iterable[Path]) -> tuple[Stamp, ...]:
    """What tells files from others under the same paths; nothing of them is read, and one that is not there has none.

    Args:
        files: their paths.
    """
    found = []
    for file in files:
        try:
            told = file.stat()
        except OSError:
            continue
        # A copy that keeps its times and has as many bytes still has another number, or another change of status.
        found.append((file.name, told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns))
    return tuple(found)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; it becomes `path` when the block ends well and is removed when not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an error of the system name this file, which some leave out and others call by its temporary name."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(path)
        raise


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before going on, so that a power cut does not lose them."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def link(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system has no hard links, copy it. Neither may be changed in place."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links, or one name too many
        shutil.copy2(source, target)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
    """Write a safetensors file, piece by piece, and return its path.

    Args:
        path: its name.
        tensors: by name, on any device; memory may be shared between them.
        metadata: stored in the file's header.
    """
    with replacing(path) as part, part.open("wb", buffering=0) as file:
        for piece in _pieces(tensors, metadata):
            while len(piece):  # a system writes 2 GiB at most, and less when it likes
                piece = piece[file.write(piece) :]  # noqa: PLW2901
    return path


def holds(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bool:
    """Whether a file is what `write_tensors` would write, byte for byte; False if there is none.

    Args:
        path: of the file.
        tensors: by name.
        metadata: of the header.
    """
    try:
        with path.open("rb") as file:
            # A view is compared item by item, bytes at once.
            same = all(file.read(len(piece)) == bytes(piece) for piece in _pieces(tensors, metadata))
            return same and not file.read(1)
    except OSError:
        return False


def tensor_pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor, row by row, in pieces; what lies in a file does not stay in memory.

    Args:
        tensor: of any shape and layout, on any device.
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    for start in range(0, len(flat), CHUNK):
        yield flat[start : start + CHUNK]
        release(tensor)


def _pieces(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Iterator[memoryview]:
    """The bytes of a safetensors file: its header's length, the header, and the tensors, those of wide types first."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        dtype, shape = DTYPES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for name in names:
        yield from tensor_pieces(tensors[name])


def digest(file: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
