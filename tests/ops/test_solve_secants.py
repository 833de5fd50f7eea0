from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import mentions, normal, seeds
from torch import Tensor

from aadl_ext import ops

FORMS = pytest.mark.parametrize("factored", [False, True], ids=["gram", "factor"])
EPS = float(np.finfo(np.float64).eps)
TOLERANCE = 1e-12  # of singular values; dependent columns leave a few EPS behind
Array = np.ndarray


def system(matrix: Tensor, right: Tensor, factored: bool) -> Tensor:
    """[..., m + 1, m + 1] of [R | r], by NumPy in float64."""
    whole = torch.cat([matrix, right[..., None]], dim=-1).double()
    whole = torch.nn.functional.pad(whole, (0, 0, 0, whole.shape[-1])).numpy()  # never too short
    small = np.linalg.qr(whole, mode="r") if factored else whole.swapaxes(-1, -2) @ whole
    return torch.from_numpy(small)


def solve(
    matrix: Tensor, right: Tensor, factored: bool, *, ridge: float = 0, tolerance: float = TOLERANCE
) -> ops.SecantSolution:
    """One problem; the fields without the batch dimension."""
    small = system(matrix, right, factored)[None]
    found = ops.solve_secants(small, factored=factored, ridge=ridge, tolerance=tolerance)
    assert found.gamma.dtype == found.condition.dtype == found.reduction.dtype == torch.float64
    assert found.rank.dtype == torch.int64
    return ops.SecantSolution(*(field[0] for field in found))


def scaled_columns(matrix: Tensor) -> tuple[Array, Array]:
    """Columns of length one (or zero), and 1 / length (or zero)."""
    columns = matrix.double().numpy()
    lengths = np.linalg.norm(columns, axis=0)
    inverse = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return columns * inverse, inverse


def least_squares(matrix: Tensor, right: Tensor, ridge: float = 0) -> Array:
    """Solution of least norm over columns of unit length."""
    columns, inverse = scaled_columns(matrix)
    tall = np.vstack([columns, math.sqrt(ridge) * np.diag(inverse > 0)])
    target = np.concatenate([right.double().numpy(), np.zeros(len(inverse))])
    return inverse * np.linalg.lstsq(tall, target, rcond=1e-6)[0]


def relative_error(found: Tensor, expected: Array | Tensor) -> float:
    expected = np.asarray(expected)
    return float(np.linalg.norm(found.numpy() - expected) / np.linalg.norm(expected))


def left_over(matrix: Tensor, right: Tensor, gamma: Tensor) -> float:
    """|r - R gamma| / |r|."""
    rest = right.double() - matrix.double() @ gamma
    return float(torch.linalg.vector_norm(rest) / torch.linalg.vector_norm(right.double()))


@FORMS
@given(st.integers(1, 6), st.integers(0, 40), seeds, st.sampled_from([0.0, 1e-3, 1.0]))
def test_well_conditioned_problem_is_solved(
    factored: bool, columns: int, more_rows: int, seed: int, ridge: float
) -> None:
    rows = 2 * columns + 8 + more_rows  # condition about 10, seldom 100
    matrix, right = normal(rows, columns, seed=seed), normal(rows, seed=seed + 1)
    found = solve(matrix, right, factored, ridge=ridge)
    # Errors of a Gram matrix grow with the squared condition: 1e4 * EPS and some slack.
    assert relative_error(found.gamma, least_squares(matrix, right, ridge)) < 1e-10
    assert float(found.reduction) == pytest.approx(left_over(matrix, right, found.gamma), rel=1e-8)
    singular = np.linalg.svd(scaled_columns(matrix)[0], compute_uv=False)
    assert float(found.condition) == pytest.approx(singular[0] / singular[-1], rel=1e-9)
    assert int(found.rank) == columns


