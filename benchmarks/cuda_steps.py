"""Whole accelerated steps on a GPU: alone, and within the training of a ResNet-50.

    python benchmarks/cuda_steps.py [--aadl PATH] [--out DIR] [--minutes 4]

The first table has ``optimizer.step()`` alone, on the parameters of a ResNet-50 with gradients of a
quadratic bowl: the base step, the accelerated one with the compiled kernels and with the PyTorch
definitions, and AADL's formulation, which keeps iterates and solves by ``torch.linalg.lstsq`` over
the long matrix; AADL's own code where a checkout of it is given. The second has training steps of
64 random images under bfloat16 autocast in channels_last. Times are means over whole cycles of
steps, on the device (CUDA events) and of the host, in milliseconds.

What does not fit into ``--minutes`` is left out. With ``--device cpu --width 4 --batch 2
--image 32 --steps 10`` it can be tried anywhere.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from records import RESULTS, save
from resnet import resnet50
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import SGD

from aadl_ext import Anderson, SubspaceNewton, accelerate
from aadl_ext.ops.library import definitions_only

DEPTH, PERIOD, RELAXATION = 20, 5, 0.1
Accelerate = Callable[[SGD], object]


def anderson(**options: Any) -> Accelerate:
    """The paper's iteration, extrapolating every PERIOD steps unless told otherwise."""
    periods = {"frequency": PERIOD, "store_each_nth": PERIOD}
    settings = {"relaxation": RELAXATION, "history_depth": DEPTH, **periods, **options}
    return lambda optimizer: accelerate(optimizer, Anderson(**settings))


METHODS: dict[str, Accelerate] = {
    "bare": lambda _: None,
    "m = 20, p = q = 5": anderson(),
    "m = 20, p = q = 5, average": anderson(average=True),
    "subspace Newton": lambda optimizer: accelerate(optimizer, SubspaceNewton()),
}
EACH_STEP: dict[str, Accelerate] = {
    "m = 20, p = q = 1": anderson(frequency=1, store_each_nth=1),
    "m = 20, p = q = 1, average": anderson(frequency=1, store_each_nth=1, average=True),
}


class Formulation:
    """AADL's way to write the iteration: iterates are kept, as columns of a long matrix."""

    def __init__(self, optimizer: SGD, period: int) -> None:
        self.parameters: list[Tensor] = optimizer.param_groups[0]["params"]
        self.iterates: deque[Tensor] = deque(maxlen=DEPTH + 2)
        self.period, self.steps = period, 0
        optimizer.register_step_post_hook(self.after)

    @torch.no_grad()
    def after(self, *_: Any) -> None:
        """Store the iterate, and extrapolate."""
        self.steps += 1
        if self.steps % self.period:
            return
        self.iterates.append(parameters_to_vector(self.parameters))
        if len(self.iterates) < 3:
            return
        points = torch.stack(tuple(self.iterates), dim=1)
        steps = points.diff(dim=1)
        changes = steps.diff(dim=1)
        gamma = torch.linalg.lstsq(changes, steps[:, -1:]).solution
        point = points[:, -2:-1] - steps[:, :-1] @ gamma
        residual = steps[:, -1:] - changes @ gamma
        vector_to_parameters((point + RELAXATION * residual).squeeze(1), self.parameters)


def formulation(period: int) -> Accelerate:
    """AADL's way under an optimizer."""
    return lambda optimizer: Formulation(optimizer, period)


def original(apply: Callable[..., Any], period: int, device: torch.device) -> Accelerate:
    """AADL's own code, whose depth counts iterates."""
    return lambda optimizer: apply(
        optimizer, "anderson", relaxation=RELAXATION, history_depth=DEPTH + 2,
        store_each_nth=period, frequency=period, history_device=device, compute_device=device,
    )  # fmt: skip


