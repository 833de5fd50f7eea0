"""What rows tell of their rounding, and what solutions make of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from strategies import normal
from torch import Tensor

from aadl_ext import ops

OFFSETS = (0, 5000, 5000, 70001)
RATES, ROUNDING = (0.5, 0.1, 0.25), (1e-3, 1.0, 2e-3)


@pytest.mark.parametrize(
    ("vectors", "storage", "lost"),
    [
        (torch.float32, torch.float32, 0.0),
        (torch.float32, torch.bfloat16, 0.0),
        (torch.float32, torch.float16, 2.0**-25),
        (torch.float64, torch.float64, 0.0),
        (torch.float64, torch.float32, 0.0),
    ],
    ids=str,
)
def test_a_row_comes_with_the_error_of_its_subtraction(
    vectors: torch.dtype, storage: torch.dtype, lost: float
) -> None:
    before, move, last_point, last_residual = normal(4, OFFSETS[-1], seed=0, dtype=vectors)
    after, residual = before + 0.01 * move, torch.empty_like(before)
    rows = normal(2, 3, OFFSETS[-1], seed=1, dtype=storage)
    noise = normal(3, 3, seed=2)
    kept = noise.clone()
    ops.push_secant(
        before, after, rates=RATES, offsets=OFFSETS, residual=residual, last_point=last_point,
        last_residual=last_residual, step_rows=rows[0], residual_rows=rows[1], slot=1,
        rounding=ROUNDING, noise=noise,
    )  # fmt: skip
    for s, (start, stop) in enumerate(pairwise(OFFSETS)):
        points = [x[start:stop].double().square().sum() for x in (after, last_point)]
        own = 4 * torch.finfo(vectors).eps
        expected = ROUNDING[s] ** 2 * sum(points, torch.zeros(())) + (stop - start) * lost**2
        expected += own**2 * residual[start:stop].double().square().sum()
        torch.testing.assert_close(noise[s, 1], expected.double(), rtol=1e-6, atol=0)
    assert torch.equal(noise[:, [0, 2]], kept[:, [0, 2]])


@pytest.mark.parametrize("spoilt", ["step", "pair"])
def test_a_row_that_cannot_be_used_has_no_error(spoilt: str) -> None:
    before, after, last_point, last_residual = normal(4, 100, seed=0, dtype=torch.float32)
    if spoilt == "step":
        after[7] = torch.nan
    rows, noise = (
        normal(2, 3, 100, seed=1, dtype=torch.float32),
        torch.ones(1, 3, dtype=torch.float64),
    )
    ops.push_secant(
        before, after, rates=[0.5], offsets=[0, 100], residual=torch.empty(100),
        last_point=last_point, last_residual=last_residual, step_rows=rows[0],
        residual_rows=rows[1], slot=1, paired=torch.tensor(spoilt == "step"), rounding=[1e-3],
        noise=noise,
    )  # fmt: skip
    assert noise.tolist() == [[1.0, 0.0, 1.0]]


def system_of(columns: Tensor, residual: Tensor, factored: bool) -> Tensor:
    matrix = torch.cat([columns, residual.unsqueeze(-1)], dim=-1)
    if not factored:
        return (matrix.mT @ matrix).contiguous()
    return torch.linalg.qr(matrix).R.contiguous()


factored = pytest.mark.parametrize("factored", [False, True], ids=["gram", "factor"])


@factored
def test_columns_and_directions_within_their_error_have_no_part(factored: bool) -> None:
    columns, residual = normal(2, 20, 4, seed=0), normal(2, 20, seed=1)
    columns[0, :, 1] *= 1e-3  # a short column, which is rounding
    columns[1, :, 3] = columns[1, :, 0] * (1 + 1e-4) + 1e-4 * columns[1, :, 3]  # a close pair
    noise = torch.full((2, 4), 1e-20, dtype=torch.float64)
    noise[0, 1] = 0.3 * columns[0, :, 1].square().sum()
    noise[1, 0] = noise[1, 3] = 1e-6 * columns[1, :, 0].square().sum()
    system = system_of(columns, residual, factored)
    found = ops.solve_secants(system, factored=factored, tolerance=1e-12, noise=noise)
    assert found.rank.tolist() == [3, 3]
    rest = [0, 2, 3]
    expected = torch.linalg.lstsq(columns[0, :, rest], residual[0].unsqueeze(-1)).solution
    torch.testing.assert_close(found.gamma[0, rest], expected.squeeze(-1), rtol=1e-9, atol=1e-9)
    assert found.gamma[0, 1] == 0
    assert found.gamma[1].abs().max() < 10  # and without noise
    assert ops.solve_secants(system, factored=factored).gamma[1].abs().max() > 1e3


@factored
def test_exact_columns_are_solved_as_without_noise(factored: bool) -> None:
    columns, residual = normal(3, 30, 5, seed=0), normal(3, 30, seed=1)
    system = system_of(columns, residual, factored)
    exact = ops.solve_secants(
        system, factored=factored, noise=torch.zeros(3, 5, dtype=torch.float64)
    )
    for one, other in zip(exact, ops.solve_secants(system, factored=factored), strict=True):
        assert torch.equal(one, other)


def test_misfits_are_refused_and_named() -> None:
    system = torch.eye(4, dtype=torch.float64)[None].contiguous()
    with pytest.raises(ValueError, match=r"noise is float32 \(1, 3\)"):
        ops.solve_secants(system, factored=False, noise=torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"expected contiguous float64 \[1, 3\]"):
        ops.solve_secants(system, factored=False, noise=torch.zeros(1, 4, dtype=torch.float64))
