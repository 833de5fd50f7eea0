"""Newton's step in the span of the last displacements."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .registry import op
from .solve_secants import SHORTEST


class SubspaceSolution(NamedTuple):
    """Newton step in the span of m displacements, for each of S problems; float64 but ``rank``."""

    coefficients: Tensor  #: [S, m] y of the displacement -W^T y
    slope: Tensor  #: [S] its product with the gradient
    length: Tensor  #: [S] its norm
    rank: Tensor  #: [S] int64, independent directions
    curvature: Tensor  #: [S, m] eigenvalues of the projected Hessian, ascending; 0 for dropped ones
    reduction: Tensor  #: [S] predicted norm of the projected gradient over the one before


def all_finite(*products: Tensor) -> Tensor:
    """``[S]`` whether all entries of a problem are."""
    total = torch.stack([x.double().flatten(1).sum(dim=1) for x in products]).sum(dim=0)
    return total - total == 0


def whiten_span(metric: Tensor, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of rows W with W W^T = ``metric``: unit directions that do not depend on each other.

    Returns ``[S, m, 1]`` the inverse lengths of the rows, 0 for a row that is zero; ``[S, m, m]``
    what makes of the rows at unit length orthonormal ones, or zero; and ``[S, m]`` which are not.
    """
    lengths = metric.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    inverse = torch.where(lengths > SHORTEST, 1 / lengths, 0.0).unsqueeze(-1)
    values, vectors = torch.linalg.eigh(metric * (inverse * inverse.mT))
    kept = values > ridge * values[..., -1:]
    return inverse, vectors.mT * torch.where(kept, values, torch.inf).rsqrt().unsqueeze(-1), kept


@op(
    "solve_subspace(Tensor metric, Tensor curvature, Tensor right_side, Tensor noise, *, "
    "Tensor radius, float ridge=1e-4, float floor=0.01, float shrinkage=4.0) -> "
    "(Tensor coefficients, Tensor slope, Tensor length, Tensor rank, Tensor curvature, "
    "Tensor reduction)",
    result=SubspaceSolution,
)
def solve_subspace(
    metric: Tensor,
    curvature: Tensor,
    right_side: Tensor,
    noise: Tensor,
    *,
    radius: Tensor,
    ridge: float = 1e-4,
    floor: float = 0.01,
    shrinkage: float = 4.0,
) -> SubspaceSolution:
    """Newton step in the span of m displacements W, from products with gradient changes G.

    The symmetric part of W G^T is the Hessian projected on the span. In an orthonormal basis of
    its eigenvectors the derivative c_i along each is reduced to ``c_i max(0, 1 - shrinkage *
    v_i / c_i^2)``, where v_i is its variance (James and Stein 1961), and the step is
    ``-c_i / max(|e_i|, floor * max |e|)`` (absolute eigenvalues: Dauphin et al. 2014); then it
    is cut to the radius.

    Args:
        metric: ``[S, m, m]`` W W^T, symmetric.
        curvature: ``[S, m, m]`` W G^T; need not be symmetric.
        right_side: ``[S, m]`` W g.
        noise: ``[S, m, J]`` W A^T, samples of the noise in ``right_side``; J may be 0.
        radius: ``[S]`` largest length of a step, >= 0; may be infinite.
        ridge: directions whose eigenvalue of the metric of unit displacements is at or below
            this times the largest are left out.
        floor: least curvature, relative to the largest.
        shrinkage: weight of the noise.

    Returns:
        :class:`SubspaceSolution`; coefficients, slope, length and reduction are NaN for a system
        that is not finite, or whose radius is NaN or negative. Computed in float64.

    Raises:
        ValueError: shapes do not fit together, or a setting is negative.
    """
    systems, size = right_side.shape if right_side.ndim == 2 else (-1, -1)
    square = (systems, size, size)
    fits = metric.shape == square and curvature.shape == square and radius.shape == (systems,)
    if not fits or size < 1 or noise.ndim != 3 or noise.shape[:2] != (systems, size):
        shapes = [tuple(x.shape) for x in (metric, curvature, right_side, noise, radius)]
        raise ValueError(
            f"shapes are {shapes}; expected [S, m, m] twice, [S, m], [S, m, J], [S] with m >= 1"
        )
    if not (ridge >= 0 and floor >= 0 and shrinkage >= 0):
        raise ValueError(f"ridge, floor, shrinkage are {ridge}, {floor}, {shrinkage}; allowed >= 0")
    finite = (all_finite(metric, curvature, right_side, noise) & (radius >= 0))[:, None, None]
    inputs = (metric, curvature, right_side.unsqueeze(-1), noise)
    metric, curvature, right, noise = (torch.where(finite, x.double(), 0.0) for x in inputs)
    inverse, whiten, kept = whiten_span(metric, ridge)
    scale = inverse * inverse.mT
    projected = whiten @ (0.5 * (curvature + curvature.mT) * scale) @ whiten.mT
    eigenvalues, turn = torch.linalg.eigh(projected)
    basis = turn.mT @ whiten @ inverse.squeeze(-1).diag_embed()  # rows: unit displacements
    slopes = (basis @ right).squeeze(-1)  # [S, m] derivative along each
    variance = (basis @ noise).square().mean(dim=-1) if noise.shape[-1] else 0.0
    squared = slopes.square()
    share = torch.where(squared > 0, 1 - shrinkage * variance / squared, 0.0).clamp_min(0)
    stiffness = eigenvalues.abs()
    least = floor * stiffness.amax(dim=-1, keepdim=True)
    divisor = torch.maximum(stiffness, least)
    steps = torch.where(divisor > 0, share * slopes / divisor, 0.0)
    length = torch.linalg.vector_norm(steps, dim=-1)
    fit = torch.where(length > radius, radius / length, 1.0).unsqueeze(-1)
    steps = steps * fit
    before = torch.linalg.vector_norm(slopes, dim=-1)
    left = torch.linalg.vector_norm(slopes - eigenvalues * steps, dim=-1)
    bad = ~finite[:, :, 0]
    return SubspaceSolution(
        (basis.mT @ steps.unsqueeze(-1)).squeeze(-1).masked_fill(bad, torch.nan),
        -(steps * slopes).sum(dim=-1).masked_fill(bad[:, 0], torch.nan),
        (length * fit.squeeze(-1)).masked_fill(bad[:, 0], torch.nan),
        kept.sum(dim=-1),
        eigenvalues,
        (left / before.clamp_min(SHORTEST)).masked_fill(bad[:, 0], torch.nan),
    )
