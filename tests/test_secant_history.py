"""The ring of secant rows: what is stored, what is forgotten, and what it solves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aadl_ext import Anderson, buffers, ops
from aadl_ext.parameters import Layout
from aadl_ext.secant_history import SecantHistory

SIZE, DEPTH = 6, 3
OPTIONS = Anderson(history_depth=DEPTH)
solvers = pytest.mark.parametrize("solver", ["gram", "tsqr"])


class Ring:
    """A history of random pairs, and the true ones in NumPy."""

    def __init__(self, solver: str, **options: Any) -> None:
        groups = [{"params": [nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))]}]
        layout = Layout.build(groups, "all", None)
        self.verdicts = ops.Verdicts.on(layout.device)
        options_ = replace(OPTIONS, solver=solver, **options)
        self.history = SecantHistory.empty(layout, options_, self.verdicts)
        self.random = np.random.default_rng(0)
        self.layout = layout
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def flat(self, values: np.ndarray) -> Tensor:
        vector = self.layout.vector()
        vector[:SIZE] = torch.from_numpy(values)
        return vector

    def push(self, rate: float = 0.5, spoil: bool = False) -> None:
        w, r = self.random.standard_normal((2, SIZE))
        after = self.flat(w + r)
        if spoil:
            after[1] = torch.nan
        self.history.pair[0].copy_(self.flat(w))
        figures = self.history.push(after, (rate,), store=True, solve=True)
        ops.judge_residual_(*self.verdicts.tensors, figures, None, True, True, False)
        self.history.keep()
        if not spoil:
            self.pairs.append((w, r / rate))

    def expected(self, columns: int) -> np.ndarray:
        """Coefficients by the definition, oldest column first."""
        rho = np.array([x[1] for x in self.pairs[-columns - 1 :]])
        return np.linalg.lstsq(np.diff(rho, axis=0).T, rho[-1], rcond=None)[0]

    def gamma(self, slots: list[int]) -> np.ndarray:
        solution = self.history.solve(self.history.last_pair[1])
        gamma = solution.gamma[0].numpy()
        rest = np.delete(gamma, slots)
        assert not rest.any()
        assert solution.rank.tolist() == [len(slots)]
        return gamma[slots]


@solvers
def test_slots_rotate_and_the_last_rows_are_solved(solver: str) -> None:
    ring = Ring(solver)
    for k in range(8):
        ring.push()
        used = min(k, DEPTH)
        slots = [j % DEPTH for j in range(k - used, k)]
        if used:
            np.testing.assert_allclose(ring.gamma(slots), ring.expected(used), rtol=1e-8)
        assert ring.history.slot == k % DEPTH


@solvers
def test_a_step_that_is_not_finite_leaves_a_zero_row_and_the_pair_before_it(solver: str) -> None:
    ring = Ring(solver)
    for _ in range(3):
        ring.push()  # slots 0 and 1
    ring.push(spoil=True)  # slot 2
    assert not ring.history.step_rows[2].any()
    assert not ring.history.residual_rows[2].any()
    ring.push()  # slot 0, from the third pair to the fifth
    np.testing.assert_allclose(ring.gamma([1, 0]), ring.expected(2), rtol=1e-8)


@solvers
@pytest.mark.parametrize("asked", [False, True])
def test_a_history_that_is_cleared_begins_anew(solver: str, asked: bool) -> None:
    ring = Ring(solver)
    for _ in range(6):
        ring.push()
    if asked:
        ring.history.clear()
        assert (ring.history.slot, ring.history.begun) == (0, False)
    else:  # by a verdict: the ring goes on, with a zero row
        ring.verdicts.when.restart.fill_(True)
        ring.verdicts.when.paired.fill_(False)
    ring.push()
    assert not ring.history.solve(ring.history.last_pair[1]).gamma.any()
    ring.push()
    first = 0 if asked else 6 % DEPTH
    np.testing.assert_allclose(ring.gamma([first]), ring.expected(1), rtol=1e-8)
    ring.push()
    slots = [first, (first + 1) % DEPTH]
    np.testing.assert_allclose(ring.gamma(slots), ring.expected(2), rtol=1e-8)


@solvers
@pytest.mark.parametrize("relaxation", [0.3, 1.0])
def test_rows_of_other_rates_are_corrected(solver: str, relaxation: float) -> None:
    ring = Ring(solver, relaxation=relaxation)
    for rate in (0.5, 0.4, 0.3, 0.2):
        ring.push(rate)
    w = np.array([x[0] for x in ring.pairs])
    rho = np.array([x[1] for x in ring.pairs])
    W, R = np.diff(w, axis=0), np.diff(rho, axis=0)
    gamma, rate = ring.random.standard_normal(DEPTH), 0.1
    before, after = w[-1], w[-1] + rate * rho[-1]
    ring.verdicts.when.ready.fill_(True)
    out = ring.layout.vector()
    sizes = ring.history.extrapolate_(
        out, ring.flat(before), ring.flat(after), torch.from_numpy(gamma)[None], (rate,)
    )
    expected = (1 - relaxation) * before + relaxation * after - gamma @ (W + rate * R)
    np.testing.assert_allclose(out[:SIZE].numpy(), expected, rtol=1e-12, atol=1e-12)
    assert not out[SIZE:].any()
    assert sizes[0] == out.abs().max()
    assert sizes[1] >= (out - ring.flat(after)).abs().max()


def test_rows_that_were_never_written_are_not_read() -> None:
    ring = Ring("gram")
    for rows in (ring.history.step_rows, ring.history.residual_rows):
        rows.fill_(torch.nan)
    for _ in range(DEPTH):  # all rows but one
        ring.push()
    columns = DEPTH - 1
    np.testing.assert_allclose(ring.gamma([*range(columns)]), ring.expected(columns), rtol=1e-9)
    (w, r), out = ring.history.last_pair, ring.layout.vector()
    gamma = ring.history.solve(r).gamma
    sizes = ring.history.extrapolate_(out, w, w, gamma, (0.5,))
    assert out.isfinite().all()
    assert sizes.isfinite().all()


def test_where_nothing_is_to_be_extrapolated_the_point_is_the_plain_one() -> None:
    ring = Ring("gram")
    for rate in (0.5, 0.4, 0.3):
        ring.push(rate)
    ring.verdicts.when.ready.fill_(False)
    out, after = ring.layout.vector(), ring.flat(np.arange(float(SIZE)))
    gamma = torch.full((1, DEPTH), torch.nan, dtype=torch.float64)
    ring.history.extrapolate_(out, ring.layout.vector(), after, gamma, (0.1,))
    assert torch.equal(out, after)


def test_rows_of_other_rates_are_refused_while_a_cuda_graph_is_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The correction comes from memory of the host, which is gone when the graph is replayed."""
    ring = Ring("gram")
    for rate in (0.5, 0.5, 0.4):
        ring.push(rate)
    point, gamma = ring.layout.vector(), torch.ones(1, DEPTH, dtype=torch.float64)
    monkeypatch.setattr(buffers, "captured", lambda device: True)
    before = point.clone()
    with pytest.raises(RuntimeError, match="until all history_depth rows are at that"):
        ring.history.extrapolate_(point, point, point, gamma, (0.4,))
    ring.history.clear()
    for _ in range(2):
        ring.push(0.4)
    ring.history.extrapolate_(point, before, before, gamma, (0.4,))
