"""Every op in pure PyTorch: its definition, and what runs where no compiled kernel does.

Clarity and accuracy come first here. No op makes a temporary of the size of the
history: the long dimension is worked through in chunks of ``CHUNK`` entries.
The public functions with shapes, dtypes and errors are in ``ops/__init__.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .types import SecantProducts, SecantSolution, WindowStatistics

CHUNK = 1 << 15  # entries of a row handled at a time; bounds every temporary
TILE = 256  # rows of a TSQR leaf


# ---- parameters <-> flat vector ---------------------------------------------------


def gather(tensors: Sequence[Tensor], out: Tensor) -> Tensor:
    torch._foreach_copy_(_pieces(tensors, out), list(tensors))
    return out


def scatter_(tensors: Sequence[Tensor], flat: Tensor) -> None:
    torch._foreach_copy_(list(tensors), _pieces(tensors, flat))


def _pieces(tensors: Sequence[Tensor], flat: Tensor) -> list[Tensor]:
    sizes = [tensor.numel() for tensor in tensors]
    pieces = flat[: sum(sizes)].split(sizes)
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


# ---- history ----------------------------------------------------------------------


def push_secant(
    before: Tensor,  # [N] w
    after: Tensor,  # [N] w + r
    rates: Sequence[float],  # [S] learning rate of each segment
    offsets: Sequence[int],  # [S + 1]
    residual: Tensor,  # [N] out: r / rate
    last_point: Tensor,  # [N] w of the last stored pair
    last_residual: Tensor,  # [N] r / rate of the last stored pair
    step_rows: Tensor,  # [m, N]
    residual_rows: Tensor,  # [m, N]
    slot: int | None,
    products: bool,
) -> SecantProducts:
    segments = list(pairwise(offsets))
    torch.sub(after, before, out=residual)
    max_step = torch.linalg.vector_norm(residual, ord=torch.inf)
    for rate, (start, stop) in zip(rates, segments, strict=True):
        if rate == 0.0:
            residual[start:stop].zero_()
        else:
            residual[start:stop].div_(rate)

    if slot is not None and bool(torch.isfinite(max_step)):
        # The last pair is turned into differences where it lies, then replaced.
        torch.sub(residual, last_residual, out=last_residual)
        torch.sub(before, last_point, out=last_point)
        for rate, (start, stop) in zip(rates, segments, strict=True):
            last_point[start:stop].add_(last_residual[start:stop], alpha=rate)
        residual_rows[slot].copy_(last_residual)
        step_rows[slot].copy_(last_point)
        last_point.copy_(before)
        last_residual.copy_(residual)

    rows = residual_rows if products else residual_rows[:0]
    right = [residual] if slot is None or not products else [residual, residual_rows[slot]]
    dots = _dot_products(rows, residual, right, offsets)  # [S, m + 1, 1 or 2]
    return SecantProducts(
        max_step=max_step,
        squared_norm=dots[:, -1, 0],
        right_side=dots[:, :-1, 0],
        gram_row=dots[:, :-1, 1] if dots.shape[-1] == 2 else None,
    )


def _dot_products(
    rows: Tensor, residual: Tensor, right: Sequence[Tensor], offsets: Sequence[int]
) -> Tensor:
    """Float64 products of [rows; residual] with the vectors ``right``, a matrix per segment."""
    shape = (len(offsets) - 1, len(rows) + 1, len(right))
    dots = torch.zeros(shape, dtype=torch.float64, device=residual.device)
    for index, (start, stop) in enumerate(pairwise(offsets)):
        for chunk in _chunks(start, stop):
            # A product of two float32 is exact in float64.
            vectors = torch.stack([vector[chunk].double() for vector in right], dim=1)
            dots[index, :-1].addmm_(rows[:, chunk].double(), vectors)
            dots[index, -1].addmv_(vectors.T, residual[chunk].double())
    return dots


def extrapolate_(
    point: Tensor,  # [N] changed in place
    rows: Tensor,  # [m, N]
    coefficients: Tensor,  # [S, m]
    offsets: Sequence[int],
    apply: Tensor | None,  # [] bool
) -> Tensor:
    weights = coefficients.to(dtype=point.dtype, device=point.device)
    if apply is not None:
        weights = torch.where(apply, weights, 0.0)
    for index, (start, stop) in enumerate(pairwise(offsets)):
        for chunk in _chunks(start, stop):
            point[chunk].addmv_(rows[:, chunk].to(point.dtype).T, weights[index], alpha=-1)
    return point


def _chunks(start: int, stop: int) -> Iterator[slice]:
    for begin in range(start, stop, CHUNK):
        yield slice(begin, min(begin + CHUNK, stop))


# ---- moving average ---------------------------------------------------------------


def window_statistics(window: Tensor, newest: int, out: Tensor) -> WindowStatistics:
    count, size = window.shape
    peaks = [window.new_zeros(())]
    for chunk in _chunks(0, size):
        anchor = window[newest, chunk]
        # Deviations from the newest iterate are small, so nothing cancels in their squares.
        deviation = window[:, chunk] - anchor  # [t, chunk]
        total = deviation.sum(dim=0)
        variance = (deviation.square_().sum(dim=0) - total.square() / count) / count
        peaks.append(variance.amax())
        torch.add(anchor, total, alpha=1 / count, out=out[chunk])
    # A NaN passes through both maxima on purpose.
    return WindowStatistics(max_std=torch.stack(peaks).amax().sqrt(), mean=out)


# ---- tall-skinny QR ---------------------------------------------------------------


def tsqr(matrix: Tensor, append: Tensor | None, offsets: Sequence[int] | None) -> Tensor:
    if offsets is not None:
        pieces = [slice(start, stop) for start, stop in pairwise(offsets)]
        factors = [
            tsqr(matrix[piece], None if append is None else append[piece], None)
            for piece in pieces
        ]
        return torch.stack(factors)
    rows, columns = matrix.shape[-2], matrix.shape[-1] + (append is not None)
    dtype = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    factors = []
    step = max(1, CHUNK // TILE) * max(TILE, 2 * columns)
    for start in range(0, rows, step):
        block = matrix[..., start : start + step, :].to(dtype)
        if append is not None:
            block = torch.cat([block, append[..., start : start + step, None].to(dtype)], dim=-1)
        factors.append(_reduce_tree(_leaves(block)))
    if not factors:
        return torch.zeros(*matrix.shape[:-2], columns, columns, dtype=dtype, device=matrix.device)
    factor = _reduce_tree(torch.stack(factors, dim=-3))
    sign = torch.where(factor.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    return factor * sign.unsqueeze(-1)


def _leaves(block: Tensor) -> Tensor:
    """R factors of tiles of rows: [..., n, k] -> [..., tiles, k, k]; zero rows fill the last."""
    rows, columns = block.shape[-2:]
    tile = min(max(TILE, 2 * columns), max(rows, columns))
    missing = -rows % tile
    if missing:
        block = torch.cat([block, block.new_zeros(*block.shape[:-2], missing, columns)], dim=-2)
    return _r_factor(block.unflatten(-2, (block.shape[-2] // tile, tile)))


def _reduce_tree(factors: Tensor) -> Tensor:
    """[..., count, k, k] -> [..., k, k], neighbours pairwise, an odd one carried up."""
    while (count := factors.shape[-3]) > 1:
        even = count - count % 2
        pairs = factors[..., :even, :, :].unflatten(-3, (even // 2, 2)).flatten(-3, -2)
        odd = factors[..., even:, :, :]
        factors = torch.cat([_r_factor(pairs), odd], dim=-3)
    return factors.squeeze(-3)


def _r_factor(tall: Tensor) -> Tensor:
    return torch.linalg.qr(tall, mode="r").R


# ---- small solve ------------------------------------------------------------------


def solve_secants(
    system: Tensor,  # [S, m + 1, m + 1]: Gram matrix or R factor of [R | r]
    factored: bool,
    ridge: float,
    tolerance: float,
) -> SecantSolution:
    system = system.double()
    diagonal = system.diagonal(dim1=-2, dim2=-1)
    scale = torch.linalg.vector_norm(system, dim=-2) if factored else diagonal.clamp_min(0).sqrt()
    inverse = torch.where(scale > 0, scale.reciprocal(), 0.0)  # [S, m + 1]
    if factored:
        scaled = system * inverse.unsqueeze(-2)
        triangle, order = _pivoted_qr(scaled, ridge, tolerance)
    else:
        scaled = system * inverse.unsqueeze(-1) * inverse.unsqueeze(-2)
        triangle, order = _pivoted_cholesky(scaled, ridge, tolerance)

    # Columns beyond the rank have a zero pivot row: a unit pivot makes their coefficient 0.
    upper = triangle[..., :-1].gather(-1, order.unsqueeze(-2).expand(-1, order.shape[-1], -1))
    pivots = upper.diagonal(dim1=-2, dim2=-1)  # [S, m], not increasing
    kept = pivots > 0
    upper = upper.triu() + torch.diag_embed((~kept).double())
    solution = torch.linalg.solve_triangular(upper, triangle[..., -1:], upper=True).squeeze(-1)
    weights = torch.zeros_like(solution).scatter_(-1, order, solution)

    rank = kept.sum(dim=-1)
    last = pivots.gather(-1, (rank - 1).clamp_min(0).unsqueeze(-1)).squeeze(-1)
    condition = torch.where(rank > 0, pivots[..., :1].sum(-1) / last, 1.0)
    # Scaled residual of the least-squares problem: || r - R gamma || / || r ||.
    signed = torch.cat([-weights, torch.ones_like(weights[..., :1])], dim=-1).unsqueeze(-1)
    image = (scaled @ signed).squeeze(-1)
    if factored:
        reduction = torch.linalg.vector_norm(image, dim=-1)
    else:
        reduction = (image * signed.squeeze(-1)).sum(dim=-1).clamp_min(0).sqrt()
    gamma = weights * inverse[..., :-1] * scale[..., -1:]
    return SecantSolution(gamma=gamma, rank=rank, condition=condition, reduction=reduction)


def _pivoted_cholesky(gram: Tensor, ridge: float, tolerance: float) -> tuple[Tensor, Tensor]:
    """Rows of the factor [S, m, m + 1] and the pivot order [S, m] of a scaled Gram matrix."""
    remainder = gram.clone()
    diagonal = remainder.diagonal(dim1=-2, dim2=-1)[..., :-1]
    diagonal.add_(ridge * (diagonal > 0))
    # Cholesky pivots are squares: below eps they are rounding, whatever the storage.
    floor = max(tolerance**2, _rounding(gram))
    rows, order = [], []
    for _ in range(gram.shape[-1] - 1):
        pivot, index = diagonal.max(dim=-1, keepdim=True)  # [S, 1]
        weight = torch.where(pivot > floor, pivot.rsqrt(), 0.0).unsqueeze(-1)
        choice = index.unsqueeze(-1).expand(-1, 1, gram.shape[-1])
        row = remainder.gather(-2, choice) * weight  # [S, 1, m + 1]
        remainder.baddbmm_(row.mT, row, alpha=-1)
        diagonal.scatter_(-1, index, -1.0)  # never chosen again
        rows.append(row)
        order.append(index)
    return torch.cat(rows, dim=-2), torch.cat(order, dim=-1)


def _pivoted_qr(factor: Tensor, ridge: float, tolerance: float) -> tuple[Tensor, Tensor]:
    """The same from a scaled R factor, by modified Gram-Schmidt: the condition is not squared."""
    count = factor.shape[-1] - 1
    used = (factor[..., :-1] != 0).any(dim=-2)  # [S, m]
    damping = torch.diag_embed(used * ridge**0.5)
    damping = torch.nn.functional.pad(damping, (0, 1))  # nothing is added to the right side
    remainder = torch.cat([factor, damping], dim=-2)
    floor = max(tolerance, _rounding(factor))
    rows, order = [], []
    taken = torch.zeros_like(used)
    for _ in range(count):
        lengths = torch.linalg.vector_norm(remainder[..., :-1], dim=-2)
        pivot, index = lengths.masked_fill(taken, -1.0).max(dim=-1, keepdim=True)
        weight = torch.where(pivot > floor, pivot.reciprocal(), 0.0).unsqueeze(-1)
        choice = index.unsqueeze(-1).expand(-1, remainder.shape[-2], 1)
        direction = remainder.gather(-1, choice) * weight  # [S, rows, 1]
        row = direction.mT @ remainder
        remainder = remainder - direction @ row
        taken = taken.scatter(-1, index, True)
        rows.append(row)
        order.append(index)
    return torch.cat(rows, dim=-2), torch.cat(order, dim=-1)


def _rounding(matrix: Tensor) -> float:
    return 8 * matrix.shape[-1] * torch.finfo(torch.float64).eps
