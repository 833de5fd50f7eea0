"""Gradients of fixed points.

With x = f(x, p) and J = df/dx: dx = (1 - J)^-1 f_p dp. So a gradient g at x is u at f(x, p), with
u = g + J' u, which is a fixed point itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as fa
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

Map = Callable[[Any], Any]
GRADIENTS = ("implicit", "truncated", "phantom")


def attach(f: Map, solution: Any, adjoint: Callable[[Map, Any], Any]) -> Any:
    """The solution, with gradients to what else f depends on; itself if that has none.

    ``adjoint(h, g)`` solves u = h(u), begun at g.
    """
    leaves, spec = tree_flatten(solution)
    points = [x.detach().requires_grad_() for x in leaves]
    values, tangents = zip(*map(fa.unpack_dual, _values(f, points, spec)), strict=True)
    problem = Problem(spec, points, values, adjoint)
    if any(t is not None for t in tangents):
        dy = [_or_zeros(t, x).detach() for t, x in zip(tangents, leaves, strict=True)]
        moved = problem.push_forward(dy)
        return tree_unflatten(list(map(fa.make_dual, leaves, moved)), spec)
    if not _others(values, points):
        return solution
    attached = _Attach.apply(problem, *leaves, *values)  # type: ignore[no-untyped-call]
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
        u = g
        for _ in range(terms - 1):
            u = h(u)
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
        return self._solve(g, self._transposed)

    def push_forward(self, dy: Sequence[Tensor]) -> list[Tensor]:
        """Solve v = dy + J v, with J v as the derivative of J' u, which is linear, by u."""
        with torch.enable_grad():
            u = [torch.zeros_like(y, requires_grad=True) for y in self.values]
            products = self._transposed(u, create_graph=True)
        return self._solve(dy, lambda v: _gradients(products, u, v))

    def _transposed(self, u: Sequence[Tensor], create_graph: bool = False) -> list[Tensor]:
        return _gradients(self.values, self.points, u, create_graph)

    def _solve(self, g: Sequence[Tensor], product: Map) -> list[Tensor]:
        def h(tree: Any) -> Any:
            pairs = zip(g, product(tree_leaves(tree)), strict=True)
            return tree_unflatten([a + b for a, b in pairs], self.spec)

        found: list[Tensor] = tree_leaves(self.adjoint(h, tree_unflatten(list(g), self.spec)))
        return found


class _Attach(torch.autograd.Function):
    """Takes the leaves of x and of f(x), returns x; gradients go to f(x)."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, *leaves: Tensor) -> tuple[Tensor, ...]:
        ctx.problem = problem
        return tuple(x.clone() for x in leaves[: len(leaves) // 2])

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "this gradient of a fixed point cannot be differentiated again (create_graph); "
                'fixed_point(..., gradient="phantom") makes an ordinary graph, which can'
            )
        return None, *[None] * len(g), *ctx.problem.pull_back(g)


def _gradients(
    values: Sequence[Tensor], points: Sequence[Tensor], u: Sequence[Tensor], graph: bool = False
) -> list[Tensor]:
    """Of ``sum values . u`` by the points; the graph is kept."""
    smooth = [i for i, y in enumerate(values) if y.requires_grad]
    if not smooth:
        return [torch.zeros_like(x) for x in points]
    found = torch.autograd.grad(
        [values[i] for i in smooth],
        points,
        [u[i] for i in smooth],
        retain_graph=True,
        create_graph=graph,
        allow_unused=True,
    )
    return [_or_zeros(x, point) for x, point in zip(found, points, strict=True)]


def _or_zeros(x: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if x is None else x


def _values(f: Map, points: Sequence[Tensor], spec: TreeSpec) -> list[Tensor]:
    """Leaves of f(points), with a graph, in the dtypes of the points."""
    with torch.enable_grad():
        values = spec.flatten_up_to(f(tree_unflatten(list(points), spec)))
        return [y.to(x.dtype) for x, y in zip(points, values, strict=True)]


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
