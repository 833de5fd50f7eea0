"""What subspace Newton does with blocks, steps, verdicts and odd gradients."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import SGD
from training import (
    NEWTON,
    MakeOptimizer,
    Method,
    Training,
    adam,
    momentum,
    plain_twin,
    same,
    sgd,
    watch_base_steps,
)

from aadl_ext import Storage, SubspaceNewton, accelerate, get_accelerator
from aadl_ext.block_history import CARRYING
from aadl_ext.newton import SCHEDULED, doubt

STEPS = 40
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": sgd,
    "momentum": partial(SGD, lr=0.1, momentum=0.9, nesterov=True),
    "momentum, foreach": partial(SGD, lr=0.1, momentum=0.9, foreach=True),
    "momentum, fused": partial(SGD, lr=0.1, momentum=0.9, fused=True),
    "adam": adam,
    "adam, foreach": partial(optim.Adam, lr=0.02, foreach=True),
    "adam, fused": partial(optim.Adam, lr=0.02, fused=True),
    "adam, amsgrad": partial(optim.Adam, lr=0.02, amsgrad=True, weight_decay=0.1),
    "adamw": partial(optim.AdamW, lr=0.02, weight_decay=0.1),
    "adadelta": optim.Adadelta,
    "adafactor": partial(optim.Adafactor, lr=0.02),
    "adagrad": partial(optim.Adagrad, lr=0.05),
    "adamax": partial(optim.Adamax, lr=0.02),
    "asgd": partial(optim.ASGD, lr=0.1),
    "muon": lambda parameters: optim.Muon([p for p in parameters if p.ndim == 2], lr=0.02),
    "nadam": partial(optim.NAdam, lr=0.02),
    "radam": partial(optim.RAdam, lr=0.02),
    "rmsprop": partial(optim.RMSprop, lr=0.01, momentum=0.5, centered=True),
    "rprop": optim.Rprop,
}
optimizers = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
few = pytest.mark.parametrize("make", [sgd, momentum, adam], ids=["sgd", "momentum", "adam"])
# Small blocks without shrinkage: a step at the end of every block from the third on.
QUICK = SubspaceNewton(
    block_length=2, history_depth=4, noise_samples=0, adaptive_blocks=False, quasi_newton=False
)
PATIENT = replace(QUICK, max_gradient_growth=1e9)


class Quadratic:
    """The loss ``w^T H w / 2`` in float64, under plain gradient descent."""

    def __init__(
        self, options: Method | None = None, size: int = 6, condition: float = 1e3
    ) -> None:
        random = np.random.default_rng(size)
        axes = np.linalg.qr(random.standard_normal((size, size)))[0]
        spectrum = np.diag(np.geomspace(1 / condition, 1, size))
        self.hessian = torch.from_numpy(axes @ spectrum @ axes.T)
        self.w = nn.Parameter(torch.from_numpy(random.standard_normal(size)))
        self.generator = torch.Generator().manual_seed(size)
        self.optimizer = SGD([self.w], lr=1.0)
        if options is not None:
            accelerate(self.optimizer, options)

    @property
    def accelerator(self) -> Any:
        return get_accelerator(self.optimizer)

    @property
    def now(self) -> Any:
        return self.accelerator.iteration.verdicts.now

    def gradient(self) -> Tensor:
        return self.hessian @ self.w.detach()

    def step(self, gradient: Tensor | None = None) -> Tensor:
        self.w.grad = self.gradient() if gradient is None else gradient
        self.optimizer.step()
        return self.w.detach().clone()

    def until_pending(self) -> Quadratic:
        while not self.accelerator.pending:
            self.step()
        return self

    def pending_step(self) -> tuple[Tensor, Tensor]:
        """Where it began, and the way it went."""
        iteration, size = self.accelerator.iteration, len(self.w)
        start = iteration.fallback[:size]
        return start.clone(), iteration.left_at[:size] - start


def until_pending(training: Training, steps: int = 3 * STEPS) -> Training:
    for _ in range(steps):
        if training.accelerator.pending:
            return training
        training.step()
    raise AssertionError("no step is taken")


# ---- it converges --------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "measured"), [(2, 53), (4, 175), (8, 171)])
def test_a_quadratic_takes_some_tens_of_steps_per_dimension(size: int, measured: int) -> None:
    # Condition 1e3. Bare gradient descent takes some 10 000 steps.
    def steps(problem: Quadratic, most: int) -> int:
        goal = 1e-8 * problem.gradient().norm()
        return next(
            (k for k in range(most) if (problem.step(), problem.gradient())[1].norm() < goal), most
        )

    fast = Quadratic(SubspaceNewton(history_depth=size), size)
    taken = steps(fast, 1000)
    assert taken <= 1.2 * measured
    assert steps(Quadratic(size=size), 10 * taken) == 10 * taken


# ---- steps that are rejected ---------------------------------------------------------------


@optimizers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_rejected_step_restores_the_point_and_leaves_the_optimizer_alone(
    make: MakeOptimizer, dtype: torch.dtype
) -> None:
    training, plain = Training(make, QUICK, dtype), []
    watch_base_steps(training.optimizer, lambda *_: plain.append(training.point()))
    until_pending(training)
    assert not torch.equal(training.point(), plain[-1])
    expected = plain[-1]
    before = copy.deepcopy(training.optimizer.state_dict())
    training.closure()
    gradients = [1e4 * p.grad + 1e4 for p in training.parameters]
    for p, gradient in zip(training.parameters, gradients, strict=True):
        p.grad = gradient.clone()
    training.optimizer.step()
    assert training.accelerator.stats.rejected == {"residual": 1}
    assert torch.equal(training.point(), expected)
    assert same(training.optimizer.state_dict(), before)
    assert same([p.grad for p in training.parameters], gradients)
    assert training.run(STEPS).isfinite().all()


@pytest.mark.parametrize(("factor", "stands"), [(1.99, True), (2.01, False)])
def test_the_guard_is_a_multiple_of_the_recent_gradient(factor: float, stands: bool) -> None:
    problem = Quadratic(QUICK)
    norms = []
    while not problem.accelerator.pending:
        norms.append(float(problem.gradient().norm()))
        problem.step()
    reference = 0.0
    for norm in norms:
        reference = max(norm, 0.9 * reference)
    gradient = problem.gradient()
    problem.step(gradient * (factor * reference / gradient.norm()))
    stats = problem.accelerator.stats
    assert (stats.accepted, stats.rejected["residual"]) == (stands, not stands)


def test_without_safeguards_every_finite_step_is_kept() -> None:
    problem = Quadratic(replace(QUICK, safeguard=None))
    for _ in range(STEPS):
        problem.step(1e6 * problem.gradient() if problem.accelerator.pending else None)
    stats = problem.accelerator.stats
    assert stats.extrapolations > 5
    assert stats.rejected == {}
    assert stats.accepted == stats.extrapolations - problem.accelerator.pending


# ---- steps that go too far, and the trust in them ------------------------------------------


@pytest.mark.parametrize("radius", [1.0, 1e3], ids=["cut by the radius", "full length"])
@pytest.mark.parametrize(
    ("ratio", "share", "change"),
    [(3, 1 / 4, 0.5), (1.01, 1 / 2.01, 0.5), (0.99, 1, 1), (0.51, 1, 1), (0.49, 1, 2), (-1, 1, 2)],
)
def test_the_slope_at_the_far_end_tells_how_much_of_a_step_stands(
    ratio: float, share: float, change: float, radius: float
) -> None:
    problem = Quadratic(replace(PATIENT, trust_radius=radius)).until_pending()
    assert problem.accelerator.iteration.verdicts.when.limited == (radius == 1)
    if radius > 1:  # it could have been longer without more of it
        change = min(change, 1)
    plain, direction = problem.pending_step()
    slope = abs(problem.now.slope.item())
    across = problem.gradient()
    across -= (across @ direction) / (direction @ direction) * direction
    gradient = across + ratio * slope / (direction @ direction) * direction
    point = problem.step(gradient)
    expected = plain + share * direction - gradient  # the base step is taken besides
    torch.testing.assert_close(point, expected, rtol=1e-12, atol=1e-12)
    stats = problem.accelerator.stats
    assert (stats.accepted, stats.shortened) == (1, ratio > 1)
    assert stats.trust_radius == change * radius


def land(problem: Quadratic, ratio: float) -> float:
    """Take a step and go on to the next; ``ratio`` of slope there to slope before.

    Returns the damping of the step over that of the one before.
    """
    iteration = problem.until_pending().accelerator.iteration
    before, slope = problem.now.damping.item(), problem.now.slope.item()
    direction = problem.pending_step()[1]
    for _ in range(iteration.block_length.samples):
        across = 1e-3 * torch.randn(
            len(direction), generator=problem.generator, dtype=torch.float64
        )
        across -= (across @ direction) / (direction @ direction) * direction
        problem.step(across - ratio * slope / (direction @ direction) * direction)
    return float(problem.now.damping / before)


@pytest.mark.parametrize("ratio", [0.9, 0.3, -0.2, -1.5])
def test_damping_follows_the_slopes_over_the_block_after_a_step(ratio: float) -> None:
    problem = Quadratic(PATIENT)
    problem.now.damping.fill_(0.5)
    assert land(problem, ratio) == pytest.approx(math.exp(-0.3 * max(ratio, -1)))


@pytest.mark.parametrize(("before", "after"), [(0.0, 1.0), (1.0, 1.0), (-1.0, math.inf)])
def test_damping_does_not_follow_slopes_that_tell_nothing(before: float, after: float) -> None:
    problem = Quadratic(replace(PATIENT, safeguard="limits")).until_pending()
    iteration = problem.accelerator.iteration
    if math.isinf(after):
        iteration.fallback[0] = -after
    problem.now.slope.fill_(before)
    for _ in range(iteration.block_length.samples):
        problem.step()
    assert problem.now.damping == 1


def test_damping_stays_between_a_fiftieth_and_one() -> None:
    problem = Quadratic(PATIENT)
    land(problem, -1.0)
    assert problem.now.damping == 1
    for _ in range(40):
        land(problem, 0.9)
    assert problem.accelerator.stats.damping == 0.02


def test_steps_are_as_long_as_the_damping_tells() -> None:
    full, half = Quadratic(QUICK), Quadratic(QUICK)
    half.now.damping.fill_(0.5)
    expected = 0.5 * full.until_pending().pending_step()[1]
    torch.testing.assert_close(half.until_pending().pending_step()[1], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("safeguard", "share"), [(("residual", "descent"), 1.0), (("residual", "limits"), 0.5)]
)
def test_damping_is_a_part_of_the_limits(safeguard: tuple[str, ...], share: float) -> None:
    problem = Quadratic(replace(QUICK, safeguard=safeguard, trust_radius=1e3))
    problem.now.damping.fill_(0.5)
    plain, direction = problem.until_pending().pending_step()
    step = problem.accelerator.stats.gamma[0] @ problem.accelerator.iteration.history.step_rows
    torch.testing.assert_close(direction, -share * step[: len(plain)], rtol=1e-9, atol=1e-12)


def test_trust_falls_to_a_quarter_with_each_rejected_step_and_not_below_a_quarter() -> None:
    problem, radii = Quadratic(replace(QUICK, trust_radius=20.0)), []
    for _ in range(5):
        problem.until_pending().step(torch.full((6,), 1e6, dtype=torch.float64))
        radii.append(problem.accelerator.stats.trust_radius)
    assert radii == [5.0, 1.25, 0.3125, 0.25, 0.25]
    assert problem.accelerator.stats.rejected == {"residual": 5}


def test_trust_falls_to_a_quarter_with_a_step_that_is_rolled_back() -> None:
    problem = Quadratic(QUICK).until_pending()
    plain, _ = problem.pending_step()
    assert problem.accelerator.roll_back()
    assert torch.equal(problem.w.detach(), plain)
    assert problem.accelerator.stats.trust_radius == 1.0
    assert problem.accelerator.stats.rejected == {"request": 1}
    assert not problem.accelerator.roll_back()


def test_steps_are_no_longer_than_the_radius_unless_the_limits_are_left_out() -> None:
    lengths = {}
    for safeguard in (("residual", "limits"), "residual"):
        options = replace(QUICK, trust_radius=0.5, safeguard=safeguard)
        problem = Quadratic(options).until_pending()
        history = problem.accelerator.iteration.history
        last = history.step_rows[history.slot - 1].norm()
        lengths[safeguard] = float(problem.pending_step()[1].norm() / last)
    limited, free = lengths.values()
    assert limited == pytest.approx(0.5, rel=1e-9)
    assert free > 1


# ---- other safeguards ----------------------------------------------------------------------


def test_newton_steps_have_a_radius_in_place_of_that_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aadl_ext.safeguards.MAX_WAY", 1e-9)
    problem = Quadratic(QUICK)
    for _ in range(STEPS):
        problem.step()
    assert problem.accelerator.stats.accepted > 5


def test_a_step_beyond_the_range_of_the_parameters_is_not_taken() -> None:
    # The minimum is at 1e5, which float16 does not hold.
    def run(optimizer: SGD) -> list[Tensor]:
        (w,) = optimizer.param_groups[0]["params"]
        points = []
        for _ in range(8):
            slope = torch.tensor([5e-4, 2e-4, 1e-4])
            w.grad = (slope * (w.detach().float() - 1e5)).half()
            optimizer.step()
            points.append(w.detach().clone())
        return points

    bare, fast = (SGD([nn.Parameter(torch.zeros(3, dtype=torch.float16))], lr=5.0) for _ in "ab")
    accelerate(fast, replace(QUICK, safeguard=None))
    assert same(run(fast), run(bare))
    stats = get_accelerator(fast).stats
    assert stats.rejected["nonfinite"] == stats.extrapolations == 2


@few
def test_the_loss_safeguard_keeps_the_steps_that_lower_the_loss(
    make: MakeOptimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Uncut steps along directions without curvature go far: some raise the loss.
    monkeypatch.setattr("aadl_ext.block_history.LEAST_CURVATURE", 1e-4)
    monkeypatch.setattr("aadl_ext.block_history.RIDGE", 1e-8)
    wild = replace(QUICK, safeguard="loss")
    training, verdicts = Training(make, wild), set()
    for _ in range(STEPS):
        if training.accelerator.pending:
            training.optimizer.step(training.closure)
            continue
        twin = plain_twin(training, make)
        twin.step()
        before = training.accelerator.stats
        training.optimizer.step(training.closure)
        stats = training.accelerator.stats
        if stats.extrapolations == before.extrapolations:
            continue
        stands = stats.rejected["loss"] == before.rejected["loss"]
        verdicts.add(stands)
        assert stands == training.accelerator.pending
        if stands:
            assert training.loss() < twin.loss()
        else:
            assert torch.equal(training.point(), twin.point())
    assert verdicts == {True, False}


# ---- blocks, noise, rows -------------------------------------------------------------------


def noisy(problem: Quadratic, noise: float, generator: torch.Generator) -> Tensor:
    sample = torch.randn(len(problem.w), generator=generator, dtype=torch.float64)
    return problem.step(problem.gradient() + noise * sample)


@pytest.mark.parametrize("usual", [2, 8])
def test_blocks_grow_with_the_noise_and_shrink_without_it(usual: int) -> None:
    problem = Quadratic(replace(QUICK, block_length=usual, noise_samples=3, adaptive_blocks=True))
    generator, lengths = torch.Generator().manual_seed(0), []
    for noise in (1.0, 0.0):
        for _ in range(80 * usual):
            noisy(problem, noise, generator)
            lengths.append(problem.accelerator.iteration.block_length.samples)
    assert set(lengths) == {max(usual // 4, 2), max(usual // 2, 2), usual, 2 * usual, 4 * usual}
    assert lengths[-1] <= usual


@pytest.mark.parametrize("samples", [0, 2])
def test_blocks_keep_their_length_without_measured_noise_or_when_told_to(samples: int) -> None:
    problem = Quadratic(replace(QUICK, noise_samples=samples))  # not adaptive
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        noisy(problem, 1.0, generator)
    assert problem.accelerator.iteration.block_length.samples == 2
    assert problem.accelerator.stats.pairs <= STEPS / 2


def test_noise_samples_keep_the_method_from_following_noise() -> None:
    lengths = {}
    for rows in (0, 1, 3, 9):
        options = replace(
            QUICK,
            block_length=4,
            noise_samples=rows,
            adaptive_blocks=rows > 0,
            safeguard=None,
        )
        problem, generator = Quadratic(options), torch.Generator().manual_seed(0)
        with torch.no_grad():
            problem.w.zero_()  # nothing is to be gained
        total = 0.0
        for _ in range(10 * STEPS):
            noisy(problem, 1e-3, generator)
            if problem.accelerator.pending:
                total += float(problem.pending_step()[1].norm())
        lengths[rows] = total
        assert problem.accelerator.iteration.history.noise_rows.shape[0] == rows
    assert max(lengths[rows] for rows in (1, 3, 9)) < 0.5 * lengths[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_narrow_rows_solve_the_problem_too(dtype: torch.dtype) -> None:
    problem = Quadratic(replace(QUICK, storage=Storage(dtype)))
    start = problem.gradient().norm()
    for _ in range(3 * STEPS):
        problem.step()
    assert problem.accelerator.iteration.history.step_rows.dtype == dtype
    assert problem.gradient().norm() < 1e-3 * start


@pytest.mark.parametrize(("light", "depth", "noises"), [(False, 4, 4), (True, 3, 2)])
def test_memory_is_what_the_documentation_says(light: bool, depth: int, noises: int) -> None:
    size = 2000 * 1000  # so many that quasi-Newton steps get no room of their own
    w = nn.Parameter(torch.randn(size, generator=torch.Generator().manual_seed(0)))
    options = SubspaceNewton.memory_light() if light else SubspaceNewton()
    optimizer = accelerate(SGD([w], lr=0.1), options)
    curvature = torch.linspace(0.01, 1, size)
    accelerator = get_accelerator(optimizer)
    for _ in range(60):
        w.grad = curvature * w.detach()
        optimizer.step()
    assert accelerator.stats.accepted > 0
    # Rows and noise in bfloat16, sums and means, d; while gradients repeat, w and g, too.
    vectors = depth + noises / 2 + 5 + 1 + 2
    assert vectors <= accelerator.stats.bytes_held / w.nbytes <= vectors + 0.1


# ---- gradients that are missing ------------------------------------------------------------


def test_steps_without_any_gradient_are_skipped_and_counted() -> None:
    training, reference = Training(sgd, NEWTON), Training(sgd, NEWTON)
    for k in range(STEPS):
        if k % 4 == 3:
            before = training.point()
            training.optimizer.zero_grad()
            training.optimizer.step()
            assert torch.equal(training.point(), before)
        training.step()
        reference.step()
        assert torch.equal(training.point(), reference.point())
    stats = training.accelerator.stats
    assert stats.skipped == {"no_gradient": STEPS // 4}
    assert stats.extrapolations == reference.accelerator.stats.extrapolations > 3


@few
def test_parameters_without_a_gradient_count_as_constant(make: MakeOptimizer) -> None:
    training = Training(make, NEWTON)
    extra = nn.Parameter(torch.ones(5))
    training.optimizer.add_param_group({"params": [extra]})
    reference = Training(make, NEWTON)
    assert torch.equal(training.run(STEPS), reference.run(STEPS))
    assert torch.equal(extra, torch.ones(5))
    assert training.accelerator.stats.extrapolations > 3


def test_parameters_that_get_gradients_by_turns_train() -> None:
    training = Training(sgd, QUICK)
    start = training.loss()
    for k in range(2 * STEPS):
        training.closure()
        for p in training.parameters[2 * (k % 2) :][:2]:
            p.grad = None
        training.optimizer.step()
    assert training.accelerator.stats.extrapolations > 3
    assert training.loss() < 0.5 * start


# ---- gradients that are not finite ---------------------------------------------------------


def spoil(training: Training, value: float) -> None:
    training.closure()
    training.parameters[0].grad[1, 2] = value
    training.optimizer.step()


bad = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])


@bad
@pytest.mark.parametrize("moment", [0, 1, 2, 5])
def test_a_bad_gradient_drops_its_block_when_that_ends_and_poisons_nothing(
    value: float, moment: int
) -> None:
    training = Training(sgd, replace(PATIENT, block_length=3, noise_samples=2))
    for _ in range(moment):
        training.step()
    assert not training.accelerator.pending
    point = copy.deepcopy(training.model.state_dict())
    spoil(training, value)
    assert training.accelerator.stats.skipped == {"nonfinite": 1}
    training.model.load_state_dict(point)
    history, steps = training.accelerator.iteration.history, moment + 1
    while history.samples:
        training.step()
        steps += 1
    for _ in range(STEPS):
        rings = (history.step_rows, history.gradient_rows, history.noise_rows)
        assert all(x.isfinite().all() for x in (*rings, *history.sums, history.last_point))
        training.step()
    stats = training.accelerator.stats
    assert stats.pairs == (steps + STEPS) // 3 - 1
    assert stats.skipped == {"nonfinite": 1}
    assert stats.extrapolations > 3


def test_the_block_of_a_rejected_step_is_dropped_when_it_ends() -> None:
    problem = Quadratic(replace(QUICK, block_length=4)).until_pending()
    history, pairs = problem.accelerator.iteration.history, problem.accelerator.stats.pairs
    slot = history.slot
    problem.step(torch.full((6,), 1e6, dtype=torch.float64))
    for samples in (1, 2, 3, 0):
        assert history.samples == samples
        problem.step()
    assert history.step_rows[slot].norm() == history.gradient_rows[slot].norm() == 0
    assert problem.accelerator.stats.pairs == pairs
    assert not problem.accelerator.pending
    problem.until_pending()
    assert problem.accelerator.stats.pairs == pairs + 1


@bad
@few
@pytest.mark.parametrize("safeguard", ["residual", None])
def test_a_bad_gradient_at_a_pending_step_rejects_it(
    value: float, make: MakeOptimizer, safeguard: str | None
) -> None:
    training = until_pending(Training(make, replace(QUICK, safeguard=safeguard)))
    size = len(training.point())
    plain = training.accelerator.iteration.fallback[:size].clone()
    before = copy.deepcopy(training.optimizer.state_dict())
    spoil(training, value)
    assert torch.equal(training.point(), plain)
    assert same(training.optimizer.state_dict(), before)
    stats = training.accelerator.stats
    assert (stats.rejected, stats.skipped) == ({"nonfinite": 1}, {})
    assert training.run(STEPS).isfinite().all()


# ---- closures ------------------------------------------------------------------------------


@few
def test_a_step_with_a_closure_is_a_step_without_also_where_it_is_rejected(
    make: MakeOptimizer,
) -> None:
    within, without, calls = Training(make, NEWTON), Training(make, NEWTON), []

    def closure() -> Tensor:
        calls.append(1)
        return within.closure()

    points = within.run(STEPS, lambda: within.optimizer.step(closure))
    assert torch.equal(points, without.run(STEPS))
    assert len(calls) == STEPS
    assert within.accelerator.stats.rejected["residual"] > 0


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_steps_are_its_own_and_rejected_ones_leave_its_memory_alone(
    line_search: str | None,
) -> None:
    make = partial(optim.LBFGS, lr=0.1, max_iter=2, history_size=4, line_search_fn=line_search)
    training = Training(make, replace(QUICK, max_gradient_growth=0.7, trust_radius=100.0))
    accelerator, kept = training.accelerator, ("d", "t", "old_dirs", "old_stps", "prev_loss")
    for _ in range(STEPS):
        pending, before = accelerator.pending, accelerator.stats
        plain = accelerator.iteration.fallback[: len(training.point())].clone()
        state = copy.deepcopy(training.optimizer.state_dict()["state"].get(0, {}))
        twin = plain_twin(training, make)
        twin.optimizer.step(twin.closure)
        training.optimizer.step(training.closure)
        after, stats = training.optimizer.state_dict()["state"][0], accelerator.stats
        if stats.rejected.total() > before.rejected.total() and pending:
            assert torch.equal(training.point(), plain)
            assert same([after.get(x) for x in kept], [state.get(x) for x in kept])
        else:
            assert same(training.optimizer.state_dict(), twin.optimizer.state_dict())
            moved = stats.shortened + stats.extrapolations
            if moved == before.shortened + before.extrapolations:
                assert torch.equal(training.point(), twin.point())
    assert stats.accepted > 0
    assert stats.rejected["residual"] > 0
    assert training.loss() < Training(make, None).loss()


# ---- counts --------------------------------------------------------------------------------


@few
@pytest.mark.parametrize("safeguard", ["residual", "loss", None, ("residual", "descent", "limits")])
def test_the_counts_add_up_after_every_step(make: MakeOptimizer, safeguard: Any) -> None:
    training = Training(make, replace(NEWTON, safeguard=safeguard))
    accelerator, left_out = training.accelerator, 0
    for k in range(1, STEPS + 1):
        pending, rejected = accelerator.pending, accelerator.stats.rejected.total()
        if k % 7 == 0:  # somebody moves the parameters
            with torch.no_grad():
                training.parameters[0].add_(0.01)
        training.optimizer.step(training.closure)
        stats = accelerator.stats
        left_out += pending and stats.rejected.total() > rejected
        verdicts = stats.accepted + stats.rejected.total() + stats.dropped
        assert stats.extrapolations == verdicts + accelerator.pending
        assert stats.steps == k
        assert stats.pairs <= (k - left_out) // 2
        assert stats.shortened <= stats.accepted
        assert stats.dropped == stats.restarts["moved_outside"]
    assert stats.extrapolations > 3
    assert stats.dropped > 0
    assert stats.skipped == {}


# ---- schedules ------------------------------------------------------------------------------


class Scheduled(Training):
    """The rate of each step is a share of SGD's."""

    def __init__(self, options: Method | None, shares: list[float]) -> None:
        super().__init__(sgd, options)
        rate = self.optimizer.param_groups[0]["lr"]
        self.rates = iter([rate * share for share in shares])

    def step(self) -> None:
        self.optimizer.param_groups[0]["lr"] = next(self.rates)
        super().step()


