"""Linear warm-up and cosine decay to zero: optimizers and wrappers, each at its own best rate.

The rate of each method is the best of a grid by the final validation loss, on seeds that are not
reported, with worse neighbours on both sides. Runs are paired: the same network, the same batches.
Losses are those over AdamW's alone, of training (over all samples, or 256 of them) and of
validation; the *budget* is the share of the steps with which a method, its schedule fitted to
them, ends at AdamW's training loss of all steps (between those that were tried). Geometric means
over seeds, with two standard errors (budgets: 95 % of resampled seeds). "other order" is AdamW
with the batches in another order.

    python benchmarks/scheduled.py [--tasks NAME ...] [--methods NAME ...] [--seeds N] [--jobs N]
    python benchmarks/scheduled.py --methods "AdamW + newton:rest_above=1.0"

A method is an optimizer, or one with a wrapper, which may have options. Finished runs are kept as
JSON lines (``--runs``); remove them when the package changes. The packages mnist1d (which makes
its data itself), schedulefree and pytorch_optimizer are needed for what bears their names.
"""

from __future__ import annotations

import argparse
import ast
import math
import pydoc_data.topics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from convergence import batches
from networks import Transformer
from peers import WRAPPERS, optimizers
from records import RESULTS, geometric, save
from tasks import TASKS as CONSTANT
from tasks import Problem
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from tuned_runs import OTHER_ORDER, REPORTING, Runs, resampled, tune

METHODS = [
    "AdamW",
    "other order",
    "AdamW + newton",
    "AdamW + Lookahead",
    "AdamW + SNOO",
    "AdamW + EMA-Nesterov",
    "AdamW + EMA",
    "Schedule-Free",
    "SOAP",
    "SOAP + newton",
    "Muon",
    "Muon + newton",
    "Muon + SNOO",
]


@cache
def mnist1d() -> list[Tensor]:
    """Training signals and their classes, and those of validation."""
    from mnist1d.data import get_dataset_args, make_dataset  # noqa: PLC0415

    data = make_dataset(get_dataset_args())
    kinds = {"x": torch.float32, "y": torch.int64}
    return [torch.from_numpy(data[x + y]).to(kinds[x]) for y in ("", "_test") for x in "xy"]


def signals(model: nn.Module) -> Problem:
    """Classify mnist1d."""
    x, y, *held_out = mnist1d()

    def loss(pick: Tensor | None) -> Tensor:
        chosen = slice(None) if pick is None else pick
        return cross_entropy(model(x[chosen]), y[chosen])

    return Problem(model, loss, len(x), lambda: cross_entropy(model(held_out[0]), held_out[1]))


def convolutional(seed: int) -> Problem:
    """Three convolutions of 25 channels, as in the README of mnist1d."""
    torch.manual_seed(seed)
    widths = [(1, 25, 5), (25, 25, 3), (25, 25, 3)]
    layers = [(nn.Conv1d(*width, stride=2, padding=1), nn.ReLU()) for width in widths]
    return signals(
        nn.Sequential(nn.Unflatten(1, (1, 40)), *sum(layers, ()), nn.Flatten(), nn.Linear(125, 10))
    )


class Residual(nn.Module):
    """Two convolutions with BatchNorm, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()

        def convolution() -> list[nn.Module]:
            return [nn.Conv1d(width, width, 3, padding=1, bias=False), nn.BatchNorm1d(width)]

        self.inner = nn.Sequential(*convolution(), nn.ReLU(), *convolution())

    def forward(self, x: Tensor) -> Tensor:
        """Of ``[B, width, T]``."""
        total: Tensor = x + self.inner(x)
        return total.relu()


def residual(seed: int) -> Problem:
    """A small ResNet with BatchNorm and dropout."""
    torch.manual_seed(seed)
    return signals(
        nn.Sequential(
            nn.Unflatten(1, (1, 40)),
            *(nn.Conv1d(1, 32, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(32), nn.ReLU()),
            *(Residual(32), nn.AvgPool1d(2), Residual(32)),
            *(nn.Flatten(), nn.Dropout(0.1), nn.Linear(320, 10)),
        )
    )


@cache
def manual(length: int) -> tuple[Tensor, Tensor]:
    """Windows of ``length + 1`` bytes of Python's own manual, and a tenth of them held out."""
    text = "".join(pydoc_data.topics.topics.values()).encode()
    rows = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    rows = rows[: len(rows) // (length + 1) * (length + 1)].view(-1, length + 1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return rows[len(rows) // 10 :], rows[: len(rows) // 10]


def gpt(seed: int) -> Problem:
    """Bytes from 64 of them: four layers of width 128, 834,304 parameters."""
    train, held_out = manual(64)
    torch.manual_seed(seed)
    model = Transformer(width=128, layers=4, heads=4, tokens=256, length=64)

    def loss(rows: Tensor) -> Tensor:
        return cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())

    return Problem(
        model,
        lambda pick: loss(train[slice(256) if pick is None else pick]),
        len(train),
        lambda: loss(held_out[:512]),
    )


