"""The end of a block: its means become rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .add_sample import three_sums
from .checks import check_flag, check_rows, check_vector, names
from .chunks import chunks
from .registry import Shares, op


def _shares(given: dict[str, Any]) -> Shares:
    """One row of each ring is written."""
    rows = ("step_rows", "slot"), ("gradient_rows", "slot"), ("noise_rows", "noise_slot")
    return {name: (0, given[name][:1].nbytes * (given[slot] >= 0)) for name, slot in rows}


@op(
    "push_block(Tensor(a!)[] sums, int count, *, Tensor(b!) last_point, Tensor(c!) last_gradient, "
    "Tensor(d!) step_rows, Tensor(e!) gradient_rows, Tensor(f!) noise_rows, int slot, "
    "int noise_slot, Tensor? paired=None, Tensor? accept=None) -> ()",
    shares=_shares,
)
def push_block(
    sums: Sequence[Tensor],
    count: int,
    *,
    last_point: Tensor,
    last_gradient: Tensor,
    step_rows: Tensor,
    gradient_rows: Tensor,
    noise_rows: Tensor,
    slot: int,
    noise_slot: int,
    paired: Tensor | None = None,
    accept: Tensor | None = None,
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
        slot: the row to write, or -1 after the first block.
        noise_slot: the row to write, or -1 without a third sum.
        paired: whether ``last_point`` and ``last_gradient`` are those of a block, so that
            ``step_rows`` and ``gradient_rows`` can be made; else these rows are zero. As ``accept``
            it is ``[]`` bool on the device of ``last_point``, read there; None for true.
        accept: whether the block can be used.

    Raises:
        ValueError: shapes, dtypes or the device of a flag do not fit together.
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
    if step_rows.shape != gradient_rows.shape or not -1 <= slot < depth:
        raise ValueError(
            f"slot is {slot}, step_rows is {tuple(step_rows.shape)} and gradient_rows "
            f"{tuple(gradient_rows.shape)}; they must be alike and have that row"
        )
    if len({rows.dtype for rows in rings.values()}) > 1:
        raise ValueError(f"rows are {names([r.dtype for r in rings.values()])}; use one dtype")
    point_sum, gradient_sum, noise_sum = three_sums(sums)
    assert gradient_sum is not None
    if (noise_slot < 0) != (noise_sum is None) or not -1 <= noise_slot < noises:
        raise ValueError(
            f"noise_slot is {noise_slot} beside {len(sums)} sums and {noises} noise rows; three "
            "sums need a row, two have none"
        )
    check_flag("paired", paired, last_point.device)
    check_flag("accept", accept, last_point.device)
    usable = accept if paired is None or accept is None else accept & paired
    usable = paired if accept is None else usable
    for chunk in chunks(0, last_point.numel()):
        step, gradient = point_sum[chunk] / count, gradient_sum[chunk] / count
        point, last = last_point[chunk], last_gradient[chunk]
        if slot >= 0:
            step_rows[slot, chunk] = _if_true(usable, step, 0)
            gradient_rows[slot, chunk] = _if_true(usable, gradient - last, 0)
        if noise_sum is not None:
            noise_rows[noise_slot, chunk] = _if_true(accept, noise_sum[chunk] / count, 0)
        point.copy_(_if_true(accept, point + step, point))
        last.copy_(_if_true(accept, gradient, last))
    for total in sums:
        total.zero_()


def _if_true(flag: Tensor | None, new: Tensor, old: Tensor | float) -> Tensor:
    return new if flag is None else torch.where(flag, new, old)
