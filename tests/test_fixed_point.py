"""Fixed points of batches: theory, samples that go their own ways, and functions that misbehave."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.linalg import lstsq, norm
from torch import Tensor, is_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aadl_ext import AndersonMixing, FixedPoint, fixed_point, ops

Array = np.ndarray[Any, np.dtype[np.float64]]
FULL = AndersonMixing(history_depth=20, solver="tsqr")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def contraction(count: int, size: int, rate: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Matrices ``[count, size, size]`` of spectral norm ``rate``, and right sides."""
    A = normal(count, size, size, seed=seed)
    return rate * A / torch.linalg.matrix_norm(A, 2)[:, None, None], normal(count, size, seed=1)


def affine(A: Tensor, b: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.einsum("bij,bj->bi", A, x) + b


def solved(A: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.solve(torch.eye(A.shape[-1], dtype=A.dtype) - A, b)


def visited(f: Callable[[Tensor], Tensor], x0: Tensor, **options: Any) -> tuple[list[Tensor], Any]:
    """The points at which f is evaluated."""
    points: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        points.append(x.clone())
        return f(x)

    found = fixed_point(watched, x0, gradient=None, **options)
    return points, found


# ---- theory ---------------------------------------------------------------------------------


def test_linear_type_two_with_all_the_history_is_gmres() -> None:
    """Walker and Ni 2011, theorem 2.2: x_{k+1} = x_k^GMRES + r_k^GMRES."""
    (A,), (b,) = contraction(1, 12, 0.9)
    points, _ = visited(affine(A[None], b[None]), torch.zeros_like(b)[None], method=FULL, tol=1e-12)
    M, rhs = (torch.eye(12, dtype=A.dtype) - A).numpy(), b.numpy()
    assert len(points) > 10
    for k in range(10):
        krylov = np.stack([np.linalg.matrix_power(M, j) @ rhs for j in range(k)] or [0 * rhs])
        Q = np.linalg.qr(krylov.T)[0] if k else krylov.T
        x = Q @ lstsq(M @ Q, rhs)[0]
        expected = x + (rhs - M @ x)
        assert norm(points[k + 1][0].numpy() - expected) < 1e-9 * norm(expected), k


@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_damped_type_two_steps_are_the_dense_ones(beta: float) -> None:
    A, b = contraction(3, 9, 0.9)
    m = 3
    points, _ = visited(
        affine(A, b), 0 * b, method=AndersonMixing(history_depth=m, relaxation=beta), max_steps=9
    )
    f = affine(A, b)
    for s in range(3):
        x = [p[s].numpy() for p in points]
        r = [(f(p) - p)[s].numpy() for p in points]
        for k in range(len(points) - 1):
            expected = x[k] + beta * r[k]
            window = range(max(0, k - m), k)
            if window:
                W = np.stack([x[j + 1] - x[j] for j in window], 1)
                R = np.stack([r[j + 1] - r[j] for j in window], 1)
                expected = expected - (W + beta * R) @ lstsq(R, r[k])[0]
            assert norm(x[k + 1] - expected) < 1e-8 * norm(expected), (s, k)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_plain_iteration_contracts_at_its_known_rate(beta: float) -> None:
    rates = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)[:, None]
    method = AndersonMixing(history_depth=0, relaxation=beta)
    points, found = visited(
        lambda x: rates * x, torch.ones(3, 2, dtype=torch.float64), method=method, max_steps=12
    )
    for k, x in enumerate(points):
        torch.testing.assert_close(x, (1 - beta + beta * rates).pow(k).expand(3, 2))
    assert found.reason == ["max_steps"] * 3


def test_alternating_steps_are_plain_between_two_extrapolations() -> None:
    A, b = contraction(2, 10, 0.9)
    f = affine(A, b)
    method = AndersonMixing(history_depth=4, frequency=3, relaxation=0.7)
    points, _ = visited(f, 0 * b, method=method, max_steps=12, tol=1e-14)
    plain = [
        bool(torch.allclose(x + 0.7 * (f(x) - x), y, rtol=1e-12, atol=1e-12))
        for x, y in pairwise(points)
    ]
    assert plain == [(k + 1) % 3 != 0 for k in range(11)]


def test_restarted_steps_forget_what_was_before() -> None:
    A, b = contraction(2, 10, 0.9)
    f, method = affine(A, b), AndersonMixing(history_depth=4, restart_each_nth=5)
    points, _ = visited(f, 0 * b, method=method, max_steps=11, tol=1e-14)
    again, _ = visited(f, points[5], method=method, max_steps=6, tol=1e-14)
    for x, y in zip(points[5:], again, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


def test_pairs_may_be_stored_more_rarely() -> None:
    A, b = contraction(2, 10, 0.95)
    options = {"tol": 1e-10, "abs_tol": 0.0, "max_steps": 400}
    method = AndersonMixing(history_depth=6, store_each_nth=2, frequency=2)
    found = fixed_point(affine(A, b), 0 * b, method=method, **options)
    plain = fixed_point(affine(A, b), 0 * b, method=AndersonMixing(history_depth=0), **options)
    assert found.converged.all()
    assert (found.steps < plain.steps).all()


@pytest.mark.parametrize("kind", ["I", "II"])
@pytest.mark.parametrize("solver", ["gram", "tsqr"])
def test_beyond_contractions_it_converges_where_plain_steps_diverge(kind: str, solver: str) -> None:
    A, b = contraction(4, 10, 3.0)
    x0 = torch.zeros_like(b)
    if kind == "I":
        solver = "gram"
    method = AndersonMixing(history_depth=10, kind=kind, solver=solver)
    found = fixed_point(affine(A, b), x0, method=method, tol=1e-8, max_steps=100)
    plain = fixed_point(affine(A, b), x0, method=AndersonMixing(history_depth=0), max_steps=1000)
    assert found.converged.all()
    assert plain.reason == ["stagnated"] * 4
    torch.testing.assert_close(found.solution, solved(A, b), rtol=1e-5, atol=1e-5)


# ---- each sample for itself -----------------------------------------------------------------

RATES = torch.tensor([0.5, math.nan, 2.0, 1.0, 0.0, 0.5, 1e30], dtype=torch.float64)[:, None]
REASONS = ["converged", "diverged", "converged", "stagnated", "converged", "converged", "diverged"]


def odd(x: Tensor) -> Tensor:
    """Contracting, NaN, expanding, without a fixed point, constant, as the first, overflowing."""
    return RATES * x + 1


def test_samples_of_all_kinds_have_their_own_ends() -> None:
    found = fixed_point(odd, torch.zeros(7, 3, dtype=torch.float64), gradient=None)
    expected = (1 / (1 - RATES)).expand(7, 3)
    assert found.reason == REASONS
    for s in (0, 2, 4, 5):
        torch.testing.assert_close(found.solution[s], expected[s], rtol=1e-4, atol=1e-6)
    assert found.solution[1].isfinite().all()  # the start
    assert found.residual[1] == math.inf
    assert found.steps[1] == 1
    assert (found.solution[0] == found.solution[5]).all()  # duplicates stay so


@pytest.mark.parametrize("method", [AndersonMixing(), AndersonMixing(kind="I"), FULL])
def test_a_sample_does_not_notice_the_others(method: AndersonMixing) -> None:
    torch.manual_seed(0)
    b = normal(6, 8)
    b[2], b[4] = math.nan, math.inf
    scale = torch.tensor([1.0, 3, 1, 0, 1, 1e-12], dtype=torch.float64)[:, None]

    def f(x: Tensor, of: slice = slice(None)) -> Tensor:
        return scale[of] * torch.tanh(x) * 0.9 + b[of]

    x0 = torch.zeros_like(b)
    together = fixed_point(f, x0, method=method, gradient=None)
    for s in range(6):
        own = slice(s, s + 1)
        alone = fixed_point(lambda x, own=own: f(x, own), x0[own], method=method, gradient=None)
        assert together.reason[s] == alone.reason[0]
        assert together.steps[s] == alone.steps[0]
        torch.testing.assert_close(together.solution[own], alone.solution, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("start", [math.nan, math.inf, 1e200])
def test_a_start_that_is_no_number_does_not_reach_the_others(start: float) -> None:
    A, b = contraction(3, 8, 0.9)
    x0 = torch.zeros_like(b)
    x0[1] = start
    found, usual = fixed_point(affine(A, b), x0), fixed_point(affine(A, b), 0 * b)
    assert found.reason == ["converged", "diverged", "converged"]
    assert (found.steps == torch.tensor([usual.steps[0], 0, usual.steps[2]])).all()
    torch.testing.assert_close(found.solution[1], x0[1], equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_too_large_to_be_squared_do_not_reach_the_others(dtype: torch.dtype) -> None:
    A, b = contraction(1, 8, 0.9)
    A, b = A.to(dtype), b.to(dtype)
    huge = torch.finfo(dtype).max / 4

    def f(x: Tensor) -> Tensor:
        return torch.cat([affine(A, b)(x[:1]), x[1:] + 1])

    x0 = torch.cat([0 * b, torch.full_like(b, huge)])
    found = fixed_point(f, x0)
    alone = fixed_point(affine(A, b), 0 * b)
    assert found.reason == ["converged", "diverged"]
    assert found.steps[0] == alone.steps[0]


def test_a_converged_sample_moves_no_more() -> None:
    rates = torch.tensor([[0.1], [0.999]])
    points, found = visited(
        lambda x: rates * torch.tanh(x) + 1, torch.zeros(2, 4), tol=1e-4, abs_tol=0.0
    )
    at = int(found.steps[0])
    assert at < found.steps[1]
    for x in points[at:]:
        assert (x[0] == found.solution[0]).all()


def test_samples_that_have_ended_cost_no_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[int] = []
    solve = ops.solve_secants

    def counted(system: Tensor, **options: Any) -> ops.SecantSolution:
        solved.append(len(system))
        return solve(system, **options)

    monkeypatch.setattr(ops, "solve_secants", counted)
    rates = torch.tensor([[0.0], [0.1], [0.999]], dtype=torch.float64)
    found = fixed_point(lambda x: rates * torch.tanh(x) + 1, torch.zeros(3, 4, dtype=torch.float64))
    assert len(solved) == found.steps.max() - 1
    running = [int((found.steps > k).sum()) for k in range(1, len(solved) + 1)]
    assert solved == running
    assert set(solved) == {1, 2, 3}


def test_the_best_point_is_returned_not_the_last() -> None:
    def f(x: Tensor) -> Tensor:  # the residual is least at the second evaluation
        calls.append(0)
        return x + (0.1 if len(calls) == 2 else 1.0)

    calls: list[int] = []
    plain = AndersonMixing(history_depth=0)
    points, found = visited(f, torch.zeros(1, 2), method=plain, max_steps=9)
    assert (found.solution == points[1]).all()
    assert found.residual == pytest.approx(0.1 * math.sqrt(2), rel=1e-5)


def test_a_point_where_f_is_not_finite_is_left() -> None:
    """The second step leads to negative numbers, which have no logarithm."""
    start = torch.tensor([[0.5], [0.6], [3.0]], dtype=torch.float64)
    points, found = visited(lambda x: x.log() + 2, start, tol=1e-9)
    assert [bool((torch.stack(points)[:, s] < 0).any()) for s in range(3)] == [True, True, False]
    assert found.converged.all()
    assert found.solution.flatten().tolist() == pytest.approx([3.146193] * 3, rel=1e-6)


def test_residual_safeguard_leaves_points_that_are_farther_away() -> None:
    def f(x: Tensor) -> Tensor:
        return torch.cos(3 * x) + 0.3 * x

    start = torch.linspace(-3, 3, 40, dtype=torch.float64)[:, None]
    method = AndersonMixing(history_depth=3, safeguard="residual", relaxation=0.3)
    points, found = visited(f, start, method=method, max_steps=300)
    assert found.converged.all()
    left = torch.stack([(f(x) - x).abs().squeeze(1) for x in points]).diff(dim=0) > 0
    without, _ = visited(
        f, start, method=AndersonMixing(history_depth=3, relaxation=0.3), max_steps=300
    )
    risen = torch.stack([(f(x) - x).abs().squeeze(1) for x in without]).diff(dim=0) > 0
    assert left.any()  # they are seen, and
    assert left[1:][left[:-1]].float().mean() < 0.2  # a plain step from the better point follows
    assert risen.any()


def test_limits_safeguard_takes_a_plain_step_where_the_way_is_long() -> None:
    def f(x: Tensor) -> Tensor:
        return 0.9999 * x + 1

    options = {"max_steps": 3, "tol": 0.0, "abs_tol": 0.0}
    x0 = torch.zeros(1, 2, dtype=torch.float64)
    free, _ = visited(f, x0, **options)
    limited, _ = visited(f, x0, method=AndersonMixing(safeguard="limits"), **options)
    assert free[2][0, 0] == pytest.approx(1e4, rel=1e-6)
    assert limited[2][0, 0] == pytest.approx(1.9999)


@pytest.mark.parametrize("options", [{}, {"relaxation": 0.5, "store_each_nth": 2}])
def test_limits_safeguard_takes_large_coefficients_for_what_they_do(options: Any) -> None:
    """Columns that nearly depend on each other: a sum of magnitudes is no measure of a step."""
    rates = 1 - 10 ** (
        -4 * torch.rand(20, 200, generator=torch.Generator().manual_seed(1)).double()
    )
    b, runs = normal(20, 200), []
    for safeguard in (None, "limits"):
        method = AndersonMixing(20, safeguard=safeguard, **options)
        runs.append(fixed_point(lambda x: rates * x + b, 0 * b, method=method, max_steps=2000))
    assert runs[1].converged.all()
    assert runs[1].steps.max() <= 1.1 * runs[0].steps.max()


def test_dependent_columns_do_no_harm() -> None:
    """A map of rank one makes columns that are multiples of each other."""
    u, v = normal(5, 6, seed=1), normal(5, 6, seed=2)
    u, v = u / u.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
    b = normal(5, 6)
    for dtype in (torch.float32, torch.float64):
        U, V, B = u.to(dtype), v.to(dtype), b.to(dtype)

        def f(x: Tensor, U: Tensor = U, V: Tensor = V, B: Tensor = B) -> Tensor:
            return 0.95 * U * (V * x).sum(1, keepdim=True) + B

        found = fixed_point(f, torch.zeros_like(B), tol=1e-5, gradient=None)
        assert found.converged.all()
        assert (found.steps <= 6).all()


def test_tolerances_are_relative_and_absolute() -> None:
    scale = torch.tensor([[1e-6], [1.0], [1e6]], dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return 0.5 * x + scale

    plain = AndersonMixing(history_depth=0)
    x0 = torch.zeros(3, 1, dtype=torch.float64)
    relative = fixed_point(f, x0, method=plain, tol=1e-4, abs_tol=0.0)
    absolute = fixed_point(f, x0, method=plain, tol=0.0, abs_tol=1e-3)
    assert len(set(relative.steps.tolist())) == 1
    assert (relative.residual <= 1e-4 * f(relative.solution).norm(dim=1)).all()
    assert absolute.steps[0] == 1
    assert absolute.steps.diff().gt(0).all()
    assert (absolute.residual <= 1e-3).all()


def test_checks_may_be_rare() -> None:
    A, b = contraction(4, 10, 0.9)
    often = fixed_point(affine(A, b), 0 * b)
    rarely = fixed_point(affine(A, b), 0 * b, check_every=7)
    assert (often.steps == rarely.steps).all()
    assert (often.solution == rarely.solution).all()


# ---- structures and dtypes ------------------------------------------------------------------


def test_pytrees_are_solved_as_one_vector() -> None:
    A, b = contraction(4, 10, 0.9)
    whole = affine(A, b)

    def f(x: dict[str, Any]) -> dict[str, Any]:
        y = whole(torch.cat([x["a"].reshape(4, 6), x["b"][0]], dim=1))
        return {"b": (y[:, 6:],), "a": y[:, :6].reshape(4, 2, 3)}

    x0 = {"a": torch.zeros(4, 2, 3).double(), "b": (torch.zeros(4, 4).double(),)}
    found, flat = fixed_point(f, x0), fixed_point(whole, 0 * b)
    assert list(found.solution) == ["a", "b"]
    assert found.solution["a"].shape == (4, 2, 3)
    assert (found.steps == flat.steps).all()
    joined = torch.cat([found.solution["a"].reshape(4, 6), found.solution["b"][0]], dim=1)
    assert (joined == flat.solution).all()


@pytest.mark.parametrize(("batch_dims", "shape"), [(0, ()), (1, (6,)), (2, (6, 5))])
def test_batch_dims_say_what_a_sample_is(batch_dims: int, shape: tuple[int, ...]) -> None:
    rates = torch.linspace(0.1, 0.9, 30, dtype=torch.float64).view(6, 5, 1)
    found = fixed_point(
        lambda x: rates * torch.cos(x), torch.zeros(6, 5, 2).double(), batch_dims=batch_dims
    )
    assert found.residual.shape == found.steps.shape == found.converged.shape == shape
    assert found.converged.all()
    assert np.shape(found.reason) == shape


def test_a_sample_may_be_a_number() -> None:
    rates = torch.tensor([0.2, 0.9], dtype=torch.float64)
    found = fixed_point(lambda x: rates * torch.cos(x), torch.zeros(2).double(), tol=1e-12)
    torch.testing.assert_close(found.solution, rates * torch.cos(found.solution))
    x0 = {"a": torch.zeros(2, dtype=torch.float64), "b": torch.zeros(2, 3), "c": torch.zeros(2, 0)}
    several = fixed_point(lambda x: {**x, "a": rates * torch.cos(x["a"])}, x0, tol=1e-12)
    assert {name: leaf.shape for name, leaf in several.solution.items()} == {
        name: leaf.shape for name, leaf in x0.items()
    }
    torch.testing.assert_close(several.solution["a"], found.solution)
    alone = fixed_point(lambda x: rates[1] * torch.cos(x), torch.zeros(()).double(), batch_dims=0)
    torch.testing.assert_close(alone.solution, found.solution[1], rtol=1e-4, atol=0)
    assert alone.reason == "converged"


def test_complex_points_are_pairs_of_real_ones() -> None:
    A = torch.complex(normal(3, 5, 5), normal(3, 5, 5, seed=4)) / 8
    b = torch.complex(normal(3, 5, seed=2), normal(3, 5, seed=3))
    found = fixed_point(affine(A, b), torch.zeros_like(b), tol=1e-11, abs_tol=0.0)
    assert found.solution.dtype == torch.complex128
    torch.testing.assert_close(found.solution, solved(A, b), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_dtypes_converge_to_what_they_resolve(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    W, b = (normal(8, 8) / 6).to(dtype), normal(5, 8, dtype=dtype)

    def f(x: Tensor) -> Tensor:
        assert x.dtype == dtype
        return torch.tanh(x @ W + b)

    found = fixed_point(f, torch.zeros_like(b), tol=4 * eps, abs_tol=0.0)
    assert found.converged.all()
    assert found.solution.dtype == dtype
    exact = fixed_point(
        lambda x: torch.tanh(x @ W.double() + b.double()),
        torch.zeros(5, 8).double(),
        tol=1e-14,
        abs_tol=0.0,
    )
    assert (found.solution - exact.solution).abs().max() < 200 * eps


def test_a_narrow_function_of_wide_points_has_a_wide_history() -> None:
    W, b = normal(8, 8) / 6, normal(5, 8)

    def f(x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return torch.tanh(x.bfloat16() @ W.bfloat16() + b.bfloat16())

    found = fixed_point(f, torch.zeros(5, 8), tol=0.02)
    assert found.converged.all()
    assert found.solution.dtype == torch.float32


def test_numpy_arrays_come_and_go() -> None:
    A, b = (x.numpy() for x in contraction(3, 6, 0.8))

    def f(x: Array) -> Array:
        assert isinstance(x, np.ndarray)
        assert not x.flags.writeable
        return np.einsum("bij,bj->bi", A, x) + b

    found = fixed_point(f, np.zeros((3, 6)))
    assert all(isinstance(x, np.ndarray) for x in (found.solution, found.residual, found.steps))
    assert found.reason == ["converged"] * 3
    np.testing.assert_allclose(f_of(f, found), found.solution, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("x0", [np.float64(0.5), np.array(0.5), np.array(0.5, dtype=">f8")])
def test_numbers_of_numpy_and_of_any_byte_order(x0: Any) -> None:
    found = fixed_point(lambda x: np.asarray(np.cos(x), dtype=">f8"), x0, batch_dims=0, tol=1e-9)
    assert found.solution == pytest.approx(0.7390851332)
    assert found.reason == "converged"


def f_of(f: Callable[[Array], Array], found: FixedPoint) -> Array:
    found.solution.flags.writeable = False
    return f(found.solution)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_is_solved_at_once(shape: tuple[int, int]) -> None:
    found = fixed_point(lambda x: 0.5 * x, torch.zeros(shape))
    assert found.solution.shape == shape
    assert found.converged.all()


def test_runs_are_the_same_bit_for_bit() -> None:
    A, b = contraction(4, 30, 0.99)
    runs = [fixed_point(affine(A, b), 0 * b) for _ in range(2)]
    assert (runs[0].solution == runs[1].solution).all()
    assert (runs[0].steps == runs[1].steps).all()


def test_the_first_point_stays_as_it_is() -> None:
    x0 = torch.ones(2, 3)
    fixed_point(lambda x: 0.5 * x + 1, x0)
    assert (x0 == 1).all()


# ---- functions that misbehave ---------------------------------------------------------------


def test_functions_without_a_fixed_point_end_with_a_reason() -> None:
    x0 = torch.zeros(2, 3, dtype=torch.float64)
    shift = fixed_point(lambda x: x + 1, x0, max_steps=10_000)
    assert shift.reason == ["stagnated"] * 2
    flip = fixed_point(lambda x: 1 - 2 * (x > 0).double(), x0 + 1, max_steps=10_000)
    assert set(flip.reason) <= {"stagnated", "diverged"}
    blow = fixed_point(lambda x: x * x + x + 1, x0, max_steps=10_000)
    assert not blow.converged.any()
    assert blow.solution.isfinite().all()


def test_functions_that_are_not_deterministic_end() -> None:
    generator = torch.Generator().manual_seed(0)

    def f(x: Tensor) -> Tensor:
        return 0.5 * x + torch.randn(x.shape, generator=generator)

    found = fixed_point(f, torch.zeros(3, 50), max_steps=10_000)
    assert found.reason == ["stagnated"] * 3


def test_nan_everywhere_ends_at_once() -> None:
    found = fixed_point(lambda x: x * math.nan, torch.ones(3, 2))
    assert found.reason == ["diverged"] * 3
    assert (found.solution == 1).all()
    assert (found.steps == 1).all()


def test_a_function_may_return_its_argument() -> None:
    found = fixed_point(lambda x: x, torch.ones(3, 2))
    assert found.converged.all()
    assert (found.residual == 0).all()


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: x[:, :1], "shape"),
        (lambda x: x[:1], "shape"),
        (lambda x: (x, x), "tuple"),
        (lambda x: x.tolist(), "list"),
        (lambda x: None, "NoneType"),
        (lambda x: x.to(torch.complex64), "complex"),
        (lambda x: x.long(), "int64"),
        (lambda x: x.add_(1), "in place"),
        (lambda x: x.to_sparse(), "sparse"),
    ],
)
def test_what_is_not_a_map_is_refused(f: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fixed_point(f, torch.zeros(2, 3))


@pytest.mark.parametrize(
    "options",
    [
        {"tol": -1.0},
        {"tol": math.nan},
        {"abs_tol": math.inf},
        {"max_steps": 0},
        {"batch_dims": 3},
        {"batch_dims": -1},
        {"check_every": 0},
        {"gradient": "exact"},
        {"gradient_terms": 0},
        {"method": "anderson"},
        {"x0": torch.zeros(2, 3, dtype=torch.int64)},
        {"x0": []},
        {"x0": torch.zeros(())},
        {"x0": torch.zeros(2, 3).to_sparse()},
        {"x0": {"a": torch.zeros(2, 1), "b": torch.zeros(3, 1)}},
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w+ (is|holds|has) "):
        fixed_point(lambda x: x, **{"x0": torch.zeros(2, 3), **options})


@pytest.mark.parametrize(
    "options",
    [
        {"history_depth": -1},
        {"relaxation": 0.0},
        {"kind": "III"},
        {"kind": "I", "solver": "tsqr"},
        {"restart_each_nth": -1},
        {"safeguard": "loss"},
        {"frequency": 0},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        AndersonMixing(**options)


# ---- what it costs --------------------------------------------------------------------------


@pytest.mark.parametrize("safeguard", [None, ("residual", "limits")])
def test_nothing_is_read_between_checks(safeguard: Any) -> None:
    """Meta tensors have no values: to ask for one is an error."""
    b = torch.zeros(3, 5, device="meta")
    method = AndersonMixing(2, 0.5, restart_each_nth=4, safeguard=safeguard)
    options = {"method": method, "max_steps": 7, "gradient": None}
    found = fixed_point(lambda x: torch.tanh(x) + b, b, check_every=8, **options)
    assert found.solution.shape == b.shape
    with pytest.raises((RuntimeError, NotImplementedError)):
        fixed_point(lambda x: torch.tanh(x) + b, b, check_every=1, **options)


class Sizes(TorchDispatchMode):
    """Notes how large what is made is."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = {x.untyped_storage().data_ptr() for x in tree_leaves(args) if is_tensor(x)}
        for x in tree_leaves(out):
            if is_tensor(x) and x.untyped_storage().data_ptr() not in inputs:
                self.largest = max(self.largest, x.numel())
        return out


def test_no_temporary_is_larger_than_a_point() -> None:
    count, size = 2, 300_000  # definitions work in pieces
    rates = torch.linspace(0.1, 0.99, count)[:, None]
    options = {"method": AndersonMixing(history_depth=6), "tol": 1e-7, "gradient": None}
    evaluations: list[int] = []
    sizes = Sizes()

    def f(x: Tensor) -> Tensor:
        evaluations.append(0)
        if len(evaluations) == 2:  # all is allocated
            sizes.__enter__()
        return torch.cos(rates * x)

    try:
        fixed_point(f, torch.zeros(count, size), **options)
    finally:
        sizes.__exit__(None, None, None)
    assert len(evaluations) > 5
    assert sizes.largest == count * size
