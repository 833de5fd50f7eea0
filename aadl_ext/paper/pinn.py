"""Physics-informed networks for Burgers' equation in any dimension (Eq. 18 to 21 of the paper).

u_t + u (u_x1 + ... + u_xs) - nu (u_x1x1 + ... + u_xsxs) = f,    points are (x1, ..., xs, t)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import StepLR

from . import harness, readings

VISCOSITY = 0.01 / math.pi
HELD_OUT = 0.2  # share of the points that is validated on
UNITS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def network(inputs: int, width: int, depth: int, unit: str) -> nn.Sequential:
    """``depth`` hidden layers of ``width``; weights as torch makes them."""
    widths = (inputs, *[width] * depth)
    hidden = [
        layer
        for before, after in pairwise(widths)
        for layer in (nn.Linear(before, after), UNITS[unit]())
    ]
    return nn.Sequential(*hidden, nn.Linear(width, 1))


def forward_laplacian(model: nn.Sequential, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient and Laplacian of a network of linear, tanh and ReLU layers, in one pass.

    Each layer maps the triple (h, dh/dx, sum of d2h/dx2): a linear layer maps its parts one by
    one, a unit f gives (f(h), f'(h) dh, f'(h) lap + f''(h) |dh|^2). For d inputs that is the work
    and the memory of d + 2 forward passes, and nothing is differentiated twice; nested automatic
    differentiation takes d backward passes through a backward pass. The result can be
    differentiated for training as usual, at about twice the cost again. This is the forward
    Laplacian of Li et al., 2023 (arXiv:2307.08214).

    Args:
        model: its parts are applied in order.
        points: [n, d]; the last input is time and no part of the Laplacian.

    Returns:
        u [n]; its gradient [d, n]; the sum of its second derivatives in space [n].

    Raises:
        TypeError: the network has another layer.
    """
    value = points
    slopes = torch.eye(points.shape[1], dtype=points.dtype, device=points.device)[:, None]
    laplacian = torch.zeros_like(points[:1])
    for layer in model:
        if isinstance(layer, nn.Linear):
            value = layer(value)
            slopes, laplacian = slopes @ layer.weight.T, laplacian @ layer.weight.T
        elif isinstance(layer, nn.Tanh):
            value = torch.tanh(value)
            first = 1 - value * value
            bent = slopes[:-1].square().sum(dim=0)
            laplacian = first * (laplacian - 2 * value * bent)
            slopes = first * slopes
        elif isinstance(layer, nn.ReLU):  # the second derivative is zero almost everywhere
            first = (value > 0).to(value.dtype)
            value, slopes, laplacian = first * value, first * slopes, first * laplacian
        else:
            raise TypeError(f"a {type(layer).__name__} layer; Linear, Tanh and ReLU are known")
    return value[:, 0], slopes[..., 0].expand(-1, len(points)), laplacian[:, 0].expand(len(points))


@dataclass(frozen=True)
class Points:
    """What the loss is made of."""

    known: Tensor  #: [N_u, d] points on the walls or at t = 0
    values: Tensor  #: [N_u] the solution there
    inside: Tensor  #: [N_f, d] points where the equation shall hold
    forcing: Tensor  #: [N_f] its right-hand side there

    def to(self, device: torch.device) -> Points:
        """The same on another device, in float32."""
        own = (getattr(self, field.name) for field in fields(self))
        return Points(*(tensor.to(device, torch.float32) for tensor in own))


#: so many known points and so many inside, drawn with a generator
Sample = Callable[[int, int, torch.Generator], Points]


def loss(model: nn.Sequential, points: Points, viscosity: float = VISCOSITY) -> Tensor:
    """MSE_u + MSE_f (Eq. 19 to 21)."""
    u, slopes, laplacian = forward_laplacian(model, points.inside)
    residual = slopes[-1] + u * slopes[:-1].sum(dim=0) - viscosity * laplacian - points.forcing
    mismatch = model(points.known)[:, 0] - points.values
    total: Tensor = mismatch.square().mean() + residual.square().mean()
    return total


@dataclass(frozen=True)
class Problem:
    """A network and its points, as the paper gives them."""

    sample: Sample
    error: Callable[[nn.Module], dict[str, float]]  #: against the solution
    inputs: int
    width: int
    depth: int
    unit: str
    rate: float
    drop: tuple[int, float]  #: after so many iterations the learning rate falls to this share
    known: int  #: N_u, training and validation together
    inside: int  #: N_f, likewise
    resample: int  #: iterations between two batches; 0: one batch for all

    def settings(self, device: torch.device) -> dict[str, Any]:
        """What the results depend on."""
        return {
            "network": f"{self.inputs} - {self.depth} x {self.width} - 1, {self.unit}",
            "optimizer": {"Adam": self.rate, "every": self.drop[0], "times": self.drop[1]},
            "points": {"known": self.known, "inside": self.inside, "held out": HELD_OUT},
            "resample": self.resample,
            "viscosity": VISCOSITY,
            "device": device.type,
        }


class Training:
    """A network on its way; equal seeds give equal weights and points to all methods."""

    def __init__(
        self, problem: Problem, device: torch.device, options: dict[str, Any] | None, seed: int
    ) -> None:
        self.problem, self.device = problem, device
        self.points_of = torch.Generator().manual_seed(seed)
        self.validation = self._sample(HELD_OUT)
        torch.manual_seed(seed)
        model = network(problem.inputs, problem.width, problem.depth, problem.unit)
        self.model = model.to(device)
        self.optimizer = Adam(model.parameters(), lr=problem.rate)
        readings.accelerate(self.optimizer, options)
        self.closure = readings.wants_closure(options)
        # Last: torch warns where ``step`` is replaced after this, as AADL does.
        self.schedule = StepLR(self.optimizer, *problem.drop)
        self.iteration = 0

    def _sample(self, share: float) -> Points:
        counts = (round(share * self.problem.known), round(share * self.problem.inside))
        return self.problem.sample(*counts, self.points_of).to(self.device)

    def advance(self) -> None:
        """One step, on a new batch if it is time."""
        every = self.problem.resample
        if self.iteration == 0 or (every and self.iteration % every == 0):
            self.batch = self._sample(1 - HELD_OUT)
        if self.closure:
            self.optimizer.step(self._loss)
        else:
            self._loss()
            self.optimizer.step()
        self.schedule.step()
        self.iteration += 1

    def _loss(self) -> Tensor:
        value = loss(self.model, self.batch)
        if torch.is_grad_enabled():
            self.optimizer.zero_grad()
            torch.autograd.backward(value)
        return value

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Validation loss (held-out points of the same kind) and the error of the solution."""
        held_out = float(loss(self.model, self.validation))
        return {"validation MSE": held_out, **self.problem.error(self.model)}


def experiment(
    name: str,
    title: str,
    iterations: int,
    acceleration: dict[str, Any],
    problem: Problem,
    device: torch.device,
) -> harness.Experiment:
    """The paper's three methods, with its p, q, m and beta, on a problem."""
    methods, settings = readings.paper(**acceleration), problem.settings(device)
    start = partial(Training, problem, device)
    return harness.Experiment(name, title, "iteration", iterations, methods, settings, start)
