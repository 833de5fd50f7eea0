"""One training run of the demo: the paper's network and settings, timed step by step."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import aadl_ext

from .data import Regression, split

METHODS = ("Adam", "Adam + AADL", "Adam + AADL + average")

# The paper's settings for its first experiment; where it names none: t = 5.
LEARNING_RATE, LATER_RATE = 0.02, 4e-3
BATCH = 40
ACCELERATION: dict[str, Any] = {
    "relaxation": 0.1,
    "history_depth": 10,
    "frequency": 1,
    "store_each_nth": 1,
    "average_window": 5,
    "average_threshold": 0.1,
}


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


def train(data: Regression, method: str, seed: int, epochs: int) -> Run:
    """Train one network; equal seeds give equal splits, weights and batches to all methods."""
    parts = split(data, seed)
    torch.manual_seed(seed)
    model = network(parts.train_x.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [drop_epoch(epochs)], gamma=LATER_RATE / LEARNING_RATE
    )
    if method != METHODS[0]:
        aadl_ext.accelerate(optimizer, average=method == METHODS[2], **ACCELERATION)

    curves: tuple[list[float], list[float]] = ([], [])
    steps, optimizer_steps = [], []
    for _ in range(epochs):
        order = torch.randperm(len(parts.train_y))
        for first in range(0, len(order), BATCH):
            batch = order[first : first + BATCH]
            start = time.perf_counter()
            optimizer.zero_grad()
            torch.autograd.backward(_loss(model, parts.train_x[batch], parts.train_y[batch]))
            middle = time.perf_counter()
            optimizer.step()
            end = time.perf_counter()
            steps.append(end - start)
            optimizer_steps.append(end - middle)
        schedule.step()
        with torch.no_grad():
            curves[0].append(float(_loss(model, parts.train_x, parts.train_y)))
            curves[1].append(float(_loss(model, parts.valid_x, parts.valid_y)))

    counts = {}
    if method != METHODS[0]:
        counts = aadl_ext.get_accelerator(optimizer).stats.as_dict()
    return Run(
        method,
        seed,
        *curves,
        1e3 * median(steps),
        1e3 * median(optimizer_steps),
        stats=counts,
    )


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(model(x), y)