@FORMS
@pytest.mark.parametrize("columns", [7, 8, 9, 20, 31, 32, 54])  # 54: more than shared memory
def test_any_number_of_columns(factored: bool, columns: int) -> None:
    matrix, right = normal(200, columns, seed=0), normal(200, seed=1)
    found = solve(matrix, right, factored)
    assert relative_error(found.gamma, least_squares(matrix, right)) < 1e-10
    assert float(found.reduction) == pytest.approx(left_over(matrix, right, found.gamma), rel=1e-8)
    assert int(found.rank) == columns


@FORMS
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_system_that_is_not_finite_leaves_the_others_alone(factored: bool, bad: float) -> None:
    small = system(normal(3, 50, 9, seed=2), normal(3, 50, seed=3), factored)
    clean = ops.solve_secants(small, factored=factored)
    small[1, 2, 7] = bad
    for value, expected in zip(ops.solve_secants(small, factored=factored), clean, strict=True):
        torch.testing.assert_close(value[[0, 2]], expected[[0, 2]], rtol=1e-12, atol=0)


def conditioned(rows: int, columns: int, condition: float, seed: int) -> Tensor:
    """[rows, columns] with singular values spread evenly in the logarithm."""
    left, _ = torch.linalg.qr(normal(rows, columns, seed=seed))
    right, _ = torch.linalg.qr(normal(columns, columns, seed=seed + 1))
    return left * torch.logspace(0, -math.log10(condition), columns, dtype=torch.float64) @ right


@pytest.mark.parametrize(
    ("condition", "gram_error", "tsqr_error"),
    # Measured for 2e5 rows: 1e-12 and 1e-7, 6e-11 and 1e-6, 1e-8 and 9e-5, 2e-6 and 9e-3.
    [(1e2, 1e-10, 1e-5), (1e3, 6e-9, 1e-4), (1e4, 1e-6, 9e-3), (1e5, 2e-4, 0.9)],
)
def test_float64_gram_of_float32_rows_beats_float32_tsqr(
    condition: float, gram_error: float, tsqr_error: float
) -> None:
    data = conditioned(20_000, 11, condition, seed=3)
    matrix = data[:, :10].float()
    right = (data.sum(dim=1) + 1e-2 * normal(20_000, seed=5) / 20_000**0.5).float()
    expected = least_squares(matrix, right)
    factor = ops.tsqr(matrix, append=right)[None]
    by_gram = relative_error(solve(matrix, right, False).gamma, expected)
    by_tsqr = relative_error(ops.solve_secants(factor, factored=True).gamma[0], expected)
    assert by_gram < gram_error
    assert by_tsqr < tsqr_error
    assert by_gram < by_tsqr / 10


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e8])
def test_float64_factor_loses_digits_with_the_condition_only(condition: float) -> None:
    matrix = conditioned(200, 5, condition, seed=7)
    expected = normal(5, seed=8)
    right = matrix @ expected
    assert relative_error(solve(matrix, right, True).gamma, expected) < 100 * condition * EPS


@FORMS
def test_ridge_counts_in_squared_column_lengths(factored: bool) -> None:
    matrix, right = normal(30, 4, seed=9), normal(30, seed=10)
    scales = torch.tensor([1e-8, 1.0, 1e3, 1e8], dtype=torch.float64)
    plain = solve(matrix, right, factored, ridge=0.5).gamma
    scaled = solve(matrix * scales, right, factored, ridge=0.5).gamma
    torch.testing.assert_close(scaled * scales, plain, rtol=1e-12, atol=0)
    # The definition: zero gradient of |r - R gamma|^2 + ridge * sum_j |R_j|^2 gamma_j^2.
    pull = matrix.T @ (right - matrix @ plain)
    torch.testing.assert_close(pull, 0.5 * matrix.square().sum(dim=0) * plain)


@FORMS
@pytest.mark.parametrize("factor", [1e-100, 1e-20, 1e20, 1e100])
def test_scale_of_the_data_does_not_matter(factored: bool, factor: float) -> None:
    matrix, right = normal(30, 3, seed=11), normal(30, seed=12)
    plain = solve(matrix, right, factored)
    scaled = solve(matrix * factor, right * factor, factored)
    for name, value in scaled._asdict().items():
        torch.testing.assert_close(value, getattr(plain, name), rtol=1e-12, atol=0)


