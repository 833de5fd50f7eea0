"""Everything that knows ``torch.optim``: wrappers, hooks, closures, gradients, learning rates.

The optimizer keeps its class, its ``step`` and its ``state_dict``. A hook can do more than
watch: it may hand ``step`` a wrapped closure, and it leaves a base step out by taking the
gradients away for its duration, for then torch's optimizers touch neither parameters nor state.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise
from operator import attrgetter
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
from torch.utils.hooks import RemovableHandle

from . import ops
from .accelerator import Accelerator
from .parameters import Layout, memory_order, ordered
from .ranks import local, local_gradient

logger = logging.getLogger("aadl_ext")

Closure = Callable[..., Any]
Hooks = OrderedDict[int, Any]

IS_SPARSE = attrgetter("is_sparse")
# They add weight_decay * w to the gradient, unless the group says that it is decoupled.
DECAY_IN_LOSS = (SGD, ASGD, Adam, Adamax, NAdam, RAdam, RMSprop, Adagrad, Adadelta)

# Where wrappers keep the optimizer whose step ends theirs.
INSIDE = ("optimizer", "base_optimizer", "original_optimizer", "_optimizer", "_base_optimizer")
PASSES = 20  # backward passes in which a step should have come


# ---- which optimizer steps --------------------------------------------------------------------


def stepping(optimizer: Any) -> Optimizer:
    """The optimizer whose hooks see the steps of this one: itself, or the one inside a wrapper.

    A wrapper is seen through where groups and state are those of the optimizer inside it. With a
    state of its own it may move the parameters itself, before the gradients are used or after.

    Raises:
        TypeError: no hook would see its steps, or they are more than those of the one inside.
        ValueError: steps are to be differentiated.
    """
    found: Any = optimizer
    if not isinstance(found, Optimizer):
        advice = _instead("optimizer", found)
        if isinstance(found, torch.nn.Module):
            advice = "; make an optimizer of its parameters and pass that"
        raise TypeError(f"expected a torch.optim.Optimizer, got {_name(found)}{advice}")
    for (path, outer), (_, inner) in pairwise(_within(optimizer)):
        if _parameters(outer, inner) != _parameters(inner):
            break  # that one is for other things
        if _state(outer, inner) is not _state(inner):
            raise TypeError(
                f"{_name(outer)} holds the optimizer {_name(inner)} and has a state of its own, as "
                f"those have that move the parameters themselves{_instead(path, outer)}"
            )
        found = inner
    hooked = getattr(type(found).step, "hooked", False)
    if not hooked or not hasattr(found, "_optimizer_step_pre_hooks"):
        advice = _instead("optimizer", found)
        raise TypeError(
            f"{_name(found)} is a torch.optim.Optimizer by name only: its step runs no step hooks, "
            "since Optimizer.__init__ was not called"
            f"{advice or '; let its __init__ call super().__init__(params, defaults)'}"
        )
    _refuse_differentiable(found)
    return cast("Optimizer", found)


def find(optimizer: Any) -> OptimizerHook | None:
    """The hook of an accelerated optimizer, or of one inside it.

    The optimizer itself holds it, among its step hooks: copies drop them.
    """
    for _, place in _within(optimizer):
        for hook in getattr(place, "_optimizer_step_pre_hooks", {}).values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, OptimizerHook):
                return owner
    return None


def _within(optimizer: Any) -> Iterator[tuple[str, Any]]:
    """It and the optimizers inside it, outermost first, each with how it is reached."""
    path, seen = "optimizer", [optimizer]
    yield path, optimizer
    while name := _attribute(seen[-1], INSIDE):
        inner, path = getattr(seen[-1], name), f"{path}.{name}"
        if any(inner is x for x in seen):
            return
        seen.append(inner)
        yield path, inner


def _attribute(holder: Any, names: Any) -> str | None:
    """The first of these attributes that is an optimizer."""
    return next((x for x in names if isinstance(getattr(holder, x, None), Optimizer)), None)


def _instead(path: str, holder: Any) -> str:
    """What to accelerate in its place, if it holds an optimizer."""
    name = _attribute(holder, (*INSIDE, *getattr(holder, "__dict__", ())))
    if name is None:
        return ""
    return (
        f"; accelerate that inside, accelerate({path}.{name}), unless other values are swapped "
        "into the parameters while it steps"
    )


def _name(thing: Any) -> str:
    return type(thing).__name__


def _parameters(optimizer: Any, default: Any = None) -> set[int]:
    groups = getattr(optimizer, "param_groups", getattr(default, "param_groups", ()))
    return {id(p) for group in groups for p in group["params"]}


def _state(optimizer: Any, default: Any = None) -> Any:
    return getattr(optimizer, "state", getattr(default, "state", None))


def _refuse_differentiable(optimizer: Optimizer) -> None:
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise ValueError(
            f"a parameter group of this {_name(optimizer)} has differentiable=True; what "
            "acceleration does to the parameters has no derivative: use differentiable=False, or "
            "leave the optimizer plain"
        )


# ---- its hooks --------------------------------------------------------------------------------


class OptimizerHook:
    """The pre- and post-hook of one accelerated optimizer.

    Whatever others register, and when: ours is the last before the base step, and sees gradients
    and closure as that gets them; and the first after it, so that others see the accelerated
    parameters.
    """

    def __init__(self, optimizer: Optimizer, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._closure: Closure | None = None
        self._parked: Gradients | None = None
        self._open = False  # between the two hooks of a step
        self._nested = False  # whether a step was seen within one, where gradients may change
        self._needs_gradients: bool | None = None  # whether it fails without; None: not known yet
        self._first: Tensor | None = None  # parameter with a gradient in this step
        self._consumes = False  # whether steps leave no gradients
        self._rates = Rates()
        self._pre = optimizer.register_step_pre_hook(self.before)
        self._post = optimizer.register_step_post_hook(self.after)
        _hooks(self._post).move_to_end(self._post.id, last=False)
        self._load = optimizer.register_load_state_dict_post_hook(self.loaded)
        self._watch = self._watch_gradients(optimizer)
        if optimizer.state:
            accelerator.loaded.add("optimizer")

    def remove(self) -> None:
        """Untie the accelerator from its optimizer."""
        _put_back(_hooks(self._pre))
        for handle in (self._pre, self._post, self._load, self._watch):
            if handle is not None:
                handle.remove()

    # In a compiled step hooks run as they are: there is nothing to fuse around the ops.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Before the base step; may return changed arguments for it."""
        hooks = _hooks(self._pre)
        last = next(reversed(hooks))
        if last == self._pre.id:
            return self.begin(optimizer, args, kwargs)
        # Others came later. Hooks cannot change places while they run, so this once the last takes
        # ours along.
        _put_back(hooks)
        hooks[last] = Companion(hooks[last], self)
        return None

    @torch.no_grad()
    def begin(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """With the arguments, and from the gradients, that the base step gets."""
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
        _refuse_differentiable(optimizer)
        # args[0] is the optimizer itself: torch passes on what its wrapper of step() got. Some
        # optimizers take other things than a closure.
        by_position = len(args) > 1 and callable(args[1])
        closure = args[1] if by_position else kwargs.get("closure")
        self._closure = closure if callable(closure) else None
        if self._parked is not None and Gradients(optimizer).absent:
            self._parked.give_back()  # the base step raised while it was left out
        self._nested |= self._open
        self._parked, self._open = None, True
        # GradScaler leaves this attribute on optimizers that skip a step by themselves.
        skip = "found_inf" if getattr(optimizer, "found_inf", None) else None
        rates = [self._rates.read(i, x.get("lr")) for i, x in enumerate(optimizer.param_groups)]
        accelerator, has_closure = self.accelerator, self._closure is not None
        shown = not (has_closure or self._nested)
        accelerator.before_step(optimizer.param_groups, rates, has_closure, skip, shown)
        with_gradient = (p for p in accelerator.layout.parameters if p.grad is not None)
        self._first = next(with_gradient, None)
        if not accelerator.wants_gradient:
            return None
        if self._closure is None:
            self._show_gradients(optimizer)
            return None
        if by_position:
            return (args[0], self._checked_closure(optimizer), *args[2:]), kwargs
        return args, {**kwargs, "closure": self._checked_closure(optimizer)}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """After the base step; of nested steps (a ``step`` that calls its parent's) the inner."""
        if not self._open:
            return
        self._open = False
        hooks = _hooks(self._pre)
        if next(reversed(hooks)) != self._pre.id:
            _put_back(hooks)
            hooks.move_to_end(self._pre.id)
        if self._parked is not None:
            if not self._consumes:
                self._parked.give_back()
            self._parked = None
        elif self._first is not None:
            self._consumes = self._first.grad is None
        self._first = None
        closure, self._closure = self._closure, None
        evaluate = None if closure is None else lambda: _loss(optimizer, closure)
        try:
            self.accelerator.after_step(evaluate)
        except BaseException:  # out of memory, or the user's Ctrl-C
            self.accelerator.break_off()
            raise

    def loaded(self, optimizer: Optimizer) -> None:
        """After ``load_state_dict``; before the first step some frameworks call it for nothing."""
        if optimizer.state or self.accelerator.iteration.k:
            self.accelerator.loaded.add("optimizer")

    def _watch_gradients(self, optimizer: Optimizer) -> RemovableHandle | None:
        """Warn once if gradients come, but no step until then; keeps nothing alive."""
        name, passes = _name(optimizer), 0

        def count(_: Tensor) -> None:
            nonlocal passes
            passes += 1
            if passes == PASSES:
                handle.remove()
                logger.warning(
                    "no step of the accelerated %s was seen in %d backward passes. If another "
                    "optimizer steps its parameters, such as one inside it, accelerate that one; "
                    "if gradients of more passes than these are summed up, all is well",
                    name,
                    PASSES,
                )

        leaf = next((p for p in self.accelerator.layout.parameters if p.is_leaf), None)
        if leaf is None:
            return None
        handle = leaf.register_post_accumulate_grad_hook(count)  # type: ignore[no-untyped-call]
        weakref.finalize(self, handle.remove)
        return cast("RemovableHandle", handle)

    def _checked_closure(self, optimizer: Optimizer) -> Closure:
        closure = self._closure
        assert closure is not None

        def checked(*args: Any, **kwargs: Any) -> Any:
            loss = closure(*args, **kwargs)
            self._show_gradients(optimizer)
            return loss

        return checked

    @torch.no_grad()
    def _show_gradients(self, optimizer: Optimizer) -> None:
        """Let the accelerator see them; from a step that it leaves out they are taken away.

        Where only the device knows whether it is left out, or the base optimizer cannot do without,
        they are made zero instead: it then moves on its momentum, which the accelerator undoes, and
        it counts the step.
        """
        gradients = Gradients(optimizer)
        left_out = self.accelerator.see_gradient(gradients)
        if left_out is None:
            return
        if not left_out.is_cpu:
            gradients.clear_(left_out)
        elif left_out:  # the one flag that a step reads
            gradients.take_away()
            if self._needs_gradients is None:
                self._needs_gradients = needs_gradients(optimizer)
            if self._needs_gradients:
                gradients.give_back()
                gradients.clear_(left_out)
            else:
                self._parked = self._parked or gradients


class Companion:
    """The pre-hook of another that was registered after ours, and ours behind it."""

    def __init__(self, other: Callable[..., Any], ours: OptimizerHook) -> None:
        self.other, self.ours = other, ours

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Run both, ours with what the other returns."""
        result = self.other(optimizer, args, kwargs)
        if isinstance(result, tuple) and len(result) == 2:
            args, kwargs = result
        elif result is not None:
            return result  # torch says what is wrong with it
        changed = self.ours.begin(optimizer, args, kwargs)
        return result if changed is None else changed


def needs_gradients(optimizer: Optimizer) -> bool:
    """Whether its step fails where parameters have no gradient, in place of passing them over.

    Tried on a copy of it with a parameter of its own, of one entry, in place of each group's. Those
    of torch do not fail.
    """
    step: Any = type(optimizer).step
    if step.__module__.startswith("torch.optim."):
        return False
    groups = [
        {**group, "params": [p.new_zeros([1] * p.ndim) for p in group["params"][:1]]}
        for group in optimizer.param_groups
    ]
    try:
        copy = object.__new__(type(optimizer))
        copy.__dict__.update(optimizer.__dict__, param_groups=groups, state=defaultdict(dict))
        for hooks in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
            copy.__dict__[hooks] = OrderedDict()
        step.__wrapped__(copy)
    except Exception as error:
        logger.debug("%s cannot do without gradients: %s", _name(optimizer), error)
        return True
    return False


def _hooks(handle: RemovableHandle) -> Hooks:
    """The hooks of an optimizer among which this one is."""
    return cast("Hooks", handle.hooks_dict_ref() or OrderedDict())


def _put_back(hooks: Hooks) -> None:
    """The hooks of others in the places of their companions; also of a step that raised."""
    for key, hook in hooks.items():
        if isinstance(hook, Companion):
            hooks[key] = hook.other


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
        raise RuntimeError(
            'safeguard="loss" compares losses, but the closure returned None: let it return the '
            'loss, or accelerate with safeguard="residual"'
        )
    return float(loss)


class Rates:
    """Reads learning rates; a tensor on a device once, and again when it has changed."""

    def __init__(self) -> None:
        self._read: dict[int, tuple[Tensor, int, float]] = {}

    def read(self, group: int, value: Any) -> float:
        """That of a group, on the host; 1 for what is no number: None, several, not finite."""
        if not isinstance(value, Tensor) or value.is_cpu:
            return _number(value)
        last, version, known = self._read.get(group, (None, 0, 0.0))
        if last is not value or version != value._version:
            known = _number(value)
            self._read[group] = (value, value._version, known)
        return known


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        return 1.0
    return number if math.isfinite(number) else 1.0


class Gradients:
    """The gradients of an optimizer's parameters: to be looked at, taken away and given back."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._groups = optimizer.param_groups
        # A fused optimizer divides by the scale of GradScaler itself.
        self._scale = getattr(optimizer, "grad_scale", None)
        self._decays = isinstance(optimizer, DECAY_IN_LOSS)

    @cached_property
    def _owners(self) -> list[Tensor]:
        return [p for group in self._groups for p in group["params"]]

    @cached_property
    def _gradients(self) -> list[Tensor | None]:
        """To be given back as they are."""
        return [p.grad for p in self._owners]

    @property
    def reach(self) -> float:
        """The largest entry of a parameter that decoupled weight decay leaves to exact gradients.

        Adam with a decay of lambda then minimizes the loss within ``|w| <= 1 / lambda`` (Xie and Li
        2024): its steps are at most as long as the rate, and so is the decay there.
        """
        decays = [
            group["weight_decay"]
            for group in self._groups
            if not self._decays_in_loss(group) and isinstance(group.get("weight_decay"), float)
        ]
        return min((1 / decay for decay in decays if decay > 0), default=math.inf)

    def squared_norm(self, layout: Layout) -> Tensor:
        """``[]`` float64 over all of them, those outside the layout too, on its device."""
        own = map(local_gradient, self._owners) if layout.sharded else self._gradients
        dense = [_as_it_lies(g) for g in own if g is not None]
        if not dense:
            return torch.zeros((), dtype=torch.float64, device=layout.device)
        return ops.squared_norm(dense).to(layout.device)

    def listed(self, layout: Layout) -> tuple[list[Tensor], list[float]]:
        """The gradients as they are, and the weight decay that is part of the loss of each.

        An empty list where they have to be gathered: some are missing, sparse, or not where the
        layout is, or the optimizer scales or negates them.
        """
        treated = self._scale is not None or any(negative for negative, _ in self._treatments)
        gradients = [] if treated or not layout.in_place else layout.gradients
        try:  # quickly, since it is done in each step
            if not gradients or any(map(IS_SPARSE, gradients)):
                return [], []
        except AttributeError:  # of None
            return [], []
        known = [*layout.ordered(cast("list[Tensor]", gradients))]
        decays = [decay for _, decay in self._treatments]
        return known, [decays[group] for group in layout.owners] if any(decays) else []

    def gather(self, layout: Layout, point: Tensor, out: Tensor) -> bool:
        """Fill ``out`` with the gradient at ``point`` of what the optimizer minimizes.

        That is with its sign under ``maximize``, and with the weight decay of torch's optimizers
        where it is a part of the loss (not in AdamW). A parameter without a gradient counts
        with zero; false if there is none at all, and then ``out`` is zero.
        """
        gradients = layout.gradients
        if all(g is None for g in gradients):
            out.zero_()
            return False
        dense = [
            p.detach().new_zeros(()).expand(p.shape) if g is None else _dense(g)
            for p, g in zip(layout.local, gradients, strict=True)
        ]
        ops.gather(layout.ordered(dense), out)
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
        start = stop = 0
        last = (False, 0.0)
        if not any(map(any, self._treatments)):
            return
        for parameter, owner, gradient in zip(layout.local, layout.owners, gradients, strict=True):
            negative, decay = self._treatments[owner]
            now = (negative, 0.0 if gradient is None else decay)
            if now != last:
                yield slice(start, stop), *last
                start, last = stop, now
            stop += parameter.numel()
        yield slice(start, stop), *last

    @cached_property
    def _treatments(self) -> list[tuple[bool, float]]:
        """Of each group: whether gradients are to be negated, and the weight decay in its loss."""
        return [
            (
                bool(group.get("maximize", False)),
                float(group.get("weight_decay", 0.0)) if self._decays_in_loss(group) else 0.0,
            )
            for group in self._groups
        ]

    def _decays_in_loss(self, group: dict[str, Any]) -> bool:
        return self._decays and not group.get("decoupled_weight_decay", False)

    def take_away(self) -> None:
        """Leave the parameters without gradients."""
        for parameter, gradient in zip(self._owners, self._gradients, strict=True):
            if gradient is not None:
                parameter.grad = None

    def clear_(self, when: Tensor) -> None:
        """Make them zero, in place, where a flag on their device is true."""
        present = [local(g) for g in self._gradients if g is not None]
        present = [g._values() if g.is_sparse else _as_it_lies(g) for g in present]
        size = sum(g.numel() for g in present)
        zeros = torch.zeros(size, dtype=torch.float32, device=when.device)
        ops.scatter_(present, zeros, when=when)

    @property
    def absent(self) -> bool:
        """Whether no parameter has one."""
        return all(gradient is None for gradient in self._gradients)

    def give_back(self) -> None:
        """Undo :meth:`take_away`."""
        for parameter, gradient in zip(self._owners, self._gradients, strict=True):
            parameter.grad = gradient


def _as_it_lies(gradient: Tensor) -> Tensor:
    """Its entries, of a dense one in the order that they have in memory."""
    if gradient.is_sparse:
        return gradient.detach().coalesce().values()
    return ordered(gradient, memory_order(gradient))


def _dense(gradient: Tensor) -> Tensor:
    return gradient.detach().to_dense() if gradient.is_sparse else gradient
