"""Sums over a block of samples (point, gradient)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_vector
from .chunks import chunks
from .registry import op


@op(
    "add_sample_(Tensor(a!)[] sums, Tensor point, Tensor anchor, Tensor gradient, *, float sign, "
    "Tensor? direction=None) -> Tensor",
)
def add_sample_(
    sums: Sequence[Tensor],
    point: Tensor,
    anchor: Tensor,
    gradient: Tensor,
    *,
    sign: float,
    direction: Tensor | None = None,
) -> Tensor:
    """Add a sample to the sums of a block, and measure its gradient.

    Args:
        sums: three vectors ``[N]``, changed in place: ``point - anchor``, ``gradient`` and
            ``sign * gradient`` are added; the third may be left out. Differences to an
            anchor near the points keep their digits.
        point: ``[N]``.
        anchor: ``[N]``.
        gradient: ``[N]``.
        sign: +1 and -1 by turns, so that the third sum holds noise only.
        direction: ``[N]``, or None for zero.

    Returns:
        ``[2]`` float64: ``|gradient|^2`` and ``gradient . direction``. Not finite if the
        gradient is not; the sums are spoilt then.

    Raises:
        ValueError: shapes or dtypes do not fit together.
    """
    point_sum, gradient_sum, noise_sum = three_sums(sums)
    vectors = {"point": point, "anchor": anchor, "gradient": gradient, "direction": direction}
    vectors.update(point_sum=point_sum, gradient_sum=gradient_sum, noise_sum=noise_sum)
    for name, vector in vectors.items():
        if vector is not None:
            check_vector(name, vector, point.numel(), point.dtype)
    figures = torch.zeros(2, dtype=torch.float64, device=point.device)
    for chunk in chunks(0, point.numel()):
        point_sum[chunk] += point[chunk] - anchor[chunk]
        gradient_sum[chunk] += gradient[chunk]
        if noise_sum is not None:
            noise_sum[chunk].add_(gradient[chunk], alpha=sign)
        wide = gradient[chunk].double()
        figures[0] += wide @ wide
        if direction is not None:
            figures[1] += wide @ direction[chunk].double()
    return figures


def three_sums(sums: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sums of points, gradients and, or None, of noise."""
    if len(sums) not in (2, 3):
        raise ValueError(f"got {len(sums)} sums; expected two or three")
    return sums[0], sums[1], sums[2] if len(sums) == 3 else None
