"""No mode that a caller has set round a call leaves a trace: the run without it, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from training import AVERAGED, JUMPY, NEWTON, SKETCHED, Method, Training, same, sgd, some

from aadl_ext import Storage, accelerate, get_accelerator, reset_acceleration_history

STEPS = 20
Mode = Callable[[], AbstractContextManager[Any]]


@contextmanager
def default_device(device: str) -> Iterator[None]:
    before = torch.get_default_device()
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(before)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES: dict[str, Mode] = {
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "device": partial(torch.device, "meta"),
    "default device": partial(default_device, "meta"),
    "double": partial(default_dtype, torch.float64),
    "half": partial(default_dtype, torch.float16),
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
}
OPTIONS: dict[str, Method] = {
    "anderson": JUMPY,
    "gram": replace(JUMPY, solver="gram"),
    "average": replace(AVERAGED, storage=Storage(torch.bfloat16)),
    "newton": NEWTON,
    "newton, sketched": SKETCHED,
    "newton, adapted blocks": replace(NEWTON, adaptive_blocks=True, scope="tensor"),
}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
LIKE_OTHERS = ("gram", "newton, adapted blocks")
every_option = pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=[pytest.mark.thorough] * (name in LIKE_OTHERS))
        for name, options in OPTIONS.items()
    ],
)


@cache
def plain(options: Method, steps: int = STEPS) -> tuple[Tensor, dict[str, Any]]:
    """Points and state of a run that knows of no mode."""
    training = Training(sgd, options)
    points = training.run(steps)
    assert training.accelerator.stats.extrapolations > 2
    return points, training.accelerator.state_dict()


def step_in(mode: Mode, training: Training) -> None:
    training.closure()
    with mode():
        training.optimizer.step()


@modes
@every_option
def test_accelerate(mode: Mode, options: Method) -> None:
    training = Training(sgd, None)
    with mode():
        accelerate(training.optimizer, options)
    points, state = plain(options)
    assert torch.equal(training.run(STEPS), points)
    assert same(training.accelerator.state_dict(), state)


@modes
@every_option
@pytest.mark.parametrize("where", ["every", "every other", *some("first", "all but the first")])
def test_step(mode: Mode, options: Method, where: str) -> None:
    training, (points, state) = Training(sgd, options), plain(options)
    within = {
        "first": lambda k: k == 0,
        "every": lambda k: True,
        "every other": lambda k: k % 2,
        "all but the first": lambda k: k > 0,
    }[where]
    for k in range(STEPS):
        if within(k):
            step_in(mode, training)
        else:
            training.step()
        assert torch.equal(training.point(), points[k])
    assert same(training.accelerator.state_dict(), state)


@modes
@every_option
def test_steps_after_the_parameters_have_changed(mode: Mode, options: Method) -> None:
    training, reference = Training(sgd, options), Training(sgd, options)
    for run in (training, reference):
        run.run(4)
        run.parameters[0].requires_grad_(False)
    step_in(mode, training)
    reference.step()
    assert torch.equal(training.run(STEPS), reference.run(STEPS))


@modes
@every_option
@pytest.mark.parametrize("moment", [*some(1), 7])
def test_checkpoints(mode: Mode, options: Method, moment: int) -> None:
    training, other = Training(sgd, options), Training(sgd, options)
    training.run(moment)
    expected = training.accelerator.state_dict()
    with mode():
        state = training.accelerator.state_dict()
    assert same(state, expected)
    assert not any(x.is_inference() for x in tensors(state))
    with mode():
        other.accelerator.load_state_dict(state)
    other.model.load_state_dict(training.model.state_dict())
    assert torch.equal(other.run(STEPS), training.run(STEPS))
    assert same(other.accelerator.state_dict(), training.accelerator.state_dict())


def tensors(state: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(state)
    return [x for x in leaves if isinstance(x, Tensor)]


@modes
@every_option
def test_reset_roll_back_and_stats(mode: Mode, options: Method) -> None:
    training, reference = Training(sgd, options), Training(sgd, options)
    for run, around in ((training, mode), (reference, torch.no_grad)):
        run.run(5)
        while not run.accelerator.pending:
            run.step()
        with around():
            assert run.accelerator.pending
            assert run.accelerator.roll_back()
        run.run(3)
        with around():
            reset_acceleration_history(run.optimizer)
            stats = get_accelerator(run.optimizer).stats
            assert str(stats)
            assert dict(stats)["steps"] >= 8
    points = training.run(STEPS)
    assert torch.equal(points, reference.run(STEPS))
    assert same(training.accelerator.state_dict(), reference.accelerator.state_dict())


@modes
@pytest.mark.parametrize("options", [JUMPY, NEWTON], ids=["anderson", "newton"])
def test_closures_of_the_loss_safeguard_run_in_the_mode_of_the_caller(
    mode: Mode, options: Method
) -> None:
    training, seen = Training(sgd, replace(options, safeguard="loss")), []

    def closure() -> Tensor:
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_default_dtype()))
        with torch.autocast("cpu", enabled=False), torch.device("cpu"):
            return training.closure()

    if mode is torch.inference_mode:
        pytest.skip("no gradients can be made in it")
    for _ in range(STEPS):
        with mode():
            training.optimizer.step(closure)
    assert training.accelerator.stats.extrapolations > 2
    assert len(seen) == STEPS + 2 * training.accelerator.stats.extrapolations
    assert len(set(seen)) == 1
