"""Run the demo: all parts, methods and seeds, in as many processes as there are cores."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import torch

import aadl_ext

from . import figure
from .compare import plain, rows, sentences
from .data import DataError, Regression, load
from .page import cells, page
from .parts import DIGITS_RATES, LENGTHS, PINN_RATES, Part, Run, parts
from .report import write

Task = tuple[Regression, str, str, int]
COLUMNS = (
    "", "runs", "training", "x base [95 %]", "validation", "x base [95 %]", "reached", "ms",
    "steps", "accepted",
)  # fmt: skip


def run(
    data_file: Path | None, only: list[str], seeds: int, out: Path, quiet: bool = False
) -> dict[str, Any]:
    """Train, with a live table; write ``demo.json``, ``.png`` and ``.html``; returns a summary.

    Interrupted, it reports the runs that are finished. ``quiet`` prints nothing on standard output.

    Raises:
        DataError: ``data_file`` is not usable.
    """
    from rich.live import Live

    data = load(data_file)
    wanted = [part for part in parts(data) if part.name in only]
    tasks = [
        (data, part.name, method, seed)
        for seed in range(seeds)
        for part in wanted
        for method in part.methods
    ]
    runs: list[Run] = []
    console = console_of(quiet)
    try:
        with Live(tables(wanted, runs, seeds), console=console, refresh_per_second=4) as live:
            for done in train_all(tasks):
                runs.append(done)
                live.update(tables(wanted, runs, seeds))
    except KeyboardInterrupt:
        if not runs:
            raise
        console.print(f"interrupted: {len(runs)} of {len(tasks)} runs are finished")
    runs.sort(key=lambda r: (r.part, r.seed, r.method))
    results = {"settings": settings(data, seeds), "runs": [asdict(run) for run in runs]}
    write(out / "demo.json", json.dumps(rounded(results)))
    return report(*read(out / "demo.json"), out / "demo.json", quiet)


def redraw(results_file: Path, quiet: bool = False) -> dict[str, Any]:
    """Table, figure and page of a ``demo.json``, beside it.

    Raises:
        OSError: the file cannot be read.
        DataError: it is none of this demo's.
    """
    runs, made = read(results_file)
    console_of(quiet).print(tables(shown_of(made, runs), runs, made["seeds"]))
    return report(runs, made, results_file, quiet)


def read(results_file: Path) -> tuple[list[Run], dict[str, Any]]:
    """Runs and settings of a ``demo.json``; errors as of :func:`redraw`."""
    try:
        content = json.loads(results_file.read_text())
        _ = content["settings"]["data"], content["settings"]["seeds"]
        return [Run(**run) for run in content["runs"]], content["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{results_file} was not written by this demo: {error!r}") from error


def rounded(value: Any) -> Any:
    """The same with floats of five significant digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(member) for key, member in value.items()}
    return [rounded(member) for member in value] if isinstance(value, list) else value


def report(runs: list[Run], made: dict[str, Any], path: Path, quiet: bool) -> dict[str, Any]:
    """Figure and page beside the JSON at ``path``; what was found, in words and as a summary."""
    shown = shown_of(made, runs)
    files = {kind: path.with_suffix(f".{kind}") for kind in ("html", "png", "json")}
    figure.save(figure.draw(shown, runs), files["png"])
    svg = figure.as_svg(figure.draw(shown, runs, words=False))
    write(files["html"], page(shown, runs, made, svg))
    console, summary = console_of(quiet), {}
    for part in shown:
        table = rows(part, runs)
        found = sentences(part, table)
        summary[part.name] = {"found": found, "rows": [plain(row) for row in table]}
        console.print(f"\n[bold]{part.title}[/bold]")
        for line in found:
            console.print(line, markup=False, highlight=False)
    console.print(f"\npage:    {files['html']}\nfigure:  {files['png']}\ncurves:  {files['json']}")
    return {**summary, "files": {kind: str(file) for kind, file in files.items()}}


def tables(shown: list[Part], runs: list[Run], seeds: int) -> Any:
    """A table for each part, as far as it has come."""
    from rich.console import Group
    from rich.table import Table

    made = []
    for part in shown:
        table = Table(title=part.title, title_justify="left", title_style="bold", expand=False)
        for heading in COLUMNS:
            table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
        found = {row.method: row for row in rows(part, runs)}
        for method in part.methods:
            row = found.get(method)
            count = row.runs if row else 0
            bar = "━" * count + "·" * (seeds - count)
            progress = bar if seeds <= 10 else f"{count}/{seeds}"
            table.add_row(method, progress, *(cells(row)[1:] if row else []))
        made.append(table)
    return Group(*made)


def settings(data: Regression, seeds: int) -> dict[str, Any]:
    """What the results depend on."""
    return {
        "data": data.name,
        "seeds": seeds,
        "gradient evaluations, and epochs of the paper's problem": LENGTHS,
        "training loss of the base by learning rate, on other seeds": {
            "full-batch": PINN_RATES,
            "mini-batch": DIGITS_RATES,
        },
        "versions": {
            "aadl_ext": aadl_ext.__version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        },
    }


def console_of(quiet: bool) -> Any:
    """Standard output, or standard error where that is left to JSON; wide where it is a file."""
    from rich.console import Console

    stream = sys.stderr if quiet else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 140)


def train_all(tasks: list[Task]) -> Iterator[Run]:
    """As they are finished."""
    workers = min(len(tasks), os.cpu_count() or 1)
    # spawn: a forked torch may hang on locks of threads that were not forked with it
    with multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap_unordered(train, tasks)


def train(task: Task) -> Run:
    """One run."""
    data, name, method, seed = task
    (part,) = (part for part in parts(data) if part.name == name)
    return part.train(method, seed)


def shown_of(made: dict[str, Any], runs: list[Run]) -> list[Part]:
    """The parts that have runs; nothing is trained any more, so the name of the data is all."""
    nothing = numpy.empty((0, 0))
    known = parts(Regression(made["data"], nothing, nothing, scale_target=False))
    return [part for part in known if any(run.part == part.name for run in runs)]
