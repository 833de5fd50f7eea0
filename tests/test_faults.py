"""Faults from outside, at random: what they break is not made worse, and stats name the cause.

``--fuzz N`` makes N runs of each method.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from test_fuzz import METHODS, OPTIMIZERS, finite
from torch import Tensor, nn
from training import watch_base_steps

from aadl_ext import accelerate, get_accelerator, settled, state

STEPS = 30
BAD = [math.nan, math.inf, -math.inf, 1e38]


class FaultError(Exception):
    """Out of a closure or a hook."""


class Patient:
    """A training on which faults are tried."""

    def __init__(self, dice: random.Random, method: str) -> None:
        self.dice = dice
        generator = torch.Generator().manual_seed(dice.randrange(10**6))
        dtype = dice.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16])
        self.model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        self.inputs = torch.randn(64, 4, generator=generator)
        make = dice.choice(OPTIMIZERS)
        self.optimizer = make(self.model.parameters(), lr=10.0 ** dice.uniform(-3, -0.5))
        accelerate(self.optimizer, METHODS[method])
        self.closes, self.raises = dice.random() < 0.3, False
        self.spoil_gradient = False
        self.by_base = True
        watch_base_steps(self.optimizer, self.watch)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def watch(self, *_: Any) -> None:
        self.by_base = finite(self.parameters)

    def closure(self) -> Tensor:
        rows = self.inputs[torch.tensor(self.dice.sample(range(64), 8))]
        self.optimizer.zero_grad()
        weight = self.parameters[0]
        loss = self.model(rows.to(weight.dtype)).float().square().mean()
        if loss.requires_grad:
            loss.backward()
        if self.spoil_gradient:
            victim = self.dice.choice([p for p in self.parameters if p.grad is not None])
            victim.grad.view(-1)[0] = self.dice.choice(BAD)
        if self.raises:
            raise FaultError
        return loss

    def step(self) -> None:
        if self.closes:
            self.optimizer.step(self.closure)
        else:
            self.closure()
            self.optimizer.step()


def bad_gradient(patient: Patient) -> None:
    patient.spoil_gradient = True


def bad_parameter(patient: Patient) -> None:
    with torch.no_grad():
        patient.dice.choice(patient.parameters).view(-1)[0] = patient.dice.choice(BAD)


def bad_state(patient: Patient) -> None:
    values = [
        x
        for held in patient.optimizer.state.values()
        for x in held.values()
        if isinstance(x, Tensor) and x.ndim
    ]
    if values:
        patient.dice.choice(values).view(-1)[0] = patient.dice.choice(BAD)


def bad_history(patient: Patient) -> None:
    iteration = get_accelerator(patient.optimizer).iteration
    held = [x for x in state.tensors(iteration) if x.is_floating_point() and x.numel()]
    # Not the point that a rejected step goes back to: it is the parameters themselves.
    victim = patient.dice.choice([x for x in held if x is not iteration.fallback])
    victim.view(-1)[patient.dice.randrange(victim.numel())] = patient.dice.choice(BAD)


def move(patient: Patient) -> None:
    with torch.no_grad():
        patient.dice.choice(patient.parameters).mul_(patient.dice.choice([0.0, 0.5, 1.01]))


def recast(patient: Patient) -> None:
    patient.model.to(patient.dice.choice([torch.float32, torch.float64, torch.bfloat16]))
    patient.optimizer.state.clear()


def resize(patient: Patient) -> None:
    inner = patient.dice.choice([3, 5, 6])
    for p, shape in zip(patient.parameters, [(inner, 4), (inner,), (2, inner), (2,)], strict=True):
        p.data = torch.full(shape, 0.1, dtype=p.dtype)
    patient.optimizer.state.clear()


def freeze(patient: Patient) -> None:
    victim = patient.dice.choice(patient.parameters[:-1])
    victim.requires_grad_(not victim.requires_grad)


def raise_in_closure(patient: Patient) -> None:
    patient.raises = True


def raise_in_hook(patient: Patient) -> None:
    def hook(*_: Any) -> None:
        handle.remove()
        raise FaultError

    register = patient.dice.choice(
        [patient.optimizer.register_step_pre_hook, patient.optimizer.register_step_post_hook]
    )
    handle = register(hook)


FAULTS: list[Callable[[Patient], None]] = [
    bad_gradient, bad_parameter, bad_state, bad_history, move, recast, resize, freeze,
    raise_in_closure, raise_in_hook,
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_no_fault_makes_parameters_worse_than_the_base_optimizer_does(
    method: str, fuzz: int
) -> None:
    dice = random.Random(f"{method} {fuzz}")
    patient = Patient(dice, method)
    accelerator = get_accelerator(patient.optimizer)
    rate = dice.choice([0.05, 0.2, 0.5])
    for k in range(STEPS):
        good = [p.detach().clone() for p in patient.parameters]
        if dice.random() < rate:
            dice.choice(FAULTS)(patient)
        patient.by_base = finite(patient.parameters)
        before = patient.by_base
        with suppress(FaultError):
            patient.step()
        patient.spoil_gradient = patient.raises = False
        with settled(patient.optimizer):
            judged = finite(patient.parameters)
        if not (finite(patient.parameters) and judged):
            assert not (before and patient.by_base), f"left the finite numbers at step {k}"
            patient.optimizer.state.clear()  # a repair, as from a checkpoint
            for p, old in zip(patient.parameters, good, strict=True):
                repaired = old if old.shape == p.shape else torch.full_like(p, 0.1)
                p.data = repaired.to(p.dtype).nan_to_num(0.1, 0.1, 0.1).clamp(-10, 10)
    stats = accelerator.stats
    verdicts = stats.accepted + stats.rejected.total() + stats.dropped
    assert stats.extrapolations == verdicts + accelerator.pending
