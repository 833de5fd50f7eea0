"""Ops on blocks of samples (point, gradient): sums, secant rows, products, the Newton step.

The public names are those of ``aadl_ext.ops``; the notation is explained there.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import native, reference, small
from .checks import (
    STORAGE_DTYPES,
    check_flag,
    check_offsets,
    check_rows,
    check_vector,
    names,
)
from .types import SubspaceSolution


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
    point_sum, gradient_sum, noise_sum = _three(sums)
    vectors = {"point": point, "anchor": anchor, "gradient": gradient, "direction": direction}
    vectors.update(point_sum=point_sum, gradient_sum=gradient_sum, noise_sum=noise_sum)
    for name, vector in vectors.items():
        if vector is not None:
            check_vector(name, vector, point.numel(), point.dtype)
    backend = native if native.serves(point) else reference
    figures: Tensor = backend.add_sample_(
        point_sum, gradient_sum, noise_sum, point, anchor, gradient, sign, direction
    )
    return figures


def _three(sums: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    if len(sums) not in (2, 3):
        raise ValueError(f"got {len(sums)} sums; expected two or three")
    return sums[0], sums[1], sums[2] if len(sums) == 3 else None


def push_block(
    sums: Sequence[Tensor],
    count: int,
    *,
    last_point: Tensor,
    last_gradient: Tensor,
    step_rows: Tensor,
    gradient_rows: Tensor,
    noise_rows: Tensor,
    slot: int | None,
    noise_slot: int | None,
    accept: Tensor | bool = True,
) -> None:
    """Close a block: its means become the last ones, their changes enter the rings.

    With the means ``p``, ``g``, ``a`` of the three sums: ``step_rows[slot] = p``, which is
    the way from the last mean point, since the sums were taken from there;
    ``gradient_rows[slot] = g - last_gradient``; ``noise_rows[noise_slot] = a``;
    ``last_point += p``; ``last_gradient = g``; the sums become zero.

    **A block that cannot be used**, since a sample of it is not finite, is not accepted: its rows
    become zero, ``last_point`` and ``last_gradient`` stay as they are.

    Args:
        sums: two or three vectors ``[N]`` of :func:`add_sample_` with ``anchor=last_point``.
        count: samples in them, >= 1.
        last_point: ``[N]`` mean point of the block before, changed in place.
        last_gradient: ``[N]`` mean gradient of the block before, changed in place.
        step_rows: ``[m, N]``, row ``slot`` changed in place.
        gradient_rows: ``[m, N]``, row ``slot`` changed in place.
        noise_rows: ``[J, N]``, row ``noise_slot`` changed in place.
        slot: the row to write, or None after the first block.
        noise_slot: the row to write, or None without a third sum.
        accept: a tensor is ``[]`` bool on the device of ``last_point`` and read there.

    Raises:
        ValueError: shapes, dtypes or the device of ``accept`` do not fit together.
    """
    if count < 1:
        raise ValueError(f"count is {count}; a block has at least one sample")
    size, dtype = last_point.numel(), last_point.dtype
    for name, vector in (("last_point", last_point), ("last_gradient", last_gradient)):
        check_vector(name, vector, size, dtype)
    for vector in sums:
        check_vector("sums", vector, size, dtype)
    rings = {"step_rows": step_rows, "gradient_rows": gradient_rows, "noise_rows": noise_rows}
    for name, rows in rings.items():
        check_rows(name, rows, size)
    depth, noises = step_rows.shape[0], noise_rows.shape[0]
    if step_rows.shape != gradient_rows.shape or (slot is not None and not 0 <= slot < depth):
        raise ValueError(
            f"slot is {slot}, step_rows is {tuple(step_rows.shape)} and gradient_rows "
            f"{tuple(gradient_rows.shape)}; they must be alike and have that row"
        )
    if len({rows.dtype for rows in rings.values()}) > 1:
        raise ValueError(f"rows are {names([r.dtype for r in rings.values()])}; use one dtype")
    point_sum, gradient_sum, noise_sum = _three(sums)
    there = noise_slot is None or 0 <= noise_slot < noises
    if (noise_slot is None) != (noise_sum is None) or not there:
        raise ValueError(
            f"noise_slot is {noise_slot} beside {len(sums)} sums and {noises} noise rows; three "
            "sums need a row, two have none"
        )
    flag = check_flag("accept", accept, last_point.device)
    served = all(native.serves(last_point, rows) for rows in rings.values())
    backend = native if served else reference
    backend.push_block(
        point_sum,
        gradient_sum,
        noise_sum,
        count,
        last_point,
        last_gradient,
        step_rows,
        gradient_rows,
        noise_rows,
        slot,
        noise_slot,
        flag,
    )


def cross_products(rows: Tensor, vectors: Sequence[Tensor], offsets: Sequence[int]) -> Tensor:
    """Products of every row with every vector, in each segment.

    Args:
        rows: ``[m, N]``.
        vectors: k vectors ``[N]`` of any storage dtypes; may be rows.
        offsets: ``[S + 1]``.

    Returns:
        ``[S, m, k]`` float64, accumulated in float64.

    Raises:
        ValueError: shapes, dtypes or offsets do not fit together.
    """
    check_rows("rows", rows, rows.shape[-1])
    check_offsets(offsets, rows.shape[1])
    if not vectors:
        raise ValueError("there are no vectors; pass at least one")
    for vector in vectors:
        if vector.shape != rows.shape[1:] or vector.dtype not in STORAGE_DTYPES:
            raise ValueError(
                f"a vector is {names((vector.dtype,))} {tuple(vector.shape)}; it must have shape "
                f"{tuple(rows.shape[1:])} in one of {names(STORAGE_DTYPES)}"
            )
    served = native.serves_list(vectors) and native.serves_rows(rows)
    served = served and all(vector.is_contiguous() for vector in vectors)
    backend = native if served else reference
    products: Tensor = backend.cross_products(rows, vectors, offsets)
    return products


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
    backend = native if native.serves(metric) else small
    solution: SubspaceSolution = backend.solve_subspace(
        metric, curvature, right_side, noise, radius, ridge, floor, shrinkage
    )
    return solution
