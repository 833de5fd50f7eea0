"""Ops of the paper's iteration: secant rows, least squares, extrapolation, moving average.

The public names are those of ``aadl_ext.ops``; the notation is explained there.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import native, reference, small, tall
from .checks import (
    STORAGE_DTYPES,
    check_flag,
    check_offsets,
    check_rows,
    check_systems,
    check_vector,
    names,
)
from .types import SecantSolution


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
    slot: int | None,
    systems: Tensor | None = None,
) -> Tensor:
    """Form the residual of a step, store its secant row, and update the least-squares problems.

    With ``r = after - before`` and ``rho = r / rate``: ``residual`` becomes ``rho``, and
    with a ``slot`` the row of differences to the last stored pair (Eq. 2 and 3) enters
    the ring: ``residual_rows[slot] = rho - last_residual`` and
    ``step_rows[slot] = (before - last_point) + rate * (rho - last_residual)``, which is
    a column of W + R in Eq. 4.

    ``systems`` holds the Gram matrix of [R | r] for each segment, with rho in the last row and
    column. Entries of the ``m`` rows given here are brought up to date, others stay.

    **A row that cannot be used** is zero, in the ring and in ``systems``: after a step that is
    not finite, or where the row does not fit the storage dtype. After a step that is not
    finite ``systems`` keeps the products of the residual before.

    Args:
        before: ``[N]`` parameters before the base optimizer's step.
        after: ``[N]`` parameters after it.
        rates: ``[S]`` learning rates; where 0 the residual counts as zero.
        offsets: ``[S + 1]``.
        residual: ``[N]`` out.
        last_point: ``[N]`` w of the last stored pair.
        last_residual: ``[N]`` rho of the last stored pair.
        step_rows: ``[m, N]``, row ``slot`` changed in place.
        residual_rows: ``[m, N]``, row ``slot`` changed in place.
        slot: the row to write, or None to measure only.
        systems: ``[S, k, k]`` float64 with ``k > m``, changed in place; None to compute no
            products.

    Returns:
        ``[3]`` float64: the largest ``|r|``, ``|rho|^2``, and the sum of squares of both new
        rows as stored (0 without a slot). NaN or infinite for a step (the first two) or row
        (the third) that cannot be used. Sums are accumulated in float64.

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
    if len(rates) != len(offsets) - 1:
        raise ValueError(f"got {len(rates)} rates for {len(offsets) - 1} segments; pass one each")
    check_rows("step_rows", step_rows, size)
    check_rows("residual_rows", residual_rows, size)
    if step_rows.shape != residual_rows.shape:
        raise ValueError(
            f"step_rows is {tuple(step_rows.shape)} and residual_rows "
            f"{tuple(residual_rows.shape)}; they must be alike"
        )
    if slot is not None and not 0 <= slot < residual_rows.shape[0]:
        raise ValueError(f"slot is {slot}; the ring has rows 0 to {len(residual_rows) - 1}")
    if systems is not None:
        check_systems(systems, len(rates), residual_rows.shape[0])
    backend = native if native.serves(before, residual_rows) else reference
    figures: Tensor = backend.push_secant(
        before,
        after,
        rates,
        offsets,
        residual,
        last_point,
        last_residual,
        step_rows,
        residual_rows,
        slot,
        systems,
    )
    return figures


def solve_secants(
    system: Tensor, *, factored: bool, ridge: float = 0.0, tolerance: float = 0.0
) -> SecantSolution:
    """Solve ``min |r - R gamma|`` (Eq. 5) from the small matrix that holds all it needs.

    Columns are scaled to unit length, then the minimum-norm solution is taken over the
    singular directions above ``tolerance``: from the eigenvalues of the Gram matrix, or
    from the singular values of the R factor. Zero columns are legal and get a zero
    coefficient.

    Args:
        system: ``[S, m + 1, m + 1]``, m >= 1, of the matrix [R | r]: its Gram matrix or its
            upper triangular factor. Computed in float64.
        factored: whether ``system`` is the factor.
        ridge: weight of ``|gamma|^2`` in units of the squared column lengths.
        tolerance: singular values of the scaled columns at or below this times the largest
            count as zero. A Gram matrix resolves them down to about 2e-7 only.

    Returns:
        :class:`SecantSolution`; all NaN for a system that is not finite, but for the rank (0).

    Raises:
        ValueError: ``system`` is not a batch of square matrices, or a setting is negative.
    """
    if system.ndim != 3 or system.shape[-1] != system.shape[-2] or system.shape[-1] < 2:
        raise ValueError(f"system has shape {tuple(system.shape)}; expected [S, m + 1, m + 1]")
    if not ridge >= 0 or not tolerance >= 0:
        raise ValueError(f"ridge ({ridge}) and tolerance ({tolerance}) must be >= 0")
    backend = native if native.serves(system) else small
    solution: SecantSolution = backend.solve_secants(system, factored, ridge, tolerance)
    return solution


