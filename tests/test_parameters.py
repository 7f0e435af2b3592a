"""Parameter trees: groups, the inverse pair split/merge, the weighted mean against its naive loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedham_flwr.core import parameters, trees
from fedham_flwr.core.parameters import LayerGroup, Manifest, module_group
from fedham_flwr.models import build


class Two(nn.Module):
    """A linear layer and a batch normalisation, whose groups a test may replace."""

    def __init__(self, *groups: LayerGroup) -> None:
        super().__init__()
        self.a = nn.Linear(2, 3)
        self.b = nn.BatchNorm1d(3)
        self._groups = groups

    def layer_groups(self) -> list[LayerGroup]:
        return list(self._groups) or [module_group(self, "a"), module_group(self, "b")]


def ramp(model: nn.Module, start: float) -> parameters.Params:
    """Every tensor of a model filled with start, start + 1, ... so that no two entries are equal."""
    tree, at = {}, start
    for name, tensor in parameters.floating_tensors(model).items():
        tree[name] = torch.arange(at, at + tensor.numel()).reshape(tensor.shape)
        at += tensor.numel()
    return tree


def test_a_group_holds_parameters_and_float_buffers_but_no_counter() -> None:
    group = module_group(Two(), "b")
    assert group.parameters == ("b.weight", "b.bias")
    assert group.buffers == ("b.running_mean", "b.running_var")
    assert group.names == (*group.parameters, *group.buffers)


def test_the_manifest_counts_and_names_in_the_models_order() -> None:
    manifest = Manifest.of(Two())
    assert manifest.group_names == ("a", "b")
    assert manifest.names(["b", "a"]) == ("a.weight", "a.bias", "b.weight", "b.bias", "b.running_mean", "b.running_var")
    assert manifest.count(["a"]) == 2 * 3 + 3
    assert manifest.count() == 9 + 4 * 3


@pytest.mark.parametrize(
    ("groups", "match"),
    [
        ([LayerGroup("a", ("a.weight",))], r"in none \['a.bias', 'b.bias'"),
        (
            [module_group(Two(), "a"), module_group(Two(), "b"), LayerGroup("c", ("a.bias",))],
            r"two groups \['a.bias'\]",
        ),
        ([module_group(Two(), "a"), module_group(Two(), "b"), LayerGroup("c", ("x",))], r"not in the model \['x'\]"),
    ],
)
def test_groups_that_do_not_partition_the_model_are_refused(groups: list[LayerGroup], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Manifest.of(Two(*groups))


def test_a_group_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no layer groups \['head'\]; it has \['a', 'b'\]"):
        Manifest.of(Two()).names(["head"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("a.bias"), r"missing: \['a.bias'\]"),
        (lambda t: t.update(x=torch.zeros(1)), r"not wanted: \['x'\]"),
        (lambda t: t.update({"a.bias": torch.zeros(4)}), r"a.bias has shape \(4,\), wanted \(3,\)"),
        (
            lambda t: t.update({"a.bias": torch.zeros(3, dtype=torch.float64)}),
            r"dtype torch.float64, wanted torch.float32",
        ),
        (lambda t: t.update({"a.bias": torch.tensor([0.0, float("nan"), 0.0])}), r"a.bias holds NaN or infinity"),
        (lambda t: t.update({"a.bias": torch.tensor([0.0, float("inf"), 0.0])}), r"a.bias holds NaN or infinity"),
    ],
)
def test_a_tree_is_refused_for_its_first_fault(change: object, match: str) -> None:
    model = Two()
    manifest, tree = Manifest.of(model), parameters.read(model, Manifest.of(model).names())
    manifest.check(tree, manifest.names())
    change(tree)  # type: ignore[operator]
    with pytest.raises(ValueError, match=match):
        manifest.check(tree, manifest.names())


def test_the_fingerprint_tells_models_apart_and_not_their_values() -> None:
    small, other = build("cnn", (1, 28, 28), 10, 0), build("cnn", (1, 28, 28), 10, 1)
    wide = build("cnn", (1, 28, 28), 11, 0)
    assert Manifest.of(small).fingerprint() == Manifest.of(other).fingerprint()
    assert Manifest.of(small).fingerprint() != Manifest.of(wide).fingerprint()


def test_load_overwrites_everything_and_read_gives_it_back() -> None:
    model = Two()
    model.b(model.a(torch.ones(3, 2)))  # in training mode: statistics and counter move
    assert model.b.num_batches_tracked > 0
    tree = ramp(model, 5.0)
    parameters.load_(model, tree)
    back = parameters.read(model, Manifest.of(model).names())
    assert all(torch.equal(back[name], tree[name]) for name in tree)
    assert model.b.num_batches_tracked == 0


def test_read_gives_copies() -> None:
    model = Two()
    tree = parameters.read(model, ["a.bias"])
    tree["a.bias"].fill_(9)
    assert not bool((model.a.bias == 9).any())


def test_load_refuses_a_part_of_a_model() -> None:
    with pytest.raises(ValueError, match=r"differ from the model's: \['a.bias'"):
        parameters.load_(Two(), {"a.weight": torch.zeros(3, 2)})


@given(st.sets(st.sampled_from(["a.weight", "a.bias", "b.weight", "b.bias", "b.running_mean", "b.running_var"])))
def test_split_and_merge_are_inverse(chosen: set[str]) -> None:
    tree = ramp(Two(), 0.0)
    first, rest = trees.split(tree, chosen)
    assert set(first) == chosen
    assert first.keys().isdisjoint(rest)
    for joined in (trees.merge(first, rest, list(tree)), trees.merge(rest, first, list(tree))):
        assert list(joined) == list(tree)
        assert all(joined[name] is tree[name] for name in tree)


def test_split_and_merge_refuse_what_is_not_an_inverse() -> None:
    tree = ramp(Two(), 0.0)
    with pytest.raises(ValueError, match=r"no tensors named \['x'\]"):
        trees.split(tree, ["x"])
    with pytest.raises(ValueError, match=r"in both trees: \['a.bias'\]"):
        trees.merge({"a.bias": tree["a.bias"]}, tree, list(tree))
    with pytest.raises(ValueError, match=r"differ from the names wanted: \['a.weight'\]"):
        trees.merge({"a.bias": tree["a.bias"]}, {}, ["a.bias", "a.weight"])


def test_the_weighted_mean_by_hand() -> None:
    mean = trees.weighted_mean([{"w": torch.tensor([1.0, 10.0])}, {"w": torch.tensor([4.0, -2.0])}], [1, 3])
    assert torch.equal(mean["w"], torch.tensor([(1 * 1 + 3 * 4) / 4, (1 * 10 + 3 * -2) / 4]))


@given(
    st.integers(1, 6).flatmap(
        lambda n: st.tuples(
            st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3), min_size=n, max_size=n),
            st.lists(st.integers(1, 500), min_size=n, max_size=n),
        )
    )
)
def test_the_weighted_mean_against_a_naive_loop(case: tuple[list[list[float]], list[int]]) -> None:
    values, weights = case
    mean = trees.weighted_mean([{"w": torch.tensor(v)} for v in values], weights)["w"]
    for i in range(3):
        total = 0.0
        for value, weight in zip(values, weights, strict=True):
            total += value[i] * weight
        assert mean[i].item() == pytest.approx(total / sum(weights), rel=1e-5, abs=1e-4)
    stacked = torch.tensor(values)
    assert bool((mean >= stacked.min(0).values - 1e-3).all())
    assert bool((mean <= stacked.max(0).values + 1e-3).all())


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=9), st.floats(-1024, 1024, width=32))
def test_the_mean_of_equal_trees_is_that_tree_bit_for_bit(weights: list[int], value: float) -> None:
    tree = {"w": torch.tensor([value, -value, 1 / 3])}
    assert torch.equal(trees.weighted_mean([tree] * len(weights), weights)["w"], tree["w"])


@pytest.mark.parametrize("weights", [[], [1], [1, 0], [1, -1], [1, float("nan")]])
def test_a_mean_without_proper_weights_is_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        trees.weighted_mean([{"w": torch.ones(1)}] * 2, weights)


def test_delta_is_after_minus_before_so_one_gradient_step_is_minus_rate_times_gradient() -> None:
    w, rate = torch.tensor([3.0], requires_grad=True), 0.1
    (w**2 / 2).sum().backward()
    assert w.grad is not None
    before, after = {"w": w.detach()}, {"w": w.detach() - rate * w.grad}
    assert trees.delta(before, after)["w"].item() == pytest.approx(-rate * 3.0)


def test_stack_makes_the_bank_and_bytes_are_counted() -> None:
    bank = trees.stack([{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])}])
    assert torch.equal(bank["w"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert trees.num_bytes(bank) == 4 * 4


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([1.0, -2.0], True),
        ([3e38, 3e38], True),  # the sum overflows, the entries do not
        ([float("inf"), float("-inf")], False),
        ([0.0, float("nan")], False),
        ([], True),
    ],
)
def test_all_finite(values: list[float], finite: bool) -> None:
    assert parameters.all_finite(torch.tensor(values)) is finite
