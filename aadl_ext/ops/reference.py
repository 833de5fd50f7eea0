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
from torch._utils import _unflatten_dense_tensors

CHUNK = 1 << 15  # entries of a row handled at a time; bounds every temporary


# ---- parameters <-> flat vector ---------------------------------------------------


def gather(tensors: Sequence[Tensor], out: Tensor, when: Tensor | None = None) -> None:
    rest = out[sum(t.numel() for t in tensors) :]
    rest.zero_() if when is None else rest.masked_fill_(when, 0)
    _copy(tensors, _pieces(tensors, out), when)


def scatter_(tensors: Sequence[Tensor], flat: Tensor, when: Tensor | None = None) -> None:
    _copy(_pieces(tensors, flat), tensors, when)


def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor], when: Tensor | None) -> None:
    if when is None:
        if targets:
            torch._foreach_copy_(list(targets), list(sources))
        return
    for source, target in zip(sources, targets, strict=True):
        kept = target.to(when.device)  # itself but for a target elsewhere
        target.copy_(torch.where(when, source.to(kept), kept, out=kept))


def squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0].new_zeros((), dtype=torch.float64)
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        for chunk in _chunks(0, flat.numel()):
            total += flat[chunk].double().square().sum().to(total.device)
    return total


def _pieces(tensors: Sequence[Tensor], flat: Tensor) -> list[Tensor]:
    """Views of ``flat`` in the shapes of ``tensors``."""
    return list(_unflatten_dense_tensors(flat, tensors))  # type: ignore[no-untyped-call]


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
    systems: Tensor | None,  # [S, k, k]
) -> Tensor:
    torch.sub(after, before, out=residual)
    max_step = _scale_to_unit_rate(residual, rates, offsets)
    if slot is not None:
        for rate, (start, stop) in zip(rates, pairwise(offsets), strict=True):
            for chunk in _chunks(start, stop):
                difference = residual[chunk] - last_residual[chunk]
                step = (before[chunk] - last_point[chunk]).add_(difference, alpha=rate)
                residual_rows[slot, chunk] = difference
                step_rows[slot, chunk] = step

    rows = residual_rows[:0] if systems is None else residual_rows
    new = [] if slot is None else [residual_rows[slot], step_rows[slot]]
    dots, squares = _dot_products(rows, [residual, *new], offsets)  # [S, m + 1, 1 or 3]
    squared_norm, row_norm = squares[0], squares[1:].sum()
    sound = squared_norm.isfinite()
    if systems is not None:
        n = len(rows)
        products = (dots[:, :-1, 0], dots[:, :-1, 0], dots[:, -1, 0])
        entries = (systems[:, :n, -1], systems[:, -1, :n], systems[:, -1, -1])
        for entry, product in zip(entries, products, strict=True):
            entry.copy_(torch.where(sound, product, entry))
        if slot is not None:
            systems[:, :n, slot] = systems[:, slot, :n] = dots[:, :-1, 1]
    if slot is not None:
        useless = ~(sound & row_norm.isfinite())
        _zero(useless, step_rows[slot], residual_rows[slot])
        if systems is not None:
            _zero(useless, systems[:, slot], systems[:, :, slot])
    return torch.stack([max_step.double(), squared_norm, row_norm])


def _zero(when: Tensor, *tensors: Tensor) -> None:
    """Make tensors zero where a flag is true; one on a device is not read."""
    for tensor in tensors:
        if not when.is_cpu:
            tensor.masked_fill_(when, 0)
        elif when:
            tensor.zero_()


def _scale_to_unit_rate(residual: Tensor, rates: Sequence[float], offsets: Sequence[int]) -> Tensor:
    """Divide each segment by its rate, in place; returns the largest entry before, or NaN."""
    max_step = residual.new_zeros(())
    for rate, (start, stop) in zip(rates, pairwise(offsets), strict=True):
        segment = residual[start:stop]
        if stop > start:
            least, most = segment.aminmax()
            max_step = torch.maximum(max_step, torch.maximum(most, -least))  # NaN passes through
        if rate == 0:
            segment.mul_(0.0)  # not zero_(): a NaN shall be seen
        else:
            segment.div_(rate)
    return max_step


