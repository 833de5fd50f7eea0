"""Long vectors are worked through in pieces, so that no definition needs a large temporary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

CHUNK = 1 << 15  # entries of a row handled at a time; bounds every temporary


def chunks(start: int, stop: int) -> Iterator[slice]:
    """Consecutive slices of at most ``CHUNK`` entries."""
    for begin in range(start, stop, CHUNK):
        yield slice(begin, min(begin + CHUNK, stop))


def dot_products(rows: Tensor, vectors: Sequence[Tensor], offsets: Sequence[int]) -> Tensor:
    """``[S, m, k]`` float64 products of rows ``[m, N]`` and k vectors, in each segment."""
    shape = (len(offsets) - 1, len(rows), len(vectors))
    products = torch.zeros(shape, dtype=torch.float64, device=rows.device)
    for index, (start, stop) in enumerate(pairwise(offsets)):
        for chunk in chunks(start, stop):
            # A product of two float32 is exact in float64.
            right = torch.stack([vector[chunk].double() for vector in vectors])
            products[index].addmm_(rows[:, chunk].double(), right.T)
    return products
