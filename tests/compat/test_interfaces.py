"""Optimizers in name, wrappers around them, and steps with arguments of all kinds."""

from __future__ import annotations

import gc
import logging
import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from training import JUMPY, NEWTON, Method, Training, methods, momentum, sgd

from aadl_ext import (
    accelerate,
    get_accelerator,
    remove_acceleration,
    reset_acceleration_history,
)

STEPS = 16

# ---- wrappers that hand their steps on ---------------------------------------------------------


class Prepared(Optimizer):
    """As HF Accelerate's: properties, and no ``Optimizer.__init__``."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def state(self) -> Any:
        return self.optimizer.state

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    @property
    def defaults(self) -> Any:
        return self.optimizer.defaults

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


class Private(Prepared):
    """As Opacus': gradients are made in its step."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.original_optimizer = optimizer

    optimizer: Any = property(lambda self: self.original_optimizer)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad *= 0.5
        return self.original_optimizer.step(closure)


class Passing:
    """As Lightning's: of a class derived from that of the optimizer inside, which has the rest."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        kind = type(optimizer)
        self.__class__ = type("Passing" + kind.__name__, (Passing, kind), {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return self._optimizer.step(closure or (lambda: None))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


class Shallow:
    """As Fabric's: with a copy of the attributes."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.__dict__ = dict(vars(optimizer))
        self._optimizer = optimizer
        kind = type(optimizer)
        self.__class__ = type("Shallow" + kind.__name__, (Shallow, kind), {})

    @property
    def optimizer(self) -> Optimizer:
        return self._optimizer

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return self._optimizer.step(closure)


class Bare(Optimizer):
    """No more than the optimizer inside and a step."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._base_optimizer = optimizer

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return self._base_optimizer.step(closure)


WRAPPERS: list[Any] = [Prepared, Private, Passing, Shallow, Bare, lambda x: Prepared(Passing(x))]
wrappers = pytest.mark.parametrize("wrap", WRAPPERS)


def wrapped(wrap: Any) -> tuple[Training, Any]:
    training = Training(momentum, None)
    return training, wrap(training.optimizer)


@wrappers
@methods
def test_a_wrapper_that_hands_its_steps_on_is_seen_through(wrap: Any, options: Method) -> None:
    training, outer = wrapped(wrap)
    assert accelerate(outer, options) is outer
    reference, around = Training(momentum, options), None
    around = wrap(reference.optimizer)

    def step(run: Training, optimizer: Any) -> None:
        run.closure()
        optimizer.step()

    points = training.run(STEPS, lambda: step(training, outer))
    assert torch.equal(points, reference.run(STEPS, lambda: step(reference, around)))
    accelerator = get_accelerator(outer)
    assert accelerator is get_accelerator(training.optimizer)
    assert accelerator.stats.steps == STEPS
    assert accelerator.stats.extrapolations > 2


@wrappers
@pytest.mark.parametrize("first", ["wrapper", "inside"])
def test_it_is_found_from_outside_and_from_inside(wrap: Any, first: str) -> None:
    training, outer = wrapped(wrap)
    accelerate(outer if first == "wrapper" else training.optimizer, JUMPY)
    for again in (outer, training.optimizer, wrap(training.optimizer)):
        with pytest.raises(ValueError, match="accelerated already; call remove_acceleration"):
            accelerate(again)
        reset_acceleration_history(again)
    assert get_accelerator(outer).stats.restarts == {"request": 3}
    remove_acceleration(outer)
    assert not training.optimizer._optimizer_step_pre_hooks
    assert not training.optimizer._optimizer_step_post_hooks
    assert not training.optimizer._optimizer_load_state_dict_post_hooks
    for one in (outer, training.optimizer):
        with pytest.raises(ValueError, match="is not accelerated"):
            get_accelerator(one)
    accelerate(training.optimizer)


# ---- wrappers that do more ---------------------------------------------------------------------


class Lookahead(Optimizer):
    """Goes back half of the way at every third step; its hooks would never run."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.state = defaultdict(dict)
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}
        self.slow = [p.detach().clone() for p in self.param_groups[0]["params"]]
        self.count = 0

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = self.optimizer.step(closure)
        self.count += 1
        if self.count % 3 == 0:
            with torch.no_grad():
                for p, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
                    p.copy_(slow.lerp_(p, 0.5))
        return loss


