"""What the engine does when memory runs out, and data sets that stay on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cohorts import CPU, MOMENTUM, NETWORKS, TIGHT, dealt, far, models, one_at_a_time, stream, together, trainer

from fedham_flwr.core.errors import UserError
from fedham_flwr.training.engine import engine as engines
from fedham_flwr.training.engine import memory
from fedham_flwr.training.engine.cohort import CohortTrainer, run_together
from fedham_flwr.training.engine.memory import Resident
from fedham_flwr.training.engine.rows import Rows
from fedham_flwr.training.losses import TASK_LOSS

FULL = [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("[enforce fail] can't allocate memory: you tried")]


def at_most(monkeypatch: pytest.MonkeyPatch, name: str, most: int, error: BaseException, tried: list[int]) -> None:
    """Have a computation of more clients than that run out of memory, once it has drawn its batches."""
    honest = getattr(engines, name)

    def limited(model: Any, requests: Sequence[Any]) -> Any:
        tried.append(len(requests))
        found = honest(model, requests)
        if len(requests) > most:
            raise error
        return found

    monkeypatch.setattr(engines, name, limited)


@pytest.mark.parametrize("error", FULL)
def test_a_block_that_does_not_fit_is_halved_and_stays_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    alone, engine = trainer(*NETWORKS["digits-cnn"], torch.float64)
    data, starts, tried = dealt(NETWORKS["digits-cnn"][1], [9, 5, 20, 3, 8, 8, 1]), models(alone, 7), []
    at_most(monkeypatch, "fit", 2, error, tried)
    found = together(engine, starts, data, MOMENTUM)
    wanted = one_at_a_time(alone, starts, data, MOMENTUM)
    assert max(far(mine[0], theirs[0]) for mine, theirs in zip(found, wanted, strict=True)) < TIGHT
    assert tried == [7, 4, 2, 2, 3, 2]
    assert [record.message for record in caplog.records] == [
        "the memory is full: 7 clients at once do not fit, and 4 are tried",
        "the memory is full: 4 clients at once do not fit, and 2 are tried",
    ]
    tried.clear()
    together(engine, starts, data, MOMENTUM)
    assert tried == [2, 2, 2]


def test_gradients_are_of_the_same_batches_when_a_block_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, engine = trainer(*NETWORKS["mlp"], torch.float64)
    data, starts = dealt(NETWORKS["mlp"][1], [9, 12, 20, 7]), models(alone, 4)

    def task(place: int) -> Any:
        view = CohortTrainer(engine)
        view.load(starts[place])
        return view.gradient(data[place], "train", 4, stream(place), TASK_LOSS)

    def found() -> list[Any]:
        return run_together([lambda place=place: task(place) for place in range(4)])  # type: ignore[misc]

    wanted = found()
    at_most(monkeypatch, "gradient", 2, FULL[0], [])
    assert max(far(mine, theirs) for mine, theirs in zip(found(), wanted, strict=True)) < TIGHT


def test_one_client_that_does_not_fit_says_which_setting_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, engine = trainer(*NETWORKS["mlp"], torch.float64)
    monkeypatch.setattr(type(alone), "fit", lambda *_, **__: (_ for _ in ()).throw(FULL[0]))
    with pytest.raises(UserError, match="one client does not fit into the memory of cpu: lower batch-size"):
        together(engine, models(alone, 1), dealt(NETWORKS["mlp"][1], [9]), MOMENTUM)


def test_other_errors_are_no_full_memory() -> None:
    assert not memory.ran_out(RuntimeError("shapes differ"))
    assert memory.ran_out(MemoryError())


class Elsewhere(Resident):
    """A device whose tensors the processor sees too, so that it can be tried without one."""

    def __init__(self) -> None:
        super().__init__(torch.device("meta"))


@pytest.mark.parametrize(("free", "stays"), [(100_000, True), (1_000, False)])
def test_a_data_set_is_moved_once_where_it_fits(monkeypatch: pytest.MonkeyPatch, free: int, stays: bool) -> None:
    asked: list[int] = []
    monkeypatch.setattr(memory, "free", lambda _: free)
    monkeypatch.setattr(memory, "moved", lambda tensor, _: asked.append(tensor.numel()) or tensor.clone())
    resident, data = Elsewhere(), dealt((1, 8, 8), [5, 4])
    first = Rows.of(data, ["train", "train"], resident, CPU)
    again = Rows.of(data, ["train", "train"], resident, CPU)
    assert (asked == [9 * 64, 9]) is stays
    assert (again.features is first.features) is stays
    for rows in (first, again):
        x, y = rows.take(rows.index[1], "array")
        assert torch.equal(x, data[1].features[data[1].splits["train"]])
        assert torch.equal(y, data[1].labels[data[1].splits["train"]])
