"""Argument checks of the ops: what was got, and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import Parameter

WORKING_DTYPES = (torch.float32, torch.float64)
FEW = 8  # tensors that are compared with each other, too
STORAGE_DTYPES = (*WORKING_DTYPES, torch.bfloat16, torch.float16)


def check_real(tensors: Sequence[Tensor]) -> None:
    """Require real floating dtypes."""
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise ValueError(f"a tensor is {tensor.dtype}; allowed are real floating dtypes")


def check_flat(tensors: Sequence[Tensor], flat: Tensor, name: str) -> None:
    """Require a vector that holds all tensors."""
    needed = sum(tensor.numel() for tensor in tensors)
    if flat.ndim != 1 or flat.numel() < needed:
        raise ValueError(
            f"{name} has shape {tuple(flat.shape)}; the tensors need a vector of {needed} entries"
        )


def check_alike(name: str, tensors: Sequence[Tensor], other: str, others: Sequence[Tensor]) -> None:
    """Require real floating dtypes and, one by one, the same shapes."""
    shapes, expected = ([tuple(x.shape) for x in listed] for listed in (tensors, others))
    if shapes != expected:
        raise ValueError(f"{name} have shapes {shapes} and {other} {expected}; pass one of each")
    check_real([*tensors, *others])


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


def one_each(name: str, numbers: Sequence[float], segments: int) -> Sequence[float]:
    """A number for each segment; one that is given alone is that of all."""
    if len(numbers) == 1:
        return [*numbers] * segments
    if len(numbers) != segments:
        raise ValueError(
            f"got {len(numbers)} {name} for {segments} segments; pass one each, or one for all"
        )
    return numbers


def check_noise(noise: Tensor | None, problems: int, columns: int, wider: bool = False) -> None:
    """Require None or squared errors, a contiguous float64 matrix, ``wider`` or not."""
    if noise is None:
        return
    shape = tuple(noise.shape)
    fits = shape == (problems, columns) or (
        wider and len(shape) == 2 and shape[0] == problems and shape[1] > columns
    )
    if not fits or noise.dtype != torch.float64 or not noise.is_contiguous():
        raise ValueError(
            f"noise is {names((noise.dtype,))} {shape}; expected contiguous float64 "
            f"[{problems}, {columns}{' or more' if wider else ''}]"
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


def check_apart(changed: Sequence[Tensor], others: Sequence[Tensor], same: bool) -> None:
    """Require that what is changed in place shares no memory with any other argument.

    ``same``: it may be one of the others. Of tensors with gaps between entries nothing is said,
    as in torch.
    """
    for target in changed:
        if 0 in target.stride() and target.numel() > 1:
            raise ValueError(
                f"a tensor of shape {tuple(target.shape)} and strides {target.stride()} is changed "
                "in place, but several of its entries are one place in memory; pass a copy"
            )
    spans = [(*_memory(x), x) for x in (*changed, *others)]
    for index, (start, stop, target) in enumerate(spans[: len(changed)]):
        compared = index if len(changed) <= FEW else 0
        for begin, end, other in (*spans[:compared], *spans[len(changed) :]):
            if begin >= stop or start >= end or (same and begin == start):
                continue
            if target.is_contiguous() and other.is_contiguous():
                raise ValueError(
                    f"a tensor of shape {tuple(target.shape)} that is changed in place overlaps "
                    f"another of shape {tuple(other.shape)}; pass separate tensors"
                )


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Where it begins and ends; nowhere while it is traced."""
    known = type(tensor) in (Tensor, Parameter)
    if not known or tensor.is_meta or torch._is_functional_tensor(tensor):
        return 0, 0
    start = tensor.data_ptr()
    return start, start + tensor.nbytes


def check_number(name: str, value: Any, infinite: bool) -> None:
    """Require a number, which may be infinite or not."""
    if math.isnan(value) or (math.isinf(value) and not infinite):
        raise ValueError(f"{name} is {value}; it must be {'a' if infinite else 'a finite'} number")


def check_integer(name: str, value: Any) -> None:
    """Require an integer, of Python or of NumPy, that is not a truth value."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name} is {value!r}; it must be an integer")


def refuse_device(name: str, tensor: Tensor, device: torch.device) -> NoReturn:
    """Say that a tensor is not where the others are."""
    raise ValueError(f"{name} is on {tensor.device} and another tensor on {device}; use one device")


def names(dtypes: Sequence[torch.dtype | None]) -> str:
    """Dtypes as a user writes them."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
