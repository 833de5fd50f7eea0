"""A physics-informed network on full batches, beside L-BFGS with a line search.

Burgers' equation of tasks.py in float64: the least training loss after so many evaluations of loss
and gradient. Runs that differ by 1e-10 in the rate end ten times apart, so only means over many
say something. L-BFGS is torch's with strong Wolfe conditions; where it stops because a line search
fails, it begins anew from there. Finished runs are kept as JSON lines (``--runs``).

    python benchmarks/pinn.py [--seeds N] [--most EVALUATIONS] [--jobs N] [--methods NAME ...]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from convergence import each
from matplotlib.figure import Figure
from pictures import draw
from records import RESULTS, geometric, save
from tasks import burgers
from torch import Tensor
from torch.optim import LBFGS, Adam, Optimizer

from aadl_ext import accelerate, block_history

RATE = 3e-3  # Adam's, the best of the suite's on this task in float32
METHODS = {  #: pairs of changes of points and gradients
    "accelerated Adam": 100,  # the default on small networks
    "accelerated Adam, 12 pairs": 12,  # and on large ones
    "L-BFGS, 12 pairs": 12,
    "L-BFGS, 100 pairs": 100,
}
LEVELS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
FEWEST = 3  # evaluations in a call of L-BFGS that has got stuck
Record = dict[str, Any]


def optimizer_of(method: str, parameters: list[Tensor], most: int) -> Optimizer:
    """One that has no history yet."""
    pairs = METHODS[method]
    if method.startswith("L-BFGS"):
        return LBFGS(
            parameters,
            max_iter=most,
            max_eval=most,
            history_size=pairs,
            line_search_fn="strong_wolfe",
            tolerance_grad=0,
            tolerance_change=0,
        )
    block_history.PAIRS = pairs
    return accelerate(Adam(parameters, lr=RATE))


def train(method: str, seed: int, most: int) -> Record:
    """Until the last level is reached, or that many evaluations are used."""
    torch.set_default_dtype(torch.float64)
    problem, best, start = burgers(seed), [math.inf], time.process_time()
    parameters = list(problem.model.parameters())

    def evaluate() -> Tensor:
        for p in parameters:
            p.grad = None
        loss = problem.loss(None)
        loss.backward()
        best.append(min(best[-1], loss.item()))
        return loss

    optimizer = optimizer_of(method, parameters, most)
    while best[-1] > LEVELS[-1] and len(best) <= most:
        before = len(best)
        if isinstance(optimizer, LBFGS):
            optimizer.step(evaluate)
            if len(best) - before < FEWEST:
                optimizer = optimizer_of(method, parameters, most)
        else:
            evaluate()
            optimizer.step()
    first = {f"{x:g}": next((i for i, y in enumerate(best) if y <= x), None) for x in LEVELS}
    ways = sorted({round(10 ** (i / 40)) for i in range(int(40 * math.log10(len(best) - 1)) + 1)})
    return {
        "method": method,
        "seed": seed,
        "most": most,
        "evaluations": first,
        "seconds": time.process_time() - start,
        "taken": len(best) - 1,
        "least": best[-1],
        "curve": [(i, best[i]) for i in ways],
    }


def summary(method: str, losses: list[float]) -> Record:
    """Geometric mean with two standard errors, and the ends."""
    loss, *interval = geometric(losses)
    return {
        "method": method,
        "runs": len(losses),
        "loss": loss,
        "interval": interval,
        "least": min(losses),
        "largest": max(losses),
    }


def picture(runs: list[Record], path: Path) -> None:
    """Loss against evaluations."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        index = list(METHODS).index(run["method"])
        label = run["method"] if run["seed"] == min(x["seed"] for x in runs) else None
        axes.loglog(*zip(*run["curve"], strict=True), f"C{index}", label=label, lw=1)
    axes.set(xlabel="evaluations of loss and gradient", ylabel="least training loss so far")
    axes.legend()
    draw(figure, path)


def main() -> None:
    """Run what is missing, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--most", type=int, default=5_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--runs", type=Path, default=Path("build/pinn_runs.jsonl"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    known = given.runs.read_text().splitlines() if given.runs.exists() else []
    runs = [json.loads(line) for line in known]
    done = {(x["method"], x["seed"], x["most"]) for x in runs}
    wanted = [(x, 100 + seed, given.most) for seed in range(given.seeds) for x in given.methods]
    given.runs.parent.mkdir(parents=True, exist_ok=True)
    with given.runs.open("a") as file:
        for run in each(train, [x for x in wanted if x not in done], given.jobs):
            runs.append(run)
            print(json.dumps(run), file=file, flush=True)
            print({x: run[x] for x in ("method", "seed", "evaluations", "seconds")}, flush=True)
    runs = sorted(
        (x for x in runs if (x["method"], x["seed"], x["most"]) in wanted),
        key=lambda x: wanted.index((x["method"], x["seed"], x["most"])),
    )
    rows = [summary(x, [y["least"] for y in runs if y["method"] == x]) for x in given.methods]
    for row in rows:
        print(row)
    save("pinn", {"rows": rows, "runs": runs}, given.out)
    picture(runs, given.out / "pinn.png")


if __name__ == "__main__":
    main()
