"""A physics-informed network for u'' = -pi^2 sin(pi x), u(0) = u(1) = 0: full batches."""

from __future__ import annotations

import math

import picture
import torch
from torch import Tensor, nn

import aadl_ext

STEPS = picture.steps(600, quick=30)
X = torch.linspace(0, 1, 64)[:, None].requires_grad_()
ENDS = torch.tensor([[0.0], [1.0]])


def loss_of(model: nn.Module) -> Tensor:
    """Residual of the equation, and of the values at the ends."""
    u = model(X)
    slope = torch.autograd.grad(u.sum(), X, create_graph=True)[0]
    bend = torch.autograd.grad(slope.sum(), X, create_graph=True)[0]
    residual = bend + math.pi**2 * torch.sin(math.pi * X)
    ends: Tensor = model(ENDS)
    return residual.square().mean() + 100 * ends.square().mean()


def train(accelerated: bool) -> list[float]:
    """Largest error of the solution, after each step."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    if accelerated:
        aadl_ext.accelerate(optimizer)
    errors = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(model))
        optimizer.step()
        with torch.no_grad(), aadl_ext.settled(optimizer):
            errors.append(float((model(X) - torch.sin(math.pi * X)).abs().max()))
    return errors


picture.draw({"Adam": train(False), "accelerated": train(True)}, "largest error of u")
