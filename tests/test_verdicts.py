"""Steps on a device wait for nothing, and take the same way as on the CPU, where all is seen."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import aadl_ext.decisions
import aadl_ext.history
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from training import AVERAGED, JUMPY, NEWTON, MakeOptimizer, Training, adam, same, sgd

from aadl_ext import accelerate, get_accelerator

EACH: dict[str, Any] = {**JUMPY, "frequency": 1, "wait_iterations": 3}
TYPE_II: dict[str, Any] = {**NEWTON, "acceleration_type": "anderson", "residual": "gradient"}
OPTIONS: dict[str, dict[str, Any]] = {
    "anderson": JUMPY,
    "at each step": EACH,
    "paper's mixing": {**JUMPY, "mixing": "paper"},
    "seldom stored": {**JUMPY, "store_each_nth": 3, "frequency": 4},
    "average": AVERAGED,
    "average, at each step": {**EACH, "average": True, "average_window": 3},
    "limits": {**JUMPY, "safeguard": ("residual", "limits"), "coefficient_limit": 0.7},
    "momentum scaled": {**JUMPY, "momentum": "scale"},
    "momentum reset": {**AVERAGED, "momentum": "reset"},
    "tsqr": {**JUMPY, "solver": "tsqr"},
    "a system for each tensor": {**AVERAGED, "scope": "tensor"},
    "bfloat16 rows": {**JUMPY, "history_dtype": torch.bfloat16},
    "unguarded": {**AVERAGED, "safeguard": None},
    "newton": NEWTON,
    "newton, few rows": {**NEWTON, "noise_rows": 0, "momentum": "scale", "scope": "tensor"},
    "type II": TYPE_II,
}
BLOCKS = ["newton", "newton, few rows", "type II"]
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
STEPS = 60


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let all later decisions stay in tensors, as on a device, though they are on the CPU."""

    def blind() -> None:
        for module in (aadl_ext.decisions, aadl_ext.history):
            monkeypatch.setattr(module, "readable", lambda tensor: False)

    return blind


