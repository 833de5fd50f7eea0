"""How an op is made: a schema, a definition for every device, and perhaps a compiled kernel.

The definition is registered with torch for all devices, so that it also serves tracing (meta and
fake tensors). The compiled library adds kernels for the CPU and for CUDA, which torch's dispatcher
prefers. Nothing is differentiable: ops run without a graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import check_apart, check_integer, check_number, refuse_device

_LIBRARY = torch.library.Library("aadl_ext", "DEF")  # type: ignore[no-untyped-call]
TENSORS = ("Tensor", "Optional[Tensor]", "List[Tensor]")


def op(
    schema: str,
    kernel_takes: Callable[..., bool],
    *,
    any_device: bool = False,
    same: bool = False,
    infinite: tuple[str, ...] = (),
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a definition under a schema, ``name(arguments) -> results``.

    Args:
        schema: in torch's notation; arguments that are changed in place are marked there.
        kernel_takes: whether the compiled kernels can work on these arguments; else the
            definition does, on any device.
        any_device: whether tensors may lie on several devices.
        same: whether what is changed in place may be another argument, entry by entry.
        infinite: names of numbers that may be so; others have to be finite.

    Returns:
        A decorator. What it returns is called as the definition is, all arguments by position.
    """

    def register(definition: Callable[..., Any]) -> Callable[..., Any]:
        name = schema.partition("(")[0]
        _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
        _LIBRARY.impl(name, definition, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        compiled = getattr(torch.ops.aadl_ext, name).default
        arguments = compiled._schema.arguments
        check = _checks(arguments, any_device, infinite)
        changed = [i for i, x in enumerate(arguments) if x.is_write]
        others = [i for i in _positions(arguments, *TENSORS) if i not in changed]

        def call(*given: Any) -> Any:
            if torch.is_grad_enabled():
                with torch.no_grad():
                    return call(*given)
            check(given)
            if not kernel_takes(*given):
                if changed and not torch.compiler.is_compiling():  # kernels look for themselves
                    targets, sources = ([_listed(given[i]) for i in x] for x in (changed, others))
                    check_apart(targets, sources, same)
                return definition(*given)
            result = compiled(*given)
            for position in changed:  # as every in-place op of torch tells autograd
                if given[position] is not None:
                    torch.autograd.graph.increment_version(given[position])
            return result

        return call

    return register


def _checks(
    arguments: Sequence[Any], any_device: bool, infinite: tuple[str, ...]
) -> Callable[[Sequence[Any]], None]:
    """What all ops ask of their arguments; quick, since it is asked at every call."""
    names = [argument.name for argument in arguments]
    integers, numbers = _positions(arguments, "int"), _positions(arguments, "float")
    first = _positions(arguments, "Tensor")[:1]
    singles = _positions(arguments, "Tensor", "Optional[Tensor]")
    lists = _positions(arguments, "List[Tensor]")
    alone = any_device or len(singles) + len(lists) == 1

    def check(given: Sequence[Any]) -> None:
        for i in integers:
            if type(given[i]) is not int:
                check_integer(names[i], given[i])
        for i in numbers:
            if not -math.inf < given[i] < math.inf:
                check_number(names[i], given[i], infinite=names[i] in infinite)
        if alone:
            return
        like = given[first[0]]
        on_cpu, device = like.is_cpu, like.device
        for i in singles:
            tensor = given[i]
            if tensor is not None and not (on_cpu and tensor.is_cpu) and tensor.device != device:
                refuse_device(names[i], tensor, device)
        for i in lists:
            for tensor in given[i]:
                if not (on_cpu and tensor.is_cpu) and tensor.device != device:
                    refuse_device(names[i], tensor, device)

    return check


def _positions(arguments: Sequence[Any], *kinds: str) -> list[int]:
    return [index for index, argument in enumerate(arguments) if str(argument.type) in kinds]


def _listed(value: Any) -> Sequence[Tensor]:
    return (value,) if isinstance(value, Tensor) else value or ()


def seen(tensor: Tensor) -> bool:
    """Whether the host can read it without waiting: it is on the CPU, and not being traced."""
    return type(tensor) is Tensor and tensor.is_cpu


def asked(when: Tensor | None) -> bool:
    """False only where the host sees that a flag is."""
    return when is None or not seen(when) or bool(when)
