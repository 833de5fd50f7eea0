from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import mentions, normal, same_bits, seeds
from torch import Tensor

from aadl_ext import ops

Array = np.ndarray
BAD = [math.nan, math.inf, -math.inf]


@dataclass
class Problem:
    """One quadratic with gradient ``g`` and Hessian ``H``, along the rows of ``W``."""

    W: Tensor  # [m, N]
    H: Tensor  # [N, N], or the changes of gradients [m, N] in its place
    g: Tensor  # [N]
    A: Tensor  # [J, N]

    @property
    def changes(self) -> Tensor:
        return self.W @ self.H if len(self.H) == len(self.g) else self.H

    @property
    def products(self) -> list[Tensor]:
        """Metric, curvature, right side, noise."""
        W = self.W
        return [W @ W.T, W @ self.changes.T, W @ self.g, W @ self.A.T]


def random_problem(
    m: int, size: int = 12, noises: int = 0, *, definite: bool = True, seed: int = 0
) -> Problem:
    """Exact changes of gradients; eigenvalues of the Hessian 1 to 10 in size."""
    turn, _ = torch.linalg.qr(normal(size, size, seed=seed))
    values = torch.linspace(1, 10, size, dtype=torch.float64)
    if not definite:
        values[::2] *= -1
    rows = normal(m + 1 + noises, size, seed=seed + 1)
    return Problem(rows[:m], turn * values @ turn.T, rows[m], 0.1 * rows[m + 1 :])


def solve_all(
    problems: Sequence[Sequence[Tensor]], radii: Sequence[float], **settings: float
) -> ops.SubspaceSolution:
    stacked = [torch.stack(list(part)) for part in zip(*problems, strict=True)]
    copies = [part.clone() for part in stacked]
    radius = torch.tensor(radii, dtype=torch.float64)
    found = ops.solve_subspace(*stacked, radius=radius, **settings)
    assert all(map(same_bits, stacked, copies))
    systems, m = stacked[2].shape
    for name, value in found._asdict().items():
        wide = name in ("coefficients", "curvature")
        assert value.shape == ((systems, m) if wide else (systems,)), name
        assert value.dtype == (torch.int64 if name == "rank" else torch.float64), name
    return found


def solve(
    problem: Problem | Sequence[Tensor], radius: float = math.inf, **settings: float
) -> ops.SubspaceSolution:
    """One problem; the fields without the batch dimension."""
    products = problem.products if isinstance(problem, Problem) else problem
    found = solve_all([products], [radius], **settings)
    return ops.SubspaceSolution(*(field[0] for field in found))


EXACT = {"floor": 0.0, "shrinkage": 0.0}


def close(
    found: Tensor, expected: Tensor | Array | Sequence[float] | float, error: float = 1e-9
) -> None:
    """Up to ``error`` times the norm."""
    expected = np.asarray(expected)
    difference = np.linalg.norm(found.numpy() - expected)
    assert difference <= error * np.linalg.norm(expected), (found, expected)


def definition(
    metric: Array, curvature: Array, right: Array, noise: Array, radius: float,
    ridge: float = 1e-4, floor: float = 0.01, shrinkage: float = 4.0,
) -> dict[str, Any]:  # fmt: skip
    """The docstring in NumPy, in an orthonormal basis of the directions that are kept."""
    m, lengths = len(right), np.sqrt(np.diag(metric))
    units = np.divide(1, lengths, out=np.zeros(m), where=lengths > 0)
    values, vectors = np.linalg.eigh(units[:, None] * metric * units)
    kept = values > ridge * values[-1]
    basis = units[:, None] * vectors[:, kept] / np.sqrt(values[kept])  # columns: unit directions
    e, turn = np.linalg.eigh(basis.T @ (curvature + curvature.T) @ basis / 2)
    basis = basis @ turn
    c = basis.T @ right
    v = np.mean((basis.T @ noise) ** 2, axis=1) if noise.shape[1] else np.zeros(len(c))
    reduced = [x * max(0, 1 - shrinkage * y / x**2) if x else 0 for x, y in zip(c, v, strict=True)]
    largest = max(abs(e), default=0)
    step = -np.array(
        [x / max(abs(y), floor * largest) for x, y in zip(reduced, e, strict=True)], float
    )
    length = float(np.linalg.norm(step))
    if length > radius:
        step, length = step * (radius / length), radius
    return {
        "coefficients": -basis @ step,
        "slope": step @ c,
        "length": length,
        "rank": int(kept.sum()),
        "curvature": np.sort([*e, *np.zeros(m - len(e))]),
        "reduction": np.linalg.norm(c + e * step) / np.linalg.norm(c) if c.any() else 0.0,
    }


