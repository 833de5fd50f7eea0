"""The hooks that tie an accelerator to an optimizer.

The optimizer keeps its class, its ``step`` and its ``state_dict``. A hook can do more than
watch: it may hand ``step`` a wrapped closure, and it holds a base step back by taking the
gradients away for its duration, for then torch's optimizers touch neither parameters nor state.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import ops
from .accelerator import Accelerator

Closure = Callable[[], Any]


class StepHooks:
    """The pre- and post-hook of one accelerated optimizer."""

    def __init__(self, optimizer: Optimizer, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._closure: Closure | None = None
        self._parked: Gradients | None = None
        self._open = False  # between the two hooks of a step
        post = optimizer.register_step_post_hook(self.after)
        # Hooks that others have registered shall see the accelerated parameters.
        registered = cast("OrderedDict[int, Any]", optimizer._optimizer_step_post_hooks)
        registered.move_to_end(post.id, last=False)
        self._handles = [optimizer.register_step_pre_hook(self.before), post]

    def remove(self) -> None:
        """Untie the accelerator from its optimizer."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Before the base step; may return changed arguments for it."""
        # args[0] is the optimizer itself: torch passes on what its wrapper of step() got.
        self._closure = args[1] if len(args) > 1 else kwargs.get("closure")
        self._parked, self._open = None, True
        # GradScaler leaves this attribute on optimizers that skip a step by themselves.
        skip = "found_inf" if getattr(optimizer, "found_inf", None) else None
        accelerator = self.accelerator
        accelerator.before_step(optimizer.param_groups, self._closure is not None, skip)
        if accelerator.skips or not accelerator.jump_pending:
            return None
        if self._closure is None:
            self._hold_back_bad_step(optimizer)
            return None
        if len(args) > 1:
            return (args[0], self._checked_closure(optimizer), *args[2:]), kwargs
        return args, {**kwargs, "closure": self._checked_closure(optimizer)}

    @torch.no_grad()
    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """After the base step; of nested steps (a ``step`` that calls its parent's) the inner."""
        if not self._open:
            return
        self._open = False
        if self._parked is not None:
            self._parked.give_back()
            self._parked = None
        closure, self._closure = self._closure, None
        evaluate = None if closure is None else lambda: _loss(optimizer, closure)
        self.accelerator.after_step(evaluate)

    def _checked_closure(self, optimizer: Optimizer) -> Closure:
        closure = self._closure
        assert closure is not None

        def checked() -> Any:
            loss = closure()
            self._hold_back_bad_step(optimizer)
            return loss

        return checked

    def _hold_back_bad_step(self, optimizer: Optimizer) -> None:
        """A useless gradient at a pending jump must not enter the optimizer's state."""
        gradients = Gradients(optimizer)
        if not gradients.usable():
            self.accelerator.veto()
            gradients.take_away()
            self._parked = self._parked or gradients


class Gradients:
    """The gradients of an optimizer's parameters, to be taken away and given back."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._owners = [p for group in optimizer.param_groups for p in group["params"]]
        self._gradients = [p.grad for p in self._owners]

    def usable(self) -> bool:
        """Whether every entry and the sum of squares is finite; waits once for a device."""
        dense = [_values(g) for g in self._gradients if g is not None]
        return not dense or math.isfinite(float(ops.squared_norm(dense)))

    def take_away(self) -> None:
        """Leave the parameters without gradients."""
        for parameter in self._owners:
            parameter.grad = None

    def give_back(self) -> None:
        """Undo :meth:`take_away`."""
        for parameter, gradient in zip(self._owners, self._gradients, strict=True):
            parameter.grad = gradient


def _values(gradient: Tensor) -> Tensor:
    return gradient.detach().coalesce().values() if gradient.is_sparse else gradient


def _loss(optimizer: Optimizer, closure: Closure) -> float:
    """Run ``closure`` for its value; the gradients it gives this optimizer are thrown away."""
    gradients = Gradients(optimizer)
    gradients.take_away()
    try:
        with torch.enable_grad():
            loss = closure()
    finally:
        gradients.give_back()
    if loss is None:
        raise RuntimeError('safeguard="loss" needs the loss, but the closure returned None')
    return float(loss)
