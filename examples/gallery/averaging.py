"""Averaged weights for evaluation: the mean is taken over weights that steps have judged."""

from __future__ import annotations

import picture
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import aadl_ext

images, labels = load_digits(return_X_y=True)
x, y = torch.from_numpy(images / 16).float(), torch.from_numpy(labels)
torch.manual_seed(0)
order = torch.randperm(len(y))
train, valid = order[:1437], order[1437:]
model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
mean = get_ema_multi_avg_fn(0.95)  # type: ignore[no-untyped-call]
averaged = AveragedModel(model, multi_avg_fn=mean)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
aadl_ext.accelerate(optimizer)


@torch.no_grad()
def validate(network: nn.Module) -> float:
    """Loss over the images held out."""
    return float(nn.functional.cross_entropy(network(x[valid]), y[valid]))


curves: dict[str, list[float]] = {"weights": [], "averaged weights": []}
for _ in range(picture.steps(300, quick=30)):
    pick = train[torch.randint(len(train), (16,))]
    optimizer.zero_grad()
    torch.autograd.backward(nn.functional.cross_entropy(model(x[pick]), y[pick]))
    optimizer.step()
    with aadl_ext.settled(optimizer):
        averaged.update_parameters(model)
        curves["weights"].append(validate(model))
    curves["averaged weights"].append(validate(averaged))
picture.draw(curves, "validation loss")
