"""Collectives and bytes that acceleration adds, beside those of FSDP2 in the same run.

    torchrun --nproc-per-node 4 benchmarks/distributed.py [--width 512]

Counted where torch's dispatcher sees them, as bytes that a rank puts in; times are not measured.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import aadl_ext
from aadl_ext import Anderson, SubspaceNewton

STEPS = 40


class Collectives(TorchDispatchMode):
    """Counts calls of torch.distributed and the bytes of what goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.bytes = Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::")
            given = dict(zip((x.name for x in func._schema.arguments), args, strict=False))
            sent = given.get("input_tensor", given.get("input_tensors", given.get("tensors")))
            self.calls[name] += 1
            self.bytes[name] += sum(x.nbytes for x in tree_leaves(sent) if isinstance(x, Tensor))
        return func(*args, **(kwargs or {}))


def train(width: int, method: Anderson | SubspaceNewton | None) -> tuple[Collectives, Collectives]:
    """Collectives of forward and backward, and of the optimizer's steps."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(4)]
    model = nn.Sequential(*layers, nn.Linear(width, 1))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    if method is not None:
        aadl_ext.accelerate(optimizer, method)
    generator = torch.Generator().manual_seed(dist.get_rank())
    gradients, steps = Collectives(), Collectives()
    for _ in range(STEPS):
        inputs = torch.randn(8, width, generator=generator)
        optimizer.zero_grad()
        with gradients:
            (model(inputs) - inputs.sum(dim=1, keepdim=True).sin()).square().mean().backward()
        with steps:
            optimizer.step()
    return gradients, steps


def main() -> None:
    """Train with each method and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=int, default=512, help="of four layers (512)")
    width = parser.parse_args().width
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    methods: dict[str, Any] = {
        "none": None,
        "SubspaceNewton()": SubspaceNewton(),
        "Anderson(frequency=10)": Anderson(frequency=10),
        "Anderson(frequency=10, average=True)": Anderson(frequency=10, average=True),
    }
    for name, method in methods.items():
        gradients, steps = train(width, method)
        if dist.get_rank() == 0:
            print(f"{name}, a step of {STEPS}:")
            for what, found in (("FSDP2", gradients), ("optimizer", steps)):
                for call in found.calls:
                    calls, size = found.calls[call] / STEPS, found.bytes[call] / STEPS
                    print(f"  {what:<10}{call:<24}{calls:8.2f} calls{size:14,.0f} bytes")
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # a thread of gloo may still release a tensor, and abort, as Python ends


if __name__ == "__main__":
    main()