class Waits(TorchDispatchMode):
    """Raises where something is copied between devices and the host waits for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {x.device for x in args if isinstance(x, Tensor) and x.ndim > 0}
        if func.overloadpacket is torch.ops.aten._to_copy and isinstance(result, Tensor):
            devices.add(result.device)
        blocking = not (kwargs or {}).get("non_blocking", False)
        assert len(devices) < 2 or not blocking, f"{func} between {devices}"
        return result


@every_option
def test_a_step_waits_for_nothing(options: dict[str, Any]) -> None:
    with Waits():  # on a device without data, where reading raises
        shapes = [(5, 3), (7,), (2, 2, 2)]
        parameters = [nn.Parameter(torch.ones(shape, device="meta")) for shape in shapes]
        optimizer = adam(parameters)
        accelerate(optimizer, **options)
        accelerator, pending = get_accelerator(optimizer), 0
        for step in range(24):
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            optimizer.param_groups[0]["lr"] = 0.1 if step < 12 else 0.05
            optimizer.step()
            pending += accelerator.jump_pending
        assert accelerator.k == 24
        assert pending > 3 or "residual" not in accelerator.options.safeguards
        with pytest.raises(RuntimeError, match="meta tensors"):  # so the test can fail
            _ = accelerator.stats


LAST_BAD = 28


def shaken(training: Training, step: int) -> Tensor:
    """The point after a step, with what training code and bad luck do now and then."""
    if step == 23:
        with torch.no_grad():
            training.parameters[0].mul_(1.01)
    if step >= 18:
        training.optimizer.param_groups[0]["lr"] *= 0.97
    if step == 19:
        training.accelerator.take_back()
    good = copy.deepcopy((training.model.state_dict(), training.optimizer.state_dict()))
    training.closure()
    if step in (27, LAST_BAD):  # a jump is pending at one of them, mostly
        training.parameters[2].grad[0, 1] = math.nan
    training.optimizer.step()
    if not training.point().isfinite().all():  # a NaN gradient of a plain step
        training.model.load_state_dict(good[0])
        training.optimizer.load_state_dict(good[1])
    return training.point()


def counts(training: Training) -> dict[str, Any]:
    return {**training.accelerator.stats.state_dict(), "bytes_held": 0}


@every_option
def test_decisions_in_tensors_are_those_of_the_host(
    options: dict[str, Any], unseen: Callable[[], None]
) -> None:
    # A device drops the whole block in which a jump is taken back, the host what there is of it.
    options = {**options, "gradient_guard": 1e9}
    seen = Training(sgd, options, torch.float64)
    way = seen.run(STEPS)
    unseen()
    blind = Training(sgd, options, torch.float64)
    error = (blind.run(STEPS) - way).abs().max()
    # The rows of a cleared history lie at other places.
    assert error == 0 or (seen.accelerator.stats.restarts["rejections"] and error < 1e-9)
    assert blind.accelerator.stats.jumps > 3
    assert counts(blind) == counts(seen)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in BLOCKS])
def test_bad_steps_and_moves_are_decided_as_on_the_host(
    name: str, unseen: Callable[[], None]
) -> None:
    seen = Training(sgd, OPTIONS[name], torch.float64)
    way = [shaken(seen, step) for step in range(LAST_BAD + 1)]
    unseen()
    blind = Training(sgd, OPTIONS[name], torch.float64)
    for step, point in enumerate(way):
        torch.testing.assert_close(shaken(blind, step), point, rtol=1e-9, atol=1e-11)
    stats = blind.accelerator.stats
    assert stats.skipped["nonfinite"] + stats.rejected["nonfinite"] > 0
    assert stats.restarts["moved_outside"] > 0 or "average" not in name
    assert counts(blind) == counts(seen)
    jumps = stats.jumps
    assert blind.run(STEPS).isfinite().all()  # useless rows take their places in the ring
    assert blind.accelerator.stats.jumps > jumps


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("make", [sgd, adam], ids=["sgd", "adam"])
def test_a_jump_to_bad_gradients_is_taken_back_unseen(
    make: MakeOptimizer, name: str, unseen: Callable[[], None]
) -> None:
    unseen()
    training = Training(make, {**OPTIONS[name], "gradient_guard": 1e9}, torch.float64)
    while not training.accelerator.jump_pending:
        training.step()
    accelerator = training.accelerator
    plain, trust = accelerator.jump.plain[: len(training.point())].clone(), accelerator.trust
    assert not torch.equal(training.point(), plain)
    training.closure()
    training.parameters[2].grad[0, 1] = math.nan
    training.optimizer.step()
    assert torch.equal(training.point(), plain)
    assert float(accelerator.trust) == trust / 4
    assert accelerator.stats.rejected == {"nonfinite": 1}
    jumps = accelerator.stats.jumps
    training.run(STEPS)
    assert training.point().isfinite().all()
    assert accelerator.stats.jumps > jumps
    assert accelerator.stats.skipped.total() == 0


def test_a_spoiled_block_is_dropped_wherever_it_is(unseen: Callable[[], None]) -> None:
    unseen()
    for when in (0, 1, 2, 5, 9):
        training = Training(sgd, {**NEWTON, "gradient_guard": 1e9}, torch.float64)
        for step in range(12):
            training.closure()
            before = training.point()
            if step == when:
                training.parameters[2].grad[0, 1] = math.nan
            training.optimizer.step()
            if step == when:
                nn.utils.vector_to_parameters(before, training.parameters)
            rows = training.accelerator.history
            assert all(x.isfinite().all() for x in (*rows.tensors[3:],)), (when, step)
        assert training.accelerator.stats.pairs == 5


def test_a_resumed_run_of_unseen_decisions_is_the_uninterrupted_one(
    unseen: Callable[[], None],
) -> None:
    unseen()
    for options in (AVERAGED, {**NEWTON, "adapt_blocks": True}):
        training = Training(sgd, options)
        training.run(21)
        saved = copy.deepcopy((training.model.state_dict(), training.accelerator.state_dict()))
        way = training.run(STEPS)
        resumed = Training(sgd, options)
        resumed.model.load_state_dict(saved[0])
        resumed.accelerator.load_state_dict(saved[1])
        assert torch.equal(resumed.run(STEPS), way)
        assert same(counts(resumed), counts(training))
