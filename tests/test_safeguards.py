"""A bad jump is taken back without a trace, bit for bit, however bad it is."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from aadl_ext.flat import Layout
from aadl_ext.history import SecantHistory
from torch import Tensor, nn
from torch.optim import SparseAdam
from training import JUMPY, MakeOptimizer, Training, adam, momentum, plain_twin, same, sgd

from aadl_ext import accelerate, get_accelerator
from aadl_ext.safeguards import Jump, loss_decreases, residual_decreased

Land = Callable[[float], None]
Step = Callable[[Training], None]
NAN, INF = math.nan, math.inf
SIZE = Training().point().numel()
FAR = 30.0  # a displacement that every dtype can hold, and that no safeguard likes
SINGLE, HALF, BFLOAT, DOUBLE = torch.float32, torch.float16, torch.bfloat16, torch.float64
optimizers = pytest.mark.parametrize("make", [sgd, momentum, adam], ids=["sgd", "momentum", "adam"])
# Jumps are due at k = 8, 12, 16 and so on.
FIRST, PERIOD = 8, 4
RARE: dict[str, Any] = {**JUMPY, "frequency": PERIOD, "wait_iterations": FIRST - 1}


@pytest.fixture
def land(monkeypatch: pytest.MonkeyPatch) -> Land:
    """``land(x)`` displaces all jumps from now on by x; ``land(0)`` lets them be."""
    honest = SecantHistory.extrapolate_

    def displace(by: float) -> None:
        def extrapolate(self: SecantHistory, point: Tensor, *args: Any) -> Tensor:
            honest(self, point, *args)
            point[:SIZE] += by  # what follows is padding
            return float(point.abs().max())

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


def before_the_first_jump(
    make: MakeOptimizer = sgd, dtype: torch.dtype = SINGLE, **extra: Any
) -> Training:
    training = Training(make, {**RARE, **extra}, dtype)
    training.run(FIRST, lambda: step(training))
    assert training.accelerator.stats.jumps == 0
    assert training.accelerator.history.count == 3
    return training


# Not with Adam: the length of its steps tells little, so its residual seldom objects.
@pytest.mark.parametrize("make", [sgd, momentum], ids=["sgd", "momentum"])
@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE, BFLOAT, HALF], ids=str)
def test_the_next_residual_takes_a_far_jump_back(
    make: MakeOptimizer, dtype: torch.dtype, land: Land
) -> None:
    training = before_the_first_jump(make, dtype)
    (plain,) = plain_twin(training, make).run(1)
    land(FAR)
    step(training)
    assert (training.point() - plain).min() > FAR / 2
    step(training)
    assert torch.equal(training.point(), plain)
    assert training.accelerator.stats.rejected == {"residual": 1}


@optimizers
@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE, BFLOAT, HALF], ids=str)
def test_a_worse_loss_takes_a_far_jump_back_at_once(
    make: MakeOptimizer, dtype: torch.dtype, land: Land
) -> None:
    training = before_the_first_jump(make, dtype, safeguard="loss")
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
    training = before_the_first_jump(adam, dtype, safeguard=safeguard)
    plain = plain_twin(training, adam).run(PERIOD)
    land(by)
    assert torch.equal(training.run(PERIOD, lambda: step(training)), plain)
    assert training.accelerator.stats.rejected == {"nonfinite": 1}
    assert training.accelerator.stats.jumps == 1


@pytest.mark.parametrize(
    ("value", "fits"), [(65504.0, True), (-65504.0, True), (65505.0, False), (-65505.0, False)]
)
def test_a_jump_reaches_as_far_as_the_parameters_do(
    value: float, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = before_the_first_jump(dtype=HALF, safeguard=None)
    (plain,) = plain_twin(training, sgd).run(1)
    honest = SecantHistory.extrapolate_

    def extrapolate(self: SecantHistory, point: Tensor, *args: Any) -> Tensor:
        largest = honest(self, point, *args)
        point[SIZE - 1] = value
        return max(largest, abs(float(point[SIZE - 1])))

    monkeypatch.setattr(SecantHistory, "extrapolate_", extrapolate)
    step(training)
    stats = training.accelerator.stats
    assert (stats.accepted, stats.rejected["nonfinite"]) == (int(fits), int(not fits))
    assert training.point()[-1] == (value if fits else plain[-1])


@pytest.mark.parametrize("factor", [NAN, INF, 1e300])
def test_useless_coefficients_give_the_plain_step(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = before_the_first_jump(safeguard=None)
    plain = plain_twin(training, sgd).run(PERIOD)
    honest = SecantHistory.solve

    def solve(history: SecantHistory) -> Any:
        solution = honest(history)
        return solution._replace(gamma=solution.gamma * factor)

    with monkeypatch.context() as patch:
        patch.setattr(SecantHistory, "solve", solve)
        assert torch.equal(training.run(PERIOD), plain)
    stats = training.accelerator.stats
    assert stats.rejected == {"nonfinite": 1}
    training.run(PERIOD)
    assert (stats.accepted, stats.pairs, stats.skipped) == (1, FIRST + 2 * PERIOD, {})


@optimizers
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("bad", [poisoned_step, poisoned_step_without_closure])
def test_the_base_optimizer_never_sees_a_bad_gradient_at_a_jump(
    make: MakeOptimizer, value: float, bad: Callable[[Training, float], None]
) -> None:
    training = before_the_first_jump(make)
    twin = plain_twin(training, make)
    plain = twin.run(1)
    step(training)
    assert training.accelerator.jump_pending
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


def test_a_bad_sparse_gradient_at_a_jump_is_held_back_too() -> None:
    table = nn.Embedding(8, 3, sparse=True, _weight=torch.linspace(-1, 1, 24).view(8, 3))
    optimizer = accelerate(SparseAdam(list(table.parameters()), lr=0.05), **RARE)

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
def test_averaging_goes_on_as_if_a_rejected_jump_had_never_been(
    plant: tuple[str | None, float, int, Step], window: int, dtype: torch.dtype, land: Land
) -> None:
    safeguard, by, delay, verdict = plant
    options = {"average": True, "average_window": window}
    training = before_the_first_jump(sgd, dtype, safeguard=safeguard, **options)
    calm = Training(sgd, {"acceleration_type": "identity", **options}, dtype)
    calm.run(FIRST + 1)
    land(by)
    step(training)
    if delay:
        assert not torch.equal(training.point(), calm.point())
        verdict(training)
    assert training.accelerator.stats.rejected.total() == 1
    for _ in range(PERIOD - delay):
        assert torch.equal(training.point(), calm.point())
        assert same(training.accelerator.window.iterates, calm.accelerator.window.iterates)
        step(training)
        calm.step()


@pytest.mark.parametrize(("safeguard", "by"), [("residual", FAR), ("loss", FAR), (None, NAN)])
def test_two_rejections_in_a_row_clear_the_history(
    safeguard: str | None, by: float, land: Land
) -> None:
    training = before_the_first_jump(safeguard=safeguard)
    history, stats = training.accelerator.history, training.accelerator.stats
    delay = safeguard == "residual"
    land(by)
    training.run(1 + delay, lambda: step(training))
    assert (stats.rejected.total(), history.count, history.has_pair) == (1, 3, True)
    training.run(PERIOD, lambda: step(training))
    # The step that brings the verdict has stored its own pair before; that goes as well.
    assert (stats.rejected.total(), history.count, history.has_pair) == (2, 0, False)
    assert stats.restarts == {"rejections": 1}
    step(training)
    assert (history.count, history.has_pair) == (0, True)
    step(training)
    assert history.count == 1


def test_an_accepted_jump_between_two_rejected_ones_keeps_the_history(land: Land) -> None:
    training = before_the_first_jump()
    stats = training.accelerator.stats
    for by in (FAR, 0.0, FAR, 0.0, FAR):
        land(by)
        training.run(PERIOD)
    assert stats.rejected.total() == 3
    assert stats.accepted == 2
    assert stats.restarts == {}


def test_rejections_of_different_causes_count_together(land: Land) -> None:
    training = before_the_first_jump()
    for by in (FAR, NAN):
        land(by)
        training.run(PERIOD)
    assert training.accelerator.stats.rejected == {"residual": 1, "nonfinite": 1}
    assert training.accelerator.stats.restarts == {"rejections": 1}


@pytest.mark.parametrize(
    ("norm", "stands"), [(0.9, True), (1.0, False), (1.1, False), (NAN, False), (INF, False)]
)
def test_a_jump_stands_on_a_smaller_residual_only(norm: float, stands: bool) -> None:
    assert residual_decreased(Jump(torch.zeros(1), 1.0, 1.0, True), norm) == stands


@pytest.mark.parametrize(
    ("plain", "candidate", "stands"),
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
def test_a_jump_stands_on_a_smaller_finite_loss_only(
    plain: float, candidate: float, stands: bool
) -> None:
    parameter = nn.Parameter(torch.full((3,), 1.0))
    layout = Layout.build([{"params": [parameter]}], "all", None)
    points, losses = (torch.full((3,), 1.0), torch.full((3,), 2.0)), iter([plain, candidate])
    with torch.no_grad():
        assert loss_decreases(layout, *points, lambda: next(losses)) == stands
    assert torch.equal(parameter, points[stands])
