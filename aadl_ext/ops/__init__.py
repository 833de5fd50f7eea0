"""The kernel ops: fused passes over memory that the accelerated step is made of.

Notation: ``N`` entries of a flat vector, ``S`` contiguous segments of it with
``offsets`` of ``S + 1`` increasing positions from 0, ``m`` rows of history. Vectors and
rows are contiguous along ``N``. Working vectors are float32 or float64; rows may also
be bfloat16 or float16. Nothing is differentiable. Each op has a file with its docstring, its
checks, its schema and its definition in pure PyTorch, which runs where no compiled kernel does.
"""

from .add_sample import add_sample_
from .checks import STORAGE_DTYPES
from .cross_products import cross_products
from .differs import differs
from .extrapolate import extrapolate_
from .fit_quadratic import QuadraticFit, fit_quadratic
from .gather import gather, scatter_
from .judge_fixed_points import judge_fixed_points_
from .library import backends
from .push_block import push_block
from .push_secant import push_secant
from .sketch import sketch
from .solve_quasi_newton import QuasiNewtonSolution, solve_quasi_newton
from .solve_secants import SecantSolution, solve_secants
from .solve_subspace import SubspaceSolution, solve_subspace
from .squared_norm import squared_norm
from .tsqr import tsqr
from .verdicts import (
    Verdicts,
    arm_,
    average_,
    compare_,
    judge_gradient_,
    judge_line_,
    judge_residual_,
    judge_slope_,
    learn_,
    take_line_,
)
from .window_statistics import window_statistics

__all__ = [
    "STORAGE_DTYPES",
    "QuadraticFit",
    "QuasiNewtonSolution",
    "SecantSolution",
    "SubspaceSolution",
    "Verdicts",
    "add_sample_",
    "arm_",
    "average_",
    "backends",
    "compare_",
    "cross_products",
    "differs",
    "extrapolate_",
    "fit_quadratic",
    "gather",
    "judge_fixed_points_",
    "judge_gradient_",
    "judge_line_",
    "judge_residual_",
    "judge_slope_",
    "learn_",
    "push_block",
    "push_secant",
    "scatter_",
    "sketch",
    "solve_quasi_newton",
    "solve_secants",
    "solve_subspace",
    "squared_norm",
    "take_line_",
    "tsqr",
    "window_statistics",
]
