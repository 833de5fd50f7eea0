"""Whole accelerated steps on a GPU: the host waits for none, and a CUDA graph replays them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from on_cuda import DEVICE, TrainingOn, skip_without_gpu
from torch import Tensor
from torch.optim import Adam
from training import AVERAGED, JUMPY, NEWTON, SKETCHED, MakeOptimizer, Method, adam, momentum, sgd

from aadl_ext import Averaging, Storage, state

skip_without_gpu()

EACH = replace(JUMPY, frequency=1, wait_iterations=3)
OPTIONS: dict[str, Method] = {
    "anderson": JUMPY,
    "average": AVERAGED,
    "average, at each step": replace(EACH, average=Averaging(window=3)),
    "tsqr": replace(EACH, solver="tsqr"),
    "bfloat16 rows": replace(EACH, storage=Storage(torch.bfloat16)),
    "tensors": replace(AVERAGED, scope="tensor"),
    "newton": NEWTON,
    "newton, adapted blocks": replace(NEWTON, adaptive_blocks=True),
    "newton, offloaded": replace(NEWTON, storage=Storage(offload=True)),
    "sketched, offloaded": replace(SKETCHED, storage=Storage(offload=True)),
    "newton, tensors": replace(NEWTON, scope="tensor"),
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
WARM_UP = 30  # long enough for the history to fill


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Waiting for the device is an error."""
    if DEVICE != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def warmed_up(make: MakeOptimizer, options: Method) -> TrainingOn:
    """To be asked for before no_waiting."""
    training = TrainingOn(DEVICE, make, options)
    training.run(WARM_UP)
    return training


# torch says once that the mode does not see every way to wait.
pytestmark = pytest.mark.filterwarnings("ignore:Synchronization debug mode")


@every_option
@pytest.mark.parametrize("make", [sgd, momentum, adam], ids=["sgd", "momentum", "adam"])
def test_steps_wait_for_nothing(warmed_up: TrainingOn, no_waiting: None) -> None:
    for _ in range(20):
        warmed_up.step()


@every_option
def test_many_steps_are_counted(options: Method) -> None:
    training = TrainingOn(DEVICE, adam, options)
    training.run(WARM_UP)
    stats = training.accelerator.stats
    assert stats.steps == WARM_UP
    assert stats.extrapolations > 3


@pytest.mark.skipif(DEVICE != "cuda", reason="of CUDA")
def test_waiting_is_seen(no_waiting: None) -> None:
    with pytest.raises(RuntimeError, match="synchroniz"):
        float(torch.zeros((), device="cuda"))


def tensors_in(thing: Any, seen: dict[int, Any]) -> Iterator[Tensor]:
    """All tensors on the device that an object of this package holds."""
    if id(thing) in seen:
        return
    seen[id(thing)] = thing
    if isinstance(thing, Tensor):
        if thing.device.type == DEVICE:
            yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors_in(value, seen)
    elif isinstance(thing, (list, tuple, set)):
        for value in thing:
            yield from tensors_in(value, seen)
    elif type(thing).__module__.startswith("aadl_ext"):
        yield from tensors_in(vars(thing), seen)


def buffers_of(training: TrainingOn) -> list[Tensor]:
    """All that a step changes on the device."""
    held: list[Any] = [training.parameters, [p.grad for p in training.parameters]]
    held += [dict(training.optimizer.state), training.accelerator]
    return list(tensors_in(held, {}))


# torch warns of capturable optimizers that run without a graph, as they do to warm up.
@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable")
@pytest.mark.skipif(DEVICE != "cuda", reason="graphs are of CUDA")
@every_option
@pytest.mark.parametrize("steps", [WARM_UP, WARM_UP + 1])  # p = q = 2 in most options
def test_a_replayed_step_is_the_eager_one_bit_for_bit(steps: int, options: Method) -> None:
    make = partial(Adam, lr=0.02, capturable=True)
    eager, captured = (TrainingOn(DEVICE, make, options) for _ in range(2))
    for training in (eager, captured):
        training.run(steps)
        training.closure()
    assert torch.equal(captured.point(), eager.point())
    eager.optimizer.step()

    buffers = buffers_of(captured)
    kept = [buffer.detach().clone() for buffer in buffers]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # nothing runs, but the host goes on
        captured.optimizer.step()
    for _ in range(3):
        with torch.no_grad():
            for buffer, values in zip(buffers, kept, strict=True):
                buffer.copy_(values)
        graph.replay()
        assert torch.equal(captured.point(), eager.point())
    assert len(buffers) > 3 * len(captured.parameters)


@every_option
def test_all_buffers_of_a_step_are_found(options: Method) -> None:
    """So that the graph is replayed from where it was captured."""
    training = TrainingOn(DEVICE, adam, options)
    training.run(WARM_UP)
    found = {buffer.data_ptr() for buffer in buffers_of(training)}
    for tensor in (*state.tensors(training.accelerator.iteration), *training.parameters):
        assert tensor.numel() == 0 or tensor.data_ptr() in found
