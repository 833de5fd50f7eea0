"""Fixed points within the transforms of torch.func, beside 100 plain steps that torch records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves

from aadl_ext import FixedPoint, fixed_point

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script")  # torch's own rules use it

torch.manual_seed(0)
W, b = torch.randn(3, 3, dtype=torch.float64) / 4, torch.randn(2, 3, dtype=torch.float64)
WEIGHTS, BIASES = torch.stack([W, W / 2, W.T]), torch.stack([b, 2 * b, b - 1])
LEAF = W.clone().requires_grad_()  # of autograd, below all transforms
ONE_W, ONE_b = torch.ones_like(W), torch.ones_like(b)
Solve = Callable[[Tensor, Tensor], Tensor]


def by_autograd(y: Tensor) -> Tensor:
    return torch.autograd.grad(y.square().sum(), LEAF)[0]


# What is differentiated is a square, so that the gradient that goes in is no constant.
TRANSFORMS: dict[str, Callable[[Solve], Any]] = {
    "vmap": lambda s: vmap(lambda c: s(W, c))(BIASES),
    "vmap, other dimension": lambda s: vmap(lambda c: s(W, c), 1, 2)(BIASES.movedim(0, 1)),
    "vmap of both": lambda s: vmap(s)(WEIGHTS, BIASES),
    "vmap vmap": lambda s: vmap(lambda w: vmap(lambda c: s(w, c))(BIASES))(WEIGHTS),
    "grad": lambda s: grad(lambda w: s(w, b).square().sum())(W),
    "grad vmap": lambda s: grad(lambda w: vmap(lambda c: s(w, c))(BIASES).square().sum())(W),
    "grad vmap vmap": lambda s: grad(
        lambda w: vmap(lambda v: vmap(lambda c: s(w * v, c))(BIASES))(WEIGHTS).square().sum()
    )(W),
    "vmap grad": lambda s: vmap(lambda c: grad(lambda w: s(w, c).square().sum())(W))(BIASES),
    "vjp": lambda s: vjp(lambda w: s(w, b), W)[1](ONE_b),
    "vmap vjp": lambda s: vmap(lambda c: vjp(lambda w: s(w, c), W)[1](ONE_b)[0])(BIASES),
    "jacrev": lambda s: jacrev(lambda w: s(w, b))(W),
    "jvp": lambda s: jvp(lambda w: s(w, b), (W,), (ONE_W,)),
    "vmap jvp": lambda s: vmap(lambda t: jvp(lambda c: s(W, c), (b,), (t,))[1])(BIASES),
    "jacfwd": lambda s: jacfwd(lambda w: s(w, b))(W),
    "grad grad": lambda s: grad(lambda w: grad(lambda v: s(v, b).square().sum())(w).square().sum())(
        W
    ),
    "grad of a gradient by another": lambda s: grad(
        lambda c: grad(lambda w: s(w, c).square().sum())(W).square().sum()
    )(b),
    "grad of a product by another": lambda s: grad(
        lambda c: vjp(lambda w: s(w, c), W)[1](ONE_b)[0].square().sum()
    )(b),
    "hessian": lambda s: hessian(lambda w: s(w, b).square().sum())(W),
    "vmap hessian": lambda s: vmap(hessian(lambda c: s(W, c).square().sum()))(BIASES),
    "jvp grad": lambda s: jvp(grad(lambda c: s(W, c).square().sum()), (b,), (ONE_b,)),
    "jacrev jacrev": lambda s: jacrev(jacrev(lambda c: s(W, c)))(b),
    "jacfwd jacfwd": lambda s: jacfwd(jacfwd(lambda c: s(W, c)))(b),
    "jacrev jacfwd": lambda s: jacrev(jacfwd(lambda c: s(W, c)))(b),
    "backward of vmap": lambda s: by_autograd(vmap(lambda c: s(LEAF, c))(BIASES)),
    "backward of grad": lambda s: by_autograd(grad(lambda c: s(LEAF, c).square().sum())(b)),
    "backward of vjp": lambda s: by_autograd(vjp(lambda c: s(LEAF, c), b)[1](ONE_b)[0]),
    "backward of jvp": lambda s: by_autograd(jvp(lambda c: s(LEAF, c), (b,), (ONE_b,))[1]),
}


def plain(W: Tensor, b: Tensor) -> Tensor:
    x = torch.zeros(2, 3, dtype=torch.float64)
    for _ in range(100):
        x = torch.tanh(x @ W + b)
    return x


def solver(**options: Any) -> Solve:
    def solve(W: Tensor, b: Tensor) -> Tensor:
        x0 = torch.zeros(2, 3, dtype=torch.float64)
        options.update(tol=1e-14, abs_tol=1e-14)
        return fixed_point(lambda x: torch.tanh(x @ W + b), x0, **options).solution

    return solve


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("gradient", ["implicit", "truncated", "phantom"])
def test_transforms_give_what_they_give_of_plain_steps(name: str, gradient: str) -> None:
    solve = solver(gradient=gradient, gradient_terms=60)
    found, expected = (tree_leaves(TRANSFORMS[name](s)) for s in (solve, plain))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_mapped_samples_are_samples() -> None:
    """What is returned are their figures, too; each has its own end."""
    rates = torch.tensor([0.1, 0.9, 1.0], dtype=torch.float64)

    def solve(rate: Tensor) -> FixedPoint:
        x0 = torch.zeros(5, dtype=torch.float64)
        return fixed_point(lambda x: rate * x + 1, x0, batch_dims=0, gradient=None)

    found = vmap(solve)(rates)
    assert found.reason == ["converged", "converged", "stagnated"]
    assert found.steps.tolist() == [int(solve(rate).steps) for rate in rates]


def test_pytrees_are_mapped_and_differentiated() -> None:
    def solve(c: Tensor) -> Tensor:
        def f(x: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"v": torch.sin(x["u"]) / 2, "u": torch.tanh(x["v"]) * c / 4 + c}

        x0 = {"u": torch.zeros_like(c), "v": torch.zeros_like(c)}
        found = fixed_point(f, x0, tol=1e-13, abs_tol=1e-13).solution
        return found["u"].square() + found["v"]

    mapped, rates = vmap(jacrev(solve))(BIASES), vmap(jacfwd(solve))(BIASES)
    torch.testing.assert_close(mapped, rates)
    differences = (solve(b + 1e-6 * ONE_b) - solve(b - 1e-6 * ONE_b)) / 2e-6
    torch.testing.assert_close(mapped[0].sum((2, 3)), differences, rtol=1e-7, atol=1e-8)


def test_an_adjoint_without_solution_is_told_under_vmap() -> None:
    def loss(scale: Tensor, start: Tensor) -> Tensor:
        return fixed_point(lambda x: scale * x, start, max_steps=20).solution.sum()

    one = torch.ones(2, 1, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="adjoint"):
        vmap(grad(loss))(one, one[:, None])


def test_what_a_transform_cannot_do_is_told() -> None:
    with pytest.raises(ValueError, match="functionalized"):
        functionalize(solver())(W, b)
    y = solver()(LEAF, b)
    with pytest.raises(RuntimeError, match=r"torch\.func\.jacrev"):
        torch.autograd.grad(y, LEAF, y.new_ones(2, 2, 3), is_grads_batched=True)
