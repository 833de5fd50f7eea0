"""Table and plot of an experiment's results, which are plain records (see harness.py)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..demo.report import draw_band, mean_and_interval

COLOURS = ("blue", "green", "red", "purple", "orange", "brown", "pink", "olive", "cyan", "gray")

Record = dict[str, Any]


def report(results: Record, methods: list[str], picture: Path, scale: str = "log") -> None:
    """Draw the plot as ``picture`` and print the table, of some methods."""
    plot(results, methods, picture, scale)
    show(results, methods)


def figures(results: Record) -> list[str]:
    """Names of what was watched."""
    return list(results["runs"][0]["curves"])


def of(results: Record, method: str) -> list[Record]:
    """The runs of a method, by seed."""
    return [record for record in results["runs"] if record["method"] == method]


def final(run: Record, figure: str) -> float | None:
    """A figure at the end of a run; None where the run was lost."""
    value: float | None = run["final"][figure]
    return value


def best(run: Record, figure: str) -> float | None:
    """The smallest value on the way, as far as a run was looked at."""
    return min((value for value in run["curves"][figure] if value is not None), default=None)


def ratio(
    results: Record,
    method: str,
    base: str,
    figure: str,
    pick: Callable[[Record, str], float | None] = final,
) -> tuple[float, float, float]:
    """Geometric mean over common seeds of a figure / that of ``base``, and its 95 % interval.

    NaN where a run was lost, or where a figure is zero.
    """
    others = {run["seed"]: pick(run, figure) for run in of(results, base)}
    runs = [run for run in of(results, method) if run["seed"] in others]
    pairs = [(pick(run, figure), others[run["seed"]]) for run in runs]
    if not pairs or not all(value for pair in pairs for value in pair):
        return math.nan, math.nan, math.nan
    logarithms = np.log(_numbers(pairs))
    mean, half = mean_and_interval(logarithms[:, :1] - logarithms[:, 1:])
    return tuple(math.exp(x) for x in (mean[0], mean[0] - half[0], mean[0] + half[0]))  # type: ignore[return-value]


def show(results: Record, methods: list[str]) -> None:
    """Print final figures: mean ± 95 % interval, median; the first also as ratio to the first
    method, and at its best on the way: median, ratio.
    """
    from rich.console import Console
    from rich.table import Table

    watched = figures(results)
    table = Table(title=results["title"])
    table.add_column("")
    for name in watched:
        table.add_column(f"{name}\nmean ± 95 % (median)", justify="right")
    table.add_column(f"{watched[0]}\n/ {methods[0]}", justify="right")
    table.add_column(f"at its best\n(median), / {methods[0]}", justify="right")
    for heading in ("seeds", "lost", "accepted of\nextrapolated", "averaged\nof steps", "s"):
        table.add_column(heading, justify="right")
    for method in methods:
        if runs := of(results, method):
            table.add_row(method, *_cells(results, runs, methods[0]))
    Console(width=None if os.isatty(1) else 170).print(table)


def _cells(results: Record, runs: list[Record], base: str) -> list[str]:
    cells, watched = [], figures(results)
    for name in watched:
        finals = _numbers([run["final"][name] for run in runs])
        mean, half = mean_and_interval(finals[:, None])
        cells.append(f"{mean[0]:.3g} ± {half[0]:.1g} ({np.median(finals):.3g})")
    for pick in (final, best):
        middle, low, high = ratio(results, runs[0]["method"], base, watched[0], pick)
        cells.append(f"{middle:.3g} [{low:.3g}, {high:.3g}]")
    cells[-1] = f"({np.median(_numbers([best(run, watched[0]) for run in runs])):.3g}) {cells[-1]}"
    lost = sum(run["final"][watched[0]] is None for run in runs)
    cells += [str(len(runs)), str(lost)]
    total = {
        name: sum(run["stats"].get(name, 0) for run in runs)
        for name in ("accepted", "jumps", "averaged", "steps")
    }
    for part, whole in (("accepted", "jumps"), ("averaged", "steps")):
        cells.append(f"{total[part] / total[whole]:.0%}" if total[whole] else "")
    return [*cells, f"{np.median([run['seconds'] for run in runs]):.0f}"]


def _numbers(values: Any) -> NDArray[np.float64]:
    return np.array(values, dtype=float)  # None becomes NaN


def plot(results: Record, methods: list[str], path: Path, scale: str = "log") -> None:
    """Draw a panel for each figure: mean and 95 % band of each method, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = figures(results)
    figure = Figure(figsize=(5.5 * len(names), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for method, colour in zip(methods, cycle(COLOURS), strict=False):
            if runs := of(results, method):
                curves = _numbers([run["curves"][name] for run in runs])
                draw_band(axes, results["at"], curves, method, f"tab:{colour}")
        axes.set(xlabel=results["unit"], ylabel=name, yscale=scale)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    seeds = {record["seed"] for record in results["runs"]}
    figure.suptitle(
        f"{results['title']}: mean and 95 % interval, {len(seeds)} seed(s)", fontsize=10
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    _save_small(figure, path)


def _save_small(figure: Any, path: Path) -> None:
    """As PNG of few colours, a fifth of the bytes."""
    from PIL import Image

    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    with Image.open(buffer) as image:
        _few_colours(image).save(path, optimize=True)


def _few_colours(image: Any) -> Any:
    """The curves' colours, black, white and the 20 most common ones in place of all others."""
    from matplotlib.colors import to_rgb
    from PIL import Image

    pixels = np.asarray(image.convert("RGB")).astype(int)
    curves = [to_rgb(f"C{index}") for index in range(10)] + [(0, 0, 0), (1, 1, 1)]
    colours, places, counts = np.unique(
        pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True
    )
    palette = np.concatenate([np.rint(255 * np.array(curves)), colours[np.argsort(-counts)[:20]]])
    distances = ((colours[:, None] - palette) ** 2).sum(axis=-1)
    made = Image.fromarray(distances.argmin(axis=1)[places].reshape(pixels.shape[:2]).astype("u1"))
    made.putpalette(palette.astype("u1").tobytes())
    return made
