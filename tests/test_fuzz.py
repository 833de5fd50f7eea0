"""Short trainings under random conditions: nothing breaks, whatever the options and gradients."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer
from training import AVERAGED, JUMPY, NEWTON, SKETCHED, Method, watch_base_steps

from aadl_ext import Storage, SubspaceNewton, accelerate, get_accelerator

STEPS = 40
METHODS: dict[str, Method] = {
    "default": SubspaceNewton(),
    "short blocks": NEWTON,
    "adapted": replace(NEWTON, adaptive_blocks=True, noise_samples=2),
    "sketched": replace(SKETCHED, adaptive_blocks=True, noise_samples=2),
    "narrow rows": replace(NEWTON, storage=Storage(torch.float16), scope="tensor"),
    "unguarded": replace(NEWTON, safeguard=None),
    "anderson": JUMPY,
    "anderson, averaged": AVERAGED,
    "anderson, limited": replace(JUMPY, safeguard=("residual", "limits"), solver="tsqr"),
}
OPTIMIZERS: list[Any] = [
    optim.SGD,
    partial(optim.SGD, momentum=0.9, weight_decay=1e-2),
    partial(optim.SGD, fused=True),
    optim.Adam,
    partial(optim.AdamW, weight_decay=0.1),
    optim.RMSprop,
    partial(optim.Adagrad, maximize=True),
]
SPOILS = [math.nan, math.inf, -math.inf, 1e30, 1e-30]


class Task:
    """A small classification or regression with mini-batches."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.generator = torch.Generator().manual_seed(dice.randrange(10**6))
        width, self.norm = dice.choice([1, 3, 8]), dice.random() < 0.3
        layers = [nn.Linear(4, width), nn.BatchNorm1d(width) if self.norm else nn.Tanh()]
        self.model = nn.Sequential(*layers, nn.Linear(width, 2))
        self.model.to(dice.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16]))
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(torch.randn(p.shape, generator=self.generator))
        self.scale = 10.0 ** dice.uniform(-2, 2)
        self.batch = dice.choice([2, 5, 32])

    def backward(self) -> None:
        inputs = torch.randn(self.batch, 4, generator=self.generator)
        targets = (inputs[:, 0] > 0).long()
        output = self.model(inputs.to(next(self.model.parameters()).dtype))
        (self.scale * nn.functional.cross_entropy(output.float(), targets)).backward()

    def spoil(self) -> None:
        """Change gradients as no loss would."""
        victim = self.dice.choice(list(self.model.parameters()))
        if self.dice.random() < 0.3:
            victim.grad = None
        else:
            victim.grad.view(-1)[0] = self.dice.choice(SPOILS)


def finite(tensors: Any) -> bool:
    return all(bool(x.isfinite().all()) for x in tensors)


def check_counts(optimizer: Optimizer, calls: int) -> None:
    accelerator = get_accelerator(optimizer)
    stats = accelerator.stats
    verdicts = stats.accepted + stats.rejected.total() + stats.dropped
    assert stats.extrapolations == verdicts + accelerator.pending
    assert stats.steps == calls
    assert stats.shortened <= stats.accepted


@pytest.mark.parametrize("method", METHODS)
def test_only_the_base_optimizer_makes_parameters_that_are_not_finite(
    method: str, fuzz: int
) -> None:
    dice = random.Random(f"{method} {fuzz}")
    task, harm = Task(dice), dice.choice([0.0, 0.0, 0.05, 0.2])
    rate = 10.0 ** dice.uniform(-5, 1)
    optimizer = dice.choice(OPTIMIZERS)(task.model.parameters(), lr=rate)
    accelerate(optimizer, METHODS[method])
    parameters = list(task.model.parameters())
    good: list[Tensor] = []
    by_base: list[bool] = []
    watch_base_steps(optimizer, lambda *_: by_base.append(finite(parameters)))
    for k in range(STEPS):
        good = [p.detach().clone() for p in parameters]
        optimizer.zero_grad()
        task.backward()
        if dice.random() < harm:
            task.spoil()
        optimizer.step()
        check_counts(optimizer, k + 1)
        if not finite(parameters):
            assert not by_base[-1], f"the accelerator left the finite numbers at step {k}"
            optimizer.state.clear()  # a repair, as from a checkpoint
            with torch.no_grad():
                torch._foreach_copy_(parameters, good)


@pytest.mark.parametrize("method", METHODS)
def test_the_fuzzed_runs_extrapolate_and_judge_it(method: str) -> None:
    accepted = rejected = 0
    for seed in range(6):
        dice = random.Random(seed)
        task = Task(dice)
        optimizer = accelerate(optim.SGD(task.model.parameters(), lr=0.05), METHODS[method])
        for _ in range(3 * STEPS):
            optimizer.zero_grad()
            task.backward()
            if get_accelerator(optimizer).pending and dice.random() < 0.5:
                task.model[0].weight.grad[0, 0] = math.nan
            optimizer.step()
        stats = get_accelerator(optimizer).stats
        accepted += stats.accepted
        rejected += stats.rejected["nonfinite"]
        if min(accepted, rejected) > 0:
            break
    assert min(accepted, rejected) > 0
