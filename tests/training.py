"""A small training problem; its runs repeat bit for bit, so habits are compared exactly."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from aadl_ext import Anderson, SubspaceNewton, accelerate, get_accelerator

MakeOptimizer = Callable[..., Optimizer]
Method = Anderson | SubspaceNewton

sgd = partial(SGD, lr=0.3)
momentum = partial(SGD, lr=0.1, momentum=0.9)
adam = partial(Adam, lr=0.02)

# Strong steps, at every second one: within 16 steps some are accepted and some rejected.
JUMPY = Anderson(
    relaxation=0.5, history_depth=3, frequency=2, mixing="anderson", safeguard="residual"
)
AVERAGED = replace(JUMPY, average=True)
# Its own start at the sixth step: likewise for all three optimizers above.
NEWTON = SubspaceNewton(
    history_depth=3,
    block_length=2,
    max_gradient_growth=0.45,
    noise_shrinkage=0.01,
    trust_radius=100.0,
    adaptive_blocks=False,  # else fewer steps
    rest_above=1.0,  # else none where rates change
    quasi_newton=False,  # else none where gradients repeat
)
SKETCHED = replace(NEWTON, sketch=10)  # of networks with 21 parameters and more
METHODS: dict[str, Method] = {"anderson": JUMPY, "newton": NEWTON}
VARIANTS: dict[str, Method] = {**METHODS, "average": AVERAGED}
methods = pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def some(*values: Any) -> list[Any]:
    """Parameters of a test that are tried with ``--thorough`` only."""
    return [pytest.param(value, marks=pytest.mark.thorough) for value in values]


def as_if_exact(optimizer: Optimizer) -> None:
    """Let rows of narrow parameters count though they are little more than rounding."""
    layout = get_accelerator(optimizer).layout
    object.__setattr__(layout, "rounding", (0.0,) * len(layout.rounding))


class Training:
    """Full-batch regression with a small network; ``options=None`` leaves it plain."""

    def __init__(
        self,
        make: MakeOptimizer = sgd,
        options: Method | None = JUMPY,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        generator = torch.Generator().manual_seed(3)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.inputs = torch.randn(16, 3, generator=generator).to(dtype)
        self.targets = torch.randn(16, 1, generator=generator).to(dtype)
        self.optimizer = make(self.model.parameters())
        if options is not None:
            accelerate(self.optimizer, options)

    @property
    def accelerator(self) -> Any:
        return get_accelerator(self.optimizer)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def point(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters])

    def loss(self) -> Tensor:
        return (self.model(self.inputs) - self.targets).square().mean()

    def closure(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss

    def step(self) -> None:
        self.closure()
        self.optimizer.step()

    def run(self, steps: int, once: Callable[[], object] | None = None) -> Tensor:
        """The points after each of ``steps`` calls of ``once`` (default: a training step)."""
        points = []
        for _ in range(steps):
            (once or self.step)()
            points.append(self.point())
        return torch.stack(points)


def watch_base_steps(optimizer: Optimizer, look: Callable[..., object]) -> None:
    """Call ``look`` after each base step, before the accelerator goes on from there."""
    hooks: Any = optimizer._optimizer_step_post_hooks
    hooks.move_to_end(optimizer.register_step_post_hook(look).id, last=False)


def plain_twin(training: Training, make: MakeOptimizer) -> Training:
    """A plain training at the same point, its optimizer in the same state."""
    twin = Training(make, None, training.dtype)
    twin.model.load_state_dict(training.model.state_dict())
    # torch's optimizers adopt the tensors that they load
    twin.optimizer.load_state_dict(copy.deepcopy(training.optimizer.state_dict()))
    return twin


def usable_rows(training: Training) -> int:
    """Rows of a secant history that the next solution can use."""
    iteration = training.accelerator.iteration
    history = iteration.history
    if iteration.verdicts.when.restart:  # they are forgotten as the next step begins
        return 0
    if history.systems is None:
        return int((history.residual_rows.any(dim=1) & (history.lengths[:-1] > 0)).sum())
    return int((history.systems.diagonal(dim1=1, dim2=2).sum(dim=0)[:-1] > 0).sum())


def same(a: Any, b: Any) -> bool:
    """Whether nested containers hold the same tensors and values; NaN is the same as NaN."""
    if isinstance(a, Tensor):
        alike = isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape
        return alike and bool(((a == b) | a.isnan() & b.isnan()).all())
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[x], b[x]) for x in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return math.isnan(b)
    return bool(a == b)
