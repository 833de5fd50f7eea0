"""Count sketches: short vectors whose products are nearly those of long ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_real
from .chunks import chunks
from .registry import op

LOW = 0xFFFFFFFF


@op("sketch(Tensor[] tensors, int size, float[] weights=[]) -> Tensor")
def sketch(tensors: Sequence[Tensor], size: int, weights: Sequence[float] = ()) -> Tensor:
    """Fold a list of tensors into ``size`` entries, with signs by chance.

    Entry i of the flat vector, in which the tensors lie one behind the other (:func:`gather`), is
    added to entry ``i mod size`` with a sign that depends on i only (Charikar, Chen and
    Farach-Colton 2002, who choose the place by chance, too). Sketches are linear; the product of
    two is that of the vectors, plus an error of mean 0 and of the order of both lengths over the
    root of ``size``; with no more than ``size`` entries there is none.

    Args:
        tensors: one or more, of any shapes, real floating dtypes and memory layouts.
        size: D, at least 1.
        weights: one a tensor, which multiplies it, or none.

    Returns:
        ``[D]`` float64, summed up in float64.

    Raises:
        ValueError: the list is empty, a tensor is complex or of integers, the size is below 1, or
            there are as many weights neither as tensors nor as none.
    """
    if not tensors:
        raise ValueError("the list of tensors is empty; pass at least one")
    if size < 1:
        raise ValueError(f"size is {size}; it must be at least 1")
    if len(weights) not in (0, len(tensors)):
        raise ValueError(
            f"got {len(weights)} weights for {len(tensors)} tensors; pass one each, or none"
        )
    check_real(tensors)
    out = tensors[0].new_zeros(size, dtype=torch.float64)
    end = 0
    for tensor, weight in zip(tensors, weights or [1.0] * len(tensors), strict=True):
        start, end = end, end + tensor.numel()
        flat = tensor.detach().reshape(-1)
        for chunk in chunks(start, end):
            wide = flat[chunk.start - start : chunk.stop - start].double()
            before = chunk.start % size
            after = -(before + len(wide)) % size
            signed = wide * signs(chunk.start, chunk.stop, wide.device) * weight
            out += torch.nn.functional.pad(signed, (before, after)).view(-1, size).sum(dim=0)
    return out


def signs(begin: int, end: int, device: torch.device) -> Tensor:
    """``[end - begin]`` float64, +1 or -1: the last bit of a hash of each index.

    That of 32 bits by Chris Wellons, "lowbias32".
    """
    index = torch.arange(begin, end, device=device)
    x = (index & LOW) ^ ((index >> 32) * 0x9E3779B9 & LOW)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * factor & LOW
    return 1.0 - 2.0 * ((x ^ (x >> 16)) & 1)
