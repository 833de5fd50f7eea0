"""A step waits for nothing: verdicts in 0-dim tensors are those in Python's numbers."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from training import AVERAGED, JUMPY, NEWTON, MakeOptimizer, Method, Training, adam, same, sgd, some

from aadl_ext import Averaging, Storage, accelerate, get_accelerator

EACH = replace(JUMPY, frequency=1, wait_iterations=3)
OPTIONS: dict[str, Method] = {
    "anderson": JUMPY,
    "at each step": EACH,
    "paper's mixing": replace(JUMPY, mixing="paper"),
    "seldom stored": replace(JUMPY, store_each_nth=3, frequency=4),
    "average": AVERAGED,
    "average, at each step": replace(EACH, average=Averaging(3)),
    "limits": replace(JUMPY, safeguard=("residual", "limits")),
    "tsqr": replace(JUMPY, solver="tsqr"),
    "a system for each tensor": replace(AVERAGED, scope="tensor"),
    "bfloat16 rows": replace(JUMPY, storage=Storage(torch.bfloat16)),
    "unguarded": replace(AVERAGED, safeguard=None),
    "newton": NEWTON,
    "newton, often accepted": replace(NEWTON, max_gradient_growth=1e9),
    "newton, few rows": replace(NEWTON, noise_samples=0, scope="tensor"),
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
STEPS = 60
# Roots and the exponential function of torch are not always rounded as Python's.
ROUNDED: dict[str, Any] = {"rtol": 1e-15, "atol": 0, "equal_nan": True}


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let all later verdicts stay in tensors, as on a device, though they are on the CPU."""

    def blind() -> None:
        for name, module in list(sys.modules.items()):
            if name.startswith("aadl_ext.ops.") and hasattr(module, "seen"):
                monkeypatch.setattr(module, "seen", lambda tensor: False)

    return blind


# ---- no step reads -------------------------------------------------------------------------


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
def test_a_step_waits_for_nothing(options: Method) -> None:
    with Waits():  # on a device without data, where reading raises
        shapes = [(5, 3), (7,), (2, 2, 2)]
        parameters = [nn.Parameter(torch.ones(shape, device="meta")) for shape in shapes]
        optimizer = adam(parameters)
        accelerate(optimizer, options)
        accelerator, pending = get_accelerator(optimizer), 0
        for step in range(24):
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            optimizer.param_groups[0]["lr"] = 0.1 if step < 12 else 0.05
            optimizer.step()
            pending += accelerator.iteration.pending
        assert accelerator.iteration.k == 24
        assert pending > 3 or not options.safeguard
        with pytest.raises(RuntimeError, match="meta tensor"):  # so the test can fail
            _ = accelerator.stats


# ---- whole trainings -----------------------------------------------------------------------


def counts(training: Training) -> dict[str, Any]:
    plain: dict[str, Any] = training.accelerator.stats.as_dict()
    return plain


@every_option
def test_a_training_with_verdicts_in_tensors_is_the_same(
    options: Method, unseen: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aadl_ext.safeguards.MAX_WAY", 1.0)  # else nothing is rejected
    seen = Training(sgd, options, torch.float64)
    way = seen.run(STEPS)
    unseen()
    blind = Training(sgd, options, torch.float64)
    assert torch.equal(blind.run(STEPS), way)
    assert blind.accelerator.stats.extrapolations > 3
    assert same(counts(blind), counts(seen))
    control = [x.accelerator.iteration.verdicts.control for x in (blind, seen)]
    torch.testing.assert_close(*control, **ROUNDED)


LAST_BAD = 28


def shaken(training: Training, step: int) -> Tensor:
    """The point after a step, with what training code and bad luck do now and then."""
    if step == 23:
        with torch.no_grad():
            training.parameters[0].mul_(1.01)
    if step >= 18:
        training.optimizer.param_groups[0]["lr"] *= 0.97
    if step == 19:
        training.accelerator.roll_back()
    good = copy.deepcopy((training.model.state_dict(), training.optimizer.state_dict()))
    training.closure()
    if step in (27, LAST_BAD):  # an extrapolation is pending at one of them, mostly
        training.parameters[2].grad[0, 1] = math.nan
    training.optimizer.step()
    if not training.point().isfinite().all():  # a NaN gradient of a plain step
        training.model.load_state_dict(good[0])
        training.optimizer.load_state_dict(good[1])
    return training.point()


@every_option
@pytest.mark.parametrize("make", [*some(sgd), adam], ids=["sgd", "adam"])
def test_bad_steps_and_moves_are_judged_the_same(
    make: MakeOptimizer, options: Method, unseen: Callable[[], None]
) -> None:
    seen = Training(make, options, torch.float64)
    way = [shaken(seen, step) for step in range(LAST_BAD + 1)]
    unseen()
    blind = Training(make, options, torch.float64)
    for step, point in enumerate(way):
        assert torch.equal(shaken(blind, step), point)
    stats = blind.accelerator.stats
    assert stats.skipped["nonfinite"] + stats.rejected["nonfinite"] > 0
    assert stats.restarts["moved_outside"] > 0 or options is not AVERAGED
    assert same(counts(blind), counts(seen))
    assert blind.run(STEPS).isfinite().all()  # useless rows take their places in the ring
    assert blind.accelerator.stats.extrapolations > stats.extrapolations