@FORMS
def test_scales_of_single_columns_do_not_matter(factored: bool) -> None:
    matrix, right = normal(30, 3, seed=13), normal(30, seed=14)
    scales = torch.tensor([1e-100, 1.0, 1e100], dtype=torch.float64)
    plain, scaled = solve(matrix, right, factored), solve(matrix * scales, right, factored)
    torch.testing.assert_close(scaled.gamma * scales, plain.gamma, rtol=1e-12, atol=0)
    torch.testing.assert_close(scaled.condition, plain.condition, rtol=1e-12, atol=0)


DEPENDENT: list[tuple[str, Callable[[Tensor], Tensor], int]] = [
    ("zero column", lambda a: torch.stack([a[0], 0 * a[0], a[1]]), 2),
    ("same column twice", lambda a: torch.stack([a[0], a[1], a[0]]), 2),
    ("one a multiple of another", lambda a: torch.stack([a[0], a[1], -1e6 * a[0]]), 2),
    ("three times the same and zero", lambda a: torch.stack([a[0], a[0], 0 * a[0], a[0]]), 1),
    ("sum of two", lambda a: torch.stack([a[0], a[1], a[0] + a[1], a[2]]), 3),
]


@FORMS
@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize(
    ("combine", "rank"), [c[1:] for c in DEPENDENT], ids=[c[0] for c in DEPENDENT]
)
def test_dependent_columns_share_the_solution_of_least_norm(
    factored: bool, ridge: float, combine: Callable[[Tensor], Tensor], rank: int
) -> None:
    matrix, right = combine(normal(3, 30, seed=15)).T, normal(30, seed=16)
    found = solve(matrix, right, factored, ridge=ridge)
    expected = least_squares(matrix, right, ridge)
    lengths = torch.linalg.vector_norm(matrix, dim=0)
    assert relative_error(found.gamma * lengths, expected * lengths.numpy()) < 1e-10
    assert (found.gamma[lengths == 0] == 0).all()
    assert int(found.rank) == rank
    singular = np.linalg.svd(scaled_columns(matrix)[0], compute_uv=False)[:rank]
    assert float(found.condition) == pytest.approx(singular[0] / singular[-1], rel=1e-9)
    assert float(found.reduction) == pytest.approx(left_over(matrix, right, found.gamma), rel=1e-8)


@FORMS
@given(st.integers(1, 5), st.integers(0, 4), seeds)
def test_more_columns_than_rows_leave_nothing_over(
    factored: bool, rows: int, more_columns: int, seed: int
) -> None:
    matrix, right = normal(rows, rows + more_columns, seed=seed), normal(rows, seed=seed + 1)
    found = solve(matrix, right, factored, tolerance=1e-6)
    assert found.gamma.isfinite().all()
    singular = np.linalg.svd(scaled_columns(matrix)[0], compute_uv=False)
    kept = singular[singular > 1e-6 * singular[0]]
    assert int(found.rank) == len(kept)
    # A reduction is a square root of a difference: a few EPS of it become 1e-7.
    assert float(found.reduction) <= 1e-4
    assert left_over(matrix, right, found.gamma) <= 1e-4


@pytest.mark.parametrize("length", [1e-3, 1e-8, 1e-60, 1e-100, 1e-130, 1e-150])
def test_directions_of_a_factor_are_found_where_squares_of_their_products_vanish(
    length: float,
) -> None:
    # Without what they have in common the columns are length / sqrt(3) long, or longer.
    columns = torch.tensor([[1, 1, 1], [0, length, length], [0, 0, length]], dtype=torch.float64)
    gamma = torch.tensor([-1, 2, -3], dtype=torch.float64)
    system = torch.zeros(1, 4, 4, dtype=torch.float64)
    system[0, :3, :3], system[0, :3, 3], system[0, 3, 3] = columns, columns @ gamma, 0.5
    found = ops.solve_secants(system, factored=True, tolerance=0.0, ridge=0.0)
    assert found.rank.item() == 3
    torch.testing.assert_close(found.gamma[0], gamma, rtol=1e-13, atol=0)
    torch.testing.assert_close(found.condition.item() * length, 3.0, rtol=1e-5, atol=0)


