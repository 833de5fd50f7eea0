"""Norm of a list of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_real
from .chunks import chunks
from .registry import op


@op(
    "squared_norm(Tensor[] tensors) -> Tensor",
    any_device=True,
)
def squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of the squares of all entries; NaN or infinite if an entry is.

    Args:
        tensors: one or more, of any shapes, real floating dtypes and memory layouts.

    Returns:
        ``[]`` float64, on the device of the first; accumulated in float64.

    Raises:
        ValueError: the list is empty, or a tensor is complex or of integers.
    """
    if not tensors:
        raise ValueError("the list of tensors is empty; pass at least one")
    check_real(tensors)
    total = tensors[0].new_zeros((), dtype=torch.float64)
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        for chunk in chunks(0, flat.numel()):
            wide = flat[chunk].double()
            total += wide.dot(wide).to(total.device)
    return total
