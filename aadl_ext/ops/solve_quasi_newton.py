"""The quasi-Newton direction of L-BFGS, from products of its pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .registry import op
from .solve_secants import SHORTEST

CURVED = 1e-8  # least cosine between a step and its change of the gradient


class QuasiNewtonSolution(NamedTuple):
    """Coefficients of the way ``-(gradient g + steps S + changes Y)``; float64."""

    gradient: Tensor  #: [1, 1]
    steps: Tensor  #: [1, m]
    changes: Tensor  #: [1, m]


@op(
    "solve_quasi_newton(Tensor metric, Tensor curvature, Tensor gradient_metric, Tensor slopes, "
    "Tensor gradient_slopes, Tensor squared_norm, int newest, float growth) -> "
    "(Tensor gradient, Tensor steps, Tensor changes)",
    result=QuasiNewtonSolution,
)
def solve_quasi_newton(
    metric: Tensor,
    curvature: Tensor,
    gradient_metric: Tensor,
    slopes: Tensor,
    gradient_slopes: Tensor,
    squared_norm: Tensor,
    newest: int,
    growth: float,
) -> QuasiNewtonSolution:
    """The two-loop recursion of L-BFGS on products of m steps S and changes Y of the gradient g.

    In the compact form of Byrd, Nocedal and Schnabel (1994), with R the upper triangle of S Y^T in
    the order of time, D its diagonal and gamma = s.y / y.y of the newest pair, the way is
    ``-(gamma g - gamma Y^T p + S^T c)``, where ``R p = S g`` and
    ``R^T c = (D + gamma Y Y^T) p - gamma Y g``. Pairs without positive curvature have no part in
    it; if there is no other the way is that of steepest descent, as long as the newest step, or
    ``growth`` times as long where the curvature along that is negative. No way is longer than this.

    Args:
        metric: ``[m, m]`` S S^T; rows are a ring, a row that is not used is zero.
        curvature: ``[m, m]`` S Y^T.
        gradient_metric: ``[m, m]`` Y Y^T.
        slopes: ``[m]`` S g.
        gradient_slopes: ``[m]`` Y g.
        squared_norm: ``[]`` |g|^2.
        newest: the row of the newest pair.
        growth: at least 0.

    Returns:
        :class:`QuasiNewtonSolution`; zero where there is no finite one. Computed in float64.

    Raises:
        ValueError: shapes do not fit together, or there is no such row.
    """
    m = len(slopes)
    square = all(x.shape == (m, m) for x in (metric, curvature, gradient_metric))
    fits = slopes.shape == gradient_slopes.shape == (m,) and squared_norm.numel() == 1
    if not square or not fits or not 0 <= newest < m or growth < 0:
        shapes = [
            tuple(x.shape) for x in (metric, curvature, gradient_metric, slopes, gradient_slopes)
        ]
        raise ValueError(
            f"shapes are {shapes}, newest is {newest}, growth {growth}; expected [m, m] three "
            "times, [m] twice, a row of them and a number of at least 0"
        )
    shift = -1 - newest  # oldest first
    ss, sy, yy = (
        x.double().roll((shift, shift), (0, 1)) for x in (metric, curvature, gradient_metric)
    )
    sg, yg = slopes.double().roll(shift), gradient_slopes.double().roll(shift)
    gg = squared_norm.double().reshape(())
    numbers = torch.arange(1, m + 1, device=sg.device)
    squares = ss.diagonal()
    last_step = squares.take((numbers * (squares > 0)).argmax()).sqrt()
    along = sy.diagonal()
    longer = torch.where(along[-1] < 0, growth, 1.0)  # the minimum is further on
    lengths = (ss.diagonal() * yy.diagonal()).clamp_min(0).sqrt()
    used = along > (CURVED * lengths).clamp_min(SHORTEST)
    pair = used[:, None] & used
    ss, sy, yy = (torch.where(pair, x, 0.0) for x in (ss, sy, yy))
    sg, yg, along = (torch.where(used, x, 0.0) for x in (sg, yg, along))
    steepest = torch.where(gg > 0, longer * last_step * gg.rsqrt(), 0.0)
    latest = (numbers * used).argmax()
    ratio = along / torch.where(used, yy.diagonal(), 1.0)
    scaled = torch.where(used.any(), ratio.take(latest), steepest)
    upper = torch.where(used, sy.triu(), 0.0) + torch.diag(torch.where(used, 0.0, 1.0))
    p = torch.linalg.solve_triangular(upper, sg[:, None], upper=True)[:, 0]
    right = along * p + scaled * (yy @ p - yg)
    c = torch.linalg.solve_triangular(upper.mT, right[:, None], upper=False)[:, 0]
    q = -scaled * p
    products = scaled * (scaled * gg + 2 * (c @ sg + q @ yg)) + c @ ss @ c + q @ yy @ q
    length = (products + 2 * (c @ sy @ q)).clamp_min(0).sqrt()
    share = torch.where(length > growth * last_step, growth * last_step / length, 1.0)
    found = torch.cat((scaled.reshape(1), c.roll(-shift), q.roll(-shift))) * share
    found = torch.where(found.isfinite().all(), found, 0.0)[None]
    own = torch.contiguous_format  # results of an op share no memory
    parts = torch.split(found, [1, m, m], dim=1)
    return QuasiNewtonSolution(*(x.clone(memory_format=own) for x in parts))
