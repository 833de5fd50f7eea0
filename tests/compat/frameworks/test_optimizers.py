"""Under each optimizer of torch and of packages: bare against accelerated with defaults."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from optimizers import AT_ONCE, CASES, maker
from torch import Tensor, nn

import aadl_ext

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS, BATCH, SEEDS = 60, 128, range(3)
AT_ONCE_STEPS = 120  # of those that take all digits at once: then some are at rounding
ROUNDING = 1e-6  # of a loss in float32, which goes to zero here; below it losses are equal
WORST = 1.1  #: loss, as a multiple of the bare optimizer's


@cache
def digits() -> tuple[Tensor, Tensor]:
    data = pytest.importorskip("sklearn.datasets").load_digits()
    return torch.tensor(data.data).float() / 16, torch.tensor(data.target)


def loss_after_training(
    make: Callable[..., Any], seed: int, *, accelerated: bool, at_once: bool
) -> float:
    """Over all digits, at judged weights."""
    torch.manual_seed(seed)
    inputs, targets = digits()
    # Without biases, since Muon takes matrices only; of sizes that 8-bit states are made for.
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Tanh(), nn.Linear(64, 10, bias=False))
    optimizer = make(model.parameters())
    if accelerated:
        aadl_ext.accelerate(optimizer)

    def switch(mode: str) -> None:  # of schedule-free ones
        getattr(optimizer, mode, lambda: None)()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
        loss.backward()
        return loss

    switch("train")
    for batch in torch.randint(len(inputs), (AT_ONCE_STEPS if at_once else STEPS, BATCH)):
        rows = slice(None) if at_once else batch
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    with aadl_ext.settled(optimizer):
        switch("eval")
        return max(nn.functional.cross_entropy(model(inputs), targets).item(), ROUNDING)


def ratio(module: str, name: str, options: dict[str, Any]) -> float:
    """Of losses, accelerated over bare: the geometric mean over some seeds."""
    make, at_once, logarithms = maker(module, name, options), name.endswith(AT_ONCE), []
    with torch.compiler.set_stance("force_eager"):  # some compile themselves, for minutes
        for seed in SEEDS:
            bare = loss_after_training(make, seed, accelerated=False, at_once=at_once)
            ours = loss_after_training(make, seed, accelerated=True, at_once=at_once)
            logarithms.append(math.log(ours / bare))
    return math.exp(sum(logarithms) / len(logarithms))


@pytest.mark.parametrize(
    ("module", "name", "options"),
    [
        pytest.param(
            module,
            name,
            options,
            id=f"{module}.{name}",
            marks=[pytest.mark.thorough] * name.endswith(AT_ONCE),
        )
        for module, some in CASES.items()
        for name, options in some
    ],
)
def test_the_loss_is_not_worse(
    module: str, name: str, options: dict[str, Any], record_property: Callable[[str, Any], None]
) -> None:
    pytest.importorskip(module, exc_type=ImportError)
    found = ratio(module, name, options)
    record_property("ratio", round(found, 2))
    assert found < WORST
