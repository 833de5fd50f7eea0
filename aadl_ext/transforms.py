"""Fixed points within the transforms of ``torch.func``.

Each transform is a level; a tensor that it maps or differentiates is wrapped there, and f may use
such. So the equation is solved a level below, where x is an ordinary tensor, and f is evaluated at
its level: a mapped dimension becomes one more that counts samples, and gradients are attached at
each level that differentiates (``implicit``). Below all levels nothing is wrapped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch._C._functorch import TransformType
from torch._functorch import pyfunctorch
from torch._functorch.eager_transforms import enable_inplace_requires_grad
from torch.utils._pytree import tree_map

Map = Callable[[Any], Any]


def differentiates() -> bool:
    """Whether the innermost transform does; True where there is none."""
    return _level() is None or pyfunctorch.retrieve_current_functorch_interpreter().key() in (
        TransformType.Grad,
        TransformType.Jvp,
    )


def solve_below(solve: Callable[..., Any], f: Map, x0: Any, batch_dims: int) -> Any:
    """``solve(f, x0, batch_dims=)`` below the innermost transform, its result at that.

    Raises:
        ValueError: the transform is none that maps or differentiates.
    """
    level = pyfunctorch.retrieve_current_functorch_interpreter()
    if isinstance(level, pyfunctorch.FunctionalizeInterpreter):
        raise ValueError("fixed_point cannot be functionalized; call it outside of that")
    number = level.level()
    size = level.batch_size() if isinstance(level, pyfunctorch.VmapInterpreter) else None
    graph = getattr(level, "prev_grad_mode", torch.is_grad_enabled)()

    def lift(x: Any) -> Any:
        is_mapped = size is not None and isinstance(x, Tensor)
        return _functorch._add_batch_dim(x, 0, number) if is_mapped else x

    def lower(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        x = _functorch.unwrap_if_dead(x)
        if size is None:
            return _functorch._unwrap_for_grad(x, number)
        x, mapped = _functorch._unwrap_batched(x, number)
        return x.expand(size, *x.shape) if mapped is None else x.movedim(mapped, 0)

    def below(x: Any) -> Any:
        with pyfunctorch.temporarily_restore_interpreter_stack(layers[:1]):
            y = f(tree_map(lift, x))
        return tree_map(lower, y)

    with (
        pyfunctorch.temporarily_clear_interpreter_stack() as layers,
        pyfunctorch.temporarily_restore_interpreter_stack(layers[1:]),
        torch.set_grad_enabled(graph),
    ):
        found = solve(below, tree_map(lower, x0), batch_dims=batch_dims + (size is not None))
    return tree_map(lift, found)


def constant(x: Tensor) -> Tensor:
    """Without what the innermost transform, or autograd where there is none, knows of it."""
    level, x = _level(), _functorch.unwrap_if_dead(x)
    return x.detach() if level is None else _functorch._unwrap_for_grad(x, level)


def variable(x: Tensor) -> Tensor:
    """A copy that gradients are taken by, of the innermost transform."""
    level = _level()
    if level is None:
        return x.detach().requires_grad_()
    with enable_inplace_requires_grad(True):
        return _functorch._wrap_for_grad(constant(x), level).requires_grad_()


def of_this_level(x: Tensor) -> Tensor:
    """Itself, or wrapped if it is of a level below."""
    level = _level()
    if level is None or _functorch.maybe_get_level(x) == level:
        return x
    return _functorch._wrap_for_grad(x, level)


def is_current(x: Tensor) -> bool:
    """Whether it belongs to the innermost transform, or there is none and it is not wrapped."""
    if _level() is None:
        return not _functorch.is_functorch_wrapped_tensor(x)
    return _functorch.maybe_get_level(x) == _level()


def bare(x: Tensor) -> Tensor:
    """What is below all levels."""
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x


def _level() -> int | None:
    return _functorch.maybe_current_level()
