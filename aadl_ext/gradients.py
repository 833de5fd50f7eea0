"""The gradients that an optimizer is about to use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
from .decisions import Flag, finite, number
from .flat import Layout

# They add weight_decay * w to the gradient, unless the group says that it is decoupled.
DECAY_IN_LOSS = (SGD, ASGD, Adam, Adamax, NAdam, RAdam, RMSprop, Adagrad, Adadelta)


class Gradients:
    """The gradients of an optimizer's parameters: to be looked at, taken away and given back."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._groups = optimizer.param_groups
        self._owners = [p for group in self._groups for p in group["params"]]
        self._gradients = [p.grad for p in self._owners]
        # A fused optimizer divides by the scale of GradScaler itself.
        self._scale = getattr(optimizer, "grad_scale", None)
        self._decays = isinstance(optimizer, DECAY_IN_LOSS)

    def usable(self, device: torch.device) -> Flag:
        """Whether every entry and the sum of squares is finite; told on a device."""
        dense = [_values(g) for g in self._gradients if g is not None]
        return not dense or finite(number(ops.squared_norm(dense).to(device)))

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
