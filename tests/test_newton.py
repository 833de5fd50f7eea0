"""What the default method does with blocks, jumps, verdicts and odd gradients."""

from __future__ import annotations

import copy
import dataclasses
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import SGD
from training import (
    NEWTON,
    MakeOptimizer,
    Training,
    adam,
    momentum,
    plain_twin,
    same,
    sgd,
    watch_base_steps,
)

from aadl_ext import accelerate, get_accelerator

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
# Small blocks without shrinkage: a jump at the end of every block from the third on.
QUICK: dict[str, Any] = {
    "acceleration_type": "subspace_newton",
    "store_each_nth": 2,
    "history_depth": 4,
    "noise_rows": 0,
}


class Quadratic:
    """The loss ``w^T H w / 2`` in float64, under plain gradient descent."""

    def __init__(self, size: int = 6, condition: float = 1e3, **options: Any) -> None:
        random = np.random.default_rng(size)
        axes = np.linalg.qr(random.standard_normal((size, size)))[0]
        spectrum = np.diag(np.geomspace(1 / condition, 1, size))
        self.hessian = torch.from_numpy(axes @ spectrum @ axes.T)
        self.w = nn.Parameter(torch.from_numpy(random.standard_normal(size)))
        self.generator = torch.Generator().manual_seed(size)
        self.optimizer = SGD([self.w], lr=1.0)
        if options:
            accelerate(self.optimizer, **options)

    @property
    def accelerator(self) -> Any:
        return get_accelerator(self.optimizer)

    def gradient(self) -> Tensor:
        return self.hessian @ self.w.detach()

    def step(self, gradient: Tensor | None = None) -> Tensor:
        self.w.grad = self.gradient() if gradient is None else gradient
        self.optimizer.step()
        return self.w.detach().clone()

    def until_pending(self) -> Quadratic:
        while not self.accelerator.jump_pending:
            self.step()
        return self

    def jump(self) -> tuple[Tensor, Tensor]:
        """Where the pending jump came from, and the way it went."""
        jump, size = self.accelerator.jump, len(self.w)
        return jump.plain[:size].clone(), jump.direction[:size].clone()


def until_pending(training: Training, steps: int = 3 * STEPS) -> Training:
    for _ in range(steps):
        if training.accelerator.jump_pending:
            return training
        training.step()
    raise AssertionError("no jump")


def step_with(training: Training, factor: float, offset: float = 0.0) -> None:
    """A step with gradients that are ``factor`` times the true ones, plus ``offset``."""
    training.closure()
    for p in training.parameters:
        p.grad.mul_(factor).add_(offset)
    training.optimizer.step()


# ---- it converges --------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "measured"), [(2, 53), (4, 175), (8, 171)])
def test_a_quadratic_takes_some_tens_of_steps_per_dimension(size: int, measured: int) -> None:
    # Condition 1e3. Bare gradient descent takes some 10 000 steps.
    def steps(problem: Quadratic, most: int) -> int:
        goal = 1e-8 * problem.gradient().norm()
        return next(
            (k for k in range(most) if (problem.step(), problem.gradient())[1].norm() < goal), most
        )

    fast = Quadratic(size, acceleration_type="subspace_newton", history_depth=size)
    taken = steps(fast, 1000)
    assert taken <= 1.2 * measured
    assert steps(Quadratic(size), 10 * taken) == 10 * taken


# ---- jumps that are taken back -------------------------------------------------------------