RESTING = replace(PATIENT, rest_above=0.5)
WARM_UP = [0.2 * (k + 1) for k in range(5)]
DECAY = [1 - 0.05 * (k + 1) for k in range(20)]


def test_near_the_peak_of_a_schedule_it_is_the_base_optimizer() -> None:
    shares = WARM_UP + DECAY[:9]
    training, plain = Scheduled(RESTING, shares), Scheduled(None, shares)
    assert torch.equal(training.run(len(shares)), plain.run(len(shares)))
    stats = training.accelerator.stats
    assert stats.skipped == {"high_rate": len(shares) - 1}  # the first rate is not yet a schedule
    assert stats.pairs == stats.extrapolations == 0


def test_it_begins_where_the_rate_has_fallen_to_half_of_its_peak() -> None:
    shares = WARM_UP + DECAY
    training = Scheduled(RESTING, shares)
    training.run(len(shares) - 1)  # the last rate is zero
    expected = Scheduled(replace(PATIENT, rest_above=1.0), shares)
    expected.run(len(shares) - 1)
    assert training.accelerator.stats.extrapolations > 2
    assert training.accelerator.stats.pairs < expected.accelerator.stats.pairs
    assert expected.accelerator.stats.skipped == {}


def test_while_it_rests_nothing_of_it_is_held_for_later() -> None:
    shares = [1.0] * 9 + [0.9] * 3 + [0.3] * 12
    training, fresh = Scheduled(RESTING, shares), Scheduled(RESTING, [1.0, *shares[12:]])
    training.run(12)
    fresh.model.load_state_dict(training.model.state_dict())
    verdicts = fresh.accelerator.iteration.verdicts, training.accelerator.iteration.verdicts
    verdicts[0].control.copy_(verdicts[1].control)  # trust and damping stay
    fresh.accelerator.iteration.schedule.peak = training.accelerator.iteration.schedule.peak
    fresh.accelerator.iteration.schedule.moved = True
    next(fresh.rates)
    assert torch.equal(training.run(12), fresh.run(12))
    assert training.accelerator.stats.extrapolations > 0


