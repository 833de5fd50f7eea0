"""The way of tensors to a device and back, on the CPU, where the copies are seen as well."""

from __future__ import annotations

import pytest
import torch
from cases import CASES
from on_device import OnDevice, gpu_missing
from strategies import same_bits
from torch import Tensor
from torch.utils._pytree import tree_leaves


def test_ops_are_tested_on_a_gpu() -> None:
    if gpu_missing():
        pytest.skip(str(gpu_missing()))


@pytest.mark.parametrize("name", CASES)
def test_results_and_changes_come_back(name: str) -> None:
    op, make, _ = CASES[name]
    ours, theirs = make(), make()
    with OnDevice("cpu"):
        found = op(**ours)
    expected = op(**theirs)
    leaves = [[t for t in tree_leaves(x) if isinstance(t, Tensor)] for x in (found, ours)]
    others = [[t for t in tree_leaves(x) if isinstance(t, Tensor)] for x in (expected, theirs)]
    for mine, right in zip(leaves, others, strict=True):
        assert all(map(same_bits, mine, right))


def test_what_shares_memory_still_does_and_only_copies_are_worked_on() -> None:
    room = torch.arange(20.0)
    vectors, addresses = room.view(4, 5), []

    class Spy(OnDevice):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            addresses.extend(t.data_ptr() for t in args if isinstance(t, Tensor))
            return super().__torch_dispatch__(func, types, args, kwargs)

    with Spy("cpu"):
        sizes = torch.ops.aadl_ext.extrapolate_(
            vectors[0], vectors[0], vectors[1], 1.0, vectors[2:], torch.ones(1, 2).double(), [0, 5]
        )
    assert vectors[0].tolist() == [-20, -21, -22, -23, -24]
    assert sizes[0] == 24
    assert room[5:].tolist() == list(range(5, 20))
    assert addresses