def tsqr(
    matrix: Tensor,
    *,
    append: Tensor | None = None,
    offsets: Sequence[int] | None = None,
) -> Tensor:
    """R factor of tall and skinny matrices by a tree of small QR factorisations.

    Tiles of rows are factored on their own and their R factors joined pairwise in an
    order that depends on the shape only (Demmel et al. 2012, "Communication-optimal
    parallel and sequential QR and LU"). Q is never formed.

    Args:
        matrix: ``[..., n, k]``, k >= 1, any n (also 0 or below k), any strides. Computed in
            float64 if it or ``append`` is, else in float32.
        append: ``[..., n]``, one more column behind the others.
        offsets: for a single matrix ``[n, k]``: factor each of the S blocks of rows
            ``offsets[s]:offsets[s + 1]`` on its own.

    Returns:
        ``[..., k, k]``, or ``[S, k, k]`` with offsets (k + 1 with ``append``): upper
        triangular, diagonal >= 0, float32 or float64.

    Raises:
        ValueError: shapes, dtypes or offsets do not fit together.
    """
    if matrix.ndim < 2 or matrix.shape[-1] < 1:
        raise ValueError(f"matrix has shape {tuple(matrix.shape)}; expected [..., n, k >= 1]")
    if matrix.dtype not in STORAGE_DTYPES:
        raise ValueError(f"matrix is {matrix.dtype}; allowed are {names(STORAGE_DTYPES)}")
    if append is not None and append.dtype not in STORAGE_DTYPES:
        raise ValueError(f"append is {append.dtype}; allowed are {names(STORAGE_DTYPES)}")
    if append is not None and append.shape != matrix.shape[:-1]:
        raise ValueError(
            f"append has shape {tuple(append.shape)}; for a matrix of {tuple(matrix.shape)} "
            f"it must be {tuple(matrix.shape[:-1])}"
        )
    if offsets is not None:
        if matrix.ndim != 2:
            raise ValueError(f"offsets need a single matrix [n, k], got {tuple(matrix.shape)}")
        check_offsets(offsets, matrix.shape[0])
    backend = native if native.serves_matrix(matrix, append) else tall
    factor: Tensor = backend.tsqr(matrix, append, offsets)
    return factor


def extrapolate_(
    out: Tensor,
    before: Tensor,
    after: Tensor,
    relaxation: float,
    rows: Tensor,
    coefficients: Tensor,
    offsets: Sequence[int],
    *,
    accept: Tensor | bool = True,
) -> Tensor:
    """Mix two points and subtract a combination of rows (Eq. 4 and 6), segment by segment.

    ``out[s] = before[s] + relaxation * (after - before)[s] - coefficients[s] @ rows[:, s]``,
    starting exactly from ``after`` with a relaxation of 1.
    Where not accepted, ``out = after``.

    Args:
        out: ``[N]``, changed in place; may be ``before`` or ``after``.
        before: ``[N]``.
        after: ``[N]``.
        relaxation: weight of ``after``.
        rows: ``[m, N]``.
        coefficients: ``[S, m]``, or ``[1, m]`` for all segments; any floating dtype, rounded
            to the dtype of ``out``.
        offsets: ``[S + 1]``.
        accept: a tensor is ``[]`` bool on the device of ``out`` and read there.

    Returns:
        ``[]`` the largest ``|out|``, NaN if an entry is.

    Raises:
        ValueError: shapes, dtypes, offsets or the device of ``accept`` do not fit together.
    """
    for name, vector in (("out", out), ("before", before), ("after", after)):
        check_vector(name, vector, out.numel(), out.dtype)
    check_rows("rows", rows, out.numel())
    check_offsets(offsets, out.numel())
    allowed = (len(offsets) - 1, rows.shape[0]), (1, rows.shape[0])
    if coefficients.shape not in allowed:
        raise ValueError(
            f"coefficients have shape {tuple(coefficients.shape)}; for {len(offsets) - 1} "
            f"segments and {len(rows)} rows they must be {allowed[0]} or {allowed[1]}"
        )
    flag = check_flag("accept", accept, out.device)
    backend = native if native.serves(out, rows) else reference
    largest: Tensor = backend.extrapolate_(
        out, before, after, relaxation, rows, coefficients, offsets, flag
    )
    return largest


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
    backend = native if native.serves_window(window, out) else reference
    max_std: Tensor = backend.window_statistics(window, out)
    return max_std
