"""How an op is made: a schema, a definition for every device, compiled kernels where they are.

The definition is registered with torch for all devices, so that it also serves tracing (meta and
fake tensors). The compiled library adds kernels for the CPU and for CUDA, which torch's dispatcher
prefers.
Nothing is differentiable: ops run without a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("aadl_ext", "DEF")  # type: ignore[no-untyped-call]


def op(
    schema: str, kernel_takes: Callable[..., bool] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a definition under a schema, ``name(arguments) -> results``.

    Args:
        schema: in torch's notation; arguments that are changed in place are marked there.
        kernel_takes: whether the compiled kernels can work on these arguments; else the
            definition does, on any device.

    Returns:
        A decorator. What it returns is called as the definition is.
    """

    def register(definition: Callable[..., Any]) -> Callable[..., Any]:
        name = schema.partition("(")[0]
        _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
        _LIBRARY.impl(name, definition, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        compiled = getattr(torch.ops.aadl_ext, name).default
        arguments = compiled._schema.arguments
        changed = [i for i, x in enumerate(arguments) if x.alias_info and x.alias_info.is_write]

        def call(*given: Any) -> Any:
            if torch.is_grad_enabled():
                with torch.no_grad():
                    return call(*given)
            if kernel_takes is not None and not kernel_takes(*given):
                return definition(*given)
            result = compiled(*given)
            for position in changed:  # as every in-place op of torch tells autograd
                target = given[position] if position < len(given) else None
                if target is not None:
                    torch.autograd.graph.increment_version(target)
            return result

        return call

    return register


def seen(tensor: Tensor) -> bool:
    """Whether the host can read it without waiting: it is on the CPU, and not being traced."""
    return type(tensor) is Tensor and tensor.is_cpu


def asked(when: Tensor | None) -> bool:
    """False only where the host sees that a flag is."""
    return when is None or not seen(when) or bool(when)