@pytest.mark.parametrize(("rest", "weight"), [(0.3, 4.0), (0.4, 1.0)])
def test_under_a_schedule_noise_counts_four_times(rest: float, weight: float) -> None:
    options = replace(QUICK, noise_samples=4, noise_shrinkage=0.1, rest_above=1.0)
    shares = [0.4] + [rest] * 19  # the second is a constant rate
    points = Scheduled(options, shares).run(20)
    carrying = patch("aadl_ext.block_history.CARRYING", CARRYING / weight)  # as without a schedule
    with patch("aadl_ext.newton.SCHEDULED", 1.0), carrying:
        expected = Scheduled(replace(options, noise_shrinkage=0.1 * weight), shares)
        assert torch.equal(points, expected.run(20))
        other = Scheduled(replace(options, noise_shrinkage=0.4 / weight), shares)
        assert not torch.equal(points, other.run(20))
    assert expected.accelerator.stats.extrapolations > 0


@pytest.mark.parametrize(("blocks", "samples", "means"), [(3, 3, 3), (12, 4, 4)])
def test_while_a_decay_goes_on_noise_counts_as_if_nothing_were_known_of_it(
    blocks: int, samples: int, means: int
) -> None:
    options = replace(QUICK, history_depth=3, noise_samples=4, rest_above=0.5)
    training = Scheduled(options, [1.0] + [0.4 * 0.99**k for k in range(40)])
    history = training.accelerator.iteration.history
    while history.blocks < blocks:
        training.run(1)
    with patch.object(history, "solve", wraps=history.solve) as solve:
        training.run(2 * QUICK.block_length)
    caution = SCHEDULED * doubt(4) * 4
    assert [call.args for call in solve.call_args_list][-1] == (pytest.approx(caution),)
    assert training.accelerator.iteration._caution == pytest.approx(caution)
    history.blocks = blocks
    expected = SCHEDULED * doubt(samples) * means
    assert training.accelerator.iteration._caution == pytest.approx(expected)


