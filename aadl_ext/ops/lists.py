"""Ops on lists of tensors: to and from a flat vector, and their norm.

The public names are those of ``aadl_ext.ops``; the notation is explained there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import native, reference
from .checks import check_flag, check_flat


def gather(tensors: Sequence[Tensor], out: Tensor, *, when: Tensor | bool = True) -> Tensor:
    """Copy ``tensors`` one behind the other into the flat vector ``out``.

    Args:
        tensors: any shapes, real floating dtypes and memory layouts; each is read in
            logical (row-major) order and converted to the dtype of ``out``.
        out: ``[>= sum of sizes]``, changed in place; entries beyond the sum become zero.
        when: where false ``out`` stays as it is. A tensor is ``[]`` bool on the device of
            ``out`` and read there.

    Returns:
        ``out``.

    Raises:
        ValueError: ``out`` is too short or not a vector, or ``when`` is no such flag.
    """
    check_flat(tensors, out, "out")
    flag = check_flag("when", when, out.device)
    if when is False:
        return out
    backend = native if native.serves_list(tensors, out) else reference
    with torch.no_grad():
        backend.gather(tensors, out, flag)
    return out


def scatter_(tensors: Sequence[Tensor], flat: Tensor, *, when: Tensor | bool = True) -> None:
    """Inverse of :func:`gather`: copy a flat vector back into ``tensors``, in place.

    Values are rounded to the dtype of each tensor. Where ``when`` is false (a tensor is ``[]``
    bool on the device of ``flat`` and read there) the tensors stay as they are.

    Raises:
        ValueError: ``flat`` is too short or not a vector, or ``when`` is no such flag.
    """
    check_flat(tensors, flat, "flat")
    flag = check_flag("when", when, flat.device)
    if when is False:
        return
    backend = native if native.serves_list(tensors, flat) else reference
    with torch.no_grad():
        backend.scatter_(tensors, flat, flag)


def squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of the squares of all entries; NaN or infinite if an entry is.

    Args:
        tensors: one or more, of any shapes, real floating dtypes and memory layouts.

    Returns:
        ``[]`` float64, on the device of the first; accumulated in float64.

    Raises:
        ValueError: the list is empty.
    """
    if not tensors:
        raise ValueError("the list of tensors is empty; pass at least one")
    backend = native if native.serves_list(tensors) else reference
    with torch.no_grad():
        total: Tensor = backend.squared_norm(tensors)
    return total
