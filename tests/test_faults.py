"""Faults from outside, at random: what they break is not made worse, and stats name the cause.

``--fuzz N`` makes N runs of each method.
"""

from __future__ import annotations

import copy
import io
import math
import random
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import torch
from test_fuzz import METHODS, OPTIMIZERS, finite
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from training import Method, Training, adam, same, some, variants, watch_base_steps

from aadl_ext import (
    Accelerator,
    accelerate,
    finish,
    get_accelerator,
    remove_acceleration,
    reset_acceleration_history,
    settled,
    state,
)
from aadl_ext.ops import library

STEPS = 30
BAD = [math.nan, math.inf, -math.inf, 1e38]


class FaultError(Exception):
    """Out of a closure or a hook."""


class Interrupt(TorchDispatchMode):
    """Raises in place of an op of this package, the ``at``-th since it has ``begun``."""

    def __init__(self, at: int, begun: bool = False) -> None:
        super().__init__()
        self.at, self.begun = at, begun

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.begun and op.namespace == "aadl_ext":
            self.at -= 1
            if self.at == 0:
                raise KeyboardInterrupt
        return op(*args, **(kwargs or {}))


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
        self.make, self.method = dice.choice(OPTIMIZERS), METHODS[method]
        self.rate = 10.0 ** dice.uniform(-3, -0.5)
        self.begin()
        self.closes, self.raises = dice.random() < 0.3, False
        self.spoil_gradient = self.no_gradient = False
        self.interrupt = Interrupt(0)
        self.by_base: Tensor | None = None  #: where the last base step has led

    def begin(self) -> None:
        self.optimizer = self.make(self.model.parameters(), lr=self.rate)
        accelerate(self.optimizer, self.method)
        watch_base_steps(self.optimizer, self.watch)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @property
    def accelerator(self) -> Accelerator:
        return get_accelerator(self.optimizer)

    def point(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters])

    def judged(self) -> Tensor:
        with settled(self.optimizer):
            return self.point()

    def watch(self, *_: Any) -> None:
        if self.by_base is None:
            self.by_base = self.point()

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
        if self.no_gradient:
            self.optimizer.zero_grad()
        if self.raises:
            raise FaultError
        return loss

    def step(self) -> None:
        """One in which the faults happen; they are over then."""
        with suppress(FaultError, KeyboardInterrupt):
            if not self.closes:
                self.closure()
            with self.interrupt:
                self.optimizer.step(self.closure if self.closes else None)
        self.spoil_gradient = self.no_gradient = self.raises = False
        self.interrupt = Interrupt(0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate


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
    inner = patient.dice.choice([3, 5, 40])
    *resized, _ = patient.parameters
    for p, shape in zip(resized, [(inner, 4), (inner,), (2, inner)], strict=True):
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


def interrupt(patient: Patient) -> None:
    patient.interrupt = Interrupt(patient.dice.randrange(1, 25), begun=True)


def no_gradient(patient: Patient) -> None:
    patient.no_gradient = True


def no_rate(patient: Patient) -> None:
    for group in patient.optimizer.param_groups:
        group["lr"] = 0.0


def add_group(patient: Patient) -> None:
    patient.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})


def replace_parameter(patient: Patient) -> None:
    """As those do that grow or prune a model."""
    group = patient.optimizer.param_groups[0]
    layer, name = patient.dice.choice(
        [
            (layer, name)
            for layer in (patient.model[0], patient.model[2])
            for name in ("weight", "bias")
        ]
    )
    old = getattr(layer, name)
    setattr(layer, name, nn.Parameter(old.detach().clone()))
    group["params"] = [getattr(layer, name) if p is old else p for p in group["params"]]
    patient.optimizer.state.pop(old, None)


def load_back(patient: Patient) -> None:
    patient.optimizer.load_state_dict(copy.deepcopy(patient.optimizer.state_dict()))


