"""A bad extrapolation is rejected without a trace, bit for bit, however bad it is."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SparseAdam
from training import (
    JUMPY,
    MakeOptimizer,
    Training,
    adam,
    as_if_exact,
    momentum,
    plain_twin,
    same,
    sgd,
    usable_rows,
)

from aadl_ext import Anderson, Averaging, accelerate, get_accelerator, ops
from aadl_ext.parameters import Layout
from aadl_ext.safeguards import Candidate, arm
from aadl_ext.secant_history import SecantHistory

Land = Callable[[float], None]
Step = Callable[[Training], None]
NAN, INF = math.nan, math.inf
SIZE = Training().point().numel()
FAR = 30.0  # a displacement that every dtype can hold, and that no safeguard likes
SINGLE, HALF, BFLOAT, DOUBLE = torch.float32, torch.float16, torch.bfloat16, torch.float64
optimizers = pytest.mark.parametrize("make", [sgd, momentum, adam], ids=["sgd", "momentum", "adam"])
# Extrapolations are due at k = 8, 12, 16 and so on.
FIRST, PERIOD = 8, 4
RARE = replace(JUMPY, frequency=PERIOD, wait_iterations=FIRST - 1)


@pytest.fixture
def land(monkeypatch: pytest.MonkeyPatch) -> Land:
    """``land(x)`` displaces all extrapolations from now on by x; ``land(0)`` lets them be."""
    honest = SecantHistory.extrapolate_

    def displace(by: float) -> None:
        def extrapolate(self: SecantHistory, out: Tensor, *args: Any) -> Tensor:
            sizes = honest(self, out, *args)
            if not self.verdicts.when.ready:
                return sizes
            out[:SIZE] += by  # what follows is padding
            return torch.stack([out.abs().max(), (out - args[1]).abs().max()])

        monkeypatch.setattr(SecantHistory, "extrapolate_", extrapolate)

    return displace


def step(training: Training) -> None:
    training.optimizer.step(training.closure)


def poisoned_step(training: Training, value: float = NAN) -> None:
    """A step whose closure makes a gradient with one bad entry."""

    def closure() -> Tensor:
        loss = training.closure()
        training.parameters[2].grad[0, 1] = value
        return loss * value

    training.optimizer.step(closure)


def poisoned_step_without_closure(training: Training, value: float = NAN) -> None:
    training.closure()
    training.parameters[2].grad[0, 1] = value
    training.optimizer.step()


def before_the_first(
    make: MakeOptimizer = sgd, dtype: torch.dtype = SINGLE, **extra: Any
) -> Training:
    training = Training(make, replace(RARE, **extra), dtype)
    as_if_exact(training.optimizer)
    training.run(FIRST, lambda: step(training))
    assert training.accelerator.stats.extrapolations == 0
    assert usable_rows(training) == 3
    return training


# Not with Adam: the length of its steps tells little, so its residual seldom objects.
@pytest.mark.parametrize("make", [sgd, momentum], ids=["sgd", "momentum"])
@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE, BFLOAT, HALF], ids=str)
def test_the_next_residual_rejects_a_far_extrapolation(
    make: MakeOptimizer, dtype: torch.dtype, land: Land
) -> None:
    training = before_the_first(make, dtype)
    (plain,) = plain_twin(training, make).run(1)
    land(FAR)
    step(training)
    assert (training.point() - plain).min() > FAR / 2
    step(training)
    assert torch.equal(training.point(), plain)
    assert training.accelerator.stats.rejected == {"residual": 1}


@optimizers
@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE, BFLOAT, HALF], ids=str)
def test_a_worse_loss_rejects_a_far_extrapolation_at_once(
    make: MakeOptimizer, dtype: torch.dtype, land: Land
) -> None:
    training = before_the_first(make, dtype, safeguard="loss")
    twin = plain_twin(training, make)
    plain = twin.run(3)
    land(FAR)
    assert torch.equal(training.run(3, lambda: step(training)), plain)
    assert training.accelerator.stats.rejected == {"loss": 1}
    assert same(training.optimizer.state_dict(), twin.optimizer.state_dict())


@pytest.mark.parametrize("safeguard", ["residual", "loss", None])
@pytest.mark.parametrize(
    ("dtype", "by"),
    [
        *[(dtype, by) for dtype in (DOUBLE, SINGLE, BFLOAT, HALF) for by in (NAN, INF, -INF)],
        *[(HALF, 1e5), (HALF, -1e5), (BFLOAT, 3.4e38), (BFLOAT, -3.4e38)],
    ],
    ids=str,
)
def test_points_that_the_parameters_cannot_hold_are_never_entered(
    dtype: torch.dtype, by: float, safeguard: str | None, land: Land
) -> None:
    training = before_the_first(adam, dtype, safeguard=safeguard)
    plain = plain_twin(training, adam).run(PERIOD)
    land(by)
    assert torch.equal(training.run(PERIOD, lambda: step(training)), plain)
    assert training.accelerator.stats.rejected == {"nonfinite": 1}
    assert training.accelerator.stats.extrapolations == 1


@pytest.mark.parametrize(
    ("value", "fits"), [(65504.0, True), (-65504.0, True), (65505.0, False), (-65505.0, False)]
)
def test_an_extrapolation_reaches_as_far_as_the_parameters_do(
    value: float, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = before_the_first(dtype=HALF, safeguard=None)
    (plain,) = plain_twin(training, sgd).run(1)
    honest = SecantHistory.extrapolate_

    def extrapolate(self: SecantHistory, out: Tensor, *args: Any) -> Tensor:
        honest(self, out, *args)
        out[SIZE - 1] = value
        return torch.stack([out.abs().max(), (out - args[1]).abs().max()])

    monkeypatch.setattr(SecantHistory, "extrapolate_", extrapolate)
    step(training)
    stats = training.accelerator.stats
    assert (stats.accepted, stats.rejected["nonfinite"]) == (int(fits), int(not fits))
    assert training.point()[-1] == (value if fits else plain[-1])


@pytest.mark.parametrize("factor", [NAN, INF, 1e300])
def test_useless_coefficients_give_the_plain_step(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = before_the_first(safeguard=None)
    plain = plain_twin(training, sgd).run(PERIOD)
    honest = SecantHistory.solve

    def solve(history: SecantHistory, residual: Tensor) -> Any:
        solution = honest(history, residual)
        return solution._replace(gamma=solution.gamma * factor)

    with monkeypatch.context() as patch:
        patch.setattr(SecantHistory, "solve", solve)
        assert torch.equal(training.run(PERIOD), plain)
    assert training.accelerator.stats.rejected == {"nonfinite": 1}
    training.run(PERIOD)
    stats = training.accelerator.stats
    assert (stats.accepted, stats.pairs, stats.skipped) == (1, FIRST + 2 * PERIOD, {})


@optimizers
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("bad", [poisoned_step, poisoned_step_without_closure])
def test_the_base_optimizer_never_sees_a_bad_gradient_at_an_extrapolated_point(
    make: MakeOptimizer, value: float, bad: Callable[[Training, float], None]
) -> None:
    training = before_the_first(make)
    twin = plain_twin(training, make)
    plain = twin.run(1)
    step(training)
    assert training.accelerator.pending
    state = copy.deepcopy(training.optimizer.state_dict())
    assert same(state, twin.optimizer.state_dict())
    assert not torch.equal(training.point(), plain[0])
    bad(training, value)
    assert torch.equal(training.point(), plain[0])
    assert same(training.optimizer.state_dict(), state)
    assert training.accelerator.stats.rejected == {"nonfinite": 1}
    gradient = training.parameters[2].grad[0, 1]  # it is given back as it was
    torch.testing.assert_close(gradient.item(), value, equal_nan=True)
    assert torch.equal(training.run(2, lambda: step(training)), twin.run(2))
    assert same(training.optimizer.state_dict(), twin.optimizer.state_dict())


def test_a_bad_sparse_gradient_at_an_extrapolated_point_is_not_used_either() -> None:
    table = nn.Embedding(8, 3, sparse=True, _weight=torch.linspace(-1, 1, 24).view(8, 3))
    optimizer = accelerate(SparseAdam(list(table.parameters()), lr=0.05), RARE)

    def train(rows: list[int], factor: float = 1.0) -> Tensor:
        optimizer.zero_grad()
        (table(torch.tensor(rows)).square().sum() * factor).backward()
        optimizer.step()
        return table.weight.detach().clone()

    for k in range(FIRST):
        train([k, 0, 0, (k + 4) % 8])  # a repeated row makes an uncoalesced gradient
    plain = copy.deepcopy((table, optimizer))
    table, optimizer, (table_, optimizer_) = *plain, (table, optimizer)
    expected = train([1, 2])
    state = optimizer.state_dict()
    table, optimizer = table_, optimizer_
    assert not torch.equal(train([1, 2]), expected)
    assert torch.equal(train([3, 3], NAN), expected)
    assert same(optimizer.state_dict(), state)
    assert get_accelerator(optimizer).stats.rejected == {"nonfinite": 1}


PLANTS: dict[str, tuple[str | None, float, int, Step]] = {
    # safeguard, displacement, steps until the verdict, the step that brings it
    "far, residual": ("residual", FAR, 1, step),
    "bad gradient": ("residual", 0.0, 1, poisoned_step),
    "bad gradient, far": ("residual", FAR, 1, poisoned_step_without_closure),
    "far, loss": ("loss", FAR, 0, step),
    "nan, unguarded": (None, NAN, 0, step),
    "nan, residual": ("residual", NAN, 0, step),
}


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
@pytest.mark.parametrize("window", [2, 5, 20])
@pytest.mark.parametrize("dtype", [SINGLE, BFLOAT], ids=str)
def test_averaging_goes_on_as_if_a_rejected_extrapolation_had_never_been(
    plant: tuple[str | None, float, int, Step], window: int, dtype: torch.dtype, land: Land
) -> None:
    safeguard, by, delay, verdict = plant
    average = Averaging(window)
    training = before_the_first(sgd, dtype, safeguard=safeguard, average=average)
    calm = Training(sgd, Anderson(history_depth=0, average=average), dtype)
    calm.run(FIRST + 1)
    land(by)
    step(training)
    if delay:
        assert not torch.equal(training.point(), calm.point())
        verdict(training)
    assert training.accelerator.stats.rejected.total() == 1
    for _ in range(PERIOD - delay):
        assert torch.equal(training.point(), calm.point())
        windows = [x.accelerator.iteration.window for x in (training, calm)]
        known = int(windows[0].verdicts.now.known)
        assert known == int(windows[1].verdicts.now.known)
        assert same(*(x.iterates[-known:] for x in windows))
        step(training)
        calm.step()


@pytest.mark.parametrize(("safeguard", "by"), [("residual", FAR), ("loss", FAR), (None, NAN)])
def test_two_rejections_in_a_row_clear_the_history(
    safeguard: str | None, by: float, land: Land
) -> None:
    training = before_the_first(safeguard=safeguard)
    accelerator, when = training.accelerator, training.accelerator.iteration.verdicts.when
    delay = safeguard == "residual"
    land(by)
    training.run(1 + delay, lambda: step(training))
    assert (accelerator.stats.rejected.total(), usable_rows(training)) == (1, 3)
    assert when.paired
    training.run(PERIOD, lambda: step(training))
    # The step that brings the verdict has stored its own pair before; that goes as well.
    assert (accelerator.stats.rejected.total(), usable_rows(training)) == (2, 0)
    assert not when.paired
    assert accelerator.stats.restarts == {"rejections": 1}
    step(training)
    assert (usable_rows(training), bool(when.paired)) == (0, True)
    step(training)
    assert usable_rows(training) == 1


def test_an_acceptance_between_two_rejected_ones_keeps_the_history(land: Land) -> None:
    training = before_the_first()
    for by in (FAR, 0.0, FAR, 0.0, FAR):
        land(by)
        training.run(PERIOD)
    stats = training.accelerator.stats
    assert stats.rejected.total() == 3
    assert stats.accepted == 2
    assert stats.restarts == {}


def test_rejections_of_different_causes_count_together(land: Land) -> None:
    training = before_the_first()
    for by in (FAR, NAN):
        land(by)
        training.run(PERIOD)
    assert training.accelerator.stats.rejected == {"residual": 1, "nonfinite": 1}
    assert training.accelerator.stats.restarts == {"rejections": 1}


@pytest.mark.parametrize(
    ("norm", "stands"), [(0.9, True), (1.0, False), (1.1, False), (NAN, False), (INF, False)]
)
def test_an_extrapolation_stands_on_a_smaller_residual_only(norm: float, stands: bool) -> None:
    verdicts = ops.Verdicts.on(torch.device("cpu"))
    verdicts.now.norm.fill_(1)
    verdicts.when.pending.fill_(True)
    figures = torch.tensor([1, norm**2, 0], dtype=torch.float64)
    ops.judge_residual_(*verdicts.tensors, figures, None, True, True, False)
    assert (verdicts.number.accepted, bool(verdicts.when.rejected)) == (stands, not stands)


PARAMETER = nn.Parameter(torch.ones(3))


def unexpected() -> float:
    raise AssertionError("losses are compared though another test has failed")


def candidate(
    losses: Iterator[float] | None = None,
    way: float = 1.0,
    slope: float = -1.0,
    largest: float = 2.0,
) -> Candidate:
    """The point (2, 2, 2) beside the plain one, (1, 1, 1), where the parameter is."""
    layout = Layout.build([{"params": [PARAMETER]}], "all", None)
    verdicts = ops.Verdicts.on(layout.device)
    verdicts.when.ready.fill_(True)
    plain, point = layout.vector().fill_(1), layout.vector().fill_(2)
    layout.write(plain)
    evaluate = unexpected if losses is None else lambda: next(losses)
    return Candidate(
        layout,
        verdicts,
        plain,
        point,
        torch.tensor(largest),
        torch.tensor(True),
        evaluate,
        torch.tensor(slope),
        (torch.tensor(way), torch.tensor(0.5, dtype=torch.float64)),
    )


@pytest.mark.parametrize(
    ("plain", "extrapolated", "stands"),
    [
        (1.0, 0.9, True),
        (1.0, 1.0, False),
        (1.0, 1.1, False),
        (1.0, NAN, False),
        (NAN, 0.0, False),
        (NAN, NAN, False),
        (1.0, -INF, False),
        (INF, 1.0, True),
    ],
)
@torch.no_grad()
def test_an_extrapolation_stands_on_a_smaller_finite_loss_only(
    plain: float, extrapolated: float, stands: bool
) -> None:
    where: list[float] = []
    losses = (where.append(PARAMETER[0].item()) or x for x in (plain, extrapolated))
    it = candidate(losses)
    arm(it, ("loss",), guarded=False, patient=True)
    assert where == [1, 2]
    assert PARAMETER.tolist() == [1, 1, 1]  # the iteration moves them
    assert it.verdicts.when.accepted == stands
    assert it.verdicts.number.rejected_loss == (not stands)


TESTS: dict[str, tuple[str, list[tuple[float, bool]]]] = {
    "limits": ("way", [(4.9, True), (5.1, False), (NAN, False)]),
    "descent": ("slope", [(-1e-30, True), (0.0, False), (1.0, False), (NAN, False)]),
    "nonfinite": ("largest", [(3e38, True), (INF, False), (NAN, False)]),
}


@pytest.mark.parametrize(
    ("name", "figure", "value", "stands"),
    [(name, figure, *case) for name, (figure, cases) in TESTS.items() for case in cases],
)
def test_tests_hold_at_their_bounds_and_the_first_that_fails_is_counted(
    name: str, figure: str, value: float, stands: bool
) -> None:
    it = candidate(iter([2.0, 1.0]) if stands else None, **{figure: value})  # loss is asked last
    arm(it, ("loss", "limits", "descent"), guarded=True, patient=True)
    verdicts = it.verdicts
    assert bool(verdicts.when.accepted) == bool(verdicts.when.pending) == stands
    assert verdicts.number.extrapolations == 1
    rejected = {x: int(y) for x, y in vars(verdicts.number).items() if x.startswith("rejected")}
    assert {x for x, y in rejected.items() if y} == (set() if stands else {f"rejected_{name}"})


@pytest.mark.parametrize("missing", ["ready", "possible"])
def test_what_is_no_extrapolation_is_neither_counted_nor_tested(missing: str) -> None:
    it = candidate(way=NAN)
    (it.verdicts.when.ready if missing == "ready" else it.possible).fill_(False)
    arm(it, ("loss", "limits", "descent"), guarded=True, patient=True)
    assert not it.verdicts.counts.any()
    assert not it.verdicts.when.accepted


def test_long_ways_are_not_gone_under_limits_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aadl_ext.safeguards.MAX_WAY", 1e-9)
    limited = Training(sgd, replace(JUMPY, safeguard="limits"))
    assert torch.equal(limited.run(16), Training(sgd, None).run(16))
    stats = limited.accelerator.stats
    assert stats.rejected["limits"] == stats.extrapolations > 3
    free = Training(sgd, replace(JUMPY, safeguard=None))
    free.run(16)
    assert free.accelerator.stats.rejected == {}


@pytest.mark.parametrize("rates", [(0.05, 0.05), (0.05, 0.1)], ids=["one rate", "two rates"])
def test_a_saddle_is_left_as_fast_as_without_acceleration(rates: tuple[float, float]) -> None:
    def final(options: Anderson | None) -> tuple[float, Any]:
        x, y = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([1e-3]))
        groups = [{"params": [p], "lr": lr} for p, lr in zip((x, y), rates, strict=True)]
        optimizer = torch.optim.SGD(groups)
        if options is not None:
            accelerate(optimizer, options)
        for _ in range(100):
            optimizer.zero_grad()
            loss = (torch.tensor([1.0, 0.3]) * x**2).sum() - 0.5 * (1 - (-(y**2)).exp()).sum()
            loss.backward()
            optimizer.step()
        return loss.item(), None if options is None else get_accelerator(optimizer).stats

    plain, _ = final(None)
    often = Anderson(frequency=1, relaxation=1.0)
    trapped, _ = final(replace(often, safeguard="residual"))
    escaped, stats = final(often)
    assert trapped > -1e-3  # the saddle is at 0
    assert stats.rejected["descent"]
    assert escaped <= plain < -3e-3


@pytest.mark.parametrize("in_closure", [False, True], ids=["plain", "closure"])
def test_a_point_beyond_the_minimum_is_left_before_its_gradient_is_used(in_closure: bool) -> None:
    """The slope of sqrt(1 + w^2) is nearly the same from afar: secants lead far beyond 0."""

    def farthest(safeguard: str) -> tuple[float, int]:
        w = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
        options = Anderson(frequency=1, relaxation=1.0, safeguard=safeguard)
        optimizer = accelerate(torch.optim.SGD([w], lr=0.5, momentum=0.5), options)

        def closure() -> float:
            optimizer.zero_grad()
            loss = (1 + w**2).sqrt().sum()
            loss.backward()
            return loss.item()

        most, left, base, buffer = 0.0, 0, 0.0, torch.zeros(1)
        for _ in range(30):
            start, last = w.item(), buffer
            beyond = get_accelerator(optimizer).pending and start * (start - base) > 0
            if in_closure:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
            buffer = optimizer.state[w]["momentum_buffer"].clone()
            if beyond and safeguard == "descent":
                left += 1
                assert torch.equal(buffer, last)
                assert w.item() == base
            base, most = start - 0.5 * buffer.item(), max(most, abs(start))
        return most, left

    most, left = farthest("descent")
    assert left > 1
    assert most <= 3
    assert farthest("residual")[0] > 30


@pytest.mark.parametrize("safeguard", ["residual", "loss", None])
@pytest.mark.parametrize("solver", ["gram", "tsqr"])
@pytest.mark.parametrize("average", [False, True])
def test_a_solution_of_rank_0_is_no_extrapolation(
    solver: str, average: bool, safeguard: str | None
) -> None:
    # Where the gradient is the same everywhere, all differences of residuals are zero.
    options = replace(JUMPY, safeguard=safeguard, solver=solver, frequency=1, average=average)
    still = replace(options, history_depth=0)
    points = []
    for method in (options, still):
        w = nn.Parameter(torch.zeros(4))
        optimizer = accelerate(torch.optim.SGD([w], lr=0.25), method)

        def closure(w: nn.Parameter = w) -> float:
            w.grad = torch.tensor([1.0, 2.0, 4.0, 8.0])
            return float(w.detach() @ w.grad)

        for _ in range(12):
            optimizer.step(closure)
            assert not get_accelerator(optimizer).pending
        points.append(w.detach())
        stats = get_accelerator(optimizer).stats
        assert (stats.extrapolations, stats.accepted, stats.rejected) == (0, 0, {})
        assert stats.restarts == {}
        if method is options:
            assert stats.rank is not None
            assert not stats.rank.any()
    assert torch.equal(*points)


def test_losses_are_asked_for_only_where_there_is_something_to_compare() -> None:
    Training(sgd, Anderson(history_depth=0, average=True, safeguard="loss")).run(3)
    with pytest.raises(RuntimeError, match="without a closure"):
        Training(sgd, replace(JUMPY, safeguard="loss")).run(3)
