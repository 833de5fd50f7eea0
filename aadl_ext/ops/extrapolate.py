"""The extrapolated point (Eq. 4 and 6)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .checks import check_flag, check_offsets, check_rows, check_vector
from .chunks import chunks
from .registry import op


@op(
    "extrapolate_(Tensor(a!) out, Tensor before, Tensor after, float relaxation, Tensor rows, "
    "Tensor coefficients, int[] offsets, *, Tensor? accept=None) -> Tensor",
    same=True,
    fresh=("out",),
    shares=lambda given: {"before": (given["before"].nbytes * (given["relaxation"] != 1), 0)},
)
def extrapolate_(
    out: Tensor,
    before: Tensor,
    after: Tensor,
    relaxation: float,
    rows: Tensor,
    coefficients: Tensor,
    offsets: Sequence[int],
    *,
    accept: Tensor | None = None,
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
        coefficients: ``[S, m]``, or ``[1, m]`` for all segments; contiguous float64, rounded
            to the dtype of ``out``.
        offsets: ``[S + 1]``.
        accept: ``[]`` bool on the device of ``out``, read there; None for true.

    Returns:
        ``[2]`` the largest ``|out|`` and the largest ``|out - after|``, NaN if an entry is.

    Raises:
        ValueError: shapes, dtypes, offsets or the device of ``accept`` do not fit together.
    """
    for name, vector in (("out", out), ("before", before), ("after", after)):
        check_vector(name, vector, out.numel(), out.dtype)
    check_rows("rows", rows, out.numel())
    check_offsets(offsets, out.numel())
    allowed = (len(offsets) - 1, rows.shape[0]), (1, rows.shape[0])
    if coefficients.shape not in allowed or coefficients.dtype != torch.float64:
        raise ValueError(
            f"coefficients are {coefficients.dtype} {tuple(coefficients.shape)}; for "
            f"{len(offsets) - 1} segments and {len(rows)} rows they must be torch.float64 "
            f"{allowed[0]} or {allowed[1]}"
        )
    check_flag("accept", accept, out.device)
    weights = coefficients.to(out.dtype).expand(len(offsets) - 1, -1)
    sizes = out.new_zeros(2)
    for index, (start, stop) in enumerate(pairwise(offsets)):
        for chunk in chunks(start, stop):
            point = torch.lerp(before[chunk], after[chunk], relaxation)
            point.addmv_(rows[:, chunk].to(out.dtype).T, weights[index], alpha=-1)
            if accept is not None:
                point = torch.where(accept, point, after[chunk])
            both = torch.stack([point.abs().amax(), (point - after[chunk]).abs().amax()])
            sizes = torch.maximum(sizes, both)  # NaN passes through
            out[chunk] = point
    return sizes
