"""The CUDA kernels emulated on the host, in several schedules of their threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lab
import pytest

cuda: Any = lab.load().cuda
# Chunks have 2048 entries of float32 and 1024 of float64; products go by 128.
EDGES = [0, 1, 7, 128, 1023, 1024, 1025, 2047, 2048, 2049, 5003]


@pytest.fixture(params=[0, 1], ids=["natural", "shuffled"])
def schedule(request: pytest.FixtureRequest) -> Iterator[int]:
    """Threads in turn, and threads and blocks in an order drawn from a seed."""
    cuda.set_schedule(request.param)
    yield request.param
    cuda.set_schedule(0)


@pytest.fixture(params=[4096, 2], ids=["many tiles", "two tiles"])
def tiles(request: pytest.FixtureRequest) -> Iterator[int]:
    """Tiles of one chunk, and of several."""
    cuda.set_most_tiles(request.param)
    yield request.param
    cuda.set_most_tiles(4096)


def in_both_schedules(run: Callable[[], Any], seed: int = 1) -> Any:
    """Results of a run in the natural and in a shuffled schedule, which have the same bits."""
    natural = run()
    cuda.set_schedule(seed)
    try:
        shuffled = run()
    finally:
        cuda.set_schedule(0)
    both = zip(
        *((r.values() if isinstance(r, dict) else [r]) for r in (natural, shuffled)), strict=True
    )
    assert all(lab.same_bits(*pair) for pair in both)
    return natural
