"""The small dense problems of the ops in pure PyTorch, in float64: their definition.

The public functions with shapes, dtypes and errors are in ``secants.py`` and ``blocks.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .types import SecantSolution, SubspaceSolution

SHORTEST = 1e-150  # length of a column; its square is still a normal number
ROUNDING = 256 * torch.finfo(torch.float64).eps  # of a scaled Gram matrix and its eigenvalues


def solve_secants(
    system: Tensor,  # [S, m + 1, m + 1]: Gram matrix or R factor of [R | r]
    factored: bool,
    ridge: float,
    tolerance: float,
) -> SecantSolution:
    system = system.double()
    total = system.sum(dim=(-2, -1))
    finite = (total - total == 0).unsqueeze(-1)  # [S, 1]
    system = torch.where(finite.unsqueeze(-1), system, 0.0)
    if factored:
        lengths = torch.linalg.vector_norm(system, dim=-2)  # [S, m + 1]
    else:
        lengths = system.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    inverse = lengths.clamp_min(SHORTEST).reciprocal()
    scaled = system * inverse.unsqueeze(-2)  # columns of unit length, or zero
    if factored:
        left, sigma, right = torch.linalg.svd(scaled[..., :-1], full_matrices=False)
        floor = tolerance
        projected = (left.mT @ scaled[..., -1:]).squeeze(-1)  # U^T r
    else:
        scaled = scaled * inverse.unsqueeze(-1)
        squared, vectors = torch.linalg.eigh(scaled[..., :-1, :-1])
        sigma, right = squared.clamp_min(0).sqrt(), vectors.mT
        floor = max(tolerance, ROUNDING**0.5)  # eigenvalues are squares
        projected = (right @ scaled[..., :-1, -1:]).squeeze(-1) / sigma.clamp_min(floor)

    largest = sigma.amax(dim=-1, keepdim=True)
    kept = sigma > floor * largest
    sigma = torch.where(kept, sigma, torch.inf)  # a dropped direction has no weight
    gain = kept / (1 + ridge / sigma.square())
    weights = (right.mT @ (projected * gain / sigma).unsqueeze(-1)).squeeze(-1)
    if factored:
        left_over = scaled[..., -1] - (left @ (projected * gain).unsqueeze(-1)).squeeze(-1)
        reduction = torch.linalg.vector_norm(left_over, dim=-1)
    else:
        explained = (projected.square() * gain * (2 - gain)).sum(dim=-1)  # share of |r|^2
        reduction = (scaled[..., -1, -1] - explained).clamp_min(0).sqrt()
    gamma = weights * inverse[..., :-1] * lengths[..., -1:]
    return SecantSolution(
        gamma=torch.where(finite, gamma, torch.nan),
        rank=kept.sum(dim=-1),
        condition=(largest.squeeze(-1) / sigma.amin(dim=-1)).clamp_min(1),
        reduction=torch.where(finite.squeeze(-1), reduction, torch.nan),
    )


def solve_subspace(
    metric: Tensor,  # [S, m, m] W W^T
    curvature: Tensor,  # [S, m, m] W G^T
    right_side: Tensor,  # [S, m] W g
    noise: Tensor,  # [S, m, J] W A^T
    radius: Tensor,  # [S]
    ridge: float,
    floor: float,
    shrinkage: float,
) -> SubspaceSolution:
    inputs = (metric, curvature, right_side.unsqueeze(-1), noise)
    total = torch.stack([x.double().sum(dim=(-2, -1)) for x in inputs]).sum(dim=0)
    finite = ((total - total == 0) & (radius >= 0))[:, None, None]
    metric, curvature, right, noise = (torch.where(finite, x.double(), 0.0) for x in inputs)
    lengths = metric.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    inverse = torch.where(lengths > SHORTEST, 1 / lengths, 0.0).unsqueeze(-1)  # [S, m, 1]
    scale = inverse * inverse.mT
    values, vectors = torch.linalg.eigh(metric * scale)
    kept = values > ridge * values[..., -1:]
    whiten = vectors.mT * torch.where(kept, values, torch.inf).rsqrt().unsqueeze(-1)
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
        coefficients=(basis.mT @ steps.unsqueeze(-1)).squeeze(-1).masked_fill(bad, torch.nan),
        slope=-(steps * slopes).sum(dim=-1).masked_fill(bad[:, 0], torch.nan),
        length=(length * fit.squeeze(-1)).masked_fill(bad[:, 0], torch.nan),
        rank=kept.sum(dim=-1),
        curvature=eigenvalues,
        reduction=(left / before.clamp_min(SHORTEST)).masked_fill(bad[:, 0], torch.nan),
    )