class Clock:
    """Adds up the time of calls, on the device and of the host."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.host = 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __call__(self, call: Callable[[], object]) -> None:
        """Time a call."""
        if self.device.type == "cuda":
            self.events.append(
                (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            )
            self.events[-1][0].record()
        start = time.perf_counter()
        call()
        self.host += 1e3 * (time.perf_counter() - start)
        if self.device.type == "cuda":
            self.events[-1][1].record()

    def means(self, calls: int) -> dict[str, float]:
        """Milliseconds a call; those of the device are those of the host on a CPU."""
        if not self.events:
            return {"device": self.host / calls, "host": self.host / calls}
        torch.cuda.synchronize()
        total = sum(start.elapsed_time(stop) for start, stop in self.events)
        return {"device": total / calls, "host": self.host / calls}


def in_a_bowl(given: argparse.Namespace, method: Accelerate) -> dict[str, float]:
    """Time of ``optimizer.step()`` with gradients of a quadratic function."""
    torch.manual_seed(0)
    shapes = [parameter.shape for parameter in resnet50(given.width).parameters()]
    parameters = [nn.Parameter(torch.randn(shape, device=given.device)) for shape in shapes]
    curvatures = [0.9 * torch.rand_like(parameter) + 0.1 for parameter in parameters]
    optimizer = SGD(parameters, lr=0.5)
    method(optimizer)
    clock = Clock(given.device)
    for k in range(warm_up(given.steps) + given.steps):
        gradients = torch._foreach_mul([p.detach() for p in parameters], curvatures)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if k < warm_up(given.steps):
            optimizer.step()
        else:
            clock(optimizer.step)
    return clock.means(given.steps)


def in_training(given: argparse.Namespace, method: Accelerate) -> dict[str, float]:
    """Time of a training step of the network."""
    torch.manual_seed(0)
    device = given.device
    model = resnet50(given.width).to(device, memory_format=torch.channels_last)
    images = torch.randn(given.batch, 3, given.image, given.image, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (given.batch,), device=device)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    method(optimizer)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    clock = Clock(device)
    for k in range(warm_up(given.steps) + given.steps):
        if k < warm_up(given.steps):
            step()
        else:
            clock(step)
    figures = clock.means(given.steps)
    if device.type == "cuda":
        figures["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    return figures


def warm_up(steps: int) -> int:
    """Steps until the history is full, or fewer where few are timed."""
    return min(3 * steps, (DEPTH + 2) * PERIOD)


class Report:
    """Prints and writes each figure as soon as it is there; what fails does not end the rest."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.end, self.out = time.monotonic() + 60 * given.minutes, given.out
        self.record: dict[str, Any] = {"settings": {k: str(v) for k, v in vars(given).items()}}
        if given.device.type == "cuda":
            self.record["gpu"] = torch.cuda.get_device_name(given.device)
        self.failed = False

    def add(self, table: str, name: str, call: Callable[[], dict[str, float]]) -> None:
        """Measure, unless the time is over."""
        title = f"{table:16} {name:48}"
        if time.monotonic() > self.end:
            print(title, "left out: no time")
            return
        try:
            figures = call()
        except Exception as error:
            print(title, f"failed: {error!r}")
            self.failed = True
            return
        rows = self.record.setdefault(table, {})
        rows[name] = figures
        figures["added"] = figures["device"] - next(iter(rows.values()))["device"]
        print(title, *(f"{key} {value:9.3f}" for key, value in figures.items()), flush=True)
        save("cuda_steps", self.record, self.out)


def main() -> int:
    """Measure, print, write; 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--aadl", type=Path, help="a checkout of AADL to compare with")
    add("--out", type=Path, default=RESULTS)
    add("--minutes", type=float, default=4.0)
    add("--device", type=torch.device, default=torch.device("cuda"))
    add("--width", type=int, default=64)
    add("--batch", type=int, default=64)
    add("--image", type=int, default=224)
    add("--steps", type=int, default=40, help="a multiple of 10, the cycle of all methods")
    given = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    report = Report(given)
    for name, method in METHODS.items():
        report.add("training step", name, partial(in_training, given, method))
    for name, method in (METHODS | EACH_STEP).items():
        report.add("optimizer.step()", name, partial(in_a_bowl, given, method))
    for name, method in list((METHODS | EACH_STEP).items())[1:]:
        with definitions_only():
            title = f"{name}, PyTorch definition"
            report.add("optimizer.step()", title, partial(in_a_bowl, given, method))
    others = {"AADL's formulation, p = q = 5": formulation(PERIOD)}
    if given.aadl is not None:
        sys.path.insert(0, str(given.aadl))
        package = importlib.import_module("AADL")
        others["AADL, p = q = 5"] = original(package.accelerate, PERIOD, given.device)
    for name, method in others.items():
        report.add("optimizer.step()", name, partial(in_a_bowl, given, method))
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
