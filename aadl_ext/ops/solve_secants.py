"""The small least-squares problem (Eq. 5)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_noise
from .registry import op

SHORTEST = 1e-150  # length of a column; its square is still a normal number
FEW = 2  # errors that a column must be longer than
ROUNDING = 256 * torch.finfo(torch.float64).eps  # of a scaled Gram matrix and its eigenvalues


class SecantSolution(NamedTuple):
    """Solution of S small least-squares problems; every tensor float64 but ``rank``."""

    gamma: Tensor  #: [S, m] coefficients, of least norm where columns are dependent
    rank: Tensor  #: [S] int64, independent directions
    condition: Tensor  #: [S] condition number of the scaled columns over the directions kept
    reduction: Tensor  #: [S] predicted ``|r - R gamma| / |r|``, 0 where r = 0


@op(
    "solve_secants(Tensor system, *, bool factored, float ridge=0.0, float tolerance=0.0, "
    "Tensor? noise=None, bool condition=True) -> "
    "(Tensor gamma, Tensor rank, Tensor condition, Tensor reduction)",
    result=SecantSolution,
)
def solve_secants(
    system: Tensor,
    *,
    factored: bool,
    ridge: float = 0.0,
    tolerance: float = 0.0,
    noise: Tensor | None = None,
    condition: bool = True,
) -> SecantSolution:
    """Solve ``min |r - R gamma|`` (Eq. 5) from the small matrix that holds all it needs.

    Columns are scaled to unit length, then the minimum-norm solution is taken over the
    singular directions above ``tolerance``: from the eigenvalues of the Gram matrix, or
    from the singular values of the R factor. Zero columns are legal and get a zero
    coefficient.

    A column of length zero has no part in the solution, whatever its products with others. With
    ``noise`` the same holds for a column, and for a direction, that is not twice as long as
    its error: rounding is no information, though it can be scaled to any length. The error of a
    direction v (of the scaled columns) is ``sum v_j^2 noise_j / length_j^2``.

    Args:
        system: ``[S, m + 1, m + 1]``, m >= 1, of the matrix [R | r]: its Gram matrix or its
            upper triangular factor. Computed in float64.
        factored: whether ``system`` is the factor.
        ridge: weight of ``|gamma|^2`` in units of the squared column lengths.
        tolerance: singular values of the scaled columns at or below this times the largest
            count as zero. A Gram matrix resolves them down to about 2e-7 only.
        noise: ``[S, m]`` float64, ``|error|^2`` of each column; None for exact ones.
        condition: whether it is to be computed, else it is NaN. Without it many Gram matrices are
            solved on the CPU in a tenth of the time, by Cholesky factors where all directions
            are kept.

    Returns:
        :class:`SecantSolution`; all NaN for a system that is not finite, but for the rank (0).

    Raises:
        ValueError: ``system`` is not a batch of square matrices, or a setting is negative.
    """
    if system.ndim != 3 or system.shape[-1] != system.shape[-2] or system.shape[-1] < 2:
        raise ValueError(f"system has shape {tuple(system.shape)}; expected [S, m + 1, m + 1]")
    if not ridge >= 0 or not tolerance >= 0:
        raise ValueError(f"ridge ({ridge}) and tolerance ({tolerance}) must be >= 0")
    check_noise(noise, len(system), system.shape[-1] - 1)
    system = system.double()
    total = system.sum(dim=(-2, -1))
    finite = (total - total == 0).unsqueeze(-1)  # [S, 1]
    system = torch.where(finite.unsqueeze(-1), system, 0.0)
    if factored:
        lengths = torch.linalg.vector_norm(system, dim=-2)  # [S, m + 1]
    else:
        lengths = system.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    if noise is not None:
        known = lengths[..., :-1].square() > FEW**2 * noise
        lengths = torch.cat([torch.where(known, lengths[..., :-1], 0.0), lengths[..., -1:]], dim=-1)
    inverse = torch.where(lengths > SHORTEST, 1 / lengths, 0.0)
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
    if noise is not None:
        error = right.square() @ (noise * inverse[..., :-1].square()).unsqueeze(-1)
        kept &= sigma.square() > FEW**2 * error.squeeze(-1)
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
    number = (largest.squeeze(-1) / sigma.amin(dim=-1)).clamp_min(1)
    return SecantSolution(
        torch.where(finite, gamma, torch.nan),
        kept.sum(dim=-1),
        number if condition else torch.full_like(number, torch.nan),
        torch.where(finite.squeeze(-1), reduction, torch.nan),
    )
