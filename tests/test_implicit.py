"""Gradients of fixed points."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fa
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from aadl_ext import AndersonMixing, fixed_point

TIGHT = {"tol": 1e-14, "abs_tol": 1e-14}


def parameters(
    dtype: torch.dtype = torch.float64, samples: int = 3, size: int = 5
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    W, b = torch.randn(size, size, dtype=dtype) / size, torch.randn(samples, size, dtype=dtype)
    return W.requires_grad_(), b.requires_grad_()


def few(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """For differences in each of them."""
    return parameters(dtype, samples=2, size=3)


def solution(W: Tensor, b: Tensor, **options: Any) -> Tensor:
    x0 = torch.zeros_like(b)
    return fixed_point(lambda x: torch.tanh(x @ W + b), x0, **{**TIGHT, **options}).solution


@pytest.mark.parametrize("method", [AndersonMixing(), AndersonMixing(kind="I", relaxation=0.7)])
def test_implicit_gradients_are_those_of_differences(method: AndersonMixing) -> None:
    assert gradcheck(lambda *p: solution(*p, method=method), few())


def test_implicit_gradients_of_complex_maps() -> None:
    def solve(W: Tensor, b: Tensor) -> Tensor:
        x0 = torch.zeros_like(b)
        return fixed_point(lambda x: (x @ W).sin() / 2 + b, x0, **TIGHT).solution

    assert gradcheck(solve, few(torch.complex128))


def test_implicit_gradients_of_pytrees_and_through_what_is_before_and_after() -> None:
    def solve(W: Tensor, b: Tensor) -> Tensor:
        c = b.exp()  # not a leaf

        def f(x: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"v": torch.sin(x["u"] @ W) / 2, "u": torch.tanh(x["v"]) * c / 4 + b}

        x0 = {"u": torch.zeros_like(b), "v": torch.zeros_like(b)}
        found = fixed_point(f, x0, **TIGHT).solution
        return found["u"].square() + found["v"]

    assert gradcheck(solve, few())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own rules use it
def test_forward_mode_is_that_of_differences() -> None:
    W, b = (p.detach() for p in parameters())
    dW, db = torch.randn_like(W), torch.randn_like(b)
    with fa.dual_level():
        dual = solution(fa.make_dual(W, dW), fa.make_dual(b, db))
        tangent = fa.unpack_dual(dual).tangent
    h = 1e-5
    differences = (solution(W + h * dW, b + h * db) - solution(W - h * dW, b - h * db)) / (2 * h)
    torch.testing.assert_close(tangent, differences, rtol=1e-7, atol=1e-8)


def relative_error(gradient: str, terms: int, method: AndersonMixing | None = None) -> float:
    W, b = parameters()
    options = {"gradient": gradient, "gradient_terms": terms, "method": method}
    (exact,) = torch.autograd.grad(solution(W, b).sum(), W)
    (found,) = torch.autograd.grad(solution(W, b, **options).sum(), W)
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("gradient", ["truncated", "phantom"])
def test_more_terms_bring_the_series_nearer(gradient: str) -> None:
    errors = [relative_error(gradient, terms) for terms in (1, 3, 9, 60)]
    assert errors[0] > 1e-2
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 8 * errors[3]
    assert errors[3] < 1e-7


def test_phantom_gradients_are_damped() -> None:
    damped = relative_error("phantom", 2, AndersonMixing(relaxation=0.1))
    assert damped > relative_error("phantom", 2)


def test_phantom_gradients_are_differentiable_again() -> None:
    def solve(W: Tensor, b: Tensor) -> Tensor:
        return solution(W, b, gradient="phantom", gradient_terms=80)

    assert gradgradcheck(solve, few(), atol=1e-4)


@pytest.mark.parametrize("gradient", ["implicit", "truncated"])
def test_others_say_that_they_are_not(gradient: str) -> None:
    """By what the map depends on, and by the gradient that goes in."""
    for leaf in (0, 1):
        (W, b), weight = parameters(), torch.ones((), dtype=torch.float64, requires_grad=True)
        loss = weight * solution(W, b, gradient=gradient).sum()
        (first,) = torch.autograd.grad(loss, W, create_graph=True)
        with pytest.raises(RuntimeError, match="phantom"):
            torch.autograd.grad(first.sum(), (W, weight)[leaf])


def test_no_graph_is_kept_of_the_iterations() -> None:
    W, b = parameters()
    graphs: list[bool] = []

    def f(x: Tensor) -> Tensor:
        y = torch.tanh(x @ W + b)
        graphs.append(y.requires_grad)
        return y

    found = fixed_point(f, torch.zeros(3, 5, dtype=torch.float64))
    assert graphs == [False] * int(found.steps.max()) + [True]
    assert found.solution.requires_grad


def test_without_gradients_no_evaluation_is_added() -> None:
    W, b = parameters()
    calls: list[Tensor] = []

    def f(x: Tensor) -> Tensor:
        calls.append(x)
        return torch.tanh(x @ W + b)

    found = fixed_point(f, torch.zeros(3, 5, dtype=torch.float64), gradient=None)
    assert not found.solution.requires_grad
    assert len(calls) == found.steps.max()
    with torch.no_grad():
        assert not solution(W, b).requires_grad


def test_a_function_of_its_point_alone_has_no_graph() -> None:
    found = fixed_point(torch.cos, torch.zeros(2, 3))
    assert not found.solution.requires_grad


def test_the_first_point_gets_no_gradient() -> None:
    W, b = parameters()
    x0 = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    fixed_point(lambda x: torch.tanh(x @ W + b), x0).solution.sum().backward()
    assert x0.grad is None
    assert W.grad is not None


def test_backward_twice_and_accumulated() -> None:
    W, b = parameters()
    found = solution(W, b)
    found.sum().backward(retain_graph=True)
    assert W.grad is not None
    once = W.grad.clone()
    found.sum().backward()
    torch.testing.assert_close(W.grad, 2 * once)


def test_small_gradients_are_as_exact_as_large_ones() -> None:
    W, b = parameters()
    (large,) = torch.autograd.grad(solution(W, b).sum(), W)
    (small,) = torch.autograd.grad(1e-12 * solution(W, b).sum(), W)
    torch.testing.assert_close(small * 1e12, large, rtol=1e-9, atol=1e-12)


def test_an_adjoint_without_solution_is_told() -> None:
    scale = torch.full((1, 1), 1.0, dtype=torch.float64, requires_grad=True)
    start = torch.ones(1, 1, dtype=torch.float64)
    found = fixed_point(lambda x: scale * x, start, max_steps=20)  # J = 1
    assert found.converged.all()
    with pytest.warns(RuntimeWarning, match="adjoint"):
        found.solution.sum().backward()


def test_modules_and_compiled_functions_train() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.mul_(0.5)
    inputs = torch.randn(6, 4)
    gradients = []

    def cell(x: Tensor) -> Tensor:
        return torch.tanh(layer(x) + inputs)

    for f in (cell, torch.compile(cell, backend="aot_eager")):
        layer.zero_grad()
        fixed_point(f, torch.zeros(6, 4), tol=1e-6).solution.square().sum().backward()
        assert layer.weight.grad is not None
        gradients.append(layer.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_transforms_inside_f_work() -> None:
    W, b = (p.detach() for p in parameters())
    inside = fixed_point(torch.func.vmap(lambda x: torch.tanh(x @ W)), b, **TIGHT)
    assert inside.converged.all()
