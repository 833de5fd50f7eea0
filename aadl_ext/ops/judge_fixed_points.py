"""The verdict over every sample of a batch of fixed points."""

from __future__ import annotations

import torch
from torch import Tensor

from .registry import op

RUNNING, CONVERGED, DIVERGED, STAGNATED = range(4)


@op(
    "judge_fixed_points_(Tensor norm, Tensor size, Tensor sound, *, Tensor(a!) residuals, "
    "Tensor(b!) counts, Tensor(c!) status, Tensor(d!) flags, float tol, float abs_tol, "
    "float progress, int patience, bool compares, bool stores) -> Tensor"
)
def judge_fixed_points_(
    norm: Tensor,
    size: Tensor,
    sound: Tensor,
    *,
    residuals: Tensor,
    counts: Tensor,
    status: Tensor,
    flags: Tensor,
    tol: float,
    abs_tol: float,
    progress: float,
    patience: int,
    compares: bool,
    stores: bool,
) -> Tensor:
    """Say of each of B samples, after an evaluation y = f(x) with r = y - x, what becomes of it.

    A running sample has

    - converged (status 1) where ``|r| <= abs_tol + tol |y|``;
    - to go back to its last stored pair where x was extrapolated and is not sound, or no nearer
      than that pair if ``compares``, and not converged;
    - diverged (2) where it is not sound and does not go back;
    - stagnated (3) where none of ``patience`` evaluations has brought ``|r|`` below ``progress``
      times what it was when one last did.

    Its best point is x where ``|r|`` is less than ever. ``held`` tells that the best one is the
    stored point, of which nobody needs a copy until another is stored in its place.

    Args:
        norm: ``[B]`` float64, ``|r|``.
        size: ``[B]`` float64, ``|y|``.
        sound: ``[B]`` bool, whether y can be calculated with.
        residuals: ``[3, B]`` float64, changed in place: ``|r|`` of the best point, of the last
            stored pair, and where there was progress last.
        counts: ``[2, B]`` int64, changed in place: evaluations since progress, and until the end.
        status: ``[B]`` uint8, changed in place; 0: running.
        flags: ``[2, B]`` bool: ``held``, changed in place, and whether x was extrapolated.
        tol: relative tolerance.
        abs_tol: absolute tolerance.
        progress: below 1.
        patience: evaluations.
        compares: whether an extrapolated x must be nearer than the last stored one.
        stores: whether x and r are stored after this.

    Returns:
        ``[3, B]`` bool: whether the best point is lost if it is not copied now, from where the
        last stored pair is if ``stores``, and else from x; whether the sample goes back; whether
        it has just ended.

    Raises:
        ValueError: shapes or dtypes do not fit together.
    """
    batch = tuple(norm.shape)
    kinds = {
        "norm": (norm, torch.float64, batch[:1]),
        "size": (size, torch.float64, batch),
        "sound": (sound, torch.bool, batch),
        "residuals": (residuals, torch.float64, (3, *batch)),
        "counts": (counts, torch.int64, (2, *batch)),
        "status": (status, torch.uint8, batch),
        "flags": (flags, torch.bool, (2, *batch)),
    }
    for name, (tensor, dtype, shape) in kinds.items():
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}; expected {dtype} of shape {shape}"
            )
    least, stored, mark = residuals
    since, steps = counts
    held, extrapolated = flags
    running = status == RUNNING
    done = running & sound & (norm <= abs_tol + tol * size)
    nearer = sound & (norm < stored) if compares else sound
    back = running & extrapolated & ~nearer & ~done
    better = running & sound & (norm < least)
    keeps = held & (~running | back) & ~better
    lost = held & ~keeps & ~better if stores else better
    held.copy_(better | keeps if stores else held & ~better)
    least.copy_(torch.where(better, norm, least))
    progressed = sound & (norm < progress * mark)
    mark.copy_(torch.where(progressed, norm, mark))
    since.add_(1).masked_fill_(progressed, 0)
    steps.add_(running)
    for ended, reason in (
        (running & (since >= patience), STAGNATED),
        (done, CONVERGED),
        (running & ~sound & ~back, DIVERGED),
    ):
        status.masked_fill_(ended, reason)
    goes_on = status == RUNNING
    if stores:
        stored.copy_(torch.where(goes_on & ~back, norm, stored))
    return torch.stack([lost, back, running & ~goes_on])
