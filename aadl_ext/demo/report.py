"""The demo's results: a table, a plot with bands, and JSON that both can be made from again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .training import METHODS, Run

COLOURS = dict(zip(METHODS, ("tab:blue", "tab:green", "tab:red"), strict=True))  # as the paper's


@dataclass(frozen=True)
class Results:
    """All finished runs and what they were made with."""

    data: str
    settings: dict[str, Any]
    versions: dict[str, str]
    runs: list[Run]

    def of(self, method: str) -> list[Run]:
        """The runs of one method."""
        return [run for run in self.runs if run.method == method]


def save(results: Results, path: Path) -> None:
    """Write JSON."""
    write(path, json.dumps(asdict(results)))


def write(path: Path, text: str) -> None:
    """Write all of ``text``; an interrupted write leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def load(path: Path) -> Results:
    """Read what :func:`save` wrote."""
    content = json.loads(path.read_text())
    return Results(**{**content, "runs": [Run(**run) for run in content["runs"]]})


def mean_and_interval(values: NDArray[np.float64]) -> tuple[Any, Any]:
    """Mean over the first axis and half the width of its 95 % interval (Student's t)."""
    from scipy import stats

    count = len(values)
    if count < 2:
        return values.mean(axis=0), np.zeros_like(values[0])
    error = values.std(axis=0, ddof=1) / np.sqrt(count)
    return values.mean(axis=0), stats.t.ppf(0.975, count - 1) * error


def show(results: Results) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    count = len({run.seed for run in results.runs})
    table = Table(
        title=f"{results.data}: mean squared error, mean ± 95 % interval over {count} seeds"
    )
    table.add_column("")
    for heading in (
        "final validation",
        "best validation",
        "final training",
        "step [ms]",
        "added [ms]",
        "accepted",
        "rejected",
        "averaged",
    ):
        table.add_column(heading, justify="right")
    for method in METHODS:
        if runs := results.of(method):
            table.add_row(method, *_cells(runs, results.of(METHODS[0])))
    Console(width=None if os.isatty(1) else 130).print(table)


def _cells(runs: list[Run], base: list[Run]) -> list[str]:
    def spread(figure: list[float]) -> str:
        mean, half = mean_and_interval(np.array(figure))
        return f"{mean:.3g} ± {half:.1g}"

    def per_run(name: str) -> str:
        counts = [run.stats.get(name, 0) for run in runs]
        totals = [sum(x.values()) if isinstance(x, dict) else x for x in counts]
        return f"{np.mean(totals):.0f}" if runs[0].stats else ""

    added = ""
    if runs[0].stats and base:
        more = [np.median([run.optimizer_ms for run in group]) for group in (runs, base)]
        added = f"{more[0] - more[1]:.2f}"
    return [
        spread([run.valid[-1] for run in runs]),
        spread([min(run.valid) for run in runs]),
        spread([run.train[-1] for run in runs]),
        f"{np.median([run.step_ms for run in runs]):.2f}",
        added,
        per_run("accepted"),
        per_run("rejected"),
        per_run("averaged"),
    ]


def draw_band(axes: Any, at: Any, curves: NDArray[np.float64], label: str, colour: str) -> None:
    """Draw mean and 95 % interval of ``curves`` [runs, points] over ``at`` [points]."""
    mean, half = mean_and_interval(curves)
    axes.plot(at, mean, color=colour, label=label, linewidth=1.2)
    # The interval may reach below zero, which a logarithmic axis cannot show.
    low = np.maximum(mean - half, curves.min(axis=0))
    axes.fill_between(at, low, mean + half, color=colour, alpha=0.2)


def plot(results: Results, path: Path) -> None:
    """Draw validation and training loss with bands, on logarithmic axes, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, 2), ("valid", "train"), strict=True):
        for method in METHODS:
            runs = results.of(method)
            if not runs:
                continue
            curves = np.array([getattr(run, name) for run in runs])
            epochs = np.arange(1, curves.shape[1] + 1)
            draw_band(axes, epochs, curves, method, COLOURS[method])
        axes.set(xlabel="epoch", yscale="log")
        axes.set_title("validation" if name == "valid" else "training")
        axes.grid(alpha=0.3, which="both")
        axes.set_ylabel("mean squared error")
        axes.legend()
    count = len({run.seed for run in results.runs})
    figure.suptitle(f"{results.data}: mean and 95 % interval over {count} seeds")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
