"""What acceleration adds to an optimizer's step: SGD with momentum.

Times ``optimizer.step()`` alone, bare and accelerated. By Anderson acceleration with p = q = 1,
where at every step a pair is stored and a point is extrapolated, on a 9k-parameter network (8
tensors) and on 5e6 parameters, with and without averaging; against AADL where a checkout of it is
given. By the default method, whose steps differ, the mean over whole blocks, on 1e4 to 2.56e7
parameters in 4 and in 160 tensors, beside the time that the bytes it moves take at the speed of
memory, measured right after it. With so little noise blocks become as short as they can, 2 steps,
and cost most; "blocks of 10" has the usual length.

    python benchmarks/step_overhead.py [--aadl PATH] [--quick] [--threads N] [--out DIR]
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from records import RESULTS, save
from rich.console import Console
from rich.table import Table
from torch.optim import SGD, Optimizer
from tqdm import tqdm

from aadl_ext import Anderson, SubspaceNewton, accelerate
from aadl_ext.bench import memory_rates
from aadl_ext.ops.traffic import Traffic

SHAPES = {
    "9k in 8 tensors": [(64, 10), (64,), (64, 64), (64,), (64, 64), (64,), (1, 64), (1,)],
    "5e6 in 4 tensors": [(1000, 2500), (1000, 2499), (1000,), (1,)],
}
SIZES = {10_000: 400, 1_000_000: 200, 5_000_000: 60, 25_600_000: 40}  # entries, and steps
METHODS = {
    "default": SubspaceNewton(),
    "blocks of 10": SubspaceNewton(adaptive_blocks=False),
    "sketched": SubspaceNewton.sketched(),
}
Accelerate = Callable[..., Any]


class Training:
    """Steps over noisy gradients of a quadratic bowl."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        torch.manual_seed(0)
        self.parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        self.optimizer: Optimizer = SGD(self.parameters, lr=0.01, momentum=0.9)

    def step_seconds(self) -> float:
        """Time of one step, without that of making the gradients."""
        for parameter in self.parameters:
            parameter.grad = parameter.detach() + 0.1 * torch.randn_like(parameter)
        start = time.perf_counter()
        self.optimizer.step()
        return time.perf_counter() - start


def step_seconds(
    shapes: list[tuple[int, ...]], apply: Accelerate, steps: int, **options: Any
) -> tuple[float, float]:
    """Medians of a step, bare and accelerated in turn, once the history is full."""
    bare, accelerated = Training(shapes), Training(shapes)
    apply(accelerated.optimizer, relaxation=0.1, **options)
    for _ in range(options["history_depth"] + 6):
        accelerated.step_seconds()
    times = [(bare.step_seconds(), accelerated.step_seconds()) for _ in range(steps)]
    return median(a for a, _ in times), median(b for _, b in times)


def anderson(optimizer: Optimizer, **options: Any) -> None:
    """As AADL takes them, and with ``safeguard``."""
    accelerate(optimizer, Anderson(**options))


def default_row(size: int, tensors: int, name: str, steps: int) -> dict[str, Any]:
    """Means of a step by the default method, and what its bytes take at the speed of memory."""
    shapes = [(size // tensors,)] * tensors
    bare, accelerated = Training(shapes), Training(shapes)
    accelerate(accelerated.optimizer, METHODS[name])
    for _ in range(100):  # ten blocks: the history is full, their length has settled
        accelerated.step_seconds()
    times = [(bare.step_seconds(), accelerated.step_seconds()) for _ in range(steps)]
    moved = []
    for training in (bare, accelerated):
        with Traffic() as traffic:
            for _ in range(40):
                training.step_seconds()
        moved.append((traffic.read / 40, traffic.written / 40))
    read, written = (ours - its for its, ours in zip(*moved, strict=True))
    read_rate, write_rate = memory_rates(0.5)
    added = fmean(b for _, b in times) - fmean(a for a, _ in times)
    return {
        "parameters": size,
        "tensors": tensors,
        "method": name,
        "bare": fmean(a for a, _ in times),
        "added": added,
        "bytes": (read + written) / size,
        "times its bytes": added / (read / read_rate + written / write_rate),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--aadl", type=Path, help="a checkout of AADL to compare with")
    parser.add_argument("--quick", action="store_true", help="only the small network")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    packages: dict[str, Accelerate] = {"aadl_ext": anderson}
    if given.aadl is not None:
        sys.path.insert(0, str(given.aadl))
        aadl = importlib.import_module("AADL")
        packages["AADL"] = partial(aadl.accelerate, acceleration_type="anderson")

    rows: list[dict[str, Any]] = []
    for name, shapes in list(SHAPES.items())[: 1 if given.quick else 2]:
        steps = 300 if len(shapes) == 8 else 7
        variants = [
            (package, depth, average, safeguard)
            for depth in (10, 20)
            for average in (False, True)
            for package in packages
            for safeguard in ((None, "residual") if package == "aadl_ext" else (None,))
        ]
        for package, depth, average, safeguard in tqdm(variants, desc=name):
            options: dict[str, Any] = {"history_depth": depth, "average": average}
            if package == "aadl_ext":
                options["safeguard"] = safeguard
            else:
                options["history_depth"] += 2  # AADL counts iterates, not columns
            bare, seconds = step_seconds(shapes, packages[package], steps, **options)
            rows.append(
                {
                    "parameters": name,
                    "package": package,
                    "depth": depth,
                    "average": average,
                    "safeguard": safeguard,
                    "bare": bare,
                    "seconds": seconds,
                    "added": seconds - bare,
                }
            )
    show(rows)
    means = [
        default_row(size, tensors, name, steps)
        for size, steps in list(SIZES.items())[: 1 if given.quick else None]
        for tensors in (4, 160)
        for name in METHODS
    ]
    for row in means:
        print("{method}, {parameters} in {tensors}: bare {0:.3g} ms, added {1:.3g} ms, {bytes:.3g} "
              "bytes an entry, {times its bytes:.2f} times their time"
              .format(1e3 * row["bare"], 1e3 * row["added"], **row))  # fmt: skip
    save(f"step_overhead_{given.threads}_threads", {"rows": rows, "default": means}, given.out)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="optimizer.step(): medians")
    for heading in (
        "parameters", "package", "m", "average", "safeguard", "bare ms", "step ms", "added ms"
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["parameters"],
            row["package"],
            str(row["depth"]),
            str(row["average"]),
            str(row["safeguard"]),
            f"{1e3 * row['bare']:.3g}",
            f"{1e3 * row['seconds']:.3g}",
            f"{1e3 * row['added']:.3g}",
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
