"""Gradients of fixed points.

With x = f(x, p) and J = df/dx: dx = (1 - J)^-1 f_p dp. So a gradient g at x is u at f(x, p), with
u = g + J' u, which is a fixed point itself: so it has gradients, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as fa
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.function import _SingleLevelFunction
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from .ops.registry import in_transform
from .transforms import constant, is_current, of_this_level, variable

Map = Callable[[Any], Any]
GRADIENTS = ("implicit", "truncated", "phantom")


def attach(f: Map, solution: Any, adjoint: Callable[[Map, Any], Any]) -> Any:
    """The solution, with gradients to what else f depends on; itself if that has none.

    ``adjoint(h, g)`` solves u = h(u), begun at g. Of levels (``transforms``) it is the innermost
    that differentiates; below that the solution has what gradients it comes with.
    """
    leaves, spec = tree_flatten(solution)
    leaves, points = [of_this_level(x) for x in leaves], [variable(x) for x in leaves]
    values, tangents = zip(*map(fa.unpack_dual, _values(f, points, spec)), strict=True)
    problem = Problem(spec, points, values, adjoint)
    if any(t is not None for t in tangents):
        dy = [constant(_or_zeros(t, x)) for t, x in zip(tangents, leaves, strict=True)]
        duals = map(fa.make_dual, leaves, map(of_this_level, problem.push_forward(dy)))
        return tree_unflatten(list(duals), spec)
    if not _others(values, points):
        return solution
    with enable_single_level_autograd_function():
        attached = _Attach.apply(problem, *leaves, *values)  # type: ignore[attr-defined]
    return tree_unflatten(attached, spec)


def phantom(f: Map, solution: Any, terms: int, relaxation: float) -> Any:
    """Some damped plain steps from the solution."""
    x = solution
    for _ in range(terms):
        x = tree_map(lambda a, b: a + relaxation * (b.to(a.dtype) - a), x, f(x))
    return x


def truncated(terms: int) -> Callable[[Map, Any], Any]:
    """The Neumann series of u = g + J' u up to some terms."""

    def adjoint(h: Map, g: Any) -> Any:
        graph = torch.is_grad_enabled()  # of this level; those below may have theirs
        u = g
        with torch.set_grad_enabled(graph or in_transform()):
            for _ in range(terms - 1):
                u = h(u) if graph else tree_map(constant, h(u))
        return u

    return adjoint


@dataclass(frozen=True, eq=False)
class Problem:
    """f at the solution, with the graph that J' is read off."""

    spec: TreeSpec
    points: Sequence[Tensor]
    values: Sequence[Tensor]
    adjoint: Callable[[Map, Any], Any]

    def pull_back(self, g: Sequence[Tensor]) -> list[Tensor]:
        """Solve u = g + J' u."""
        return self._solve(g, lambda u: _gradients(self.values, self.points, u))

    def push_forward(self, dy: Sequence[Tensor]) -> list[Tensor]:
        """Solve v = dy + J v, with J v as the derivative of J' u, which is linear, by u."""
        with torch.enable_grad():
            u = [variable(torch.zeros_like(y)) for y in self.values]
            products = _gradients(self.values, self.points, u)
        return self._solve(dy, lambda v: [constant(x) for x in _gradients(products, u, v)])

    def _solve(self, g: Sequence[Tensor], product: Map) -> list[Tensor]:
        def h(tree: Any) -> Any:
            pairs = zip(g, product(tree_leaves(tree)), strict=True)
            return tree_unflatten([a + b for a, b in pairs], self.spec)

        found: list[Tensor] = tree_leaves(self.adjoint(h, tree_unflatten(list(g), self.spec)))
        return found


class _Attach(_SingleLevelFunction):
    """Takes the leaves of x and of f(x), returns x; gradients go to f(x)."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, *leaves: Tensor) -> tuple[Tensor, ...]:
        ctx.problem = problem
        with torch.enable_grad(), fa._set_fwd_grad_enabled(True):  # of levels below
            return tuple(x.clone() for x in leaves[: len(leaves) // 2])

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor | None, ...]:
        if any(map(torch._C._functorch.is_legacy_batchedtensor, g)):
            raise RuntimeError(
                "a fixed point has no batched gradient (is_grads_batched, vectorize=True); "
                "use torch.func.vmap or torch.func.jacrev"
            )
        problem = ctx.problem
        none = None, *[None] * len(g)
        if not torch.is_grad_enabled() or not is_current(problem.points[0]):
            return *none, *problem.pull_back(g)
        with torch.no_grad():  # of this level alone
            u = map(of_this_level, problem.pull_back(g))
        with enable_single_level_autograd_function():
            return *none, *_Once.apply(len(g), *u, *problem.values, *g)  # type: ignore[attr-defined]


class _Once(_SingleLevelFunction):
    """The first few tensors, which depend on all; that cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad(), fa._set_fwd_grad_enabled(True):
            return tuple(x.clone() for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> None:
        raise RuntimeError(
            "this gradient of a fixed point cannot be differentiated again (create_graph); take "
            "torch.func.grad of torch.func.grad, or hessian, jacrev; or "
            'fixed_point(..., gradient="phantom"), which makes an ordinary graph'
        )


def _gradients(
    values: Sequence[Tensor], points: Sequence[Tensor], u: Sequence[Tensor]
) -> list[Tensor]:
    """Of ``sum values . u`` by the points, with a graph if one is made; that of values is kept."""
    smooth = [i for i, y in enumerate(values) if y.requires_grad]
    if not smooth:
        return [torch.zeros_like(x) for x in points]
    found = torch.autograd.grad(
        [values[i] for i in smooth],
        points,
        [u[i] for i in smooth],
        retain_graph=True,
        create_graph=torch.is_grad_enabled(),
        allow_unused=True,
    )
    return [_or_zeros(x, point) for x, point in zip(found, points, strict=True)]


def _or_zeros(x: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if x is None else x


def _values(f: Map, points: Sequence[Tensor], spec: TreeSpec) -> list[Tensor]:
    """Leaves of f(points), with a graph, in the dtypes of the points."""
    with torch.enable_grad():
        values = spec.flatten_up_to(f(tree_unflatten(list(points), spec)))
        return [of_this_level(y.to(x.dtype)) for x, y in zip(points, values, strict=True)]


def _others(values: Sequence[Tensor], points: Sequence[Tensor]) -> bool:
    """Whether the graph of the values has other leaves than the points."""
    own, seen = {id(x) for x in points}, set()
    todo = [y.grad_fn for y in values if y.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        following = [x for x, _ in node.next_functions if x is not None]
        if not following and id(getattr(node, "variable", None)) not in own:
            return True
        todo += following
    return any(y.requires_grad and y.grad_fn is None and id(y) not in own for y in values)
