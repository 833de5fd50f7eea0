"""Tall-skinny QR in pure PyTorch: its definition, beside the other ones in ``reference.py``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .reference import CHUNK

TILE = 256  # rows of a leaf


def tsqr(matrix: Tensor, append: Tensor | None, offsets: Sequence[int] | None) -> Tensor:
    """R of tiles of rows, and of pairs of R, until one is left."""
    if offsets is not None:
        pieces = [slice(start, stop) for start, stop in pairwise(offsets)]
        factors = [
            tsqr(matrix[piece], None if append is None else append[piece], None) for piece in pieces
        ]
        return torch.stack(factors)
    rows, columns = matrix.shape[-2], matrix.shape[-1] + (append is not None)
    wide = torch.float64 in (matrix.dtype, None if append is None else append.dtype)
    dtype = torch.float64 if wide else torch.float32
    factors = []
    step = max(1, CHUNK // TILE) * max(TILE, 2 * columns)
    for start in range(0, rows, step):
        block = matrix[..., start : start + step, :].to(dtype)
        if append is not None:
            block = torch.cat([block, append[..., start : start + step, None].to(dtype)], dim=-1)
        factors.append(_reduce_tree(_leaves(block)))
    if not factors:
        return torch.zeros(*matrix.shape[:-2], columns, columns, dtype=dtype, device=matrix.device)
    factor = _reduce_tree(torch.stack(factors, dim=-3))
    sign = torch.where(factor.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    return factor * sign.unsqueeze(-1)


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
