from __future__ import annotations

import math
from collections.abc import Sequence

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
SIZE = 12


def problem(
    m: int, noises: int = 2, *, count: int | None = None, newest: int = 0, error: float = 1.0,
    seed: int = 0,
) -> list[Tensor]:  # fmt: skip
    """Products of ``count`` rows of a ring with changes of the gradient of a quadratic, and errors
    in these; the other rows are zero."""
    rows = normal(2 * m + 1 + noises, SIZE, seed=seed)
    W, errors, g, A = rows[:m], rows[m : 2 * m], rows[2 * m], rows[2 * m + 1 :]
    hessian = normal(SIZE, SIZE, seed=seed + 1)
    for i in range(m if count is None else count, m):
        W[(newest - i) % m] = 0
    G = W @ (hessian + hessian.T) + error * errors * (W != 0)
    return [W @ W.T, W @ G.T, W @ g, W @ A.T]


def fit_all(
    problems: Sequence[Sequence[Tensor]], newest: int, count: int, shrinkage: float = 0.0
) -> ops.QuadraticFit:
    stacked = [torch.stack(list(part)) for part in zip(*problems, strict=True)]
    copies = [part.clone() for part in stacked]
    found = ops.fit_quadratic(*stacked, newest=newest, count=count, shrinkage=shrinkage)
    assert all(map(same_bits, stacked, copies))
    for part, given_one in zip(found, stacked[1:], strict=True):
        assert part.shape == given_one.shape
        assert part.dtype == torch.float64
    return found


def fit(
    products: Sequence[Tensor], newest: int = 0, count: int | None = None, shrinkage: float = 0.0
) -> ops.QuadraticFit:
    """One problem; the fields without the batch dimension."""
    count = len(products[2]) if count is None else count
    found = fit_all([products], newest, count, shrinkage)
    return ops.QuadraticFit(*(part[0] for part in found))


def definition(
    products: Sequence[Tensor], newest: int, count: int, shrinkage: float = 0.0
) -> list[Array]:
    """Least squares over a gradient and the upper triangle of a Hessian, and their covariance."""
    metric, curvature, right, noise = (x.numpy() for x in products)
    m, lengths = len(right), np.sqrt(np.diag(metric))
    units = np.divide(1, lengths, out=np.zeros(m), where=lengths > 0)
    values, vectors = np.linalg.eigh(units[:, None] * metric * units)
    kept = values > 1e-4 * values[-1]
    basis = (units[:, None] * vectors[:, kept] / np.sqrt(values[kept])).T
    rank = len(basis)
    points, slopes = [np.zeros(rank)], [basis @ right]
    for i in range(count):
        slot = (newest - i) % m
        points.append(points[-1] - basis @ metric[:, slot])
        slopes.append(slopes[-1] - basis @ curvature[:, slot])
    z = np.array(points) - np.mean(points, axis=0)
    turn = np.linalg.eigh(z.T @ z)[1]
    points, slopes, basis = np.array(points) @ turn, np.array(slopes) @ turn, turn.T @ basis
    triangle = [(a, b) for a in range(rank) for b in range(a, rank)]
    symmetric = np.zeros((len(triangle), rank, rank))
    for k, (a, b) in enumerate(triangle):
        symmetric[k, a, b] = symmetric[k, b, a] = 1
    # Rows are the entries of the slopes at all points; columns a gradient, and a Hessian.
    of_gradient = np.tile(np.eye(rank), (count + 1, 1))
    of_hessian = np.stack([(points @ unit).ravel() for unit in symmetric], axis=1)
    equations = np.hstack([of_gradient, of_hessian])
    solve = np.linalg.pinv(equations)
    entries = (solve @ slopes.ravel())[rank:]
    error = np.mean((basis @ noise) ** 2) if noise.size else 0.0
    variances = error * np.square(solve[rank:]).sum(axis=1)
    with np.errstate(divide="ignore"):
        carried = np.maximum(0, 1 - shrinkage * variances / entries**2)
    # The gradient of least squares for a given Hessian, of which only so much is believed.
    mean = of_gradient.T / (count + 1)
    to_gradient = mean - mean @ of_hessian @ (carried[:, None] * solve[rank:])
    spread = np.sqrt(np.square(to_gradient).sum(axis=1))
    hessian, back = np.tensordot(entries, symmetric, 1), metric @ basis.T
    left = spread[:, None] * (basis @ noise)
    return [back @ hessian @ back.T, back @ to_gradient @ slopes.ravel(), back @ left]


def close(found: Sequence[Tensor], expected: Sequence[Array | Tensor], error: float = 1e-8) -> None:
    for part, wanted in zip(found, map(np.asarray, expected), strict=True):
        scale = np.abs(wanted).max(initial=0)
        np.testing.assert_allclose(part.numpy(), wanted, rtol=0, atol=error * scale)