class SAM(Optimizer):
    """Takes the gradient of the worst point near by; in one step or in two."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer.param_groups, {})
        self.base_optimizer = optimizer
        self.param_groups = optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            self.state[p]["own"] = p.detach().clone()
            p.add_(p.grad, alpha=0.01)

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.copy_(self.state[p]["own"])
        self.base_optimizer.step()

    def step(self, closure: Callable[[], Any]) -> None:
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


@pytest.mark.parametrize(
    ("wrap", "inside"),
    [(Lookahead, "optimizer"), (SAM, "base_optimizer")],
    ids=["Lookahead", "SAM"],
)
def test_one_with_a_state_of_its_own_is_refused_and_names_what_to_accelerate(
    wrap: Any, inside: str
) -> None:
    training, outer = wrapped(wrap)
    with pytest.raises(TypeError, match=rf"state of its own.*accelerate\(optimizer\.{inside}\)"):
        accelerate(outer)
    with pytest.raises(TypeError, match=rf"accelerate\(optimizer\.optimizer\.{inside}\)"):
        accelerate(Prepared(outer))
    assert not training.optimizer._optimizer_step_pre_hooks
    accelerate(getattr(outer, inside))
    assert get_accelerator(outer) is get_accelerator(training.optimizer)


@methods
def test_what_a_lookahead_moves_is_noticed(options: Method) -> None:
    training = Training(sgd, options)
    outer = Lookahead(training.optimizer)

    def step() -> None:
        training.closure()
        outer.step()

    training.run(60, step)
    stats = get_accelerator(outer).stats
    assert stats.steps == 60
    assert stats.extrapolations > 3
    assert stats.dropped == stats.restarts["moved_outside"] > 0
    assert training.loss() < Training().loss()


@methods
def test_both_ways_of_sam_walk_the_same_way(options: Method) -> None:
    at_once, outer = wrapped(SAM)
    in_two, other = wrapped(SAM)
    for optimizer in (outer, other):
        accelerate(optimizer.base_optimizer, options)

    def one_step() -> None:
        at_once.closure()
        outer.step(at_once.closure)

    def two_steps() -> None:
        in_two.closure()
        other.first_step()
        in_two.closure()
        other.second_step()

    assert torch.equal(at_once.run(STEPS, one_step), in_two.run(STEPS, two_steps))
    stats = get_accelerator(other).stats
    assert stats.steps == STEPS
    assert stats.accepted > 0
    assert stats.dropped == 0


class Nameless(Optimizer):
    """An optimizer by its class only."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Holder:
    """No optimizer, but it has one."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.base = optimizer


def test_optimizers_in_name_only_are_refused_with_what_to_do() -> None:
    inner = SGD([nn.Parameter(torch.ones(3))], lr=0.1)
    with pytest.raises(TypeError, match=r"Nameless .* by name only.*super\(\)\.__init__"):
        accelerate(Nameless())
    with pytest.raises(TypeError, match=r"by name only.*accelerate\(optimizer\.optim\)"):
        accelerate(Nameless(optim=inner))
    with pytest.raises(TypeError, match=r"got Holder; .*accelerate\(optimizer\.base\)"):
        accelerate(Holder(inner))  # type: ignore[type-var]
    looping = Nameless()
    looping.optimizer = looping
    with pytest.raises(TypeError, match="by name only"):
        accelerate(looping)


def test_an_optimizer_inside_for_other_parameters_is_left_alone() -> None:
    training = Training(sgd, None)
    training.optimizer.optimizer = SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    accelerate(training.optimizer, JUMPY)
    assert torch.equal(training.run(STEPS), Training(sgd, JUMPY).run(STEPS))


# ---- optimizers that are never stepped ----------------------------------------------------------


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [x.getMessage() for x in caplog.records if x.levelno == logging.WARNING]


def test_an_optimizer_that_is_never_stepped_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    training = Training(sgd, JUMPY)
    for _ in range(19):
        training.closure()
    assert caplog.records == []
    for _ in range(30):
        training.closure()
    (warning,) = warnings_of(caplog)
    assert "no step of the accelerated SGD was seen in 20 backward passes" in warning
    assert not training.parameters[0]._post_accumulate_grad_hooks


@pytest.mark.parametrize("end", ["step", "remove", "delete"])
def test_the_watch_ends_with_the_first_step_or_the_acceleration(
    end: str, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training(sgd, JUMPY)
    training.closure()
    if end == "step":
        training.optimizer.step()
    elif end == "remove":
        remove_acceleration(training.optimizer)
    else:
        accelerator = weakref.ref(training.accelerator)
        training.optimizer = sgd(training.model.parameters())
        gc.collect()
        assert accelerator() is None
    assert not training.parameters[0]._post_accumulate_grad_hooks
    for _ in range(30):
        training.closure()
    assert caplog.records == []


# ---- arguments of step, rates, equality ---------------------------------------------------------


class Informed(SGD):
    """Takes something else than a closure, or beside it."""

    def step(self, info: Any = None, closure: Any = None, **others: Any) -> Any:  # type: ignore
        self.got = (info, closure, others)
        if callable(closure):
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.add_(p.grad, alpha=-group["lr"])
        return info


@pytest.mark.parametrize("info", [{"damping": True}, torch.tensor(3.0), 0, "text"])
@pytest.mark.parametrize("by_name", [False, True])
@methods
def test_only_what_can_be_called_is_a_closure(info: Any, by_name: bool, options: Method) -> None:
    make = partial(Informed, lr=0.3)
    informed, reference = Training(make, options), Training(make, options)

    def step() -> None:
        informed.closure()
        optimizer: Any = informed.optimizer
        assert (optimizer.step(info=info) if by_name else optimizer.step(info)) is info
        assert optimizer.got[0] is info

    assert torch.equal(informed.run(STEPS, step), reference.run(STEPS))
    assert informed.accelerator.stats.extrapolations > 3


@methods
def test_a_closure_by_name_counts_beside_another_argument(options: Method) -> None:
    make = partial(Informed, lr=0.3)
    informed, reference = Training(make, options), Training(make, options)
    optimizer: Any = informed.optimizer
    points = informed.run(STEPS, lambda: optimizer.step("info", closure=informed.closure))
    assert torch.equal(points, reference.run(STEPS))
    assert informed.accelerator.stats.rejected["residual"] > 0


@methods
def test_arguments_of_a_closure_reach_it(options: Method) -> None:
    class Asking(SGD):
        def step(self, closure: Any) -> Any:  # type: ignore[override]
            with torch.enable_grad():
                loss = closure("now", backward=True)
            super().step()
            return loss

    training, got = Training(partial(Asking, lr=0.3), options), []

    def closure(*args: Any, **kwargs: Any) -> Tensor:
        got.append((args, kwargs))
        return training.closure()

    training.run(STEPS, lambda: training.optimizer.step(closure))
    assert got == [(("now",), {"backward": True})] * STEPS


class Rateless(SGD):
    """Knows its rate by itself: the group has another value, or none."""

    def __init__(self, parameters: Any, rate: Any = None, has_rate: bool = True) -> None:
        super().__init__(parameters, lr=1.0)
        for group in self.param_groups:
            group["lr"] = rate
            if not has_rate:
                del group["lr"]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(0.3 * p.grad)


@pytest.mark.parametrize(
    "rate", [None, "fast", float("nan"), float("inf"), torch.ones(2), [0.1, 0.2], {}, 1.0]
)
@methods
def test_a_rate_that_is_no_number_counts_as_one(rate: Any, options: Method) -> None:
    make = partial(Rateless, rate=rate)
    training, without = (
        Training(make, options),
        Training(partial(Rateless, has_rate=False), options),
    )
    assert torch.equal(training.run(STEPS), without.run(STEPS))
    assert training.accelerator.rates == (1.0,)
    assert training.accelerator.stats.extrapolations > 3


class Careless(SGD):
    """Takes it for granted that there are gradients."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad.data)


