"""What a server half's state_dict holds is all that another one needs to go on, and the state of another is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from test_rounds import every_method, server_half

from fedham_flwr.client_app import make_client_app
from fedham_flwr.federation.record_values import tensors as read_tensors
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.settings import Value


@every_method
def test_half_a_run_and_the_rest_from_its_state_are_the_whole_run(
    settings: Callable[..., dict[str, Value]], strategy: str
) -> None:
    """The server is made anew after round 2 and knows its state_dict only; the clients keep what they keep."""
    chosen = settings(strategy=strategy, samples_per_client=64)
    states = []
    for stops in ((3,), (2, 3)):
        grid, first, state = InProcessGrid(make_client_app(chosen), 4), 1, None
        for stop in stops:
            server = server_half(chosen)
            if state is not None:
                server.load_state_dict({name: tensor.clone() for name, tensor in state.items()})
            for number in range(first, stop + 1):
                messages = server.configure_train(number, ArrayRecord(), ConfigRecord(), grid)
                server.aggregate_train(number, grid.send_and_receive(messages))
            first, state = stop + 1, server.state_dict()
        states.append((state, [c.state for c in grid.contexts.values()]))
    (whole, clients), (halves, again) = states
    assert whole.keys() == halves.keys()
    assert all(torch.equal(tensor, halves[name]) for name, tensor in whole.items())
    for one, other in zip(clients, again, strict=True):
        for name, record in one.array_records.items():
            tensors = read_tensors(other.array_records[name])
            assert all(torch.equal(tensor, tensors[key]) for key, tensor in read_tensors(record).items())


@every_method
def test_the_state_of_another_model_is_refused(settings: Callable[..., dict[str, Value]], strategy: str) -> None:
    server = server_half(settings(strategy=strategy))
    server.add_clients(("0", "1", "2"))
    state = server.state_dict()
    server.load_state_dict(dict(state))
    with pytest.raises(ValueError, match="wanted"):
        server.load_state_dict({**state, "x": torch.zeros(1)})
    for name in state:
        with pytest.raises(ValueError, match=r"wanted|missing"):
            server.load_state_dict({**state, name: torch.zeros(3, 1, 7)})
        with pytest.raises(ValueError, match="missing"):
            server.load_state_dict({key: tensor for key, tensor in state.items() if key != name})