@given(
    st.integers(1, 5),
    st.data(),
    seeds,
    st.sampled_from([0.0, 0.1, 10.0]),
    st.sampled_from([0.0, 0.3, 1.0, 4.0]),
)
def test_each_fit_is_that_of_least_squares_and_its_own(
    m: int, data: st.DataObject, seed: int, error: float, shrinkage: float
) -> None:
    count, newest = data.draw(st.integers(1, m)), data.draw(st.integers(0, m - 1))
    noises = data.draw(st.integers(0, 3))
    problems = [
        problem(m, noises, count=count, newest=newest, error=error, seed=seed + 10 * k)
        for k in range(data.draw(st.integers(1, 3)))
    ]
    found = fit_all(problems, newest, count, shrinkage)
    for k, products in enumerate(problems):
        expected = definition(products, newest, count, shrinkage)
        close([part[k] for part in found], expected)


@pytest.mark.parametrize("m", [7, 8, 15, 32, 39])  # 39: more than shared memory
def test_any_number_of_rows(m: int) -> None:
    rows = normal(2 * m + 1, 2 * m, seed=0)
    W, G, g = rows[:m], rows[m : 2 * m], rows[2 * m]
    products = [W @ W.T, W @ (W + 0.3 * G).T, W @ g, W @ G[:3].T]
    for count in (m, m - 2):
        for slot in range(count, m):
            products[0][slot] = products[0][:, slot] = products[1][slot] = products[1][:, slot] = 0
            products[2][slot] = products[3][slot] = 0
        expected = definition(products, count - 1, count, 1.0)
        close(fit(products, count - 1, count, 1.0), expected)


@given(st.integers(1, 6), st.integers(0, 5), seeds)
def test_an_exact_quadratic_is_found(m: int, newest: int, seed: int) -> None:
    products = problem(m, error=0.0, seed=seed)
    close(fit(products, newest % m)[:2], products[1:3])


def test_noise_is_left_as_the_variance_of_the_fitted_slopes() -> None:
    # Errors of unit variance in the gradients at all points, along orthonormal rows.
    m, trials = 4, 4000
    errors = normal(trials, m + 1, m, seed=0)  # newest first
    slopes = errors[:, 0]
    changes = (errors[:, :-1] - errors[:, 1:]).mT  # column j: of row j, which is slot -j
    chain = [-j % m for j in range(m)]
    curvature = torch.zeros(trials, m, m, dtype=torch.float64)
    curvature[:, :, chain] = changes
    metric = torch.eye(m, dtype=torch.float64).expand(trials, m, m).contiguous()
    found = ops.fit_quadratic(metric, curvature, slopes, metric, newest=0, count=m, shrinkage=0.0)
    variance = found.noise[0] @ found.noise[0].T
    turn = torch.linalg.eigh(variance).eigenvectors
    measured = (found.right_side @ turn).square().mean(dim=0)
    predicted = (turn.T @ variance @ turn).diagonal()
    assert predicted.max() < 1
    torch.testing.assert_close(measured, predicted, rtol=0.1, atol=0)


@given(st.integers(1, 5), seeds)
def test_noise_never_becomes_more(m: int, seed: int) -> None:
    products = problem(m, noises=4, seed=seed)
    inverse = torch.linalg.pinv(products[0], hermitian=True)
    before, after = products[3], fit(products).noise
    sizes = [(x.T @ inverse @ x).trace() for x in (after, before)]
    assert sizes[0] <= (1 + 1e-9) * sizes[1]
    assert m == 1 or sizes[0] < 0.999 * sizes[1]


def test_what_noise_may_explain_carries_no_gradient() -> None:
    # The gradient is the mean of those at all points then; of a Hessian that is beyond doubt all
    # of it is taken.
    metric, curvature, right, noise = problem(3, error=0.0)
    doubtful = fit([metric, curvature, right, 1e6 * noise], shrinkage=1.0)
    chain = [-j % 3 for j in range(3)]
    slopes = right[:, None] - curvature[:, chain].cumsum(dim=1)
    mean = (right + slopes.sum(dim=1)) / 4
    close([doubtful.right_side], [mean])
    close([doubtful.noise], [1e6 * noise / 2])  # the root of a quarter
    sure = fit([metric, curvature, right, 1e-6 * noise], shrinkage=1.0)
    close([sure.right_side], [right], 1e-6)
    for found in (doubtful, sure):
        close([found.curvature], [curvature])


@given(st.integers(2, 5), st.integers(1, 4), seeds)
def test_where_the_ring_begins_does_not_matter(m: int, by: int, seed: int) -> None:
    metric, curvature, right, noise = problem(m, seed=seed)
    plain = fit([metric, curvature, right, noise], m - 1)
    rolled = [metric.roll((by, by), (0, 1)), curvature.roll((by, by), (0, 1))]
    rolled += [right.roll(by), noise.roll(by, 0)]
    found = fit(rolled, (m - 1 + by) % m)
    close(found, [plain[0].roll((by, by), (0, 1)), plain[1].roll(by), plain[2].roll(by, 0)])


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_units_do_not_matter(scale: float) -> None:
    metric, curvature, right, noise = problem(3)
    plain = fit([metric, curvature, right, noise])
    found = fit([metric * scale**2, curvature * scale, right * scale, noise * scale])
    close(found, [plain[0] * scale, plain[1] * scale, plain[2] * scale])