@pytest.mark.parametrize(("rest_above", "times"), [(0.5, 4), (1.0, 1)])
def test_after_a_drop_what_a_fit_may_take_off_the_noise_is_given_back(
    rest_above: float, times: int
) -> None:
    options = replace(QUICK, history_depth=3, noise_samples=4, rest_above=rest_above)
    training = Scheduled(options, [1.0] + [0.2] * 60)
    history = training.accelerator.iteration.history
    while history.blocks < 12:
        training.run(1)
    with patch.object(history, "solve", wraps=history.solve) as solve:
        training.run(2 * QUICK.block_length)
    assert [call.args for call in solve.call_args_list][-1] == (SCHEDULED * times,)


def test_a_pending_step_is_judged_before_it_rests() -> None:
    shares = [1.0] * 6 + [0.9] * 4
    training = Scheduled(RESTING, shares)
    training.run(6)
    assert training.accelerator.pending
    training.run(1)
    assert not training.accelerator.pending
    assert training.accelerator.stats.skipped == {}
    training.run(3)
    stats = training.accelerator.stats
    assert stats.skipped == {"high_rate": 3}
    assert stats.extrapolations == stats.accepted + sum(stats.rejected.values())


def test_the_peak_is_part_of_a_checkpoint() -> None:
    shares = WARM_UP + DECAY
    whole, first, second = (Scheduled(RESTING, shares) for _ in range(3))
    points = whole.run(20)
    first.run(8)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.accelerator.load_state_dict(first.accelerator.state_dict())
    for _ in range(8):
        next(second.rates)
    assert torch.equal(second.run(12), points[8:])
    assert whole.accelerator.stats.extrapolations > 0


