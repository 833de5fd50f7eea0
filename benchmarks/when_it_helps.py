"""Where stable Anderson acceleration helps, and where it harms: base optimizer x batch size.

Digits (1797 images of 8 x 8, from scikit-learn), a 64-64-10 tanh network, cross-entropy.
Prints the training loss after all steps, the median over seeds, and writes JSON.

    python benchmarks/when_it_helps.py [--seeds 3] [--steps 1000] [--out FILE.json]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from records import RESULTS, compact, write
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from tqdm import tqdm

import aadl_ext

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD 0.5": lambda p: SGD(p, lr=0.5),
    "SGD 0.2, momentum 0.9": lambda p: SGD(p, lr=0.2, momentum=0.9),
    "Adam 5e-3": lambda p: Adam(p, lr=5e-3),
}
RARE = {"frequency": 10, "history_depth": 10}
#: options of ``Anderson``; None: not accelerated
VARIANTS: dict[str, dict[str, Any] | None] = {
    "bare": None,
    "p=10, beta=1": {**RARE, "relaxation": 1.0},
    "p=10, beta=0.1": {**RARE, "relaxation": 0.1},
    "p=1, beta=0.1": {"history_depth": 10, "relaxation": 0.1},
    "p=1, beta=0.1, average": {"history_depth": 10, "relaxation": 0.1, "average": True},
    "p=10, beta=1, no safeguard": {**RARE, "relaxation": 1.0, "safeguard": None},
}
BATCHES = {"full batch": 1797, "batch 256": 256, "batch 32": 32}


def final_loss(optimizer: str, variant: str, batch: int, seed: int, steps: int) -> float:
    """Training loss on all images after ``steps`` steps."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images / 16).float(), torch.from_numpy(labels)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    opt = OPTIMIZERS[optimizer](model.parameters())
    settings = VARIANTS[variant]
    if settings is not None:
        aadl_ext.accelerate(opt, aadl_ext.Anderson(**settings))
    for _ in range(steps):
        pick = slice(None) if batch == len(y) else torch.randint(len(y), (batch,))
        opt.zero_grad()
        nn.functional.cross_entropy(model(x[pick]), y[pick]).backward()
        opt.step()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(x), y))


def main() -> None:
    """Run everything, print a table for each batch size, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS / "when_it_helps.json")
    options = parser.parse_args()

    cells = [(b, v, o) for b in BATCHES for v in VARIANTS for o in OPTIMIZERS]
    losses = {
        cell: [
            final_loss(cell[2], cell[1], BATCHES[cell[0]], seed, options.steps)
            for seed in range(options.seeds)
        ]
        for cell in tqdm(cells, unit="cell")
    }
    for batch in BATCHES:
        table = Table("", *OPTIMIZERS, title=f"{batch}: training loss after {options.steps} steps")
        for variant in VARIANTS:
            figures = [f"{median(losses[batch, variant, o]):.1e}" for o in OPTIMIZERS]
            table.add_row(variant, *figures)
        Console().print(table)
    record = {
        "steps": options.steps,
        "torch": torch.__version__,
        "aadl_ext": aadl_ext.__version__,
        "variants": VARIANTS,
        "losses": [
            {"batch": b, "variant": v, "loss": {o: losses[b, v, o] for o in OPTIMIZERS}}
            for b in BATCHES
            for v in VARIANTS
        ],
    }
    write(options.out, compact(record))


if __name__ == "__main__":
    main()