def test_rows_that_depend_on_each_other_are_points_of_a_smaller_span() -> None:
    rows = normal(9, SIZE, seed=0)
    W, G, g, A = rows[:3], rows[3:6], rows[6], rows[7:]
    W[2] = 2 * W[0] - W[1]
    products = [W @ W.T, W @ G.T, W @ g, W @ A.T]
    close(fit(products), definition(products, 0, 3))


def is_as_given(found: Sequence[Tensor], products: Sequence[Tensor]) -> bool:
    return all(map(torch.equal, found, products[1:]))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_chain_with_a_row_that_is_zero_is_left_alone(count: int) -> None:
    products = problem(3, count=count - 1, newest=2)
    assert is_as_given(fit(products, 2, count), products)
    assert count == 1 or not is_as_given(fit(products, 2, count - 1), products)


def test_nothing_is_fitted_to_a_single_point() -> None:
    products = problem(3)
    assert is_as_given(fit(products, count=0), products)


@pytest.mark.parametrize(("length", "fitted"), [(1e-2, True), (1e-6, False)])
def test_hardly_any_spread_in_a_direction_is_left_alone(length: float, fitted: bool) -> None:
    rows = normal(7, SIZE, seed=0)
    W, G, g, A = rows[:2], rows[2:4], rows[4], rows[5:]
    W[1] *= length
    products = [W @ W.T, W @ G.T, W @ g, W @ A.T]
    assert is_as_given(fit(products), products) != fitted


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("part", range(4), ids=["metric", "curvature", "right side", "noise"])
def test_problem_that_is_not_finite_stays_and_leaves_others_alone(part: int, bad: float) -> None:
    problems = [problem(3, seed=k) for k in range(3)]
    clean = fit_all(problems, 1, 3)
    problems[1][part].view(-1)[1] = bad
    found = fit_all(problems, 1, 3)
    for one, other in zip(found, clean, strict=True):
        torch.testing.assert_close(one[[0, 2]], other[[0, 2]])
    for one, given_one in zip(found, problems[1][1:], strict=True):
        torch.testing.assert_close(one[1], given_one, rtol=0, atol=0, equal_nan=True)


def test_opposite_infinities_do_not_hide_each_other() -> None:
    products = problem(3)
    products[1][0, 0], products[1][1, 1] = math.inf, -math.inf
    assert is_as_given(fit(products), products)


def test_narrower_products_are_fitted_in_float64() -> None:
    narrow = [part.float() for part in problem(3)]
    close(fit(narrow), fit([part.double() for part in narrow]))


@pytest.mark.parametrize("systems", [0, 1])
def test_no_problems_and_no_noise(systems: int) -> None:
    problems = [torch.stack([x] * 2)[:systems] for x in problem(2, noises=0)]
    found = ops.fit_quadratic(*problems, newest=0, count=2)
    assert found.noise.shape == (systems, 2, 0)


SHAPES = [
    ([(1, 2, 3), (1, 2, 2), (1, 2), (1, 2, 1)], {}),
    ([(1, 2, 2), (2, 2, 2), (1, 2), (1, 2, 1)], {}),
    ([(1, 2, 2), (1, 2, 2), (2,), (1, 2, 1)], {}),
    ([(1, 2, 2), (1, 2, 2), (1, 2), (1, 3, 1)], {}),
    ([(1, 2, 2), (1, 2, 2), (1, 2), (1, 2)], {}),
    ([(1, 0, 0), (1, 0, 0), (1, 0), (1, 0, 1)], {}),
    ([(1, 2, 2), (1, 2, 2), (1, 2), (1, 2, 1)], {"newest": 2}),
    ([(1, 2, 2), (1, 2, 2), (1, 2), (1, 2, 1)], {"newest": -1}),
    ([(1, 2, 2), (1, 2, 2), (1, 2), (1, 2, 1)], {"count": 3}),
    ([(1, 2, 2), (1, 2, 2), (1, 2), (1, 2, 1)], {"count": -1}),
    ([(1, 2, 2), (1, 2, 2), (1, 2), (1, 2, 1)], {"ridge": -0.1}),
    ([(1, 2, 2), (1, 2, 2), (1, 2), (1, 2, 1)], {"shrinkage": -0.1}),
]


@pytest.mark.parametrize(("shapes", "settings"), SHAPES)
def test_what_does_not_fit_is_refused(
    shapes: list[tuple[int, ...]], settings: dict[str, float]
) -> None:
    tensors = [torch.ones(shape, dtype=torch.float64) for shape in shapes]
    words = ["newest", "count", "ridge", "shrinkage"] if settings else ["shapes", str(shapes[0])]
    with pytest.raises(ValueError, match=mentions(*words)):
        ops.fit_quadratic(*tensors, **{"newest": 0, "count": 1, **settings})