class Consuming(SGD):
    """Leaves no gradients."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None


judging_first = pytest.mark.parametrize(
    "options", [NEWTON, replace(JUMPY, safeguard="descent")], ids=["newton", "anderson"]
)


@pytest.mark.parametrize("closes", [False, True])
@judging_first
def test_steps_that_cannot_do_without_gradients_are_left_out_all_the_same(
    closes: bool, options: Method
) -> None:
    careless = Training(partial(Careless, lr=0.3), options)
    careful = Training(partial(Rateless, rate=0.3), options)
    with_closure = (lambda: careless.optimizer.step(careless.closure)) if closes else None
    assert torch.equal(careless.run(40, with_closure), careful.run(40))
    assert careless.accelerator.stats.rejected.total() > 0


@judging_first
def test_gradients_that_a_step_would_have_consumed_do_not_come_back(options: Method) -> None:
    consuming, plain = (Training(partial(make, lr=0.3), options) for make in (Consuming, SGD))

    def step() -> None:  # zeroes nothing
        consuming.loss().backward()
        consuming.optimizer.step()

    assert torch.equal(consuming.run(40, step), plain.run(40))
    assert consuming.accelerator.stats.rejected.total() > 0


class Equal(SGD):
    """All of its kind are equal, so none can be a key."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal)