@dataclass(frozen=True)
class Task:
    """A problem for each seed, how it is trained, and where the grid of rates begins."""

    build: Callable[[int], Problem]
    steps: int
    batch: int
    rate: float
    decay: float = 0.01
    clip: float = math.inf  #: largest norm of the gradient


TASKS = {
    "mnist1d CNN": Task(convolutional, 500, 100, 0.04),
    "mnist1d ResNet": Task(residual, 400, 100, 0.015, decay=0.1),
    "digits MLP": Task(CONSTANT["digits MLP"].build, 500, 32, 0.04),
    "GPT": Task(gpt, 300, 8, 0.004, decay=0.1, clip=1.0),
}


@dataclass(frozen=True)
class Run:
    """What a result depends on."""

    task: str
    method: str
    seed: int
    rate: float
    steps: int


def share(k: int, steps: int) -> float:
    """Of the rate, at step k: up over a tenth of the steps, and down to zero."""
    rise = steps // 10
    if k < rise:
        return (k + 1) / rise
    return (1 + math.cos(math.pi * (k - rise) / (steps - rise))) / 2


def parse_method(text: str) -> tuple[str, str, dict[str, Any]]:
    """The optimizer, the wrapper and its options, of ``OPTIMIZER + WRAPPER:KEY=VALUE,...``."""
    name, _, settings = text.partition(":")
    base, _, wrapper = name.partition(" + ")
    call = ast.parse(f"_({settings})", mode="eval").body
    assert isinstance(call, ast.Call)
    options = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    return "AdamW" if base == "other order" else base, wrapper, options


def train(run: Run) -> dict[str, Any]:
    """Final losses, what the method holds, and the milliseconds of its step (of one core)."""
    task = TASKS[run.task]
    problem = task.build(run.seed)
    parameters = list(problem.model.parameters())
    base, wrapper, settings = parse_method(run.method)
    steppers = optimizers(base, problem.model, run.rate, task.decay, run.steps)
    wrapped: list[Any] = []
    if wrapper:
        wrapped = [WRAPPERS[wrapper](x, run.steps, **settings) for x in steppers]
    free = base == "Schedule-Free"
    schedules = [LambdaLR(x, lambda k: share(k, run.steps)) for x in steppers if not free]
    order = run.seed + (OTHER_ORDER if run.method == "other order" else 0)
    picks = batches(problem.samples, task.batch, order)
    seconds = 0.0
    for x in steppers * free:
        x.train()
    for _ in range(run.steps):
        for x in steppers:
            x.zero_grad()
        problem.loss(next(picks)).backward()  # type: ignore[no-untyped-call]
        start = time.process_time()
        if task.clip < math.inf:
            nn.utils.clip_grad_norm_(parameters, task.clip)
        for x in steppers:
            x.step()
        seconds += time.process_time() - start
        for schedule in schedules:
            schedule.step()
    for x in steppers * free:
        x.eval()
    assert problem.validation is not None
    with torch.no_grad(), ExitStack() as stack:
        for x in wrapped:
            stack.enter_context(x.averaged())
        problem.model.eval()
        found = {
            "training": float(problem.loss(None)),
            "validation": float(problem.validation()),
        }
    sizes = [sum(p.numel() for g in x.param_groups for p in g["params"]) for x in steppers]
    parts = zip(wrapped, sizes, strict=False)
    found["vectors"] = sum(x.vectors * size for x, size in parts) / sum(sizes)
    found["ms"] = 1e3 * seconds / run.steps
    if wrapper == "newton":
        found["steps_taken"] = sum(x.handle.stats.extrapolations for x in wrapped)
    return found


