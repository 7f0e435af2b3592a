"""Which networks can be run for many clients at once, and which say why they cannot."""

from __future__ import annotations

import torch
from cohorts import Deciding, Scaled, Words
from torch import Tensor

from fedham_flwr.models import NetworkSettings, build
from fedham_flwr.models.mlp import MLP
from fedham_flwr.training.engine.cohort import in_cohort, run_together
from fedham_flwr.training.engine.network import StackedNetwork


def test_a_network_that_mixes_samples_is_not_folded() -> None:
    class Mixing(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x - x.mean(0))

    assert StackedNetwork(Mixing(), [torch.zeros(2, 5)]).way == "vmap"


def test_a_network_that_decides_by_values_says_so() -> None:
    network = StackedNetwork(Deciding(), [torch.zeros(2, 5)])
    assert network.way == "none"
    assert network.why.startswith("it decides by a value of its input or weights")


def test_a_large_network_is_not_tried() -> None:
    network = StackedNetwork(MLP((2, 3), 4), [torch.zeros(2, 2, 3)], large=10)
    assert (network.way, network.products) == ("none", 6 * 64 + 64 * 64 + 64 * 4)
    assert network.why == "a sample takes 4,736 multiply-adds, enough for one at a time"


def test_an_embedding_is_looked_up_in_each_clients_own_table() -> None:
    network = StackedNetwork(Words(), [torch.zeros(2, 3, dtype=torch.int64)])
    assert network.way == "folded"


def test_outside_of_a_cohort_nobody_is_in_one() -> None:
    assert not in_cohort()
    assert run_together([in_cohort]) == [True]


def test_the_trial_leaves_the_model_as_it_was() -> None:
    model = build("lenet-bn", (1, 28, 28), 10, 0, NetworkSettings())
    was = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert StackedNetwork(model, [torch.zeros(2, 1, 28, 28)]).way == "folded"
    assert all(torch.equal(tensor, was[name]) for name, tensor in model.state_dict().items())
    assert model.training
