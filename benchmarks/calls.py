"""How many torch calls an accelerated step adds: each is a kernel launch on a GPU.

Counted on device "meta", where nothing is read, with six tensors and m = 20; views are left aside.

    python benchmarks/calls.py
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aadl_ext import Anderson, SubspaceNewton, accelerate

SHAPES = [(64, 10), (64,), (64, 64), (64,), (1, 64), (1,)]
VIEWS = ("slice", "select", "alias", "unsqueeze", "view", "detach", "expand", "unbind", "diagonal",
         "permute", "numpy_T", "narrow", "t.", "transpose", "profiler", "_local")  # fmt: skip


class Calls(TorchDispatchMode):
    """Counts what reaches torch's dispatcher; an op of the package is one call."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if "aadl_ext" in name or not any(view in name for view in VIEWS):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def steps(method: Anderson | SubspaceNewton | None, count: int) -> list[list[str]]:
    """Names of the calls of each step."""
    parameters = [torch.nn.Parameter(torch.zeros(x, device="meta")) for x in SHAPES]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    if method is not None:
        accelerate(optimizer, method)
    all_calls = []
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        with Calls() as calls:
            optimizer.step()
        all_calls.append(calls.names)
    return all_calls


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", action="store_true", help="print the calls, too")
    bare = len(steps(None, 1)[0])
    anderson = steps(Anderson(history_depth=20, frequency=1), 60)
    average = steps(Anderson(history_depth=20, frequency=1, average=True), 60)
    newton = steps(SubspaceNewton(history_depth=20, adaptive_blocks=False), 300)
    rows = {
        "Anderson, p = q = 1": anderson[-1],
        "the same, averaged": average[-1],
        "Newton, ordinary step": newton[-5],
        "Newton, end of a block": newton[-1],
        "Newton, step after it": newton[-10],
    }
    for name, names in rows.items():
        print(f"{name:<24} {len(names) - bare:4d}")
    if parser.parse_args().names:
        for name, names in rows.items():
            print(name, *names, sep="\n    ")


if __name__ == "__main__":
    main()