def assert_solution(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["rank"] == expected["rank"]
    close(found["coefficients"], expected["coefficients"])
    close(found["slope"], expected["slope"])
    close(found["length"], expected["length"])
    scale = np.abs(expected["curvature"]).max(initial=0)
    np.testing.assert_allclose(found["curvature"], expected["curvature"], rtol=0, atol=1e-9 * scale)
    assert float(found["reduction"]) == pytest.approx(expected["reduction"], abs=1e-9)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[list[Tensor]], list[bool]]:
    """Products of a few problems, and whether they are finite."""
    m, noises = draw(st.integers(1, 5)), draw(st.integers(0, 4))
    problems, finite = [], []
    for _ in range(draw(st.integers(1, 4))):
        problem = random_problem(
            m, noises=noises, definite=draw(st.booleans()), seed=draw(st.integers(0, 10**6))
        )
        if draw(st.booleans()):  # changes of gradients of no quadratic
            problem.H = normal(m, 12, seed=draw(st.integers(0, 10**6)))
        products = problem.products
        finite.append(draw(st.booleans()))
        if not finite[-1]:
            part = draw(st.sampled_from([x for x in products if x.numel()]))
            part.view(-1)[draw(st.integers(0, part.numel() - 1))] = draw(st.sampled_from(BAD))
        problems.append(products)
    return problems, finite


@given(
    batches(),
    st.sampled_from([math.inf, 1.0, 0.1, 0.0]),
    st.sampled_from([0.0, 0.01, 0.5]),
    st.sampled_from([0.0, 1.0, 4.0]),
    st.sampled_from([1e-4, 0.1, 0.5]),
)
def test_each_system_is_solved_as_by_its_definition_and_alone(
    batch: tuple[list[list[Tensor]], list[bool]], radius: float, floor: float, shrinkage: float,
    ridge: float,
) -> None:  # fmt: skip
    problems, finite = batch
    settings = {"ridge": ridge, "floor": floor, "shrinkage": shrinkage}
    radii = [radius * (1 + k) for k in range(len(problems))]
    found = solve_all(problems, radii, **settings)
    for k, products in enumerate(problems):
        fields = {name: value[k] for name, value in found._asdict().items()}
        if finite[k]:
            arrays = [x.numpy() for x in products]
            assert_solution(fields, definition(*arrays, radii[k], **settings))
        else:
            for name in ("coefficients", "slope", "length"):
                assert fields[name].isnan().all(), name


@pytest.mark.parametrize("definite", [True, False])
@pytest.mark.parametrize("radius", [math.inf, 0.1])
@pytest.mark.parametrize("m", [7, 8, 15, 32, 39])  # 39: more than shared memory
def test_any_number_of_displacements(m: int, radius: float, definite: bool) -> None:
    products = random_problem(m, m + 5, noises=9, definite=definite).products
    expected = definition(*(part.numpy() for part in products), radius)
    assert_solution(solve(products, radius)._asdict(), expected)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("part", range(4), ids=["metric", "curvature", "right side", "noise"])
