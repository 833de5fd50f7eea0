"""Run the demo: all methods and seeds, in as many processes as there are cores."""

from __future__ import annotations

import multiprocessing
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy
import torch

import aadl_ext

from . import report
from .data import Regression, load
from .training import (
    ACCELERATION,
    AVERAGING,
    BATCH,
    LATER_RATE,
    LEARNING_RATE,
    METHODS,
    Run,
    drop_epoch,
)
from .training import train as train_one

Task = tuple[Regression, str, int, int]


def run(data_file: Path | None, seeds: int, epochs: int, out: Path) -> None:
    """Train, then print the table and write ``demo.json`` and ``demo.png`` into ``out``.

    Interrupted, it reports the runs that are finished.

    Raises:
        DataError: ``data_file`` is not usable.
    """
    from tqdm import tqdm

    data = load(data_file)
    tasks = [(data, method, seed, epochs) for seed in range(seeds) for method in METHODS]
    runs: list[Run] = []
    try:
        with tqdm(total=len(tasks), unit="run", desc=f"training on {data.name}") as bar:
            for done in _train_all(tasks):
                runs.append(done)
                bar.update()
    except KeyboardInterrupt:
        if not runs:
            raise
        print(f"interrupted: {len(runs)} of {len(tasks)} runs are finished")
    runs.sort(key=lambda r: (r.seed, METHODS.index(r.method)))
    results = report.Results(
        data=data.name,
        settings={
            "epochs": epochs,
            "batch": BATCH,
            "learning_rate": {
                "first": LEARNING_RATE,
                f"epoch {drop_epoch(epochs)}": LATER_RATE,
            },
            "acceleration": {**asdict(ACCELERATION), "average": asdict(AVERAGING)},
        },
        versions={
            "aadl_ext": aadl_ext.__version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        },
        runs=runs,
    )
    report.save(results, out / "demo.json")
    draw(out / "demo.json")


def draw(results_file: Path) -> None:
    """Print the table and draw the plot of a ``demo.json``, the plot beside it."""
    results = report.load(results_file)
    picture = results_file.with_suffix(".png")
    report.plot(results, picture)
    report.show(results)
    print(f"results: {results_file}\nplot:    {picture}")


def _train_all(tasks: list[Task]) -> Iterator[Run]:
    workers = min(len(tasks), os.cpu_count() or 1)
    # spawn: a forked torch may hang on locks of threads that were not forked with it
    with multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap_unordered(_train, tasks)


def _train(task: Task) -> Run:
    return train_one(*task)