def crossing(logs: Tensor, budgets: list[float]) -> list[float]:
    """Budget at which the mean of ``logs``, [seeds, budgets ascending], falls to 0.

    With 95 % of resampled seeds. The least budget if it is below 0 there already, infinite if it
    is above 0 at all.
    """
    found = sorted(_zero(means, budgets) for means in resampled(logs).mean(dim=1).tolist())
    return [_zero(logs.mean(dim=0).tolist(), budgets), found[25], found[974]]


def _zero(means: list[float], budgets: list[float]) -> float:
    points = list(zip(means, budgets, strict=True))
    if points[0][0] <= 0:
        return budgets[0]
    for (above, x), (below, y) in pairwise(points):
        if below <= 0:
            return x + (y - x) * above / (above - below)
    return math.inf


def row(cell: Run, base: Run, options: argparse.Namespace, runs: Runs) -> dict[str, Any]:
    """What a method does beside ``base``."""
    seeds = range(REPORTING, REPORTING + options.seeds)
    its = [runs(replace(base, seed=s)) for s in seeds]
    mine = [runs(replace(cell, seed=s)) for s in seeds]
    found: dict[str, Any] = {"task": cell.task, "method": cell.method, "rate": cell.rate}
    for loss in ("training", "validation"):
        pairs = list(zip(mine, its, strict=True))
        if all(math.isfinite(a[loss]) for a in mine):
            found[loss] = geometric([a[loss] / b[loss] for a, b in pairs])
    if cell.method != "other order" and len(options.budgets) > 1:
        budgets = [
            [runs(r)["training"] for r in fitted(replace(cell, seed=s), options.budgets)]
            for s in seeds
        ]
        logs = (torch.tensor(budgets) / torch.tensor([[r["training"]] for r in its])).log()
        budget = crossing(logs, options.budgets)
        found["budget"] = [x if math.isfinite(x) else None for x in budget]  # as JSON has it
    for name in ("vectors", "ms", "steps_taken"):
        if name in mine[0]:
            found[name] = fmean(r[name] for r in mine)
    return found


def fitted(run: Run, budgets: list[float]) -> list[Run]:
    """The same with other numbers of steps."""
    return [replace(run, steps=round(budget * run.steps)) for budget in budgets]


def main() -> None:
    """Tune, run, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    add("--seeds", type=int, default=8, help="reported ones")
    add("--tuning-seeds", type=int, default=3)
    add("--methods", nargs="+", default=METHODS)
    add(
        "--budgets", nargs="+", type=float, default=[0.5, 0.65, 0.8], help="of the steps, besides 1"
    )
    add("--jobs", type=int, default=1)
    add("--runs", type=Path, default=RESULTS / "scheduled_runs.jsonl")
    add("--out", default="scheduled", help="name of the result")
    options = parser.parse_args()
    options.budgets = sorted({*options.budgets, 1.0})
    torch.set_num_threads(1)
    runs = Runs(options.runs, train, options.jobs)
    matrices = [task for task in options.tasks if task == "GPT"]
    methods = [name for name in options.methods if name != "other order"]
    cells = [
        (task, method)
        for task in options.tasks
        for method in dict.fromkeys(["AdamW", *methods])
        if task in matrices or not method.startswith("Muon")
    ]
    tasks = {cell: TASKS[cell[0]] for cell in cells}
    starts = {cell: Run(*cell, 0, task.rate, task.steps) for cell, task in tasks.items()}
    rates = tune(runs, starts, "validation", options.tuning_seeds)
    seeds = range(REPORTING, REPORTING + options.seeds)
    best = [replace(starts[cell], rate=rate) for cell, rate in rates.items()]
    wanted = [
        r for run in best for s in seeds for r in fitted(replace(run, seed=s), options.budgets)
    ]
    others = [replace(run, method="other order") for run in best if run.method == "AdamW"]
    others *= "other order" in options.methods
    runs.make(wanted + [replace(run, seed=s) for run in others for s in seeds])
    base = {run.task: run for run in best if run.method == "AdamW"}
    table = [row(run, base[run.task], options, runs) for run in best + others]
    table.sort(key=lambda r: options.tasks.index(r["task"]))
    for found in table:
        names = [x for x in ("training", "validation", "budget") if x in found]
        shown = (
            "{} {:.3f} [{:.3f}, {:.3f}]".format(
                x, *(math.inf if y is None else y for y in found[x])
            )
            for x in names
        )
        print("{task} {method} at {rate:g}:".format(**found), ", ".join(shown), flush=True)
    result = {"seeds": options.seeds, "budgets": options.budgets, "rows": table}
    save(options.out, result, RESULTS)


if __name__ == "__main__":
    main()