@FORMS
@pytest.mark.parametrize("angle", [1e-1, 1e-3, 1e-5])
def test_tolerance_drops_directions_at_or_below_it(factored: bool, angle: float) -> None:
    # Two unit columns at this angle have the singular values sqrt(2) cos, sin of half of it.
    matrix = torch.zeros(3, 2, dtype=torch.float64)
    matrix[0] = 1
    matrix[1] = torch.tensor([-angle / 2, angle / 2]).tan()
    right = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    ratio = math.tan(angle / 2)
    above, below = (solve(matrix, right, factored, tolerance=f * ratio) for f in (0.99, 1.01))
    assert int(above.rank) == 2
    assert float(above.condition) == pytest.approx(1 / ratio, rel=1e-4)
    assert float(above.reduction) == pytest.approx(math.sqrt(1 / 3), rel=1e-4)
    assert int(below.rank) == 1
    assert float(below.condition) == 1
    # Only the mean of the columns, the first axis, is left.
    torch.testing.assert_close(below.gamma, torch.full_like(below.gamma, 0.5), rtol=1e-9, atol=0)
    assert float(below.reduction) == pytest.approx(math.sqrt(2 / 3), rel=1e-9)


@FORMS
def test_zero_residual_needs_no_correction(factored: bool) -> None:
    found = solve(normal(20, 3, seed=17), torch.zeros(20), factored)
    assert found.gamma.tolist() == [0, 0, 0]
    assert float(found.reduction) == 0
    assert int(found.rank) == 3


@FORMS
def test_zero_columns_only_predict_no_gain(factored: bool) -> None:
    found = solve(torch.zeros(20, 3), normal(20, seed=18), factored)
    assert found.gamma.tolist() == [0, 0, 0]
    assert float(found.reduction) == pytest.approx(1, rel=1e-15)
    assert int(found.rank) == 0
    assert found.condition.isfinite()


