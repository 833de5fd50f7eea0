"""Everyday habits around ``step``: none of them changes where an accelerated training goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD
from training import (
    JUMPY,
    MakeOptimizer,
    Method,
    Training,
    adam,
    methods,
    momentum,
    plain_twin,
    same,
    sgd,
    variants,
)

from aadl_ext import (
    Anderson,
    accelerate,
    distributed_accelerate,
    get_accelerator,
    remove_acceleration,
)

STEPS = 16
optimizers = pytest.mark.parametrize("make", [sgd, momentum, adam], ids=["sgd", "momentum", "adam"])


@optimizers
@variants
def test_zeroing_gradients_to_zero_or_to_none_is_the_same(
    make: MakeOptimizer, options: Method
) -> None:
    points = []
    for set_to_none in (True, False):
        training = Training(make, options)

        def step(training: Training = training, set_to_none: bool = set_to_none) -> None:
            training.loss().backward()
            training.optimizer.step()
            training.optimizer.zero_grad(set_to_none=set_to_none)

        points.append(training.run(STEPS, step))
        assert training.accelerator.stats.extrapolations > 3
    assert torch.equal(*points)


@optimizers
@methods
def test_accumulated_gradients_act_like_their_sum(make: MakeOptimizer, options: Method) -> None:
    accumulated, summed = Training(make, options), Training(make, options)

    def halves(training: Training) -> list[Tensor]:
        errors = (training.model(training.inputs) - training.targets).square()
        return [part.mean() / 2 for part in errors.chunk(2)]

    def step_of_accumulated() -> None:
        accumulated.optimizer.zero_grad()
        for i in range(2):
            halves(accumulated)[i].backward()
        accumulated.optimizer.step()

    def step_of_summed() -> None:
        parts = [torch.autograd.grad(halves(summed)[i], summed.parameters) for i in range(2)]
        for p, *gradients in zip(summed.parameters, *parts, strict=True):
            p.grad = gradients[0] + gradients[1]
        summed.optimizer.step()

    points = accumulated.run(STEPS, step_of_accumulated)
    assert torch.equal(points, summed.run(STEPS, step_of_summed))
    assert accumulated.accelerator.stats.extrapolations > 3


@optimizers
@methods
def test_clipped_gradients_are_the_ones_that_count(make: MakeOptimizer, options: Method) -> None:
    clipped, scaled = Training(make, options), Training(make, options)
    limit, factors = 0.2, []

    def clip() -> None:
        clipped.closure()
        total = torch.nn.utils.clip_grad_norm_(clipped.parameters, limit)
        factors.append((limit / (total + 1e-6)).clamp(max=1.0))
        clipped.optimizer.step()

    def scale() -> None:
        scaled.closure()
        factor = factors.pop(0)
        for p in scaled.parameters:
            p.grad *= factor
        scaled.optimizer.step()

    points = clipped.run(STEPS, clip)
    assert min(factors) < 1
    assert torch.equal(points, scaled.run(STEPS, scale))
    assert (
        clipped.accelerator.stats.extrapolations > 2
    )  # a rejected step costs subspace Newton its block


@methods
def test_two_optimizers_on_one_model_keep_apart(options: Method) -> None:
    # The loss splits into a part for each of them, so each goes its own way exactly.
    def bowl(parameter: Tensor) -> Tensor:
        return (torch.linspace(0.1, 1.0, 6) * (parameter - 1).square()).sum()

    def walks(ways: list[tuple[MakeOptimizer, nn.Parameter]]) -> Tensor:
        optimizers = [accelerate(make([p]), options) for make, p in ways]
        points = []
        for _ in range(STEPS):
            for _, p in ways:
                p.grad = None
            sum(bowl(p) for _, p in ways).backward()
            for optimizer in optimizers:
                optimizer.step()
            points.append(torch.stack([p.detach().clone() for _, p in ways]))
        assert all(get_accelerator(x).stats.extrapolations > 3 for x in optimizers)
        return torch.stack(points)

    def ways() -> list[tuple[MakeOptimizer, nn.Parameter]]:
        return [(sgd, nn.Parameter(torch.arange(6.0))), (adam, nn.Parameter(torch.ones(6) / 3))]

    both, alone = walks(ways()), [walks([way]) for way in ways()]
    assert torch.equal(both, torch.cat(alone, dim=1))


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
@pytest.mark.parametrize("safeguard", ["residual", "loss", None])
def test_lbfgs_takes_its_own_steps_between_the_extrapolations(
    line_search: str | None, safeguard: str | None
) -> None:
    make = partial(LBFGS, lr=0.1, max_iter=2, history_size=4, line_search_fn=line_search)
    training = Training(make, replace(JUMPY, safeguard=safeguard))
    stats, plain_points = training.accelerator.stats, []
    for _ in range(STEPS):
        twin = plain_twin(training, make)
        twin.optimizer.step(twin.closure)
        plain_points.append(twin.point())
        extrapolations, taken_back = stats.extrapolations, stats.rejected
        training.optimizer.step(training.closure)
        stats = training.accelerator.stats
        assert same(training.optimizer.state_dict(), twin.optimizer.state_dict())
        if stats.rejected["residual"] > taken_back["residual"]:
            assert torch.equal(training.point(), plain_points[-2])
        elif stats.rejected["loss"] > taken_back["loss"] or stats.extrapolations == extrapolations:
            assert torch.equal(training.point(), plain_points[-1])
    assert stats.extrapolations > 3
    assert stats.skipped == {}


@optimizers
@methods
def test_maximizing_is_descending_on_the_negative(make: MakeOptimizer, options: Method) -> None:
    up, down = Training(partial(make, maximize=True), options), Training(make, options)

    def ascend() -> None:
        up.optimizer.zero_grad()
        (-up.loss()).backward()
        up.optimizer.step()

    assert torch.equal(up.run(STEPS, ascend), down.run(STEPS))


@pytest.mark.parametrize("again", [accelerate, distributed_accelerate])
@methods
def test_a_second_accelerate_is_refused_and_changes_nothing(
    again: Callable[..., object], options: Method
) -> None:
    training, reference = Training(sgd, options), Training(sgd, options)
    training.run(7)
    reference.run(7)
    accelerator = training.accelerator
    with pytest.raises(ValueError, match="accelerated already; call remove_acceleration"):
        again(training.optimizer, Anderson(relaxation=0.7))
    assert training.accelerator is accelerator
    assert torch.equal(training.run(9), reference.run(9))


@optimizers
@pytest.mark.parametrize("moment", range(3, 8))
@variants
def test_after_remove_the_optimizer_is_a_plain_one(
    make: MakeOptimizer, moment: int, options: Method
) -> None:
    training = Training(make, options)
    training.run(moment)
    training.accelerator.roll_back()
    plain, point = plain_twin(training, make), training.point()
    remove_acceleration(training.optimizer)
    remove_acceleration(training.optimizer)  # a second time does nothing, as in AADL
    assert torch.equal(training.point(), point)
    assert not training.optimizer._optimizer_step_pre_hooks
    assert not training.optimizer._optimizer_step_post_hooks
    with pytest.raises(ValueError, match="not accelerated"):
        get_accelerator(training.optimizer)
    assert torch.equal(training.run(8), plain.run(8))
    accelerate(training.optimizer, options)
    accelerate(plain.optimizer, options)
    assert torch.equal(training.run(8), plain.run(8))


class Normalized(Training):
    """The training with batch normalization; counts forward passes by hand."""

    def __init__(self, options: Method | None) -> None:
        super().__init__(sgd, None)
        self.norm = nn.BatchNorm1d(4)
        self.model.insert(1, self.norm)
        self.optimizer = SGD(self.model.parameters(), lr=0.3)
        self.batches: list[Tensor] = []
        self.norm.register_forward_pre_hook(lambda _, x: self.batches.append(x[0].detach()))
        if options is not None:
            accelerate(self.optimizer, options)

    def replayed(self) -> nn.BatchNorm1d:
        """A layer that has seen just the batches of the training steps."""
        norm = nn.BatchNorm1d(4)
        for batch in self.batches:
            norm(batch)
        return norm


@variants
@pytest.mark.parametrize("with_closure", [False, True])
def test_batch_norm_statistics_see_one_forward_pass_per_step(
    options: Method, with_closure: bool
) -> None:
    training = Normalized(options)
    for k in range(STEPS):
        if with_closure:
            training.optimizer.step(training.closure)
        else:
            training.step()
        assert training.norm.num_batches_tracked == k + 1
    stats = training.accelerator.stats
    assert stats.extrapolations > 3
    assert getattr(options, "average", None) or stats.rejected["residual"] > 0
    assert same(list(training.norm.buffers()), list(training.replayed().buffers()))


@methods
def test_batch_norm_statistics_see_two_more_for_each_extrapolation_judged_by_the_loss(
    options: Method,
) -> None:
    training = Normalized(replace(options, safeguard="loss"))
    training.run(STEPS, lambda: training.optimizer.step(training.closure))
    extrapolations = training.accelerator.stats.extrapolations
    assert extrapolations > 3
    assert training.norm.num_batches_tracked == STEPS + 2 * extrapolations


@variants
def test_dropout_draws_the_same_masks(options: Method) -> None:
    masks = []
    for chosen in (None, options):
        training = Training(sgd, chosen)
        dropout = nn.Dropout(0.5)
        training.model.insert(2, dropout)
        drawn: list[Tensor] = []
        dropout.register_forward_hook(lambda _, x, y, drawn=drawn: drawn.append(y == 0))
        torch.manual_seed(0)
        training.run(STEPS)
        masks.append(drawn)
    assert training.accelerator.stats.extrapolations > 3
    assert len(masks[0]) == STEPS
    assert same(*masks)


@variants
@pytest.mark.filterwarnings("ignore")  # torch warns of itself when it compiles
@pytest.mark.parametrize("make", [sgd, momentum, adam], ids=["sgd", "momentum", "adam"])
def test_a_compiled_step_is_accelerated(make: MakeOptimizer, options: Method) -> None:
    training, compiled = Training(make, options), Training(make, options)
    step = torch.compile(compiled.optimizer.step, backend="eager")
    training.run(STEPS)
    for _ in range(STEPS):
        compiled.closure()
        step()
    assert compiled.accelerator.stats.extrapolations > 3
    # torch's Adam has other formulas when it is compiled
    assert make is adam or torch.equal(compiled.point(), training.point())
