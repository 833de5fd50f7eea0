"""Two processes with half of each batch each (gloo): both extrapolate to the same point."""

from __future__ import annotations

import os
from tempfile import TemporaryDirectory

import picture
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import aadl_ext

STEPS = picture.steps(300, quick=40)


def work(rank: int, folder: str) -> None:
    """One process; the first leaves the losses in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    curves = {"SGD, momentum": train(rank, False), "accelerated": train(rank, True)}
    if rank == 0:
        torch.save(curves, os.path.join(folder, "losses.pt"))
    dist.destroy_process_group()


def train(rank: int, accelerated: bool) -> list[float]:
    """Losses over all samples."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images / 16).float(), torch.from_numpy(labels)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if accelerated:
        aadl_ext.accelerate(optimizer, total_steps=STEPS)
    losses = []
    for _ in range(STEPS):
        pick = torch.randint(len(y), (2, 32))[rank]  # the seed is the same, the half is not
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(x[pick]), y[pick]))
        optimizer.step()
        with torch.no_grad(), aadl_ext.settled(optimizer):
            losses.append(float(nn.functional.cross_entropy(model.module(x), y)))
    for parameter in model.parameters():
        same = parameter.detach().clone()
        dist.broadcast(same, 0)
        assert torch.equal(same, parameter), "the processes have different weights"
    return losses


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        spawn(work, (folder,), nprocs=2)  # type: ignore[no-untyped-call]
        curves = torch.load(os.path.join(folder, "losses.pt"))
    picture.draw(curves, "training loss")
