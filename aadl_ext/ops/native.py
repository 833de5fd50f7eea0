"""The compiled library: load it or say why not; its ops, called as those of reference.py.

``AADL_EXT_NATIVE=0`` in the environment leaves it out; ``1`` makes a missing library an error.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from . import fakes
from .checks import STORAGE_DTYPES
from .types import SecantSolution, SubspaceSolution


def _load() -> str | None:
    """Load the library; the reason if that is not possible."""
    choice = os.environ.get("AADL_EXT_NATIVE", "auto")
    if choice == "0":
        return "switched off by AADL_EXT_NATIVE=0"
    found = sorted(Path(__file__).parents[1].glob("_native*"))
    missing = None
    if not found:
        missing = "not built: install with a C++ compiler and AADL_EXT_NATIVE=1 to see why"
    else:
        try:
            torch.ops.load_library(str(found[0]))  # type: ignore[no-untyped-call]
        except OSError as error:
            missing = f"{found[0].name} does not load with torch {torch.__version__}: {error}"
    if missing and choice == "1":
        raise ImportError(f"AADL_EXT_NATIVE=1, but the compiled library is missing: {missing}")
    if missing:
        warnings.warn(
            f"aadl_ext runs on its slower PyTorch definitions: the compiled library is {missing}. "
            "AADL_EXT_NATIVE=0 silences this",
            RuntimeWarning,
            stacklevel=2,
        )
    if missing is None:
        fakes.register()
    return missing


missing = _load()  #: why there is no compiled library; None if there is one


def _cuda_missing() -> str | None:
    """Why there are no CUDA kernels; None if there are."""
    if missing is not None:
        return missing
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    if has("aadl_ext::push_secant", "CUDA"):
        return None
    return "not built: install with nvcc and AADL_EXT_CUDA=1"


cuda_missing = _cuda_missing()  #: why there are no CUDA kernels; None if there are

_DEVICES = frozenset(
    name for name, lacks in (("cpu", missing), ("cuda", cuda_missing)) if lacks is None
)
_MOST_ITERATES = 256  # of a window on CUDA
_MOST_COLUMNS = 40  # of a factor on CUDA
_ROWS = {
    torch.float32: (torch.float32, torch.bfloat16, torch.float16),
    torch.float64: (torch.float64, torch.float32),
}


def serves(vector: Tensor, rows: Tensor | None = None) -> bool:
    """Whether there is a kernel for this device, and for these rows beside these vectors."""
    if vector.device.type not in _DEVICES:
        return False
    fits = rows is None or (rows.dtype in _ROWS[vector.dtype] and rows.device == vector.device)
    return fits and (rows is None or rows.stride(1) == 1)


def serves_rows(rows: Tensor) -> bool:
    """Whether there is a kernel for these rows beside vectors of any dtype."""
    return rows.device.type in _DEVICES and (rows.stride(1) == 1 or rows.shape[1] < 2)


def serves_list(tensors: Sequence[Tensor], flat: Tensor | None = None) -> bool:
    """Whether there is a kernel for such a list, or for copies between it and a flat vector."""
    first = tensors[0] if flat is None else flat
    device = first.device
    if device.type not in _DEVICES or first.dtype not in STORAGE_DTYPES:
        return False
    if flat is not None and not flat.is_contiguous():
        return False
    for tensor in tensors:  # thousands perhaps, at every step
        if tensor.device != device or tensor.dtype not in STORAGE_DTYPES:
            return False
    return True


def serves_window(window: Sequence[Tensor], out: Tensor) -> bool:
    """Whether there is a kernel for so many iterates."""
    return serves(out) and (out.is_cpu or len(window) <= _MOST_ITERATES)


def serves_matrix(matrix: Tensor, append: Tensor | None) -> bool:
    """Whether there is a kernel for a matrix, of any strides, beside a further column."""
    served = matrix.dtype in (torch.float32, torch.float64) and serves(matrix)
    columns = matrix.shape[-1] + (append is not None)
    return served and (matrix.is_cpu or columns <= _MOST_COLUMNS)


def gather(tensors: Sequence[Tensor], out: Tensor, when: Tensor | None = None) -> None:
    torch.ops.aadl_ext.gather(tensors, out, when)
    torch.autograd.graph.increment_version((out,))  # as every in-place op of torch does


def scatter_(tensors: Sequence[Tensor], flat: Tensor, when: Tensor | None = None) -> None:
    torch.ops.aadl_ext.scatter(tensors, flat, when)
    torch.autograd.graph.increment_version(tensors)


def squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    total: Tensor = torch.ops.aadl_ext.squared_norm(tensors)
    return total


def push_secant(
    before: Tensor,
    after: Tensor,
    rates: Sequence[float],
    offsets: Sequence[int],
    residual: Tensor,
    last_point: Tensor,
    last_residual: Tensor,
    step_rows: Tensor,
    residual_rows: Tensor,
    slot: int | None,
    systems: Tensor | None,
) -> Tensor:
    figures: Tensor = torch.ops.aadl_ext.push_secant(
        before,
        after,
        last_point,
        last_residual,
        rates,
        offsets,
        residual,
        step_rows,
        residual_rows,
        -1 if slot is None else slot,
        systems,
    )
    return figures


def extrapolate_(
    out: Tensor,
    before: Tensor,
    after: Tensor,
    relaxation: float,
    rows: Tensor,
    coefficients: Tensor,
    offsets: Sequence[int],
    accept: Tensor | None = None,
) -> Tensor:
    weights = coefficients.to(device=out.device, dtype=torch.float64).contiguous()
    largest: Tensor = torch.ops.aadl_ext.extrapolate(
        before, after, relaxation, rows, weights, offsets, out, accept
    )
    return largest


def window_statistics(window: Sequence[Tensor], out: Tensor) -> Tensor:
    max_std: Tensor = torch.ops.aadl_ext.window_statistics(window, out)
    return max_std


def tsqr(matrix: Tensor, append: Tensor | None, offsets: Sequence[int] | None) -> Tensor:
    *batch, length, columns = matrix.shape
    rows = matrix.movedim(-1, 0).reshape(columns, -1)  # a view of the history's rows,
    rows = rows if rows.stride(1) == 1 else rows.contiguous()  # other matrices are copied
    if append is not None:
        wide = torch.float64 in (matrix.dtype, append.dtype)
        append = append.reshape(-1).to(torch.float64 if wide else torch.float32)
    # A batch of equal matrices is one long matrix, factored in equal pieces.
    pieces = offsets or [index * length for index in range(math.prod(batch) + 1)]
    factor: Tensor = torch.ops.aadl_ext.tsqr(rows, append, pieces)
    return factor if offsets is not None else factor.reshape(*batch, *factor.shape[1:])


def solve_secants(system: Tensor, factored: bool, ridge: float, tolerance: float) -> SecantSolution:
    solution = torch.ops.aadl_ext.solve_secants(
        system.double().contiguous(), factored, ridge, tolerance
    )
    return SecantSolution(*solution)


def add_sample_(
    point_sum: Tensor,
    gradient_sum: Tensor,
    noise_sum: Tensor | None,
    point: Tensor,
    anchor: Tensor,
    gradient: Tensor,
    sign: float,
    direction: Tensor | None,
) -> Tensor:
    figures: Tensor = torch.ops.aadl_ext.add_sample(
        point_sum, gradient_sum, noise_sum, point, anchor, gradient, sign, direction
    )
    return figures


def push_block(
    point_sum: Tensor,
    gradient_sum: Tensor,
    noise_sum: Tensor | None,
    count: int,
    last_point: Tensor,
    last_gradient: Tensor,
    step_rows: Tensor,
    gradient_rows: Tensor,
    noise_rows: Tensor,
    slot: int | None,
    noise_slot: int | None,
    accept: Tensor | None = None,
) -> None:
    torch.ops.aadl_ext.push_block(
        point_sum,
        gradient_sum,
        noise_sum,
        count,
        last_point,
        last_gradient,
        step_rows,
        gradient_rows,
        noise_rows,
        -1 if slot is None else slot,
        -1 if noise_slot is None else noise_slot,
        accept,
    )


def cross_products(rows: Tensor, vectors: Sequence[Tensor], offsets: Sequence[int]) -> Tensor:
    products: Tensor = torch.ops.aadl_ext.cross_products(rows, vectors, offsets)
    return products


def solve_subspace(
    metric: Tensor,
    curvature: Tensor,
    right_side: Tensor,
    noise: Tensor,
    radius: Tensor,
    ridge: float,
    floor: float,
    shrinkage: float,
) -> SubspaceSolution:
    inputs = (metric, curvature, right_side, noise, radius)
    solution = torch.ops.aadl_ext.solve_subspace(
        *(x.double().contiguous() for x in inputs), ridge, floor, shrinkage
    )
    return SubspaceSolution(*solution)
