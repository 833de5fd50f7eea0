"""Sums over a block of samples (point, gradient)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_alike, check_flat, check_vector
from .chunks import chunks
from .registry import op


@op(
    "add_sample_(Tensor(a!)[] sums, Tensor[] points, Tensor anchor, Tensor[] gradients, *, "
    "float sign, Tensor? direction=None, float[] decays=[]) -> Tensor",
)
def add_sample_(
    sums: Sequence[Tensor],
    points: Sequence[Tensor],
    anchor: Tensor,
    gradients: Sequence[Tensor],
    *,
    sign: float,
    direction: Tensor | None = None,
    decays: Sequence[float] = (),
) -> Tensor:
    """Add a sample to the sums of a block, and measure its gradient.

    Args:
        sums: three vectors ``[N]``, changed in place: ``point - anchor``, ``gradient`` and
            ``sign * gradient`` are added; the third, or both of gradients, may be left out.
            Differences to an anchor near the points keep their digits.
        points: any shapes, real floating dtypes and memory layouts, together at most N entries:
            one behind the other, as of :func:`gather`, they are the point.
        anchor: ``[N]``.
        gradients: of the same shapes.
        sign: weight of the gradient in the third sum; those of a block are such that it holds
            noise only, +1 and -1 by turns or a higher difference.
        direction: ``[N]``, or None for zero.
        decays: one a gradient, or none: weight decay in the loss, ``decay * point`` is added to it.

    Returns:
        ``[2]`` float64: ``|gradient|^2`` and ``gradient . direction``. Not finite if the
        gradient is not; the sums are spoilt then.

    Raises:
        ValueError: shapes or dtypes do not fit together.
    """
    point_sum, gradient_sum, noise_sum = three_sums(sums, least=1)
    vectors = {"anchor": anchor, "direction": direction, "noise_sum": noise_sum}
    vectors.update(point_sum=point_sum, gradient_sum=gradient_sum)
    for name, vector in vectors.items():
        if vector is not None:
            check_vector(name, vector, anchor.numel(), anchor.dtype)
    check_flat(points, anchor, "anchor")
    check_alike("gradients", gradients, "points", points)
    if len(decays) not in (0, len(points)):
        raise ValueError(
            f"got {len(decays)} decays for {len(points)} points; pass one each, or none"
        )
    figures = torch.zeros(2, dtype=torch.float64, device=anchor.device)
    end = 0
    rows = zip(points, gradients, decays or [0.0] * len(points), strict=True)
    for tensor, its_gradient, decay in rows:
        start, end = end, end + tensor.numel()
        parts = tensor.detach().reshape(-1), its_gradient.detach().reshape(-1)
        for chunk in chunks(start, end):
            own = slice(chunk.start - start, chunk.stop - start)
            point, gradient = (part[own].to(anchor.dtype) for part in parts)
            if decay:
                gradient = gradient.add(point, alpha=decay)
            point_sum[chunk] += point - anchor[chunk]
            if gradient_sum is not None:
                gradient_sum[chunk] += gradient
            if noise_sum is not None:
                noise_sum[chunk].add_(gradient, alpha=sign)
            wide = gradient.double()
            figures[0] += wide @ wide
            if direction is not None:
                figures[1] += wide @ direction[chunk].double()
    return figures


def three_sums(
    sums: Sequence[Tensor], least: int = 2
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Sums of points and, or None, of gradients and of noise; ``least`` of them."""
    if not least <= len(sums) <= 3:
        raise ValueError(f"got {len(sums)} sums; expected {least} to 3")
    point_sum, gradient_sum, noise_sum, *_ = *sums, None, None
    return point_sum, gradient_sum, noise_sum
