"""Streams depend on all of their four names and on nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from fedham_flwr.core.seeding import derive, stream, torch_stream


def test_every_name_makes_a_stream_of_its_own() -> None:
    cases = list(itertools.product((0, 1), ("cohort", "batches"), (0, 1, 11), ("", "1", "11")))
    assert len({derive(*case) for case in cases}) == len(cases)


def test_names_do_not_run_together() -> None:
    assert derive(1, "a", 12, "3") != derive(1, "a", 1, "23")


def test_seeds_are_the_same_on_every_machine() -> None:
    # int(sha256(b"7\x1fcohort\x1f3\x1f").hexdigest()[:16], 16) >> 1
    assert derive(7, "cohort", 3) == 1467252313125402043


def test_streams_repeat_and_touch_no_global_generator() -> None:
    state = torch.get_rng_state()
    a = torch.randn(3, generator=torch_stream(1, "x"))
    assert torch.equal(a, torch.randn(3, generator=torch_stream(1, "x")))
    assert np.array_equal(stream(1, "x").random(3), stream(1, "x").random(3))
    assert torch.equal(state, torch.get_rng_state())
