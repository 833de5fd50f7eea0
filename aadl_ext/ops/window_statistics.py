"""Mean and spread of the last iterates (Eq. 11, 15 and 16)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_vector
from .chunks import chunks
from .registry import op


@op(
    "window_statistics(Tensor[] window, Tensor(a!) out) -> Tensor",
    fresh=("out",),
)
def window_statistics(window: Sequence[Tensor], out: Tensor) -> Tensor:
    """Mean and largest standard deviation over a window of iterates (Eq. 11, 15, 16).

    Population variance from differences to the newest iterate, so that small changes of
    large weights keep their digits; never negative.

    Args:
        window: t >= 1 iterates ``[N]``, the newest last.
        out: ``[N]``, receives the mean; must not overlap the iterates.

    Returns:
        ``[]`` the largest standard deviation, NaN if an entry is NaN or infinite.

    Raises:
        ValueError: the window is empty; shapes or dtypes do not fit together.
    """
    if not window:
        raise ValueError("the window is empty; pass at least one iterate")
    check_vector("out", out, out.numel(), None)
    for iterate in window:
        check_vector("window", iterate, out.numel(), out.dtype)
    count = len(window)
    peaks = [out.new_zeros(())]
    for chunk in chunks(0, out.numel()):
        anchor = window[-1][chunk]
        # Deviations from the newest iterate are small, so nothing cancels in their squares.
        deviation = torch.stack([iterate[chunk] for iterate in window]) - anchor  # [t, chunk]
        total = deviation.sum(dim=0)
        variance = (deviation.square_().sum(dim=0) - total.square() / count) / count
        peaks.append(variance.amax())
        torch.add(anchor, total, alpha=1 / count, out=out[chunk])
    # A NaN passes through both maxima on purpose.
    return torch.stack(peaks).amax().sqrt()