@optimizers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_jump_taken_back_restores_the_point_and_leaves_the_optimizer_alone(
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
    problem = Quadratic(**QUICK)
    norms = []
    while not problem.accelerator.jump_pending:
        norms.append(float(problem.gradient().norm()))
        problem.step()
    reference = 0.0
    for norm in norms:
        reference = max(norm, 0.9 * reference)
    gradient = problem.gradient()
    problem.step(gradient * (factor * reference / gradient.norm()))
    stats = problem.accelerator.stats
    assert (stats.accepted, stats.rejected["residual"]) == (stands, not stands)


def test_without_safeguards_every_finite_jump_is_kept() -> None:
    problem = Quadratic(**QUICK, safeguard=None)
    for _ in range(STEPS):
        problem.step(1e6 * problem.gradient() if problem.accelerator.jump_pending else None)
    stats = problem.accelerator.stats
    assert stats.jumps > 5
    assert stats.rejected == {}
    assert stats.accepted == stats.jumps - problem.accelerator.jump_pending


# ---- jumps that go too far, and the trust in them ------------------------------------------


@pytest.mark.parametrize("trust", [1.0, 1e3], ids=["cut by the trust", "full length"])
@pytest.mark.parametrize(
    ("ratio", "share", "change"),
    [(3, 1 / 4, 0.5), (1.01, 1 / 2.01, 0.5), (0.99, 1, 1), (0.51, 1, 1), (0.49, 1, 2), (-1, 1, 2)],
)
def test_the_slope_at_the_far_end_tells_how_far_a_jump_stands(
    ratio: float, share: float, change: float, trust: float
) -> None:
    problem = Quadratic(**QUICK, gradient_guard=1e9, trust=trust).until_pending()
    assert problem.accelerator.jump.limited == (trust == 1)
    if trust > 1:  # it could have been longer without more of it
        change = min(change, 1)
    plain, direction = problem.jump()
    slope = abs(problem.accelerator.jump.slope)
    across = problem.gradient()
    across -= (across @ direction) / (direction @ direction) * direction
    gradient = across + ratio * slope / (direction @ direction) * direction
    point = problem.step(gradient)
    expected = plain + share * direction - gradient  # the base step is taken besides
    torch.testing.assert_close(point, expected, rtol=1e-12, atol=1e-12)
    stats = problem.accelerator.stats
    assert (stats.accepted, stats.shortened) == (1, ratio > 1)
    assert problem.accelerator.trust == change * trust


def land(problem: Quadratic, ratio: float) -> float:
    """Jump and go on to the next; ``ratio`` of slope there to slope before.

    Returns the damping of the jump over that of the one before.
    """
    accelerator = problem.until_pending().accelerator
    before, jump = accelerator.pace.damping, accelerator.jump
    size = len(problem.w)
    direction = jump.direction[:size].clone()
    for _ in range(accelerator.pace.block_length):
        across = 1e-3 * torch.randn(size, generator=problem.generator, dtype=torch.float64)
        across -= (across @ direction) / (direction @ direction) * direction
        problem.step(across - ratio * jump.slope / (direction @ direction) * direction)
    return float(accelerator.pace.damping / before)


@pytest.mark.parametrize("ratio", [0.9, 0.3, -0.2, -1.5])
def test_damping_follows_the_slopes_over_the_block_after_a_jump(ratio: float) -> None:
    problem = Quadratic(**QUICK, gradient_guard=1e9)
    problem.accelerator.pace.damping = 0.5
    assert land(problem, ratio) == pytest.approx(math.exp(-0.3 * max(ratio, -1)))


@pytest.mark.parametrize(("before", "after"), [(0.0, 1.0), (1.0, 1.0), (-1.0, math.inf)])
def test_damping_does_not_follow_slopes_that_tell_nothing(before: float, after: float) -> None:
    problem = Quadratic(**QUICK, gradient_guard=1e9, safeguard="limits").until_pending()
    accelerator = problem.accelerator
    direction = accelerator.jump.direction
    if math.isinf(after):
        direction[0] = after
    accelerator.jump = dataclasses.replace(accelerator.jump, slope=before)
    for _ in range(accelerator.pace.block_length):
        problem.step()
    assert accelerator.pace.damping == 1


def test_damping_stays_between_a_fiftieth_and_one() -> None:
    problem = Quadratic(**QUICK, gradient_guard=1e9)
    land(problem, -1.0)
    assert problem.accelerator.pace.damping == 1
    for _ in range(40):
        land(problem, 0.9)
    assert problem.accelerator.pace.damping == 0.02
    assert problem.accelerator.stats.damping == 0.02


def test_jumps_are_as_long_as_the_damping_tells() -> None:
    full, half = Quadratic(**QUICK), Quadratic(**QUICK)
    half.accelerator.pace.damping = 0.5
    expected = 0.5 * full.until_pending().jump()[1]
    torch.testing.assert_close(half.until_pending().jump()[1], expected, rtol=1e-12, atol=0)


def test_damping_is_a_part_of_the_limits() -> None:
    problem = Quadratic(**QUICK, safeguard=("residual", "descent")).until_pending()
    whole = problem.accelerator.history.solve(math.inf, 1.0).coefficients
    assert torch.equal(problem.accelerator.stats.gamma, whole)
    assert problem.accelerator.stats.damping == 1


def test_trust_falls_to_a_quarter_with_each_jump_taken_back_and_not_below_a_quarter() -> None:
    problem, trusts = Quadratic(**QUICK, trust=20.0), []
    for _ in range(5):
        problem.until_pending().step(torch.full((6,), 1e6, dtype=torch.float64))
        trusts.append(problem.accelerator.trust)
    assert trusts == [5.0, 1.25, 0.3125, 0.25, 0.25]
    assert problem.accelerator.stats.rejected == {"residual": 5}


def test_jumps_are_no_longer_than_trust_allows_unless_the_limits_are_left_out() -> None:
    lengths = {}
    for safeguard in (("residual", "limits"), "residual"):
        problem = Quadratic(**QUICK, trust=0.5, safeguard=safeguard).until_pending()
        history = problem.accelerator.history
        last = history.step_rows[history.slot - 1].norm()
        lengths[safeguard] = float(problem.jump()[1].norm() / last)
    limited, free = lengths.values()
    assert limited == pytest.approx(0.5, rel=1e-9)
    assert free > 1


# ---- other safeguards ----------------------------------------------------------------------


class Saddle(Quadratic):
    """A loss that falls along one axis without end: least squares find its stationary point."""

    def __init__(self, **options: Any) -> None:
        super().__init__(2, **options)
        self.hessian = torch.diag(torch.tensor([0.5, -0.02], dtype=torch.float64))
        with torch.no_grad():
            self.w.copy_(torch.tensor([1e-3, 1.0]))


def test_least_squares_refuse_uphill_jumps_under_descent_only() -> None:
    options = {
        "acceleration_type": "anderson",
        "residual": "gradient",
        "store_each_nth": 5,
        "frequency": 10,
        "wait_iterations": 0,
    }
    guarded = Saddle(**options, safeguard=("residual", "descent"))
    bare, unguarded = Saddle(), Saddle(**options, safeguard="residual")
    for _ in range(STEPS):
        assert torch.equal(guarded.step(), bare.step())
        unguarded.step()
    assert guarded.accelerator.stats.rejected["descent"] == guarded.accelerator.stats.jumps >= 2
    assert unguarded.accelerator.stats.rejected["descent"] == 0
    assert abs(unguarded.w[1]) < 0.9 * abs(bare.w[1])  # nearer to the saddle


def test_least_squares_limit_their_coefficients() -> None:
    options = {**QUICK, "acceleration_type": "anderson", "residual": "gradient"}
    limited = Quadratic(**options, safeguard="limits", coefficient_limit=1e-9)
    bare = Quadratic()
    for _ in range(STEPS):
        assert torch.equal(limited.step(), bare.step())
    stats = limited.accelerator.stats
    assert stats.rejected["limits"] == stats.jumps > 5


def test_newton_steps_are_not_limited_by_their_coefficients() -> None:
    problem = Quadratic(**QUICK, coefficient_limit=1e-9)
    for _ in range(STEPS):
        problem.step()
    assert problem.accelerator.stats.accepted > 5


def test_a_jump_beyond_the_range_of_the_parameters_is_not_made() -> None:
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
    accelerate(fast, **QUICK, safeguard=None)
    assert same(run(fast), run(bare))
    stats = get_accelerator(fast).stats
    assert stats.rejected["nonfinite"] == stats.jumps == 2


@few
def test_the_loss_safeguard_keeps_the_jumps_that_lower_the_loss(make: MakeOptimizer) -> None:
    # Uncut jumps along directions without curvature go far: some raise the loss.
    wild = {"safeguard": "loss", "curvature_floor": 1e-4, "reg_acc": 1e-8}
    training = Training(make, {**QUICK, **wild})
    stats, verdicts = training.accelerator.stats, set()
    for _ in range(STEPS):
        if training.accelerator.jump_pending:
            training.optimizer.step(training.closure)
            continue
        twin = plain_twin(training, make)
        twin.step()
        jumps, rejected = stats.jumps, stats.rejected["loss"]
        training.optimizer.step(training.closure)
        if stats.jumps == jumps:
            continue
        stands = stats.rejected["loss"] == rejected
        verdicts.add(stands)
        assert stands == training.accelerator.jump_pending
        if stands:
            assert training.loss() < twin.loss()
        else:
            assert torch.equal(training.point(), twin.point())
    assert verdicts == {True, False}


# ---- momentum ------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["keep", "reset", "scale"])
@pytest.mark.parametrize(
    ("make", "name"), [(momentum, "momentum_buffer"), (adam, "exp_avg")], ids=["momentum", "adam"]
)
def test_first_moments_after_a_jump(make: MakeOptimizer, name: str, choice: str) -> None:
    training, factors = Training(make, {**QUICK, "momentum": choice, "trust": 1.0}), []
    for _ in range(STEPS):
        twin = plain_twin(training, make)
        twin.step()
        rejected = training.accelerator.stats.rejected.total()
        training.step()
        if training.accelerator.stats.rejected.total() > rejected:
            continue
        jumped = training.accelerator.jump_pending
        predicted = training.accelerator.stats.predicted_reduction
        scale = 0.0 if predicted is None else min(predicted.max().item(), 1.0)
        factor = {"keep": 1.0, "reset": 0.0, "scale": scale}[choice]
        factors += [factor] if jumped else []
        states = (x.optimizer.state.values() for x in (training, twin))
        for mine, expected in zip(*states, strict=True):
            for entry in expected:
                share = factor if entry == name and jumped else 1.0
                torch.testing.assert_close(mine[entry], share * expected[entry], rtol=1e-6, atol=0)
    assert training.accelerator.stats.jumps > 5
    assert choice != "scale" or any(0 < factor < 1 for factor in factors)


# ---- blocks, noise, rows -------------------------------------------------------------------


def noisy(problem: Quadratic, noise: float, generator: torch.Generator) -> Tensor:
    sample = torch.randn(len(problem.w), generator=generator, dtype=torch.float64)
    return problem.step(problem.gradient() + noise * sample)


@pytest.mark.parametrize("usual", [2, 8])
def test_blocks_grow_with_the_noise_and_shrink_without_it(usual: int) -> None:
    problem = Quadratic(**{**QUICK, "store_each_nth": usual, "noise_rows": 3})
    generator, lengths = torch.Generator().manual_seed(0), []
    for noise in (1.0, 0.0):
        for _ in range(80 * usual):
            noisy(problem, noise, generator)
            lengths.append(problem.accelerator.pace.block_length)
    assert set(lengths) == {max(usual // 4, 2), max(usual // 2, 2), usual, 2 * usual, 4 * usual}
    assert lengths[-1] <= usual


@pytest.mark.parametrize("options", [{"noise_rows": 0}, {"noise_rows": 2, "adapt_blocks": False}])
def test_blocks_keep_their_length_without_measured_noise_or_when_told_to(
    options: dict[str, Any],
) -> None:
    problem, generator = Quadratic(**{**QUICK, **options}), torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        noisy(problem, 1.0, generator)
    assert problem.accelerator.pace.block_length == 2
    assert problem.accelerator.stats.pairs <= STEPS / 2


def test_noise_rows_keep_the_method_from_following_noise() -> None:
    lengths = {}
    for rows in (0, 1, 3, 9):
        options = {**QUICK, "store_each_nth": 4, "noise_rows": rows, "safeguard": None}
        problem, generator = Quadratic(**options), torch.Generator().manual_seed(0)
        with torch.no_grad():
            problem.w.zero_()  # nothing is to be gained
        total = 0.0
        for _ in range(10 * STEPS):
            noisy(problem, 1e-3, generator)
            if problem.accelerator.jump_pending:
                total += float(problem.jump()[1].norm())
        lengths[rows] = total
        assert problem.accelerator.history.noise_rows.shape[0] == rows
    assert max(lengths[rows] for rows in (1, 3, 9)) < 0.5 * lengths[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_narrow_rows_solve_the_problem_too(dtype: torch.dtype) -> None:
    problem = Quadratic(**QUICK, history_dtype=dtype)
    start = problem.gradient().norm()
    for _ in range(3 * STEPS):
        problem.step()
    assert problem.accelerator.history.step_rows.dtype == dtype
    assert problem.gradient().norm() < 1e-3 * start


def test_relaxation_takes_a_share_of_the_jump() -> None:
    full = Quadratic(**QUICK).until_pending().jump()
    part = Quadratic(**QUICK, relaxation=0.3).until_pending().jump()
    assert torch.equal(full[0], part[0])
    torch.testing.assert_close(0.3 * full[1], part[1], rtol=1e-12, atol=1e-15)


def jump_steps(problem: Quadratic) -> list[int]:
    """Indices of the steps after which the parameters are at a jump."""
    return [k for k in range(STEPS) if (problem.step(), problem.accelerator.jump_pending)[1]]


@pytest.mark.parametrize(("frequency", "spacing"), [(1, 2), (2, 2), (5, 6), (6, 6), (9, 10)])
def test_frequency_spaces_the_jumps(frequency: int, spacing: int) -> None:
    steps = jump_steps(Quadratic(**QUICK, frequency=frequency, gradient_guard=1e9))
    assert steps == list(range(5, STEPS, spacing))  # the third block ends at k = 5


@pytest.mark.parametrize("wait", [0, 6, 7, 8, 20])
def test_no_jump_is_made_at_the_steps_to_wait(wait: int) -> None:
    steps = jump_steps(Quadratic(**QUICK, wait_iterations=wait, gradient_guard=1e9))
    assert steps == [k for k in range(5, STEPS, 2) if k > wait]


@pytest.mark.parametrize(("light", "depth", "noises"), [(False, 8, 9), (True, 5, 3)])
def test_memory_is_what_the_documentation_says(light: bool, depth: int, noises: int) -> None:
    size = 64 * 1000
    w = nn.Parameter(torch.randn(size, generator=torch.Generator().manual_seed(0)))
    optimizer = accelerate(SGD([w], lr=0.1), memory_light=light)
    curvature = torch.linspace(0.01, 1, size)
    accelerator = get_accelerator(optimizer)
    for _ in range(60):
        w.grad = curvature * w.detach()
        optimizer.step()
        buffers = [*accelerator.history.tensors, *accelerator._vectors]
        assert accelerator.stats.bytes_held == sum(x.nbytes for x in buffers)
    assert accelerator.stats.accepted > 0
    vectors = 2 * depth + noises + 5 + 5  # rows, noise, sums and means, working vectors
    assert vectors - 1 <= accelerator.stats.bytes_held / w.nbytes <= vectors + 0.1


# ---- least squares on gradients ------------------------------------------------------------


def test_least_squares_on_block_means_reduce_the_loss() -> None:
    fast = Quadratic(
        acceleration_type="anderson", residual="gradient", store_each_nth=5, frequency=10
    )
    bare, start = Quadratic(), Quadratic()
    for _ in range(200):
        fast.step()
        bare.step()
    stats = fast.accelerator.stats
    assert stats.accepted + stats.rejected.total() + fast.accelerator.jump_pending == stats.jumps
    assert (stats.pairs <= 40, 3 < stats.accepted <= 19) == (True, True)
    losses = [float(x.w.detach() @ x.gradient()) for x in (fast, bare, start)]
    assert losses == sorted(losses)
    assert losses[0] < 0.5 * losses[1]


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
    assert stats.jumps == reference.accelerator.stats.jumps > 3


@few
def test_parameters_without_a_gradient_count_as_constant(make: MakeOptimizer) -> None:
    training = Training(make, NEWTON)
    extra = nn.Parameter(torch.ones(5))
    training.optimizer.add_param_group({"params": [extra]})
    reference = Training(make, NEWTON)
    assert torch.equal(training.run(STEPS), reference.run(STEPS))
    assert torch.equal(extra, torch.ones(5))
    assert training.accelerator.stats.jumps > 3


def test_parameters_that_get_gradients_by_turns_train() -> None:
    training = Training(sgd, QUICK)
    start = training.loss()
    for k in range(2 * STEPS):
        training.closure()
        for p in training.parameters[2 * (k % 2) :][:2]:
            p.grad = None
        training.optimizer.step()
    assert training.accelerator.stats.jumps > 3
    assert training.loss() < 0.5 * start


# ---- gradients that are not finite ---------------------------------------------------------


def spoil(training: Training, value: float) -> None:
    training.closure()
    training.parameters[0].grad[1, 2] = value
    training.optimizer.step()


bad = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])


@bad
@pytest.mark.parametrize("moment", [0, 1, 2, 5])
def test_a_bad_gradient_without_a_jump_is_skipped_and_does_not_poison_the_block(
    value: float, moment: int
) -> None:
    training, reference = (Training(sgd, {**QUICK, "store_each_nth": 3}) for _ in range(2))
    for run in (training, reference):
        for _ in range(moment):
            run.step()
        assert not run.accelerator.jump_pending
    point = copy.deepcopy(training.model.state_dict())
    spoil(training, value)
    assert training.accelerator.stats.skipped == {"nonfinite": 1}
    training.model.load_state_dict(point)
    reference.accelerator.history.drop_block()  # the samples before it are forgotten
    assert torch.equal(training.run(STEPS), reference.run(STEPS))
    assert training.accelerator.stats.jumps > 3


@bad
@few
@pytest.mark.parametrize("safeguard", ["residual", None])
def test_a_bad_gradient_at_a_jump_takes_it_back(
    value: float, make: MakeOptimizer, safeguard: str | None
) -> None:
    training = until_pending(Training(make, {**QUICK, "safeguard": safeguard}))
    size = len(training.point())
    plain = training.accelerator.jump.plain[:size].clone()
    before = copy.deepcopy(training.optimizer.state_dict())
    spoil(training, value)
    assert torch.equal(training.point(), plain)
    assert same(training.optimizer.state_dict(), before)
    stats = training.accelerator.stats
    assert (stats.rejected, stats.skipped) == ({"nonfinite": 1}, {})
    assert training.run(STEPS).isfinite().all()


# ---- closures ------------------------------------------------------------------------------


@few
def test_a_step_with_a_closure_is_a_step_without_also_where_jumps_are_taken_back(
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
def test_lbfgs_steps_are_its_own_and_jumps_taken_back_leave_its_memory_alone(
    line_search: str | None,
) -> None:
    make = partial(optim.LBFGS, lr=0.1, max_iter=2, history_size=4, line_search_fn=line_search)
    training = Training(make, {**QUICK, "gradient_guard": 0.7, "trust": 100.0})
    stats, kept = training.accelerator.stats, ("d", "t", "old_dirs", "old_stps", "prev_loss")
    for _ in range(STEPS):
        pending, rejected = training.accelerator.jump_pending, stats.rejected.total()
        plain = pending and training.accelerator.jump.plain[: len(training.point())].clone()
        shortened, jumps = stats.shortened, stats.jumps
        state = copy.deepcopy(training.optimizer.state_dict()["state"].get(0, {}))
        twin = plain_twin(training, make)
        twin.optimizer.step(twin.closure)
        training.optimizer.step(training.closure)
        after = training.optimizer.state_dict()["state"][0]
        if stats.rejected.total() > rejected and pending:
            assert torch.equal(training.point(), plain)
            assert same([after.get(x) for x in kept], [state.get(x) for x in kept])
        else:
            assert same(training.optimizer.state_dict(), twin.optimizer.state_dict())
            if (stats.shortened, stats.jumps) == (shortened, jumps):
                assert torch.equal(training.point(), twin.point())
    assert stats.accepted > 0
    assert stats.rejected["residual"] > 0
    assert training.loss() < Training(make, None).loss()


# ---- counts --------------------------------------------------------------------------------


@few
@pytest.mark.parametrize("safeguard", ["residual", "loss", None, ("residual", "descent", "limits")])
def test_the_counts_add_up_after_every_step(make: MakeOptimizer, safeguard: Any) -> None:
    training = Training(make, {**NEWTON, "safeguard": safeguard})
    accelerator, stats = training.accelerator, training.accelerator.stats
    held_back = 0
    for k in range(1, STEPS + 1):
        pending, rejected = accelerator.jump_pending, stats.rejected.total()
        if k % 7 == 0:  # somebody moves the parameters
            with torch.no_grad():
                training.parameters[0].add_(0.01)
        training.optimizer.step(training.closure)
        held_back += pending and stats.rejected.total() > rejected
        verdicts = stats.accepted + stats.rejected.total() + stats.dropped
        assert stats.jumps == verdicts + accelerator.jump_pending
        assert stats.steps == k
        assert stats.pairs <= (k - held_back) // 2
        assert stats.shortened <= stats.accepted
        assert stats.dropped == stats.restarts["moved_outside"]
    assert stats.jumps > 3
    assert stats.dropped > 0
    assert stats.skipped == {}
