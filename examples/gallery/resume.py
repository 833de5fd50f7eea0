"""Killed half-way and resumed: the weights at the end are those of a run that was not."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import picture
import torch
from torch import nn

import aadl_ext

STEPS = picture.steps(300, quick=60)


class Run:
    """A regression on full batches."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.x = torch.randn(256, 8)
        self.y = torch.sin(self.x.sum(dim=1, keepdim=True))
        self.model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        aadl_ext.accelerate(self.optimizer)
        self.curve: list[float] = []

    def train(self, steps: int) -> None:
        """On from where it is."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = nn.functional.mse_loss(self.model(self.x), self.y)
            torch.autograd.backward(loss)
            self.optimizer.step()
            self.curve.append(loss.item())

    def save(self, path: Path) -> None:
        """Model and optimizer as ever, and the history."""
        accelerator = aadl_ext.get_accelerator(self.optimizer)
        with aadl_ext.settled(self.optimizer):
            parts = (self.model, self.optimizer, accelerator)
            torch.save([part.state_dict() for part in parts], path)

    def load(self, path: Path) -> None:
        """The accelerator last."""
        accelerator = aadl_ext.get_accelerator(self.optimizer)
        model, optimizer, history = torch.load(path)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        accelerator.load_state_dict(history)


whole, first, second = Run(), Run(), Run()
whole.train(STEPS)
with TemporaryDirectory() as folder:
    first.train(STEPS // 2)
    first.save(Path(folder) / "checkpoint.pt")
    second.load(Path(folder) / "checkpoint.pt")
second.train(STEPS - STEPS // 2)
pairs = zip(whole.model.parameters(), second.model.parameters(), strict=True)
assert all(torch.equal(a, b) for a, b in pairs), "not the same weights"
picture.draw({"not interrupted": whole.curve, "resumed": first.curve + second.curve})
