"""Whether two vectors are the same."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_vector
from .chunks import chunks
from .registry import op


@op(
    "differs(Tensor one, Tensor other) -> Tensor",
)
def differs(one: Tensor, other: Tensor) -> Tensor:
    """Whether two vectors differ in an entry; NaN differs from all.

    Args:
        one: ``[N]``.
        other: ``[N]``.

    Returns:
        ``[]`` bool, on their device.

    Raises:
        ValueError: shapes or dtypes do not fit together.
    """
    check_vector("one", one, one.numel(), None)
    check_vector("other", other, one.numel(), one.dtype)
    difference = torch.zeros((), dtype=torch.bool, device=one.device)
    for chunk in chunks(0, one.numel()):
        difference |= (one[chunk] != other[chunk]).any()
    return difference
