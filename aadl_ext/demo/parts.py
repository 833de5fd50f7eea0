"""The three parts of the demo: what is trained, by which methods, and how a run is followed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, Optimizer

import aadl_ext
from aadl_ext.options import Method

from ..paper import burgers2d, pinn
from .data import Regression
from .training import AVERAGING, BATCH, PAPER, Training

BASE, MOMENTUM = "Adam", "SGD, momentum"
DEFAULT, MOMENTUM_DEFAULT = "Adam, accelerated", "SGD, momentum, accelerated"
LINE_SEARCH = "L-BFGS, strong Wolfe"
ANDERSON = "Adam, Anderson"
AVERAGE = "Adam, Anderson, average"
ACCELERATED: dict[str, Method | None] = {  # by these options; None: the default method
    DEFAULT: None,
    MOMENTUM_DEFAULT: None,
    ANDERSON: PAPER,
    AVERAGE: AVERAGING,
}

# The rate is the best of a grid, for the base optimizer alone: its training loss at the end,
# geometric mean over three seeds that the demo does not use. `python -m aadl_ext.demo.rates`
# measures them again.
PINN_RATES = {3e-4: 0.0763, 1e-3: 0.0497, 3e-3: 0.0378, 1e-2: 0.0975, 3e-2: 0.244, 0.1: 0.245}
DIGITS_RATES = {1e-2: 0.191, 3e-2: 0.0801, 0.1: 0.0226, 0.3: 2.92e-3, 1.0: 1.33, 3.0: 299.0}

#: of a run, in gradient evaluations; that of the paper's problem in epochs
LENGTHS = {"full-batch": 800, "mini-batch": 500, "paper": 100}
LOOKS = 40  # at the losses, in a run
DIGITS_BATCH = 64


@dataclass
class Run:
    """One method on one seed, looked at now and then."""

    part: str
    method: str
    seed: int
    evaluations: list[int] = field(default_factory=list)  #: of the gradient, at each look
    train: list[float] = field(default_factory=list)  #: training loss over all samples
    valid: list[float] = field(default_factory=list)  #: what the part validates by
    seconds: float = 0.0  #: of training, looks left out
    stats: dict[str, Any] = field(default_factory=dict)  #: of the accelerator


@dataclass(frozen=True)
class Part:
    """What is shown in one panel."""

    name: str
    title: str
    what: str  #: a sentence for someone who has not seen it
    methods: tuple[str, ...]  #: the first is what the others are compared with
    validation: str  #: what ``Run.valid`` holds
    train: Callable[[str, int], Run]  #: by method and seed


def parts(data: Regression) -> list[Part]:
    """All of them; the last is trained on ``data``."""
    return [
        Part(
            "full-batch",
            "Full batch: PINN for Burgers' equation",
            "A 4 x 20 tanh network learns to solve Burgers' equation from 500 points, all in "
            "every step: without noise. The error is that against the exact solution.",
            (BASE, DEFAULT, LINE_SEARCH),
            "relative error of the solution",
            full_batch,
        ),
        Part(
            "mini-batch",
            f"Mini-batches of {DIGITS_BATCH}: digits",
            "A 64-64-10 tanh network learns 1,437 images of digits and is validated on 360 others.",
            (MOMENTUM, MOMENTUM_DEFAULT),
            "validation loss",
            mini_batch,
        ),
        Part(
            "paper",
            f"The paper's method: {data.name}",
            "The first experiment of arXiv:2110.14813, shortened: 3 x 64 ReLU, batches of "
            f"{BATCH}, its settings and safeguard; stable Anderson acceleration, then with its "
            "moving average.",
            (BASE, ANDERSON, AVERAGE),
            "validation loss",
            partial(paper, data),
        ),
    ]


# ---- a run ----------------------------------------------------------------------------------


def full_batch(method: str, seed: int, rate: float | None = None) -> Run:
    """Burgers' equation, as in the paper's second experiment, on one batch."""
    torch.manual_seed(seed)
    model = pinn.network(2, width=20, depth=4, unit="tanh")
    points = burgers2d.sample(100, 400, torch.Generator().manual_seed(seed))
    points = points.to(torch.device("cpu"))
    return follow(
        Run("full-batch", method, seed),
        optimizer_of(method, model, rate or best(PINN_RATES)),
        LENGTHS["full-batch"],
        batch_loss=lambda: pinn.loss(model, points),
        train_loss=lambda: pinn.loss(model, points),
        valid_loss=lambda: torch.tensor(relative_error()(model)["relative L2 error"]),
    )


def mini_batch(method: str, seed: int, rate: float | None = None) -> Run:
    """Digits of scikit-learn, 80 % of them for training."""
    x, y = digits()
    torch.manual_seed(seed)
    order = torch.randperm(len(y))
    train, valid = order[: len(y) * 4 // 5], order[len(y) * 4 // 5 :]
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    batches = shuffled(train, DIGITS_BATCH)

    def loss(pick: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x[pick]), y[pick])

    return follow(
        Run("mini-batch", method, seed),
        optimizer_of(method, model, rate or best(DIGITS_RATES)),
        LENGTHS["mini-batch"],
        batch_loss=lambda: loss(next(batches)),
        train_loss=lambda: loss(train),
        valid_loss=lambda: loss(valid),
    )


def paper(data: Regression, method: str, seed: int) -> Run:
    """The paper's first experiment; its learning rate falls after two thirds."""
    accelerate, epochs = None, LENGTHS["paper"]
    if method in ACCELERATED:
        accelerate = partial(aadl_ext.accelerate, method=ACCELERATED[method])
    training = Training(data, seed, 2 * epochs // 3, accelerate)
    run = Run("paper", method, seed)
    batches = -(-len(training.parts.train_y) // BATCH)
    for epoch in range(1, epochs + 1):
        training.advance()
        measured = training.measure()
        run.evaluations.append(epoch * batches)
        run.train.append(measured["training"])
        run.valid.append(measured["validation"])
    run.seconds = sum(training.step_seconds)
    run.stats = stats_of(training.optimizer)
    return run


def follow(
    run: Run,
    optimizer: Optimizer,
    evaluations: int,
    batch_loss: Callable[[], Tensor],
    train_loss: Callable[[], Tensor],
    valid_loss: Callable[[], Tensor],
) -> Run:
    """Train for so many gradient evaluations and fill in ``run``; L-BFGS ends its last step."""
    count = 0

    def closure() -> Tensor:
        nonlocal count
        optimizer.zero_grad()
        loss = batch_loss()
        torch.autograd.backward(loss)
        count += 1
        return loss

    while count < evaluations:
        begin = time.perf_counter()
        if isinstance(optimizer, LBFGS):
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        else:
            closure()
            optimizer.step()
        run.seconds += time.perf_counter() - begin
        if count >= min((len(run.evaluations) + 1) * evaluations // LOOKS, evaluations):
            with torch.no_grad(), aadl_ext.settled(optimizer):  # at weights that a step has judged
                run.evaluations.append(count)
                run.train.append(float(train_loss()))
                run.valid.append(float(valid_loss()))
    run.stats = stats_of(optimizer)
    return run


def optimizer_of(method: str, model: nn.Module, rate: float) -> Optimizer:
    """That of a method; L-BFGS finds its steps by itself."""
    if method == LINE_SEARCH:
        return LBFGS(model.parameters(), history_size=50, line_search_fn="strong_wolfe")
    optimizer: Optimizer
    if method in (MOMENTUM, MOMENTUM_DEFAULT):
        optimizer = SGD(model.parameters(), lr=rate, momentum=0.9)
    else:
        optimizer = Adam(model.parameters(), lr=rate)
    if method in ACCELERATED:
        aadl_ext.accelerate(optimizer, ACCELERATED[method])
    return optimizer


def stats_of(optimizer: Optimizer) -> dict[str, Any]:
    """Counts and figures of the accelerator; empty without one."""
    try:
        return aadl_ext.get_accelerator(optimizer).stats.as_dict()
    except ValueError:
        return {}


def best(grid: dict[float, float]) -> float:
    """The rate of the smallest loss."""
    return min(grid, key=lambda rate: grid[rate])


# ---- data -----------------------------------------------------------------------------------


@cache
def digits() -> tuple[Tensor, Tensor]:
    """[1797, 64] float32 in 0 to 1, and [1797] labels."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x).float() / 16, torch.from_numpy(y)


@cache
def relative_error() -> burgers2d.RelativeError:
    """Against the exact solution, which is computed once a process."""
    return burgers2d.RelativeError(torch.device("cpu"))


def shuffled(samples: Tensor, size: int) -> Iterator[Tensor]:
    """Batches without end, in another order in each epoch."""
    while True:
        order = samples[torch.randperm(len(samples))]
        yield from order[: len(order) // size * size].view(-1, size)
