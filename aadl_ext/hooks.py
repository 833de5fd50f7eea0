"""The hooks that tie an accelerator to an optimizer.

The optimizer keeps its class, its ``step`` and its ``state_dict``. A hook can do more than
watch: it may hand ``step`` a wrapped closure, and it holds a base step back by taking the
gradients away for its duration, for then torch's optimizers touch neither parameters nor state.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from .decisions import Number
from .gradients import Gradients
from .machine import Machine

Closure = Callable[[], Any]


class StepHooks:
    """The pre- and post-hook of one accelerated optimizer."""

    def __init__(self, optimizer: Optimizer, accelerator: Machine) -> None:
        self.accelerator = accelerator
        self._closure: Closure | None = None
        self._parked: Gradients | None = None
        self._open = False  # between the two hooks of a step
        # In a compiled step they run as they are: there is nothing to fuse around the ops.
        before = torch.compiler.disable(self.before)  # type: ignore[no-untyped-call]
        after = torch.compiler.disable(self.after)  # type: ignore[no-untyped-call]
        post = optimizer.register_step_post_hook(after)
        # Hooks that others have registered shall see the accelerated parameters.
        registered = cast("OrderedDict[int, Any]", optimizer._optimizer_step_post_hooks)
        registered.move_to_end(post.id, last=False)
        self._handles = [optimizer.register_step_pre_hook(before), post]

    def remove(self) -> None:
        """Untie the accelerator from its optimizer."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Before the base step; may return changed arguments for it."""
        # args[0] is the optimizer itself: torch passes on what its wrapper of step() got.
        self._closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if self._parked is not None and Gradients(optimizer).absent:
            self._parked.give_back()  # the base step raised while it was held back
        self._parked, self._open = None, True
        # GradScaler leaves this attribute on optimizers that skip a step by themselves.
        skip = "found_inf" if getattr(optimizer, "found_inf", None) else None
        accelerator = self.accelerator
        accelerator.before_step(optimizer.param_groups, self._closure is not None, skip)
        if not accelerator.wants_gradient:
            return None
        if self._closure is None:
            self._show_gradients(optimizer)
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
        factor = self.accelerator.take_momentum_factor()
        if factor is not None:
            _scale_momentum(optimizer, factor)

    def _checked_closure(self, optimizer: Optimizer) -> Closure:
        closure = self._closure
        assert closure is not None

        def checked() -> Any:
            loss = closure()
            self._show_gradients(optimizer)
            return loss

        return checked

    @torch.no_grad()
    def _show_gradients(self, optimizer: Optimizer) -> None:
        """Let the accelerator see them; from a step that it holds back they are taken away.

        Where only the device knows whether it is held back, they are made zero instead: the base
        optimizer then moves on its momentum, which the accelerator undoes, and it counts the step.
        """
        gradients = Gradients(optimizer)
        held_back = self.accelerator.see_gradient(gradients)
        if isinstance(held_back, Tensor):
            gradients.clear_(held_back)
        elif held_back:
            gradients.take_away()
            self._parked = self._parked or gradients


def _scale_momentum(optimizer: Optimizer, factor: Number) -> None:
    """Multiply the first moments of torch's optimizers."""
    for state in optimizer.state.values():
        for name in ("momentum_buffer", "exp_avg"):
            if isinstance(state.get(name), Tensor):
                state[name].mul_(factor)


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
