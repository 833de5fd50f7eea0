"""One quadratic through the slopes at several points, by least squares."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .registry import op
from .solve_subspace import all_finite, whiten_span

LEAST_SPREAD = 1e-10  # of points along a direction, squared, relative to the largest


class QuadraticFit(NamedTuple):
    """What ``solve_subspace`` takes, of the quadratic, for each of S problems; float64."""

    curvature: Tensor  #: [S, m, m] W H W^T, symmetric up to rounding
    right_side: Tensor  #: [S, m] W times its gradient at the newest point
    noise: Tensor  #: [S, m, J] samples of the noise that is left in it


@op(
    "fit_quadratic(Tensor metric, Tensor curvature, Tensor right_side, Tensor noise, *, "
    "int newest, int count, float ridge=1e-4, float shrinkage=2.0) -> "
    "(Tensor curvature, Tensor right_side, Tensor noise)",
    result=QuadraticFit,
)
def fit_quadratic(
    metric: Tensor,
    curvature: Tensor,
    right_side: Tensor,
    noise: Tensor,
    *,
    newest: int,
    count: int,
    ridge: float = 1e-4,
    shrinkage: float = 2.0,
) -> QuadraticFit:
    """The quadratic whose gradients are nearest to those at ``count + 1`` points with noise.

    The points lie one behind the other: rows W of a ring lead from each to the next, and G are the
    changes of the gradient along them. In the span of the rows they are more numbers than a
    gradient and a *symmetric* Hessian have, and what is too many takes noise out of both. With
    z_j and d_j, points and gradients from their means in an orthonormal basis of the span that
    makes ``sum_j z_j z_j^T`` diagonal, s, least squares have the Hessian (the symmetric Procrustes
    problem, Higham 1988)

        H_ab = sum_j (d_ja z_jb + z_ja d_jb) / (s_a + s_b)

    and the gradient at the newest point is ``g = mean - (t H) z``, z the mean of the points seen
    from there. The variance v of an error that is the same in all directions and independent at all
    points is known from the samples, that of H_ab is v / (s_a + s_b), twice as much for a = b; and
    an entry that noise may explain carries no gradient from point to point, or noise besides:
    ``t_ab = max(0, 1 - shrinkage * variance / H_ab^2)`` (James and Stein 1961). What is left of the
    variance of g_a is ``1 / (count + 1) + sum_b t_ab^2 (1 or 2 if a = b) z_b^2 / (s_a + s_b)``
    times v. It is at most v, what it would be without symmetry.

    Where it cannot be fitted all stays as it is: a row that is used is zero, points have hardly any
    spread in some direction, or something is not finite.

    Args:
        metric: ``[S, m, m]`` W W^T, symmetric.
        curvature: ``[S, m, m]`` W G^T.
        right_side: ``[S, m]`` W g, g the gradient at the newest point.
        noise: ``[S, m, J]`` W A^T, samples of the noise in g; J may be 0.
        newest: the row that leads to the newest point.
        count: of rows up to this one, 0 to m; the others only have a part in the span.
        ridge: as for :func:`solve_subspace`, which leaves out the same directions.
        shrinkage: of the Hessian that carries gradients, at least 0; without samples there is none.

    Returns:
        :class:`QuadraticFit`. Computed in float64.

    Raises:
        ValueError: shapes do not fit together, there are no such rows, or a setting is negative.
    """
    systems, size = right_side.shape if right_side.ndim == 2 else (-1, -1)
    square = (systems, size, size)
    fits = metric.shape == curvature.shape == square
    if not fits or size < 1 or noise.ndim != 3 or noise.shape[:2] != (systems, size):
        shapes = [tuple(x.shape) for x in (metric, curvature, right_side, noise)]
        raise ValueError(f"shapes are {shapes}; expected [S, m, m] twice, [S, m], [S, m, J], m > 0")
    if not (0 <= newest < size and 0 <= count <= size and ridge >= 0 and shrinkage >= 0):
        raise ValueError(
            f"newest, count, ridge, shrinkage are {newest}, {count}, {ridge}, {shrinkage}; "
            f"expected a row of {size}, a number of them, and twice a number >= 0"
        )
    given = QuadraticFit(*(x.double().clone() for x in (curvature, right_side, noise)))
    if count == 0:
        return given
    finite = all_finite(metric, curvature, right_side, noise)[:, None, None]
    inputs = (metric, curvature, right_side.unsqueeze(-1), noise)
    metric, curvature, right, noise = (torch.where(finite, x.double(), 0.0) for x in inputs)
    inverse, whiten, kept = whiten_span(metric, ridge)
    basis = whiten * inverse.mT  # [S, m, m] rows: unit displacements, or zero
    rows = basis @ metric  # columns: W in this basis
    chain = [(newest - i) % size for i in range(count)]
    points, slopes = (  # from the newest one on, [S, m, count + 1]
        pad(-x[..., chain].cumsum(dim=-1), (1, 0)) for x in (rows, basis @ curvature)
    )
    middle, mean = points.mean(dim=-1, keepdim=True), slopes.mean(dim=-1, keepdim=True)
    z, d = points - middle, slopes - mean
    spread, turn = torch.linalg.eigh(z @ z.mT)  # columns
    counts = spread > LEAST_SPREAD * spread[..., -1:]
    found = turn.mT @ (d @ z.mT) @ turn
    used = counts.unsqueeze(-1) & counts.unsqueeze(-2)
    both = torch.where(used, spread.unsqueeze(-1) + spread.unsqueeze(-2), torch.inf)
    hessian = (found + found.mT) / both
    errors = turn.mT @ basis @ noise
    error = errors.square().sum((-2, -1)) / (kept.sum(-1) * max(errors.shape[-1], 1)).clamp_min(1)
    weights = (1 + torch.eye(size, dtype=both.dtype, device=both.device)) / both  # of its variance
    least = shrinkage * error[:, None, None] * weights
    square = hessian.square()
    carried = torch.where(square > least, 1 - least / square, 0.0)
    middle, mean = turn.mT @ middle, turn.mT @ (mean + basis @ right)
    slopes = mean - (carried * hessian) @ middle
    variance = 1 / (count + 1) + (carried.square() * weights * middle.square().mT).sum(-1)
    back = rows.mT @ turn  # from this basis to products with W
    left = errors * variance.sqrt().unsqueeze(-1)
    fit = (back @ hessian @ back.mT, back @ slopes, back @ left)
    fitted = finite & (counts.sum(-1) == kept.sum(-1))[:, None, None]
    fitted &= (inverse[:, chain] > 0).all(dim=1, keepdim=True)
    return QuadraticFit(
        torch.where(fitted, fit[0], given.curvature),
        torch.where(fitted[..., 0], fit[1].squeeze(-1), given.right_side),
        torch.where(fitted, fit[2], given.noise),
    )
