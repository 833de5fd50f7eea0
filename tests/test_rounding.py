"""Rounding is not curvature: rows that are no more than that have no part in a solution."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from aadl_ext import Anderson, Averaging, Storage, accelerate, get_accelerator

Loss = Callable[[Tensor], Tensor]
STEPS = 400
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
SETTINGS = {
    "default": Anderson(),
    "rarely": Anderson(frequency=10, relaxation=1.0),
    "always": Anderson(frequency=1, relaxation=1.0),
    "classic": Anderson(mixing="anderson"),
    "tsqr": Anderson(solver="tsqr", relaxation=1.0),
    "short": Anderson(history_depth=2, relaxation=1.0),
    "by tensor": Anderson(scope="tensor", relaxation=1.0),
    "narrow rows": Anderson(storage=Storage(dtype=torch.float32)),
}


def regression(kind: str, dtype: torch.dtype) -> Loss:
    """A loss whose gradient is constant, but where a sample changes sides."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(200, 10, generator=draw, dtype=torch.float64).to(dtype)
    truth = torch.randn(10, generator=draw, dtype=torch.float64).to(dtype)
    y = 20 * x @ truth
    losses: dict[str, Loss] = {
        "linear": lambda w: truth @ w,
        "absolute": lambda w: (x @ w - y).abs().mean(),
        "hinge": lambda w: (1 - y.sign() * (x @ w)).clamp_min(0).mean(),
        "huber": lambda w: nn.functional.huber_loss(x @ w, y, delta=0.5),
    }
    return losses[kind]


BASES: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.05),
    "momentum": lambda p: SGD(p, lr=0.02, momentum=0.9),
    "nesterov": lambda p: SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, lr=0.05),
}


@cache  # the plain run is compared with many
def losses(
    kind: str, dtype: torch.dtype, options: Anderson | None, base: str = "sgd"
) -> tuple[Any, float]:
    """Loss before each step, and the largest weight on the way."""
    loss_of = regression(kind, dtype)
    w = nn.Parameter(torch.zeros(10, dtype=dtype))
    optimizer = BASES[base]([w])
    if options is not None:
        accelerate(optimizer, options)
    found, largest = [], 0.0
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(w)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
        largest = max(largest, w.detach().abs().max().item())
    return np.array(found), largest


def cases() -> list[Any]:
    """The settings that differ most with all losses and dtypes, the others with one each."""
    differ, kinds = ("default", "tsqr", "narrow rows"), ("linear", "absolute", "hinge", "huber")
    return [
        pytest.param(kind, options, dtype, id=f"{kind} {name} {dtype}")
        for place, (name, options) in enumerate(SETTINGS.items())
        for turn, kind in enumerate(kinds)
        for dtype in (torch.float32, torch.float64)
        if name in differ or (dtype is torch.float32 and turn == place % len(kinds))
    ]


@pytest.mark.parametrize(("kind", "options", "dtype"), cases())
def test_losses_with_flat_pieces_are_not_left_for_far_away(
    kind: str, options: Anderson, dtype: torch.dtype
) -> None:
    plain, reach = losses(kind, dtype, None)
    mine, largest = losses(kind, dtype, options)
    worst = np.maximum.accumulate(plain[::-1])[::-1]  # from there on
    allowed = np.where(worst > 0, 2 * worst, worst / 2) + 0.01 * abs(plain).max()
    assert (mine <= allowed).all(), (mine / worst).max()
    assert largest < 10 * max(reach, 1)


@pytest.mark.parametrize(
    ("kind", "base"), [("absolute", "momentum"), ("hinge", "nesterov"), ("huber", "adam")]
)
@pytest.mark.parametrize("options", [SETTINGS[x] for x in ("default", "always", "short")])
def test_residuals_that_lag_behind_lead_nowhere_far(
    kind: str, options: Anderson, base: str
) -> None:
    plain, reach = losses(kind, torch.float32, None, base)
    mine, largest = losses(kind, torch.float32, options, base)
    assert largest < 10 * max(reach, 1)
    assert mine.max() < 3 * plain.max()  # a point that is left in the next step is seen, too
    assert mine[-1] < 2 * plain[-100:].max() + 0.01 * plain.max()


@dtypes
@pytest.mark.parametrize("solver", ["gram", "tsqr"])
@pytest.mark.parametrize(
    "make",
    [lambda p: SGD(p, lr=0.1), lambda p: SGD(p, lr=0.003), lambda p: Adam(p, lr=0.01)],
    ids=["sgd", "small rate", "adam"],
)
def test_a_constant_gradient_is_never_extrapolated(
    make: Any, solver: str, dtype: torch.dtype
) -> None:
    options = Anderson(frequency=1, relaxation=1.0, safeguard=None, solver=solver)
    slope = torch.tensor([1.0, -2.0, 0.3, 4.0], dtype=dtype)
    w = nn.Parameter(torch.tensor([0.7, 1.1, -0.4, 2.3], dtype=dtype))
    twin = nn.Parameter(w.detach().clone())
    accelerated, plain = accelerate(make([w]), options), make([twin])
    for _ in range(100):
        for p, optimizer in ((w, accelerated), (twin, plain)):
            p.grad = slope.clone()
            optimizer.step()
    stats = get_accelerator(accelerated).stats
    assert stats.pairs == 100
    assert stats.extrapolations == 0
    assert not stats.gamma.any()
    assert stats.rank.tolist() == [0]
    assert stats.unresolved == 15
    assert torch.equal(w, twin)


@dtypes
def test_rows_of_a_gradient_that_changes_count(dtype: torch.dtype) -> None:
    options = Anderson(frequency=1, relaxation=1.0, safeguard=None)
    w = nn.Parameter(torch.tensor([0.7, 1.1, -0.4, 2.3], dtype=dtype))
    optimizer = accelerate(SGD([w], lr=0.1), options)
    for _ in range(4):
        w.grad = (w * torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=dtype)).detach()
        optimizer.step()
    assert get_accelerator(optimizer).stats.rank.tolist() == [3]


@dtypes
def test_averaging_keeps_weights_of_ordinary_size(dtype: torch.dtype) -> None:
    for kind in ("linear", "absolute", "hinge", "huber"):
        _, reach = losses(kind, dtype, None)
        _, largest = losses(kind, dtype, Anderson(average=Averaging()))
        assert largest < 10 * max(reach, 1)


@pytest.mark.parametrize("solver", ["gram", "tsqr"])
@pytest.mark.parametrize(("rows", "lost"), [(torch.float16, 3), (torch.bfloat16, 0)], ids=str)
def test_rows_that_underflow_are_told(rows: torch.dtype, lost: int, solver: str) -> None:
    storage = Storage(dtype=rows)
    options = Anderson(history_depth=3, storage=storage, solver=solver, safeguard="residual")
    w = nn.Parameter(torch.tensor([0.7, 1.1, -0.4, 2.3]) * 1e-7)
    optimizer = accelerate(SGD([w], lr=0.1), options)
    for _ in range(6):
        w.grad = (w * torch.tensor([1.0, 2.0, 3.0, 4.0])).detach()
        optimizer.step()
    stats = get_accelerator(optimizer).stats
    assert stats.unresolved == lost
    assert (stats.extrapolations == 0) == (lost == 3)
