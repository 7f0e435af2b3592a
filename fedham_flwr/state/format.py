"""The bytes of a client's personal state: what the file says of itself, and how one that is not whole is told.

They are a safetensors file. Its header says what it is: schema, client, training, method, the model's fingerprint, the
round that made it, the version of this project that wrote it, and a checksum: the SHA-256 of the whole file (names,
dtypes, shapes, bytes, in the order of the file, and all of the header) with zeros in the checksum's place.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedham_flwr import __version__
from fedham_flwr.core.errors import first_line
from fedham_flwr.core.parameters import Params

SCHEMA = 1
"""Of the header; a file with a larger one was written by a later version."""
MARK, BLANK = b'"checksum":"', b"0" * 64


class Label(NamedTuple):
    """What a state is.

    Attributes:
        client: id of the client whose state it is.
        training: name of the training that it is part of.
        method: name of the strategy.
        fingerprint: the model's.
        round: number of the round that made it.
        checksum: the file's; empty for a state that is in memory alone.
    """

    client: str
    training: str
    method: str
    fingerprint: str
    round: int = 0
    checksum: str = ""

    @classmethod
    def read(cls, given: Mapping[str, object]) -> Label:
        """A label of texts by name, as a file and a record have it.

        Raises:
            KeyError, ValueError: it is none.
        """
        client, training, method, fingerprint, number, checksum = (str(given[name]) for name in cls._fields)
        return cls(client, training, method, fingerprint, int(number), checksum)

    def texts(self) -> dict[str, str]:
        """The inverse of `read`."""
        return {name: str(value) for name, value in self._asdict().items()}

    def check(self, wanted: Label) -> None:
        """Compare all but round and checksum.

        Raises:
            UnfitError: they differ.
        """
        for what in ("client", "training", "method"):
            is_, should = getattr(self, what), getattr(wanted, what)
            if is_ != should:
                name = "strategy" if what == "method" else what
                raise UnfitError(f"other-{what}", f"belongs to {name} {is_!r}, wanted {should!r}")
        if self.fingerprint != wanted.fingerprint:
            is_, should = self.fingerprint[:12], wanted.fingerprint[:12]
            raise UnfitError("other-model", f"belongs to another model (fingerprint {is_}, wanted {should})")


class UnfitError(Exception):
    """This is not the state that is wanted.

    Args:
        why: one word for it: corrupt, older, newer, or other- and what it belongs to another of.
        text: the same as the rest of a sentence.
    """

    def __init__(self, why: str, text: str) -> None:
        super().__init__(text)
        self.why = why


def seal(tensors: Mapping[str, Tensor], label: Label) -> tuple[bytes, Label]:
    """The bytes of a file, and its label with the checksum.

    Args:
        tensors: the state, on any device.
        label: what it is; its checksum is not read.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    blank = label._replace(checksum=BLANK.decode()).texts()
    raw = bytearray(save(plain, {"schema": str(SCHEMA), "version": __version__, **blank}))
    checksum = hashlib.sha256(raw).hexdigest()
    at = raw.index(MARK) + len(MARK)
    raw[at : at + len(BLANK)] = checksum.encode()
    return bytes(raw), label._replace(checksum=checksum)


def unseal(raw: bytes) -> tuple[Params, Label]:
    """The inverse of `seal`, once every byte has been checked.

    Raises:
        UnfitError: they are corrupt, or of another version.
    """
    found = header(raw)
    _check_schema(found)
    _check_whole(raw, found.get("checksum", ""))
    try:
        return load(raw), Label.read(found)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise UnfitError("corrupt", f"is corrupt: {first_line(error)}") from error


def header(raw: bytes) -> dict[str, str]:
    """What the header claims; nothing of it is verified.

    Args:
        raw: a file, from its beginning to the end of the header at least.

    Raises:
        UnfitError: this is no safetensors file.
    """
    end = 8 + int.from_bytes(raw[:8], "little")
    try:
        if len(raw) < end:
            raise ValueError("the header is longer than the file")
        found = json.loads(raw[8:end])["__metadata__"]
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise TypeError("the label is none")
    except KeyError:
        return {}  # safetensors without a label
    except (ValueError, TypeError, RecursionError) as error:
        raise UnfitError("corrupt", "is corrupt: it is no safetensors file") from error
    return found


def _check_schema(found: Mapping[str, str]) -> None:
    schema = found.get("schema", "")
    if not schema:
        raise UnfitError("older", "is not of this version of fedham-flwr: its header has no schema")
    if schema != str(SCHEMA):
        version = found.get("version", "?")
        raise UnfitError("newer", f"is of fedham-flwr {version}: its schema is {schema}, wanted {SCHEMA}")


def _check_whole(raw: bytes, checksum: str) -> None:
    if re.fullmatch("[0-9a-f]{64}", checksum):
        at, rest = raw.find(checksum.encode()), memoryview(raw)
        digest = hashlib.sha256(rest[:at])
        digest.update(BLANK)
        digest.update(rest[at + len(BLANK) :])
        if digest.hexdigest() == checksum:
            return
    raise UnfitError("corrupt", "is corrupt: its checksum is wrong")