def _dot_products(
    rows: Tensor, right: Sequence[Tensor], offsets: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Float64 products of [rows; right[0]] with each vector of ``right``, and its square.

    Products are made for each segment, ``[S, m + 1, k]``, squares over all, ``[k]``.
    """
    shape = (len(offsets) - 1, len(rows) + 1, len(right))
    dots = torch.zeros(shape, dtype=torch.float64, device=right[0].device)
    squares = dots.new_zeros(len(right))
    for index, (start, stop) in enumerate(pairwise(offsets)):
        for chunk in _chunks(start, stop):
            # A product of two float32 is exact in float64.
            vectors = torch.stack([vector[chunk] for vector in right]).double()
            dots[index, :-1].addmm_(rows[:, chunk].double(), vectors.T)
            dots[index, -1].addmv_(vectors, vectors[0])
            squares += vectors.square().sum(dim=1)
    return dots, squares


def extrapolate_(
    out: Tensor,  # [N]
    before: Tensor,  # [N] w
    after: Tensor,  # [N] w + r
    relaxation: float,
    rows: Tensor,  # [m, N]
    coefficients: Tensor,  # [1 or S, m]
    offsets: Sequence[int],
    accept: Tensor | None = None,  # []
) -> Tensor:
    weights = coefficients.to(dtype=out.dtype, device=out.device).expand(len(offsets) - 1, -1)
    largest = out.new_zeros(())
    for index, (start, stop) in enumerate(pairwise(offsets)):
        for chunk in _chunks(start, stop):
            point = torch.lerp(before[chunk], after[chunk], relaxation)
            point.addmv_(rows[:, chunk].to(out.dtype).T, weights[index], alpha=-1)
            out[chunk] = _if_true(accept, point, after[chunk])
            largest = torch.maximum(largest, out[chunk].abs().amax())  # NaN passes through
    return largest


def _if_true(flag: Tensor | None, new: Tensor, old: Tensor | float) -> Tensor:
    return new if flag is None else torch.where(flag, new, old)


def _chunks(start: int, stop: int) -> Iterator[slice]:
    for begin in range(start, stop, CHUNK):
        yield slice(begin, min(begin + CHUNK, stop))


# ---- blocks of samples ------------------------------------------------------------


def add_sample_(
    point_sum: Tensor,  # [N] of w - anchor
    gradient_sum: Tensor,  # [N]
    noise_sum: Tensor | None,  # [N] of gradients with alternating signs
    point: Tensor,  # [N] w
    anchor: Tensor,  # [N]
    gradient: Tensor,  # [N]
    sign: float,
    direction: Tensor | None,  # [N]
) -> Tensor:
    figures = torch.zeros(2, dtype=torch.float64, device=point.device)
    for chunk in _chunks(0, point.numel()):
        point_sum[chunk] += point[chunk] - anchor[chunk]
        gradient_sum[chunk] += gradient[chunk]
        if noise_sum is not None:
            noise_sum[chunk].add_(gradient[chunk], alpha=sign)
        wide = gradient[chunk].double()
        figures[0] += wide @ wide
        if direction is not None:
            figures[1] += wide @ direction[chunk].double()
    return figures


def push_block(
    point_sum: Tensor,  # [N]
    gradient_sum: Tensor,  # [N]
    noise_sum: Tensor | None,  # [N]
    count: int,
    last_point: Tensor,  # [N]
    last_gradient: Tensor,  # [N]
    step_rows: Tensor,  # [m, N]
    gradient_rows: Tensor,  # [m, N]
    noise_rows: Tensor,  # [J, N]
    slot: int | None,
    noise_slot: int | None,
    accept: Tensor | None = None,  # []
) -> None:
    for chunk in _chunks(0, last_point.numel()):
        step, gradient = point_sum[chunk] / count, gradient_sum[chunk] / count
        point, last = last_point[chunk], last_gradient[chunk]
        if slot is not None:
            step_rows[slot, chunk] = _if_true(accept, step, 0)
            gradient_rows[slot, chunk] = _if_true(accept, gradient - last, 0)
        if noise_sum is not None:
            noise_rows[noise_slot, chunk] = _if_true(accept, noise_sum[chunk] / count, 0)
        point.copy_(_if_true(accept, point + step, point))
        last.copy_(_if_true(accept, gradient, last))
    for total in (point_sum, gradient_sum, noise_sum):
        if total is not None:
            total.zero_()


def cross_products(rows: Tensor, vectors: Sequence[Tensor], offsets: Sequence[int]) -> Tensor:
    shape = (len(offsets) - 1, len(rows), len(vectors))
    products = torch.zeros(shape, dtype=torch.float64, device=rows.device)
    for index, (start, stop) in enumerate(pairwise(offsets)):
        for chunk in _chunks(start, stop):
            right = torch.stack([vector[chunk].double() for vector in vectors])
            products[index].addmm_(rows[:, chunk].double(), right.T)
    return products


# ---- moving average ---------------------------------------------------------------


def window_statistics(window: Sequence[Tensor], out: Tensor) -> Tensor:
    count = len(window)
    peaks = [out.new_zeros(())]
    for chunk in _chunks(0, out.numel()):
        anchor = window[-1][chunk]
        # Deviations from the newest iterate are small, so nothing cancels in their squares.
        deviation = torch.stack([iterate[chunk] for iterate in window]) - anchor  # [t, chunk]
        total = deviation.sum(dim=0)
        variance = (deviation.square_().sum(dim=0) - total.square() / count) / count
        peaks.append(variance.amax())
        torch.add(anchor, total, alpha=1 / count, out=out[chunk])
    # A NaN passes through both maxima on purpose.
    return torch.stack(peaks).amax().sqrt()
