"""The paper's claim on large batches: with averaging Anderson acceleration closes part of the gap.

A network that is trained on large batches for as many epochs classifies less well. Here that is
the CNN of mnist1d, by the recipe of the paper's Figure 4: SGD with Nesterov's momentum .9, a small
rate for 5 of 90 epochs, then a large one, a tenth of it at epochs 30, 60 and 80; p = q = 5, m = 20,
beta = .5. The large rate is tuned for each batch size and method by the validation error, on seeds
that are not reported ("smaller steps" has an eleventh of the base's: the pace of the average). Runs
are paired: the same network, the same batches.

The share of the gap that a method closes is the mean of what it takes off the base's validation
error, over what the base on the smallest batches has less, with 95 % of resampled seeds.

    python benchmarks/large_batch.py [--seeds N] [--jobs N] [--batches N ...] [--epochs N]

Finished runs are kept as JSON lines (``--runs``). Needs the package mnist1d.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from convergence import batches
from peers import WRAPPERS
from records import RESULTS, save
from scheduled import convolutional, mnist1d
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tuned_runs import REPORTING, Runs, resampled, tune

from aadl_ext import Anderson, Averaging, accelerate

WARM_UP, DROPS, PAPER_EPOCHS = 5, (30, 60, 80), 90
SMALL = 0.05  #: share of the large rate while it warms up: .05 of .98, with 384 processes
SMALLER, BASE = "smaller steps", "Nesterov"
AADL = {"frequency": 5, "store_each_nth": 5, "history_depth": 20, "relaxation": 0.5}
METHODS = [BASE, SMALLER, "AADL", "AADL + average", "EMA", "SNOO", "newton"]
HALF_LIFE = 2.0  # epochs of the average "EMA", at every batch size


@dataclass(frozen=True)
class Run:
    """What a result depends on."""

    batch: int
    method: str
    seed: int
    rate: float
    epochs: int


def share(epoch: float) -> float:
    """Of the large rate, in an epoch of the paper's 90."""
    return SMALL if epoch < WARM_UP else 0.1 ** sum(epoch >= drop for drop in DROPS)


def wrap(optimizer: Optimizer, method: str, steps_an_epoch: int, steps: int) -> list[Any]:
    """Let the method see its steps; what has another point to evaluate."""
    if method.startswith("AADL"):
        average = Averaging() if "average" in method else None
        accelerate(optimizer, Anderson(**AADL, safeguard="residual", average=average))
    elif method == "EMA":
        return [WRAPPERS["EMA"](optimizer, steps, fade=0.5 ** (1 / HALF_LIFE / steps_an_epoch))]
    elif method in WRAPPERS:
        return [WRAPPERS[method](optimizer, steps)]
    return []


def train(run: Run) -> dict[str, Any]:
    """Losses and validation error at the end."""
    problem = convolutional(run.seed)
    _, _, x, y = mnist1d()
    an_epoch = problem.samples // run.batch
    steps = run.epochs * an_epoch
    optimizer = SGD(problem.model.parameters(), lr=run.rate, momentum=0.9, nesterov=True)
    wrapped = wrap(optimizer, run.method, an_epoch, steps)
    schedule = LambdaLR(optimizer, lambda k: share(PAPER_EPOCHS * k / steps))
    picks = batches(problem.samples, run.batch, run.seed)
    for _ in range(steps):
        optimizer.zero_grad()
        problem.loss(next(picks)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    problem.model.eval()
    with torch.no_grad(), ExitStack() as stack:
        for wrapper in wrapped:
            stack.enter_context(wrapper.averaged())
        logits = problem.model(x)
        right = int((logits.argmax(dim=1) == y).sum())
        return {
            "training": float(problem.loss(None)),
            "validation": float(cross_entropy(logits, y)),
            # 1 for a network that is lost; never 0, since its logarithm is taken.
            "error": (len(y) - right + 0.5) / (len(y) + 1) if logits.isfinite().all() else 1.0,
        }


def closed(errors: Tensor, base: Tensor, small: Tensor) -> list[float]:
    """Share of the gap, of errors [seeds] each, and 95 % of resampled seeds."""
    won, gap = base - errors, base - small
    shares = (resampled(won).mean(dim=1) / resampled(gap).mean(dim=1)).sort().values
    return [float(won.mean() / gap.mean()), float(shares[25]), float(shares[974])]


def main() -> None:
    """Tune, run, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--batches", nargs="+", type=int, default=[32, 512, 4000])
    add("--methods", nargs="+", choices=METHODS, default=METHODS)
    add("--epochs", type=int, default=90)
    add("--seeds", type=int, default=10, help="reported ones")
    add("--tuning-seeds", type=int, default=3)
    add("--jobs", type=int, default=1)
    add("--runs", type=Path, default=RESULTS / "large_batch_runs.jsonl")
    add("--out", default="large_batch", help="name of the result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = Runs(options.runs, train, options.jobs)
    cells = [(b, m) for b in options.batches for m in dict.fromkeys([BASE, *options.methods])]
    starts = {
        (batch, method): Run(batch, method, 0, 0.05 * (batch / 32) ** 0.5, options.epochs)
        for batch, method in cells
    }
    tuned = {cell: start for cell, start in starts.items() if cell[1] != SMALLER}
    rates = tune(runs, tuned, "error", options.tuning_seeds)
    rates |= {cell: rates[cell[0], BASE] / 11 for cell in cells if cell[1] == SMALLER}
    seeds = range(REPORTING, REPORTING + options.seeds)
    wanted = {
        cell: [replace(starts[cell], rate=rates[cell], seed=seed) for seed in seeds]
        for cell in cells
    }
    runs.make([run for made in wanted.values() for run in made])
    found = {cell: [runs(run) for run in made] for cell, made in wanted.items()}
    errors = {cell: torch.tensor([r["error"] for r in x]) for cell, x in found.items()}
    rows = []
    for batch, method in cells:
        mine = found[batch, method]
        row = {"batch": batch, "method": method, "rate": rates[batch, method]}
        for name in ("training", "validation", "error"):
            values = [r[name] for r in mine]
            row[name] = [fmean(values), 2 * stdev(values) / len(values) ** 0.5]
        if batch != options.batches[0] and method != BASE:
            small = errors[options.batches[0], BASE]
            row["closed"] = closed(errors[batch, method], errors[batch, BASE], small)
        rows.append(row)
        print(row, flush=True)
    settings = {"epochs": options.epochs, "seeds": options.seeds, "aadl": AADL}
    save(options.out, {**settings, "rows": rows}, RESULTS)


if __name__ == "__main__":
    main()
