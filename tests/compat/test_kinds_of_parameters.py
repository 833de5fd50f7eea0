"""Parameters of every dtype, layout and shape; parameters that come, go and freeze."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from training import (
    JUMPY,
    NEWTON,
    SKETCHED,
    Method,
    Training,
    adam,
    as_if_exact,
    methods,
    sgd,
    variants,
)

from aadl_ext import (
    Anderson,
    Averaging,
    accelerate,
    finish,
    get_accelerator,
    remove_acceleration,
)

STEPS = 16
NARROW_STEPS = 12  # later the points are too near the minimum
RATE = 0.3
BFLOAT, HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float16, torch.float32, torch.float64


def bowl(parameters: Sequence[Tensor]) -> None:
    """Set the gradient of a quadratic bowl, entry by entry: no sum depends on the layout."""
    for p in parameters:
        curvature = torch.linspace(0.1, 1.5, p.numel()).view(p.shape).to(p.dtype)
        p.grad = p.detach() * curvature


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def walk(parameters: Sequence[Tensor], options: Method) -> tuple[Tensor, Optimizer]:
    """The points of an accelerated descent into the bowl."""
    optimizer = accelerate(SGD(parameters, lr=RATE), options)
    points = []
    for _ in range(STEPS):
        bowl(parameters)
        optimizer.step()
        points.append(flat(parameters))
    assert get_accelerator(optimizer).stats.extrapolations > 3
    return torch.stack(points), optimizer


def flat(parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat([p.detach().flatten().double() for p in parameters])


@pytest.mark.parametrize(
    "dtypes",
    [(BFLOAT,), (HALF,), (BFLOAT, HALF), (SINGLE, BFLOAT), (DOUBLE, HALF), (HALF, SINGLE, DOUBLE)],
    ids=lambda dtypes: "+".join(str(dtype)[6:] for dtype in dtypes),
)
def test_extrapolations_of_narrow_and_mixed_parameters_are_right_to_their_last_bit(
    dtypes: Sequence[torch.dtype],
) -> None:
    parameters = [nn.Parameter(random(5, 3, seed=i).to(x)) for i, x in enumerate(dtypes)]
    plain = [nn.Parameter(p.detach().clone()) for p in parameters]
    options = Anderson(relaxation=0.8, history_depth=2, safeguard=None)
    optimizer = accelerate(SGD(parameters, lr=RATE), options)
    as_if_exact(optimizer)
    base = SGD(plain, lr=RATE)
    points, residuals = [], []
    for k in range(NARROW_STEPS):
        with torch.no_grad():
            torch._foreach_copy_(plain, parameters)
        bowl(parameters)
        bowl(plain)
        points.append(flat(parameters).numpy())
        optimizer.step()
        base.step()
        residuals.append(flat(plain).numpy() - points[-1])
        if k <= 1:
            continue
        W, R = (np.diff(np.array(x[-3:]), axis=0).T for x in (points, residuals))
        gamma = np.linalg.lstsq(R, residuals[-1], rcond=None)[0]
        expected = torch.tensor(points[-1] + 0.8 * (residuals[-1] - (W + R) @ gamma))
        # One unit in the last place, and the rounding of the float32 or float64 working vectors
        # (entries of order one, coefficients of order ten).
        rounding = 2e-6 if DOUBLE not in dtypes else 1e-13
        for p, part in zip(parameters, expected.view(len(dtypes), 5, 3), strict=True):
            spacing = torch.finfo(p.dtype).eps
            torch.testing.assert_close(p.detach().double(), part, rtol=spacing, atol=rounding)
    assert get_accelerator(optimizer).stats.accepted == NARROW_STEPS - 2


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "strided": lambda x: torch.stack([x, x], dim=-1)[..., 0],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@variants
def test_memory_layout_changes_nothing(layout: Callable[[Tensor], Tensor], options: Method) -> None:
    dense = nn.Parameter(random(4, 3, 2, 2))
    other = nn.Parameter(layout(dense.detach().clone()))
    stride = other.stride()
    assert stride != dense.stride()
    expected, _ = walk([dense], options)
    # But for the rounding of sums, whose terms are in the order of memory.
    torch.testing.assert_close(walk([other], options)[0], expected, rtol=1e-4, atol=1e-6)
    assert other.stride() == stride


@methods
def test_empty_and_scalar_parameters_change_nothing_for_the_others(
    options: Method,
) -> None:
    for scope in ("all", "group", "tensor"):
        dense = [nn.Parameter(random(1, seed=1)), nn.Parameter(random(7))]
        odd = [nn.Parameter(p.detach().clone()) for p in dense]
        odd[0] = nn.Parameter(odd[0].detach()[0])
        odd[1:1] = [nn.Parameter(torch.empty(0)), nn.Parameter(torch.empty(3, 0))]
        scoped = replace(options, scope=scope)
        expected, _ = walk(dense, scoped)
        assert odd[0].dim() == 0
        assert torch.equal(walk(odd, scoped)[0], expected)


@variants
@pytest.mark.parametrize("parameter", [torch.empty(0), torch.ones(3)], ids=["empty", "frozen"])
def test_an_optimizer_without_anything_to_train_steps(parameter: Tensor, options: Method) -> None:
    optimizer = accelerate(SGD([parameter], lr=RATE), options)
    for _ in range(STEPS):
        optimizer.step()
    assert get_accelerator(optimizer).stats.extrapolations == 0
    assert torch.equal(parameter, torch.ones_like(parameter))


@methods
def test_sparse_gradients_give_the_points_of_dense_ones(options: Method) -> None:
    points = []
    for sparse in (False, True):
        table = nn.Embedding(8, 3, sparse=sparse, _weight=random(8, 3))
        optimizer = accelerate(SGD(table.parameters(), lr=RATE), options)
        rows = []
        for k in range(STEPS):
            optimizer.zero_grad()
            seen = torch.tensor([k % 8, (k + 3) % 8, (k + 5) % 8])
            (table(seen).square().sum() / 2).backward()
            assert table.weight.grad.is_sparse == sparse
            optimizer.step()
            rows.append(table.weight.detach().clone())
        points.append(torch.stack(rows))
        assert get_accelerator(optimizer).stats.extrapolations > 3
    assert torch.equal(*points)


@methods
def test_tied_weights_are_one_parameter(options: Method) -> None:
    inputs = random(16, 6, seed=1)
    points = []
    for tied in (False, True):
        weight = nn.Parameter(random(6, 6) / 3)
        encoder, decoder = (nn.Linear(6, 6, bias=False) for _ in range(2))
        encoder.weight = decoder.weight = weight
        parameters = nn.Sequential(encoder, decoder).parameters() if tied else [weight]
        optimizer = accelerate(SGD(parameters, lr=RATE), options)
        rows = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            hidden = nn.functional.linear(inputs, weight)
            output = decoder(encoder(inputs)) if tied else nn.functional.linear(hidden, weight)
            (output - inputs).square().mean().backward()
            optimizer.step()
            rows.append(weight.detach().clone())
        points.append(torch.stack(rows))
        assert (
            get_accelerator(optimizer).stats.extrapolations > 2
        )  # a rejected step costs subspace Newton its block
    assert torch.equal(*points)


REFUSED = {
    "complex": (torch.ones(3, dtype=torch.complex64), r"complex64; .*view_as_real"),
    "sparse": (torch.eye(3).to_sparse(), r"layout torch\.sparse_coo; only dense"),
}


@pytest.mark.parametrize(("tensor", "message"), REFUSED.values(), ids=REFUSED)
@methods
def test_complex_and_sparse_parameters_are_refused(
    tensor: Tensor, message: str, options: Method
) -> None:
    good = nn.Parameter(torch.ones(3))
    optimizer = SGD([good, nn.Parameter(tensor)], lr=RATE)
    with pytest.raises(ValueError, match=message):
        accelerate(optimizer, options)
    with pytest.raises(ValueError, match="not accelerated"):
        get_accelerator(optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("tensor", [x for x, _ in REFUSED.values()], ids=REFUSED)
@methods
def test_frozen_they_are_let_be_until_they_are_trained(tensor: Tensor, options: Method) -> None:
    frozen = nn.Parameter(tensor, requires_grad=False)
    training = Training(sgd, options)
    training.optimizer.add_param_group({"params": [frozen]})
    training.run(20)
    assert training.accelerator.stats.extrapolations > 2
    frozen.requires_grad_(True)
    with pytest.raises(ValueError, match=r"dense|complex"):
        training.step()


@pytest.mark.parametrize(("tensor", "message"), REFUSED.values(), ids=REFUSED)
@methods
def test_added_later_they_are_refused_before_anything_moves(
    tensor: Tensor, message: str, options: Method
) -> None:
    training = Training(sgd, options)
    training.run(3)
    before = training.point()
    training.optimizer.add_param_group({"params": [nn.Parameter(tensor)]})
    training.closure()
    with pytest.raises(ValueError, match=message):
        training.optimizer.step()
    assert torch.equal(training.point(), before)


def set_trainable(training: Training, trainable: bool) -> None:
    training.model[0].requires_grad_(trainable)


def add_group(training: Training) -> None:
    extra = nn.Parameter(random(16, 1, seed=2))
    training.targets = extra
    training.optimizer.add_param_group({"params": [extra], "lr": 0.1})


def widen(training: Training) -> None:
    training.model.double()
    training.inputs, training.targets = training.inputs.double(), training.targets.double()


# Without waiting, a restarted history and a new accelerator act at the same steps.
AT_ONCE = replace(JUMPY, frequency=1, wait_iterations=0)
RESTARTED: dict[str, Method] = {
    "anderson": AT_ONCE,
    "average": replace(AT_ONCE, average=Averaging(window=3)),
    "tensors": replace(AT_ONCE, scope="tensor"),
    "newton": NEWTON,
    "newton, tensors": replace(NEWTON, scope="tensor"),
    "newton, sketched": SKETCHED,
}
EVENTS: dict[str, Callable[[Training], None]] = {
    "add_param_group": add_group,
    "freeze": partial(set_trainable, trainable=False),
    "unfreeze": partial(set_trainable, trainable=True),
    "dtype": widen,
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("options", RESTARTED.values(), ids=RESTARTED)
def test_changed_parameters_restart_the_history_and_log_one_line(
    event: str, options: Method, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    changed, renewed = Training(sgd, None), Training(sgd, None)
    for training in (changed, renewed):
        set_trainable(training, event != "unfreeze")
        accelerate(training.optimizer, options)
        training.run(5)
        while not training.accelerator.pending:
            training.step()
        EVENTS[event](training)
    assert "parameters" not in caplog.text
    changed.step()  # to where the pending step began, for the new history cannot judge it
    remove_acceleration(renewed.optimizer)
    accelerate(renewed.optimizer, options)
    assert torch.equal(changed.point(), renewed.point())
    assert torch.equal(changed.run(STEPS), renewed.run(STEPS))
    assert changed.accelerator.stats.restarts["parameters"] == 1
    # A rejected step costs subspace Newton its block.
    tried = [t.accelerator.stats.extrapolations for t in (changed, renewed)]
    assert tried[0] > tried[1] > 2
    (record,) = (x for x in caplog.records if "(parameters)" in x.getMessage())
    assert (record.name, record.levelname) == ("aadl_ext", "INFO")
    assert "history starts anew" in record.getMessage()


@pytest.mark.parametrize("make", [sgd, adam], ids=["sgd", "adam"])
@methods
def test_frozen_parameters_never_move(make: Callable[..., Optimizer], options: Method) -> None:
    training = Training(make, options)
    training.run(7)
    finish(training.optimizer)
    set_trainable(training, False)
    frozen = [p.detach().clone() for p in training.model[0].parameters()]
    training.run(STEPS)
    assert all(map(torch.equal, frozen, training.model[0].parameters()))
    assert training.accelerator.stats.extrapolations > 3


@methods
def test_parameters_may_get_their_memory_later(
    options: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 1)
    optimizer = accelerate(SGD(model.parameters(), lr=RATE), options)
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    model.to_empty(device="cpu")  # the same objects
    assert optimizer.param_groups[0]["params"][0] is model.weight
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    inputs = torch.arange(12.0).reshape(4, 3).cos()
    for _ in range(20):
        optimizer.zero_grad()
        model(inputs).sub(inputs.sum(1).exp()).square().mean().backward()
        optimizer.step()
    assert get_accelerator(optimizer).stats.extrapolations > 2
