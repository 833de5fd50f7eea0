"""Draws anderson.png: SGD in a narrow valley on full batches, bare and with Anderson acceleration.

python docs/anderson.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aadl_ext import Anderson, accelerate, get_accelerator

CURVATURES = torch.tensor([1.0, 40.0], dtype=torch.float64)
METHOD = Anderson(frequency=4, history_depth=2, relaxation=1.0)
STEPS = 30


def path(accelerated: bool) -> tuple[np.ndarray, list[int], list[float]]:
    """Points visited, the steps after which an extrapolation was pending, and losses."""
    point = torch.nn.Parameter(torch.tensor([-3.0, 0.9], dtype=torch.float64))
    optimizer = torch.optim.SGD([point], lr=0.045)
    if accelerated:
        accelerate(optimizer, METHOD)
    points, ends, losses = [point.detach().clone()], [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = (0.5 * CURVATURES * point.square()).sum()
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        points.append(point.detach().clone())
        if accelerated and get_accelerator(optimizer).pending:
            ends.append(step + 1)
    return torch.stack(points).numpy(), ends, losses


def main() -> None:
    """Both paths over the level lines, and the losses."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes, right = figure.subplots(1, 2, width_ratios=[2, 1])
    x, y = np.meshgrid(np.linspace(-3.3, 0.9, 300), np.linspace(-1, 1, 200))
    axes.contour(x, y, 0.5 * x**2 + 20 * y**2, levels=np.geomspace(0.02, 20, 14), colors="0.85")
    bare, _, slow = path(accelerated=False)
    points, ends, fast = path(accelerated=True)
    first = ends[0]
    axes.plot(*bare.T, "o-", color="tab:grey", markersize=3, label=f"SGD, {STEPS} steps")
    axes.plot(*points[:first].T, "o-", color="tab:green", markersize=3, label="accelerated")
    axes.annotate("", points[first], points[first - 1], arrowprops={"arrowstyle": "->"})
    axes.text(*(points[first - 1] + (0.2, 0.06)), f"extrapolation after {first} steps")
    axes.plot(*points[first], "o", color="tab:green", markersize=5)
    axes.plot(0, 0, "k*", label="minimum")
    axes.set(xlabel="flat direction", ylabel="steep direction")
    axes.legend(fontsize=8)
    right.semilogy(slow, color="tab:grey")
    right.semilogy(np.maximum(fast, 1e-32), color="tab:green")
    right.set(xlabel="step", ylabel="loss", ylim=(1e-32, 100))
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
