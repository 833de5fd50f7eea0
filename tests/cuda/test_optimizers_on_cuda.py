"""Accelerated optimizers on a GPU take the way that they take on the CPU."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from on_cuda import DEVICE, TrainingOn, skip_without_gpu
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from training import (
    AVERAGED,
    JUMPY,
    NEWTON,
    SKETCHED,
    MakeOptimizer,
    Method,
    adam,
    momentum,
    same,
    sgd,
)

from aadl_ext import Averaging, Storage, accelerate

skip_without_gpu()

adamw = partial(AdamW, lr=0.02, weight_decay=0.1)


def two_groups(parameters: Iterable[nn.Parameter]) -> SGD:
    first, *others = parameters
    return SGD([{"params": [first], "lr": 0.1}, {"params": others}], lr=0.05, momentum=0.5)


EACH = replace(JUMPY, frequency=1, wait_iterations=3)
OPTIONS: dict[str, Method] = {
    "anderson": JUMPY,
    "average": replace(EACH, average=Averaging(window=3)),
    "tensors": replace(AVERAGED, scope="tensor"),
    "paper's mixing, no safeguard": replace(JUMPY, mixing="paper", safeguard=None),
    "limits": replace(JUMPY, safeguard=("residual", "limits")),
    "newton": NEWTON,
    "newton, adapted blocks": replace(NEWTON, adaptive_blocks=True),
    "newton, offloaded": replace(NEWTON, storage=Storage(offload=True)),
    "sketched, offloaded": replace(SKETCHED, storage=Storage(offload=True)),
    "newton, tensors": replace(NEWTON, scope="tensor", noise_samples=0),
}
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": sgd, "momentum": momentum, "adam": adam, "adamw": adamw, "groups": two_groups,
}  # fmt: skip
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
# Later, extrapolations of Anderson under momentum and Adam depend on the last digits of the
# gradients: a change of theirs by 4e-16 grows to 4e-7 in 16 steps and to 1e-2 in 40.
STEPS = 16
COUNTS = ("steps", "pairs", "extrapolations", "accepted", "shortened", "averaged", "rejected")


def both(
    make: MakeOptimizer,
    options: Method,
    dtype: torch.dtype,
    steps: int = STEPS,
    once: Callable[[TrainingOn], None] = TrainingOn.step,
) -> tuple[Tensor, Tensor]:
    """The way on the device and that on the CPU, which decide alike."""
    ways, counts = [], []
    for device in (DEVICE, "cpu"):
        training = TrainingOn(device, make, options, dtype)
        ways.append(training.run(steps, partial(once, training)).cpu())
        assert {p.device.type for p in training.parameters} == {device}
        stats = training.accelerator.stats.as_dict()
        counts.append({name: stats[name] for name in COUNTS})
    assert counts[0] == counts[1]
    assert counts[0]["extrapolations"] > 1
    return ways[0], ways[1]


@every_option
@every_optimizer
def test_the_way_is_that_of_the_cpu(make: MakeOptimizer, options: Method) -> None:
    there, here = both(make, options, torch.float64)
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("storage", "error"),
    [(None, 2e-3), (torch.bfloat16, 5e-2), (torch.float16, 2e-2)],
    ids=["float32", "bfloat16", "float16"],
)
@pytest.mark.parametrize("options", [EACH, NEWTON], ids=["anderson", "newton"])
def test_the_way_in_single_precision_and_with_short_rows(
    options: Method, storage: torch.dtype | None, error: float
) -> None:
    options = replace(options, storage=Storage(storage))
    there, here = both(momentum, options, torch.float32, steps=14)
    assert (there - here).norm() <= error * (here - here[0]).norm()


@every_option
def test_gradients_that_are_not_numbers_are_met_as_on_the_cpu(options: Method) -> None:
    step = 0

    def shaken(training: TrainingOn) -> None:
        nonlocal step
        step = step % 40 + 1  # the device first, then the CPU
        training.closure()
        if step in (9, 10, 17, 18, 25, 30, 31, 32):  # at some of them an extrapolation is pending
            gradient = training.parameters[2].grad
            assert gradient is not None
            gradient[0, 1] = math.nan
        good = copy.deepcopy((training.model.state_dict(), training.optimizer.state_dict()))
        training.optimizer.step()
        if not training.point().isfinite().all():  # what nobody held back
            training.model.load_state_dict(good[0])
            training.optimizer.load_state_dict(good[1])

    there, here = both(sgd, options, torch.float64, 40, shaken)
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-7)
    assert here.isfinite().all()


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_option
@pytest.mark.parametrize("make", [momentum, adamw], ids=["momentum", "adamw"])
def test_a_resumed_run_goes_on_bit_for_bit(make: MakeOptimizer, options: Method) -> None:
    training = TrainingOn(DEVICE, make, options)
    training.run(11)
    state = {
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "accelerator": training.accelerator.state_dict(),
    }
    state = through_a_file(state)
    expected = training.run(9)
    other = TrainingOn(DEVICE, make, options)
    other.model.load_state_dict(state["model"])
    other.optimizer.load_state_dict(state["optimizer"])
    other.accelerator.load_state_dict(state["accelerator"])
    assert torch.equal(other.run(9), expected)
    assert same(other.optimizer.state_dict(), training.optimizer.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [EACH, NEWTON], ids=["anderson", "newton"])
def test_layouts_and_dtypes_of_parameters_may_differ(options: Method, dtype: torch.dtype) -> None:
    """As under ``channels_last``, and in parts of lower precision."""
    ways = []
    for device in (DEVICE, "cpu"):
        generator = torch.Generator().manual_seed(0)
        shapes = [(4, 3, 3, 3), (5, 4), (7,), ()]
        tensors = [torch.randn(shape, generator=generator) for shape in shapes]
        tensors[0] = tensors[0].to(memory_format=torch.channels_last)
        tensors[1] = tensors[1].T.to(dtype)
        parameters = [nn.Parameter(tensor.to(device)) for tensor in tensors]
        optimizer = accelerate(momentum(parameters), options)
        for _ in range(14):
            for parameter in parameters:
                parameter.grad = parameter.detach() * 0.5
            optimizer.step()
        ways.append([parameter.detach().cpu() for parameter in parameters])
    for there, here in zip(*ways, strict=True):
        assert there.stride() == here.stride()
        error = 2e-2 if dtype == torch.bfloat16 else 1e-3
        torch.testing.assert_close(there, here, rtol=error, atol=error)


def on_a_stream_of_its_own(device: str) -> AbstractContextManager[Any]:
    """Of a device that has streams, where what was asked for on others is done."""
    if torch.device(device).type == "cpu":
        return nullcontext()
    torch.cuda.synchronize(device)
    return torch.cuda.stream(torch.cuda.Stream(device))


@pytest.mark.parametrize("storage", [Storage(), Storage(device="cpu")], ids=["device", "host"])
@pytest.mark.parametrize("options", [EACH, NEWTON], ids=["anderson", "newton"])
def test_steps_on_a_stream_of_their_own_are_those_on_the_default_one(
    options: Method, storage: Storage
) -> None:
    options = replace(options, storage=storage)
    expected = TrainingOn(DEVICE, momentum, options).run(STEPS)
    training = TrainingOn(DEVICE, momentum, options)
    with on_a_stream_of_its_own(DEVICE):
        found = training.run(STEPS)
        assert torch.equal(found, expected)
    assert training.accelerator.stats.extrapolations > 1


@every_option
def test_parameters_may_be_on_another_device_than_the_current_one(options: Method) -> None:
    """Several devices in one process, each with steps by turns."""
    if DEVICE == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    devices = ["cuda:1", "cuda:0"] if DEVICE == "cuda" else ["cpu", "cpu"]
    runs = [TrainingOn(device, adam, options) for device in devices]
    ways = [[run.run(1) for run in runs] for _ in range(STEPS)]
    for one, other in ways:
        assert torch.equal(one.cpu(), other.cpu())
