"""Kernels agree with the definitions, and by bits with themselves.

That is again, elsewhere in memory, on other threads and in another order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from cases import CASES, every_op
from strategies import same_bits
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from aadl_ext.ops import library

# The longest, from about 32 MiB on, are written past the caches of the CPU.
SIZES = [300, 5003, pytest.param(1_500_021, marks=pytest.mark.long)]
sizes = pytest.mark.parametrize("size", SIZES)


@pytest.fixture(autouse=True)
def _kernels(backend: str, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    if backend == "definition":
        pytest.skip("of kernels")
    caplog.set_level(logging.DEBUG, "aadl_ext")
    yield
    assert not caplog.records, "a kernel left the work to the definition"


@lru_cache(maxsize=1)
def arguments_of(name: str, size: int) -> dict[str, Any]:
    return CASES[name][1](size)


def run(name: str, size: int, shift: int = 0) -> list[Tensor]:
    """Results and arguments, each of which begins ``shift`` entries after an aligned place."""

    def moved(tensor: Tensor) -> Tensor:
        if shift == 0 or tensor.ndim == 0:
            return tensor.clone()
        *rows, length = tensor.mT.shape if name == "tsqr" and tensor.ndim == 2 else tensor.shape
        gap = 64 if rows and tensor.dtype == torch.float32 else 0  # small matrices have none
        room = torch.full((*rows, length + gap), 7, dtype=tensor.dtype)
        room = torch.cat([room.new_full((shift,), 7), room.flatten(), room.new_full((64,), 7)])
        strides = torch.empty(*rows, length + gap).stride()
        view = room.as_strided((*rows, length), strides, shift)
        view = view.mT if view.shape != tensor.shape else view
        rooms.append((room, view))
        return view.copy_(tensor)

    rooms: list[tuple[Tensor, Tensor]] = []
    arguments: Any = tree_map_only(Tensor, moved, arguments_of(name, size))
    found = CASES[name][0](**arguments)
    leaves = [leaf.clone() for leaf in tree_leaves((found, arguments)) if isinstance(leaf, Tensor)]
    for room, view in rooms:
        view.fill_(7)
        assert (room == room[0]).all(), "written beside a tensor"
    return leaves


@every_op
@sizes
def test_again_and_elsewhere_in_memory(size: int, name: str) -> None:
    first = run(name, size)
    with library.definitions_only():
        expected = run(name, size)
    for one, other in zip(first, expected, strict=True):
        close = 1e-4 * float(other.double().abs().amax())
        torch.testing.assert_close(one, other, rtol=1e-4, atol=close)
    for shift in (0, 1, 3, 4) if size < 10**6 else (0, 3):
        again = run(name, size, shift)
        if name == "squared_norm" and shift:  # CUDA sums other packs of entries
            torch.testing.assert_close(again, first, rtol=1e-14, atol=0)
        else:
            assert all(map(same_bits, again, first)), shift


@pytest.mark.not_on_cuda("threads of the CPU")
@every_op
@sizes
def test_on_any_number_of_threads(size: int, name: str) -> None:
    held, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(name, size))
    finally:
        torch.set_num_threads(held)
    assert all(all(map(same_bits, other, found[0])) for other in found[1:])


@every_op
def test_in_any_order_of_threads_of_a_block(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not backend.startswith("emulated"):
        pytest.skip("of the emulation")
    found = []
    for seed in ("0", "1", "2"):
        monkeypatch.setenv("AADL_SCHEDULE", seed)
        found.append(run(name, 5003))
    assert all(all(map(same_bits, other, found[0])) for other in found[1:])
