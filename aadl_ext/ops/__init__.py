"""The kernel ops: fused passes over memory that the accelerated step is made of.

Notation: ``N`` entries of a flat vector, ``S`` contiguous segments of it with
``offsets`` of ``S + 1`` increasing positions from 0, ``m`` rows of history. Vectors and
rows are contiguous along ``N``. Working vectors are float32 or float64; rows may also
be bfloat16 or float16. Nothing is differentiable. Each op is defined by the function of
the same name in ``reference.py``, ``tall.py`` (QR) or ``small.py`` (small dense problems).
"""

from __future__ import annotations

import torch

from . import native
from .blocks import add_sample_, cross_products, push_block, solve_subspace
from .checks import STORAGE_DTYPES
from .lists import gather, scatter_, squared_norm
from .secants import extrapolate_, push_secant, solve_secants, tsqr, window_statistics
from .types import SecantSolution, SubspaceSolution

__all__ = [
    "STORAGE_DTYPES",
    "SecantSolution",
    "SubspaceSolution",
    "add_sample_",
    "backends",
    "cross_products",
    "extrapolate_",
    "gather",
    "push_block",
    "push_secant",
    "scatter_",
    "solve_secants",
    "solve_subspace",
    "squared_norm",
    "tsqr",
    "window_statistics",
]


def backends() -> dict[str, str]:
    """Name of each backend and whether it serves the ops here, or why it does not."""
    return {
        "pytorch": f"available (torch {torch.__version__})",
        "cpu kernels": native.missing or "available",
        "cuda kernels": native.cuda_missing or "available",
    }
