"""The direction of L-BFGS from products of its pairs is that of the two-loop recursion."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from aadl_ext import ops
from aadl_ext.ops import library

SIZE, DEPTH = 30, 5


class Pairs(NamedTuple):
    """Steps and changes of the gradient in a ring, and a gradient."""

    steps: Tensor
    changes: Tensor
    gradient: Tensor

    def direction(self, newest: int, growth: float = 1e9) -> Tensor:
        s, y, g = self
        found = ops.solve_quasi_newton(
            s @ s.T, s @ y.T, y @ y.T, s @ g, y @ g, g @ g, newest=newest, growth=growth
        )
        return -(found.gradient[0, 0] * g + found.steps[0] @ s + found.changes[0] @ y)


def pairs(seed: int = 0) -> Pairs:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    root = normal(SIZE, SIZE)
    hessian = root @ root.T / SIZE + 0.1 * torch.eye(SIZE, dtype=torch.float64)
    steps = normal(DEPTH, SIZE)
    return Pairs(steps, steps @ hessian, normal(SIZE))


def two_loops(given: Pairs, order: list[int]) -> np.ndarray:
    """Nocedal and Wright, algorithm 7.4, over the pairs in ``order``, oldest first."""
    s, y, q = given.steps.numpy(), given.changes.numpy(), given.gradient.numpy().copy()
    weights = {}
    for i in reversed(order):
        weights[i] = s[i] @ q / (s[i] @ y[i])
        q -= weights[i] * y[i]
    q *= s[order[-1]] @ y[order[-1]] / (y[order[-1]] @ y[order[-1]])
    for i in order:
        q += (weights[i] - y[i] @ q / (s[i] @ y[i])) * s[i]
    return -q


@pytest.mark.parametrize("newest", range(DEPTH))
def test_it_is_that_of_the_two_loop_recursion(newest: int) -> None:
    given = pairs(newest)
    order = [(newest + 1 + i) % DEPTH for i in range(DEPTH)]
    np.testing.assert_allclose(given.direction(newest), two_loops(given, order), rtol=1e-10)


@pytest.mark.parametrize("left_out", [[1], [2], [0, 4]])
def test_pairs_without_curvature_have_no_part(left_out: list[int]) -> None:
    given = pairs()
    given.changes[left_out[0]] *= -1
    for i in left_out[1:]:
        given.steps[i] = given.changes[i] = 0
    order = [i for i in (3, 4, 0, 1, 2) if i not in left_out]
    np.testing.assert_allclose(given.direction(2), two_loops(given, order), rtol=1e-10)


def test_without_any_it_is_steepest_descent_and_longer_along_negative_curvature() -> None:
    given = pairs()
    given.changes.neg_()
    unit = given.gradient / given.gradient.norm()
    expected = -given.steps[1].norm() * unit
    torch.testing.assert_close(given.direction(newest=1, growth=3.0), 3 * expected)
    given.changes.zero_()
    torch.testing.assert_close(given.direction(newest=1), expected)
    given.steps.zero_()
    assert not given.direction(newest=1).any()


def test_no_step_is_longer_than_a_multiple_of_the_last() -> None:
    given = pairs()
    whole, cut = given.direction(2), given.direction(2, growth=0.1)
    assert whole.norm() > 0.1 * given.steps[2].norm()
    torch.testing.assert_close(cut, whole * (0.1 * given.steps[2].norm() / whole.norm()))


def test_what_is_not_finite_gives_no_direction() -> None:
    given = pairs()
    given.gradient[3] = torch.nan
    s, y, g = given
    found = ops.solve_quasi_newton(s @ s.T, s @ y.T, y @ y.T, s @ g, y @ g, g @ g, 0, 4.0)
    assert not any(x.any() for x in found)


@pytest.mark.parametrize("depth", [1, 7, 100])
@pytest.mark.parametrize("odd", ["nothing", "curvature", "nan", "infinite", "tiny", "zero"])
def test_it_is_the_same_with_every_backend(depth: int, odd: str) -> None:
    draw = torch.Generator().manual_seed(depth)
    s = torch.randn(depth, 150, generator=draw, dtype=torch.float64)
    stiffness = torch.logspace(-2, 2, 150, dtype=torch.float64)
    y, g = s * stiffness, torch.randn(150, generator=draw, dtype=torch.float64)
    if odd == "curvature":
        y[:: depth // 2 + 1] *= -1
    if odd == "tiny":
        s, y = s * 1e-90, y * 1e-90
    if odd == "zero":
        s[: depth // 2] = y[: depth // 2] = 0
    products = [s @ s.T, s @ y.T, y @ y.T, s @ g, y @ g, g @ g]
    if odd in ("nan", "infinite"):
        products[3][depth // 3] = {"nan": torch.nan, "infinite": torch.inf}[odd]
    for newest, growth in ((0, 1e9), (depth // 2, 0.5), (depth - 1, 4.0)):
        found = ops.solve_quasi_newton(*products, newest=newest, growth=growth)
        with library.definitions_only():
            expected = ops.solve_quasi_newton(*products, newest=newest, growth=growth)
        torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-9, atol=0)
        assert expected.gradient.any() == (odd not in ("nan", "infinite"))


def test_shapes_that_do_not_fit_are_refused() -> None:
    s, y, g = pairs()
    with pytest.raises(ValueError, match="expected \\[m, m\\] three"):
        ops.solve_quasi_newton(s @ s.T, s @ y.T, y @ y.T, s @ g, y @ g, g @ g, DEPTH, 4.0)
