"""Secant rows and the least-squares problems over them (Eq. 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .checks import (
    check_flag,
    check_noise,
    check_offsets,
    check_rows,
    check_slot,
    check_systems,
    check_vector,
    one_each,
)
from .chunks import chunks
from .registry import Shares, asked, op

ARITHMETIC = 4  # errors of rho that the base optimizer makes


def _shares(given: dict[str, Any]) -> Shares:
    """A pair is compared with the last one if it is stored; with it, or for systems, rows pass."""
    rows, vector = given["residual_rows"], given["before"].nbytes
    stored, multiplied = given["slot"] >= 0, given.get("systems") is not None
    row = rows[:1].nbytes
    return {
        "residual": (0, vector),
        "last_point": (vector * stored, 0),
        "last_residual": (vector * stored, 0),
        "step_rows": (0, row * stored),
        "residual_rows": ((rows.nbytes - row * stored) * multiplied, row * stored),
    }


@op(
    "push_secant(Tensor before, Tensor after, *, float[] rates, int[] offsets, "
    "Tensor(a!) residual, Tensor last_point, Tensor last_residual, Tensor(b!) step_rows, "
    "Tensor(c!) residual_rows, int slot, Tensor? paired=None, Tensor(d!)? systems=None, "
    "float[] rounding=[], Tensor(e!)? noise=None) -> Tensor",
    shares=_shares,
)
def push_secant(
    before: Tensor,
    after: Tensor,
    *,
    rates: Sequence[float],
    offsets: Sequence[int],
    residual: Tensor,
    last_point: Tensor,
    last_residual: Tensor,
    step_rows: Tensor,
    residual_rows: Tensor,
    slot: int,
    paired: Tensor | None = None,
    systems: Tensor | None = None,
    rounding: Sequence[float] = (),
    noise: Tensor | None = None,
) -> Tensor:
    """Form the residual of a step, store its secant row, and update the least-squares problems.

    With ``r = after - before`` and ``rho = r / rate``: ``residual`` becomes ``rho``, and
    with a ``slot`` the row of differences to the last stored pair (Eq. 2 and 3) enters
    the ring: ``residual_rows[slot] = rho - last_residual`` and
    ``step_rows[slot] = (before - last_point) + rate * (rho - last_residual)``, which is
    a column of W + R in Eq. 4.

    ``systems`` holds the Gram matrix of [R | r] for each segment, with rho in the last row and
    column. Entries of the ``m`` rows given here are brought up to date, others stay.

    ``noise`` tells how much of a row may be rounding: ``|error|^2`` of ``residual_rows[slot]`` in
    each segment. A point carries an error of half its last digit, which the division by a small
    rate makes large; rho has one of its own, and entries that are subnormal in float16 another:
    ``rounding[s]^2 (|after|^2 + |last_point|^2) + (4 eps)^2 |rho|^2 + entries * 2^-50``.

    **A row that cannot be used** is zero, in the ring and in ``systems``: after a step that is
    not finite, where the row does not fit the storage dtype, or without a pair before it. After a
    step that is not finite ``systems`` keeps the products of the residual before.

    Args:
        before: ``[N]`` parameters before the base optimizer's step.
        after: ``[N]`` parameters after it.
        rates: ``[S]`` learning rates, or one for all segments; where 0 the residual counts as zero.
        offsets: ``[S + 1]``.
        residual: ``[N]`` out.
        last_point: ``[N]`` w of the last stored pair.
        last_residual: ``[N]`` rho of the last stored pair.
        step_rows: ``[m, N]``, row ``slot`` changed in place.
        residual_rows: ``[m, N]``, row ``slot`` changed in place.
        slot: the row to write, or -1 to measure only.
        paired: ``[]`` bool on the same device, read there: whether ``last_point`` and
            ``last_residual`` are a pair; None for true.
        systems: ``[S, k, k]`` float64 with ``k > m``, changed in place; None to compute no
            products.
        rounding: ``[S]``, or one for all, with ``noise``: half of the parameters' machine
            epsilon, over the smaller of the rates of this step and of the last stored pair.
        noise: ``[S, k]`` float64 with ``k >= m``, column ``slot`` changed in place; None not to
            measure it.

    Returns:
        ``[4]`` float64: the largest ``|r|``, ``|rho|^2``, the sum of squares of both new rows as
        stored, and the largest entry of the new step row (0 without a slot, the last also for a row
        that cannot be used). NaN or infinite for a step (the first two) or row (the third) that
        cannot be used. Sums are accumulated in float64.

    Raises:
        ValueError: shapes, dtypes or offsets do not fit together.
    """
    size = before.numel()
    for name, vector in (
        ("before", before),
        ("after", after),
        ("residual", residual),
        ("last_point", last_point),
        ("last_residual", last_residual),
    ):
        check_vector(name, vector, size, before.dtype)
    check_offsets(offsets, size)
    segments = len(offsets) - 1
    rates = one_each("rates", rates, segments)
    check_rows("step_rows", step_rows, size)
    check_rows("residual_rows", residual_rows, size)
    if step_rows.shape != residual_rows.shape:
        raise ValueError(
            f"step_rows is {tuple(step_rows.shape)} and residual_rows "
            f"{tuple(residual_rows.shape)}; they must be alike"
        )
    check_slot("slot", slot, len(residual_rows))
    check_flag("paired", paired, before.device)
    if systems is not None:
        check_systems(systems, segments, residual_rows.shape[0])
    check_noise(noise, segments, len(residual_rows), wider=True)
    if noise is not None:
        rounding = one_each("roundings", rounding, segments)
    torch.sub(after, before, out=residual)
    max_step = _scale_to_unit_rate(residual, rates, offsets)
    for rate, (start, stop) in zip(rates, pairwise(offsets), strict=True):
        for chunk in chunks(start, stop) if slot >= 0 else ():
            difference = residual[chunk] - last_residual[chunk]
            step = (before[chunk] - last_point[chunk]).add_(difference, alpha=rate)
            residual_rows[slot, chunk] = difference
            step_rows[slot, chunk] = step

    rows = residual_rows[:0] if systems is None else residual_rows
    own = [ARITHMETIC * torch.finfo(residual.dtype).eps] * segments
    new = [] if slot < 0 else [residual_rows[slot], step_rows[slot]]
    dots, squares = _dot_products(rows, [residual, *new], offsets)  # [S, m + 1, 1 or 3]
    squared_norm, row_norm = squares[0], squares[1:].sum()
    sound = squared_norm.isfinite()
    if systems is not None:
        n = len(rows)
        products = (dots[:, :-1, 0], dots[:, :-1, 0], dots[:, -1, 0])
        entries = (systems[:, :n, -1], systems[:, -1, :n], systems[:, -1, -1])
        for entry, product in zip(entries, products, strict=True):
            entry.copy_(torch.where(sound, product, entry))
        if slot >= 0:
            systems[:, :n, slot] = systems[:, slot, :n] = dots[:, :-1, 1]
    way = [squared_norm.new_zeros(())]
    if slot >= 0:
        usable = sound & row_norm.isfinite()
        useless = ~(usable if paired is None else usable & paired)
        _zero(useless, step_rows[slot], residual_rows[slot])
        way += [step_rows[slot, chunk].abs().amax().double() for chunk in chunks(0, size)]
        if systems is not None:
            _zero(useless, systems[:, slot], systems[:, :, slot])
        if noise is not None:
            errors = ((rounding, after), (rounding, last_point), (own, residual))
            noise[:, slot] = _noise(errors, offsets, residual_rows)
            _zero(useless, noise[:, slot])
    return torch.stack([max_step.double(), squared_norm, row_norm, torch.stack(way).amax()])


def _noise(
    squares: Sequence[tuple[Sequence[float], Tensor]], offsets: Sequence[int], rows: Tensor
) -> Tensor:
    """``[S]`` sums of squares of ``factor * vector``, and of what subnormals lose."""
    lost = torch.finfo(rows.dtype).smallest_normal * torch.finfo(rows.dtype).eps / 2
    sums = []
    for segment, (start, stop) in enumerate(pairwise(offsets)):
        total = torch.full((), (stop - start) * lost**2, dtype=torch.float64, device=rows.device)
        for chunk in chunks(start, stop):
            for factors, vector in squares:
                wide = vector[chunk].double()
                total += wide.dot(wide) * factors[segment] ** 2
        sums.append(total)
    return torch.stack(sums)


def _zero(when: Tensor, *tensors: Tensor) -> None:
    for tensor in tensors if asked(when) else ():
        tensor.masked_fill_(when, 0)


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
        for chunk in chunks(start, stop):
            # A product of two float32 is exact in float64.
            vectors = torch.stack([vector[chunk] for vector in right]).double()
            dots[index, :-1].addmm_(rows[:, chunk].double(), vectors.T)
            dots[index, -1].addmv_(vectors, vectors[0])
            squares += vectors.square().sum(dim=1)
    return dots, squares
