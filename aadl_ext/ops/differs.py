"""Whether two vectors are the same, or nearly."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_vector
from .chunks import chunks
from .registry import op


@op("differs(Tensor one, Tensor other, Tensor? scale=None, float tolerance=0.0) -> Tensor")
def differs(
    one: Tensor, other: Tensor, scale: Tensor | None = None, tolerance: float = 0.0
) -> Tensor:
    """Whether two vectors differ in an entry by more than ``tolerance * scale``.

    NaN differs from all.

    Args:
        one: ``[N]``.
        other: ``[N]``.
        scale: ``[]``, of their dtype; None for zero.
        tolerance: at least 0.

    Returns:
        ``[]`` bool, on their device.

    Raises:
        ValueError: shapes or dtypes do not fit together, or the tolerance is negative.
    """
    check_vector("one", one, one.numel(), None)
    check_vector("other", other, one.numel(), one.dtype)
    if tolerance < 0:
        raise ValueError(f"tolerance is {tolerance}; it must be at least 0")
    if scale is not None and (scale.ndim != 0 or scale.dtype != one.dtype):
        raise ValueError(
            f"scale is {scale.dtype} {tuple(scale.shape)}; expected {one.dtype} of shape ()"
        )
    difference = torch.zeros((), dtype=torch.bool, device=one.device)
    within = 0.0 if scale is None else scale * tolerance
    for chunk in chunks(0, one.numel()):
        a, b = one[chunk], other[chunk]
        difference |= ((a != b) & ~((a - b).abs_() <= within)).any()
    return difference