def test_system_that_is_not_finite_leaves_the_others_alone(part: int, bad: float) -> None:
    problems = [random_problem(3, noises=2, seed=k).products for k in range(3)]
    clean = solve_all(problems, [math.inf] * 3)
    problems[1][part].view(-1)[1] = bad
    found = solve_all(problems, [math.inf] * 3)
    for name, value in found._asdict().items():
        torch.testing.assert_close(value[[0, 2]], getattr(clean, name)[[0, 2]], msg=name)
    for value in (found.coefficients, found.slope, found.length):
        assert value[1].isnan().all()


def test_opposite_infinities_do_not_hide_each_other() -> None:
    products = random_problem(3).products
    products[1][0, 0], products[1][1, 1] = math.inf, -math.inf
    assert solve(products).coefficients.isnan().all()


def test_narrower_products_are_solved_in_float64() -> None:
    narrow = [part.float() for part in random_problem(3, noises=2).products]
    found, wide = solve(narrow, 0.5), solve([part.double() for part in narrow], 0.5)
    torch.testing.assert_close(tuple(found), tuple(wide), rtol=1e-9, atol=1e-12)


@given(st.integers(1, 5), seeds, st.sampled_from([math.inf, 0.05]), st.booleans())
def test_scales_of_single_displacements_do_not_matter(
    m: int, seed: int, radius: float, definite: bool
) -> None:
    problem = random_problem(m, noises=3, definite=definite, seed=seed)
    scales = torch.tensor([1e-9, -1.0, 1e6, 2.0, 1e-3], dtype=torch.float64)[:m]
    plain = solve(problem, radius)
    metric, curvature, right, noise = problem.products
    square = scales[:, None] * scales
    scaled = solve([metric * square, curvature * square, right * scales, noise * scales[:, None]],
                   radius)  # fmt: skip
    close(scaled.coefficients * scales, plain.coefficients)
    for found, expected in zip(scaled[1:], plain[1:], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_displacements_of_extreme_lengths_are_used() -> None:
    problem = random_problem(3)
    plain = solve(problem)
    for scale in (1e-120, 1e120):
        problem = random_problem(3)
        problem.W[1] *= scale
        found = solve(problem).coefficients
        found[1] *= scale
        close(found, plain.coefficients)


@given(st.permutations(range(4)), seeds, st.booleans())
def test_order_of_the_displacements_does_not_matter(
    order: list[int], seed: int, definite: bool
) -> None:
    problem = random_problem(4, noises=3, definite=definite, seed=seed)
    plain = solve(problem, 0.3)
    problem.W = problem.W[order]
    turned = solve(problem, 0.3)
    close(turned.coefficients, plain.coefficients[order])
    for found, expected in zip(turned[1:], plain[1:], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@given(st.integers(1, 6), st.integers(0, 6), seeds)
def test_step_of_an_exact_quadratic_is_the_newton_step_in_the_span(
    m: int, more: int, seed: int
) -> None:
    problem = random_problem(m, m + more, seed=seed)
    found = solve(problem, ridge=1e-12, **EXACT)
    step = -problem.W.T @ found.coefficients
    # No slope is left along any displacement; conditions of W are seldom above 1e3.
    left = problem.W @ (problem.g + problem.H @ step)
    assert left.norm() <= 1e-7 * (problem.W @ problem.g).norm()
    if more == 0:
        close(step, -torch.linalg.solve(problem.H, problem.g), 1e-6)
    assert found.rank == m
    assert found.reduction < 1e-7
    close(found.length, step.norm(), 1e-6)
    close(found.slope, problem.g @ step, 1e-6)
    basis, _ = torch.linalg.qr(problem.W.T)
    close(found.curvature, torch.linalg.eigvalsh(basis.T @ problem.H @ basis), 1e-6)


def axes(curvature: list[float], slopes: list[float], noise: list[list[float]]) -> list[Tensor]:
    """A problem along orthonormal displacements that are eigenvectors; ``noise`` is [J, m]."""
    m = len(slopes)
    samples = torch.tensor(noise, dtype=torch.float64).reshape(-1, m)
    diagonal = torch.tensor(curvature, dtype=torch.float64).diag()
    eye = torch.eye(m, dtype=torch.float64)
    return [eye, diagonal, torch.tensor(slopes, dtype=torch.float64), samples.T]


def test_negative_curvature_counts_by_its_size() -> None:
    found = solve(axes([-4, 2, -1], [8, 3, -5], []))
    close(found.coefficients, [2, 1.5, -5])
    close(found.slope, -(8 * 2 + 3 * 1.5 + 5 * 5))
    close(found.curvature, [-4, -1, 2])


@given(st.integers(1, 6), st.integers(0, 4), seeds, st.sampled_from([math.inf, 0.1]))
def test_step_goes_downhill_whatever_the_curvature(
    m: int, noises: int, seed: int, radius: float
) -> None:
    problem = random_problem(m, noises=noises, definite=False, seed=seed)
    found = solve(problem, radius)
    step = -problem.W.T @ found.coefficients
    close(found.slope, problem.g @ step)
    assert found.slope < 0 or (found.slope == 0 and not step.any())
    assert found.slope < 0 or noises


@pytest.mark.parametrize("floor", [0.0, 0.1, 0.5, 1.0])
def test_curvature_counts_as_no_less_than_its_floor(floor: float) -> None:
    found = solve(axes([10, 3, -0.5, 0], [1, 1, 1, 1], []), floor=floor)
    expected = [1 / max(e, 10 * floor) if max(e, floor) else 0 for e in (10, 3, 0.5, 0)]
    close(found.coefficients, expected)


def test_without_any_curvature_there_is_no_step() -> None:
    found = solve(axes([0, 0], [1, 2], []))
    assert found.coefficients.tolist() == [0, 0]
    assert found.slope == found.length == 0
    assert found.reduction == 1


DEPENDENT: list[tuple[str, Callable[[Tensor], Tensor], int]] = [
    ("zero row", lambda w: torch.stack([w[0], 0 * w[0], w[1]]), 2),
    ("same row twice", lambda w: torch.stack([w[0], w[1], w[0]]), 2),
    ("one a multiple of another", lambda w: torch.stack([w[0], w[1], -1e6 * w[0]]), 2),
    ("three times the same and zero", lambda w: torch.stack([w[0], w[0], 0 * w[0], w[0]]), 1),
    ("sum of two", lambda w: torch.stack([w[0], w[1], w[0] + w[1], w[2]]), 3),
]


@pytest.mark.parametrize("definite", [True, False])
@pytest.mark.parametrize("floor", [0.0, 0.01])
@pytest.mark.parametrize(
    ("combine", "rank"), [c[1:] for c in DEPENDENT], ids=[c[0] for c in DEPENDENT]
)
def test_dependent_displacements_add_nothing(
    combine: Callable[[Tensor], Tensor], rank: int, floor: float, definite: bool
) -> None:
    problem = random_problem(3, noises=2, definite=definite)
    rows = problem.W
    problem.W = combine(rows)
    found = solve(problem, floor=floor)
    assert found.rank == rank
    assert (found.coefficients[problem.W.norm(dim=1) == 0] == 0).all()
    step = problem.W.T @ found.coefficients
    problem.W = rows[:rank]
    alone = solve(problem, floor=floor)
    expected = rows[:rank].T @ alone.coefficients
    close(step, expected)
    close(found.length, expected.norm())
    close(found.slope, -problem.g @ expected)
    torch.testing.assert_close(found.reduction, alone.reduction, rtol=1e-9, atol=1e-12)
    padded = torch.cat([alone.curvature, torch.zeros(len(found.curvature) - rank).double()])
    torch.testing.assert_close(found.curvature, padded.sort().values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("floor", [0.0, 0.01])
def test_displacements_that_are_all_zero_give_no_step(floor: float) -> None:
    problem = random_problem(3, noises=2)
    problem.W.zero_()
    found = solve(problem, floor=floor)
    assert found.rank == found.slope == found.length == 0
    assert found.coefficients.tolist() == found.curvature.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("ridge", "rank"), [(0.19, 2), (0.21, 1), (1.0, 0), (5.0, 0)])
def test_ridge_drops_directions_of_the_unit_displacements_at_or_below_it(
    ridge: float, rank: int
) -> None:
    # At a cosine of 2/3 the eigenvalues are 5/3 and 1/3, whatever the lengths.
    W = torch.tensor([[30.0, 0.0], [0.02, 0.02 * math.sqrt(1.25)]], dtype=torch.float64)
    assert float(W[0] @ W[1] / W[0].norm() / W[1].norm()) == pytest.approx(2 / 3)
    problem = random_problem(2, 2)
    problem.W = W
    found = solve(problem, ridge=ridge)
    assert found.rank == rank
    if rank == 1:  # the mean of the two units is left
        units = (W / W.norm(dim=1, keepdim=True)).sum(dim=0)
        step = W.T @ found.coefficients
        close(step, units * (units @ step) / units.square().sum())
    assert found.coefficients.any() == (rank > 0)


@given(st.integers(1, 5), seeds, st.sampled_from([0.0, 1e-6, 0.3, 0.99]), st.booleans())
def test_step_is_cut_to_the_radius_in_its_direction(
    m: int, seed: int, share: float, definite: bool
) -> None:
    problem = random_problem(m, noises=1, definite=definite, seed=seed)
    whole = solve(problem, shrinkage=0)
    cut = solve(problem, share * float(whole.length), shrinkage=0)
    close(cut.length, share * whole.length, 1e-12)
    close(cut.coefficients, share * whole.coefficients, 1e-12)
    close(cut.slope, share * whole.slope, 1e-12)
    close((problem.W.T @ cut.coefficients).norm(), share * whole.length)
    assert cut.rank == whole.rank


def test_radius_that_is_not_reached_changes_nothing() -> None:
    problem = random_problem(3, noises=2)
    whole = solve(problem)
    assert all(map(same_bits, solve(problem, 1.001 * float(whole.length)), whole))


@pytest.mark.parametrize("radius", [-1.0, math.nan])
def test_a_radius_that_is_none_gives_no_numbers(radius: float) -> None:
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    radii = torch.tensor([radius], dtype=torch.float64)
    solution = ops.solve_subspace(one, one, one[0], one, radius=radii)
    assert solution.coefficients.isnan().all()
    assert solution.slope.isnan().all()
    assert solution.length.isnan().all()
    assert solution.reduction.isnan().all()


def test_each_system_has_its_own_radius() -> None:
    products = random_problem(3).products
    found = solve_all([products] * 3, [math.inf, 0.02, 0.01])
    assert found.length[0] > 0.05
    close(found.length[1:], [0.02, 0.01], 1e-12)


def test_shrinkage_reduces_each_slope_by_its_own_noise() -> None:
    # Variances 1, 4, 0 about zero, from two samples.
    products = axes([1, 2, 4], [4, -8, 8], [[1, 2, 0], [-1, -2, 0]])
    shares = np.array([1 - 2 * 1 / 16, 1 - 2 * 4 / 64, 1])
    found = solve(products, shrinkage=2)
    close(found.coefficients, shares * [4, -4, 2])
    close(found.slope, -(shares * [16, 32, 16]).sum())


def test_directions_whose_noise_exceeds_the_signal_are_not_taken() -> None:
    found = solve(axes([1, 2, 4], [4, 1, -8], [[1, 1, 1]]))
    assert found.coefficients[1] == 0
    assert (found.coefficients[[0, 2]] != 0).all()


@given(st.integers(1, 5), st.integers(1, 4), seeds)
def test_all_noise_gives_no_step(m: int, noises: int, seed: int) -> None:
    problem = random_problem(m, noises=noises, seed=seed)
    problem.A[0] = 30 * problem.g  # its variance alone is 900 / J squared slopes
    found = solve(problem)
    assert found.coefficients.tolist() == [0] * m
    assert found.slope == found.length == 0
    assert float(found.reduction) == pytest.approx(1, abs=1e-12)


def test_noise_of_weight_zero_and_no_noise_are_the_same() -> None:
    problem = random_problem(3, noises=4)
    silent = solve(problem, shrinkage=0)
    assert (solve(problem).coefficients - silent.coefficients).norm() > 1e-3
    problem.A = problem.A[:0]
    for found, expected in zip(solve(problem), silent, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_zero_gradient_gives_no_step() -> None:
    problem = random_problem(3, noises=2)
    problem.g.zero_()
    found = solve(problem)
    assert found.coefficients.tolist() == [0, 0, 0]
    assert found.slope == found.length == found.reduction == 0
    assert found.rank == 3


@given(
    st.integers(1, 6), st.integers(0, 3), seeds, st.booleans(),
    st.sampled_from([math.inf, 0.5, 0.02, 0.0]), st.sampled_from([0.0, 0.3]),
)  # fmt: skip
def test_predicted_reduction_is_that_of_a_quadratic_in_the_span(
    m: int, noises: int, seed: int, definite: bool, radius: float, floor: float
) -> None:
    problem = random_problem(m, noises=noises, definite=definite, seed=seed)
    found = solve(problem, radius, floor=floor)
    basis, _ = torch.linalg.qr(problem.W.T)
    after = problem.g - problem.H @ problem.W.T @ found.coefficients
    expected = (basis.T @ after).norm() / (basis.T @ problem.g).norm()
    assert float(found.reduction) == pytest.approx(float(expected), rel=1e-9, abs=1e-9)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


MISFITS: list[tuple[dict[str, Any], list[str]]] = [
    ({"metric": zeros(2, 3, 4)}, ["(2, 3, 4)", "[S, m, m]"]),
    ({"metric": zeros(3, 3)}, ["(3, 3)", "[S, m, m]"]),
    ({"curvature": zeros(1, 3, 3)}, ["(1, 3, 3)", "(2, 3, 3)"]),
    ({"right_side": zeros(2, 4)}, ["(2, 4)", "[S, m]"]),
    ({"right_side": zeros(3)}, ["(3,)", "[S, m]"]),
    ({"noise": zeros(2, 3)}, ["(2, 3)", "[S, m, J]"]),
    ({"noise": zeros(2, 5, 3)}, ["(2, 5, 3)", "[S, m, J]"]),
    ({"noise": zeros(1, 3, 5)}, ["(1, 3, 5)", "[S, m, J]"]),
    ({"radius": zeros(3)}, ["(3,)", "[S]"]),
    ({"radius": zeros()}, ["()", "[S]"]),
    ({"ridge": -1.0}, ["ridge", "-1.0", ">= 0"]),
    ({"floor": -0.5}, ["floor", "-0.5", ">= 0"]),
    ({"shrinkage": -2.0}, ["shrinkage", "-2.0", ">= 0"]),
    ({"ridge": math.nan}, ["ridge", "nan", "number"]),
    *(({x: math.inf}, [x, "inf", "finite"]) for x in ("ridge", "floor", "shrinkage")),
]


@pytest.mark.parametrize(("wrong", "fragments"), MISFITS)
def test_misfit_is_refused_and_named(wrong: dict[str, Any], fragments: list[str]) -> None:
    fitting = {
        "metric": zeros(2, 3, 3),
        "curvature": zeros(2, 3, 3),
        "right_side": zeros(2, 3),
        "noise": zeros(2, 3, 1),
        "radius": zeros(2),
    }
    with pytest.raises(ValueError, match=mentions(*fragments)):
        ops.solve_subspace(**{**fitting, **wrong})
