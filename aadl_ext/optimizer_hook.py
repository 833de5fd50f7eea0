"""Everything that knows ``torch.optim``: hooks, closures, gradients, learning rates.

The optimizer keeps its class, its ``step`` and its ``state_dict``. A hook can do more than
watch: it may hand ``step`` a wrapped closure, and it leaves a base step out by taking the
gradients away for its duration, for then torch's optimizers touch neither parameters nor state.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import (
    ASGD,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)

from . import ops
from .accelerator import Accelerator
from .parameters import Layout

Closure = Callable[[], Any]

# They add weight_decay * w to the gradient, unless the group says that it is decoupled.
DECAY_IN_LOSS = (SGD, ASGD, Adam, Adamax, NAdam, RAdam, RMSprop, Adagrad, Adadelta)


class OptimizerHook:
    """The pre- and post-hook of one accelerated optimizer."""

    def __init__(self, optimizer: Optimizer, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._closure: Closure | None = None
        self._parked: Gradients | None = None
        self._open = False  # between the two hooks of a step
        self._rates = Rates()
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
            self._parked.give_back()  # the base step raised while it was left out
        self._parked, self._open = None, True
        # GradScaler leaves this attribute on optimizers that skip a step by themselves.
        skip = "found_inf" if getattr(optimizer, "found_inf", None) else None
        rates = [self._rates.read(group.get("lr", 1.0)) for group in optimizer.param_groups]
        accelerator, has_closure = self.accelerator, self._closure is not None
        accelerator.before_step(optimizer.param_groups, rates, has_closure, skip)
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
        """Let the accelerator see them; from a step that it leaves out they are taken away.

        Where only the device knows whether it is left out, they are made zero instead: the base
        optimizer then moves on its momentum, which the accelerator undoes, and it counts the step.
        """
        gradients = Gradients(optimizer)
        left_out = self.accelerator.see_gradient(gradients)
        if left_out is None:
            return
        if not left_out.is_cpu:
            gradients.clear_(left_out)
        elif left_out:  # the one flag that a step reads
            gradients.take_away()
            self._parked = self._parked or gradients


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


class Rates:
    """Reads learning rates; a tensor on a device once, and again when it has changed."""

    def __init__(self) -> None:
        self._read: dict[int, tuple[Tensor, int, float]] = {}

    def read(self, value: float | Tensor) -> float:
        """The number on the host."""
        if not isinstance(value, Tensor) or value.is_cpu:
            return float(value)
        last, version, known = self._read.get(id(value), (None, 0, 0.0))
        if last is not value or version != value._version:
            known = float(value)
            self._read[id(value)] = (value, value._version, known)
        return known


class Gradients:
    """The gradients of an optimizer's parameters: to be looked at, taken away and given back."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._groups = optimizer.param_groups
        self._owners = [p for group in self._groups for p in group["params"]]
        self._gradients = [p.grad for p in self._owners]
        # A fused optimizer divides by the scale of GradScaler itself.
        self._scale = getattr(optimizer, "grad_scale", None)
        self._decays = isinstance(optimizer, DECAY_IN_LOSS)

    def squared_norm(self, device: torch.device) -> Tensor:
        """``[]`` float64 over all of them, on a device."""
        dense = [_values(g) for g in self._gradients if g is not None]
        if not dense:
            return torch.zeros((), dtype=torch.float64, device=device)
        return ops.squared_norm(dense).to(device)

    def gather(self, layout: Layout, point: Tensor, out: Tensor) -> bool:
        """Fill ``out`` with the gradient at ``point`` of what the optimizer minimizes.

        That is with its sign under ``maximize``, and with the weight decay of torch's optimizers
        where it is a part of the loss (not in AdamW). A parameter without a gradient counts
        with zero; false if there is none at all.
        """
        gradients = [p.grad for p in layout.parameters]
        if all(g is None for g in gradients):
            return False
        dense = [
            p.detach().new_zeros(()).expand(p.shape) if g is None else _dense(g)
            for p, g in zip(layout.parameters, gradients, strict=True)
        ]
        ops.gather(dense, out)
        if self._scale is not None:
            out.div_(self._scale.to(out.device))
        for part, negative, decay in self._runs(layout, gradients):
            if negative:
                out[part].neg_()
            if decay:
                out[part].add_(point[part], alpha=decay)
        return True

    def _runs(
        self, layout: Layout, gradients: list[Tensor | None]
    ) -> Iterator[tuple[slice, bool, float]]:
        """Neighbours that are treated alike: where they lie, whether maximized, their decay."""
        segment = start = stop = 0
        treatments = [self._treatment(group) for group in self._groups]
        last = (False, 0.0)
        if all(treatment == last for treatment in treatments):
            return
        for parameter, gradient in zip(layout.parameters, gradients, strict=True):
            while stop >= layout.offsets[segment + 1]:
                segment += 1
            negative, decay = treatments[layout.groups[segment]]
            now = (negative, 0.0 if gradient is None else decay)
            if now != last:
                yield slice(start, stop), *last
                start, last = stop, now
            stop += parameter.numel()
        yield slice(start, stop), *last

    def _treatment(self, group: dict[str, Any]) -> tuple[bool, float]:
        """Whether its gradients are to be negated, and the weight decay in its loss."""
        in_loss = self._decays and not group.get("decoupled_weight_decay", False)
        decay = float(group.get("weight_decay", 0.0)) if in_loss else 0.0
        return bool(group.get("maximize", False)), decay

    def take_away(self) -> None:
        """Leave the parameters without gradients."""
        for parameter in self._owners:
            parameter.grad = None

    def clear_(self, when: Tensor) -> None:
        """Make them zero, in place, where a flag on their device is true."""
        present = [g._values() if g.is_sparse else g for g in self._gradients if g is not None]
        zeros = torch.zeros(sum(g.numel() for g in present), device=when.device)
        ops.scatter_(present, zeros, when=when)

    @property
    def absent(self) -> bool:
        """Whether no parameter has one."""
        return all(gradient is None for gradient in self._gradients)

    def give_back(self) -> None:
        """Undo :meth:`take_away`."""
        for parameter, gradient in zip(self._owners, self._gradients, strict=True):
            parameter.grad = gradient


def _values(gradient: Tensor) -> Tensor:
    return gradient.detach().coalesce().values() if gradient.is_sparse else gradient


def _dense(gradient: Tensor) -> Tensor:
    return gradient.detach().to_dense() if gradient.is_sparse else gradient
