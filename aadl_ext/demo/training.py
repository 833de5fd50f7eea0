"""One training run of the demo: the paper's network and settings, timed step by step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import aadl_ext
from aadl_ext.options import Anderson, Averaging

from .data import Regression, split

METHODS = ("Adam", "Adam + AADL", "Adam + AADL + average")

# The paper's settings for its first experiment; where it names none: t = 5.
LEARNING_RATE, LATER_RATE = 0.02, 4e-3
BATCH = 40
ACCELERATION = Anderson(relaxation=0.1, history_depth=10, frequency=1, store_each_nth=1)
AVERAGING = Averaging(window=5, threshold=0.1)


@dataclass(frozen=True)
class Run:
    """One method on one seed; losses are mean squared errors, one an epoch."""

    method: str
    seed: int
    train: list[float]
    valid: list[float]
    step_ms: float  #: median of a whole training step: gradient, optimizer, acceleration
    optimizer_ms: float  #: median of optimizer.step() alone
    stats: dict[str, Any]  #: the accelerator's counts; empty without one


def drop_epoch(epochs: int) -> int:
    """When the learning rate falls to a fifth: after two thirds, in the paper epoch 1,000."""
    return 2 * epochs // 3


def network(inputs: int) -> nn.Sequential:
    """The paper's perceptron: three hidden layers of 64, ReLU."""
    widths = (inputs, 64, 64, 64)
    hidden = [
        layer
        for before, after in pairwise(widths)
        for layer in (nn.Linear(before, after), nn.ReLU())
    ]
    return nn.Sequential(*hidden, nn.Linear(64, 1))


def acceleration_of(method: str) -> Anderson | None:
    """That of one of ``METHODS``; None: not accelerated."""
    averaged = replace(ACCELERATION, average=AVERAGING)
    return dict(zip(METHODS, (None, ACCELERATION, averaged), strict=True))[method]


class Training:
    """A network on its way; equal seeds give equal splits, weights and batches to all methods.

    Args:
        data: the table to learn.
        seed: of split, weights and batches.
        drop: epoch at which the learning rate falls.
        accelerate: called once with the optimizer.
        device: where all of it lies.
        split_seed: of the split alone; None: ``seed``.
        closure: whether ``step`` gets a closure, as ``safeguard="loss"`` asks for.
    """

    def __init__(
        self,
        data: Regression,
        seed: int,
        drop: int,
        accelerate: Callable[[torch.optim.Optimizer], object] | None = None,
        device: torch.device | str = "cpu",
        split_seed: int | None = None,
        closure: bool = False,
    ) -> None:
        self.parts = split(data, seed if split_seed is None else split_seed).to(device)
        torch.manual_seed(seed)
        self.model = network(self.parts.train_x.shape[1]).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(
            self.optimizer, [drop], gamma=LATER_RATE / LEARNING_RATE
        )
        if accelerate is not None:
            accelerate(self.optimizer)
        self.closure = closure
        self.step_seconds: list[float] = []
        self.optimizer_seconds: list[float] = []

    def advance(self) -> None:
        """Train for an epoch."""
        order = torch.randperm(len(self.parts.train_y))
        for first in range(0, len(order), BATCH):
            self._step(order[first : first + BATCH])
        self.schedule.step()

    def _step(self, batch: Tensor) -> None:
        x, y = self.parts.train_x[batch], self.parts.train_y[batch]

        def closure() -> Tensor:
            value = _loss(self.model, x, y)
            if torch.is_grad_enabled():
                self.optimizer.zero_grad()
                torch.autograd.backward(value)
            return value

        start = time.perf_counter()
        if self.closure:
            middle = start
            self.optimizer.step(closure)
        else:
            closure()
            middle = time.perf_counter()
            self.optimizer.step()
        end = time.perf_counter()
        self.step_seconds.append(end - start)
        self.optimizer_seconds.append(end - middle)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Mean squared errors of the validation and the training part."""
        parts = self.parts
        return {
            "validation": float(_loss(self.model, parts.valid_x, parts.valid_y)),
            "training": float(_loss(self.model, parts.train_x, parts.train_y)),
        }


def train(data: Regression, method: str, seed: int, epochs: int) -> Run:
    """Train one network to the end."""
    options = acceleration_of(method)
    accelerate = None if options is None else partial(aadl_ext.accelerate, method=options)
    training = Training(data, seed, drop_epoch(epochs), accelerate)
    errors: list[dict[str, float]] = []
    for _ in range(epochs):
        training.advance()
        errors.append(training.measure())
    counts = {}
    if options is not None:
        counts = aadl_ext.get_accelerator(training.optimizer).stats.as_dict()
    return Run(
        method,
        seed,
        [error["training"] for error in errors],
        [error["validation"] for error in errors],
        1e3 * median(training.step_seconds),
        1e3 * median(training.optimizer_seconds),
        stats=counts,
    )


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(model(x), y)
