"""AdamW with linear warm-up and cosine decay to zero, bare and accelerated.

The rate of the bare optimizer is the best of a grid, by the final validation loss, on seeds that
are not reported; all methods use it, and with ``--shares`` also fractions of it. Runs are paired:
the same network, the same batches. A *ratio* is that of final losses, training (over all samples)
or validation; the *budget ratio* is the share of the steps with which an accelerated run, its
schedule fitted to its own budget, ends at the bare training loss of the full budget. Geometric
means over seeds, with two standard errors (budgets: 95 % of resampled seeds). "other order" is the
bare optimizer with the batches in another order.

    python benchmarks/scheduled.py [--tasks NAME ...] [--seeds N] [--budgets .9 1]
    python benchmarks/scheduled.py --set "never rests:rest_above=1.0"

Finished runs are kept as JSON lines (``--runs``); remove them when the package changes. The task
"mnist1d CNN" needs the package mnist1d, which makes its data itself.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from convergence import batches, variant
from records import RESULTS, save
from tasks import TASKS as CONSTANT
from tasks import Problem
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from aadl_ext import SubspaceNewton, accelerate, get_accelerator

TUNING, REPORTING = 0, 100  # the first seed of each
GRID = 8  # rates a decade
OTHER_ORDER = 1000  # added to the seed of the batches
METHODS: dict[str, dict[str, Any] | None] = {"other order": None, "newton": {}}


@cache
def mnist1d() -> list[Tensor]:
    """Training signals and their classes, and those of validation."""
    from mnist1d.data import get_dataset_args, make_dataset  # noqa: PLC0415

    data = make_dataset(get_dataset_args())
    kinds = {"x": torch.float32, "y": torch.int64}
    return [torch.from_numpy(data[x + y]).to(kinds[x]) for y in ("", "_test") for x in "xy"]


def convolutional(seed: int) -> Problem:
    """Three convolutions of 25 channels, as in the README of mnist1d."""
    x, y, *held_out = mnist1d()
    torch.manual_seed(seed)
    widths = [(1, 25, 5), (25, 25, 3), (25, 25, 3)]
    layers = [(nn.Conv1d(*width, stride=2, padding=1), nn.ReLU()) for width in widths]
    model = nn.Sequential(
        nn.Unflatten(1, (1, 40)), *sum(layers, ()), nn.Flatten(), nn.Linear(125, 10)
    )

    def loss(pick: Tensor | None) -> Tensor:
        chosen = slice(None) if pick is None else pick
        return cross_entropy(model(x[chosen]), y[chosen])

    return Problem(model, loss, len(x), lambda: cross_entropy(model(held_out[0]), held_out[1]))


@dataclass(frozen=True)
class Task:
    """A problem for each seed, how it is trained, and where the grid of rates begins."""

    build: Callable[[int], Problem]
    steps: int
    batch: int
    rate: float = 0.03


TASKS = {
    "mnist1d CNN": Task(convolutional, 500, 100),
    "digits MLP": Task(CONSTANT["digits MLP"].build, 500, 32),
    "transformer": Task(CONSTANT["transformer"].build, 300, 32),
}


@dataclass(frozen=True)
class Run:
    """What a result depends on."""

    task: str
    seed: int
    rate: float
    steps: int
    method: str = "base"
    settings: dict[str, Any] | None = None


def share(k: int, steps: int) -> float:
    """Of the rate, at step k: up over a tenth of the steps, and down to zero."""
    rise = steps // 10
    if k < rise:
        return (k + 1) / rise
    return (1 + math.cos(math.pi * (k - rise) / (steps - rise))) / 2


def train(run: Run) -> dict[str, Any]:
    """Final losses, and what the accelerator did."""
    problem = TASKS[run.task].build(run.seed)
    optimizer = AdamW(problem.model.parameters(), lr=run.rate, weight_decay=0.01)
    if run.settings is not None:
        accelerate(optimizer, SubspaceNewton(**run.settings))
    schedule = LambdaLR(optimizer, lambda k: share(k, run.steps))
    order = run.seed + (OTHER_ORDER if run.method == "other order" else 0)
    picks = batches(problem.samples, TASKS[run.task].batch, order)
    for _ in range(run.steps):
        optimizer.zero_grad()
        problem.loss(next(picks)).backward()
        optimizer.step()
        schedule.step()
    assert problem.validation is not None
    with torch.no_grad():
        training = float(problem.loss(None))
        problem.model.eval()
        found: dict[str, Any] = {"training": training, "validation": float(problem.validation())}
    if run.settings is not None:
        stats = get_accelerator(optimizer).stats
        found |= {"steps_taken": stats.extrapolations, "rested": stats.skipped["high_rate"]}
    return found


class Runs:
    """Those on file, and the others made and put there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.done = {json.dumps(r["run"]): r for r in map(json.loads, lines)}

    def __call__(self, run: Run) -> dict[str, Any]:
        """The result of a run."""
        key = json.dumps(asdict(run))
        if key not in self.done:
            self.done[key] = {"run": asdict(run), **train(run)}
            with self.path.open("a") as file:
                file.write(json.dumps(self.done[key]) + "\n")
        return self.done[key]


