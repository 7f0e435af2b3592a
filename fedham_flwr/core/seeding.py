"""Randomness is a function of (seed, purpose, round, client), and of nothing else.

One stream per purpose: drawing one number more for the cohort moves no client's batches, and the order in which
workers happen to run clients changes nothing. No code of this project touches a global generator.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive(seed: int, purpose: str, round_number: int = 0, client: str = "") -> int:
    """A 63-bit seed for one stream, the same on every machine.

    Args:
        seed: the run's seed.
        purpose: what the stream is for, such as "cohort" or "batches".
        round_number: the server round, 0 when the stream serves the whole run.
        client: the client id, empty when the stream is the server's.
    """
    text = "\x1f".join((str(seed), purpose, str(round_number), client))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, purpose: str, round_number: int = 0, client: str = "") -> np.random.Generator:
    """A NumPy generator for one purpose; arguments as in `derive`."""
    return np.random.default_rng(derive(seed, purpose, round_number, client))


def torch_stream(seed: int, purpose: str, round_number: int = 0, client: str = "") -> torch.Generator:
    """A torch generator (on the CPU) for one purpose; arguments as in `derive`."""
    return torch.Generator().manual_seed(derive(seed, purpose, round_number, client))
