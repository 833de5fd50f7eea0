"""Products of rows with vectors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .checks import STORAGE_DTYPES, check_offsets, check_rows, names
from .chunks import chunks
from .registry import op


@op(
    "cross_products(Tensor rows, Tensor[] vectors, int[] offsets) -> Tensor",
)
def cross_products(rows: Tensor, vectors: Sequence[Tensor], offsets: Sequence[int]) -> Tensor:
    """Products of every row with every vector, in each segment.

    Args:
        rows: ``[m, N]``.
        vectors: k vectors ``[N]`` of any storage dtypes; may be rows.
        offsets: ``[S + 1]``.

    Returns:
        ``[S, m, k]`` float64, accumulated in float64.

    Raises:
        ValueError: shapes, dtypes or offsets do not fit together.
    """
    check_rows("rows", rows, rows.shape[-1] if rows.ndim else 0)
    check_offsets(offsets, rows.shape[1])
    if not vectors:
        raise ValueError("there are no vectors; pass at least one")
    for vector in vectors:
        if vector.shape != rows.shape[1:] or vector.dtype not in STORAGE_DTYPES:
            raise ValueError(
                f"a vector is {names((vector.dtype,))} {tuple(vector.shape)}; it must have shape "
                f"{tuple(rows.shape[1:])} in one of {names(STORAGE_DTYPES)}"
            )
    shape = (len(offsets) - 1, len(rows), len(vectors))
    products = torch.zeros(shape, dtype=torch.float64, device=rows.device)
    for index, (start, stop) in enumerate(pairwise(offsets)):
        for chunk in chunks(start, stop):
            # A product of two float32 is exact in float64.
            right = torch.stack([vector[chunk].double() for vector in vectors])
            products[index].addmm_(rows[:, chunk].double(), right.T)
    return products