def tuned(task: str, runs: Runs, seeds: int) -> float:
    """The rate of the grid with the lowest validation loss, worse neighbours on both sides."""

    def score(power: int) -> float:
        rate = float(f"{TASKS[task].rate * 10 ** (power / GRID):.2g}")
        of = (runs(Run(task, TUNING + s, rate, TASKS[task].steps)) for s in range(seeds))
        losses = [r["validation"] for r in of]
        finite = all(map(math.isfinite, losses))
        return fmean(map(math.log, losses)) if finite else math.inf

    scores = {power: score(power) for power in (-1, 0, 1)}
    while (best := min(scores, key=scores.__getitem__)) in (min(scores), max(scores)):
        beyond = best - 1 if best == min(scores) else best + 1
        scores[beyond] = score(beyond)
    return float(f"{TASKS[task].rate * 10 ** (best / GRID):.2g}")


def geometric(ratios: list[float]) -> list[float]:
    """Mean, and two standard errors below and above."""
    logs = [math.log(x) for x in ratios]
    mean, error = fmean(logs), 2 * stdev(logs) / math.sqrt(len(logs))
    return [math.exp(x) for x in (mean, mean - error, mean + error)]


def crossing(logs: Tensor, budgets: Tensor) -> list[float]:
    """Budget where the mean of ``logs``, [seeds, budgets], is 0, with 95 % of resampled ones."""
    generator = torch.Generator().manual_seed(0)
    again = torch.randint(len(logs), (1000, len(logs)), generator=generator)
    means = torch.cat([logs.mean(dim=0)[None], logs[again].mean(dim=1)])
    x = budgets.log()
    slope = ((means - means.mean(dim=1, keepdim=True)) * (x - x.mean())).sum(dim=1)
    slope = slope / (x - x.mean()).square().sum()
    zero = (x.mean() - means.mean(dim=1) / slope).exp()
    return [float(zero[0]), *zero[1:].quantile(torch.tensor([0.025, 0.975])).tolist()]


def rows(options: argparse.Namespace, runs: Runs) -> Iterator[dict[str, Any]]:
    """One for each task, rate and method."""
    for task in options.tasks:
        best = tuned(task, runs, options.tuning_seeds)
        for part in options.shares:
            for method, settings in options.methods.items():
                if method != "other order" or part == 1:
                    cell = Run(task, 0, best * part, TASKS[task].steps, method, settings)
                    yield {"task": task, "rate": cell.rate, "method": method} | row(
                        cell, options, runs
                    )


def row(cell: Run, options: argparse.Namespace, runs: Runs) -> dict[str, Any]:
    """The ratios of one method."""
    seeds = range(REPORTING, REPORTING + options.seeds)
    base = [runs(replace(cell, seed=s, method="base", settings=None)) for s in seeds]
    budgets = options.budgets if cell.settings is not None else [1.0]
    found = {
        budget: [runs(replace(cell, seed=s, steps=round(budget * cell.steps))) for s in seeds]
        for budget in budgets
    }
    ratios: dict[str, Any] = {}
    for loss in ("training", "validation"):
        pairs = zip(found[1.0], base, strict=True)
        ratios[loss] = geometric([mine[loss] / its[loss] for mine, its in pairs])
    if len(budgets) > 1:
        mine = torch.tensor([[r["training"] for r in found[b]] for b in budgets]).T
        its = torch.tensor([[r["training"]] for r in base])
        ratios["budget"] = crossing((mine / its).log(), torch.tensor(budgets))
    if cell.settings is not None:
        for count in ("steps_taken", "rested"):
            ratios[count] = fmean(r[count] for r in found[1.0])
    return ratios


def main() -> None:
    """Tune, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    add("--seeds", type=int, default=16, help="reported ones")
    add("--tuning-seeds", type=int, default=6)
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--shares", nargs="+", type=float, default=[1.0, 0.25], help="of the tuned rate")
    add("--budgets", nargs="+", type=float, default=[1.0], help="of the steps; 1 is among them")
    add("--set", nargs="+", type=variant, default=[], metavar="NAME:KEY=VALUE,...",
        help="variants of the default: options of SubspaceNewton")  # fmt: skip
    add("--runs", type=Path, default=RESULTS / "scheduled_runs.jsonl")
    options = parser.parse_args()
    options.methods = {name: METHODS[name] for name in options.methods}
    for name, settings in options.set:
        options.methods[name] = {k: v for k, v in settings.items() if k != "method"}
    torch.set_num_threads(1)
    table = []
    for found in rows(options, Runs(options.runs)):
        table.append(found)
        names = [x for x in ("training", "validation", "budget") if x in found]
        shown = ("{} {:.3f} [{:.3f}, {:.3f}]".format(x, *found[x]) for x in names)
        print("{task} {rate:g} {method}:".format(**found), ", ".join(shown), flush=True)
    save("scheduled", {"seeds": options.seeds, "budgets": options.budgets, "rows": table}, RESULTS)


if __name__ == "__main__":
    main()
