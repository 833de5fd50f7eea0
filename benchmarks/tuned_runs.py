"""Runs that are kept as JSON lines, and the learning rate that each method is best with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from convergence import each
from torch import Tensor

TUNING, REPORTING = 0, 100  # the first seed of each
GRID = 5  # rates a decade
OTHER_ORDER = 1000  # added to the seed of the batches


def resampled(values: Tensor) -> Tensor:
    """``[1000, n, ...]`` of ``[n, ...]``: n of them drawn with replacement, always the same."""
    generator = torch.Generator().manual_seed(0)
    return values[torch.randint(len(values), (1000, len(values)), generator=generator)]


class Runs:
    """Those on file, and the others made by ``train`` and put there.

    A run is a dataclass of plain values, with a ``seed`` and a ``rate``.
    """

    def __init__(self, path: Path, train: Callable[[Any], dict[str, Any]], jobs: int) -> None:
        self.path, self.train, self.jobs = path, train, jobs
        lines = path.read_text().splitlines() if path.exists() else []
        self.done = {json.dumps(r["run"]): r for r in map(json.loads, lines)}

    def __call__(self, run: Any) -> dict[str, Any]:
        """The result of a run that has been made."""
        return self.done[json.dumps(asdict(run))]

    def make(self, wanted: list[Any]) -> None:
        """All of these that are missing."""
        missing = [run for run in dict.fromkeys(wanted) if json.dumps(asdict(run)) not in self.done]
        calls = [(run,) for run in missing]
        for run, found in each(partial(_with_its_run, self.train), calls, self.jobs):
            record = self.done[json.dumps(asdict(run))] = {"run": asdict(run), **found}
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")


def _with_its_run(train: Callable[[Any], dict[str, Any]], run: Any) -> tuple[Any, dict[str, Any]]:
    return run, train(run)


def tune(runs: Runs, starts: dict[Hashable, Any], loss: str, seeds: int) -> dict[Hashable, float]:
    """The rate at which each run has the lowest ``loss``, with worse ones on both sides.

    Grids grow from the rates of ``starts``; geometric means over seeds.
    """
    grids = {name: {-1, 0, 1} for name in starts}

    def rate(name: Hashable, power: int) -> float:
        return float(f"{starts[name].rate * 10 ** (power / GRID):.2g}")

    def of(name: Hashable, power: int) -> list[Any]:
        made = replace(starts[name], rate=rate(name, power))
        return [replace(made, seed=TUNING + s) for s in range(seeds)]

    def score(name: Hashable, power: int) -> float:
        losses = [runs(run)[loss] for run in of(name, power)]
        return fmean(map(math.log, losses)) if all(map(math.isfinite, losses)) else math.inf

    while True:
        runs.make([run for name in starts for power in grids[name] for run in of(name, power)])
        best = {name: min(grids[name], key=lambda p, n=name: score(n, p)) for name in starts}
        edges = {name: best[name] in (min(grids[name]), max(grids[name])) for name in starts}
        if not any(edges.values()):
            return {name: rate(name, best[name]) for name in starts}
        for name in starts:
            if edges[name]:
                grids[name] |= {best[name] - 1, best[name] + 1}