def kill(patient: Patient) -> None:
    """Only what is saved is left of it, with the accelerator's state or without."""
    with settled(patient.optimizer) if patient.dice.random() < 0.5 else nullcontext():
        states = [patient.model.state_dict(), patient.accelerator.state_dict()]
    whole = len(patient.optimizer.param_groups) == 1
    file = io.BytesIO()
    torch.save([*states, patient.optimizer.state_dict()], file)
    patient.model = copy.deepcopy(patient.model)
    patient.begin()
    model, accelerator, optimizer = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    patient.model.load_state_dict(model)
    if whole:
        patient.optimizer.load_state_dict(optimizer)
    fits = whole and states[1]["parameters"] == patient.accelerator.layout.shapes
    if fits and states[1]["dtype"] == patient.accelerator.layout.dtype:
        patient.accelerator.load_state_dict(accelerator)


def ask(patient: Patient) -> None:
    call = patient.dice.choice([finish, reset_acceleration_history, remove_acceleration])
    call(patient.optimizer)
    if call is remove_acceleration:
        accelerate(patient.optimizer, patient.method)
        watch_base_steps(patient.optimizer, patient.watch)


FAULTS: list[Callable[[Patient], None]] = [
    bad_gradient, bad_parameter, bad_state, bad_history, move, recast, resize, freeze,
    raise_in_closure, raise_in_hook, interrupt, no_gradient, no_rate, add_group, replace_parameter,
    load_back, kill, ask,
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_no_fault_makes_parameters_worse_than_the_base_optimizer_does(
    method: str, fuzz: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "use_kernels", True)  # ops are seen in the dispatcher
    dice = random.Random(f"{method} {fuzz}")
    patient = Patient(dice, method)
    judges = {"residual", "descent"} & {*patient.method.tests}
    rate = dice.choice([0.05, 0.2, 0.5])
    for k in range(STEPS):
        good = [p.detach().clone() for p in patient.parameters]
        if dice.random() < rate:
            dice.choice(FAULTS)(patient)
        before, stats = patient.judged(), patient.accelerator.stats
        cut = stats.shortened + stats.averaged
        patient.by_base = None
        patient.step()
        now, stats = patient.judged(), patient.accelerator.stats
        allowed = [before] if patient.by_base is None else [before, patient.by_base]
        if judges and stats.shortened + stats.averaged == cut:
            assert any(same(now, x) for x in allowed), f"nobody has judged step {k}"
        if not (finite(patient.parameters) and finite([now])):
            assert not all(map(finite, zip(allowed))), f"left the finite numbers at step {k}"
            patient.optimizer.state.clear()  # a repair, as from a checkpoint
            for p, old in zip(patient.parameters, good, strict=True):
                repaired = old if old.shape == p.shape else torch.full_like(p, 0.1)
                p.data = repaired.to(p.dtype).nan_to_num(0.1, 0.1, 0.1).clamp(-10, 10)
        verdicts = stats.accepted + stats.rejected.total() + stats.dropped
        assert stats.extrapolations == verdicts + patient.accelerator.pending


def judged_points(training: Training, interrupt: Interrupt) -> list[Tensor] | None:
    """Of a step that is interrupted after the base step: those known by then; None if it is not."""
    with settled(training.optimizer):
        points = [training.point()]

    def after_base_step(*_: Any) -> None:
        points.append(training.point())
        interrupt.begun = True

    watch_base_steps(training.optimizer, after_base_step)
    training.closure()
    gradients = [p.grad for p in training.parameters]
    with suppress(KeyboardInterrupt), interrupt:
        training.optimizer.step()
    assert all(p.grad is g for p, g in zip(training.parameters, gradients, strict=True))
    return points if interrupt.at <= 0 else None


@pytest.mark.parametrize("moment", [8, 9, *some(6, 7, 10, 11, 12, 13)])
@variants
def test_a_step_that_is_interrupted_anywhere_leaves_a_judged_point(
    options: Method, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "use_kernels", True)  # ops are seen in the dispatcher
    for at in range(1, 100):
        training = Training(adam, options)
        training.run(moment)
        points = judged_points(training, Interrupt(at))
        if points is None:
            break
        assert any(torch.equal(training.point(), x) for x in points)
        assert not training.accelerator.pending
        assert training.accelerator.stats.restarts["interrupted"] == 1
        training.run(12)
        stats = training.accelerator.stats
        verdicts = stats.accepted + stats.rejected.total() + stats.dropped
        assert stats.extrapolations == verdicts + training.accelerator.pending
    assert at > 5
