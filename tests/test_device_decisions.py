"""Steps on a device wait for nothing, and take the same way as on the CPU, where all is seen."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from training import AVERAGED, JUMPY, NEWTON, MakeOptimizer, Training, adam, momentum, sgd

import aadl_ext.decisions
import aadl_ext.history
import aadl_ext.machine
from aadl_ext import accelerate, get_accelerator
from aadl_ext.history import SecantHistory

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
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
STEPS = 60


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let all later decisions stay in tensors, as on a device, though they are on the CPU."""

    def blind() -> None:
        for module in (aadl_ext.decisions, aadl_ext.history, aadl_ext.machine):
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
@pytest.mark.parametrize("make", [sgd, momentum, adam], ids=["sgd", "momentum", "adam"])
def test_a_step_waits_for_nothing(make: MakeOptimizer, options: dict[str, Any]) -> None:
    with Waits():  # on a device without data, where reading raises
        shapes = [(5, 3), (7,), (2, 2, 2)]
        parameters = [nn.Parameter(torch.ones(shape, device="meta")) for shape in shapes]
        optimizer = make(parameters)
        accelerate(optimizer, **options)
        accelerator, pending = get_accelerator(optimizer), 0
        for step in range(STEPS):
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            optimizer.param_groups[0]["lr"] = 0.1 if step < STEPS // 2 else 0.05
            optimizer.step()
            pending += accelerator.jump_pending
        assert accelerator.k == STEPS
        assert pending > 3 or "residual" not in accelerator.options.safeguards
        with pytest.raises(RuntimeError, match="meta tensors"):  # so the test can fail
            _ = accelerator.stats


def shaken(training: Training, step: int) -> None:
    """What training code and bad luck do now and then."""
    if step == 23:
        with torch.no_grad():
            training.parameters[0].mul_(1.01)
    if step >= 30:
        training.optimizer.param_groups[0]["lr"] *= 0.97
    training.closure()
    if step in (27, 28, 41, 44, 45, 46):  # at some of them a jump is pending
        training.parameters[2].grad[0, 1] = math.nan
    good = copy.deepcopy((training.model.state_dict(), training.optimizer.state_dict()))
    training.optimizer.step()
    if not training.point().isfinite().all():  # a NaN gradient that nobody held back
        training.model.load_state_dict(good[0])
        training.optimizer.load_state_dict(good[1])


@every_option
def test_decisions_in_tensors_are_those_of_the_host(
    options: dict[str, Any], unseen: Callable[[], None]
) -> None:
    seen = Training(sgd, options, torch.float64)
    ways = [seen.run(STEPS)]
    unseen()
    blind = Training(sgd, options, torch.float64)
    ways.append(blind.run(STEPS))
    assert blind.accelerator.stats.jumps > 3
    torch.testing.assert_close(ways[1], ways[0], rtol=1e-9, atol=1e-12)
    one, other = (t.accelerator.stats.as_dict() for t in (seen, blind))
    for name in ("steps", "pairs", "jumps", "accepted", "shortened", "averaged", "rejected"):
        assert other[name] == one[name], name
