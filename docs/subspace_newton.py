"""Draws subspace_newton.png: SGD in a narrow valley, bare and with block secants.

python docs/subspace_newton.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aadl_ext import SubspaceNewton, accelerate, get_accelerator

CURVATURES = torch.tensor([1.0, 40.0], dtype=torch.float64)
BLOCK, STEPS = 6, 30


def path(accelerated: bool) -> tuple[np.ndarray, list[int]]:
    """Points visited, and the steps after which a Newton step was pending."""
    point = torch.nn.Parameter(torch.tensor([-3.0, 0.9], dtype=torch.float64))
    optimizer = torch.optim.SGD([point], lr=0.045)
    if accelerated:
        accelerate(optimizer, SubspaceNewton(history_depth=2, block_length=BLOCK))
    points, ends = [point.detach().clone()], []
    for step in range(STEPS):
        optimizer.zero_grad()
        (0.5 * CURVATURES * point.square()).sum().backward()
        optimizer.step()
        points.append(point.detach().clone())
        if accelerated and get_accelerator(optimizer).pending:
            ends.append(step + 1)
    return torch.stack(points).numpy(), ends


def main() -> None:
    """Draw both paths over the level lines."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    x, y = np.meshgrid(np.linspace(-3.3, 0.9, 300), np.linspace(-1, 1, 200))
    axes.contour(x, y, 0.5 * x**2 + 20 * y**2, levels=np.geomspace(0.02, 20, 14), colors="0.85")
    bare, _ = path(accelerated=False)
    axes.plot(*bare.T, "o-", color="tab:grey", markersize=3, label=f"SGD, {STEPS} steps")
    points, ends = path(accelerated=True)
    last = ends[0] - 1
    axes.plot(*points[: last + 2].T, "o-", color="tab:blue", markersize=3, label="accelerated")
    for begin in range(0, ends[0], BLOCK):
        mean = points[begin : begin + BLOCK].mean(axis=0)
        axes.plot(*mean, "s", color="tab:orange", label="block mean" if begin == 0 else None)
    arrow = {"arrowstyle": "->", "color": "tab:red"}
    axes.annotate("", points[ends[0]], points[last], arrowprops=arrow)
    axes.text(*(points[last] + (0.2, 0.06)), "Newton step", color="tab:red")
    axes.plot(0, 0, "k*", label="minimum")
    axes.set(xlabel="flat direction", ylabel="steep direction")
    axes.legend(fontsize=8)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
