"""How an op is made: a schema, a definition for every device, and perhaps compiled kernels.

The definition is registered with torch for all devices, so that it also serves tracing (meta and
fake tensors). The compiled library adds kernels for the CPU and for CUDA, which torch's dispatcher
prefers. Nothing is differentiable: ops run without a graph.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from . import library
from .checks import check_apart, check_integer, check_number, refuse_device

logger = logging.getLogger("aadl_ext")
_LIBRARY = torch.library.Library("aadl_ext", "DEF")  # type: ignore[no-untyped-call]
NOT_LAUNCHED = "could not be launched"  # in the message of a kernel that failed (cuda/device.h)
REFUSED = object()
AUTOCAST = ("cpu", "cuda")  # kinds of devices that have one
TENSORS = ("Tensor", "Optional[Tensor]", "List[Tensor]")
#: Bytes that an op reads and writes of an argument, where that is not all of it once.
Shares = dict[str, tuple[int, int]]
SHARES: dict[str, Callable[[dict[str, Any]], Shares] | None] = {}
FRESH: dict[str, tuple[str, ...]] = {}
P = ParamSpec("P")
R = TypeVar("R")


def op(
    schema: str,
    *,
    result: Callable[..., Any] | None = None,
    any_device: bool = False,
    same: bool = False,
    infinite: tuple[str, ...] = (),
    fresh: tuple[str, ...] = (),
    shares: Callable[[dict[str, Any]], Shares] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make an op of its definition: a function that checks its arguments and does what is asked.

    A compiled kernel runs instead where there is one. It makes its own checks, which are quicker,
    before it changes anything; when it refuses, the definition does the work or says what is wrong.

    Args:
        schema: ``name(arguments) -> results`` in torch's notation, with the arguments of the
            definition; those that are changed in place are marked there.
        result: makes of the tensors what the definition returns.
        any_device: whether tensors may lie on several devices.
        same: whether what is changed in place may be another argument, entry by entry.
        infinite: names of numbers that may be so; others have to be finite.
        fresh: what is written without being read (``traffic``).
        shares: of the arguments by name, what is read and written of those that are not all needed.
    """

    def register(definition: Callable[P, R]) -> Callable[P, R]:
        name = schema.partition("(")[0]
        _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
        FRESH[name], SHARES[name] = fresh, shares
        compiled = getattr(torch.ops.aadl_ext, name).default
        arguments = [(x.name, str(x.type), x.is_write) for x in compiled._schema.arguments]
        changed = [(i, x) for i, (x, _, is_written) in enumerate(arguments) if is_written]
        floats = [(i, x) for i, (x, kind, _) in enumerate(arguments) if kind == "float"]
        integers = [(i, x) for i, (x, kind, _) in enumerate(arguments) if kind == "int"]

        tensors = [(i, x) for i, (x, kind, _) in enumerate(arguments) if kind in TENSORS]
        others = [(i, x) for i, x in tensors if (i, x) not in changed]

        def check_numbers(given: Sequence[Any], named: dict[str, Any]) -> None:
            for i, x in floats:
                value = given[i] if i < len(given) else named.get(x, 0.0)
                if not -math.inf < value < math.inf:
                    check_number(x, value, infinite=x in infinite)
            for i, x in integers:
                value = given[i] if i < len(given) else named[x]
                if type(value) is not int:
                    check_integer(x, value)

        def check(given: Sequence[Any], named: dict[str, Any]) -> None:
            """What all ops ask of their arguments."""
            check_numbers(given, named)
            first: Tensor | None = None
            for i, x in () if any_device else tensors:
                for tensor in _listed(given[i] if i < len(given) else named.get(x)):
                    first = tensor if first is None else first
                    if tensor.device != first.device:
                        refuse_device(x, tensor, first.device)
            if changed and not torch.compiler.is_compiling():
                targets, sources = (
                    [y for i, x in z for y in _listed(given[i] if i < len(given) else named.get(x))]
                    for z in (changed, others)
                )
                check_apart(targets, sources, same)

        def checked(*given: P.args, **named: P.kwargs) -> R:
            for kind in AUTOCAST:  # it would round what a product takes
                if torch.is_autocast_enabled(kind):
                    with torch.autocast(kind, enabled=False):
                        return checked(*given, **named)
            check(given, named)
            return definition(*given, **named)

        _LIBRARY.impl(name, checked, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]

        @functools.wraps(definition)
        def call(*given: P.args, **named: P.kwargs) -> R:
            if torch.is_grad_enabled():
                with torch.no_grad():
                    return call(*given, **named)
            if not library.use_kernels or in_transform():
                return checked(*given, **named)
            check_numbers(given, named)
            try:
                found: Any = compiled(*given, **named)
            except RuntimeError as error:
                if NOT_LAUNCHED in str(error):
                    raise
                _tell(name, str(error))
                found = REFUSED
            if found is REFUSED:
                return checked(*given, **named)
            if changed:  # as every in-place op of torch tells autograd
                targets = [given[i] if i < len(given) else named.get(x) for i, x in changed]
                increment_version([y for x in targets for y in _listed(x)])
            return cast("R", found if result is None else result(*found))

        return call

    return register


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def in_transform() -> bool:
    """Whether functions are transformed (``torch.func``), which kernels know nothing of."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _tell(name: str, refusal: str) -> None:
    logger.debug("%s is left to its definition: %s", name, refusal)
    if library.NO_KERNELS in refusal:
        _warn_once(library.said(refusal))


@functools.cache
def _warn_once(reason: str) -> None:
    logger.warning("%s; `aadl_ext info` says what to do. PyTorch definitions run there", reason)


def _listed(value: Any) -> Sequence[Tensor]:
    if isinstance(value, Tensor):
        return (value,)
    return value if isinstance(value, (list, tuple)) else ()


def seen(tensor: Tensor) -> bool:
    """Whether the host can read it without waiting: it is on the CPU, and not being traced."""
    return type(tensor) is Tensor and tensor.is_cpu


def asked(when: Tensor | None) -> bool:
    """False only where the host sees that a flag is."""
    return when is None or not seen(when) or bool(when)