# ---- a sample that is taken before the base step ------------------------------------------------


class Halving(SGD):
    """Its step changes the gradients and then calls that of its parent, whose hooks run too."""

    fails = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if self.fails:
            raise ValueError("in the base step")
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.mul_(0.5)
        return super().step(closure)


LONG = SubspaceNewton(block_length=20, adaptive_blocks=False, quasi_newton=False)


@few
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_sample_taken_at_once_is_the_one_that_is_kept_for_the_step(
    make: Any, decay: float
) -> None:
    at_once, kept = (
        Training(partial(make, weight_decay=decay), NEWTON, torch.float64) for _ in range(2)
    )
    expected = kept.run(STEPS, lambda: kept.optimizer.step(kept.closure))
    assert kept.accelerator.stats.extrapolations > 4
    torch.testing.assert_close(at_once.run(STEPS), expected)


def test_a_step_within_a_step_is_one_sample_of_the_gradients_that_are_used() -> None:
    training = Training(partial(Halving, lr=0.1), LONG, torch.float64)
    history = training.accelerator.iteration.history
    for steps in range(1, 4):
        before = history.sums[1].clone()
        training.closure()
        whole = torch.cat([p.grad.flatten() for p in training.parameters])
        training.optimizer.step()
        assert history.samples == steps
        used = whole if steps == 1 else whole / 2  # that it is one within another is known then
        torch.testing.assert_close((history.sums[1] - before)[: len(used)], used)


def test_a_base_step_that_fails_and_is_taken_again_is_one_sample() -> None:
    training = Training(partial(Halving, lr=0.1), LONG)
    optimizer: Any = training.optimizer
    optimizer.fails = True
    for _ in range(2):
        with pytest.raises(ValueError, match="in the base step"):
            training.step()
    optimizer.fails = False
    training.step()
    assert training.accelerator.iteration.history.samples == 1
    assert training.accelerator.stats.steps == 1
