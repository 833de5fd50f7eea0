"""How the demo's learning rates were found: ``python -m aadl_ext.demo.rates`` prints the grids."""

from __future__ import annotations

from statistics import geometric_mean

import torch

from .parts import BASE, MOMENTUM, full_batch, mini_batch

PINN = (full_batch, BASE, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1))
DIGITS = (mini_batch, MOMENTUM, (1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0))
SEEDS = (100, 101, 102)


def main() -> None:
    """Base optimizers alone, on seeds that the demo does not use."""
    torch.set_num_threads(1)
    for train, method, grid in (PINN, DIGITS):
        for rate in grid:
            finals = [train(method, seed, rate).train[-1] for seed in SEEDS]
            print(f"{train.__name__} {rate:g}: {geometric_mean(finals):.4g}", flush=True)


if __name__ == "__main__":
    main()
