"""Whole accelerated steps on a GPU: alone, and within the training of two networks.

    python benchmarks/cuda_steps.py [--aadl PATH] [--out DIR] [--minutes 4]

Each row runs a bare optimizer and an accelerated one in turn, a cycle of steps each, and has the
time that a step of the second takes more: median and half the interquartile range over the
cycles, on the device (CUDA events) and of the host, in milliseconds.

The first tables have training steps: a ResNet-50 on 64 random images in channels_last with Nesterov
momentum, and a transformer of the size of GPT-2 small on 8 x 1024 tokens with AdamW, both under
bfloat16 autocast. The last has ``optimizer.step()`` alone, on the parameters of the ResNet-50 with
gradients of a quadratic bowl: with the compiled kernels and with the PyTorch definitions, and by
AADL's formulation, which keeps iterates and solves by ``torch.linalg.lstsq`` over the long matrix,
besides AADL's own code where a checkout of it is given.

What does not fit into ``--minutes`` is left out. With ``--device cpu --width 4 --batch 2
--image 32 --cycles 2`` it can be tried anywhere.
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
from networks import Transformer, resnet50
from records import RESULTS, save
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import SGD, AdamW, Optimizer

from aadl_ext import Anderson, Storage, SubspaceNewton, accelerate
from aadl_ext.ops.library import definitions_only

DEPTH, PERIOD, RELAXATION = 20, 5, 0.1
CYCLE = 10  # steps; of all methods, blocks that change their length aside
WARM_UP = 12  # cycles, until the history is full
Accelerate = Callable[[Any], object]


def anderson(**options: Any) -> Accelerate:
    """The paper's iteration, extrapolating every PERIOD steps unless told otherwise."""
    periods = {"frequency": PERIOD, "store_each_nth": PERIOD}
    settings = {"relaxation": RELAXATION, "history_depth": DEPTH, **periods, **options}
    return lambda optimizer: accelerate(optimizer, Anderson(**settings))


METHODS: dict[str, Accelerate] = {
    "m = 20, p = q = 5": anderson(),
    "m = 20, p = q = 5, average": anderson(average=True),
    "subspace Newton": lambda optimizer: accelerate(optimizer, SubspaceNewton()),
    "subspace Newton, offloaded": lambda optimizer: accelerate(
        optimizer, SubspaceNewton(storage=Storage(offload=True))
    ),
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


Step = Callable[[], object]


def cycle(step: Step, device: torch.device) -> tuple[float, float]:
    """Milliseconds a step, on the device and of the host, over one cycle of all methods."""
    if device.type == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
    begin = time.perf_counter()
    for _ in range(CYCLE):
        step()
    host = 1e3 * (time.perf_counter() - begin) / CYCLE
    if device.type != "cuda":
        return host, host
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / CYCLE, host


def added(given: argparse.Namespace, make: Callable[[Accelerate], Step], method: Accelerate) -> Any:
    """What a step takes more with a method than without, measured in turn."""
    pair = make(lambda _: None), make(method)
    for step in pair:
        for _ in range(min(given.cycles, WARM_UP)):
            cycle(step, given.device)
    times = torch.tensor(
        [[cycle(step, given.device) for step in pair] for _ in range(given.cycles)]
    )
    figures: dict[str, float] = {}
    for index, clock in enumerate(("device", "host")):
        bare, more = times[:, 0, index], times[:, 1, index] - times[:, 0, index]
        low, middle, high = more.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        figures |= {clock: bare.median().item(), f"{clock} added": middle}
        figures[f"{clock} spread"] = (high - low) / 2
    if given.device.type == "cuda":
        figures["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    return figures


def in_a_bowl(given: argparse.Namespace, method: Accelerate) -> Step:
    """``optimizer.step()`` with gradients of a quadratic function, which cost as much each time."""
    torch.manual_seed(0)
    shapes = [parameter.shape for parameter in resnet50(given.width).parameters()]
    parameters = [nn.Parameter(torch.randn(shape, device=given.device)) for shape in shapes]
    curvatures = [0.9 * torch.rand_like(parameter) + 0.1 for parameter in parameters]
    optimizer = SGD(parameters, lr=0.5)
    method(optimizer)

    def step() -> None:
        gradients = torch._foreach_mul([p.detach() for p in parameters], curvatures)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    return step


def training(device: torch.device, model: nn.Module, optimizer: Optimizer, data: Any) -> Step:
    """Training steps on the same data, under autocast."""
    inputs, labels = data

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            outputs = model(inputs)
            loss = nn.functional.cross_entropy(outputs.flatten(0, -2), labels.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def in_resnet(given: argparse.Namespace, method: Accelerate) -> Step:
    """A training step of a ResNet-50."""
    torch.manual_seed(0)
    device = given.device
    model = resnet50(given.width).to(device, memory_format=torch.channels_last)
    images = torch.randn(given.batch, 3, given.image, given.image, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (given.batch,), device=device)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    method(optimizer)
    return training(device, model, optimizer, (images, labels))


def in_transformer(given: argparse.Namespace, method: Accelerate) -> Step:
    """A training step of a transformer."""
    torch.manual_seed(0)
    device, small = given.device, given.width < 64
    sizes = {"width": 48, "layers": 2, "heads": 4, "tokens": 100, "length": 16} if small else {}
    model = Transformer(**sizes).to(device)
    tokens, length = len(model.embedding.weight), len(model.position)
    text = torch.randint(tokens, (max(given.batch // 8, 1), length + 1), device=device)
    optimizer = AdamW(model.parameters(), lr=3e-4)
    method(optimizer)
    return training(device, model, optimizer, (text[:, :-1], text[:, 1:]))


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
    add("--cycles", type=int, default=20, help=f"of {CYCLE} steps each")
    given = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    report = Report(given)
    for table, make in (("ResNet-50", in_resnet), ("transformer", in_transformer)):
        for name, method in METHODS.items():
            report.add(table, name, partial(added, given, partial(make, given), method))
    bowl = partial(in_a_bowl, given)
    for name, method in (METHODS | EACH_STEP).items():
        report.add("optimizer.step()", name, partial(added, given, bowl, method))
    for name, method in (METHODS | EACH_STEP).items():
        with definitions_only():
            title = f"{name}, PyTorch definition"
            report.add("optimizer.step()", title, partial(added, given, bowl, method))
    others = {"AADL's formulation, p = q = 5": formulation(PERIOD)}
    if given.aadl is not None:
        sys.path.insert(0, str(given.aadl))
        package = importlib.import_module("AADL")
        others["AADL, p = q = 5"] = original(package.accelerate, PERIOD, given.device)
    for name, method in others.items():
        report.add("optimizer.step()", name, partial(added, given, bowl, method))
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
