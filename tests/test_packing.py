"""What travels between the processes of a sharded cohort comes back as it was, and without its neighbours."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedham_flwr.core.parameters import Params
from fedham_flwr.federation import wire
from fedham_flwr.federation.direct import Direct, Reply
from fedham_flwr.federation.messages import ClientFailure, Download, Extras
from fedham_flwr.runners.packing import pack, pack_states, unpack, unpack_states, unwrap, wrap
from fedham_flwr.state.format import Label
from fedham_flwr.state.held import Held


def tree(seed: int, names: tuple[str, ...] = ("a", "b")) -> Params:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(2, 3, generator=draw) for name in names} | {"n": torch.tensor(seed)}


def equal(one: Params, other: Params) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# ---- packing -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), max_size=8))
def test_trees_come_back_as_they_were(seeds: list[int]) -> None:
    trees = [tree(seed) if seed else {} for seed in seeds]
    back = unpack(copy.deepcopy(pack(trees)))
    assert len(back) == len(trees)
    assert all(equal(mine, theirs) for mine, theirs in zip(back, trees, strict=True))


def test_what_several_share_travels_once_and_rows_without_their_neighbours() -> None:
    shared, bank = torch.randn(50, 50), torch.randn(100, 50, 50)
    trees = [{"shared": shared, "row": bank[place]} for place in range(3)]
    packed = pack(trees)
    assert [array.shape for array in packed.arrays] == [(4, 50, 50)]
    assert all(equal(mine, theirs) for mine, theirs in zip(unpack(packed), trees, strict=True))


def test_empty_tensors_and_other_types() -> None:
    trees = [{"none": torch.zeros(0, 3), "count": torch.tensor([1, 2]), "also": torch.zeros(0, 3)}]
    assert equal(unpack(pack(trees))[0], trees[0])


def test_contents_come_back_as_they_were() -> None:
    down = Download(3, tree(1), (1, 8, 8), 10, extras=Extras({"x": torch.ones(2)}, {"place": (4,)}))
    up = Reply("7", tree(2), 64, {"test/global/before/loss": 1.0, "n/test": 4}, {"row": torch.zeros(3)}, True, 2)
    failed = wire.write_failure("the disk is full", simulated=True)
    told, said, refused = unwrap(copy.deepcopy(wrap([Direct(down), Direct(up), failed])))
    back = wire.read_download(told)
    assert equal(back.params, down.params)
    assert back.extras.facts == {"place": (4,)}
    assert equal(back.extras.tensors, down.extras.tensors)
    upload = wire.read_upload(said, 3)
    assert (upload.client, upload.examples, upload.restarted, upload.age) == ("7", 64, True, 2)
    assert equal(upload.params, up.params)
    with pytest.raises(ClientFailure, match="the disk is full"):
        wire.read_upload(refused, 3)


def test_of_what_clients_keep_only_what_is_wanted_is_unpacked() -> None:
    held = {node: Held(tree(node), Label(str(node), "t", "m", "f", 3)) for node in (5, 6, 7)}
    states = copy.deepcopy(pack_states(held))
    found = unpack_states(states, [2, 0])
    assert list(found) == [7, 5]
    assert all(equal(one.params, held[node].params) for node, one in found.items())
    assert found[7].label == held[7].label
