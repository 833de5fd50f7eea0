"""Tall and skinny QR (Demmel et al. 2012), R only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .checks import STORAGE_DTYPES, check_offsets, names
from .chunks import chunk_size
from .registry import op

TILE = 256  # rows of a leaf


def tsqr(
    matrix: Tensor,
    *,
    append: Tensor | None = None,
    offsets: Sequence[int] | None = None,
) -> Tensor:
    """R factor of tall and skinny matrices by a tree of small QR factorisations.

    Tiles of rows are factored on their own and their R factors joined pairwise in an
    order that depends on the shape only (Demmel et al. 2012, "Communication-optimal
    parallel and sequential QR and LU"). Q is never formed.

    Args:
        matrix: ``[..., n, k]``, k >= 1, any n (also 0 or below k), any strides. Computed in
            float64 if it or ``append`` is, else in float32.
        append: ``[..., n]``, one more column behind the others.
        offsets: for a single matrix ``[n, k]``: factor each of the S blocks of rows
            ``offsets[s]:offsets[s + 1]`` on its own.

    Returns:
        ``[..., k, k]``, or ``[S, k, k]`` with offsets (k + 1 with ``append``): upper
        triangular, diagonal >= 0, float32 or float64.

    Raises:
        ValueError: shapes, dtypes or offsets do not fit together.
    """
    if matrix.ndim < 2 or matrix.shape[-1] < 1:
        raise ValueError(f"matrix has shape {tuple(matrix.shape)}; expected [..., n, k >= 1]")
    if matrix.dtype not in STORAGE_DTYPES:
        raise ValueError(f"matrix is {matrix.dtype}; allowed are {names(STORAGE_DTYPES)}")
    if append is not None and append.dtype not in STORAGE_DTYPES:
        raise ValueError(f"append is {append.dtype}; allowed are {names(STORAGE_DTYPES)}")
    if append is not None and append.shape != matrix.shape[:-1]:
        raise ValueError(
            f"append has shape {tuple(append.shape)}; for a matrix of {tuple(matrix.shape)} "
            f"it must be {tuple(matrix.shape[:-1])}"
        )
    if offsets is not None:
        if matrix.ndim != 2:
            raise ValueError(f"offsets need a single matrix [n, k], got {tuple(matrix.shape)}")
        check_offsets(offsets, matrix.shape[0])
    *batch, length, columns = matrix.shape
    rows = matrix.movedim(-1, 0).reshape(columns, -1)  # a view, but of batches with gaps
    if append is not None:
        wide = torch.float64 in (matrix.dtype, append.dtype)
        append = append.reshape(-1).to(torch.float64 if wide else torch.float32).contiguous()
    # A batch of equal matrices is one long matrix, factored in equal pieces.
    pieces = offsets or [index * length for index in range(math.prod(batch) + 1)]
    factor: Tensor = _tsqr(rows, append, pieces)
    return factor if offsets is not None else factor.reshape(*batch, *factor.shape[1:])


@op("tsqr(Tensor rows, Tensor? append, int[] offsets) -> Tensor")
def _tsqr(
    rows: Tensor,  # [k, n], any strides: the columns of the matrix
    append: Tensor | None,  # [n]
    offsets: Sequence[int],  # [S + 1]
) -> Tensor:
    pieces = [slice(start, stop) for start, stop in pairwise(offsets)]
    columns = len(rows) + (append is not None)
    wide = torch.float64 in (rows.dtype, None if append is None else append.dtype)
    dtype = torch.float64 if wide else torch.float32
    factors = [_factor(rows[:, x], None if append is None else append[x], dtype) for x in pieces]
    return torch.stack(factors) if factors else rows.new_zeros(0, columns, columns, dtype=dtype)


def _factor(rows: Tensor, append: Tensor | None, dtype: torch.dtype) -> Tensor:
    """R of tiles of rows, and of pairs of R, until one is left."""
    columns, length = len(rows) + (append is not None), rows.shape[1]
    factors = []
    step = max(1, chunk_size() // TILE) * max(TILE, 2 * columns)
    for start in range(0, length, step):
        block = rows[:, start : start + step].T.to(dtype)
        if append is not None:
            block = torch.cat([block, append[start : start + step, None].to(dtype)], dim=-1)
        factors.append(_reduce_tree(_leaves(block)))
    if not factors:
        return torch.zeros(columns, columns, dtype=dtype, device=rows.device)
    factor = _reduce_tree(torch.stack(factors))
    negative = (factor.diagonal() < 0).unsqueeze(-1)
    return torch.where(negative, -factor, factor)


def _leaves(block: Tensor) -> Tensor:
    """R factors of tiles of rows: [..., n, k] -> [..., tiles, k, k]; zero rows fill the last."""
    rows, columns = block.shape[-2:]
    tile = min(max(TILE, 2 * columns), max(rows, columns))
    missing = -rows % tile
    if missing:
        block = torch.cat([block, block.new_zeros(*block.shape[:-2], missing, columns)], dim=-2)
    return _r_factor(block.reshape(*block.shape[:-2], (rows + missing) // tile, tile, columns))


def _reduce_tree(factors: Tensor) -> Tensor:
    """[..., count, k, k] -> [..., k, k], neighbours pairwise, an odd one carried up."""
    *batch, count, columns, _ = factors.shape
    while count > 1:
        even = count - count % 2
        pairs = factors[..., :even, :, :].reshape(*batch, even // 2, 2 * columns, columns)
        factors = torch.cat([_r_factor(pairs), factors[..., even:, :, :]], dim=-3)
        count = factors.shape[-3]
    return factors.squeeze(-3)


def _r_factor(tall: Tensor) -> Tensor:
    factor: Tensor = torch.linalg.qr(tall, mode="r").R
    return factor