@methods
def test_optimizers_are_told_apart_by_identity(options: Method) -> None:
    make = partial(Equal, lr=0.3)
    one, other = Training(make, options), Training(make, None)
    with pytest.raises(ValueError, match="not accelerated"):
        get_accelerator(other.optimizer)
    accelerate(other.optimizer, options)
    assert one.accelerator is not other.accelerator
    remove_acceleration(other.optimizer)
    assert torch.equal(one.run(STEPS), Training(sgd, options).run(STEPS))


# ---- differentiable steps, classes of tensors ---------------------------------------------------


def test_differentiable_steps_are_refused_at_once_and_later() -> None:
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "differentiable": True}]
    optimizer = SGD(groups, lr=0.1)
    with pytest.raises(ValueError, match=r"differentiable=True; .*differentiable=False"):
        accelerate(optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    training = Training(sgd, JUMPY)
    training.run(3)
    training.optimizer.param_groups[0]["differentiable"] = True
    with pytest.raises(ValueError, match="differentiable=True"):
        training.step()


class Quantised(Tensor):
    """Keeps its entries in another tensor."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        def inner(x: Any) -> Any:
            return x.inner if isinstance(x, Quantised) else x

        args = torch.utils._pytree.tree_map(inner, args)
        out = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return Quantised(out)
        return out


class Named(Tensor):
    """A plain tensor with a name of its own."""


class NamedParameter(nn.Parameter):
    """Likewise."""


def test_parameters_that_keep_their_entries_in_their_own_way_are_refused_by_name() -> None:
    quantised = nn.Parameter(Quantised(torch.ones(4)))
    optimizer = SGD([nn.Parameter(torch.ones(2)), quantised], lr=0.1)
    with pytest.raises(ValueError, match=r"test_interfaces\.Quantised.*freeze it"):
        accelerate(optimizer)
    quantised.requires_grad_(False)
    accelerate(optimizer)


def test_lazy_parameters_are_refused_until_the_model_has_run() -> None:
    model = nn.LazyLinear(2)
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"UninitializedParameter.*run the model once"):
        accelerate(optimizer)
    model(torch.ones(1, 3))
    accelerate(optimizer)


@pytest.mark.parametrize(
    "kind",
    [
        lambda x: nn.Buffer(x).requires_grad_(),
        NamedParameter,
        lambda x: nn.Parameter(x.as_subclass(Named)),
        lambda x: x.clone().requires_grad_(),
    ],
)
@methods
def test_classes_that_behave_as_plain_tensors_walk_as_these_do(kind: Any, options: Method) -> None:
    def walk(parameter: Tensor) -> Tensor:
        optimizer, points = accelerate(SGD([parameter], lr=0.3), options), []
        for _ in range(STEPS):
            optimizer.zero_grad()
            (torch.linspace(0.1, 1.5, 8) * parameter.square()).sum().backward()
            optimizer.step()
            points.append(parameter.detach().clone().as_subclass(Tensor))
        assert get_accelerator(optimizer).stats.extrapolations > 3
        return torch.stack(points)

    start = torch.linspace(-1, 2, 8)
    assert torch.equal(walk(kind(start.clone())), walk(nn.Parameter(start.clone())))


class Compressed(SGD):
    """Momentum in a class of tensors, as optimizers with states of 8 bits have it."""

    keep: Any = Quantised

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                last = state["momentum"].inner if state else torch.zeros_like(p)
                state["momentum"] = self.keep(0.5 * last + p.grad)
                p.sub_(0.1 * state["momentum"].inner)


@methods
def test_states_may_be_of_any_class(options: Method) -> None:
    class Plain(Compressed):
        keep = staticmethod(lambda inner: SimpleNamespace(inner=inner))

    training = Training(partial(Compressed, lr=0.1), options)
    reference = Training(partial(Plain, lr=0.1), options)
    assert torch.equal(training.run(STEPS), reference.run(STEPS))
    (state, *_) = training.optimizer.state.values()
    assert isinstance(state["momentum"], Quantised)
    assert training.accelerator.stats.extrapolations > 3
