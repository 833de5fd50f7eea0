"""Digits on mini-batches, with and without the line that accelerates."""

from __future__ import annotations

import picture
import torch
from sklearn.datasets import load_digits
from torch import nn

import aadl_ext


def train(accelerated: bool) -> list[float]:
    """Loss over all images, after each tenth step."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images / 16).float(), torch.from_numpy(labels)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if accelerated:
        aadl_ext.accelerate(optimizer)
    curve = []
    for step in range(picture.steps(400, quick=40)):
        pick = torch.randint(len(y), (64,))
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(x[pick]), y[pick]))
        optimizer.step()
        if step % 10 == 9:
            with torch.no_grad(), aadl_ext.settled(optimizer):
                curve.append(float(nn.functional.cross_entropy(model(x), y)))
    return curve


picture.draw(
    {"SGD, momentum": train(False), "accelerated": train(True)},
    "training loss",
    "tens of steps",
)
