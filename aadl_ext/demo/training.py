"""One training run of the demo: the paper's network and settings, timed step by step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from aadl_ext.options import Anderson, Averaging

from .data import Regression, split

# The paper's settings for its first experiment, and its safeguard; where it names none: t = 5.
LEARNING_RATE, LATER_RATE = 0.02, 4e-3
BATCH = 40
PAPER = Anderson(
    relaxation=0.1, history_depth=10, frequency=1, store_each_nth=1, safeguard="residual"
)
AVERAGING = replace(PAPER, average=Averaging(window=5, threshold=0.1))


def network(inputs: int) -> nn.Sequential:
    """The paper's perceptron: three hidden layers of 64, ReLU."""
    widths = (inputs, 64, 64, 64)
    hidden = [
        layer
        for before, after in pairwise(widths)
        for layer in (nn.Linear(before, after), nn.ReLU())
    ]
    return nn.Sequential(*hidden, nn.Linear(64, 1))


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


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(model(x), y)
