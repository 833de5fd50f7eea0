"""Parameters <-> flat vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors

from .checks import check_flag, check_flat, check_real
from .registry import asked, op, seen


@op(
    "gather(Tensor[] tensors, Tensor(a!) out, *, Tensor? when=None) -> ()",
    any_device=True,
    fresh=("out",),
)
def gather(tensors: Sequence[Tensor], out: Tensor, *, when: Tensor | None = None) -> None:
    """Copy ``tensors`` one behind the other into the flat vector ``out``.

    Args:
        tensors: any shapes, real floating dtypes and memory layouts; each is read in
            logical (row-major) order and converted to the dtype of ``out``.
        out: ``[>= sum of sizes]``, changed in place; entries beyond the sum become zero.
        when: where false ``out`` stays as it is; ``[]`` bool on the device of ``out``, read there.

    Raises:
        ValueError: ``out`` is too short or not a vector, a tensor is complex or of integers, or
            ``when`` is no such flag.
    """
    check_flat(tensors, out, "out")
    check_flag("when", when, out.device)
    check_real(tensors)
    if asked(when):
        rest = out[sum(t.numel() for t in tensors) :]
        rest.zero_() if when is None or seen(when) else rest.masked_fill_(when, 0)
        _copy(tensors, _pieces(tensors, out), when)


@op(
    "scatter_(Tensor(a!)[] tensors, Tensor flat, *, Tensor? when=None) -> ()",
    any_device=True,
    fresh=("tensors",),
)
def scatter_(tensors: Sequence[Tensor], flat: Tensor, *, when: Tensor | None = None) -> None:
    """Inverse of :func:`gather`: copy a flat vector back into ``tensors``, in place.

    Values are rounded to the dtype of each tensor. Where ``when``, ``[]`` bool on the
    device of ``flat`` and read there, is false the tensors stay as they are.

    Raises:
        ValueError: ``flat`` is too short or not a vector, a tensor is complex or of integers, or
            ``when`` is no such flag.
    """
    check_flat(tensors, flat, "flat")
    check_flag("when", when, flat.device)
    check_real(tensors)
    if asked(when):
        _copy(_pieces(tensors, flat), tensors, when)


def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor], when: Tensor | None) -> None:
    if when is None or seen(when):
        if targets:
            torch._foreach_copy_(list(targets), list(sources))
        return
    for source, target in zip(sources, targets, strict=True):
        kept = target.to(when.device)  # itself but for a target elsewhere
        target.copy_(torch.where(when, source.to(kept), kept, out=kept))


def _pieces(tensors: Sequence[Tensor], flat: Tensor) -> list[Tensor]:
    """Views of ``flat`` in the shapes of ``tensors``."""
    traced = torch.compiler.is_compiling() or not seen(flat)
    if not traced and not torch._is_functional_tensor(flat):
        return list(_unflatten_dense_tensors(flat, tensors))  # type: ignore[no-untyped-call]
    # That one is quick, but knows neither symbolic sizes nor functional tensors.
    sizes = [tensor.numel() for tensor in tensors]
    parts = flat[: sum(sizes)].split_with_sizes(sizes)
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
