"""Arguments of every op, for what all of them do alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from strategies import normal
from torch import Tensor

from aadl_ext import ops

Arguments = dict[str, Any]


def vector(seed: int, size: int = 8) -> Tensor:
    return normal(size, seed=seed, dtype=torch.float32).clone()


def ring(seed: int, size: int = 8, rows: int = 3) -> Tensor:
    return normal(rows, size, seed=seed, dtype=torch.float32).clone()


def flag() -> Tensor:
    return torch.tensor(True)


def small(*shape: int) -> Tensor:
    return normal(*shape, seed=1).abs()


# Of each op: the function, its arguments over so many entries, and those changed in place.
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Arguments], tuple[str, ...]]] = {
    "gather": (
        ops.gather,
        lambda n=8: {
            "tensors": [vector(0, n // 2 - 1), vector(1, n // 2)], "out": vector(2, n),
            "when": flag(),
        },
        ("out",),
    ),
    "scatter_": (
        ops.scatter_,
        lambda n=8: {
            "tensors": [vector(0, n // 2 - 1), vector(1, n // 2)], "flat": vector(2, n),
            "when": flag(),
        },
        ("tensors",),
    ),
    "squared_norm": (ops.squared_norm, lambda n=8: {"tensors": [vector(0, n), vector(1, n)]}, ()),
    "differs": (ops.differs, lambda n=8: {"one": vector(0, n), "other": vector(1, n)}, ()),
    "push_secant": (
        ops.push_secant,
        lambda n=8: {
            "before": vector(0, n), "after": vector(1, n), "rates": [0.1], "offsets": [0, n],
            "residual": vector(2, n), "last_point": vector(3, n), "last_residual": vector(4, n),
            "step_rows": ring(5, n), "residual_rows": ring(6, n), "slot": 1, "paired": flag(),
            "systems": small(1, 4, 4), "rounding": [1e-3], "noise": small(1, 3),
        },
        ("residual", "step_rows", "residual_rows", "systems", "noise"),
    ),
    "extrapolate_": (
        ops.extrapolate_,
        lambda n=8: {
            "out": vector(0, n), "before": vector(1, n), "after": vector(2, n), "relaxation": 0.5,
            "rows": ring(3, n), "coefficients": small(1, 3), "offsets": [0, n], "accept": flag(),
        },
        ("out",),
    ),
    "window_statistics": (
        ops.window_statistics,
        lambda n=8: {"window": [vector(0, n), vector(1, n)], "out": vector(2, n)},
        ("out",),
    ),
    "tsqr": (ops.tsqr, lambda n=8: {"matrix": ring(0, n).T, "append": vector(1, n)}, ()),
    "solve_secants": (
        ops.solve_secants,
        lambda n=8: {"system": torch.eye(3).double()[None], "factored": False,
            "noise": 0.01 * small(1, 2).abs(),
        },
        (),
    ),
    "add_sample_": (
        lambda point_sum, gradient_sum, point, gradient, **others: ops.add_sample_(
            [point_sum, gradient_sum], points=[point], gradients=[gradient], **others
        ),
        lambda n=8: {
            "point_sum": vector(0, n), "gradient_sum": vector(1, n), "point": vector(2, n),
            "anchor": vector(3, n), "gradient": vector(4, n), "direction": vector(5, n),
            "sign": 1.0,
        },
        ("point_sum", "gradient_sum"),
    ),
    "push_block": (
        lambda point_sum, gradient_sum, noise_sum, **others: ops.push_block(
            [point_sum, gradient_sum, noise_sum], **others
        ),
        lambda n=8: {
            "point_sum": vector(0, n), "gradient_sum": vector(1, n), "noise_sum": vector(2, n),
            "count": 2, "last_point": vector(3, n), "last_gradient": vector(4, n),
            "step_rows": ring(5, n), "gradient_rows": ring(6, n),
            "noise_rows": ring(7, n), "slot": 1, "noise_slot": 0,
            "paired": flag(), "accept": flag(),
        },
        ("point_sum", "gradient_sum", "noise_sum", "last_point", "last_gradient", "step_rows",
         "gradient_rows", "noise_rows"),
    ),
    "cross_products": (
        ops.cross_products,
        lambda n=8: {
            "rows": ring(0, n), "vectors": [vector(1, n), vector(2, n)], "offsets": [0, n],
        },
        (),
    ),
    "solve_subspace": (
        ops.solve_subspace,
        lambda n=8: {
            "metric": torch.eye(3).double()[None], "curvature": small(1, 3, 3),
            "right_side": small(1, 3), "noise": small(1, 3, 2), "radius": small(1),
        },
        (),
    ),
    "fit_quadratic": (
        ops.fit_quadratic,
        lambda n=8: {
            "metric": torch.eye(3).double()[None], "curvature": small(1, 3, 3),
            "right_side": small(1, 3), "noise": small(1, 3, 2), "newest": 1, "count": 3,
        },
        (),
    ),
    "solve_quasi_newton": (
        ops.solve_quasi_newton,
        lambda n=8: {
            "metric": torch.eye(3).double(), "curvature": torch.eye(3).double(),
            "gradient_metric": torch.eye(3).double(), "slopes": small(3),
            "gradient_slopes": small(3), "squared_norm": small(1), "newest": 1, "growth": 4.0,
        },
        (),
    ),
    "sketch": (
        ops.sketch,
        lambda n=8: {
            "tensors": [vector(0, n // 2), vector(1, n)], "size": n // 3, "weights": [1.0, 2.0],
        },
        (),
    ),
    "judge_fixed_points_": (
        ops.judge_fixed_points_,
        lambda n=8: {
            "norm": small(n), "size": small(n), "sound": small(n) > 0.5,
            "residuals": small(3, n), "counts": torch.ones(2, n, dtype=torch.int64),
            "status": torch.zeros(n, dtype=torch.uint8), "flags": small(2, n) > 0.5, "tol": 0.1,
            "abs_tol": 0.1, "progress": 0.9, "patience": 2, "compares": True, "stores": True,
        },
        ("residuals", "counts", "status", "flags"),
    ),
}  # fmt: skip
every_op = pytest.mark.parametrize("name", CASES)
