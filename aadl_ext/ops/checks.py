"""Argument checks of the ops: what was got, and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .library import DEVICES

WORKING_DTYPES = (torch.float32, torch.float64)
STORAGE_DTYPES = (*WORKING_DTYPES, torch.bfloat16, torch.float16)
# Row dtypes that compiled kernels take beside vectors of a dtype.
KERNEL_ROWS = {
    torch.float32: (torch.float32, torch.bfloat16, torch.float16),
    torch.float64: (torch.float64, torch.float32),
}


def rows_fit(vector: Tensor, rows: Tensor) -> bool:
    """Whether there are compiled kernels for these rows beside these vectors."""
    return (
        vector.device.type in DEVICES
        and rows.dtype in KERNEL_ROWS[vector.dtype]
        and (rows.stride(1) == 1 or rows.shape[1] < 2)
    )


def check_flat(tensors: Sequence[Tensor], flat: Tensor, name: str) -> None:
    """Require a vector that holds all tensors."""
    needed = sum(tensor.numel() for tensor in tensors)
    if flat.ndim != 1 or flat.numel() < needed:
        raise ValueError(
            f"{name} has shape {tuple(flat.shape)}; the tensors need a vector of {needed} entries"
        )


def check_vector(name: str, vector: Tensor, size: int, dtype: torch.dtype | None) -> None:
    """Require a vector of this size, in this dtype or any working dtype."""
    if vector.ndim != 1 or vector.numel() != size:
        raise ValueError(f"{name} has shape {tuple(vector.shape)}; expected ({size},)")
    if vector.dtype not in WORKING_DTYPES or (dtype is not None and vector.dtype != dtype):
        allowed = names((dtype,) if dtype in WORKING_DTYPES else WORKING_DTYPES)
        raise ValueError(f"{name} is {vector.dtype}; allowed: {allowed}")


def check_rows(name: str, rows: Tensor, size: int) -> None:
    """Require rows of this length, in a storage dtype."""
    if rows.ndim != 2 or rows.shape[1] != size:
        raise ValueError(f"{name} has shape {tuple(rows.shape)}; expected [m, {size}]")
    if rows.dtype not in STORAGE_DTYPES:
        raise ValueError(f"{name} is {rows.dtype}; allowed: {names(STORAGE_DTYPES)}")


def check_offsets(offsets: Sequence[int], size: int) -> None:
    """Require the bounds of segments of a vector of this size."""
    ordered = all(a <= b for a, b in pairwise(offsets))
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != size or not ordered:
        raise ValueError(f"offsets are {list(offsets)}; expected 0 to {size}, not decreasing")


def check_systems(systems: Tensor, segments: int, rows: int) -> None:
    """Require float64 Gram matrices with room for all rows and a right side."""
    shape = tuple(systems.shape)
    fits = len(shape) == 3 and shape[0] == segments and shape[1] == shape[2] > rows
    if not fits or systems.dtype != torch.float64 or not systems.is_contiguous():
        raise ValueError(
            f"systems are {names((systems.dtype,))} {shape}; for {segments} segments and {rows} "
            f"rows they must be contiguous float64 [{segments}, k, k] with k > {rows}"
        )


def check_flag(name: str, flag: Tensor | None, device: torch.device) -> None:
    """Require None or a bool on this device, which is not read."""
    if flag is None:
        return
    if not isinstance(flag, Tensor):
        raise ValueError(f"{name} is {flag!r}; expected a tensor of one bool, or None")
    if flag.ndim != 0 or flag.dtype != torch.bool or flag.device != device:
        raise ValueError(
            f"{name} is {names((flag.dtype,))} {tuple(flag.shape)} on {flag.device}; "
            f"expected bool () on {device}"
        )


def check_slot(name: str, slot: int, rows: int) -> None:
    """Require a row of a ring, or -1 for none."""
    if not -1 <= slot < rows:
        raise ValueError(f"{name} is {slot}; the ring has rows 0 to {rows - 1}, -1 is none")


def check_apart(changed: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Require that what is changed in place shares no memory with anything else."""
    for index, target in enumerate(changed):
        start = target.data_ptr()
        stop = start + target.nbytes
        for other in (*changed[:index], *others):
            begin = other.data_ptr()
            if start < begin + other.nbytes and begin < stop:
                raise ValueError(
                    f"a tensor of shape {tuple(target.shape)} that is changed in place overlaps "
                    f"another of shape {tuple(other.shape)}; pass separate tensors"
                )


def names(dtypes: Sequence[torch.dtype | None]) -> str:
    """Dtypes as a user writes them."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