def test_gram_column_of_length_zero_has_no_part_whatever_its_products() -> None:
    small = system(normal(20, 3, seed=31), normal(20, seed=32), False)
    small[1, 1] = 0  # its products with the others stay
    found = ops.solve_secants(small[None], factored=False)
    keep = [0, 2, 3]
    without = ops.solve_secants(small[keep][:, keep][None], factored=False)
    assert found.gamma[0, 1] == 0
    torch.testing.assert_close(found.gamma[:, [0, 2]], without.gamma, rtol=1e-12, atol=0)
    for value, expected in zip(found[1:], without[1:], strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


@FORMS
def test_no_problems_have_no_solutions(factored: bool) -> None:
    found = ops.solve_secants(torch.zeros(0, 3, 3), factored=factored)
    assert found.gamma.shape == (0, 2)
    assert found.rank.shape == found.condition.shape == found.reduction.shape == (0,)


@FORMS
def test_tolerance_above_one_drops_all_directions(factored: bool) -> None:
    found = solve(normal(20, 3, seed=33), normal(20, seed=34), factored, tolerance=2)
    assert found.rank == 0
    assert found.gamma.tolist() == [0, 0, 0]


@FORMS
def test_residual_in_the_span_is_removed(factored: bool) -> None:
    matrix, expected = normal(20, 3, seed=19), normal(3, seed=20)
    found = solve(matrix, matrix @ expected, factored)
    torch.testing.assert_close(found.gamma, expected, rtol=1e-12, atol=0)
    assert 0 <= float(found.reduction) <= 1e-7


@FORMS
def test_problems_of_a_batch_are_solved_as_if_alone(factored: bool) -> None:
    matrices, rights = normal(5, 30, 4, seed=21), normal(5, 30, seed=22)
    matrices[1, :, 2] = 0
    matrices[2] *= 1e-30
    rights[3] = 0
    matrices[4, :, 1] = matrices[4, :, 3]
    batch = system(matrices, rights, factored)
    together = ops.solve_secants(batch, factored=factored, ridge=1e-3, tolerance=TOLERANCE)
    for index, alone in enumerate(batch):
        single = ops.solve_secants(alone[None], factored=factored, ridge=1e-3, tolerance=TOLERANCE)
        for in_batch, by_itself in zip(together, single, strict=True):
            torch.testing.assert_close(in_batch[index], by_itself[0], rtol=1e-12, atol=0)


@FORMS
@pytest.mark.parametrize(
    ("columns", "ridge"),
    [
        *product((1, 5, 10), (0.0, 0.1)),
        *(pytest.param(*x, marks=pytest.mark.long) for x in ((31, 0.1), (33, 0.0))),
    ],
)
def test_without_the_condition_solutions_are_the_same(
    factored: bool, columns: int, ridge: float
) -> None:
    matrix, right = normal(11, 80, columns, seed=0), normal(11, 80, seed=1)
    matrix[1, :, 0] = matrix[1, :, -1]  # dependent, as long as there are two
    matrix[2, :, 0] = 0
    matrix[3] = 0
    matrix[4, :, -1] = matrix[4, :, 0] + 1e-7 * matrix[4, :, -1]  # nearly dependent
    right[5] = 0
    matrix[6] *= 1e-100
    small = system(matrix, right, factored)
    small[7, 0, 0] = math.nan
    noise = torch.zeros(11, columns, dtype=torch.float64)
    noise[8, 0] = 1e9  # more than the column
    noise[9] = 1.0
    options = {"factored": factored, "ridge": ridge, "tolerance": 1e-6, "noise": noise}
    expected = ops.solve_secants(small, **options)
    found = ops.solve_secants(small, condition=False, **options)
    assert found.condition.isnan().all()
    assert (found.rank == expected.rank).all()
    for value, other in ((found.gamma, expected.gamma), (found.reduction, expected.reduction)):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-12, equal_nan=True)


@FORMS
def test_float32_system_is_solved_in_float64(factored: bool) -> None:
    small = system(normal(30, 3, seed=23), normal(30, seed=24), factored)[None].float()
    found = ops.solve_secants(small, factored=factored)
    expected = ops.solve_secants(small.double(), factored=factored)
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-9, atol=1e-12)


@FORMS
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_system_that_is_not_finite_has_no_finite_solution(factored: bool, bad: float) -> None:
    small = system(normal(30, 3, seed=25), normal(30, seed=26), factored)[None]
    small[0, 1, 2] = small[0, 2, 1] = bad
    found = ops.solve_secants(small, factored=factored)  # the caller decides on values
    assert not found.gamma.isfinite().all()


@pytest.mark.parametrize(
    ("shape", "ridge", "tolerance", "fragments"),
    [
        ((3, 3), 0.0, 0.0, ["(3, 3)", "[S, m + 1, m + 1]"]),
        ((1, 3, 4), 0.0, 0.0, ["(1, 3, 4)"]),
        ((1, 1, 1), 0.0, 0.0, ["(1, 1, 1)"]),
        ((1, 3, 3), -0.5, 0.0, ["ridge", "-0.5", ">= 0"]),
        ((1, 3, 3), 0.0, -1e-8, ["tolerance", "-1e-08", ">= 0"]),
        ((1, 3, 3), math.nan, 0.0, ["ridge", "nan"]),
        ((1, 3, 3), math.inf, 0.0, ["ridge", "inf", "finite"]),
        ((1, 3, 3), 0.0, math.inf, ["tolerance", "inf", "finite"]),
        ((1, 3, 3), 0.0, math.nan, ["tolerance", "nan"]),
    ],
)
def test_misfit_is_refused_and_named(
    shape: tuple[int, ...], ridge: float, tolerance: float, fragments: list[str]
) -> None:
    with pytest.raises(ValueError, match=mentions(*fragments)):
        ops.solve_secants(torch.ones(shape), factored=False, ridge=ridge, tolerance=tolerance)
